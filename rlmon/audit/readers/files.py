"""Rows of JSON lines, JSON, Parquet and CSV files, by a specification of where their columns lie (``Spec``)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json
import pyarrow.parquet as pq

import rlmon.audit.readers.columns as columns
import rlmon.audit.readers.messages as messages
import rlmon.audit.readers.parsing as parsing
import rlmon.audit.readers.shapes as shapes
from rlmon.audit.readers.canonical import column_of, no_rows, rows_of, typed
from rlmon.audit.readers.layout import CANONICAL, Part, Spec, format_of
from rlmon.audit.readers.parsing import walk
from rlmon.audit.readers.raw import BLOCK_BYTES, blocks, csv_batches, json_records, record_of
from rlmon.audit.run import RowBatch

GATHERED_BYTES = 1 << 20
"""Batches are put together up to this size."""
ROWS_AT_ONCE = 1 << 14
REPEATED_CHARACTERS = 1 << 26
"""Of a prompt that stands once in a record and with each of its completions in the rows."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MappedShard:
    """Parts of files that hold some steps whole."""

    parts: tuple[Part, ...]
    spec: Spec

    @property
    def bytes(self) -> int:
        return sum(part.bytes for part in self.parts)

    def read(self) -> Iterator[RowBatch]:
        return _gathered(self._batches())

    def _batches(self) -> Iterator[RowBatch]:
        before = _Before()
        for part in self.parts:
            last = -1
            try:
                for batch in _read_part(part, self.spec, before):
                    falls, last = _falls(batch.rows, last)
                    yield replace(batch, went_back=falls) if falls else batch
            except columns.UNREADABLE as problem:
                reason = f"{type(problem).__name__}: {str(problem)[:200]}"
                yield RowBatch(rows=no_rows(), unreadable={part.name: reason})


@dataclass(slots=True)
class _Before:
    """What the next record of a shard has to know of those before it, and what was passed over since the last batch."""

    records: int = 0
    content: str = ""
    """Of the last record that was a whole step, all but the step."""
    duplicates: int = 0
    damaged: int = 0

    def again(self, row: Mapping[str, Any]) -> bool:
        """Whether a step's completions are those of the step before, written again."""
        if not isinstance(row.get("step"), list):
            return False
        last, self.content = self.content, repr([value for name, value in row.items() if name != "step"])
        same = last == self.content and shapes.could_differ(row)
        self.duplicates += len(row["completion"]) if same else 0
        return same


def _falls(rows: pa.Table, last: int) -> tuple[list[tuple[int, int]], int]:
    """Where the steps of training rows go back, as (last step, first step), and the last step. ``last``: of the rows
    before."""
    steps = rows["step"].to_numpy()[pc.equal(rows["split"], "train").to_numpy()]
    if not steps.size:
        return [], last
    steps = np.concatenate([[last], steps])
    at = np.flatnonzero(steps[1:] < steps[:-1])
    return [(int(steps[i]), int(steps[i + 1])) for i in at], int(steps[-1])


def _gathered(batches: Iterator[RowBatch]) -> Iterator[RowBatch]:
    """The batches, small ones put together: a folder may have a file for each row."""
    held: list[RowBatch] = []
    size = 0
    for batch in batches:
        held.append(batch)
        size += batch.rows.nbytes + 64
        if size > GATHERED_BYTES:
            yield _together(held)
            held, size = [], 0
    if held:
        yield _together(held)


def _together(batches: Sequence[RowBatch]) -> RowBatch:
    if len(batches) == 1:
        return batches[0]
    return RowBatch(
        rows=pa.concat_tables([batch.rows for batch in batches], promote_options="default"),
        duplicates=sum(batch.duplicates for batch in batches),
        damaged=sum(batch.damaged for batch in batches),
        blank=sum(batch.blank for batch in batches),
        blank_from=min((batch.blank_from for batch in batches if batch.blank_from is not None), default=None),
        went_back=[pair for batch in batches for pair in batch.went_back],
        unreadable={name: why for batch in batches for name, why in batch.unreadable.items()},
    )


def _read_part(part: Part, spec: Spec, before: _Before) -> Iterator[RowBatch]:
    kind, packed = format_of(part.name)
    if kind == "parquet":
        yield from _read_parquet(part, spec, before)
    elif kind == "csv":
        for raw, damaged in csv_batches(part, spec):
            yield from _of_table(raw, part, spec, damaged, before)
    elif kind == "json":
        yield from _of_records(json_records(part, packed), part, spec, before)
    else:
        for block, passed_over in blocks(part, packed, BLOCK_BYTES):
            yield from _of_block(block, part, spec, passed_over, before)


def _parsed_at_once(block: bytes, spec: Spec) -> pa.Table | None:
    """The keys that are used of all lines; ``None`` where not every line is an object with the types of the first."""
    rows = block.rstrip(b"\n").count(b"\n") + 1
    # Arrow's parser crashes the process on a null that stands before the first object.
    if spec.kinds is None or not block.startswith(b"{") or block.count(b"\n{") + 1 != rows:
        return None
    try:
        raw = pyarrow.json.read_json(
            pa.BufferReader(block),
            read_options=pyarrow.json.ReadOptions(use_threads=False, block_size=max(1 << 16, len(block) + 1)),
            parse_options=pyarrow.json.ParseOptions(
                explicit_schema=pa.schema(list(spec.kinds)), unexpected_field_behavior="ignore"
            ),
        )
        raw.validate(full=True)
    except columns.UNREADABLE:
        return None
    return raw if len(raw) == rows else None


