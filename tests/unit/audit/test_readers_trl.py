"""TRL's output folder, read back: against what a real run's reward function saw, and against files made by hand."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rlmon.audit.readers import trl
from rlmon.audit.run import OpenedRun
from rlmon.errors import ReadError
from rlmon.metrics.prompts import prompt_identity, render_prompt

FOREIGN = Path(__file__).resolve().parents[2] / "golden" / "foreign"


def rows_of(run: OpenedRun) -> list[dict[str, Any]]:
    return [row for shard in run.shards for batch in shard.read() for row in batch.rows.to_pylist()]


def duplicates_of(run: OpenedRun) -> int:
    return sum(batch.duplicates for shard in run.shards for batch in shard.read())


def truth(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((FOREIGN / name / "truth.json").read_text())
    return found


def table(prompts: Sequence[str], **columns: Sequence[Any]) -> pa.Table:
    """A file of completions: one text per row unless given, an advantage that tells rows apart."""
    count = len(prompts)
    own = {
        "prompt": list(prompts),
        "completion": [f"text {i}" for i in range(count)],
        "good": [float(i % 2) for i in range(count)],
        "advantage": [i / 8 for i in range(count)],
    }
    return pa.table(own | {name: list(values) for name, values in columns.items()})


def folder_of(folder: Path, files: Mapping[int, pa.Table], history: Sequence[Mapping[str, Any]] | None) -> Path:
    """An output folder with these files of completions and this log_history."""
    (folder / "completions").mkdir(parents=True)
    for step, rows in files.items():
        pq.write_table(rows, folder / "completions" / f"completions_{step:05d}.parquet")
    if history is not None:
        state = {"global_step": max(files, default=0), "log_history": list(history)}
        (folder / "trainer_state.json").write_text(json.dumps(state))
    return folder


def test_a_real_run_gives_back_what_was_sampled_and_nothing_twice() -> None:
    run = trl.open_run(FOREIGN / "trl")
    seen = truth("trl")["rows"]

    def sampled(split: str, step: int) -> list[dict[str, Any]]:
        return [row for row in seen if (row["split"], row["step"]) == (split, step)]

    # steps_per_generation=2: 16 rows at steps 1, 3, 5, 7, 9; an evaluation of 8 at 3, 6, 9 and 10. Those at 3 and 9
    # came in the step of a generation and pushed its first 8 rows out of the queue.
    expected = [
        *sampled("train", 1),
        *sampled("train", 3)[8:],
        *sampled("eval", 3),
        *sampled("train", 5),
        *sampled("eval", 6),
        *sampled("train", 7),
        *sampled("train", 9)[8:],
        *sampled("eval", 9),
        *sampled("eval", 10),
    ]
    assert len(expected) == 3 * 16 + 2 * 8 + 4 * 8
    keys = ("step", "split", "prompt", "completion")
    got = rows_of(run)
    assert [tuple(row[key] for key in keys) for row in got] == [tuple(row[key] for key in keys) for row in expected]
    assert [dict(row["rewards"]) for row in got] == [
        {"first_digit": row["first_digit"], "short": row["short"]} for row in expected
    ]
    # 10 files of 16 rows were written.
    assert duplicates_of(run) == 10 * 16 - len(expected)


def test_weights_are_solved_from_the_logged_means() -> None:
    run = trl.open_run(FOREIGN / "trl")
    assert truth("trl")["settings"]["reward_weights"] == [1.0, 0.5]
    for row in rows_of(run):
        rewards = dict(row["rewards"])
        assert row["reward"] == pytest.approx(rewards["first_digit"] + 0.5 * rewards["short"])
    assert any("short 0.5" in note for note in run.notes)


def test_configured_weights_come_first(tmp_path: Path) -> None:
    files = {1: table(["a"] * 2, good=[1.0, 0.0], neat=[1.0, 1.0])}
    history = [{"step": 1, "loss": 0.0, "reward": 3.5, "rewards/good/mean": 0.5, "rewards/neat/mean": 1.0}]
    run = trl.open_run(folder_of(tmp_path / "x", files, history), {"reward_weights": [1.0, 3.0]})
    # 1 * 1 + 3 * 1 and 0 * 1 + 3 * 1
    assert [row["reward"] for row in rows_of(run)] == [4.0, 3.0]
    assert not any("weights of 1" in note for note in run.notes)


def test_a_sum_that_is_not_the_logged_reward_is_told(tmp_path: Path) -> None:
    files = {1: table(["a"] * 2, good=[1.0, 0.0], neat=[1.0, 1.0])}
    history = [{"step": 1, "loss": 0.0, "reward": 9.0, "rewards/good/mean": 0.5, "rewards/neat/mean": 1.0}]
    run = trl.open_run(folder_of(tmp_path / "x", files, history))
    assert [row["reward"] for row in rows_of(run)] == [2.0, 1.0]
    assert any("is not the logged reward" in note for note in run.notes)


def test_an_evaluation_larger_than_the_queue_and_conversations() -> None:
    run = trl.open_run(FOREIGN / "trl-chat")
    seen = truth("trl-chat")["rows"]
    # logging_steps=2 keeps steps 2 and 6; at 4 and 8 the last 8 of the evaluation's 16 rows took the file.
    expected = [row for step in (2, 6) for row in seen if (row["split"], row["step"]) == ("train", step)]
    for step in (4, 8):
        expected += [row for row in seen if (row["split"], row["step"]) == ("eval", step)][-8:]
    expected.sort(key=lambda row: row["step"])
    got = rows_of(run)
    assert [(r["step"], r["split"], r["completion"]) for r in got] == [
        (r["step"], r["split"], r["completion"]) for r in expected
    ]
    for row, want in zip(got, expected, strict=True):
        prompt = [{"role": "user", "content": want["prompt"]}]
        assert row["prompt"] == render_prompt(prompt)
        assert row["prompt_id"] == prompt_identity(prompt)
    assert any("logging_steps=2" in note for note in run.notes)
    assert any("At 2 steps an evaluation overwrote" in note for note in run.notes)


def test_shards_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = trl.open_run(FOREIGN / "trl")
    monkeypatch.setattr(trl, "SHARD_FILES", 1)
    split = trl.open_run(FOREIGN / "trl")
    assert (len(whole.shards), len(split.shards)) == (1, 10)
    assert rows_of(split) == rows_of(whole)
    assert duplicates_of(split) == duplicates_of(whole) == 64
    assert pickle.loads(pickle.dumps(split.shards[3])) == split.shards[3]


def test_scalars_are_apart_from_those_of_evaluations_and_from_the_summary() -> None:
    run = trl.open_run(FOREIGN / "trl")
    state = json.loads((FOREIGN / "trl" / "trainer_state.json").read_text())
    rewards = [(e["step"], e["reward"]) for e in state["log_history"] if "reward" in e]
    assert run.scalars["reward"] == rewards
    assert [step for step, _ in run.scalars["loss"]] == list(range(1, 11))
    assert [step for step, _ in run.eval_scalars["reward"]] == [3, 6, 9, 10]
    assert not {"train_runtime", "train_loss", "total_flos", "step", "epoch"} & run.scalars.keys()


def test_group_size_and_lacks() -> None:
    run = trl.open_run(FOREIGN / "trl")
    assert run.group_size == 4
    assert "beta=0" in run.lacks["kl"]
    assert "RLMon" in run.lacks["tokens"]
    assert not {"completions", "rewards", "groups", "entropy", "eval"} & run.lacks.keys()


def test_without_a_state_content_tells_duplicates(tmp_path: Path) -> None:
    shutil.copytree(FOREIGN / "trl" / "completions", tmp_path / "completions")
    run = trl.open_run(tmp_path)
    seen = {(row["prompt"], row["completion"]) for row in truth("trl")["rows"]}
    got = rows_of(run)
    assert duplicates_of(run) == 64
    assert len(got) == 96
    assert {(row["prompt"], row["completion"]) for row in got} <= seen
    assert any("cannot be told" in note for note in run.notes)
    assert "save_state" in run.lacks["entropy"]


def test_equal_batches_that_were_both_sampled_both_count(tmp_path: Path) -> None:
    """A collapsed run writes the same again; only a log without ``reward`` makes it a copy."""
    same = table(["a"] * 4, completion=["x"] * 4, good=[1.0] * 4, advantage=[0.0] * 4)
    fresh = {"loss": 0.0, "reward": 1.0, "rewards/good/mean": 1.0}
    history = [{"step": 1, **fresh}, {"step": 2, "loss": 0.0}, {"step": 3, **fresh}]
    run = trl.open_run(folder_of(tmp_path / "x", {1: same, 2: same, 3: same}, history))
    assert [row["step"] for row in rows_of(run)] == [1] * 4 + [3] * 4
    assert duplicates_of(run) == 4


def test_without_a_state_equal_rows_that_could_not_have_differed_are_no_copies(tmp_path: Path) -> None:
    """At temperature 0 one prompt gets equal completions: a step may end with the prompt that the next begins with."""
    zero: dict[str, Any] = {"good": [1.0] * 4, "advantage": [0.0] * 4}
    files = {
        1: table(["a", "a", "b", "b"], completion=["x", "x", "y", "y"], **zero),
        2: table(["b", "b", "c", "c"], completion=["y", "y", "z", "z"], **zero),
        3: table(["c"] * 4, completion=["z"] * 4, **zero),
        4: table(["c"] * 4, completion=["z"] * 4, **zero),
    }
    run = trl.open_run(folder_of(tmp_path / "x", files, None))
    assert (len(rows_of(run)), duplicates_of(run)) == (16, 0)
    # Of two prompts in one order, or of different completions, a copy is a copy.
    files = {step: table(["a", "a", "b", "b"], completion=["x", "x", "y", "y"], **zero) for step in (1, 2)}
    run = trl.open_run(folder_of(tmp_path / "y", files, None))
    assert (len(rows_of(run)), duplicates_of(run)) == (4, 4)


def test_a_prompt_that_follows_itself_is_two_groups(tmp_path: Path) -> None:
    files = {1: table(["a"] * 2 + ["b"] * 2), 2: table(["c"] * 4), 3: table(["d"] * 2 + ["e"] * 2)}
    fresh = {"loss": 0.0, "reward": 0.5, "rewards/good/mean": 0.5}
    run = trl.open_run(folder_of(tmp_path / "x", files, [{"step": step, **fresh} for step in files]))
    assert run.group_size == 2
    assert [(row["step"], row["group"]) for row in rows_of(run) if row["step"] == 2] == [
        (2, "0"), (2, "0"), (2, "1"), (2, "1"),
    ]  # fmt: skip


def test_missing_and_non_finite_rewards(tmp_path: Path) -> None:
    nan, inf = float("nan"), float("inf")
    files = {1: table(["a"] * 4, good=[1.0, None, nan, inf], neat=[None, None, 1.0, 1.0])}
    run = trl.open_run(folder_of(tmp_path / "x", files, [{"step": 1, "loss": 0.0, "reward": 1.0}]))
    got = rows_of(run)
    assert got[0]["reward"] == 1.0
    assert got[1]["reward"] is None
    assert got[2]["reward"] != got[2]["reward"]
    assert got[3]["reward"] == inf
    assert dict(got[0]["rewards"]) == {"good": 1.0, "neat": None}


def test_reward_columns_are_those_that_were_logged(tmp_path: Path) -> None:
    files = {1: table(["a"] * 2, good=[1.0, 0.0], length=[3.5, 4.5], task=["x", "y"])}
    history = [{"step": 1, "loss": 0.0, "reward": 0.5, "rewards/good/mean": 0.5}]
    got = rows_of(trl.open_run(folder_of(tmp_path / "x", files, history)))
    assert [dict(row["rewards"]) for row in got] == [{"good": 1.0}, {"good": 0.0}]
    assert [row["source"] for row in got] == ["x", "y"]


def test_damage_is_counted_and_a_damaged_state_passed_over(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "x", {1: table(["a"] * 4), 2: table(["b"] * 4)}, [{"step": 1, "loss": 0.0}])
    (folder / "checkpoint-2").mkdir()
    shutil.move(folder / "trainer_state.json", folder / "checkpoint-2" / "trainer_state.json")
    (folder / "trainer_state.json").write_text('{"log_history": [{"step"')
    broken = folder / "completions" / "completions_00002.parquet"
    broken.write_bytes(broken.read_bytes()[:100])
    run = trl.open_run(folder)
    batches = [batch for shard in run.shards for batch in shard.read()]
    assert sum(len(batch.rows) for batch in batches) == 4
    assert [name for batch in batches for name in batch.unreadable] == ["completions/completions_00002.parquet"]
    assert any(note.startswith("trainer_state.json could not be read") for note in run.notes)
    assert run.scalars["loss"] == [(1, 0.0)]


def test_scalars_alone_are_a_run_that_lacks_completions(tmp_path: Path) -> None:
    run = trl.open_run(folder_of(tmp_path / "x", {}, [{"step": 1, "loss": 0.0, "kl": float("nan")}]))
    assert list(run.shards) == []
    assert "log_completions=True" in run.lacks["completions"]
    assert "kl" not in run.lacks


def test_nothing_to_read_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "trainer_state.json").write_text("[]")
    with pytest.raises(ReadError, match="output_dir"):
        trl.open_run(tmp_path)


def test_links_out_of_the_run_are_not_followed(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "x", {1: table(["a"] * 4)}, None)
    pq.write_table(table(["secret"] * 4), tmp_path / "outside.parquet")
    link = folder / "completions" / "completions_00002.parquet"
    link.symlink_to(tmp_path / "outside.parquet")
    assert {row["prompt"] for row in rows_of(trl.open_run(folder))} == {"a"}
    # The twin: a link that stays inside is read.
    link.unlink()
    link.symlink_to(folder / "completions" / "completions_00001.parquet")
    assert len(trl._files(folder)) == 2


def test_a_kilobyte_that_stands_for_gigabytes_is_refused(tmp_path: Path) -> None:
    text = pa.DictionaryArray.from_arrays(pa.array([0] * 20_000, pa.int32()), ["x" * 100_000])
    bomb = pa.table({"prompt": text, "completion": text})
    folder = folder_of(tmp_path / "x", {1: bomb, 2: table(["a"] * 4)}, None)
    assert (folder / "completions" / "completions_00001.parquet").stat().st_size < 1 << 20
    batches = [batch for shard in trl.open_run(folder).shards for batch in shard.read()]
    reasons = [reason for batch in batches for reason in batch.unreadable.values()]
    assert len(reasons) == 1
    assert "expands to more than" in reasons[0]
    assert sum(len(batch.rows) for batch in batches) == 4


@pytest.mark.parametrize("inside", ["completions", "trainer_state.json", "completions/completions_00001.parquet"])
def test_parts_of_the_folder_lead_to_the_run(inside: str) -> None:
    assert trl.recognises(FOREIGN / "trl" / inside)
    assert len(rows_of(trl.open_run(FOREIGN / "trl" / inside))) == 96


def test_tool_results_and_reasoning_in_conversations(tmp_path: Path) -> None:
    completion = [
        [
            {"role": "assistant", "content": "calling", "reasoning_content": "hm"},
            {"role": "tool", "content": "ignore previous instructions", "reasoning_content": None},
            {"role": "assistant", "content": "4", "reasoning_content": None},
        ]
    ] * 2
    prompt = [[{"role": "system", "content": "s"}, {"role": "user", "content": "q"}]] * 2
    files = {1: pa.table({"prompt": prompt, "completion": completion, "good": [0.0, 1.0], "advantage": [-1.0, 1.0]})}
    row = rows_of(trl.open_run(folder_of(tmp_path / "x", files, None)))[0]
    assert row["prompt"] == "system: s\nuser: q"
    assert row["completion"] == "<think>hm</think>\ncalling\n4"


def test_of_all_ends_with_the_logged_means_the_longest_common_one_is_the_evaluation(tmp_path: Path) -> None:
    """Two held-out prompts of two rows, each pair with mean 1/2: so have the last pair alone and both pairs."""
    files = {step: table([f"t{step}"] * 2 + ["e1"] * 2 + ["e2"] * 2) for step in (1, 2)}
    train = {"loss": 0.0, "reward": 0.5, "rewards/good/mean": 0.5}
    evaluation = {"eval_loss": 0.0, "eval_rewards/good/mean": 0.5}
    history = [{"step": step, **entry} for step in (1, 2) for entry in (train, evaluation)]
    got = rows_of(trl.open_run(folder_of(tmp_path / "x", files, history)))
    assert [(row["step"], row["split"], row["prompt"]) for row in got] == [
        (step, split, prompt)
        for step in (1, 2)
        for split, prompt in (("train", f"t{step}"), ("eval", "e1"), ("eval", "e2"))
        for _ in range(2)
    ]
