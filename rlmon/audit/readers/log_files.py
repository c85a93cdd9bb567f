"""Files of curves, whatever they are called: JSON, JSON lines, CSV, Parquet or a console log, as log calls.

What a file is, its first and last 64 KiB tell. A log call is a mapping of a trainer's keys to what it logged.
"""

from __future__ import annotations

import contextlib
import csv
import functools
import gzip
import io
import itertools
import json
import re
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, cast

import pyarrow as pa
import pyarrow.parquet as pq

import rlmon.audit.aliases as aliases
import rlmon.audit.readers.columns as columns
import rlmon.audit.readers.console_log as console_log
from rlmon.audit.readers.raw import EXPANSION, FREE_BYTES
from rlmon.audit.readers.table_layout import UnreadableTable, parse_json
from rlmon.errors import ReadError

SNIFFED_BYTES = 1 << 16
UNPACKED_BYTES = 1 << 20
"""Of what a packed file begins with: its end cannot be looked at."""
MAX_BYTES = 128 << 20
"""A larger file is not read, packed or not."""
MAX_VALUES = 1 << 24
"""Numbers of a Parquet file that are read, at most."""
LINE_CHARACTERS = 4 << 20
"""A longer line is passed over."""

Kind = Literal["json", "lines", "csv", "parquet", "console"]
_PACKED = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
_MARKS = {b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
_KEY = re.compile(r'"((?:[^"\\]|\\.){1,200})"\s*:')
_STRING = re.compile(r'"((?:[^"\\]|\\.){1,200})"')
_COLUMNS = re.compile(r'"columns"\s*:\s*\[([^\]]*)\]')
_JSON = re.compile(r'\s*(?:\[\s*[\[{]|\{\s*["}])')
_EXPORTED = re.compile(r"(.+) - (.+?)(__MIN|__MAX)?", re.DOTALL)
"""A column of the table that W&B's web page saves: name of the run, key."""
_WITH_UNIT = re.compile(
    r"(.+?)\s*[\[(]\s*(?:%|percent|pct|share|fraction|nats?|tok(?:en)?s?|char(?:acter)?s?|words?|steps?|s|sec(?:onds)?|ms)"
    r"(?:\s*(?:/|per)\s*\w{1,12})?\s*[\])]",
    re.IGNORECASE,
)
"""A key with its unit behind it, as own loggers write it. What else stands in brackets names another curve."""
RUN_COLUMNS = ("run_name", "run_id", "run", "experiment", "experiment_name", "exp_name", "Run")
"""Columns that say which of several runs a log call is of, by descending claim."""
_MARKDOWN = re.compile(r"^[ \t]*(\|[^\n]{1,4096}\|)[ \t\r]*\n[ \t]*\|[ \t:|-]{3,4096}\|?[ \t\r]*$", re.MULTILINE)
"""A table of Markdown: names of columns above a line of dashes."""
_CONTAINERS = frozenset({"data", "metrics", "logs", "log", "scalars", "values"})
_NAMES = ("key", "tag", "metric", "name")
"""Columns of the key in a table with a row a value."""
_INDEX = re.compile(r"\d{1,9}")
_DEPTH = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class LogFile:
    """A file that holds curves."""

    path: Path
    kind: Kind
    packed: str | None
    encoding: str
    delimiter: str = ","
    above: int = 0
    """Lines above the names of a table's columns."""
    columns: tuple[str, ...] = ()
    """Of a CSV file."""
    known: frozenset[str] = frozenset()
    """Keys of trainers that its ends have."""
    run_column: str = ""
    """What says which run a log call is of; empty: nothing does."""


@dataclass(kw_only=True, slots=True)
class Damage:
    """What of a file could not be read."""

    lines: int = 0
    torn: str = ""
    """Why the file was not read to its end."""


def recognised(path: Path) -> LogFile | None:
    """The file as one of curves; ``None`` where its ends show none. At most 128 KiB are read."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            raw = file.read(SNIFFED_BYTES)
            tail = b""
            if size > 2 * SNIFFED_BYTES:
                file.seek(size - SNIFFED_BYTES)
                tail = file.read(SNIFFED_BYTES)
    except (OSError, ValueError):
        return None
    if raw.startswith(b"PAR1"):
        return _parquet(path)
    packed = next((kind for magic, kind in _PACKED.items() if raw.startswith(magic)), None)
    if packed is not None:
        raw, tail = _unpacked(raw, packed), b""
    encoding = _MARKS.get(raw[:2], "utf-8-sig")
    if encoding == "utf-8-sig" and b"\0" in raw:
        return None
    text = raw.decode(encoding, "replace")
    if _JSON.match(text):
        names = _KEY.findall(text) + _STRING.findall(" ".join(_COLUMNS.findall(text)))
        known = frozenset(filter(aliases.says_something, map(_plain, names)))
        kind: Kind = "lines" if _has_objects_as_lines(text) else "json"
        if not known:
            return None
        return LogFile(
            path=path, kind=kind, packed=packed, encoding=encoding, known=known, run_column=_run_column(names)
        )
    table = _MARKDOWN.search(text)
    above = 0 if table is None else text.count("\n", 0, table.start())
    head = text.partition("\n")[0] if table is None else table[1]
    delimiter = max(",\t;", key=head.count) if table is None else "|"
    with contextlib.suppress(csv.Error):
        names = next(csv.reader([head], delimiter=delimiter), [])
        known = frozenset(filter(aliases.says_something, map(_plain, [*names, *_keys_below(text, names, delimiter)])))
        if known and (len(names) > 1 or len(text.split("\n")) > 2) and "{" not in head:
            return LogFile(
                path=path, kind="csv", packed=packed, encoding=encoding, delimiter=delimiter, above=above,
                columns=tuple(names),
                known=known, run_column=_run_column([name.strip("\ufeff \t") for name in names]),
            )  # fmt: skip
    calls = console_log.log_calls(_split(text) + _split(tail.decode(encoding, "replace")))
    seen = Counter(key for call in itertools.islice(calls, 50) for key in call if aliases.says_something(key))
    # A log says the same again and again; a dict in a program or a text stands there once.
    known = frozenset(key for key, count in seen.items() if count > 1)
    return LogFile(path=path, kind="console", packed=packed, encoding=encoding, known=known) if known else None


def log_calls(file: LogFile, damage: Damage) -> Iterator[Mapping[str, Any]]:
    """The log calls of a file in their order, names of runs in front where one file holds several.

    Raises ``ReadError`` where nothing of it can be read.
    """
    try:
        if file.kind == "parquet":
            yield from _of_parquet(file.path, file.run_column)
            return
        size = file.path.stat().st_size
        if size > MAX_BYTES:
            raise ReadError(f"{str(file.path)!r} has more than {MAX_BYTES >> 20} MiB. Keep fewer keys or steps of it.")
        limit = size if file.packed is None else min(MAX_BYTES, max(FREE_BYTES, EXPANSION * size))
        with _opened(file) as text:
            if file.kind == "json":
                content = text.read(limit + 1)
                if len(content) > limit:
                    raise ReadError(f"{str(file.path)!r} expands to more than {limit >> 20} MiB; unpack it first.")
                yield from _of_json(content, str(file.path))
            elif file.kind == "lines":
                yield from _of_lines(_lines(text, limit, damage), damage)
            elif file.kind == "csv":
                yield from _of_csv(
                    itertools.islice(_lines(text, limit, damage), file.above, None), file.delimiter, damage
                )
            else:
                yield from console_log.log_calls(_lines(text, limit, damage))
    except ReadError:
        raise
    except (*columns.UNREADABLE, EOFError, zlib.error, csv.Error) as problem:
        damage.torn = f"{type(problem).__name__}: {str(problem)[:200]}"


@functools.lru_cache(maxsize=4_096)
def run_and_key(column: str) -> tuple[str, str]:
    """Run and key of a column that W&B's web page saved; no run, and the key itself, of any other."""
    column = column.replace(" / ", "/")  # as tables in notebooks show them
    match = _EXPORTED.fullmatch(column)
    if match is None or not (aliases.says_something(match[2]) or "/" in match[2] or match[2].startswith("_")):
        return "", _without_unit(column.strip("\ufeff \t"))
    return match[1], "" if match[3] else match[2]


def _without_unit(key: str) -> str:
    """The key without a unit in brackets, where trainers know it so."""
    match = _WITH_UNIT.fullmatch(key)
    return match[1] if match is not None and aliases.says_something(match[1]) else key


def _run_column(names: Sequence[str]) -> str:
    return next((column for column in RUN_COLUMNS if column in names), "")


def _plain(column: str) -> str:
    return run_and_key(column)[1]


def _keys_below(text: str, names: Sequence[str], delimiter: str) -> list[str]:
    """The keys in the rows of a table with a row a value."""
    at = _place_of_key(names)
    if at is None:
        return []
    return [row[at] for row in csv.reader(text.split("\n")[1:], delimiter=delimiter) if len(row) == len(names)]


def _place_of_key(names: Sequence[str]) -> int | None:
    lower = [name.strip("\ufeff \t").lower() for name in names]
    return next((lower.index(name) for name in _NAMES if name in lower and "value" in lower), None)


def _split(text: str) -> list[str]:
    return text.replace("\r", "\n").split("\n")


def _has_objects_as_lines(text: str) -> bool:
    """Whether some of the first lines, of several, are JSON objects of their own."""
    lines = [line for line in text.split("\n") if line.strip()]
    if len(lines) < 2 or not text.lstrip().startswith("{"):
        return False
    for line in lines[:5]:
        with contextlib.suppress(ValueError, RecursionError):
            if isinstance(json.loads(line), dict):
                return True
    return False


def _unpacked(raw: bytes, packed: str) -> bytes:
    """The beginning of what some packed bytes hold."""
    if packed == "gzip":
        with contextlib.suppress(zlib.error):
            return zlib.decompressobj(wbits=31).decompress(raw, UNPACKED_BYTES)
        return b""
    pieces: list[bytes] = []
    # The end of the bytes is missing: what comes before the error counts.
    with contextlib.suppress(*columns.UNREADABLE), pa.CompressedInputStream(pa.BufferReader(raw), packed) as stream:
        while len(pieces) * 4_096 < UNPACKED_BYTES and (piece := stream.read(4_096)):
            pieces.append(piece)
    return b"".join(pieces)


@contextlib.contextmanager
def _opened(file: LogFile) -> Iterator[IO[str]]:
    """The file as text whose lines end at line feeds and carriage returns."""
    with contextlib.ExitStack() as held:
        raw: Any = held.enter_context(file.path.open("rb"))
        if file.packed == "gzip":
            raw = held.enter_context(gzip.GzipFile(fileobj=raw))
        elif file.packed is not None:
            raw = held.enter_context(pa.CompressedInputStream(raw, file.packed))
        yield held.enter_context(io.TextIOWrapper(raw, encoding=file.encoding, errors="replace", newline=None))


def _lines(text: IO[str], limit: int, damage: Damage) -> Iterator[str]:
    """Lines; those that are too long are passed over and counted."""
    read = 0
    while line := text.readline(LINE_CHARACTERS):
        read += len(line)
        if read > limit:
            damage.torn = f"it expands to more than {limit >> 20} MiB; unpack it first"
            return
        if len(line) < LINE_CHARACTERS or line.endswith("\n"):
            yield line
            continue
        damage.lines += 1
        while line and not line.endswith("\n") and read <= limit:
            line = text.readline(LINE_CHARACTERS)
            read += len(line)


def _of_lines(lines: Iterator[str], damage: Damage) -> Iterator[Mapping[str, Any]]:
    for line in lines:
        if not line.strip():
            continue
        try:
            value = parse_json(line)
        except UnreadableTable:
            damage.lines += 1
            continue
        if isinstance(value, dict):
            yield _flat(value)
        else:
            damage.lines += 1


def _of_csv(lines: Iterator[str], delimiter: str, damage: Damage) -> Iterator[Mapping[str, Any]]:
    rows = csv.reader(lines, delimiter=delimiter)
    header = [name.strip("\ufeff \t") for name in next(rows, [])]
    at = _place_of_key(header)
    value = next((i for i, name in enumerate(header) if name.lower() == "value"), 0)
    for row in rows:
        if delimiter == ";":  # where a comma parts the whole from its fraction
            row = [cell if "." in cell else cell.replace(",", ".", 1) for cell in row]
        if len(row) == len(header) and at is not None:
            shared = {name: row[i] for i, name in enumerate(header) if i not in (at, value)}
            yield {**shared, row[at]: row[value]}
        elif len(row) == len(header):
            yield {name: cell for name, cell in zip(header, row, strict=True) if cell.strip()}
        elif row:
            damage.lines += 1


def _of_parquet(path: Path, run_column: str) -> Iterator[Mapping[str, Any]]:
    with pq.ParquetFile(path) as file:
        numeric = [field.name for field in file.schema_arrow if _is_numeric(field.type)]
        values = len(numeric) * file.metadata.num_rows
        if values > MAX_VALUES:
            raise ReadError(f"{str(path)!r} has {values:,} numbers; at most {MAX_VALUES:,} are read.")
        wanted = [*numeric, *([run_column] if run_column and run_column not in numeric else [])]
        for batch in file.iter_batches(batch_size=8_192, columns=wanted):
            yield from batch.to_pylist()


def _parquet(path: Path) -> LogFile | None:
    try:
        schema = pq.read_schema(path)
    except columns.UNREADABLE:
        return None
    numeric = [field.name for field in schema if _is_numeric(field.type)]
    known = frozenset(filter(aliases.says_something, map(_plain, numeric)))
    column = _run_column(schema.names)
    return (
        LogFile(path=path, kind="parquet", packed=None, encoding="", known=known, run_column=column) if known else None
    )


def _is_numeric(kind: pa.DataType) -> bool:
    return bool(pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_decimal(kind))


def _of_json(text: str, name: str) -> Iterator[Mapping[str, Any]]:
    """Log calls of a JSON document: a list of them, a trainer state that holds one, or a table by columns."""
    try:
        value = parse_json(text)
    except UnreadableTable as problem:
        # Lines of JSON the first of which is damaged or laid out over several lines.
        raise ReadError(f"{name!r} is no JSON that can be read: {problem}.") from None
    calls = _list_of_calls(value)
    if calls is None:
        raise ReadError(f"{name!r} holds no list of log calls: no log_history, no columns of numbers.")
    for call in calls:
        if isinstance(call, dict):
            yield _flat(call)


def _list_of_calls(value: Any) -> list[Any] | None:
    if isinstance(value, list):
        return value
    if not isinstance(value, dict):
        return None
    if isinstance(value.get("log_history"), list):
        return cast(list[Any], value["log_history"])
    names, data = value.get("columns"), value.get("data")
    if isinstance(names, list) and isinstance(data, list):
        return [dict(zip(map(str, names), row, strict=False)) for row in data if isinstance(row, list)]
    by_column = {key: _column(inner) for key, inner in value.items()}
    table = {key: column for key, column in by_column.items() if column and not isinstance(column[0], (dict, list))}
    if any(aliases.says_something(_plain(key)) for key in table):
        return [dict(zip(table, row, strict=True)) for row in itertools.zip_longest(*table.values())]
    lists = [inner for inner in value.values() if isinstance(inner, list) and inner and isinstance(inner[0], dict)]
    inner = [found for part in value.values() if isinstance(part, dict) and (found := _list_of_calls(part))]
    if any(aliases.says_something(_plain(key)) for key in value) and not lists:
        return [value]
    return next(iter([*lists, *inner]), None)


def _column(value: Any) -> list[Any] | None:
    """A column of a table: a list, or what pandas writes, a mapping of row numbers."""
    if isinstance(value, list):
        return value
    if isinstance(value, dict) and value and all(isinstance(key, str) and _INDEX.fullmatch(key) for key in value):
        return [value[key] for key in sorted(value, key=int)]
    return None


def _flat(call: Mapping[str, Any], prefix: str = "", depth: int = 0) -> dict[str, Any]:
    """A log call without nesting: the parts of a key joined by slashes, names of mere containers left out."""
    found: dict[str, Any] = {}
    for key, value in call.items():
        if isinstance(value, dict) and "_type" in value:  # a table, picture or histogram of W&B
            continue
        if isinstance(value, dict) and depth < _DEPTH:
            inner = prefix if key in _CONTAINERS else f"{prefix}{key}/"
            found.update(_flat(value, inner, depth + 1))
        else:
            found[f"{prefix}{key}"] = value
    return found
