"""Whatever happens to the bytes of a run, a reader gives rows or one of rlmon's errors, in bounded time."""

from __future__ import annotations

import contextlib
import csv
import json
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_rows import SHAPES

from rlmon.audit.readers import open_source, runs_at
from rlmon.audit.run import ROWS
from rlmon.errors import RLMonError

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
FIXTURES = sorted(path.name for path in (GOLDEN / "foreign").iterdir() if path.is_dir() and path.name != "plain")
CURVES = (
    "bare-log-history/log_history.json", "bare-log-history/training_log.csv", "bare-log-history/training_metrics.jsonl",
    "trl-console-log/train.log", "swift4800-logging-jsonl", "tb-several-runs-one-folder", "wandb4482-resumed-two-dirs",
)  # fmt: skip
SECONDS = 20.0
"""Longer than any honest reading of a few kilobytes, also on a busy machine."""

Mutation = Callable[[bytes], bytes]
place = st.floats(0, 1, exclude_max=True)


def flipped(at: float, bit: int) -> Mutation:
    def mutate(raw: bytes) -> bytes:
        index = int(at * len(raw))
        return raw[:index] + bytes([raw[index] ^ (1 << bit)]) + raw[index + 1 :]

    return mutate


def truncated(at: float) -> Mutation:
    return lambda raw: raw[: int(at * len(raw))]


def inserted(at: float, what: bytes) -> Mutation:
    return lambda raw: raw[: int(at * len(raw))] + what + raw[int(at * len(raw)) :]


def deleted(at: float, count: int) -> Mutation:
    return lambda raw: raw[: int(at * len(raw))] + raw[int(at * len(raw)) + count :]


NASTY = [
    b"\0", b"\xff\xfe", b"NaN", b"-1e999", b"[" * 2_000, b'"\\ud800"', b"\n", b"}{", b"9" * 21, b"null", b"{}",
]  # fmt: skip
mutations = st.one_of(
    st.builds(flipped, place, st.integers(0, 7)),
    st.builds(truncated, place),
    st.builds(inserted, place, st.one_of(st.binary(min_size=1, max_size=8), st.sampled_from(NASTY))),
    st.builds(deleted, place, st.integers(1, 64)),
)


def read_to_the_end(path: Path, mapping: dict[str, str] | None = None) -> int:
    """Rows that a reader gives, all of them looked at."""
    count = 0
    run = open_source(path, mapping=mapping)
    for shard in run.shards:
        assert shard.bytes >= 0
        for batch in shard.read():
            batch.rows.validate(full=True)
            assert set(batch.rows.column_names) <= set(ROWS.names)
            assert batch.damaged >= 0
            count += len(batch.rows)
    for series in [*run.scalars.values(), *run.eval_scalars.values()]:
        assert all(isinstance(step, int) and isinstance(value, float) for step, value in series)
    return count


def check(original: Path, choice: int, changes: list[Mutation], mapping: dict[str, str] | None = None) -> None:
    """Damages one file of a copy and reads it."""
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch) / original.name
        if original.is_dir():
            shutil.copytree(original, copy)
            files = sorted(path for path in copy.rglob("*") if path.is_file() and path.name != "truth.json")
        else:
            shutil.copy(original, copy)
            files = [copy]
        target = files[choice % len(files)]
        raw = target.read_bytes()
        for change in changes:
            raw = change(raw) if raw else raw
        target.write_bytes(raw)
        started = time.process_time()
        assert all(isinstance(place, Path) for place in runs_at(copy))
        with contextlib.suppress(RLMonError):
            read_to_the_end(copy, mapping)
        assert time.process_time() - started < SECONDS


@pytest.mark.parametrize("name", FIXTURES)
@settings(max_examples=40)
@given(choice=st.integers(0, 40), changes=st.lists(mutations, min_size=1, max_size=3))
def test_damaged_runs(name: str, choice: int, changes: list[Mutation]) -> None:
    check(GOLDEN / "foreign" / name, choice, changes)


@pytest.mark.parametrize("name", CURVES)
@settings(max_examples=25)
@given(choice=st.integers(0, 40), changes=st.lists(mutations, min_size=1, max_size=3))
def test_damaged_curves(name: str, choice: int, changes: list[Mutation]) -> None:
    check(GOLDEN / "cases" / name, choice, changes)


@pytest.mark.parametrize(
    ("name", "mapping"),
    [
        ("rows.csv", {"prompt": "question", "completion": "written", "reward": "points", "step": "step"}),
        ("rows.parquet", {"prompt": "chat", "completion": "written", "reward": "marks.total", "step": "update"}),
    ],
)
@settings(max_examples=60)
@given(changes=st.lists(mutations, min_size=1, max_size=3))
def test_damaged_files(name: str, mapping: dict[str, str], changes: list[Mutation]) -> None:
    check(GOLDEN / "foreign" / "plain" / name, 0, changes, mapping)


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "parquet"])
@settings(max_examples=60)
@given(shape=st.sampled_from(sorted(SHAPES)), changes=st.lists(mutations, max_size=3))
def test_damaged_shapes(suffix: str, shape: str, changes: list[Mutation]) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / f"rows.{suffix}"
        records = SHAPES[shape]
        if suffix == "parquet":
            pq.write_table(pa.Table.from_pylist(records), path)
        elif suffix == "csv":
            with path.open("w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, list(records[0]))
                writer.writeheader()
                writer.writerows(records)
        else:
            lines = [json.dumps(record) for record in records]
            path.write_text("\n".join(lines) if suffix == "jsonl" else f"[{','.join(lines)}]")
        check(path, 0, changes)


@pytest.mark.parametrize("first", [b"null\n", b"null", b"{}null", b"[]\n", b"\n\n", b" "])
def test_what_stands_before_the_first_object(tmp_path: Path, first: bytes) -> None:
    """Arrow's JSON parser ends the process, not the call, on some of these."""
    raw = (GOLDEN / "foreign" / "verl" / "rollouts" / "1.jsonl").read_bytes()
    (tmp_path / "1.jsonl").write_bytes(raw)
    (tmp_path / "2.jsonl").write_bytes(first + raw)
    assert read_to_the_end(tmp_path) in (15, 16)


@pytest.mark.parametrize("name", FIXTURES)
def test_undamaged_runs_have_something(name: str) -> None:
    """The twin: what was not damaged is read."""
    run = open_source(GOLDEN / "foreign" / name)
    assert read_to_the_end(GOLDEN / "foreign" / name) or run.scalars
