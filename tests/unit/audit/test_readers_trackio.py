"""The trackio reader: the golden data base that trackio wrote, and what may be wrong with one."""

from __future__ import annotations

import contextlib
import json
import math
import pickle
import shutil
import sqlite3
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from rlmon.audit.readers import trackio, wandb
from rlmon.audit.run import OpenedRun, OwnWord, Remark
from rlmon.errors import ReadError

GOLDEN = Path(__file__).resolve().parents[2] / "golden" / "foreign"
BASE = GOLDEN / "trackio" / "huggingface.db"
METRICS = (
    "CREATE TABLE metrics (id INTEGER PRIMARY KEY, run_id TEXT, timestamp TEXT, run_name TEXT, step INTEGER, metrics)"
)
TRACES = (
    "CREATE TABLE traces (id TEXT PRIMARY KEY, run_id TEXT, timestamp TEXT, run_name TEXT, step INTEGER, key TEXT, "
    "trace_index INTEGER, messages TEXT, metadata TEXT)"
)
CONFIGS = "CREATE TABLE configs (id INTEGER PRIMARY KEY, run_id TEXT, run_name TEXT, config TEXT)"


def rows_of(run: OpenedRun) -> list[dict[str, Any]]:
    shards = pickle.loads(pickle.dumps(run.shards))
    return [row for shard in shards for batch in shard.read() for row in batch.rows.to_pylist()]


def write(path: Path, calls: Sequence[dict[str, Any] | bytes], run: str = "run", day: int = 1) -> Path:
    """A data base in trackio's schema with one row a call."""
    with changing(path) as base:
        for statement in (METRICS, TRACES, CONFIGS):
            base.execute(statement.replace("TABLE", "TABLE IF NOT EXISTS"))
        for step, call in enumerate(calls):
            content = call if isinstance(call, bytes) else json.dumps(call).encode()
            row = (f"id-{run}", f"2026-11-{day:02d}T00:00:{step % 60:02d}", run, step, content)
            base.execute("INSERT INTO metrics (run_id, timestamp, run_name, step, metrics) VALUES (?, ?, ?, ?, ?)", row)
    return path


@contextlib.contextmanager
def changing(path: Path) -> Iterator[sqlite3.Connection]:
    with contextlib.closing(sqlite3.connect(path)) as base:
        yield base
        base.commit()


def table(rows: Sequence[Any]) -> dict[str, Any]:
    return {"_type": "trackio.table", "_value": list(rows)}


def test_golden_rows_are_what_was_sampled() -> None:
    run = trackio.open_run(GOLDEN / "trackio")
    truth = Counter(map(tuple, json.loads((GOLDEN / "wandb-trl" / "truth.json").read_text())))
    assert Counter((row["split"], row["prompt"], row["completion"]) for row in rows_of(run)) == truth
    assert sum(batch.duplicates for shard in run.shards for batch in shard.read()) == 11 * 16 - 80


def test_golden_says_the_same_as_wandb() -> None:
    """One run, two trackers."""
    one, other = trackio.open_run(BASE), wandb.open_run(GOLDEN / "wandb-trl")
    assert rows_of(one) == rows_of(other)
    assert (one.scalars, one.eval_scalars) == (other.scalars, other.eval_scalars)
    assert (one.group_size, one.lacks) == (other.group_size, other.lacks)
    assert {key: one.config[key] for key in ("beta", "max_steps", "reward_weights")} == {
        key: other.config[key] for key in ("beta", "max_steps", "reward_weights")
    }


def test_reading_leaves_no_trace(tmp_path: Path) -> None:
    shutil.copy(BASE, tmp_path / "a?b#c%20.db")  # characters that mean something in an address
    before = (tmp_path / "a?b#c%20.db").read_bytes()
    assert len(rows_of(trackio.open_run(tmp_path))) == 80
    assert [file.name for file in tmp_path.iterdir()] == ["a?b#c%20.db"]
    assert (tmp_path / "a?b#c%20.db").read_bytes() == before


def test_large_tables_are_read_only_when_their_rows_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackio, "SMALL_BYTES", 1_000)
    assert rows_of(trackio.open_run(BASE)) == rows_of(wandb.open_run(GOLDEN / "wandb-trl"))
    run = trackio.open_run(write(tmp_path / "x.db", [{"train/global_step": 1, "train/a": 1.0, "pad": "x" * 2_000}]))
    assert run.scalars == {"a": [(1, 1.0)]}  # large, and no table


