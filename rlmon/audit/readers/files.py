"""Rows of JSON lines, JSON, Parquet and CSV files, by a specification of where their columns lie."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json
import pyarrow.parquet as pq

from rlmon.audit.readers import columns
from rlmon.audit.run import Lack, RowBatch
from rlmon.errors import ReadError

CANONICAL = (
    "prompt", "completion", "reward", "step", "group", "advantage", "source", "split", "truncated",
    "completion_tokens", "prompt_id",
)  # fmt: skip
FORMATS = re.compile(r"\.(jsonl|ndjson|json|csv|parquet)(\.gz|\.zst)?$", re.ASCII | re.IGNORECASE)
COMPRESSION = {"": None, ".gz": "gzip", ".zst": "zstd"}
EVAL_WORDS = frozenset({"eval", "evaluation", "val", "valid", "validation", "test", "dev"})
CUT_WORDS = frozenset({"length", "max_tokens", "max_length", "truncated", "max_new_tokens", "true", "1"})
BLOCK_BYTES = 8 << 20
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
    """File of scalars, a JSON object a line with a ``step``."""
    scalar_prefixes: tuple[str, ...] = ()
    """The first of these that a key of that file begins with tells the tool."""
    lacks: Mapping[Lack, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    kinds: tuple[tuple[str, pa.DataType], ...] | None = None
    """Types of the top-level keys that are used, as probed; ``None``: lines are read one by one."""


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
        for part in self.parts:
            try:
                yield from _read_part(part, self.spec)
            except columns.UNREADABLE as problem:
                reason = f"{type(problem).__name__}: {str(problem)[:200]}"
                yield RowBatch(rows=_no_rows(), unreadable={part.name: reason})


def format_of(name: str) -> tuple[str, str]:
    """``json``, ``jsonl``, ``csv`` or ``parquet``, and how it is compressed (empty: not)."""
    match = FORMATS.search(name)
    kind, packed = (match[1].lower(), (match[2] or "").lower()) if match else ("jsonl", "")
    return "jsonl" if kind == "ndjson" else kind, packed


def walk(record: Any, path: str) -> Any:
    """The value at a dotted path, or ``None``; a key that is there as it is written comes first."""
    if isinstance(record, Mapping) and path in record:
        return record[path]
    if "|" in path:
        return next((value for option in path.split("|") if (value := walk(record, option)) is not None), None)
    value = record
    for name in path.split("."):
        if isinstance(value, Mapping):
            value = value.get(name)
        elif isinstance(value, list) and re.fullmatch(r"-?\d{1,9}", name, re.ASCII):
            index = int(name)
            value = value[index] if -len(value) <= index < len(value) else None
        else:
            return None
    return value


# Reading


def _read_part(part: Part, spec: Spec) -> Iterator[RowBatch]:
    kind, packed = format_of(part.name)
    if kind == "parquet":
        yield from _read_parquet(part, spec)
    elif kind == "csv":
        for raw, damaged in csv_batches(part, spec):
            yield _of_table(raw, part, spec, damaged)
    elif kind == "json":
        yield _of_records(json_records(part, packed), part, spec)
    else:
        for block, passed_over in blocks(part, packed, BLOCK_BYTES):
            yield _of_block(block, part, spec, passed_over)


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
    """A line as an object; ``None`` for what is none."""
    line = line.strip().removeprefix(b"\xef\xbb\xbf")
    if not line:
        return None
    try:
        # A damaged byte is a damaged character, as in Parquet, and not a lost row.
        value = columns.loads(line.decode("utf-8", "replace"))
    except (ValueError, RecursionError, MemoryError, ReadError):
        return None
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


def _of_block(block: bytes, part: Part, spec: Spec, passed_over: int) -> RowBatch:
    """The rows of some lines: parsed at once, or line by line where they are not all as the first ones were."""
    quick = _parsed_at_once(block, spec)
    if quick is not None:
        return _of_table(quick, part, spec, passed_over)
    lines = [line for line in block.split(b"\n") if line.strip()]
    records = [record for line in lines if (record := record_of(line)) is not None]
    return _of_records(records, part, spec, passed_over + len(lines) - len(records))


def _read_parquet(part: Part, spec: Spec) -> Iterator[RowBatch]:
    paths = [path for path in [*spec.columns.values(), spec.eval_key] if path]
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
        yield _of_table(raw, part, spec, 0)


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
    wanted = None if spec is None else {*spec.columns.values(), spec.eval_key}
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
    value = columns.loads(raw.decode("utf-8", "replace"))
    if isinstance(value, dict) and isinstance(value.get("columns"), list) and isinstance(value.get("data"), list):
        names = [str(name) for name in value["columns"]]
        return [dict(zip(names, row, strict=False)) for row in value["data"] if isinstance(row, list)]
    if isinstance(value, dict):
        value = next((rows for rows in value.values() if isinstance(rows, list) and rows), [])
    return [row for row in value if isinstance(row, dict)] if isinstance(value, list) else []


# From records and tables to rows


def _of_records(records: Sequence[Mapping[str, Any]], part: Part, spec: Spec, damaged: int = 0) -> RowBatch:
    """Rows of parsed objects, one by one."""
    if spec.rows == "episode":
        made = [row for record in records for row in _rows_of_episode(record)]
        names: Sequence[str] = CANONICAL
        values: dict[str, list[Any]] = {name: [row.get(name) for row in made] for name in names}
    else:
        names = list(spec.columns)
        values = {name: [walk(record, spec.columns[name]) for record in records] for name in names}
        made = list(records)  # type: ignore[arg-type]
    held_out = [spec.eval_key in record for record in records] if spec.eval_key else None
    raw = {name: _array(name, column) for name, column in values.items()}
    return _rows(raw, len(made), part, spec, held_out, damaged)


def _array(name: str, values: Sequence[Any]) -> pa.Array:
    """A canonical column of Python values."""
    if name in ("prompt", "completion"):
        return columns.strings([columns.rendered(value, completion=name == "completion") for value in values])
    if name in ("reward", "advantage", "step"):
        return pa.array([columns.number(_single(value)) for value in values], pa.float64())
    if name == "completion_tokens":
        return pa.array([len(v) if isinstance(v, list) else columns.number(v) for v in values], pa.float64())
    return columns.strings([_word(value) for value in values])


def _single(value: Any) -> Any:
    """One number of a list of equal ones: an advantage or reward that was written per token."""
    return value[-1] if isinstance(value, list) and value else value


def _word(value: Any) -> str | None:
    return str(value).lower() if isinstance(value, bool) else columns.label(value)


def _of_table(raw: pa.Table, part: Part, spec: Spec, damaged: int) -> RowBatch:
    """Rows of a table of the file's own columns."""
    made: dict[str, pa.Array] = {}
    for name, path in spec.columns.items():
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
    return _rows(made, len(raw), part, spec, held_out, damaged)


