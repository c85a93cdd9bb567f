"""The run log: what is written reads back, once, whatever happens in between."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import subprocess
import sys
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import make_runlog as made
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rlmon.errors import ConfigError, RunLogError, SchemaError
from rlmon.records import SCHEMA_VERSION, Pass, Rollout
from rlmon.runlog import RunLogWriter, as_stored, next_attempt, open_run, peek, restore_text, schema


def _open(path: Path, attempt: int = 0, **options: Any) -> RunLogWriter:
    return RunLogWriter.open(path, made.header(attempt), **{"resume": False, **options})


def _row_ids(table: pa.Table) -> list[tuple[int, int, int]]:
    return [tuple(row.values()) for row in table.select(["attempt", "round", "global_row"]).to_pylist()]


# ---- schema


@pytest.mark.parametrize("record", [Rollout, Pass])
def test_arrow_schema_is_rendered_from_the_record(record: type) -> None:
    simple = {int: "int64", float: "double", str: "string", bool: "bool"}
    by_name = {
        "split": "string",
        "rewards": "map<string, double>",
        "openers": "list<item: int32>",
        "opener_weights": "list<item: float>",
    }
    rendered = schema.arrow_schema(record)
    assert rendered.names == [f.name for f in dataclasses.fields(record)]
    assert rendered.metadata[b"rlmon.schema_version"] == str(SCHEMA_VERSION).encode()
    for name, hint in typing.get_type_hints(record).items():
        inner = [a for a in typing.get_args(hint) if a is not type(None)] or [hint]
        expected = by_name.get(name) or simple[inner[0]]
        assert str(rendered.field(name).type).replace(" ('item')", "") == expected, name
        assert rendered.field(name).nullable == (name not in {"attempt", "round", "split", "global_row", "step"})


def test_a_type_without_a_column_form_is_refused() -> None:
    with pytest.raises(TypeError, match="no column type"):
        schema.arrow_type(complex)


def test_import_is_torch_free() -> None:
    code = "import sys, rlmon.runlog; print([m for m in ('torch', 'pandas', 'trl', 'rlmon.trl') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


# ---- rows


def test_rows_read_back_as_written(tmp_path: Path) -> None:
    writer = _open(tmp_path / "run")
    columns = made.rollouts(0)
    writer.write_rollouts(columns)
    writer.write_passes(made.passes(0))
    run = open_run(tmp_path / "run")
    table = run.rollouts()
    assert table.schema.equals(schema.arrow_schema(Rollout))
    for name, values in columns.items():
        got = table[name].to_pylist()
        assert got == ([list(v.items()) for v in values] if name == "rewards" else values), name
    for name in ("segment", "turn"):
        assert table[name].to_pylist() == [None] * 8
    assert run.passes()["logp_mean_nats"].to_pylist() == [-i / 3 for i in range(8)]
    assert (writer.rows_written, writer.shed_rows, writer.passes_written, writer.shed_passes) == (8, 0, 8, 0)
    assert writer.take_faults() == ()


def test_numpy_columns_and_not_finite_floats(tmp_path: Path) -> None:
    writer = _open(tmp_path / "run")
    writer.write_rollouts(
        made.rollouts(
            0,
            4,
            global_row=np.arange(4, dtype=np.int32),
            reward=np.array([0.5, np.nan, np.inf, -np.inf], dtype=np.float32),
            advantage=[np.float32(0.25), None, math.nan, 1],
            rewards=[{"a": math.nan, "b": 1.0}, {}, {"a": None}, None],
            openers=[np.array([1, 2], dtype=np.int64), None, np.array([], dtype=np.int32), [3]],
            opener_weights=[np.array([0.5, np.nan], dtype=np.float32), None, [], [math.inf]],
        )
    )
    table = open_run(tmp_path / "run").rollouts()
    assert table["reward"].to_pylist() == [0.5, None, None, None]
    assert table["advantage"].to_pylist() == [0.25, None, None, 1.0]
    assert table["rewards"].to_pylist() == [[("a", None), ("b", 1.0)], [], [("a", None)], []]
    assert table["openers"].to_pylist() == [[1, 2], None, [], [3]]
    assert table["opener_weights"].to_pylist() == [[0.5, None], None, [], [None]]
    assert writer.take_faults() == ()


def test_what_cannot_be_converted_becomes_null_and_the_rows_stay(tmp_path: Path) -> None:
    writer = _open(tmp_path / "run")
    writer.write_rollouts(
        made.rollouts(
            0,
            4,
            reward=[1.0, "much", object(), 2],
            template_key=[1, 1 << 70, "x", 4],
            completion=[b"raw", 7, None, "s"],
        )
    )
    table = open_run(tmp_path / "run").rollouts()
    assert table["reward"].to_pylist() == [1.0, None, None, 2.0]
    assert table["template_key"].to_pylist() == [1, None, None, 4]
    assert table["completion"].to_pylist() == ["raw", "7", None, "s"]
    assert writer.shed_rows == 0


def test_columns_that_are_no_table_raise_and_are_counted(tmp_path: Path) -> None:
    writer = _open(tmp_path / "run")
    with pytest.raises(ValueError, match="differ in length"):
        writer.write_rollouts(made.rollouts(0, 4, reward=[1.0]))
    with pytest.raises(ValueError, match="no column colour"):
        writer.write_rollouts(made.rollouts(0, 4, colour=[1] * 4))
    with pytest.raises(ValueError, match="'step' has 4 nulls"):
        writer.write_rollouts(made.rollouts(0, 4, step=None))
    assert (writer.rows_written, writer.shed_rows) == (0, 12)


def test_a_round_written_in_two_calls_keeps_both(tmp_path: Path) -> None:
    writer = _open(tmp_path / "run")
    writer.write_rollouts(made.rollouts(0, 4))
    writer.write_rollouts(made.rollouts(0, 4, first_row=4))
    writer.write_rollouts(made.rollouts(0, 0))
    assert _row_ids(open_run(tmp_path / "run").rollouts()) == [(0, 0, i) for i in range(8)]


def test_many_ranks_write_parts_and_only_rank_0_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "run"
    late = _open(path, rank=1, world_size=2)
    assert os.listdir(path / "rollouts") == []
    assert not (path / "run.json").exists()
    first = _open(path, rank=0, world_size=2)
    assert first.secret == late.secret
    for writer in (late, first):
        writer.write_rollouts(made.rollouts(0, 4, first_row=4 * writer.rank))
        writer.append_step(made.step_record(1))
        writer.append_event("finding", made.finding(1))
        writer.close()
    run = open_run(path)
    assert _row_ids(run.rollouts()) == [(0, 0, i) for i in range(8)]
    assert len(run.step_records()) == 1
    assert len(run.findings) == 1


def test_writing_starts_no_thread(tmp_path: Path) -> None:
    code = f"""