def test_a_running_programs_newest_rows_are_read(tmp_path: Path) -> None:
    path = write(tmp_path / "live.db", [{"train/global_step": 1, "train/loss": 1.0}])
    with contextlib.closing(sqlite3.connect(path)) as base:
        base.execute("PRAGMA journal_mode = WAL")
        base.execute("PRAGMA wal_autocheckpoint = 0")
        base.execute(
            "INSERT INTO metrics (run_id, timestamp, run_name, step, metrics) VALUES (?, ?, ?, ?, ?)",
            ("id-run", "2026-11-02", "run", 9, b'{"train/global_step": 2, "train/loss": 2.0}'),
        )
        base.commit()
        assert trackio.open_run(path).scalars == {"loss": [(1, 1.0), (2, 2.0)]}
        copy = tmp_path / "copy"
        copy.mkdir()
        for suffix in ("", "-wal"):
            shutil.copy(f"{path}{suffix}", copy / f"live.db{suffix}")
    run = trackio.open_run(copy)  # without its index
    assert run.scalars == {"loss": [(1, 1.0)]}
    assert "live.db-wal" in run.notes[0]
    assert sorted(file.name for file in copy.iterdir()) == ["live.db", "live.db-wal"]


def test_words_for_numbers_that_json_has_not(tmp_path: Path) -> None:
    calls = [{"train/global_step": 1, "train/a": "NaN", "train/b": "-Infinity", "train/c": "word", "train/d": None}]
    calls.append(
        {"completions": table([{"step": 1, "prompt": "p", "completion": "c", "good": "Infinity", "advantage": 0}])}
    )
    run = trackio.open_run(write(tmp_path / "x.db", calls))
    assert set(run.scalars) == {"a", "b"}
    assert math.isnan(run.scalars["a"][0][1])
    assert run.scalars["b"] == [(1, -math.inf)]


def test_several_runs_are_listed_and_chosen_by_name(tmp_path: Path) -> None:
    path = write(tmp_path / "p.db", [{"loss": 2.0}, {"loss": 3.0}], run="new run", day=2)
    write(path, [{"loss": 1.0}], run="old")
    with pytest.raises(ReadError, match=r"2 runs: 'old' \(1 rows.*'new run' \(2 rows.*p\.db::new run"):
        trackio.open_run(path)
    for given in (f"{path}::new run", f"{tmp_path}::new run"):
        assert trackio.recognises(Path(given))
        assert trackio.open_run(Path(given)).scalars == {"loss": [(0, 2.0), (1, 3.0)]}
    assert [str(place) for place in trackio.runs_at(path)] == [f"{path}::old", f"{path}::new run"]
    with changing(path) as base:
        base.execute("UPDATE metrics SET run_name = 'one'")
    assert [str(place) for place in trackio.runs_at(path)] == [f"{path}::id-old", f"{path}::id-new run"]
    assert trackio.open_run(trackio.runs_at(path)[0]).scalars == {"loss": [(0, 1.0)]}
    assert trackio.runs_at(Path(f"{path}::id-old")) == []
    with changing(path) as base:
        base.execute("UPDATE metrics SET run_name = substr(run_id, 4)")
    with pytest.raises(ReadError, match="no run 'third'; it has 'old'"):
        trackio.open_run(Path(f"{path}::third"))
    write(tmp_path / "q.db", [{"loss": 1.0}])
    with pytest.raises(ReadError, match=r"2 trackio projects: 'p.db', 'q.db'"):
        trackio.open_run(tmp_path)


ALERTS = (
    "CREATE TABLE alerts (id INTEGER PRIMARY KEY, run_id TEXT, timestamp TEXT, run_name TEXT, title TEXT, text TEXT, "
    "level TEXT, step INTEGER)"
)


def test_what_the_monitor_said_is_its_own_word(tmp_path: Path) -> None:
    calls: list[dict[str, Any]] = [{"train/global_step": 1, "rlmon/verdict": "warn"}, {"train/loss": 1.0}]
    path = write(tmp_path / "x.db", calls)
    assert trackio.open_run(path).own_word == OwnWord(verdict="warn", remarks=[])  # a data base without alerts
    told = [
        ("rlmon WARN: kl-drift", "Step 7: kl rose.", "run"),
        ("rlmon FAIL: kl-drift", "Step 9: kl rose.", "other"),
        ("rlmon WARN: kl-drift", None, "run"),
        ("rlmon FAIL: Kl Drift", "Step 9: not ours", "run"),
        ("GPU is hot", "Step 9: 90 degrees", "run"),
    ]
    with changing(path) as base:
        base.execute(ALERTS)
        for title, text, run in told:
            row = (f"id-{run}", run, title, text, "warn", 7)
            base.execute(
                "INSERT INTO alerts (run_id, run_name, title, text, level, step) VALUES (?, ?, ?, ?, ?, ?)", row
            )
    word = trackio.open_run(path).own_word
    assert word is not None
    assert (word.verdict, list(word.remarks)) == (
        "warn",
        [Remark(detector="kl-drift", severity="warn", step=7), Remark(detector="kl-drift", severity="warn", step=None)],
    )
    write(path, [{"rlmon/verdict": "excellent"}])
    assert trackio.open_run(path).own_word == word  # of the alerts alone
    write(path, [{"rlmon/verdict": ["fail"]}])
    assert trackio.open_run(path).own_word == word
    write(path, [{"rlmon/verdict": "fail"}])
    assert trackio.open_run(path).own_word == OwnWord(verdict="fail", remarks=word.remarks)  # the newest


