"""Arrow schemas rendered from the records, columns turned into tables, and migration on read."""

from __future__ import annotations

import math
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, Literal, Union

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rlmon.errors import SchemaError
from rlmon.records import SCHEMA_VERSION, Pass, Rollout
from rlmon.runlog.text import MARK, stored_text

TABLES: Mapping[str, type] = {"rollouts": Rollout, "passes": Pass}
"""Folder of the run directory to the record that its rows hold."""

VERSION_KEY = b"rlmon.schema_version"
RECORD_KEY = b"rlmon.record"

IDENTITY = frozenset({"attempt", "round", "split", "global_row", "step"})
"""Columns that a row cannot do without; all others may be null (``store_text`` leaves some out)."""

TEXT_COLUMNS = ("prompt", "completion")
SKETCH_COLUMNS = ("template_key", "answer_key", "opening_key", "openers", "opener_weights")
ROW_GROUP_ROWS = 16_384
_DICTIONARY_COLUMNS = (
    *("split", "prompt_id", "source", "prompt", "mode", "reasoning_mode", "segment"),
    "rewards.key_value.key",
)
_LARGE_COLUMNS = frozenset({"prompt", "completion", "prompt_id", "source", "openers", "opener_weights"})
SORT_KEYS = ("attempt", "split", "round", "global_row")


@cache
def arrow_schema(record_type: type) -> pa.Schema:
    """Arrow schema of a record's rows, with the schema version in its metadata.

    ``str`` and literals are strings, ``int`` is int64, ``float`` is double, sequences of int and float are lists of
    int32 and float (they are hashed buckets and shares), a mapping to numbers is ``map<string, double>``.
    """
    hints = typing.get_type_hints(record_type)
    fields = [pa.field(name, arrow_type(hint), nullable=name not in IDENTITY) for name, hint in hints.items()]
    return pa.schema(fields, metadata={VERSION_KEY: str(SCHEMA_VERSION).encode(), RECORD_KEY: record_type.__name__})


def arrow_type(hint: Any) -> pa.DataType:
    """Arrow type of one annotation. Raises ``TypeError`` for one that has no column form."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        (inner,) = (a for a in arguments if a is not type(None))
        return arrow_type(inner)
    if hint is str or origin is Literal:
        return pa.string()
    if hint is bool:
        return pa.bool_()
    if hint is int:
        return pa.int64()
    if hint is float:
        return pa.float64()
    if origin is Mapping or (isinstance(origin, type) and issubclass(origin, Mapping)):
        return pa.map_(pa.string(), arrow_type(arguments[1]))
    if isinstance(origin, type) and issubclass(origin, Sequence):
        narrow = {int: pa.int32(), float: pa.float32()}
        return pa.list_(narrow.get(arguments[0]) or arrow_type(arguments[0]))
    raise TypeError(f"no column type for {hint!r}")


def table_from_columns(record_type: type, columns: Mapping[str, Sequence[Any] | None]) -> pa.Table:
    """A table in the record's schema from columns of equal length.

    A column that is absent or ``None`` is all null; NaN and infinities become null; text takes its stored form.
    Raises ``ValueError`` for an unknown column, for lengths that differ, and where an identity column is missing or
    holds a null.
    """
    schema = arrow_schema(record_type)
    rows = row_count(record_type, columns)
    arrays = []
    for field in schema:
        values = columns.get(field.name)
        array = pa.nulls(rows, field.type) if values is None else _array(values, field.type)
        if not field.nullable and array.null_count:
            raise ValueError(f"column {field.name!r} has {array.null_count} nulls of {rows}; every row needs it")
        arrays.append(array)
    return pa.Table.from_arrays(arrays, schema=schema)


def row_count(record_type: type, columns: Mapping[str, Sequence[Any] | None]) -> int:
    """Rows in ``columns``. Raises ``ValueError`` where they do not fit together or are not the record's."""
    known = arrow_schema(record_type).names
    unknown = sorted(set(columns) - set(known))
    if unknown:
        raise ValueError(f"{record_type.__name__} has no column {', '.join(unknown)}")
    lengths = {name: len(values) for name, values in columns.items() if values is not None}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"columns of {record_type.__name__} differ in length: {lengths}")
    return next(iter(lengths.values()), 0)