import importlib.util, os
spec = importlib.util.spec_from_file_location("made", {str(Path(made.__file__))!r})
made = importlib.util.module_from_spec(spec); spec.loader.exec_module(made)
from rlmon.runlog import RunLogWriter
before = len(os.listdir("/proc/self/task"))
writer = RunLogWriter.open({str(tmp_path / "run")!r}, made.header(), resume=False)
for round in range(70):
    writer.write_rollouts(made.rollouts(round)); writer.append_step(made.step_record(round + 1))
writer.close()
print(len(os.listdir("/proc/self/task")) - before)
"""
    if not Path("/proc/self/task").exists():
        pytest.skip("needs /proc")
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "0"


# ---- text


HOSTILE = [
    "\ud800\\ud800 \\\\",
    "a\udfff\\b",
    "\U0010fffdmark",
    "\0\x1b[31m\x07\r\n\u2028",
    "<script>alert(1)</script>",
    "😀",
    "",
    "\\ud800",
]


def test_hostile_text_reads_back_exactly(tmp_path: Path) -> None:
    writer = _open(tmp_path / "run")
    writer.write_rollouts(made.rollouts(0, completion=HOSTILE, prompt=HOSTILE, source=HOSTILE))
    writer.append_step(made.step_record(1, missing={text: text for text in HOSTILE}))
    writer.append_event("odd", {"texts": HOSTILE})
    run = open_run(tmp_path / "run")
    for column in ("completion", "prompt", "source"):
        assert [restore_text(text) for text in run.rollouts()[column].to_pylist()] == HOSTILE
    assert run.step_records()[0].missing == {text: text for text in HOSTILE}
    assert run.events[-1].payload["texts"] == HOSTILE
    for name in ("steps.jsonl", "events.jsonl"):
        data = (tmp_path / "run" / name).read_bytes()
        assert all(0x20 <= byte < 0x7F or byte == 0x0A for byte in data), "one record a line, nothing a terminal obeys"
        for line in data.splitlines():
            json.dumps(json.loads(line), ensure_ascii=False).encode("utf-8")  # other readers get valid Unicode
    assert writer.take_faults() == ()


def test_a_completion_of_1_mb(tmp_path: Path) -> None:
    long = "x7 " * 349_526
    assert len(long) > 1 << 20
    writer = _open(tmp_path / "run")
    writer.write_rollouts(made.rollouts(0, 2, completion=[long, long[::-1]]))
    assert open_run(tmp_path / "run").rollouts()["completion"].to_pylist() == [long, long[::-1]]


def test_store_text_hash_and_off(tmp_path: Path) -> None:
    for store_text, keys in (("hash", made.rollouts(0)["template_key"]), ("off", [None] * 8)):
        path = tmp_path / store_text
        writer = _open(path, store_text=store_text)
        writer.write_rollouts(made.rollouts(0))
        table = open_run(path).rollouts()
        assert table["prompt"].to_pylist() == table["completion"].to_pylist() == [None] * 8
        assert table["template_key"].to_pylist() == keys
        assert (table["openers"].null_count, table["answer_key"].null_count) == (
            (1, 4) if store_text == "hash" else (8, 8)
        )
        assert table["mode"].to_pylist() == ["xml"] * 8
        for file in path.rglob("*"):
            assert file.is_dir() or b"answer>" not in file.read_bytes()
    with pytest.raises(ConfigError, match="full, hash, off"):
        _open(tmp_path / "x", store_text="some")


@pytest.mark.parametrize(("sample", "kept"), [(0, [0, 0]), (3, [2, 1]), (100, [16, 16])])
def test_text_sample_bounds_the_text_of_all_ranks(tmp_path: Path, sample: int, kept: list[int]) -> None:
    for rank in (0, 1):
        writer = _open(tmp_path / "run", rank=rank, world_size=2, text_sample=sample)
        writer.write_rollouts(made.rollouts(0, 16, first_row=16 * rank))
    rows = open_run(tmp_path / "run").rollouts(["global_row", "completion", "prompt"]).to_pylist()
    assert len(rows) == 32
    for rank in (0, 1):
        mine = [r for r in rows if r["global_row"] // 16 == rank]
        assert sum(r["completion"] is not None for r in mine) == kept[rank]
        assert all((r["completion"] is None) == (r["prompt"] is None) for r in mine)


def test_secret_is_private_and_kept_over_attempts(tmp_path: Path) -> None:
    first = _open(tmp_path / "run")
    assert len(first.secret) == 32
    assert (tmp_path / "run" / "secret").stat().st_mode & 0o777 == 0o600
    assert _open(tmp_path / "run", 1, resume=True).secret == first.secret
    assert _open(tmp_path / "other").secret != first.secret
    assert first.secret.hex() not in (tmp_path / "run" / "run.json").read_text()


# ---- steps and events


def test_step_records_read_back_to_the_last_bit(tmp_path: Path) -> None:
    writer = _open(tmp_path / "run")
    values = {"a": 0.1, "b": 1 / 3, "c": 5e-324, "d": 1.7976931348623157e308, "e": -0.0, "f": None}
    values["g"] = np.float32(0.1)
    record = made.step_record(1, metrics=values, rounds=[0, 1], completions=np.int64(8), faults={"x": 2})
    writer.append_step(record)
    (read,) = open_run(tmp_path / "run").step_records()
    assert read == as_stored(record)
    assert {k: v if v is None else float(v).hex() for k, v in read.metrics.items()} == {
        k: v if v is None else float(v).hex() for k, v in values.items()
    }
    assert read.blocks == record.blocks


def test_nan_is_never_written(tmp_path: Path) -> None:
    writer = _open(tmp_path / "run")
    block = dataclasses.replace(made.step_record(1).blocks[0], stats={"good": 0.5, "bad": math.nan})
    record = made.step_record(1, metrics={"x": math.nan, "y": np.float32("inf"), "z": 0.0}, missing={}, blocks=(block,))
    writer.append_step(record)
    writer.append_event("odd", {"v": math.nan, "w": [np.float64("-inf")], "set": {1}, ("tuple",): Path("p"), "b": b"x"})
    text = (tmp_path / "run" / "steps.jsonl").read_text() + (tmp_path / "run" / "events.jsonl").read_text()
    assert "NaN" not in text
    assert "Infinity" not in text
    run = open_run(tmp_path / "run")
    (read,) = run.step_records()
    assert read.metrics == {"x": None, "y": None, "z": 0.0}
    assert read.missing == {"x": "the value was nan", "y": "the value was inf"}
    assert read.blocks[0].stats == {"good": 0.5}
    assert read == as_stored(record)
    assert run.events[-1].payload == {"v": None, "w": [None], "set": [1], "('tuple',)": "p", "b": "x"}


def test_steps_table_has_one_column_per_metric(tmp_path: Path) -> None:
    writer = _open(tmp_path / "run")
    writer.append_step(made.step_record(1, metrics={"m": 1.0}))
    writer.append_step(made.step_record(2, metrics={"m": None, "n": 2.0}))
    table = open_run(tmp_path / "run").steps
    assert table["step"].to_pylist() == [1, 2]
    assert table["m"].to_pylist() == [1.0, None]
    assert table["n"].to_pylist() == [None, 2.0]


def test_unknown_future_fields_are_ignored(tmp_path: Path) -> None:
    writer = _open(tmp_path / "run")
    writer.append_step(made.step_record(1))
    file = tmp_path / "run" / "steps.jsonl"
    line = json.loads(file.read_text())
    file.write_text(json.dumps({**line, "weather": "fine"}) + "\n")
    assert open_run(tmp_path / "run").step_records() == [made.step_record(1)]


@pytest.mark.parametrize("torn", [b'{"schema_version": 1, "att', b"\0\0\0", b"whole"])
def test_a_torn_last_line_is_no_step_before_and_after_a_restart(tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / "run"
    writer = _open(path)
    writer.append_step(made.step_record(1))
    file = path / "steps.jsonl"
    # A whole record without its newline does not exist either, and must not come to exist later.
    file.write_bytes(file.read_bytes() + (file.read_bytes().rstrip(b"\n") if torn == b"whole" else torn))
    assert [r.step for r in open_run(path).step_records()] == [1]
    again = _open(path, 1, resume=True, from_step=1)
    again.append_step(made.step_record(2, attempt=1))
    run = open_run(path)
    assert [(r.attempt, r.step) for r in run.step_records()] == [(0, 1), (1, 2)]
    assert run.torn_lines["steps.jsonl"] == 1


# ---- attempts


def test_resume_hides_what_it_supersedes(tmp_path: Path) -> None:
    path = tmp_path / "run"
    assert next_attempt(path) == 0
    assert peek(path) is None
    first = _open(path)
    for step in (1, 2, 3):
        first.write_rollouts(made.rollouts(step - 1))
        first.append_step(made.step_record(step))
        first.append_event("finding", made.finding(step))
    assert next_attempt(path) == 1
    second = _open(path, 1, resume=True, from_step=2)
    assert [r.step for r in open_run(path).step_records()] == [1, 2], "step 3 is superseded at once"
    second.write_rollouts(made.rollouts(2, attempt=1))
    second.append_step(made.step_record(3, attempt=1))
    run = open_run(path)
    assert [(r.attempt, r.step) for r in run.step_records()] == [(0, 1), (0, 2), (1, 3)]
    assert [f.step for f in run.findings] == [1, 2]
    # 2 rounds of 8 rows of attempt 0 and 1 round of attempt 1 are left; nothing was deleted.
    assert sorted({(a, r) for a, r, _ in _row_ids(run.rollouts())}) == [(0, 0), (0, 1), (1, 2)]
    assert run.rollouts().num_rows == 24
    assert run.rollouts(all_attempts=True).num_rows == 32
    assert len(run.step_records(all_attempts=True)) == 4
    assert [e.payload["from_step"] for e in run.events if e.kind == "resumed"] == [2]
    assert run.header.attempt == 1
    header = peek(path)
    assert header is not None
    assert (header.attempt, header.attempt_kind) == (1, "resumed")


def test_resume_twice_from_an_earlier_step(tmp_path: Path) -> None:
    path = tmp_path / "run"
    for attempt, from_step, steps in ((0, None, range(1, 9)), (1, 6, range(7, 10)), (2, 3, range(4, 6))):
        writer = _open(path, attempt, resume=attempt > 0, from_step=from_step)
        for step in steps:
            writer.append_step(made.step_record(step, attempt=attempt))
    # Attempt 2 went back to 3: nothing of attempt 1 (7 to 9) counts, and of attempt 0 only 1 to 3.
    shown = [(r.attempt, r.step) for r in open_run(path).step_records()]
    assert shown == [(0, 1), (0, 2), (0, 3), (2, 4), (2, 5)]


def test_resume_from_an_unknown_step_counts_from_its_first_record(tmp_path: Path) -> None:
    path = tmp_path / "run"
    for attempt, steps in ((0, range(1, 6)), (1, range(4, 7))):
        writer = _open(path, attempt, resume=attempt > 0)
        assert len(open_run(path).step_records()) == (0 if attempt == 0 else 5), "nothing is superseded yet"
        for step in steps:
            writer.append_step(made.step_record(step, attempt=attempt))
    assert [(r.attempt, r.step) for r in open_run(path).step_records()] == [
        (0, 1),
        (0, 2),
        (0, 3),
        (1, 4),
        (1, 5),
        (1, 6),
    ]


def test_a_fresh_run_hides_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "run"
    _open(path).append_step(made.step_record(1))
    fresh = RunLogWriter.open(path, made.header(1, run_id="new"), resume=False)
    run = open_run(path)
    assert (run.step_records(), run.run_id) == ([], "new")
    fresh.append_step(made.step_record(1, attempt=1))
    resumed = RunLogWriter.open(path, made.header(2, run_id="ignored"), resume=True, from_step=1)
    resumed.append_step(made.step_record(2, attempt=2))
    assert resumed.header.run_id == "new"
    assert [(r.attempt, r.step) for r in run.step_records()] == [(1, 1), (2, 2)], "an open Run sees new attempts"
    assert len(run.step_records(all_attempts=True)) == 3


def test_an_attempt_number_is_used_once(tmp_path: Path) -> None:
    _open(tmp_path / "run")
    with pytest.raises(RunLogError, match="next_attempt"):
        _open(tmp_path / "run")


def test_next_attempt_counts_parts_of_a_lost_header(tmp_path: Path) -> None:
    writer = _open(tmp_path / "run")
    writer.write_rollouts(made.rollouts(0))
    (tmp_path / "run" / "run.json").unlink()
    assert next_attempt(tmp_path / "run") == 1


# ---- bad input at attach


def test_foreign_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"1")
    with pytest.raises(RunLogError, match=r"model\.safetensors.*rlmon_dir="):
        _open(tmp_path)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "run.json").write_text('{"project": "something else"}')
    with pytest.raises(RunLogError, match="not the header of an rlmon run"):
        _open(tmp_path / "other")
    with pytest.raises(RunLogError, match="is a file"):
        _open(tmp_path / "model.safetensors")
    assert sorted(os.listdir(tmp_path)) == ["model.safetensors", "other"], "nothing was written"


def test_a_newer_schema_is_refused_by_writer_and_reader(tmp_path: Path) -> None:
    path = tmp_path / "run"
    _open(path)
    file = path / "run.json"
    file.write_text(file.read_text().replace(f'"schema_version": {SCHEMA_VERSION}', '"schema_version": 7'))
    for attempt in (lambda: _open(path, 1), lambda: open_run(path), lambda: peek(path), lambda: next_attempt(path)):
        with pytest.raises(
            SchemaError, match=rf"schema 7; .*reads up to schema {SCHEMA_VERSION}.*pip install -U rlmon.*rlmon_dir"
        ):
            attempt()


def test_no_permission_names_the_directory_and_the_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    really_open = os.open

    def refuse(path: Any, flags: int, *rest: Any, **options: Any) -> int:
        if flags & os.O_CREAT:
            raise PermissionError(13, "Permission denied", str(path))
        return really_open(path, flags, *rest, **options)

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(RunLogError, match=r"cannot write the run log in .*run: Permission denied.*rlmon_dir="):
        _open(tmp_path / "run")


def test_open_run_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(RunLogError, match=r"has no run\.json.*rlmon_dir"):
        open_run(tmp_path)
    with pytest.raises(RunLogError, match="does not exist"):
        open_run(tmp_path / "nowhere")
    _open(tmp_path / "rlmon")
    assert open_run(tmp_path).path == tmp_path / "rlmon", "an output directory stands for the log in it"


# ---- migration


@pytest.fixture
def schema_0(tmp_path: Path) -> Path:
    """A directory of a version 0 that never was: rows say ``text``, steps say ``n``."""
    path = tmp_path / "run"
    writer = _open(path)
    writer.write_rollouts(made.rollouts(0))
    writer.append_step(made.step_record(1))
    (part,) = (path / "rollouts").iterdir()
    table = pq.read_table(part)
    table = table.rename_columns(["text" if n == "completion" else n for n in table.column_names])
    pq.write_table(table.replace_schema_metadata({b"rlmon.schema_version": b"0"}), part)
    for name, old, new in (("run.json", '"total_steps"', '"steps_planned"'), ("steps.jsonl", '"tokens"', '"n"')):
        text = (path / name).read_text().replace(f'"schema_version": {SCHEMA_VERSION}', '"schema_version": 0')
        text = text.replace(old, new)
        (path / name).write_text(text)
    return path


def test_older_schemas_migrate_on_read(schema_0: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SchemaError, match=r"schema 0; this rlmon reads schema 1 to 2\. Read it with the rlmon version"):
        open_run(schema_0)

    def rows(folder: str, table: pa.Table) -> pa.Table:
        return table.rename_columns(["completion" if n == "text" else n for n in table.column_names])

    def line(kind: str, values: dict[str, Any]) -> dict[str, Any]:
        old, new = {"step": ("n", "tokens"), "header": ("steps_planned", "total_steps"), "event": ("", "")}[kind]
        return {new if name == old else name: value for name, value in values.items()}

    monkeypatch.setitem(schema.MIGRATIONS, 0, schema.Migration(rows=rows, line=line))
    bytes_before = {file: file.read_bytes() for file in schema_0.rglob("*") if file.is_file()}
    run = open_run(schema_0)
    assert run.header == made.header()
    assert run.step_records() == [made.step_record(1)]
    assert run.rollouts(["completion"])["completion"].to_pylist() == made.rollouts(0)["completion"]
    assert {file: file.read_bytes() for file in schema_0.rglob("*") if file.is_file()} == bytes_before


def test_a_newer_part_and_a_newer_step_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "run"
    writer = _open(path)
    writer.write_rollouts(made.rollouts(0))
    writer.append_step(made.step_record(1, schema_version=SCHEMA_VERSION + 2))
    with pytest.raises(SchemaError, match=rf"steps\.jsonl was written by schema {SCHEMA_VERSION + 2}"):
        open_run(path).step_records()
    (part,) = (path / "rollouts").iterdir()
    newer = {b"rlmon.schema_version": str(SCHEMA_VERSION + 1).encode()}
    pq.write_table(pq.read_table(part).replace_schema_metadata(newer), part)
    with pytest.raises(SchemaError, match=rf"part-a0000.* was written by schema {SCHEMA_VERSION + 1}"):
        open_run(path).rollouts()


def test_extra_columns_of_a_minor_version_are_left_out_and_absent_ones_null(tmp_path: Path) -> None:
    path = tmp_path / "run"
    _open(path).write_rollouts(made.rollouts(0))
    (part,) = (path / "rollouts").iterdir()
    table = pq.read_table(part).drop_columns(["staleness"])
    pq.write_table(table.append_column("weather", pa.nulls(8)), part)
    read = open_run(path).rollouts()
    assert read.schema.names == schema.arrow_schema(Rollout).names
    assert read["staleness"].null_count == 8


# ---- reading


def test_columns_are_chosen_by_name(tmp_path: Path) -> None:
    _open(tmp_path / "run").write_rollouts(made.rollouts(0))
    run = open_run(tmp_path / "run")
    assert run.rollouts(["mode", "round"]).column_names == ["mode", "round"]
    with pytest.raises(KeyError, match="no column colour; it has attempt, round"):
        run.rollouts(["colour"])


def test_rows_are_sorted_whatever_the_order_of_files(tmp_path: Path) -> None:
    writer = _open(tmp_path / "run")
    for round in (2, 0, 1):
        writer.write_rollouts(made.rollouts(round, 4, global_row=[3, 1, 0, 2]))
    assert _row_ids(open_run(tmp_path / "run").rollouts()) == [(0, r, i) for r in range(3) for i in range(4)]


def test_a_damaged_part_is_named_and_the_others_are_read(tmp_path: Path) -> None:
    writer = _open(tmp_path / "run")
    for round in range(3):
        writer.write_rollouts(made.rollouts(round))
    parts = sorted((tmp_path / "run" / "rollouts").iterdir())
    parts[1].write_bytes(parts[1].read_bytes()[:-20])
    run = open_run(tmp_path / "run")
    assert run.rollouts().num_rows == 16
    assert list(run.unreadable) == [parts[1].name]


def test_an_empty_run_reads_as_empty(tmp_path: Path) -> None:
    _open(tmp_path / "run")
    run = open_run(tmp_path / "run")
    assert (run.rollouts().num_rows, run.passes().num_rows, run.step_records(), run.findings) == (0, 0, [], [])
    assert run.rollouts().schema.equals(schema.arrow_schema(Rollout))
    assert run.steps.num_rows == 0


def test_a_live_log_can_be_read_between_any_two_writes(tmp_path: Path) -> None:
    writer = _open(tmp_path / "run")
    run = open_run(tmp_path / "run")

    def writes() -> Iterator[None]:
        for round in range(3):
            yield writer.write_rollouts(made.rollouts(round))
            yield writer.append_step(made.step_record(round + 1))

    seen = [(run.rollouts().num_rows, len(run.step_records())) for _ in writes()]
    assert seen == [(8, 0), (8, 1), (16, 1), (16, 2), (24, 2), (24, 3)]