def test_what_was_said_before_a_run_went_back_no_longer_counts(tmp_path: Path) -> None:
    path = write(tmp_path / "x.db", [{"train/global_step": s, "rlmon/verdict": "fail"} for s in (1, 2, 3)], day=1)
    write(path, [{"train/global_step": s, "rlmon/verdict": "warn"} for s in (2, 3)], day=2)
    told = [("WARN", 1, "2026-11-01T00:00:00"), ("FAIL", 3, "2026-11-01T00:00:02"), ("WARN", 2, "2026-11-02T00:00:00")]
    with changing(path) as base:
        base.execute(ALERTS)
        for severity, step, time in told:
            row = ("id-run", time, "run", f"rlmon {severity}: d-{step}", f"Step {step}: x.")
            base.execute("INSERT INTO alerts (run_id, timestamp, run_name, title, text) VALUES (?, ?, ?, ?, ?)", row)
    word = trackio.open_run(path).own_word
    assert word is not None
    assert (word.verdict, [remark.detector for remark in word.remarks]) == ("warn", ["d-1", "d-2"])


def test_a_run_without_a_monitor_has_no_word_of_one() -> None:
    assert trackio.open_run(BASE).own_word is None


def test_growing_tables_of_samples_are_all_read(tmp_path: Path) -> None:
    """Each holds the rows of its own step, though it is larger than the one before."""
    calls = []
    for step in (1, 2, 3):
        row = {"step": step, "round": step, "mode": "prose", "reward": 1.0, "prompt": "p"}
        rows = [{**row, "completion": f"{step} {i}"} for i in range(4 * step)]
        calls.append({"rlmon/samples": table(rows), "train/global_step": step})
    run = trackio.open_run(write(tmp_path / "x.db", calls))
    assert Counter(row["step"] for row in rows_of(run)) == {1: 4, 2: 8, 3: 12}


def test_traces_are_rows(tmp_path: Path) -> None:
    """What TRL's asynchronous trainer logs: conversations with a group."""
    path = write(tmp_path / "p.db", [{"train/global_step": s, "train/reward": 0.5} for s in (1, 2)])
    about = {
        "reward": 1.0,
        "reward_std": 0.5,
        "rewards/acc": 1.0,
        "advantage": -0.5,
        "group_id": 7,
        "completion_tokens": 3,
    }
    spoken = [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "a"},
        {"role": "tool", "content": "t"},
        {"role": "assistant", "content": "b"},
    ]
    with changing(path) as base:
        for i, (messages, metadata) in enumerate([(spoken, about), ("nonsense", about), (spoken, {"reward": "NaN"})]):
            row = (str(i), "id-run", "2026-11-01", "run", 2, "rollouts", i, json.dumps(messages), json.dumps(metadata))
            base.execute("INSERT INTO traces VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", row)
    run = trackio.open_run(path)
    one, other = rows_of(run)
    assert (one["step"], one["split"], one["group"], one["reward"], one["advantage"]) == (2, "train", "7", 1.0, -0.5)
    assert (one["prompt"], one["completion"]) == ("system: s\nuser: q", "a\nb")
    assert (one["rewards"], one["completion_tokens"]) == ([("acc", 1.0)], 3)
    assert math.isnan(other["reward"])
    assert other["advantage"] is None
    assert sum(batch.damaged for shard in run.shards for batch in shard.read()) == 1
    assert set(run.lacks) == {"truncation", "entropy", "kl", "eval"}


def test_damaged_rows_are_counted(tmp_path: Path) -> None:
    calls: list[Any] = [{"train/global_step": 1, "train/a": 1.0}, b"{torn", b"[1]", b"\xff\xfe", b"[" * 60_000]
    run = trackio.open_run(write(tmp_path / "x.db", calls))
    assert run.scalars == {"a": [(1, 1.0)]}
    assert "4 damaged rows" in run.notes[0]


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE VIEW metrics AS WITH RECURSIVE n(run_name, step, metrics) AS (SELECT 'r', 1, '' UNION ALL "
        "SELECT run_name, step + 1, metrics FROM n) SELECT * FROM n",
        "CREATE TABLE metrics (run_name, step)",
        "CREATE TABLE other (x)",
    ],
)
def test_other_data_bases_are_not_recognised(tmp_path: Path, statement: str) -> None:
    with changing(tmp_path / "x.db") as base:
        base.execute(statement)
    assert not trackio.recognises(tmp_path)
    with pytest.raises(ReadError, match="no trackio data base"):
        trackio.open_run(tmp_path / "x.db")


@pytest.mark.parametrize("share", [0.05, 0.3, 0.6, 0.9, 0.99])
def test_a_cut_data_base_is_refused(tmp_path: Path, share: float) -> None:
    content = BASE.read_bytes()
    (tmp_path / "x.db").write_bytes(content[: int(len(content) * share)])
    with pytest.raises(ReadError, match="data base"):
        rows_of(trackio.open_run(tmp_path / "x.db"))


def test_links_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "x.db").symlink_to(BASE)
    assert not trackio.recognises(tmp_path / "run")
