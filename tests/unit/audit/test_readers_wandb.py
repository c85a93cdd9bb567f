"""The W&B reader: the file format, whose row is whose, and what must not be followed."""

from __future__ import annotations

import io
import json
import math
import pickle
import random
import subprocess
import sys
import textwrap
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from make_foreign_trackers import framed

from rlmon.audit.readers import table_rows, tables, wandb
from rlmon.audit.run import ROWS, OpenedRun, OwnWord, Remark
from rlmon.errors import MissingExtraError, ReadError

GOLDEN = Path(__file__).resolve().parents[2] / "golden" / "foreign" / "wandb-trl"
LOGGED_ONCE = {"train_runtime", "train_samples_per_second", "train_steps_per_second", "train_loss", "total_flos"}


def rows_of(run: OpenedRun) -> list[dict[str, Any]]:
    # Shards go to other processes.
    shards = pickle.loads(pickle.dumps(run.shards))
    return [row for shard in shards for batch in shard.read() for row in batch.rows.to_pylist()]


def passed_over(run: OpenedRun) -> tuple[int, int, dict[str, str]]:
    batches = [batch for shard in run.shards for batch in shard.read()]
    unreadable = {name: why for batch in batches for name, why in batch.unreadable.items()}
    return sum(b.duplicates for b in batches), sum(b.damaged for b in batches), unreadable


def write_run(
    folder: Path,
    calls: Sequence[dict[str, Any]],
    config: dict[str, Any] | None = None,
    legacy: bool = False,
    run_id: str = "made",
) -> Path:
    """A run directory with one history record a call; ``{"_table": (columns, data)}`` as value makes a table file."""
    from wandb.proto import wandb_internal_pb2 as pb

    folder.mkdir(parents=True, exist_ok=True)
    written = []
    record = pb.Record()
    record.run.run_id = run_id
    for key, value in (config or {}).items():
        record.run.config.update.add(key=key, value_json=json.dumps(value))
    written.append(record.SerializeToString())
    for number, call in enumerate(calls):
        record = pb.Record()
        record.history.step.num = number
        for key, value in {**call, "_step": number}.items():
            if isinstance(value, dict) and "_table" in value:
                columns, data = value["_table"]
                place = f"media/table/{key}_{number}.table.json"
                file = folder / "files" / place
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(json.dumps({"columns": columns, "data": data}))
                value = {"_type": "table-file", "path": place, "nrows": len(data), "ncols": len(columns)}
            if legacy:
                record.history.item.add(key=key, value_json=json.dumps(value))
            elif isinstance(value, dict):
                for name, part in value.items():
                    record.history.item.add(nested_key=[key, name], value_json=json.dumps(part))
            else:
                record.history.item.add(nested_key=[key], value_json=json.dumps(value))
        written.append(record.SerializeToString())
    path = folder / f"run-{run_id}.wandb"
    path.write_bytes(framed(written))
    return path


TRL = ["step", "prompt", "completion", "good", "advantage"]


def trl_table(step: int, rows: Sequence[tuple[str, str, float]]) -> dict[str, Any]:
    return {"_table": (TRL, [[step, prompt, completion, reward, 0.0] for prompt, completion, reward in rows])}


