"""Files of other trainers, read back: presets against the rows their fixtures were written from, and damage counted."""

from __future__ import annotations

import gzip
import json
import math
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import make_foreign
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rlmon.audit.readers import cutting, files, folder, layout, mapped, raw
from rlmon.audit.run import OpenedRun
from rlmon.errors import ReadError

FOREIGN = make_foreign.FOREIGN
MAP = {"prompt": "p", "completion": "c", "reward": "r", "step": "s"}


def rows_of(run: OpenedRun) -> list[dict[str, Any]]:
    return [row for shard in run.shards for batch in shard.read() for row in batch.rows.to_pylist()]


def damaged_of(run: OpenedRun) -> int:
    return sum(batch.damaged for shard in run.shards for batch in shard.read())


def line(step: int, index: int = 0, **more: Any) -> dict[str, Any]:
    return {"p": f"prompt {step}", "c": f"text {step} {index}", "r": index / 4, "s": step, **more}


def lines(path: Path, records: Sequence[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(r if isinstance(r, bytes) else json.dumps(r).encode() + b"\n" for r in records))
    return path


def test_fixtures_are_what_the_script_writes(tmp_path: Path) -> None:
    for name in ("verl", "prime-rl", "nemo-rl", "areal", "rft-faultbench", "plain"):
        (tmp_path / name).mkdir()
        make_foreign.FIXTURES[name](tmp_path / name)
        for path in (FOREIGN / name).rglob("*.*"):
            if path.suffix != ".parquet":
                assert path.read_bytes() == (tmp_path / path.relative_to(FOREIGN)).read_bytes()


@pytest.mark.parametrize(
    ("name", "prompt", "group", "advantage"),
    [
        ("verl", "{prompt}", "q_{group}", False),
        ("verl-legacy", "{prompt}", None, False),
        ("prime-rl", "user: {prompt}", "{step}-{group}", True),
        ("nemo-rl", "{prompt}", None, True),
        ("areal", "{prompt}", "task{group}", False),
    ],
)
def test_presets(name: str, prompt: str, group: str | None, advantage: bool) -> None:
    assert mapped.recognises(FOREIGN / name)
    run = mapped.open_run(FOREIGN / name)
    assert run.reader == name
    train = [row for row in rows_of(run) if row["split"] == "train"]
    sampled = make_foreign.sampled()
    assert [row["completion"] for row in train] == [row["completion"] for row in sampled]
    assert [row["step"] for row in train] == [row["step"] for row in sampled]
    assert [row["reward"] for row in train] == [row["reward"] for row in sampled]
    assert [row["prompt"] for row in train] == [prompt.format(**row) for row in sampled]
    if group is not None:
        assert [row["group"] for row in train] == [group.format(**row) for row in sampled]
    if advantage:
        assert [row["advantage"] for row in train] == [row["advantage"] for row in sampled]
    assert damaged_of(run) == 0


@pytest.mark.parametrize("name", ["verl", "prime-rl", "nemo-rl"])
def test_held_out_rows_are_apart(name: str) -> None:
    held_out = [row for row in rows_of(mapped.open_run(FOREIGN / name)) if row["split"] == "eval"]
    assert [row["completion"] for row in held_out] == [row["completion"] for row in make_foreign.at(3)]
    assert {row["step"] for row in held_out} == {3}


def test_verl_tells_validation_by_its_key_where_the_folder_does_not(tmp_path: Path) -> None:
    (tmp_path / "3.jsonl").write_bytes((FOREIGN / "verl" / "validation" / "3.jsonl").read_bytes())
    assert {row["split"] for row in rows_of(mapped.open_run(tmp_path))} == {"eval"}


def test_rows_of_a_prompt_that_are_no_neighbours_are_one_group(tmp_path: Path) -> None:
    records = [make_foreign.verl_record(row) for row in make_foreign.at(1)]
    lines(tmp_path / "1.jsonl", records[::2] + records[1::2])
    rows = rows_of(mapped.open_run(tmp_path))
    groups = {row["prompt"]: {r["group"] for r in rows if r["prompt"] == row["prompt"]} for row in rows}
    assert all(len(names) == 1 for names in groups.values())
    assert len(set.union(*groups.values())) == len(groups) == 2


def test_prime_rl_reads_everything_once_and_its_scalars() -> None:
    run = mapped.open_run(FOREIGN / "prime-rl")
    # 3 steps of 8, and 8 held out; the rows under effective/ are the same again.
    assert len(rows_of(run)) == 32
    assert run.scalars["entropy/all/mean"] == [(1, 1.0), (2, 0.5), (3, 1 / 3)]
    row = rows_of(run)[0]
    assert (row["completion_tokens"], row["truncated"], row["source"]) == (3, True, "sums")


def test_tinker_has_rewards_groups_and_lengths_but_no_text() -> None:
    run = mapped.open_run(FOREIGN / "tinker-cookbook")
    rows = rows_of(run)
    sampled = make_foreign.sampled()
    assert [row["reward"] for row in rows] == [row["reward"] for row in sampled]
    assert [row["group"] for row in rows] == [str(row["group"]) for row in sampled]
    assert [row["completion_tokens"] for row in rows] == [5 + row["index"] for row in sampled]
    assert run.scalars["optim/entropy"][0] == (1, 1.0)
    assert {"completions", "prompts"} <= run.lacks.keys()
    assert not {"entropy", "kl"} & run.lacks.keys()


def test_rft_faultbench_has_rows_curves_and_no_labels(tmp_path: Path) -> None:
    run = mapped.open_run(FOREIGN / "rft-faultbench")
    rows, sampled = rows_of(run), make_foreign.sampled()
    assert [row["reward"] for row in rows] == [row["reward"] for row in sampled]
    assert [row["step"] for row in rows] == [row["step"] for row in sampled]
    assert [row["completion_tokens"] for row in rows] == [5 + row["index"] for row in sampled]
    assert [row["group"] for row in rows] == [f"{row['step']}-{row['group']}" for row in sampled]
    # Its lines are in order and name no step; where one does, that counts.
    assert run.scalars["kl"] == [(1, 0.01), (2, 0.02), (3, 0.03)]
    steps = [{"step": 7, "metrics": {"kl": 0.5}}, {"metrics": {"kl": 0.6}}]
    lines(tmp_path / "openrlhf_train_train_step.jsonl", steps)
    trajectories = (FOREIGN / "rft-faultbench" / "telemetry" / "openrlhf_train_trajectory.jsonl").read_bytes()
    (tmp_path / "openrlhf_train_trajectory.jsonl").write_bytes(trajectories)
    named = mapped.open_run(tmp_path)
    assert named.scalars["kl"] == [(7, 0.5)]
    assert any("1 lines of openrlhf_train_train_step.jsonl could not be read" in note for note in named.notes)
    # It has no text, unless a trajectory brings some.
    assert {"completions", "prompts"} <= run.lacks.keys()
    first = json.loads(trajectories.splitlines()[0])
    told = lines(tmp_path / "with" / "x_trajectory.jsonl", [first | {"prompt": "p", "response": "r"}])
    assert rows_of(mapped.open_run(told))[0]["completion"] == "r"
    assert not {"completions", "prompts"} & mapped.open_run(told).lacks.keys()


def test_skyrl_is_all_held_out() -> None:
    rows = rows_of(mapped.open_run(FOREIGN / "skyrl"))
    assert {row["split"] for row in rows} == {"eval"}
    assert [row["truncated"] for row in rows] == [row["index"] == 0 for row in make_foreign.sampled()]


def test_csv_by_the_users_own_names_and_no_formulas() -> None:
    mapping = {"prompt": "question", "completion": "written", "reward": "points", "step": "step"}
    rows = rows_of(mapped.open_run(FOREIGN / "plain" / "rows.csv", mapping))
    sampled = make_foreign.sampled()
    for key in ("step", "prompt", "completion", "reward"):
        assert [row[key] for row in rows] == [row[key] for row in sampled]
    assert "=cmd|' /C calc'!A0" in {row["completion"] for row in rows}


def test_parquet_with_conversations_and_dotted_paths() -> None:
    mapping = {"prompt": "chat", "completion": "written", "reward": "marks.total", "step": "update"}
    run = mapped.open_run(FOREIGN / "plain" / "rows.parquet", mapping)
    rows, sampled = rows_of(run), make_foreign.sampled()
    assert [row["prompt"] for row in rows] == [f"user: {row['prompt']}" for row in sampled]
    assert [row["reward"] for row in rows] == [row["reward"] for row in sampled]
    assert [row["step"] for row in rows] == [row["step"] for row in sampled]


def test_a_column_that_is_not_there_is_named_with_those_that_are(tmp_path: Path) -> None:
    path = lines(tmp_path / "a.jsonl", [line(1)])
    with pytest.raises(ReadError, match=r"no column 'nope' for completion; there are 'p', 'c', 'r', 's'"):
        mapped.open_run(path, MAP | {"completion": "nope"})
    with pytest.raises(ReadError, match="knows no 'colour'"):
        mapped.open_run(path, MAP | {"colour": "p"})
    with pytest.raises(ReadError, match="completion="):
        mapped.open_run(path, {"prompt": "p"})


def test_names_are_guessed_and_said(tmp_path: Path) -> None:
    path = lines(tmp_path / "a.jsonl", [{"question": "q", "response": "a", "score": 1, "global_step": 3}])
    run = mapped.open_run(path)
    assert any("prompt=question, completion=response, reward=score, step=global_step" in note for note in run.notes)
    assert rows_of(run)[0] == {"step": 3, "split": "train", "prompt": "q", "completion": "a", "reward": 1.0}
    other = lines(tmp_path / "b.jsonl", [{"question": "q", "seconds": 1}])
    assert not mapped.recognises(other)
    with pytest.raises(ReadError, match="'question', 'seconds'"):
        mapped.open_run(other)


def test_without_a_step_all_rows_are_step_0_unless_files_are_numbered(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    mapping = {name: column for name, column in MAP.items() if name != "step"}
    lines(tmp_path / "one" / "a.jsonl", [line(1), line(2)])
    run = mapped.open_run(tmp_path / "one", mapping)
    assert [row["step"] for row in rows_of(run)] == [0, 0]
    assert any("step 0" in note for note in run.notes)
    for number in (10, 9):
        lines(tmp_path / "two" / f"part_{number}.jsonl", [line(1)])
    run = mapped.open_run(tmp_path / "two", mapping)
    assert [row["step"] for row in rows_of(run)] == [9, 10]


def test_damaged_lines_are_counted_and_the_others_read(tmp_path: Path) -> None:
    deep = b'{"p":' + b"[" * 100_000 + b"]" * 100_000 + b',"c":"deep","r":0,"s":1}\n'
    records: list[Any] = [
        line(1),
        b'{"p": "x", "c": "\xff\xfe", "r": 1, "s": 1}\n',
        b"not json\n",
        b"\n",
        b"[1, 2]\n",
        line(-3),
        line(1) | {"s": 1.5},
        line(1) | {"s": None},
        {"p": "neither text nor reward", "s": 1},
        b'{"p": "x", "c": "nan", "r": NaN, "s": 1}\n',
        b'{"p": "x", "c": "inf", "r": -Infinity, "s": 1}\n',
        b'{"p": "x", "c": "\\ud800 half", "r": 1e999, "s": 1}\n',
        line(2) | {"r": "0.5", "s": "2"},
        line(2) | {"r": "no number"},
        {"c": "no prompt", "s": 2},
        deep,
        b'{"p": "torn", "c": "to',
    ]
    run = mapped.open_run(lines(tmp_path / "a.jsonl", records), MAP)
    rows = rows_of(run)
    assert [row["completion"] for row in rows] == [
        "text 1 0", "\ufffd\ufffd", "nan", "inf", "? half", "text 2 0", "text 2 0", "no prompt",
    ]  # fmt: skip
    rewards = [row["reward"] for row in rows]
    assert rewards[:2] == [0.0, 1.0]
    assert math.isnan(rewards[2])
    assert rewards[3:] == [-math.inf, math.inf, 0.5, None, None]
    # no JSON, a list, steps -3, 1.5 and none, a row without content, too deep, torn
    assert damaged_of(run) == 8


@pytest.mark.parametrize("blocks", [64, 200, 1 << 20])
def test_shards_end_at_line_ends_and_between_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, blocks: int
) -> None:
    records = [line(step, index) for step in range(20) for index in range(5)]
    path = lines(tmp_path / "a.jsonl", records)
    for module in (cutting, files):
        monkeypatch.setattr(module, "BLOCK_BYTES", blocks)
    run = mapped.open_run(path, MAP)
    assert len(run.shards) > 1 or blocks == 1 << 20
    assert [row["completion"] for row in rows_of(run)] == [record["c"] for record in records]
    held = [{row["step"] for batch in shard.read() for row in batch.rows.to_pylist()} for shard in run.shards]
    assert sum(map(len, held)) == len(set.union(*held)) == 20
    assert pickle.loads(pickle.dumps(run.shards[0])) == run.shards[0]


def test_steps_out_of_order_stay_in_one_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records = [line(step, index) for step in (*range(10), *range(5), *range(10, 20)) for index in range(5)]
    path = lines(tmp_path / "a.jsonl", records)
    monkeypatch.setattr(cutting, "BLOCK_BYTES", 100)
    run = mapped.open_run(path, MAP)
    assert len(run.shards) == 1
    assert any("not in order" in note for note in run.notes)
    assert len(rows_of(run)) == len(records)


def test_row_groups_are_cut_between_steps(tmp_path: Path) -> None:
    records = [line(step, index) for step in range(12) for index in range(4)]
    table = pa.Table.from_pylist(records)
    pq.write_table(table, tmp_path / "aligned.parquet", row_group_size=8)
    pq.write_table(table, tmp_path / "astride.parquet", row_group_size=6)
    for name, expected in (("aligned", 6), ("astride", 4)):
        path = tmp_path / f"{name}.parquet"
        parts = cutting._cut_row_groups(folder.files_below(path)[1][0], layout.Spec(name="x", columns=MAP))
        # Groups of 8 rows are two steps each; of groups of 6 rows every second begins a step.
        assert len(parts) == expected
        assert [row["completion"] for row in rows_of(mapped.open_run(path, MAP))] == [r["c"] for r in records]


@pytest.mark.parametrize("suffix", ["gz", "zst"])
def test_compressed_lines(tmp_path: Path, suffix: str) -> None:
    raw = b"".join(json.dumps(line(step)).encode() + b"\n" for step in range(50))
    packed = pa.compress(raw, "zstd", asbytes=True) if suffix == "zst" else gzip.compress(raw)
    path = tmp_path / f"a.jsonl.{suffix}"
    path.write_bytes(packed)
    assert [row["step"] for row in rows_of(mapped.open_run(path, MAP))] == list(range(50))


def test_a_torn_archive_gives_what_can_be_read(tmp_path: Path) -> None:
    raw = b"".join(json.dumps(line(step, c=str(hash(str(step))))).encode() + b"\n" for step in range(20_000))
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(raw)[:-5_000])
    batches = [batch for shard in mapped.open_run(path, MAP).shards for batch in shard.read()]
    assert 0 < sum(len(batch.rows) for batch in batches) < 20_000
    assert [name for batch in batches for name in batch.unreadable] == ["a.jsonl.gz"]