def _typed(name: str, column: pa.Array) -> pa.Array:
    """A canonical column of an Arrow column of any type."""
    if name in ("prompt", "completion"):
        return columns.text_column(column, completion=name == "completion")
    if pa.types.is_nested(column.type):
        return _array(name, column.to_pylist())
    if name in ("reward", "advantage", "step", "completion_tokens"):
        return columns.number_column(column)
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
    if content:
        good &= np.logical_or.reduce(content)
    of_eval = _held_out(made.get("split"), part, spec, held_out, count)
    rows: dict[str, pa.Array | None] = {
        "step": pa.array(np.where(good, step, 0).astype(np.int64)),
        "split": pc.if_else(pa.array(of_eval), "eval", "train"),
        "reward": made.get("reward"),
        "advantage": made.get("advantage"),
        "prompt": made.get("prompt"),
        "completion": made.get("completion"),
        "prompt_id": made.get("prompt_id"),
        "source": made.get("source"),
        "group": _group(made.get("group"), made.get("prompt"), spec),
        "truncated": _cut(made.get("truncated")),
        "completion_tokens": _counts(made.get("completion_tokens")),
    }
    table = columns.table({name: column for name, column in rows.items() if column is not None})
    lost = int(count - good.sum())
    return RowBatch(rows=table.filter(pa.array(good)) if lost else table, damaged=damaged + lost)


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


def _rows_of_episode(episode: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """One row per trace of a verifiers episode: what was sampled is the completion, what stood before it the prompt."""
    traces = episode.get("traces")
    for trace in traces if isinstance(traces, list) else []:
        if not isinstance(trace, Mapping):
            continue
        raw = trace.get("nodes")
        nodes = [node for node in raw if isinstance(node, Mapping)] if isinstance(raw, list) else []
        begin = next((index for index, node in enumerate(nodes) if node.get("sampled")), len(nodes))
        sampled = [node for node in nodes[begin:] if node.get("sampled")]
        prompt = [node["message"] for node in nodes[:begin] if isinstance(node.get("message"), Mapping)]
        written = [node["message"] for node in sampled if isinstance(node.get("message"), Mapping)]
        ids = [node.get("token_ids") for node in sampled]
        yield {
            "prompt": prompt or None,
            "completion": written or None,
            "reward": _episode_reward(trace),
            "group": walk(episode, "group.id"),
            "source": walk(episode, "env.id|env.name|env"),
            "advantage": _single(walk(sampled[-1], "advantages")) if sampled else None,
            "completion_tokens": sum(map(len, ids)) if ids and all(isinstance(i, list) for i in ids) else None,  # type: ignore[arg-type]
            "truncated": walk(trace, "is_truncated|stop_condition"),
        }


def _episode_reward(trace: Mapping[str, Any]) -> float | None:
    """Weighted sum of a trace's rewards."""
    given = trace.get("rewards")
    if not isinstance(given, Mapping):
        return columns.number(trace.get("reward"))
    total = None
    for reward in given.values():
        score = columns.number(walk(reward, "score") if isinstance(reward, Mapping) else reward)
        weight = columns.number(reward.get("weight")) if isinstance(reward, Mapping) else None
        if score is not None:
            total = (total or 0.0) + score * (1.0 if weight is None else weight)
    return total


def whole(value: Any) -> int | None:
    number = columns.number(value)
    return int(number) if number is not None and 0 <= number < STEP_LIMIT and number == int(number) else None