def test_what_the_run_said_of_itself_less_what_a_later_attempt_superseded(tmp_path: Path) -> None:
    from wandb.proto import wandb_internal_pb2 as pb

    def attempt(folder: Path, steps: Sequence[int], told: dict[int, str], verdict: str) -> None:
        written = []
        for step in steps:
            record = pb.Record()
            record.history.item.add(nested_key=["train/global_step"], value_json=str(step))
            record.history.item.add(nested_key=["rlmon/entropy/mean"], value_json="1.0")
            written.append(record)
            if step in told:
                record = pb.Record()
                record.alert.title, record.alert.text = told.pop(step), f"Step {step}: it happened."
                written.append(record)
        if verdict:
            record = pb.Record()
            record.summary.update.add(nested_key=["rlmon/verdict"], value_json=json.dumps(verdict))
            written.append(record)
        folder.mkdir()
        (folder / "run-made.wandb").write_bytes(framed([record.SerializeToString() for record in written]))

    drift = Remark(detector="kl-drift", severity="warn", step=2)
    told = {2: "rlmon WARN: kl-drift", 4: "rlmon FAIL: format-collapse"}
    attempt(tmp_path / "offline-run-1-made", [1, 2, 3, 4, 4, 5], told, "fail")
    word = wandb.open_run(tmp_path).own_word
    assert word == OwnWord(verdict="fail", remarks=[drift, Remark(detector="format-collapse", severity="fail", step=4)])
    attempt(tmp_path / "offline-run-2-made", [4, 5, 6], {}, "")  # killed: it says nothing more
    assert wandb.open_run(tmp_path).own_word == OwnWord(verdict="warn", remarks=[drift])
    attempt(tmp_path / "offline-run-3-made", [2, 3], {3: "rlmon FAIL: kl-drift"}, "fail")
    again = Remark(detector="kl-drift", severity="fail", step=3)
    assert wandb.open_run(tmp_path).own_word == OwnWord(verdict="fail", remarks=[again])


def test_a_table_that_came_late_supersedes_nothing_that_the_run_said(tmp_path: Path) -> None:
    from wandb.proto import wandb_internal_pb2 as pb

    written = []
    for step, key, value in ((1, "rlmon/entropy/mean", 1.0), (2, "rlmon/entropy/mean", 1.0), (1, "rlmon/samples", {})):
        record = pb.Record()
        record.history.item.add(nested_key=["train/global_step"], value_json=str(step))
        record.history.item.add(nested_key=["_timestamp"], value_json="1.0")
        record.history.item.add(nested_key=[key], value_json=json.dumps(value))
        written.append(record)
        if step == 2:
            record = pb.Record()
            record.alert.title, record.alert.text = "rlmon FAIL: kl-drift", "Step 2: it happened."
            written.append(record)
    (tmp_path / "run-made.wandb").write_bytes(framed([record.SerializeToString() for record in written]))
    said = Remark(detector="kl-drift", severity="fail", step=2)
    assert wandb.open_run(tmp_path).own_word == OwnWord(verdict="fail", remarks=[said])


# --- the golden run: TRL and wandb wrote it, a recording reward function knows what was sampled


def test_golden_rows_are_what_was_sampled() -> None:
    run = wandb.open_run(GOLDEN)
    truth = Counter(map(tuple, json.loads((GOLDEN / "truth.json").read_text())))
    assert sum(truth.values()) == 4 * 16 + 2 * 8  # 4 generations of 16, 2 evaluations of 8
    assert Counter((row["split"], row["prompt"], row["completion"]) for row in rows_of(run)) == truth
    # 11 tables of 16 rows, less the 80 that are new.
    assert passed_over(run) == (11 * 16 - 80, 0, {})


def test_golden_reward_is_the_weighted_sum() -> None:
    for row in rows_of(wandb.open_run(GOLDEN)):
        rewards = dict(row["rewards"])
        assert rewards["has_digit"] == float(row["completion"].strip()[:1].isdigit())
        short = None if row["completion"].startswith("the") else -float(len(row["completion"]))
        assert rewards["short"] == short  # a function that returned None
        assert row["reward"] == rewards["has_digit"] + 0.125 * (short or 0.0)


def test_golden_scalars_are_the_trainers_log() -> None:
    run = wandb.open_run(GOLDEN)
    train: dict[str, list[tuple[int, float]]] = {}
    evals: dict[str, list[tuple[int, float]]] = {}
    for entry in json.loads((GOLDEN / "log_history.json").read_text()):
        for key, value in entry.items():
            if key not in {"step", "epoch"} | LOGGED_ONCE and value is not None:
                side, name = (evals, key[5:]) if key.startswith("eval_") else (train, key)
                side.setdefault(name, []).append((entry["step"], value))
    assert run.scalars == train
    assert run.eval_scalars == evals
    assert (run.run_id, run.group_size, run.config["reward_weights"]) == ("golden", 4, [1.0, 0.125])
    # The share that was cut off is a curve.
    assert set(run.lacks) == {"kl", "tokens"}


