"""Rows out of records of any shape: lists of responses, columns of lists, nested rollouts, an object a file."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made_rows import DRAWS, EXPECTED, PROMPTS, REWARDS, SHAPES, STEPS, messages, per_prompt, per_step

from rlmon.audit.readers import files, mapped, runs_at, shapes
from rlmon.audit.run import OpenedRun, RowBatch
from rlmon.errors import ReadError


def batches_of(run: OpenedRun) -> list[RowBatch]:
    return [batch for shard in run.shards for batch in shard.read()]


def rows_of(run: OpenedRun) -> list[dict[str, Any]]:
    return [row for batch in batches_of(run) for row in batch.rows.to_pylist()]


def lines(path: Path, records: Sequence[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz", "json", "parquet"])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_row_for_each_completion(tmp_path: Path, shape: str, suffix: str) -> None:
    path = tmp_path / f"rows.{suffix}"
    if suffix == "parquet":
        pq.write_table(pa.Table.from_pylist(SHAPES[shape]), path)
    elif suffix == "json":
        path.write_text(json.dumps(SHAPES[shape]))
    else:
        raw = b"\xef\xbb\xbf" + b"".join(json.dumps(record).encode() + b"\n" for record in SHAPES[shape])
        path.write_bytes(gzip.compress(raw) if suffix.endswith("gz") else raw)
    run = mapped.open_run(path)
    rows = rows_of(run)
    assert [(row["step"], row["prompt"], row["completion"], row["reward"]) for row in rows] == EXPECTED
    assert sum(batch.damaged for batch in batches_of(run)) == 0
    if shape not in ("columns-of-lists", "whole-rows"):
        # One prompt for all of them: they are a group, whatever stands beside.
        groups = [(row["step"], row["group"]) for row in rows]
        assert [groups.count(group) for group in groups] == [DRAWS] * len(rows)


def test_lists_in_cells_of_csv(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["step", "prompt", "responses", "rewards"])
        writer.writeheader()
        writer.writerows(per_prompt(text="responses", score="rewards"))
    assert [(r["step"], r["prompt"], r["completion"], r["reward"]) for r in rows_of(mapped.open_run(path))] == EXPECTED


def test_a_table_of_pandas_as_json(tmp_path: Path) -> None:
    columns = {
        name: {str(at): row[index] for at, row in enumerate(EXPECTED)}
        for index, name in enumerate(("step", "prompt", "completion", "reward"))
    }
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(columns))
    assert [(r["step"], r["prompt"], r["completion"], r["reward"]) for r in rows_of(mapped.open_run(path))] == EXPECTED


def flat() -> list[dict[str, Any]]:
    return [
        {"step": step, "prompt": prompt, "completion": text, "reward": reward}
        for step, prompt, text, reward in EXPECTED
    ]


def of_step(step: int) -> list[dict[str, Any]]:
    return [{name: row[name] for name in ("prompt", "completion", "reward")} for row in flat() if row["step"] == step]


@pytest.mark.parametrize(
    "value",
    [
        {f"step_{step}": of_step(step) for step in range(STEPS)},
        {str(step): {"rollouts": of_step(step)} for step in range(STEPS)},
        {"run": "x", "steps": [{"step": step, "rollouts": of_step(step)} for step in range(STEPS)]},
        {"model": "x", "results": flat()},
        {f"id{at}": row for at, row in enumerate(flat())},
    ],
)
def test_all_steps_in_one_object(tmp_path: Path, value: Any) -> None:
    path = tmp_path / "rows.json"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(value).encode())
    assert [(r["step"], r["prompt"], r["completion"], r["reward"]) for r in rows_of(mapped.open_run(path))] == EXPECTED


def test_a_line_of_several_objects(tmp_path: Path) -> None:
    path = lines(tmp_path / "rows.jsonl", [[{"step": step, **row} for row in of_step(step)] for step in range(STEPS)])
    assert [(r["step"], r["prompt"], r["completion"], r["reward"]) for r in rows_of(mapped.open_run(path))] == EXPECTED


def test_rewards_in_cells_of_csv(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["step", "prompt", "completion", "rewards"])
        writer.writeheader()
        writer.writerow(ROW | {"rewards": {"accuracy": 1.0, "total": 1.5}})
        writer.writerow(ROW | {"rewards": '{"accuracy": 0.0, "total": 0.5}'})
    rows = rows_of(mapped.open_run(path))
    assert [(row["reward"], dict(row["rewards"])) for row in rows] == [
        (1.5, {"accuracy": 1.0}),
        (0.5, {"accuracy": 0.0}),
    ]


def test_lists_that_do_not_fit_are_damaged_and_their_neighbours_are_read(tmp_path: Path) -> None:
    records = per_prompt(text="responses", score="rewards")
    records[1] |= {"rewards": REWARDS[:3]}
    records[2] |= {"step": [2, 2]}
    records[3] |= {"responses": []}
    run = mapped.open_run(lines(tmp_path / "rows.jsonl", records))
    assert len(rows_of(run)) == DRAWS * 3
    assert sum(batch.damaged for batch in batches_of(run)) == 2 * DRAWS + 1


def test_one_reward_for_several_completions_is_none_of_theirs(tmp_path: Path) -> None:
    records = [record | {"rewards": 0.5} for record in per_prompt(text="responses", score="rewards")]
    run = mapped.open_run(lines(tmp_path / "a" / "rows.jsonl", records))
    assert {row["reward"] for row in rows_of(run)} == {None}
    assert "one reward for several completions (4 " in run.lacks["rewards"]
    # One for one is its own.
    alone = [record | {"responses": record["responses"][:1]} for record in records]
    assert {row["reward"] for row in rows_of(mapped.open_run(lines(tmp_path / "b" / "rows.jsonl", alone)))} == {0.5}


def test_turns_of_one_completion_stay_one_row(tmp_path: Path) -> None:
    records = [{"step": 1, "prompt": "p", "completion": ["turn 1", "turn 2"], "reward": 1.0}]
    assert [row["completion"] for row in rows_of(mapped.open_run(lines(tmp_path / "rows.jsonl", records)))] == [
        "turn 1\nturn 2"
    ]


def test_a_step_that_was_written_again_counts_once_unless_it_could_not_have_differed(tmp_path: Path) -> None:
    """ms-swift logs its last generation again where a step generated nothing."""
    again = [{**record, "gen_step": ["9"] * PROMPTS * DRAWS} for record in per_step()[-1:]]
    run = mapped.open_run(lines(tmp_path / "a.jsonl", [*per_step(), *again]))
    assert len(rows_of(run)) == len(EXPECTED)
    assert sum(batch.duplicates for batch in batches_of(run)) == PROMPTS * DRAWS
    one = {"step": ["1"] * 4, "prompt": ["p"] * 4, "completion": ["same"] * 4, "reward": [1.0] * 4}
    run = mapped.open_run(lines(tmp_path / "b.jsonl", [one, {**one, "step": ["2"] * 4}]))
    assert len(rows_of(run)) == 8
    assert shapes.could_differ({"prompt": ["p", "p"], "completion": ["a", "b"]})
    assert not shapes.could_differ({"prompt": ["p", "p"], "completion": ["a", "a"]})


def test_an_object_a_file_beside_settings(tmp_path: Path) -> None:
    for number, (step, prompt, text, reward) in enumerate(EXPECTED):
        record = {"prompt": prompt, "completion": messages(text), "reward": reward}
        path = tmp_path / f"step_{step}" / f"sample_{number}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(record, indent=1))
    (tmp_path / "config.json").write_text(json.dumps({"num_generations": DRAWS, "output": {"dir": "x"}}))
    (tmp_path / "progress.json").write_text(json.dumps({"steps": 3}))
    (tmp_path / "broken.json").write_text("{")
    run = mapped.open_run(tmp_path)
    assert [(r["step"], r["prompt"], r["completion"], r["reward"]) for r in rows_of(run)] == EXPECTED
    batches = batches_of(run)
    assert (sum(batch.damaged for batch in batches), [dict(batch.unreadable) for batch in batches]) == (0, [{}])
    assert run.group_size == DRAWS


def test_the_file_that_says_most_is_read_and_others_are_set_aside(tmp_path: Path) -> None:
    lines(tmp_path / "rollouts.jsonl", per_prompt(text="responses", score="rewards"))
    lines(tmp_path / "examples.jsonl", [{"question": "q", "answer": "a"}] * 50)
    lines(tmp_path / "metrics.jsonl", [{"step": 1, "loss": 0.5}])
    (tmp_path / "metrics_summary.json").write_text('{"keys": ["reward"], "n": 5}')
    run = mapped.open_run(tmp_path)
    assert len(rows_of(run)) == len(EXPECTED)
    assert any("Set aside" in note and "'examples.jsonl'" in note for note in run.notes)
    by_map = mapped.open_run(
        tmp_path, {"completion": "responses", "reward": "rewards", "prompt": "prompt", "step": "step"}
    )
    assert len(rows_of(by_map)) == len(EXPECTED)


def test_files_of_held_out_rows_are_told_by_their_names(tmp_path: Path) -> None:
    record = {"step": 1, "prompt": "p", "completion": "c", "reward": 1.0}
    lines(tmp_path / "train_rollouts.jsonl", [record])
    lines(tmp_path / "eval_rollouts.jsonl", [record])
    assert sorted(row["split"] for row in rows_of(mapped.open_run(tmp_path))) == ["eval", "train"]
    assert [row["split"] for row in rows_of(mapped.open_run(tmp_path / "eval_rollouts.jsonl"))] == ["train"]


@pytest.mark.parametrize("names", [("seed_1", "seed_2"), ("a/logs", "b/logs")])
def test_runs_beside_each_other_are_not_thrown_together(tmp_path: Path, names: tuple[str, str]) -> None:
    for name in names:
        lines(tmp_path / name / "rollouts.jsonl", per_prompt(text="responses", score="rewards"))
        (tmp_path / name / "args.json").write_text("{}")
    runs = [tmp_path / name.partition("/")[0] for name in names]
    assert mapped.runs_at(tmp_path) == runs_at(tmp_path) == runs
    assert [len(rows_of(mapped.open_run(run))) for run in runs] == [len(EXPECTED)] * 2
    assert mapped.runs_at(runs[0]) == []
    with pytest.raises(ReadError, match=r"holds 2 runs, in the folders .* Give one of them"):
        mapped.open_run(tmp_path)
    # The one that lies in the folder itself is meant by the folder.
    lines(tmp_path / "rollouts.jsonl", per_prompt(text="responses", score="rewards"))
    run = mapped.open_run(tmp_path)
    assert (len(rows_of(run)), mapped.runs_at(tmp_path)) == (len(EXPECTED), [])
    assert any(note.startswith("Set aside: files of the same names") for note in run.notes)


@pytest.mark.parametrize("names", [("rank_0", "rank_1"), ("step_1", "step_2"), ("train", "eval")])
def test_parts_of_one_run_are_read_together(tmp_path: Path, names: tuple[str, str]) -> None:
    for name in names:
        lines(tmp_path / name / "rollouts.jsonl", [ROW | {"reward": 1.0}])
    assert mapped.runs_at(tmp_path) == []
    assert len(rows_of(mapped.open_run(tmp_path))) == 2


ROW = {"step": 1, "prompt": "p", "completion": "c"}


@pytest.mark.parametrize(
    ("record", "reward", "parts"),
    [
        ({"reward": 2.0, "a_reward": 1.5, "b_reward": 0.5}, 2.0, {"a_reward": 1.5, "b_reward": 0.5}),
        ({"rewards": {"accuracy": 1.0, "format": 0.5, "total": 1.5}}, 1.5, {"accuracy": 1.0, "format": 0.5}),
        ({"rewards": {"accuracy": 1.0}}, 1.0, None),
        ({"format_reward": 0.5}, 0.5, None),
        ({"correct": True, "length": 30}, 1.0, None),
        # A completions table of TRL: the functions stand before the advantage, and their sum is documented.
        ({"right": 1.0, "short": 0.5, "advantage": 0.1, "entropy": 3.0}, 1.5, {"right": 1.0, "short": 0.5}),
        # verifiers writes a weight with each score.
        ({"rewards": {"a": {"score": 1.0, "weight": 2}, "b": {"score": 3.0, "weight": 0}}}, 2.0, {"a": 1.0, "b": 3.0}),
        ({"score": 1.0, "reward_std": 0.5, "reward_model": "x"}, 1.0, None),
    ],
)  # fmt: skip
@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_which_columns_are_the_reward(
    tmp_path: Path, record: dict[str, Any], reward: float, parts: dict[str, float] | None, suffix: str
) -> None:
    path = tmp_path / f"rows.{suffix}"
    if suffix == "parquet":
        pq.write_table(pa.Table.from_pylist([ROW | record]), path)
    else:
        lines(path, [ROW | record])
    (row,) = rows_of(mapped.open_run(path))
    assert row["reward"] == pytest.approx(reward)
    assert (dict(row["rewards"]) if row.get("rewards") else None) == parts


QUESTIONS = [
    {"accuracy_reward": 1.0, "format_reward": 0.5},
    {"accuracy": 1.0, "format": 0.5},
    {"rewards": {"a": 1.0, "b": 0.5}},
]


@pytest.mark.parametrize("record", QUESTIONS)
def test_several_rewards_without_a_total_are_a_question(tmp_path: Path, record: dict[str, Any]) -> None:
    path = lines(tmp_path / "rows.jsonl", [ROW | record])
    run = mapped.open_run(path)
    assert rows_of(run)[0].get("reward") is None
    first, second = list(record) if "rewards" not in record else ("rewards.a", "rewards.b")
    for said in (run.lacks["rewards"], " ".join(run.notes)):
        assert f"--map reward={first}+{second}" in said
        assert f"--map reward={first} for one" in said
    mapping = {"prompt": "prompt", "completion": "completion", "step": "step"}
    (row,) = rows_of(mapped.open_run(path, mapping | {"reward": f"{first}+2*{second}"}))
    assert row["reward"] == 2.0
    assert [value for _, value in row["rewards"]] == [1.0, 0.5]
    assert rows_of(mapped.open_run(path, mapping | {"reward": first}))[0]["reward"] == 1.0
    with pytest.raises(ReadError, match="no column 'nope' for reward"):
        mapped.open_run(path, mapping | {"reward": f"{first}+nope"})
    with pytest.raises(ReadError, match="no sum of columns"):
        mapped.open_run(path, mapping | {"reward": f"{first}+"})


def test_weights_of_rewards_from_the_settings_beside(tmp_path: Path) -> None:
    (tmp_path / "args.json").write_text(json.dumps({"reward_weights": [1.0, 0.1], "num_generations": 4}))
    lines(tmp_path / "completions.jsonl", [ROW | {"right": 1.0, "short": 5.0, "advantages": 0.1}])
    run = mapped.open_run(tmp_path)
    assert rows_of(run)[0]["reward"] == 1.5
    assert dict(run.reward_weights) == {"right": 1.0, "short": 0.1}
    assert any("the sum of 'right', 'short'" in note for note in run.notes)


def test_tool_calls_beside_a_completion_are_part_of_it(tmp_path: Path) -> None:
    call = {"function": {"name": "f", "arguments": "{}"}}
    records = [
        ROW | {"completion": "I look.", "tool_calls": [call], "reward": 1.0},
        ROW | {"completion": "", "tool_calls": [call], "reward": 1.0},
        ROW | {"completion": "<tool_call>x</tool_call>", "tool_calls": [call], "reward": 1.0},
        ROW | {"completion": "none", "tool_calls": None, "reward": 1.0},
    ]
    said = '<tool_call>{"arguments": {}, "name": "f"}</tool_call>'
    rows = rows_of(mapped.open_run(lines(tmp_path / "rows.jsonl", records)))
    assert [row["completion"] for row in rows] == [f"I look.\n{said}", said, "<tool_call>x</tool_call>", "none"]


def test_a_whole_conversation_is_parted_where_the_model_first_speaks(tmp_path: Path) -> None:
    talk = [{"role": "user", "content": "q"}, *messages("a"), {"role": "tool", "content": "t"}, *messages("b")]
    for number, value in enumerate((talk, json.dumps(talk))):
        path = lines(tmp_path / f"{number}.jsonl", [{"step": 1, "messages": value, "reward": 1.0}])
        (row,) = rows_of(mapped.open_run(path))
        assert (row["prompt"], row["completion"]) == ("user: q", "a\nb")


def test_many_small_files_are_put_together(tmp_path: Path) -> None:
    """A table a row would be counted one by one, in time that grows with the square of their number."""
    for number in range(300):
        (tmp_path / f"{number}.json").write_text(json.dumps(ROW | {"reward": 1.0}))
    (shard,) = mapped.open_run(tmp_path).shards
    assert isinstance(shard, files.MappedShard)
    assert [len(batch.rows) for batch in shard.read()] == [300]