def _array(values: Sequence[Any], kind: pa.DataType) -> pa.Array | pa.ChunkedArray:
    """``values`` as an Arrow array; what cannot be converted becomes null."""
    if pa.types.is_map(kind):
        return _map_array(values, kind)
    try:
        if pa.types.is_string(kind):
            return _string_array(values)
        array = pa.array(values, type=kind)
    except (pa.ArrowException, TypeError, ValueError, OverflowError):
        array = pa.array([_coerced(value, kind) for value in values], type=kind)
    return _finite(array)


def _string_array(values: Sequence[Any]) -> pa.Array | pa.ChunkedArray:
    try:
        array = pa.array(values, type=pa.string())
    except (UnicodeEncodeError, TypeError, ValueError):  # pa.ArrowInvalid is a ValueError
        pass
    else:
        if not pc.any(pc.starts_with(array, MARK), min_count=0).as_py():
            return array
    return pa.array([None if value is None else stored_text(_text(value)) for value in values], type=pa.string())


def _text(value: Any) -> str:
    return value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else str(value)


def _map_array(values: Sequence[Mapping[str, Any] | None], kind: pa.DataType) -> pa.Array:
    offsets: list[int] = [0]
    keys: list[Any] = []
    items: list[Any] = []
    for row in values:
        if row:
            keys.extend(row)
            items.extend(row.values())
        offsets.append(len(keys))
    return pa.MapArray.from_arrays(
        pa.array(offsets, type=pa.int32()), _string_array(keys), _array(items, kind.item_type), type=kind
    )


def _finite(array: pa.Array) -> pa.Array:
    """``array`` with null for NaN and infinities, also inside lists."""
    kind = array.type
    if pa.types.is_floating(kind):
        finite = pc.is_finite(array)
        if pc.all(finite, skip_nulls=True, min_count=0).as_py():
            return array
        return pc.if_else(finite, array, pa.scalar(None, kind))
    if pa.types.is_list(kind) and pa.types.is_floating(kind.value_type) and isinstance(array, pa.ListArray):
        flat = array.flatten()
        if not pc.all(pc.is_finite(flat), skip_nulls=True, min_count=0).as_py():
            rows = [None if r is None else [_coerced(v, kind.value_type) for v in r] for r in array.to_pylist()]
            return pa.array(rows, type=kind)
    return array


def _coerced(value: Any, kind: pa.DataType) -> Any:
    """One value in a Python type that ``kind`` takes, or ``None``."""
    if value is None:
        return None
    try:
        if pa.types.is_list(kind):
            return [_coerced(item, kind.value_type) for item in value]
        if pa.types.is_boolean(kind):
            return bool(value)
        if pa.types.is_integer(kind):
            number = int(value)
            return number if -(1 << (kind.bit_width - 1)) <= number < 1 << (kind.bit_width - 1) else None
        real = float(value)
        return real if math.isfinite(real) else None
    except (TypeError, ValueError, OverflowError):
        return None


class Migration(typing.NamedTuple):
    """How one schema version becomes the next. Each function takes and returns data of the folder or file named."""

    rows: Callable[[str, pa.Table], pa.Table]
    """``(folder, table) -> table`` for ``rollouts`` and ``passes``."""
    line: Callable[[str, dict[str, Any]], dict[str, Any]]
    """``(name, object) -> object`` for ``header``, ``step`` and ``event``."""


def _rows_of_schema_1(folder: str, table: pa.Table) -> pa.Table:
    """Schema 1 logged only what was trained."""
    if folder != "rollouts":
        return table
    return table.append_column("trained", pa.repeat(pa.scalar(True), len(table)))