def test_a_bomb_is_not_read_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(raw, "FREE_BYTES", 1 << 20)
    monkeypatch.setattr(raw, "EXPANSION", 100)
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(json.dumps(line(1)).encode() + b"\n" + b" " * (50 << 20)))
    batches = [batch for shard in mapped.open_run(path, MAP).shards for batch in shard.read()]
    assert [reason for batch in batches for reason in batch.unreadable.values() if "expands" in reason]


def test_a_line_without_end_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(raw, "LINE_BYTES", 1 << 16)
    monkeypatch.setattr(files, "BLOCK_BYTES", 1 << 12)
    path = lines(tmp_path / "a.jsonl", [line(1), line(2, c="x" * (1 << 18)), line(3)])
    run = mapped.open_run(path, MAP)
    assert [row["step"] for row in rows_of(run)] == [1, 3]
    assert damaged_of(run) == 1


def test_damage_in_a_block_changes_nothing_for_its_neighbours(tmp_path: Path) -> None:
    """The quick and the slow way give the same rows."""
    records = [
        line(step, index, a=step / 3, w=f"task {index}", t=index == 1) for step in range(9) for index in range(4)
    ]
    mapping = MAP | {"advantage": "a", "source": "w", "truncated": "t", "group": "s"}
    quick = mapped.open_run(lines(tmp_path / "quick.jsonl", records), mapping)
    slow = mapped.open_run(lines(tmp_path / "slow.jsonl", [*records, b"broken\n"]), mapping)
    assert rows_of(slow) == rows_of(quick)
    assert (damaged_of(quick), damaged_of(slow)) == (0, 1)
    assert rows_of(quick)[5]["truncated"] is True
    assert rows_of(quick)[5]["group"] == "1"