def test_golden_groups_have_one_prompt_and_four_completions() -> None:
    rows = [row for row in rows_of(wandb.open_run(GOLDEN)) if row["split"] == "train"]
    groups: dict[tuple[int, str], list[str]] = {}
    for row in rows:
        groups.setdefault((row["step"], row["group"]), []).append(row["prompt"])
    assert {len(prompts) for prompts in groups.values()} == {4}
    assert {len(set(prompts)) for prompts in groups.values()} == {1}


@pytest.mark.parametrize("given", ["run-golden.wandb", "."])
def test_the_file_and_its_folder_are_recognised(given: str) -> None:
    assert wandb.recognises(GOLDEN / given)
    assert wandb.open_run(GOLDEN / given).run_id == "golden"


# --- the file format


@pytest.mark.parametrize("seed", range(5))
def test_records_come_back_whole(seed: int) -> None:
    draw = random.Random(seed)
    sizes = [draw.choice([0, 1, 32_748, 32_754, 32_755, 65_536, draw.randrange(200_000)]) for _ in range(20)]
    records = [draw.randbytes(size) for size in sizes]
    damage = wandb.Damage()
    assert list(wandb.log_records(file_of(framed(records)), damage)) == records
    assert (damage.torn_bytes, damage.records) == (0, 0)


def test_a_torn_tail_is_counted_and_what_is_before_it_read() -> None:
    records = [bytes([i]) * 15_000 for i in range(1, 7)]
    content = framed(records)
    for cut in range(7, len(content), 997):
        damage = wandb.Damage()
        read = list(wandb.log_records(file_of(content[:cut]), damage))
        assert read == records[: len(read)]
        whole = len(framed(read)) if read else 7
        # Everything behind the last whole record, frames included; a block's filling may lie between.
        assert (damage.torn_bytes == 0) == (cut - whole < 7)


def test_a_flipped_byte_costs_the_record_it_is_in() -> None:
    records = [bytes([i]) * 1_000 for i in range(1, 9)]
    content = bytearray(framed(records))
    content[7 + 2 * 1_007 + 500] ^= 1
    damage = wandb.Damage()
    assert list(wandb.log_records(file_of(bytes(content)), damage)) == records[:2] + records[3:]
    assert damage.records == 1


def test_a_wrong_length_costs_the_rest_of_its_block() -> None:
    records = [bytes([i]) * 10_000 for i in range(1, 9)]
    content = bytearray(framed(records))
    content[7 + 4 : 7 + 6] = b"\xff\xff"
    damage = wandb.Damage()
    # Records 1 to 3 lie in the first block, 4 begins there.
    assert list(wandb.log_records(file_of(bytes(content)), damage)) == records[4:]
    assert damage.records == 1


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.wandb").write_bytes(b"PK\x03\x04 not this")
    with pytest.raises(ReadError, match="does not begin like a W&B file"):
        wandb.open_run(tmp_path / "x.wandb")


def file_of(content: bytes) -> Any:
    file = io.BytesIO(content)
    file.name = "made"  # type: ignore[misc]
    return file


# --- which step


def test_steps_are_the_trainers_and_carried_forward(tmp_path: Path) -> None:
    calls = [
        {"train/global_step": 0, "profiling/seconds": 0.5},
        {"train/global_step": 10, "train/reward": 0.25, "train/epoch": 0.1},
        {"custom": 3.0},
        {"train/global_step": 20, "train/reward": math.nan, "train/kl": math.inf},
        {"eval/reward": 0.5, "train/global_step": 20},
        {"train/global_step": 20, "train/epoch": 0.2},
    ]
    run = wandb.open_run(write_run(tmp_path / "offline-run-1-made", calls))
    assert run.scalars["custom"] == [(10, 3.0)]
    assert run.scalars["reward"][0] == (10, 0.25)
    assert run.scalars["reward"][1][0] == 20
    assert math.isnan(run.scalars["reward"][1][1])
    assert run.scalars["kl"] == [(20, math.inf)]
    assert run.eval_scalars == {"reward": [(20, 0.5)]}
    assert set(run.scalars) == {"custom", "reward", "kl"}
    assert not run.notes


