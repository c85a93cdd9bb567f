"""What readers say of files that they read in part or not at all is true: runs that take turns, units, named steps."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from rlmon.audit.engine import audit
from rlmon.audit.readers import open_source, runs_at
from rlmon.errors import ReadError
from rlmon.report.screen import sparkline


def lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def curve(step: int, **more: Any) -> dict[str, Any]:
    return {"step": step, "reward": 0.01 * step, "entropy": 0.6, "loss": 0.1, **more}


def rollout(step: Any, at: int, **more: Any) -> dict[str, Any]:
    row = {"step": step, "prompt": f"What is {at // 4}+7?", "reward": float(at % 2)}
    row["completion"] = f"first we add the digits and carry, then it is {step} {at}"
    return {**row, **more}


@pytest.mark.parametrize("column", ["run_name", "run_id", "experiment"])
def test_runs_that_take_turns_in_one_file_are_told_apart(tmp_path: Path, column: str) -> None:
    rows = [curve(step, **{column: run}, kl=shift) for step in range(1, 31) for run, shift in (("b", 9.0), ("a", 0.1))]
    path = lines(tmp_path / "m.jsonl", rows)
    assert [str(run) for run in runs_at(path)] == [f"{path}::b", f"{path}::a"]
    with pytest.raises(ReadError, match="holds 2 runs: 'b', 'a'"):
        open_source(path)
    assert open_source(Path(f"{path}::b")).scalars["kl"] == [(step, 9.0) for step in range(1, 31)]


def test_attempts_with_names_of_their_own_and_names_of_rows_are_one_run(tmp_path: Path) -> None:
    resumed = [curve(step, run_id="x" if step < 16 else "y") for step in range(1, 31)]
    of_rows = [curve(step, run_id=f"call-{step}") for step in range(1, 31)]
    for name, rows in (("resumed", resumed), ("rows", of_rows)):
        path = lines(tmp_path / f"{name}.jsonl", rows)
        assert not runs_at(path)
        assert len(open_source(path).scalars["reward"]) == 30


def test_runs_that_take_turns_without_a_name_are_refused(tmp_path: Path) -> None:
    path = lines(tmp_path / "m.jsonl", [curve(step, kl=shift) for step in range(1, 31) for shift in (9.0, 0.1)])
    twice = lines(tmp_path / "ranks.jsonl", [curve(step) for step in range(1, 31) for _ in range(2)])
    with pytest.raises(ReadError, match=r"several runs in one file.*run_name"):
        open_source(path)
    assert len(open_source(twice).scalars["reward"]) == 30


def test_a_unit_behind_a_key_is_no_part_of_it(tmp_path: Path) -> None:
    rows = [
        {"step": step, "reward [%]": 50.0, "entropy (nats/token)": 0.6, "completions/mean_length(tokens)": 200.0,
         "reward (best)": 9.0}
        for step in range(1, 31)
    ]  # fmt: skip
    run = open_source(lines(tmp_path / "m.jsonl", rows))
    assert {"reward", "entropy", "completions/mean_length", "reward (best)"} == run.scalars.keys()
    assert "entropy" not in run.lacks


@pytest.mark.parametrize("name", ["step_{}", "global_step_{}", "Iteration {}", "checkpoint-{}"])
def test_steps_may_be_names(tmp_path: Path, name: str) -> None:
    rows = [rollout(name.format(step), at) for step in range(1, 13) for at in range(8)]
    told = audit(lines(tmp_path / "r.jsonl", rows))
    assert (told.run.first_step, told.run.last_step) == (1, 12)
    curves = [{**curve(step), "step": name.format(step)} for step in range(1, 31)]
    assert open_source(lines(tmp_path / "m.jsonl", curves)).scalars["entropy"][-1][0] == 30


def test_rows_without_a_whole_step_are_refused_with_an_example(tmp_path: Path) -> None:
    rows = [rollout(f"morning {step}.5", at) for step in range(1, 13) for at in range(8)]
    with pytest.raises(ReadError, match=r"'morning 1\.5'"):
        audit(lines(tmp_path / "r.jsonl", rows))


def test_rows_that_went_blank_are_told_with_their_step(tmp_path: Path) -> None:
    blank = {"completion": None, "reward": None}
    rows = [rollout(step, at, **(blank if step > 12 else {})) for step in range(1, 21) for at in range(8)]
    told = next(c for c in audit(lines(tmp_path / "r.jsonl", rows)).checks if c.id == "rows-complete")
    assert (told.status, told.first_step) == ("warn", 13)
    assert sum(batch.blank for shard in open_source(tmp_path).shards for batch in shard.read()) == 64
    assert "64 have neither a completion nor a reward, all rows from step 13 on" in told.message
    assert "damaged" not in told.message
    assert "Copy the files again" not in told.advice


@pytest.mark.parametrize("column", ["completion_ids", "response_token_ids", "output_tokens"])
def test_token_ids_ask_to_be_decoded(tmp_path: Path, column: str) -> None:
    rows = [
        {"step": step, "prompt": "2+2?", column: [5, 7, at], "reward": at % 2} for step in range(9) for at in range(8)
    ]
    with pytest.raises(ReadError, match=f"token ids, under '{column}': decode them first"):
        audit(lines(tmp_path / "r.jsonl", rows))


def areal(step: int) -> str:
    rows = {"ppo_actor/task_reward/avg": step / 100, "ppo_actor/update/entropy/avg": 0.6, "ppo_actor/seq_len/avg": 2e2}
    table = "".join(f"│ {key:<32} │ {value:.4e} │\n" for key, value in rows.items())
    said = f"20251001 StatsLogger INFO: Epoch 1/1 Step {step}/60 Train step {step}/60 done."
    return f"{said}\n┌────┬───┐\n{table}└────┴───┘\n"


def nemo(step: int) -> str:
    held_out = "📊 Validation Results:\n    • Avg Reward: 9.0\n" if step % 10 == 0 else ""
    return (
        f"\n======== Step {step}/60 ========\n▶ Preparing batch...\n📊 Training Results:\n  • Loss: 0.1\n"
        f"  • Avg Reward: {step / 100:.4f}\n  • Mean Generation Length: 203.0\n  • Total step time: 24.50s\n{held_out}"
    )


def boxed(step: int) -> str:
    return (
        f"-----------------\n| step    | {step} |\n| reward  | {step / 100} |\n| entropy | 0.6 |\n-----------------\n"
    )


@pytest.mark.parametrize(
    ("block", "key"),
    [(areal, "ppo_actor/task_reward/avg"), (nemo, "avg_reward"), (boxed, "reward")],
    ids=["AReaL", "NeMo-RL", "boxes"],
)
def test_blocks_of_a_number_a_line_are_one_call_a_step(tmp_path: Path, block: Callable[[int], str], key: str) -> None:
    path = tmp_path / "job.log"
    path.write_text("INFO: starting 8 workers\n" + "".join(map(block, range(1, 61))), encoding="utf-8")
    scalars = open_source(path).scalars
    assert scalars[key] == [(step, pytest.approx(step / 100)) for step in range(1, 61)]
    assert not any(key.startswith(("│", "•", "|")) for key in scalars)


@pytest.mark.parametrize("above", ["", "# My run\n\nIt went well.\n\n"])
def test_a_table_of_markdown_is_a_table(tmp_path: Path, above: str) -> None:
    rows = "".join(f"| {step} | 0.100000 | {step / 100} |\n" for step in range(1, 31))
    path = tmp_path / "notes.md"
    path.write_text(f"{above}| Step | Training Loss | reward |\n|:---|---:|---|\n{rows}", encoding="utf-8")
    scalars = open_source(path).scalars
    assert scalars["reward"] == [(step, step / 100) for step in range(1, 31)]
    assert set(scalars) == {"Training Loss", "reward"}


@pytest.mark.parametrize("names", [("train.log.2.gz", "train.log.1", "train.log"),
                                   ("train.log-20261001", "train.log-20261002", "train.log")])  # fmt: skip
@pytest.mark.parametrize("key", ["step", "epoch", ""])
def test_a_log_that_was_rotated_is_one_run(tmp_path: Path, names: Sequence[str], key: str) -> None:
    at = iter(range(1, 91))
    for name in names:
        written = "".join(f"{curve_of(next(at), key)}\n" for _ in range(30)).encode()
        (tmp_path / name).write_bytes(gzip.compress(written) if name.endswith(".gz") else written)
    assert runs_at(tmp_path) == []
    assert open_source(tmp_path).scalars["reward"] == [(step, step / 100) for step in range(1, 91)]


def curve_of(step: int, key: str) -> dict[str, float]:
    counted = {"step": step} if key == "step" else {"epoch": step / 50} if key == "epoch" else {}
    return {"reward": step / 100, "loss": 0.1, **counted}


@pytest.mark.parametrize("key", ["step", "epoch"])
def test_runs_that_set_the_log_of_the_one_before_aside_are_runs(tmp_path: Path, key: str) -> None:
    for name in ("train.log.1", "train.log"):
        (tmp_path / name).write_text("".join(f"{curve_of(step, key)}\n" for step in range(1, 31)))
    assert [run.name for run in runs_at(tmp_path)] == ["train.log", "train.log.1"]


def test_a_constant_is_a_flat_line() -> None:
    assert len(set(sparkline([0.95] * 31, 12))) == 1
    assert len(set(sparkline([1e-12, 2e-12] * 6, 12))) == 2


@pytest.mark.parametrize("name", ["m.jsonl", "r.csv", "train.log"])
def test_an_empty_file_is_called_empty(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(b"")
    for place in (path, tmp_path):
        with pytest.raises(ReadError, match=r"is empty \(0 bytes\)"):
            open_source(place)


def test_rows_of_a_resumed_run_are_told(tmp_path: Path) -> None:
    def rows_complete(steps: Sequence[int]) -> tuple[str, str]:
        path = lines(tmp_path / "r.jsonl", [rollout(step, at) for step in steps for at in range(8)])
        told = next(c for c in audit(path).checks if c.id == "rows-complete")
        return told.status, told.message

    status, message = rows_complete([*range(1, 16), *range(10, 21)])
    assert status == "note"
    assert "after step 15 the rows go back to step 10" in message
    assert rows_complete(range(1, 21))[0] == "pass"
    assert rows_complete([step ^ 1 for step in range(2, 22)])[0] == "pass"  # as several workers bring them