MIGRATIONS: dict[int, Migration] = {1: Migration(rows=_rows_of_schema_1, line=lambda name, values: values)}
"""Version to the step that leads to the next one. Files are never rewritten."""


def migrations_from(version: int, what: str) -> list[Migration]:
    """The steps from ``version`` to the current one. Raises ``SchemaError`` where there is no way."""
    if version > SCHEMA_VERSION:
        raise SchemaError(
            f"{what} was written by schema {version}; this rlmon reads up to schema {SCHEMA_VERSION}. "
            "Type `pip install -U rlmon`, or choose another directory with rlmon_dir."
        )
    missing = [v for v in range(version, SCHEMA_VERSION) if v not in MIGRATIONS]
    if missing:
        raise SchemaError(
            f"{what} was written by schema {version}; this rlmon reads schema {min(MIGRATIONS, default=SCHEMA_VERSION)}"
            f" to {SCHEMA_VERSION}. Read it with the rlmon version that wrote it (see packages in run.json), or choose "
            "another directory with rlmon_dir."
        )
    return [MIGRATIONS[v] for v in range(version, SCHEMA_VERSION)]


def migrate_line(name: str, values: dict[str, Any], what: str) -> dict[str, Any]:
    """``values`` (a header, step or event with its own ``schema_version``) in today's form."""
    version = values.get("schema_version", SCHEMA_VERSION)
    if version == SCHEMA_VERSION:
        return values
    if not isinstance(version, int):
        raise SchemaError(f"{what} has schema version {version!r}; a whole number was needed.")
    for migration in migrations_from(version, what):
        values = migration.line(name, values)
    return {**values, "schema_version": SCHEMA_VERSION}


def file_version(metadata: Mapping[bytes, bytes] | None, what: str) -> int:
    """Schema version in the metadata of a Parquet file. Raises ``SchemaError`` where there is none."""
    try:
        return int((metadata or {})[VERSION_KEY])
    except (KeyError, ValueError):
        raise SchemaError(f"{what} carries no rlmon schema version; it was not written by rlmon.") from None


def conform(table: pa.Table, record_type: type, columns: Sequence[str]) -> pa.Table:
    """``columns`` of ``table`` in the record's types; absent ones are null, unknown ones are left out."""
    schema = arrow_schema(record_type)
    arrays = []
    for name in columns:
        kind = schema.field(name).type
        if name in table.column_names:
            column = table.column(name)
            arrays.append(column if column.type.equals(kind) else column.cast(kind))
        else:
            arrays.append(pa.chunked_array([pa.nulls(len(table), kind)]))
    return pa.Table.from_arrays(arrays, names=list(columns))


def parquet_bytes(table: pa.Table, *, small_codec: str) -> memoryview:
    """The table as a Parquet file in memory: zstd, dictionaries for columns that repeat.

    ``small_codec``: for the columns of numbers and short words. Starting zstd for each of them costs a part of 256
    rows 0.4 ms and saves 10 kB, so that parts take snappy there and segments zstd.
    """
    names = set(table.column_names)
    sink = pa.BufferOutputStream()
    pq.write_table(
        table,
        sink,
        compression={path: "zstd" if name in _LARGE_COLUMNS else small_codec for name, path in _leaves(table.schema)},
        use_dictionary=[name for name in _DICTIONARY_COLUMNS if name.split(".")[0] in names],
        write_statistics=[name for name in ("attempt", "round", "step", "global_row") if name in names],
        row_group_size=ROW_GROUP_ROWS,
    )
    return memoryview(sink.getvalue())


@cache
def _leaves(table_schema: pa.Schema) -> list[tuple[str, str]]:
    """Column names with the paths of what Parquet stores for them."""
    leaves = []
    for field in table_schema:
        if pa.types.is_map(field.type):
            leaves += [(field.name, f"{field.name}.key_value.{part}") for part in ("key", "value")]
        elif pa.types.is_list(field.type):
            leaves.append((field.name, f"{field.name}.list.element"))
        else:
            leaves.append((field.name, field.name))
    return leaves