def test_verl_has_a_step_of_its_own(tmp_path: Path) -> None:
    calls = [{"training/global_step": s, "actor/entropy": 1 / s, "val-core/math/acc/mean@4": 0.5} for s in (5, 6)]
    run = wandb.open_run(write_run(tmp_path, calls))
    assert run.scalars == {"actor/entropy": [(5, 0.2), (6, 1 / 6)]}
    assert run.eval_scalars == {"val-core/math/acc/mean@4": [(5, 0.5), (6, 0.5)]}
    assert "entropy" not in run.lacks


def test_without_a_step_of_the_trainer_a_note_says_so(tmp_path: Path) -> None:
    run = wandb.open_run(write_run(tmp_path, [{"loss": 1.0}, {"loss": 2.0}]))
    assert run.scalars == {"loss": [(0, 1.0), (1, 2.0)]}
    assert "_step was taken" in run.notes[0]


def test_a_restart_supersedes_what_it_goes_back_behind(tmp_path: Path) -> None:
    def call(step: int, value: float) -> list[dict[str, Any]]:
        rows = [(f"p{step}", f"c{value}", value)]
        return [{"train/global_step": step, "train/reward": value}, {"completions": trl_table(step, rows)}]

    calls = [*call(1, 0.1), *call(2, 0.2), *call(3, 0.3), *call(2, 0.25), *call(3, 0.35)]
    run = wandb.open_run(write_run(tmp_path, calls))
    assert run.scalars["reward"] == [(1, 0.1), (2, 0.25), (3, 0.35)]
    assert [(row["step"], row["completion"]) for row in rows_of(run)] == [(1, "c0.1"), (2, "c0.25"), (3, "c0.35")]
    assert "after step 3 it goes on at 2" in run.notes[0]
    assert "2 tables of steps that a restart made again" in run.notes[1]


# --- whose row


def test_equal_generations_are_all_counted(tmp_path: Path) -> None:
    """A collapsed policy writes the same batch again: metrics tell it from a table that was logged again."""
    same = [("p", "c", 1.0)] * 4
    calls: list[dict[str, Any]] = []
    for step in (1, 2, 3):
        calls += [{"train/global_step": step, "train/reward": 1.0}, {"completions": trl_table(step, same)}]
    calls += [{"train/global_step": 4, "train/loss": 1.0}, {"completions": trl_table(4, same)}]
    run = wandb.open_run(write_run(tmp_path, calls, {"num_generations": 2}))
    assert Counter(row["step"] for row in rows_of(run)) == {1: 4, 2: 4, 3: 4}
    assert passed_over(run)[0] == 4
    # A prompt that follows itself: 4 rows are 2 groups of 2.
    assert [row["group"] for row in rows_of(run)][:4] == ["train-0-0", "train-0-0", "train-0-1", "train-0-1"]


def test_an_evaluation_takes_only_its_own_rows(tmp_path: Path) -> None:
    """logging_steps=10: the generation of step 12 is first seen in the table of the evaluation, before its rows."""
    asked = [("e1", "x", 1.0), ("e2", "y", 0.0)]
    calls = [
        {"train/global_step": 10, "train/reward": 1.0},
        {"completions": trl_table(10, [(f"a{i}", "c", 1.0) for i in range(6)])},
        {"train/global_step": 12, "eval/reward": 0.5},
        {"completions": trl_table(12, [*((f"b{i}", "c", 1.0) for i in range(4)), *asked])},
        {"train/global_step": 20, "train/reward": 1.0},
        {"completions": trl_table(20, [(f"d{i}", "c", 1.0) for i in range(6)])},
        {"train/global_step": 24, "eval/reward": 0.5},
        {"completions": trl_table(24, [*((f"f{i}", "c", 1.0) for i in range(4)), *asked])},
    ]
    run = wandb.open_run(write_run(tmp_path, calls, {"logging_steps": 10}))
    assert [note.split(":")[0] for note in run.notes] == ["logging_steps=10"]
    rows = rows_of(run)
    assert Counter((row["step"], row["split"]) for row in rows) == {
        (10, "train"): 6, (12, "train"): 4, (12, "eval"): 2, (20, "train"): 6, (24, "train"): 4, (24, "eval"): 2,
    }  # fmt: skip
    assert all(row["prompt"].startswith("e") == (row["split"] == "eval") for row in rows)


