"""Files of curves: every form that people keep them in gives the same series, and what is none is refused."""

from __future__ import annotations

import csv
import gzip
import json
import math
import random
import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rlmon.audit import aliases
from rlmon.audit.engine import audit
from rlmon.audit.readers import console_log, curves, log_files, open_source
from rlmon.errors import ReadError
from rlmon.report import phrases

CASES = Path(__file__).resolve().parents[2] / "golden" / "cases"

STEPS = range(1, 31)
LOGGED = [
    {"step": step, "epoch": step / 100, "loss": -0.5 / step, "reward": 0.01 * step, "entropy": 0.5, "mine": 7.0}
    for step in STEPS
]
SERIES = {key: [(entry["step"], entry[key]) for entry in LOGGED] for key in ("loss", "reward", "entropy", "mine")}


def as_csv(rows: Sequence[Mapping[str, Any]], delimiter: str = ",") -> str:
    lines = [delimiter.join(rows[0]), *(delimiter.join(map(str, row.values())) for row in rows)]
    return "\n".join(lines) + "\n"


def as_lines(rows: Sequence[Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


FORMS: Mapping[str, Callable[[], str]] = {
    "a list": lambda: json.dumps(LOGGED),
    "a list laid out": lambda: json.dumps(LOGGED, indent=2),
    "a trainer state": lambda: json.dumps({"best_metric": None, "log_history": LOGGED, "max_steps": 30}),
    "in some wrapper": lambda: json.dumps({"run": "x", "state": {"log_history": LOGGED}}),
    "lists by column": lambda: json.dumps({key: [entry[key] for entry in LOGGED] for key in LOGGED[0]}),
    "pandas' own JSON": lambda: json.dumps(
        {key: {str(row): entry[key] for row, entry in enumerate(LOGGED)} for key in LOGGED[0]}
    ),
    "columns and data": lambda: json.dumps({"columns": list(LOGGED[0]), "data": [list(e.values()) for e in LOGGED]}),
    "lines": lambda: as_lines(LOGGED),
    "lines of verl's file logger": lambda: as_lines(
        [{"step": e["step"], "data": {k: v for k, v in e.items() if k != "step"}} for e in LOGGED]
    ),
    "lines with a damaged one first": lambda: '{"step": 0, "rew\n' + as_lines(LOGGED),
    "CSV": lambda: as_csv(LOGGED),
    "CSV with semicolons": lambda: as_csv(LOGGED, ";"),
    "CSV with commas in numbers": lambda: as_csv(LOGGED, ";").replace(".", ","),
    "CSV of a spreadsheet": lambda: "\ufeff" + as_csv(LOGGED).replace("\n", "\r\n"),
    "printed": lambda: "\n".join(map(str, LOGGED)),
    "printed as strings": lambda: "\n".join(str({k: str(v) for k, v in entry.items()}) for entry in LOGGED),
    "printed by numpy": lambda: "\n".join(
        "{" + ", ".join(f"'{k}': np.float64({v})" for k, v in entry.items()) + "}" for entry in LOGGED
    ),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("pack", ["", "gzip", "utf-16"])
def test_every_form_gives_the_same_curves(form: str, pack: str, tmp_path: Path) -> None:
    text = FORMS[form]()
    # The name says nothing.
    path = tmp_path / "kept-from-the-cluster"
    path.write_bytes(
        gzip.compress(text.encode()) if pack == "gzip" else text.encode("utf-16" if pack == "utf-16" else "utf-8")
    )
    for given in (path, tmp_path):
        run = open_source(given)
        assert run.reader == "curves"
        assert run.scalars == SERIES
        assert any("steps are those of 'step'" in note for note in run.notes)
        assert "entropy" not in run.lacks
        assert "no completions" in run.lacks["completions"]


def test_zstandard_and_parquet(tmp_path: Path) -> None:
    packed = pa.compress(as_lines(LOGGED).encode(), codec="zstd", asbytes=True)
    (tmp_path / "a").write_bytes(packed)
    pq.write_table(pa.Table.from_pylist(LOGGED), tmp_path / "b")
    for name in "ab":
        assert open_source(tmp_path / name).scalars == SERIES


def test_a_console_log_as_it_really_is(tmp_path: Path) -> None:
    """Progress bars, colours, tables, prefixes, two dicts on a line, settings, an evaluation and the summary."""
    lines = [
        "INFO 11-29 loading weights",
        "{'learning_rate': 1e-06, 'beta': 0.0}",
        "Loading shards: 100%|##| 4/4 [00:01]",
    ]
    for step in range(10, 100, 10):
        bar = f" {step}%|█▎   | {step}/100 [00:05<03:20, 2.1s/it]"
        lines.append(f"\r{bar}\r  0%|  | 0/8 [00:00<?]\r 50%|##  | 4/8 [00:01<1]")
        lines.append(f"\x1b[32m{bar}\x1b[0m{{'loss': nan, 'reward': '{step}.5', 'epoch': 0.1}}")
        lines.append("╭──── completions ────╮\n│ {'a': 1} and {reward} │")
    lines[5] += " {'eval_reward': 0.25, 'eval_runtime': 3.5}"
    lines.append("{'train_runtime': 12.5, 'train_loss': 0.1, 'epoch': 1.0}")
    path = tmp_path / "nohup.out"
    path.write_text("\n".join(lines))
    run = open_source(path)
    assert run.scalars["reward"] == [(step, step + 0.5) for step in range(10, 100, 10)]
    assert all(math.isnan(value) for _, value in run.scalars["loss"])
    assert run.eval_scalars["reward"] == [(10, 0.25)]
    assert any("progress bar" in note for note in run.notes)


def test_rows_count_the_steps_where_nothing_else_does(tmp_path: Path) -> None:
    path = tmp_path / "log.txt"
    path.write_text("\n".join(str({"loss": 0.5, "reward": row / 8}) for row in range(5)))
    run = open_source(path)
    assert run.scalars["reward"] == [(row + 1, row / 8) for row in range(5)]
    assert any("a row is taken as a step" in note for note in run.notes)


def test_verl_prints_lines(tmp_path: Path) -> None:
    lines = []
    for step in range(1, 6):
        lines.append("\x1b[36m(WorkerDict pid=7)\x1b[0m some word: step 3 - nothing")
        lines.append(
            f"\x1b[36m(TaskRunner pid=123)\x1b[0m step:{step} - training/global_step:{step} - actor/entropy:"
            f"np.float64({step / 16}) - critic/score/mean:{step / 32} - val-core/gsm8k/acc/mean@1:{step / 64}"
            " - perf/mfu/actor:inf - timing_s/gen:1e-3"
        )  # fmt: skip
    (tmp_path / "verl.log").write_text("\n".join(lines))
    run = open_source(tmp_path / "verl.log")
    assert aliases.canonical(run.scalars) == {
        "rlmon/entropy/mean": [(step, step / 16) for step in range(1, 6)],
        "rlmon/health/reward_mean": [(step, step / 32) for step in range(1, 6)],
    }
    assert run.scalars["perf/mfu/actor"][0] == (1, math.inf)
    assert run.eval_scalars["val-core/gsm8k/acc/mean@1"][-1] == (5, 5 / 64)


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("{'loss': '-1e-3', 'a b': 2., \"reward\": inf, 'word': 'x', 'no': None, 'nested': {'loss': 1}}", {}),
        ("{'loss': '-1e-3', 'a b': 2., \"reward\": -inf, 'word': '12d', 'no': None}",
         {"loss": -0.001, "a b": 2.0, "reward": -math.inf}),
        ("{'loss': tensor(0.5, device='cuda:0'), 'global_step/max_steps': '3/90', 'memory(GiB)': 4.5}",
         {"loss": 0.5, "global_step/max_steps": 3.0, "memory(GiB)": 4.5}),
        ("INFO actor.py:12 ✨ Global step 12: {'policy_loss': 0.5, 'reward': 2}",
         {"policy_loss": 0.5, "reward": 2.0, "step": 12.0}),
        ("[2026-11-29 10:00:01] Step 10 | loss: 0.5 | reward=tensor(0.25) lr 1e-6, kl : n/a", 
         {"loss": 0.5, "reward": 0.25, "step": 10.0}),
        ("epoch 1 global_step=7, entropy=1.5e-1 (best=2)",
         {"global_step": 7.0, "entropy": 0.15, "best": 2.0, "step": 7.0}),
        ("step 3 of the recipe: stir, reward: yourself", {}),
        ("step:3 - actor/entropy:0.5 - note:high - s/a:b:2", {"step": 3.0, "actor/entropy": 0.5, "s/a:b": 2.0}),
    ],
)  # fmt: skip
def test_what_a_line_says(text: str, numbers: dict[str, float]) -> None:
    expected = numbers or ({"loss": 1.0} if "nested" in text else {})
    assert next(console_log.log_calls([text]), {}) == expected


def test_two_megabytes_of_console_are_cheap(tmp_path: Path) -> None:
    noise = "[36m(pid=1)[0m INFO engine: {'waiting': 3} tokens/s 12.5 |" + "x" * 150
    lines = []
    for step in range(1, 1_001):
        lines += [noise] * 8
        lines.append(str({f"k{i}": random.random() for i in range(15)} | {"loss": 0.5, "step": step}))
    path = tmp_path / "log"
    path.write_text("\n".join(lines))
    assert path.stat().st_size > 2 << 20
    began = time.process_time()
    assert len(open_source(path).scalars["loss"]) == 1_000
    assert time.process_time() - began < 1.0


def test_a_tracker_history_by_the_trainers_step(tmp_path: Path) -> None:
    columns: dict[str, list[Any]] = {
        "_step": [0, 1, 2, 3],
        "_timestamp": [1.0, 2.0, 3.0, 4.0],
        "train/global_step": [1, None, 2, 2],
        "train/reward": [0.5, None, 0.75, None],
        "eval/reward": [None, None, None, 0.25],
        "custom": [None, 9.0, None, None],
    }
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    parts = tmp_path / "exported"
    parts.mkdir()
    pq.write_table(pa.table(columns).slice(0, 2), parts / "part-0.parquet")
    pq.write_table(pa.table(columns).slice(2), parts / "part-1.parquet")
    (tmp_path / "h.json").write_text(json.dumps(rows))
    (tmp_path / "h.jsonl").write_text(as_lines(rows) + '{"torn')
    with (tmp_path / "h.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(columns))
        writer.writeheader()
        writer.writerows(rows)
    for name in ("exported", "h.json", "h.jsonl", "h.csv"):
        run = open_source(tmp_path / name)
        assert run.scalars == {"reward": [(1, 0.5), (2, 0.75)], "custom": [(1, 9.0)]}, name
        assert run.eval_scalars == {"reward": [(2, 0.25)]}
        assert "holds numbers only" in run.lacks["completions"]


def exported(run: str, key: str, values: Sequence[float]) -> str:
    head = f'"Step","{run} - {key}","{run} - {key}__MIN","{run} - {key}__MAX"\n'
    return head + "".join(f'"{step}","{value}","0","9"\n' for step, value in enumerate(values))


def test_tables_of_the_web_page_are_one_run(tmp_path: Path) -> None:
    (tmp_path / "wandb_export_1.csv").write_text(exported("calm - sun-7", "train/reward", [0.5, 0.25]))
    (tmp_path / "wandb_export_2.csv").write_text(exported("calm - sun-7", "train/entropy", [0.75, 0.5]))
    run = open_source(tmp_path)
    assert run.run_id == "calm - sun-7"
    assert run.scalars == {"reward": [(0, 0.5), (1, 0.25)], "entropy": [(0, 0.75), (1, 0.5)]}
    assert not any("goes back" in note for note in run.notes)


def test_runs_of_one_table_are_named(tmp_path: Path) -> None:
    path = tmp_path / "panel.csv"
    path.write_text("Step,a - train/reward,b - train/reward\n1,0.5,\n2,0.25,0.75\n")
    with pytest.raises(ReadError, match=r"holds 2 runs: 'a', 'b'. Type '.*panel.csv::b'"):
        open_source(path)
    assert open_source(f"{path}::a").scalars == {"reward": [(1, 0.5), (2, 0.25)]}
    assert open_source(f"{path}::b").scalars == {"reward": [(2, 0.75)]}
    assert curves.runs_at(path) == ["a", "b"]
    with pytest.raises(ReadError, match="no run 'c'; it has 'a', 'b'"):
        open_source(f"{path}::c")


@pytest.mark.parametrize(
    ("keys", "taken"),
    [
        (["Step", "_step"], "Step"),
        (["_step", "training/global_step"], "training/global_step"),
        (["step", "progress/batch"], "progress/batch"),
        (["iteration", "_step"], "iteration"),
        (["global_step", "step"], "global_step"),
    ],
)
def test_which_column_counts_the_steps(keys: Sequence[str], taken: str, tmp_path: Path) -> None:
    rows = [{key: row * 10 + len(key) for key in keys} | {"reward": 0.5} for row in range(4)]
    (tmp_path / "x").write_text(as_lines(rows))
    run = open_source(tmp_path / "x")
    assert run.scalars == {"reward": [(row * 10 + len(taken), 0.5) for row in range(4)]}
    assert any(repr(taken) in note for note in run.notes)


def test_a_summary_at_the_end_counts_no_steps(tmp_path: Path) -> None:
    rows = [{"reward": step / 8, "global_step/max_steps": f"{step}/9"} for step in range(1, 10)]
    summary = {"last_model_checkpoint": "x", "global_step": 9, "train_runtime": 5.0, "log_history": [{"loss": 1}]}
    (tmp_path / "x").write_text(as_lines([*rows, summary]))
    assert open_source(tmp_path / "x").scalars == {"reward": [(step, step / 8) for step in range(1, 10)]}


def test_texts_are_no_curves_but_may_stand_beside_them(tmp_path: Path) -> None:
    rows = [{"written": "word " * 20, "reward": 0.5} for _ in range(5)]
    (tmp_path / "x.jsonl").write_text(as_lines(rows))
    with pytest.raises(ReadError, match="--map completion=written"):
        open_source(tmp_path / "x.jsonl")
    (tmp_path / "x.jsonl").write_text(as_lines([{"step": step, **row} for step, row in enumerate(rows)]))
    run = open_source(tmp_path / "x.jsonl")
    assert len(run.scalars["reward"]) == 5
    assert any("--map completion=written" in note for note in run.notes)


def test_a_step_that_never_moves_counts_nothing(tmp_path: Path) -> None:
    (tmp_path / "x").write_text(
        as_lines([{"step": 0, "global_step/max_steps": f"{row}/9", "kl": 0.5} for row in (1, 2)])
    )
    assert open_source(tmp_path / "x").scalars == {"kl": [(1, 0.5), (2, 0.5)]}


def test_steps_that_go_back_are_told(tmp_path: Path) -> None:
    rows = [
        {"step": step, "reward": attempt}
        for attempt, steps in ((0.0, range(1, 11)), (1.0, range(6, 13)))
        for step in steps
    ]
    (tmp_path / "x").write_text(as_lines(rows))
    run = open_source(tmp_path / "x")
    assert run.scalars == {"reward": [(step, 0.0 if step < 6 else 1.0) for step in range(1, 13)]}
    assert any("after step 10 it goes on at 6" in note for note in run.notes)
    random.Random(1).shuffle(rows := [{"step": step, "reward": step / 8} for step in range(1, 20)])
    (tmp_path / "y").write_text(as_lines(rows))
    run = open_source(tmp_path / "y")
    assert run.scalars == {"reward": [(step, step / 8) for step in range(1, 20)]}
    assert any("were sorted" in note for note in run.notes)


def test_a_restart_without_steps_is_known_by_its_epoch_or_its_bar(tmp_path: Path) -> None:
    epochs = [(0.0, row / 10) for row in range(1, 11)] + [(1.0, row / 10) for row in range(6, 13)]
    (tmp_path / "x").write_text("\n".join(str({"reward": attempt, "epoch": epoch}) for attempt, epoch in epochs))
    bars = [
        f" {step}%|█  | {step}/12 [00:05<1]\r{{'reward': {attempt}, 'loss': 0.5}}"
        for attempt, steps in ((0.0, range(1, 11)), (1.0, range(6, 13)))
        for step in steps
    ]
    (tmp_path / "y").write_text("\n".join(bars))
    for name in "xy":
        run = open_source(tmp_path / name)
        assert run.scalars["reward"] == [(step, 0.0 if step < 6 else 1.0) for step in range(1, 13)]
        assert any("after step 10 it goes on at 6" in note for note in run.notes)


def test_a_table_with_a_row_a_value(tmp_path: Path) -> None:
    rows = [f"{key},{entry[key]},{entry['step']},1700000000" for entry in LOGGED for key in SERIES]
    (tmp_path / "x").write_text("\n".join(["key,value,step,timestamp", *rows]))
    run = open_source(tmp_path / "x")
    assert {key: run.scalars[key] for key in SERIES} == SERIES


def test_a_table_of_a_notebook(tmp_path: Path) -> None:
    rows = [f"{step}\t{-step / 8}\t{step / 16}" for step in (10, 20, 30)]
    (tmp_path / "x").write_text("\n".join(["Step\tTraining Loss\trewards / exact match / mean", *rows]))
    assert aliases.canonical(open_source(tmp_path / "x").scalars) == {
        "loss": [(10, -1.25), (20, -2.5), (30, -3.75)],
        "rewards/exact match": [(10, 0.625), (20, 1.25), (30, 1.875)],
    }


def test_of_checkpoints_the_newest_counts(tmp_path: Path) -> None:
    for step in (9, 10):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "state.json").write_text(json.dumps({"global_step": step, "log_history": LOGGED[:step]}))
    assert len(open_source(tmp_path).scalars["reward"]) == 10


def test_curves_beside_rows_go_with_them(tmp_path: Path) -> None:
    rows = [{"step": step, "prompt": "p", "completion": f"c{step}", "reward": 1.0} for step in STEPS]
    (tmp_path / "completions.jsonl").write_text(as_lines(rows))
    (tmp_path / "logging.jsonl").write_text(as_lines(LOGGED))
    run = open_source(tmp_path)
    assert run.shards
    assert run.scalars == SERIES
    assert "entropy" not in run.lacks


def test_rows_of_completions_are_no_curves(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text(as_lines([{"step": row // 4, "reward": 1.0} for row in range(40)]))
    with pytest.raises(ReadError, match=r"up to 4 values of a curve in one step.*--map completion="):
        open_source(tmp_path / "x.jsonl")


@pytest.mark.parametrize(
    "content",
    [
        b"\x00\xff nothing", b"", b"\n\n", b"PAR1 not", b"\x1f\x8b torn", b"\x28\xb5\x2f\xfd torn", b"\xff\xfe",
        b'{"learning_rate": 1e-6, "beta": 0.04}', b"[1, 2, 3]", b'[{"name": "x"}]', b"name,age\na,1\n",
        b"We log {'loss': 1} and then the reward: it rises.", b"print({'reward': 0.5})\n", b"loss is\nreward is\n",
    ],
)  # fmt: skip
def test_other_files_hold_no_curves(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(content)
    assert log_files.recognised(tmp_path / "x") is None
    assert not curves.recognises(tmp_path)
    with pytest.raises(ReadError):
        curves.open_run(tmp_path / "x")


def test_of_a_large_file_the_ends_are_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "weights"
    with path.open("wb") as file:
        file.truncate(8 << 30)
    assert not curves.recognises(tmp_path)
    # Metrics may begin late in a log.
    late = tmp_path / "late.log"
    text = "engine started\n" * 30_000 + "\n".join(map(str, LOGGED))
    late.write_text(text)
    assert open_source(late).scalars == SERIES
    for pack in (gzip.compress, lambda raw: pa.compress(raw, codec="zstd", asbytes=True)):
        late.write_bytes(pack(text.encode()))
        assert open_source(late).scalars == SERIES


def test_what_holds_no_numbers_is_listed(tmp_path: Path) -> None:
    rows = [{"step": step, "reward": 0.5, "elapsed": "4m 52s", "note": None, "other": "x"} for step in (1, 2)]
    (tmp_path / "x").write_text(as_lines(rows))
    assert open_source(tmp_path / "x").passed_over == ["elapsed", "other"]


def test_each_column_is_listed_once_in_the_audit() -> None:
    found = audit(CASES / "swift4800-logging-jsonl")
    columns = found.run.coverage["columns"]
    assert columns["judged"]["completions/mean_length"] == "rlmon/health/length_mean"
    assert columns["judged"]["rewards/QualityORM/std"] == "rewards/QualityORM/std"
    assert columns["kept"] == ["completions/max_length", "completions/min_length", "memory(GiB)", "train_speed(iter/s)"]
    assert columns["without_numbers"] == ["elapsed_time", "percentage", "remaining_time"]
    first = json.loads((CASES / "swift4800-logging-jsonl" / "logging.jsonl").read_text().splitlines()[0])
    listed = [*columns["judged"], *columns["kept"], *columns["without_numbers"]]
    # What counts the steps is in the note about the steps; the clock is no curve.
    assert sorted(listed) == sorted(first.keys() - {"global_step/max_steps", "epoch"})
    assert f"{len(columns['judged'])} judged, 4 kept, 3 without numbers" in phrases.coverage_line(found)
    assert phrases.run_line(found).startswith("no completions, steps ")
    assert re.fullmatch(r"first logged: steps? \d+( to \d+)?", phrases.baseline_line(found))


def test_a_table_of_too_many_numbers_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pq.write_table(pa.Table.from_pylist(LOGGED), tmp_path / "x.parquet")
    monkeypatch.setattr(log_files, "MAX_VALUES", 100)
    with pytest.raises(ReadError, match="180 numbers; at most 100"):
        open_source(tmp_path / "x.parquet")
    (tmp_path / "y.jsonl").write_text(as_lines(LOGGED))
    monkeypatch.setattr(log_files, "MAX_BYTES", 100)
    with pytest.raises(ReadError, match="Keep fewer keys or steps"):
        open_source(tmp_path / "y.jsonl")


def test_a_healthy_run_of_verl_is_a_pass_by_what_it_prints(tmp_path: Path) -> None:
    """verl logs no deviation of the rewards: the ends of the batch tell that they differ."""
    draw = random.Random(4)
    lines = []
    for step in range(1, 101):
        entropy, reward, length = draw.gauss(0.5, 0.02), draw.gauss(0.3, 0.02) + step / 400, draw.gauss(200, 5)
        lines.append(
            f"step:{step} - actor/entropy:{entropy} - critic/score/mean:{reward} - critic/score/max:1.0 - "
            f"critic/score/min:0.0 - response_length/mean:{length} - response_length/clip_ratio:0.01 - "
            f"actor/grad_norm:{draw.gauss(0.3, 0.02)}"
        )
    (tmp_path / "verl.log").write_text("\n".join(lines))
    found = audit(tmp_path / "verl.log")
    assert (found.verdict, found.coverage.outputs) == ("pass", False)
    (tmp_path / "dead.log").write_text("\n".join(lines).replace("critic/score/max:1.0", "critic/score/max:0.0"))
    assert audit(tmp_path / "dead.log").verdict in ("warn", "fail")