def test_csv_rows_with_too_few_fields_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b'p,c,r,s\na,"+1, ""quoted""\nsecond line",1,1\nshort,row\nb,@x,,2\nc,\xff,nan,3\n')
    run = mapped.open_run(path, MAP)
    rows = rows_of(run)
    assert [row["completion"] for row in rows] == ['+1, "quoted"\nsecond line', "@x", "\ufffd"]
    assert rows[0]["reward"] == 1.0
    assert rows[1]["reward"] is None
    assert math.isnan(rows[2]["reward"])
    assert damaged_of(run) == 1


@pytest.mark.parametrize(
    "shape",
    [
        lambda records: records,
        lambda records: {"rows": records},
        lambda records: {"columns": list(records[0]), "data": [list(record.values()) for record in records]},
    ],
)
def test_json_files(tmp_path: Path, shape: Callable[[list[Any]], Any]) -> None:
    records = [line(step) for step in range(3)]
    path = tmp_path / "a.json"
    path.write_text(json.dumps(shape(records)))
    assert [row["step"] for row in rows_of(mapped.open_run(path, MAP))] == [0, 1, 2]


def test_links_out_of_the_folder_are_not_followed(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    lines(folder / "1.jsonl", [line(1)])
    lines(tmp_path / "2.jsonl", [line(2)])
    (folder / "2.jsonl").symlink_to(tmp_path / "2.jsonl")
    assert [row["step"] for row in rows_of(mapped.open_run(folder, MAP))] == [1]


def test_splits_by_a_column(tmp_path: Path) -> None:
    words = ["train", "eval", "Validation", "test-2", None, "testimony"]
    path = lines(tmp_path / "a.jsonl", [line(1, word=word) for word in words])
    rows = rows_of(mapped.open_run(path, MAP | {"split": "word"}))
    assert [row["split"] for row in rows] == ["train", "eval", "eval", "eval", "train", "train"]


def test_blocks_without_damage_are_parsed_at_once() -> None:
    """What 150 MB a second rests on; line by line takes five times as long."""
    shard = mapped.open_run(FOREIGN / "verl").shards[0]
    assert isinstance(shard, files.MappedShard)
    block = Path(shard.parts[0].path).read_bytes()
    assert files._parsed_at_once(block, shard.spec) is not None
    assert files._parsed_at_once(block + b"null\n", shard.spec) is None
    assert files._parsed_at_once(block[:-9], shard.spec) is None


def test_scalars_without_a_step_and_torn_ones_are_counted(tmp_path: Path) -> None:
    records = [{"step": 1, "optim/entropy": 2.0}, {"optim/entropy": 3.0}, b'{"step": 2, "optim/ent']
    lines(tmp_path / "metrics.jsonl", records)
    run = mapped.open_run(tmp_path)
    assert run.reader == "tinker-cookbook"
    assert run.scalars == {"optim/entropy": [(1, 2.0)]}
    assert "2 lines of metrics.jsonl could not be read." in run.notes