def test_an_evaluation_left_in_the_table_is_not_trained_on(tmp_path: Path) -> None:
    """Generated at step 11, evaluated at 12, logged at 20 from the same deque: the log tells of a generation."""
    left = [("a1", "c", 1.0), ("a2", "c", 1.0), ("e1", "x", 1.0), ("e2", "y", 0.0)]
    calls = [
        {"train/global_step": 10, "train/reward": 1.0},
        {"completions": trl_table(10, [(f"b{i}", "c", 1.0) for i in range(4)])},
        {"train/global_step": 12, "eval/reward": 0.5},
        {"completions": trl_table(12, left)},
        {"train/global_step": 20, "train/reward": 1.0},
        {"completions": trl_table(20, left)},
        {"train/global_step": 24, "eval/reward": 0.5},
        {"completions": trl_table(24, [("f1", "c", 1.0), ("f2", "c", 1.0), *left[2:]])},
    ]
    run = wandb.open_run(write_run(tmp_path, calls))
    assert [(row["step"], row["split"]) for row in rows_of(run)] == [
        *[(10, "train")] * 4, *[(12, "train")] * 2, *[(12, "eval")] * 2, *[(24, "train")] * 2, *[(24, "eval")] * 2,
    ]  # fmt: skip
    assert passed_over(run)[0] == 4


def test_a_single_evaluation_that_cannot_be_told_apart_says_so(tmp_path: Path) -> None:
    calls = [
        {"train/global_step": 10, "train/reward": 1.0},
        {"completions": trl_table(10, [("a", "c", 1.0), ("b", "c", 1.0)])},
        {"train/global_step": 12, "eval/reward": 0.5},
        {"completions": trl_table(12, [("d", "c", 1.0), ("e", "c", 0.0)])},
    ]
    run = wandb.open_run(write_run(tmp_path, calls))
    assert [row["split"] for row in rows_of(run)] == ["train", "train", "eval", "eval"]
    assert "could not be told" in run.notes[0]


def test_equal_evaluations_are_all_counted(tmp_path: Path) -> None:
    """A policy that no longer changes answers held-out prompts alike; an evaluation always makes rows."""
    asked = [("e1", "x", 1.0), ("e2", "y", 0.0)]
    calls: list[dict[str, Any]] = []
    for step in (2, 4):
        calls += [{"train/global_step": step, "eval/reward": 0.5}, {"completions": trl_table(step, asked)}]
    rows = rows_of(wandb.open_run(write_run(tmp_path, calls)))
    assert [(row["step"], row["split"]) for row in rows] == [(2, "eval")] * 2 + [(4, "eval")] * 2


def test_rows_do_not_depend_on_the_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = rows_of(wandb.open_run(GOLDEN))
    monkeypatch.setattr(tables, "SHARD_BYTES", 1)
    run = wandb.open_run(GOLDEN)
    assert len(run.shards) == 8  # one a step: 4 and 8 have an evaluation's table too
    steps = [{row["step"] for batch in shard.read() for row in batch.rows.to_pylist()} for shard in run.shards]
    assert all(not a & b for i, a in enumerate(steps) for b in steps[:i])
    strip = [{k: v for k, v in row.items() if k != "group"} for row in rows_of(run)]
    assert strip == [{k: v for k, v in row.items() if k != "group"} for row in whole]


def test_overlap_is_the_longest_common_end_and_beginning() -> None:
    draw = random.Random(0)
    for _ in range(2_000):
        before = [draw.choice("ab") for _ in range(draw.randrange(9))]
        now = [draw.choice("ab") for _ in range(draw.randrange(9))]
        longest = max(k for k in range(min(len(before), len(now)) + 1) if before[len(before) - k :] == now[:k])
        assert table_rows.overlap(before, now) == longest


