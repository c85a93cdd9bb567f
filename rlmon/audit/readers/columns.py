"""Columns of foreign tables turned into those of ``ROWS``, and files opened without trusting them."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rlmon.audit.readers.messages import BEGINS, SPOKEN, rendered, written
from rlmon.audit.run import ROWS
from rlmon.errors import ReadError
from rlmon.metrics.prompts import prompt_identity

UNREADABLE = (pa.ArrowException, OSError, ValueError, KeyError, TypeError, OverflowError, MemoryError, RecursionError)
"""What pyarrow, json and the file system raise for content that cannot be read."""
EXPANDED_BYTES = 1 << 30
"""What is read at once takes at most this much memory."""
VALUES = 50_000_000
"""Values of one column that are read at once, at most."""
LABEL_CHARACTERS = 80
TOKEN_IDS = re.compile(
    r"(?:completion|response|output|generat(?:ed|ion)|sampled|action)s?_(?:token_?)?(?:ids|tokens)$|^(?:token_ids|output_tokens)$",
    re.IGNORECASE,
)
"""Names of columns that hold what was written as token ids."""
STEP_NAMED = re.compile(
    r"[a-z_ /-]{0,40}?(?:step|iteration|iter|update|round|checkpoint|ckpt)s?[_ :=#/-]{0,4}(\d{1,15})",
    re.IGNORECASE | re.ASCII,
)
"""A step that stands as a name, such as ``global_step_7``."""


def inside(root: Path, path: Path) -> bool:
    """Whether ``path`` exists and lies in ``root`` once links are followed."""
    try:
        return path.resolve(strict=True).is_relative_to(root.resolve())
    except (OSError, RuntimeError):
        return False


def place_and_run(path: Path) -> tuple[Path, str]:
    """The place, and the name of one of its runs behind ``::``; empty where none is named, or it is part of a name."""
    place, separator, run = str(path).rpartition("::")
    return (Path(place), run) if separator and run and not path.exists() else (path, "")


def files_of(root: Path, folder: Path) -> list[os.DirEntry[str]]:
    """Regular files of ``folder`` in order of name; links out of ``root`` are passed over."""
    if not inside(root, folder):
        return []
    try:
        with os.scandir(folder) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
    except OSError:
        return []
    return [entry for entry in found if (not entry.is_symlink() or inside(root, Path(entry.path))) and entry.is_file()]


def read_parquet(path: Path, columns: Sequence[str] | None = None, row_groups: Sequence[int] | None = None) -> pa.Table:
    """A Parquet file or some of its row groups; ``columns`` that it has not are left out.

    Raises one of ``UNREADABLE`` for damage, and ``ReadError`` (an ``OSError``) where it would take more than
    ``EXPANDED_BYTES``.
    """
    with pq.ParquetFile(path) as file:
        names = file.schema_arrow.names
        wanted = names if columns is None else [name for name in columns if name in names]
        groups = list(range(file.num_row_groups) if row_groups is None else row_groups)
        if may_expand(file, groups, set(wanted)):
            return _read_carefully(path, file, groups, wanted)
        return file.read_row_groups(groups, columns=wanted, use_threads=False)


def may_expand(file: pq.ParquetFile, groups: Sequence[int], columns: set[str]) -> bool:
    """Whether a few stored bytes may stand for more than ``EXPANDED_BYTES``.

    A value that repeats is stored once, in a dictionary: a kilobyte on disk can become a gigabyte. The product of the
    number of values and the stored bytes bounds what comes out.
    """
    bound = 0
    for group in groups:
        described = file.metadata.row_group(group)
        for index in range(described.num_columns):
            column = described.column(index)
            if column.path_in_schema.split(".")[0] not in columns:
                continue
            if column.num_values > VALUES or column.total_uncompressed_size > EXPANDED_BYTES:
                raise ReadError(
                    f"{column.num_values} values in {column.total_uncompressed_size} bytes, more than is read at once"
                )
            bound += column.num_values * column.total_uncompressed_size
    return bound > EXPANDED_BYTES


def _read_carefully(path: Path, file: pq.ParquetFile, groups: list[int], columns: list[str]) -> pa.Table:
    """The same, a few rows at a time and with repeated strings kept once, until they are too much."""
    kinds = {name: file.schema_arrow.field(name).type for name in columns}
    flat = [name for name, kind in kinds.items() if pa.types.is_string(kind) or pa.types.is_large_string(kind)]
    nested = any(pa.types.is_nested(kind) for kind in kinds.values())
    taken = 0
    batches = []
    with pq.ParquetFile(path, read_dictionary=flat) as careful:
        for batch in careful.iter_batches(16 if nested else 1024, groups, columns, use_threads=False):
            for name in columns:
                column = batch.column(name)
                if pa.types.is_dictionary(column.type):
                    lengths = pc.binary_length(column.dictionary).take(column.indices)
                    taken += pc.sum(pc.cast(lengths, pa.int64())).as_py() or 0
                else:
                    taken += column.nbytes
            if taken > EXPANDED_BYTES:
                raise ReadError(f"expands to more than {EXPANDED_BYTES >> 20} MiB")
            batches.append(
                pa.record_batch([batch.column(name).cast(kinds[name]) for name in flat], names=flat)
                if len(flat) == len(columns)
                else pa.record_batch(
                    [
                        batch.column(name).cast(kind) if name in flat else batch.column(name)
                        for name, kind in kinds.items()
                    ],
                    names=list(kinds),
                )
            )
    return pa.Table.from_batches(batches, schema=None if batches else pa.schema(list(kinds.items())))


def flat(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    """The column in one piece, dictionaries resolved."""
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)
        if isinstance(column, pa.ChunkedArray):
            column = pa.concat_arrays(column.chunks)
    return column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column


def text_column(column: pa.ChunkedArray | pa.Array, *, completion: bool = False) -> pa.Array:
    """Prompts or completions as strings; conversations rendered, whatever cannot be one as JSON.

    Conversations may have been written out: messages in the strings are decoded before anything reads a format there.
    """
    column = flat(column)
    kind = column.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return written_out(_valid(column.cast(pa.string())), completion=completion)
    if pa.types.is_null(kind):
        return column.cast(pa.string())
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return written_out(_valid(column), completion=completion)
    if pa.types.is_primitive(kind):
        return column.cast(pa.string())
    quick = _conversations(column, completion)
    if quick is not None:
        return quick
    # Parquet gives every message the fields of all of them: those that it does not have are null.
    return strings([rendered(without_nulls(value), completion=completion) for value in column.to_pylist()])


def written_out(texts: pa.Array, *, completion: bool) -> pa.Array:
    """The strings, conversations that were written out in them decoded and rendered."""
    begun = pc.fill_null(pc.match_substring_regex(texts, BEGINS), False)
    if not pc.any(begun, min_count=0).as_py():
        return texts
    values: list[str | None] = []
    for text, looks in zip(texts.to_pylist(), begun.to_pylist(), strict=True):
        messages = written(text) if looks else None
        values.append(text if messages is None else rendered(messages, completion=completion))
    return strings(values)


def _valid(column: pa.Array) -> pa.Array:
    """Strings that are UTF-8: Parquet promises it and nobody checks."""
    if pa.types.is_string(column.type):
        try:
            column.validate(full=True)
            return column
        except pa.ArrowInvalid:
            column = column.cast(pa.binary())
    return strings([None if value is None else value.decode("utf-8", "replace") for value in column.to_pylist()])


def strings(values: Sequence[str | None]) -> pa.Array:
    """Python strings as Arrow strings; halves of surrogate pairs, which no encoding has, become question marks."""
    try:
        return pa.array(values, pa.string())
    except (UnicodeEncodeError, pa.ArrowInvalid):
        return pa.array(
            [None if value is None else value.encode("utf-8", "replace").decode() for value in values], pa.string()
        )


def _conversations(column: pa.Array, completion: bool) -> pa.Array | None:
    """Lists of plain role and content messages rendered without a Python object a row; ``None``: not that plain."""
    kind = column.type
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind)) or not pa.types.is_struct(kind.value_type):
        return None
    messages = column.flatten()
    fields = {field.name: index for index, field in enumerate(kind.value_type)}
    if not {"role", "content"} <= fields.keys() or messages.null_count:
        return None
    role, content = (pc.struct_field(messages, [fields[name]]) for name in ("role", "content"))
    for part in (role, content):
        if not (pa.types.is_string(part.type) or pa.types.is_large_string(part.type)) or part.null_count:
            return None
    role, content = _valid(role.cast(pa.string())), _valid(content.cast(pa.string()))
    for name in fields.keys() & set(SPOKEN[1:]):
        # What was thought and which tools were called is text too.
        said = pc.struct_field(messages, [fields[name]])
        if said.null_count != len(said):
            return None
    if completion:
        if not pc.all(pc.equal(role, "assistant"), min_count=0).as_py():
            return None
        parts = content
    else:
        parts = pc.binary_join_element_wise(role, content, ": ")
    lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False)
    offsets = np.zeros(len(column) + 1, np.int32)
    np.cumsum(lengths, out=offsets[1:])
    joined = pc.binary_join(pa.ListArray.from_arrays(pa.array(offsets), parts), "\n")
    return pc.if_else(column.is_null(), pa.scalar(None, pa.string()), joined) if column.null_count else joined


def conversation_ids(column: pa.Array, texts: pa.Array) -> pa.Array | None:
    """Identity of conversational prompts as the monitor makes it, one hash per different text.

    ``None`` for plain prompts: the hash of the text is the same.
    """
    if not pa.types.is_nested(column.type):
        return None
    encoded = texts.dictionary_encode()
    codes = encoded.indices
    firsts = np.full(len(encoded.dictionary), -1)
    numbered = pc.fill_null(codes, -1).to_numpy(zero_copy_only=False)
    firsts[numbered[::-1]] = np.arange(len(numbered))[::-1]
    prompts = column.take(pa.array(firsts)).to_pylist() if len(firsts) else []
    return pa.array([prompt_identity(without_nulls(prompt)) for prompt in prompts], pa.string()).take(codes)


def without_nulls(value: Any, depth: int = 0) -> Any:
    """A value as it was before Parquet gave all objects of a list all fields."""
    if depth > 16:
        return value
    if isinstance(value, Mapping):
        return {key: without_nulls(item, depth + 1) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [without_nulls(item, depth + 1) for item in value]
    return value


def number_column(column: pa.ChunkedArray | pa.Array, read: Callable[[Any], float | None] | None = None) -> pa.Array:
    """Floats; text that is no number (to ``read``, by default ``number``) and other kinds of values become null."""
    read = number if read is None else read
    column = flat(column)
    kind = column.type
    if pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind) or pa.types.is_null(kind):
        return column.cast(pa.float64(), safe=False)
    if pa.types.is_decimal(kind):
        return column.cast(pa.float64())
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        column = _valid(column)
    return pa.array([read(value) for value in column.to_pylist()], pa.float64())


def number(value: Any) -> float | None:
    """A float; ``None`` for what is none. Numbers written as text count, in the spellings of JSON and CSV."""
    if isinstance(value, bool):
        return float(value)
    if not isinstance(value, (int, float, str)) or (isinstance(value, str) and len(value) > 40):
        return None
    try:
        return float(value)
    except (ValueError, OverflowError):
        return None


def decode_first(column: str) -> str:
    """What to say where completions are token ids."""
    return (
        f"completions are here as token ids, under {column!r}: decode them first (tokenizer.batch_decode) and write "
        "the texts under 'completion'"
    )


def step_number(value: Any) -> float | None:
    """A step as a float, also from a name such as ``step_7``."""
    named = STEP_NAMED.fullmatch(value) if isinstance(value, str) and len(value) <= LABEL_CHARACTERS else None
    return number(value) if named is None else float(named[1])


def label(value: Any) -> str | None:
    """A value as the name of a stratum or group."""
    if value is None:
        return None
    if isinstance(value, str):
        return value[:LABEL_CHARACTERS]
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return json.dumps(value, ensure_ascii=False, default=str)[:LABEL_CHARACTERS]


def label_column(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    """Names of strata, cut to ``LABEL_CHARACTERS``."""
    column = flat(column)
    if pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type):
        column = _valid(column)
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type) or pa.types.is_null(column.type):
        return pc.utf8_slice_codeunits(_valid(column.cast(pa.string())), 0, LABEL_CHARACTERS)
    if pa.types.is_floating(column.type):
        # JSON has one kind of number: 3.0 names the group that 3 names.
        with contextlib.suppress(pa.ArrowInvalid):
            column = column.cast(pa.int64())
    if pa.types.is_integer(column.type):
        return column.cast(pa.string())
    return strings([label(value) for value in column.to_pylist()])


def rewards_map(rewards: Mapping[str, pa.Array], rows: int) -> pa.Array:
    """The map column of several reward functions; null where a function gave none."""
    names = list(rewards)
    if not names:
        return pa.nulls(rows, ROWS.field("rewards").type)
    offsets = pa.array(np.arange(rows + 1, dtype=np.int32) * len(names))
    keys = pa.array(names, pa.string()).take(pa.array(np.tile(np.arange(len(names)), rows)))
    # Row by row: first all functions of row 0, ...
    order = (np.arange(len(names))[None, :] * rows + np.arange(rows)[:, None]).ravel()
    items = pa.concat_arrays([rewards[name] for name in names]).take(pa.array(order))
    return pa.MapArray.from_arrays(offsets, keys, items)


def weighted_sum(rewards: Mapping[str, pa.Array], weights: Mapping[str, float], rows: int) -> pa.Array:
    """What the trainer maximised: the sum of the rewards that were given, times their weights; null where none was."""
    total = np.zeros(rows)
    given = np.zeros(rows, bool)
    with np.errstate(invalid="ignore", over="ignore"):
        for name, column in rewards.items():
            present = column.is_valid().to_numpy(zero_copy_only=False)
            values = pc.fill_null(column, 0.0).to_numpy(zero_copy_only=False)
            total += np.where(present, values * weights.get(name, 1.0), 0.0)
            given |= present
    return pa.array(total, pa.float64(), mask=~given)


def prompt_names(prompts: pa.Array) -> pa.Array:
    """A short name per prompt, equal for equal prompts, also in other batches."""
    encoded = prompts.dictionary_encode()
    named = [None if text is None else prompt_identity(text) for text in encoded.dictionary.to_pylist()]
    return pa.array(named, pa.string()).take(encoded.indices)


def runs_of(prompts: pa.Array) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Rows at which another prompt begins, the first row included."""
    if not len(prompts):
        return np.zeros(0, np.int64)
    codes = pc.fill_null(prompts.dictionary_encode().indices, -1).to_numpy(zero_copy_only=False)
    return np.flatnonzero(np.concatenate([[True], codes[1:] != codes[:-1]])).astype(np.int64)


def table(columns: Mapping[str, pa.Array | None]) -> pa.Table:
    """A table in the schema ``ROWS`` of the columns that there are."""
    present = {name: column for name, column in columns.items() if column is not None}
    fields = [ROWS.field(name) for name in ROWS.names if name in present]
    return pa.Table.from_arrays([present[field.name].cast(field.type) for field in fields], schema=pa.schema(fields))
