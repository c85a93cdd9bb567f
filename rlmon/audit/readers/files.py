"""Rows of JSON lines, JSON, Parquet and CSV files, by a specification of where their columns lie."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json
import pyarrow.parquet as pq

import rlmon.audit.readers.columns as columns
import rlmon.audit.readers.episodes as episodes
import rlmon.audit.readers.messages as messages
import rlmon.audit.readers.parsing as parsing
import rlmon.audit.readers.shapes as shapes
from rlmon.audit.readers.parsing import single, walk
from rlmon.audit.run import Lack, RowBatch
from rlmon.errors import ReadError

CANONICAL = (
    "prompt", "completion", "reward", "step", "group", "advantage", "source", "split", "truncated",
    "completion_tokens", "prompt_id", "tool_calls",
)  # fmt: skip
PART = "reward/"
"""Stands before the name of a single reward among the canonical columns."""
FORMATS = re.compile(r"\.(jsonl|ndjson|json|csv|parquet)(\.gz|\.zst)?$", re.ASCII | re.IGNORECASE)
COMPRESSION = {"": None, ".gz": "gzip", ".zst": "zstd"}
EVAL_WORDS = frozenset({"eval", "evaluation", "val", "valid", "validation", "test", "dev"})
CUT_WORDS = frozenset({"length", "max_tokens", "max_length", "truncated", "max_new_tokens", "true", "1"})
BLOCK_BYTES = 8 << 20
GATHERED_BYTES = 1 << 20
"""Batches are put together up to this size."""
ROWS_AT_ONCE = 1 << 14
REPEATED_CHARACTERS = 1 << 26
"""Of a prompt that stands once in a record and with each of its completions in the rows."""
LINE_BYTES = 64 << 20
"""A line that is longer is passed over and counted."""
JSON_BYTES = 128 << 20
EXPANSION = 100
"""A compressed file that gives more than this times its size, and more than ``FREE_BYTES``, is not read on."""
FREE_BYTES = 64 << 20
STEP_LIMIT = 1 << 53


@dataclass(frozen=True, kw_only=True, slots=True)
class Spec:
    """How rows lie in the files of one tool."""

    name: str
    columns: Mapping[str, str]
    """Canonical column to path."""
    rewards: Mapping[str, float] = field(default_factory=dict)
    """Path of a single reward to its weight; their sum is the reward where ``columns`` has none."""
    within: tuple[str, ...] = ()
    """Keys of the lists that rows are nested in, from the outside in."""
    grouped: bool = False
    """The rows that are nested in one record are a group."""
    folded: bool = False
    """Records hold several rows, nested or as lists: none is parsed column by column."""
    written: tuple[str, ...] = ()
    """Keys of objects that were written out as text, as CSV has them."""
    files: str = ""
    """Regular expression for names of files relative to the run; empty: every file of a known format."""
    keys: tuple[str, ...] = ()
    """Keys that the first record must have."""
    rows: str = "line"
    """``line``: a record is a row; ``episode``: it holds traces of nodes."""
    step_from_name: str = ""
    """Regular expression whose first group is the step of all rows of a file."""
    eval_from_name: str = ""
    """Regular expression that finds files of held-out rows."""
    eval_key: str = ""
    """A key that only held-out records have."""
    group_rsplit: str = ""
    """Separator before the last two parts of a group's name, which number its completions."""
    group_by_prompt: bool = False
    """Rows of one prompt are one group though they need not be neighbours: each prompt is drawn once a step."""
    scalars: str = ""
    """Regular expression for the name of the file of scalars, a JSON object a line."""
    scalar_step: str = "step"
    """Path of the step in it."""
    scalars_in_order: bool = False
    """Its lines are steps from 1 where none of them names one."""
    scalar_prefixes: tuple[str, ...] = ()
    """The first of these that a key of that file begins with tells the tool."""
    lacks: Mapping[Lack, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    kinds: tuple[tuple[str, pa.DataType], ...] | None = None
    """Types of the top-level keys that are used, as probed; ``None``: lines are read one by one."""

    @property
    def paths(self) -> dict[str, str]:
        """Canonical column to path, single rewards among them."""
        return {**self.columns, **{PART + path: path for path in self.rewards}}


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """A file or a range of it: bytes of JSON lines, row groups of Parquet."""

    path: str
    name: str
    start: int
    end: int
    bytes: int
    step: int | None = None
    """Step of all its rows, where the name says it."""


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
                yield RowBatch(rows=_no_rows(), unreadable={part.name: reason})


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


def format_of(name: str) -> tuple[str, str]:
    """``json``, ``jsonl``, ``csv`` or ``parquet``, and how it is compressed (empty: not)."""
    match = FORMATS.search(name)
    kind, packed = (match[1].lower(), (match[2] or "").lower()) if match else ("jsonl", "")
    return "jsonl" if kind == "ndjson" else kind, packed


# Reading


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


def blocks(part: Part, packed: str, size: int) -> Iterator[tuple[bytes, int]]:
    """Blocks of whole lines of about ``size`` bytes, and how many lines were passed over as too long.

    Raises ``ReadError`` for a compressed file that expands beyond all reason; what came before has been yielded then.
    """
    carry: list[bytes] = []
    carried = 0
    dropping = False
    lost = 0
    torn: ReadError | None = None
    for chunk in _chunks(part, packed, size):
        if isinstance(chunk, ReadError):
            torn = chunk
            break
        end = chunk.rfind(b"\n") + 1
        if dropping:
            begin = chunk.find(b"\n") + 1
            if not begin:
                continue
            dropping = False
            chunk, end = chunk[begin:], end - begin
        if end:
            yield b"".join([*carry, chunk[:end]]), lost
            lost, carry, carried, chunk = 0, [], 0, chunk[end:]
        carry.append(chunk)
        carried += len(chunk)
        if carried > LINE_BYTES:
            carry, carried, dropping = [], 0, True
            lost += 1
    if carried or lost:
        yield b"".join(carry), lost
    if torn is not None:
        raise torn


def _chunks(part: Part, packed: str, size: int) -> Iterator[bytes | ReadError]:
    """The bytes of a part, about ``size`` at a time; at the end of what can be read, why it is not the end."""
    if not packed:
        with open(part.path, "rb") as plain:
            plain.seek(part.start)
            left = part.end - part.start
            while left > 0 and (chunk := plain.read(min(size, left))):
                left -= len(chunk)
                yield chunk
        return
    limit = max(FREE_BYTES, EXPANSION * part.bytes)
    total = 0
    with pa.input_stream(part.path, compression=COMPRESSION[packed]) as stream:
        while True:
            pieces: list[bytes] = []
            held = 0
            problem: OSError | None = None
            # A read that fails gives nothing of what stood before the damage, hence small ones.
            while held < size:
                try:
                    piece = stream.read(min(size, 1 << 16))
                except OSError as error:
                    problem = error
                    break
                if not piece:
                    break
                pieces.append(piece)
                held += len(piece)
            total += held
            if pieces:
                yield b"".join(pieces)
            if problem is not None:
                yield ReadError(f"cannot be decompressed to its end: {problem}")
                return
            if held < size:
                return
            if total > limit:
                yield ReadError(_expands(part, limit))
                return


def _expands(part: Part, limit: int) -> str:
    return f"expands to more than {limit >> 20} MiB from {part.bytes} bytes; decompress it if that is what it should do"


def record_of(line: bytes) -> dict[str, Any] | None:
    """A line as an object; ``None`` for what is none. A list of objects is one that holds them as ``rows``."""
    line = line.strip().removeprefix(b"\xef\xbb\xbf")
    if not line:
        return None
    try:
        # A damaged byte is a damaged character, as in Parquet, and not a lost row.
        value = columns.loads(line.decode("utf-8", "replace"))
    except (ValueError, RecursionError, MemoryError, ReadError):
        return None
    if isinstance(value, list) and value and all(isinstance(row, dict) for row in value):
        return {"rows": value}
    return value if isinstance(value, dict) else None


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
            yield RowBatch(rows=_no_rows(), unreadable={part.name: reason})
            continue
        yield from _of_table(raw, part, spec, 0, before)


def csv_batches(part: Part, spec: Spec | None) -> Iterator[tuple[pa.Table, int]]:
    """Tables of text and the rows that had too many or too few fields. Nothing in a field is a formula here.

    ``spec``: only the columns that it names are kept.
    """
    csv.field_size_limit(LINE_BYTES)
    lost = [0]

    def lines() -> Iterator[str]:
        for block, passed_over in blocks(part, format_of(part.name)[1], BLOCK_BYTES):
            lost[0] += passed_over
            # Rows end at \n alone; the reader joins lines inside quotes again.
            for line in block.decode("utf-8", "replace").removesuffix("\n").split("\n"):
                yield line + "\n"

    rows = csv.reader(lines())
    try:
        header = [name.removeprefix("\ufeff") for name in next(rows, [])]
    except csv.Error as problem:
        raise ReadError(f"has no header that can be read: {problem}") from None
    wanted = None if spec is None else {*spec.paths.values(), *spec.written, spec.eval_key}
    kept = {name: index for index, name in enumerate(header) if wanted is None or name in wanted}
    held: list[list[str]] = []
    size = 0
    torn: ReadError | None = None
    while torn is None:
        try:
            row = next(rows, None)
        except csv.Error:
            lost[0] += 1
            continue
        except ReadError as problem:
            torn, row = problem, None
        if row is not None and len(row) == len(header):
            held.append(row)
            size += sum(map(len, row))
        elif row:
            lost[0] += 1
        if row is None or size > BLOCK_BYTES:
            yield pa.table({name: columns.strings([r[index] for r in held]) for name, index in kept.items()}), lost[0]
            held, size, lost[0] = [], 0, 0
        if row is None:
            break
    if torn is not None:
        raise torn


def json_records(part: Part, packed: str) -> list[dict[str, Any]]:
    """Objects of a JSON file: a list of them, or columns and rows as W&B tables have them."""
    limit = min(JSON_BYTES, max(FREE_BYTES, EXPANSION * part.bytes))
    with pa.input_stream(part.path, compression=COMPRESSION[packed]) as stream:
        raw = stream.read(limit + 1)
    if len(raw) > limit:
        raise ReadError(f"has more than {limit >> 20} MiB; write a JSON object a line (.jsonl)")
    value = columns.loads(raw.decode("utf-8", "replace").removeprefix("\ufeff"))
    if isinstance(value, dict) and isinstance(value.get("columns"), list) and isinstance(value.get("data"), list):
        names = [str(name) for name in value["columns"]]
        return [dict(zip(names, row, strict=False)) for row in value["data"] if isinstance(row, list)]
    if isinstance(value, dict):
        return _of_one_object(value)
    return [row for row in value if isinstance(row, dict)] if isinstance(value, list) else []


def _of_one_object(value: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows in an object: by step, by key, the only list of objects that it holds, or the object itself."""
    steps = [re.fullmatch(r"(?:global_)?(?:step|iteration|iter)?[_ -]?(\d{1,15})", key) for key in value]
    if value and all(steps):
        named = zip(steps, value.values(), strict=True)
        by_step = [(int(match[1]), rows if isinstance(rows, list) else [rows]) for match, rows in named if match]
        return [{"step": step, **row} for step, rows in by_step for row in rows if isinstance(row, dict)]
    if len(value) > 1 and all(isinstance(row, dict) for row in value.values()):
        orders = {tuple(row) for row in list(value.values())[:8]}
        if len(orders) == 1 and not (orders & {tuple(value)}) and all(key.isdecimal() for key in next(iter(orders))):
            # pandas writes a table as columns, and each as an object from the number of a row to its cell.
            return [{name: column.get(key) for name, column in value.items()} for key in next(iter(orders))]
        return list(value.values())
    lists = [rows for rows in value.values() if isinstance(rows, list) and rows and isinstance(rows[0], dict)]
    if len(value) == 1 and lists:
        return [row for row in lists[0] if isinstance(row, dict)]
    return [value]


# From records and tables to rows


def _of_records(
    records: Sequence[Mapping[str, Any]], part: Part, spec: Spec, before: _Before, damaged: int = 0
) -> Iterator[RowBatch]:
    """Rows of parsed objects, one by one, some thousand at a time: an object may hold any number of them."""
    if spec.rows == "episode":
        made = [row for record in records for row in episodes.rows_of(record)]
        raw = {name: _array(name, [row.get(name) for row in made]) for name in CANONICAL if name != "tool_calls"}
        yield _rows(raw, len(made), part, spec, None, damaged)
        return
    names = [*spec.paths, *(["group"] if spec.folded and "group" not in spec.columns else [])]
    rows: list[dict[str, Any]] = []
    held_out: list[bool] = []
    characters = 0
    before.duplicates, before.damaged = 0, damaged

    def counted() -> RowBatch:
        raw = {name: _array(name, [row.get(name) for row in rows]) for name in names}
        batch = _rows(raw, len(rows), part, spec, held_out if spec.eval_key else None, before.damaged)
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
    """Rows of one record by canonical names."""
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


def _array(name: str, values: Sequence[Any]) -> pa.Array:
    """A canonical column of Python values."""
    if name in ("prompt", "completion"):
        texts = columns.strings([columns.rendered(value, completion=name == "completion") for value in values])
        return columns.written_out(texts, completion=name == "completion")
    if name == "step":
        return pa.array([columns.step_number(single(value)) for value in values], pa.float64())
    if name in ("reward", "advantage") or name.startswith(PART):
        return pa.array([columns.number(single(value)) for value in values], pa.float64())
    if name == "tool_calls":
        return columns.strings([messages.rendered_calls(value) for value in values])
    if name == "completion_tokens":
        return pa.array([len(v) if isinstance(v, list) else columns.number(v) for v in values], pa.float64())
    return columns.strings([_word(value) for value in values])


def _word(value: Any) -> str | None:
    return str(value).lower() if isinstance(value, bool) else columns.label(value)


def _of_table(raw: pa.Table, part: Part, spec: Spec, damaged: int, before: _Before) -> Iterator[RowBatch]:
    """Rows of a table of the file's own columns."""
    if spec.folded:
        records = raw.to_pylist()
        yield from _of_records([columns.without_nulls(record) for record in records], part, spec, before, damaged)
        return
    made: dict[str, pa.Array] = {}
    for name, path in spec.paths.items():
        if path in raw.column_names:
            made[name] = _typed(name, columns.flat(raw[path]))
        else:
            tops = list(dict.fromkeys(option.split(".")[0] for option in path.split("|")))
            there = raw.select([top for top in tops if top in raw.column_names])
            records = there.to_pylist() if there.num_columns else [{}] * len(raw)
            made[name] = _array(name, [walk(record, path) for record in records])
    held_out = None
    if spec.eval_key and spec.eval_key in raw.column_names:
        held_out = raw[spec.eval_key].is_valid().to_pylist()
    yield _rows(made, len(raw), part, spec, held_out, damaged)


def _typed(name: str, column: pa.Array) -> pa.Array:
    """A canonical column of an Arrow column of any type."""
    if name in ("prompt", "completion"):
        return columns.text_column(column, completion=name == "completion")
    if pa.types.is_nested(column.type):
        return _array(name, column.to_pylist())
    if name == "step":
        return columns.step_column(column)
    if name in ("reward", "advantage", "completion_tokens") or name.startswith(PART):
        return columns.number_column(column)
    if name == "tool_calls":
        return _array(name, column.to_pylist())
    if pa.types.is_boolean(column.type):
        return column.cast(pa.string())
    return columns.label_column(column)


def _rows(
    made: Mapping[str, pa.Array], count: int, part: Part, spec: Spec, held_out: Sequence[bool] | None, damaged: int
) -> RowBatch:
    """The rows that have a step and anything to look at; the others are counted."""
    if not count:
        return RowBatch(rows=_no_rows(), damaged=damaged)
    if part.step is not None:
        step = np.full(count, float(part.step))
    elif "step" in spec.columns:
        step = made["step"].to_numpy(zero_copy_only=False) if "step" in made else np.full(count, np.nan)
    else:
        step = np.zeros(count)
    with np.errstate(invalid="ignore"):
        good = np.isfinite(step) & (step >= 0) & (step < STEP_LIMIT) & (np.floor(step) == step)
    content = [
        made[name].is_valid().to_numpy(zero_copy_only=False) for name in ("completion", "reward") if name in made
    ]
    blank = good & ~np.logical_or.reduce(content) if content else np.zeros(count, bool)
    good &= ~blank
    of_eval = _held_out(made.get("split"), part, spec, held_out, count)
    parts = {path: made[PART + path] for path in spec.rewards if PART + path in made}
    if parts and "reward" not in made:
        made = {**made, "reward": columns.weighted_sum(parts, spec.rewards, count)}
    rows: dict[str, pa.Array | None] = {
        "step": pa.array(np.where(good, step, 0).astype(np.int64)),
        "split": pc.if_else(pa.array(of_eval), "eval", "train"),
        "reward": made.get("reward"),
        "rewards": columns.rewards_map({shapes.short(path): part for path, part in parts.items()}, count)
        if parts
        else None,
        "advantage": made.get("advantage"),
        "prompt": made.get("prompt"),
        "completion": _with_calls(made.get("completion"), made.get("tool_calls")),
        "prompt_id": made.get("prompt_id"),
        "source": made.get("source"),
        "group": _group(made.get("group"), made.get("prompt"), spec),
        "truncated": _cut(made.get("truncated")),
        "completion_tokens": _counts(made.get("completion_tokens")),
    }
    table = columns.table({name: column for name, column in rows.items() if column is not None})
    lost = int(count - good.sum())
    return RowBatch(
        rows=table.filter(pa.array(good)) if lost else table,
        damaged=damaged + lost,
        blank=int(blank.sum()),
        blank_from=int(step[blank].min()) if blank.any() else None,
    )


def _with_calls(completion: pa.Array | None, calls: pa.Array | None) -> pa.Array | None:
    """What was written with the tool calls that stand beside it, where it does not hold them itself."""
    if completion is None or calls is None:
        return completion
    apart = pc.and_(calls.is_valid(), pc.invert(pc.fill_null(pc.match_substring(completion, "<tool_call>"), False)))
    both = pc.binary_join_element_wise(completion, calls, "\n", null_handling="skip")
    return pc.if_else(apart, pc.utf8_ltrim(both, characters="\n"), completion)


def _no_rows() -> pa.Table:
    return columns.table({"step": pa.array([], pa.int64()), "split": pa.array([], pa.string())})


def _held_out(
    split: pa.Array | None, part: Part, spec: Spec, held_out: Sequence[bool] | None, count: int
) -> np.ndarray[Any, np.dtype[np.bool_]]:
    if spec.eval_from_name and re.search(spec.eval_from_name, part.name):
        return np.ones(count, bool)
    of_eval = np.zeros(count, bool) if held_out is None else np.array(held_out, bool)
    if split is not None:
        words = pc.fill_null(pc.utf8_lower(split), "")
        first = pc.list_element(pc.split_pattern_regex(words, r"[^a-z]"), 0)
        of_eval |= pc.is_in(first, pa.array(sorted(EVAL_WORDS))).to_numpy(zero_copy_only=False)
    return of_eval


def _group(group: pa.Array | None, prompt: pa.Array | None, spec: Spec) -> pa.Array | None:
    if group is None and prompt is not None and spec.group_by_prompt:
        return columns.prompt_names(prompt)
    if group is None or not spec.group_rsplit:
        return group
    return pc.list_element(pc.split_pattern(group, spec.group_rsplit, max_splits=2, reverse=True), 0)


def _cut(reason: pa.Array | None) -> pa.Array | None:
    """Whether a completion was cut, from a truth value or from why it stopped."""
    if reason is None:
        return None
    cut = pc.is_in(pc.utf8_lower(reason), pa.array(sorted(CUT_WORDS)))
    return pc.if_else(reason.is_valid(), cut, pa.scalar(None, pa.bool_()))


def _counts(tokens: pa.Array | None) -> pa.Array | None:
    if tokens is None:
        return None
    values = pc.fill_null(tokens, -1.0).to_numpy(zero_copy_only=False)
    with np.errstate(invalid="ignore"):
        good = np.isfinite(values) & (values >= 0) & (values < STEP_LIMIT)
    return pa.array(np.where(good, values, 0).astype(np.int64), mask=~good)


def whole(value: Any) -> int | None:
    """A step as a whole number, also from a name such as ``step_7``; ``None`` for what is none."""
    number = columns.step_number(value)
    return int(number) if number is not None and 0 <= number < STEP_LIMIT and number == int(number) else None