def test_conversations_are_rendered_and_tool_results_left_out(tmp_path: Path) -> None:
    prompt = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "2+2?"}]
    completion = [
        {"role": "assistant", "content": "let me see"},
        {"role": "tool", "content": "4"},
        {"role": "assistant", "content": "4"},
    ]
    table = {"_table": (TRL, [[1, prompt, completion, math.nan, 0.0], [1, [], {"a": 1}, 1.0, None]])}
    calls = [{"train/global_step": 1, "train/reward": 1.0, "train/rewards/good/mean": 1.0}, {"completions": table}]
    one, other = rows_of(wandb.open_run(write_run(tmp_path, calls)))
    assert (one["prompt"], one["completion"]) == ("system: be brief\nuser: 2+2?", "let me see\n4")
    assert one["prompt_id"] is not None
    assert (one["reward"], one["rewards"]) == (None, [("good", None)])  # TRL's NaN: the function gave none
    assert (other["prompt"], other["completion"], other["advantage"]) == ("", '{"a": 1}', None)


# --- other tables


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that wandb itself wrote: verl's, OpenRLHF's and an incremental table, and a text longer than a block."""
    folder = tmp_path_factory.mktemp("real")
    script = """
        import wandb
        config = {"actor_rollout_ref": {"rollout": {"n": 4}}, "long": "x" * 100_000}
        run = wandb.init(project="p", id="real", config=config)
        columns = ["step", "input_1", "output_1", "score_1", "input_2", "output_2", "score_2"]
        added = wandb.Table(columns=["prompt", "completion", "reward"], log_mode="INCREMENTAL")
        data = []
        for s in (5, 10, 15):
            data.append([s, f"q{s}", f"a{s}", 1.0, f"r{s}", "<b>\\x1b[31m", float("nan")])
            run.log({"training/global_step": s, "actor/entropy": 1 / s, "x": float("inf"),
                     "val/generations": wandb.Table(columns=columns, data=list(data)), "h": wandb.Histogram([1, 2])})
            added.add_data("p", "c", 0.5)  # equal each time
            run.log({"rollouts": added})
        run.finish()
    """
    environment = {"WANDB_MODE": "offline", "WANDB_DIR": str(folder), "WANDB_SILENT": "true", "HOME": str(folder)}
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], env=environment, check=True, timeout=120)
    return folder


def test_what_wandb_wrote_is_read(real: Path) -> None:
    run = wandb.open_run(real)
    assert (run.run_id, run.group_size) == ("real", 4)
    assert run.config["long"] == "x" * 100_000
    assert run.scalars == {
        "actor/entropy": [(5, 0.2), (10, 0.1), (15, 1 / 15)],
        "x": [(s, math.inf) for s in (5, 10, 15)],
    }
    rows = rows_of(run)
    added = [row for row in rows if row["split"] == "train"]
    assert [(r["step"], r["prompt"], r["completion"], r["reward"]) for r in added] == [
        (5, "p", "c", 0.5), (10, "p", "c", 0.5), (15, "p", "c", 0.5),
    ]  # fmt: skip
    held_out = [row for row in rows if row["split"] == "eval"]
    assert [(row["step"], row["prompt"]) for row in held_out] == [
        (5, "q5"), (5, "r5"), (10, "q10"), (10, "r10"), (15, "q15"), (15, "r15"),
    ]  # fmt: skip
    assert held_out[0]["reward"] == 1.0
    assert math.isnan(held_out[1]["reward"])
    assert held_out[1]["completion"] == "<b>\x1b[31m"
    assert passed_over(run)[0] == 0
    assert "was logged again as a whole each time" in run.notes[0]


def test_a_table_that_grows_without_steps_counts_each_row_once(tmp_path: Path) -> None:
    columns = ["prompt", "response", "score"]
    calls = [
        {"global_step": s, "samples": {"_table": (columns, [[f"p{i}", "r", i] for i in range(1, s + 1)])}}
        for s in (1, 2, 4)
    ]
    run = wandb.open_run(write_run(tmp_path, calls))
    assert [(r["step"], r["prompt"], r["reward"]) for r in rows_of(run)] == [
        (1, "p1", 1.0), (2, "p2", 2.0), (4, "p3", 3.0), (4, "p4", 4.0),
    ]  # fmt: skip


def test_openrlhf_has_no_prompts_apart(tmp_path: Path) -> None:
    table = {"_table": (["global_step", "text", "reward"], [[3, "2+2? 4", 1.0]])}
    run = wandb.open_run(write_run(tmp_path, [{"train/global_step": 3, "train/generated_samples": table}]))
    (row,) = rows_of(run)
    assert (row["step"], row["prompt"], row["completion"], row["reward"]) == (3, None, "2+2? 4", 1.0)
    assert "prompts" in run.lacks


def test_rlmons_samples_are_read_where_nothing_better_is(tmp_path: Path) -> None:
    from rlmon.sinks.tables import SAMPLE_COLUMNS

    values = {"step": 7, "reward": 0.5, "prompt": "p", "completion": "c", "completion_tokens": 9, "truncated": True}
    samples = {"_table": (list(SAMPLE_COLUMNS), [[values.get(name) for name in SAMPLE_COLUMNS]])}
    only = wandb.open_run(write_run(tmp_path / "only", [{"train/global_step": 7, "rlmon/samples": samples}]))
    (row,) = rows_of(only)
    assert [row[k] for k in ("step", "reward", "completion_tokens", "truncated")] == [7, 0.5, 9, True]
    assert not {"tokens", "truncation", "completions"} & set(only.lacks)
    calls = [
        {"train/global_step": 7, "rlmon/samples": samples},
        {"train/global_step": 7, "train/reward": 1.0},
        {"completions": trl_table(7, [("p", "c", 1.0), ("p", "d", 1.0)])},
    ]
    both = wandb.open_run(write_run(tmp_path / "both", calls))
    assert len(rows_of(both)) == 2
    assert "'rlmon/samples' was not read" in both.notes[0]


def test_old_records_hold_whole_values(tmp_path: Path) -> None:
    calls = [{"train/global_step": 1, "train/reward": 1.0}, {"completions": trl_table(1, [("p", "c", 1.0)])}]
    run = wandb.open_run(write_run(tmp_path, calls, legacy=True))
    assert [row["completion"] for row in rows_of(run)] == ["c"]
    assert run.scalars == {"reward": [(1, 1.0)]}


# --- what is not followed


@pytest.mark.parametrize(
    "place", ["../../secret.json", "{outside}", "media/../../../secret.json", "media/link.json", ""]
)
def test_tables_outside_the_run_are_not_read(tmp_path: Path, place: str) -> None:
    outside = tmp_path / "secret.json"
    outside.write_text(json.dumps({"columns": TRL, "data": [[1, "stolen", "c", 1.0, 0.0]]}))
    folder = tmp_path / "run"
    (folder / "files" / "media").mkdir(parents=True)
    (folder / "files" / "media" / "link.json").symlink_to(outside)
    table = {"_type": "table-file", "path": place.format(outside=outside)}
    inside = trl_table(1, [("p", "c", 1.0)])
    calls = [
        {"train/global_step": 1, "train/reward": 1.0},
        {"completions": inside},
        {"train/global_step": 2, "train/reward": 1.0},
        {"completions": table},
    ]
    run = wandb.open_run(write_run(folder, calls))
    assert [row["prompt"] for row in rows_of(run)] == ["p"]
    assert list(passed_over(run)[2].values()) == ["not in the run directory, or a link"]


def test_damaged_tables_are_counted(tmp_path: Path) -> None:
    calls: list[dict[str, Any]] = []
    for step in range(1, 6):
        calls += [{"train/global_step": step, "train/reward": 1.0}]
        calls += [{"completions": trl_table(step, [(f"p{step}", "c", 1.0)])}]
    write_run(tmp_path, calls)
    files = sorted(
        (tmp_path / "files/media/table").iterdir(), key=lambda file: int(file.name.split("_")[1].split(".")[0])
    )
    files[1].write_text('{"columns": ["step"], "data": [[1')
    files[2].write_text("[" * 100_000)
    files[3].write_text(json.dumps({"columns": TRL, "data": [[4, "p4", "c", 1.0], 7, [4, "\ud800", "c", 1.0, 0.0]]}))
    run = wandb.open_run(tmp_path)
    assert [(row["step"], row["prompt"]) for row in rows_of(run)] == [(1, "p1"), (4, "?"), (5, "p5")]
    duplicates, damaged, unreadable = passed_over(run)
    assert (duplicates, damaged, len(unreadable)) == (0, 2, 2)


def test_a_table_of_nonsense_is_no_table(tmp_path: Path) -> None:
    table = {"_table": (["a", "b"], [[1, 2]])}
    run = wandb.open_run(write_run(tmp_path, [{"train/global_step": 1, "x": table, "train/loss": 1.0}]))
    assert not run.shards
    assert "log_completions=True" in run.lacks["completions"]


def test_links_to_other_runs_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run-golden.wandb").symlink_to(GOLDEN / "run-golden.wandb")
    assert not wandb.recognises(tmp_path / "run")
    (tmp_path / "wandb").mkdir()
    (tmp_path / "wandb" / "offline-run-1-a").symlink_to(GOLDEN)
    assert not wandb.recognises(tmp_path / "wandb")


# --- choosing


def test_several_runs_are_listed_unless_a_link_names_one(tmp_path: Path) -> None:
    for name in ("offline-run-1-a", "offline-run-2-b"):
        write_run(tmp_path / "wandb" / name, [{"train/global_step": 1, "train/loss": 1.0}], run_id=name[-1])
    assert [place.name for place in wandb.runs_at(tmp_path)] == ["offline-run-1-a", "offline-run-2-b"]
    with pytest.raises(ReadError, match=r"2 W&B runs: 'offline-run-1-a', 'offline-run-2-b'"):
        wandb.open_run(tmp_path)
    (tmp_path / "wandb" / "latest-run").symlink_to("offline-run-1-a")
    for given in (tmp_path, tmp_path / "wandb", tmp_path / "wandb" / "latest-run"):
        assert wandb.recognises(given)
        assert wandb.open_run(given).path.resolve().name == "offline-run-1-a"
    assert "the one that latest-run names" in wandb.open_run(tmp_path).notes[0]
    (tmp_path / "wandb" / "latest-run").unlink()
    (tmp_path / "wandb" / "latest-run").symlink_to("/etc")
    with pytest.raises(ReadError, match="2 W&B runs"):
        wandb.open_run(tmp_path / "wandb")


def test_a_run_that_was_resumed_into_another_directory_is_one(tmp_path: Path) -> None:
    def call(step: int, reward: float) -> list[dict[str, Any]]:
        rows = [("p", f"c{reward}", reward)]
        return [{"train/global_step": step, "train/reward": reward}, {"completions": trl_table(step, rows)}]

    first = [made for step in range(1, 7) for made in call(step, step / 8)]
    again = [made for step in range(4, 9) for made in call(step, 2.0 + step / 8)]
    # A synced directory sorts behind an offline one by name, and was there before.
    config = {"num_generations": 4}
    write_run(tmp_path / "wandb" / "run-20260101_1-x", first, config, run_id="x")
    later = write_run(tmp_path / "wandb" / "offline-run-20260102_1-x", again, config, run_id="x").parent
    assert wandb.settings(tmp_path) == config
    expected = [(step, step / 8 if step < 4 else 2.0 + step / 8) for step in range(1, 9)]
    for given in (tmp_path, tmp_path / "wandb"):
        run = wandb.open_run(given)
        assert (run.run_id, run.scalars["reward"], run.group_size) == ("x", expected, 4)
        assert [(row["step"], row["reward"]) for row in rows_of(run)] == expected
        assert "2 directories are attempts of the run 'x'" in run.notes[0]
        assert any("after step 6 it goes on at 4" in note for note in run.notes)
        assert not wandb.runs_at(given)
    alone = wandb.open_run(later)
    assert alone.scalars["reward"] == expected[3:]
    assert "'run-20260101_1-x'" in alone.notes[-1]
    (tmp_path / "wandb" / "latest-run").symlink_to("offline-run-20260102_1-x")
    assert wandb.open_run(tmp_path).scalars["reward"] == expected


def test_without_wandb_the_error_has_the_pip_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb.proto", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'rlmon\[wandb\]'"):
        wandb.open_run(GOLDEN)


def test_batches_are_of_the_schema() -> None:
    for shard in wandb.open_run(GOLDEN).shards:
        for batch in shard.read():
            assert all(ROWS.field(field.name).type == field.type for field in batch.rows.schema)