def _of_block(block: bytes, part: Part, spec: Spec, passed_over: int, before: _Before) -> Iterator[RowBatch]:
    """The rows of some lines: parsed at once, or line by line where they are not all as the first ones were."""
    quick = _parsed_at_once(block, spec)
    if quick is not None:
        yield from _of_table(quick, part, spec, passed_over, before)
        return
    lines = [line for line in block.split(b"\n") if line.strip()]
    records = [record for line in lines if (record := record_of(line)) is not None]
    yield from _of_records(records, part, spec, before, passed_over + len(lines) - len(records))


def _read_parquet(part: Part, spec: Spec, before: _Before) -> Iterator[RowBatch]:
    paths = [path for path in [*spec.paths.values(), *spec.within[:1], spec.eval_key] if path]
    wanted = list(dict.fromkeys([*paths, *(option.split(".")[0] for path in paths for option in path.split("|"))]))
    with pq.ParquetFile(part.path) as file:
        # A file that was not cut is given in bytes.
        cut = (part.start, part.end) != (0, part.bytes) and part.end >= 0
        groups = range(part.start, min(part.end, file.num_row_groups)) if cut else range(file.num_row_groups)
    for group in groups:
        try:
            raw = columns.read_parquet(Path(part.path), wanted, [group])
        except columns.UNREADABLE as problem:
            reason = f"row group {group}: {type(problem).__name__}: {str(problem)[:200]}"
            yield RowBatch(rows=no_rows(), unreadable={part.name: reason})
            continue
        yield from _of_table(raw, part, spec, 0, before)


def _of_records(
    records: Sequence[Mapping[str, Any]], part: Part, spec: Spec, before: _Before, damaged: int = 0
) -> Iterator[RowBatch]:
    """Rows of parsed objects, one by one, some thousand at a time: an object may hold any number of them."""
    if spec.rows == "episode":
        made = [row for record in records for row in shapes.of_episode(record)]
        raw = {name: column_of(name, [row.get(name) for row in made]) for name in CANONICAL if name != "tool_calls"}
        yield rows_of(raw, len(made), part, spec, None, damaged)
        return
    names = [*spec.paths, *(["group"] if spec.folded and "group" not in spec.columns else [])]
    rows: list[dict[str, Any]] = []
    held_out: list[bool] = []
    characters = 0
    before.duplicates, before.damaged = 0, damaged

    def counted() -> RowBatch:
        raw = {name: column_of(name, [row.get(name) for row in rows]) for name in names}
        batch = rows_of(raw, len(rows), part, spec, held_out if spec.eval_key else None, before.damaged)
        return replace(batch, duplicates=before.duplicates)

    for record in records:
        for row in _rows_of_record(record, spec, before):
            rows.append(row)
            held_out.append(spec.eval_key in record)
            characters += _characters(row.get("prompt"))
            if len(rows) >= ROWS_AT_ONCE or characters > 2 * BLOCK_BYTES:
                yield counted()
                rows, held_out, characters = [], [], 0
                before.duplicates = before.damaged = 0
    yield counted()


def _rows_of_record(record: Mapping[str, Any], spec: Spec, before: _Before) -> Iterator[dict[str, Any]]:
    before.records += 1
    paths = spec.paths
    whole = "prompt" in paths and paths["prompt"] == paths.get("completion")
    many = paths.get("completion", "").rpartition(".")[2] in shapes.MANY
    characters = 0
    for place, flat in shapes.flattened(record, spec.within):
        if spec.written:
            flat |= {name: parsing.literal(value) for name in spec.written if isinstance(value := flat.get(name), str)}
        row = {name: walk(flat, path) for name, path in paths.items()}
        if whole:
            row["prompt"], row["completion"] = messages.split(row["completion"])
        if spec.grouped and row.get("group") is None:
            row["group"] = f"{before.records}{place}"
        if spec.folded:
            row = {name: shapes.listed(value) for name, value in row.items()}
        if not shapes.holds_several(row, many):
            characters += _characters(row.get("prompt")) if spec.within else 0
            if (many and row["completion"] == []) or characters > REPEATED_CHARACTERS:
                before.damaged += 1
            else:
                yield row
            continue
        count = len(row["completion"])
        if _characters(row.get("prompt")) * count > REPEATED_CHARACTERS:
            before.damaged += count
        elif not before.again(row):
            made = 0
            for one in shapes.exploded(row, f"{before.records}{place}"):
                made += 1
                yield one
            before.damaged += count - made


def _characters(prompt: Any) -> int:
    """Length of what is repeated for each completion; lists of prompts are not."""
    if isinstance(prompt, list):
        return sum(len(str(message.get("content"))) for message in messages.conversation(prompt) or ())
    return len(prompt) if isinstance(prompt, str) else 0


def _of_table(raw: pa.Table, part: Part, spec: Spec, damaged: int, before: _Before) -> Iterator[RowBatch]:
    if spec.folded:
        records = raw.to_pylist()
        yield from _of_records([columns.without_nulls(record) for record in records], part, spec, before, damaged)
        return
    made: dict[str, pa.Array] = {}
    for name, path in spec.paths.items():
        if path in raw.column_names:
            made[name] = typed(name, columns.flat(raw[path]))
        else:
            tops = list(dict.fromkeys(option.split(".")[0] for option in path.split("|")))
            there = raw.select([top for top in tops if top in raw.column_names])
            records = there.to_pylist() if there.num_columns else [{}] * len(raw)
            made[name] = column_of(name, [walk(record, path) for record in records])
    held_out = None
    if spec.eval_key and spec.eval_key in raw.column_names:
        held_out = raw[spec.eval_key].is_valid().to_pylist()
    yield rows_of(made, len(raw), part, spec, held_out, damaged)
