"""What files hold, packed or not: blocks of lines, tables of CSV, objects of JSON. What swells is refused."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

import rlmon.audit.readers.columns as columns
from rlmon.audit.readers.layout import Part, Spec, format_of
from rlmon.audit.readers.parsing import loads
from rlmon.errors import ReadError

COMPRESSION = {"": None, ".gz": "gzip", ".zst": "zstd"}
BLOCK_BYTES = 8 << 20
LINE_BYTES = 64 << 20
"""A line that is longer is passed over and counted."""
JSON_BYTES = 128 << 20
EXPANSION = 100
"""A compressed file that gives more than this times its size, and more than ``FREE_BYTES``, is not read on."""
FREE_BYTES = 64 << 20
FREE_LINES = 2 << 20
"""Nor is one with more lines than this and than it has bytes: a line costs time however little stands in it."""


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
    limit, lines_limit = max(FREE_BYTES, EXPANSION * part.bytes), max(FREE_LINES, part.bytes)
    total = lines = 0
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
            lines += sum(piece.count(b"\n") for piece in pieces)
            if pieces:
                yield b"".join(pieces)
            if problem is not None:
                yield ReadError(f"cannot be decompressed to its end: {problem}")
                return
            if held < size:
                return
            if total > limit or lines > lines_limit:
                beyond = f"{limit >> 20} MiB" if total > limit else f"{lines_limit} lines"
                advice = "decompress it if that is what it should do"
                yield ReadError(f"expands to more than {beyond} from {part.bytes} bytes; {advice}")
                return


def record_of(line: bytes) -> dict[str, Any] | None:
    """A line as an object; ``None`` for what is none. A list of objects is one that holds them as ``rows``."""
    line = line.strip().removeprefix(b"\xef\xbb\xbf")
    if not line:
        return None
    try:
        # A damaged byte is a damaged character, as in Parquet, and not a lost row.
        value = loads(line.decode("utf-8", "replace"))
    except (ValueError, RecursionError, MemoryError, ReadError):
        return None
    if isinstance(value, list) and value and all(isinstance(row, dict) for row in value):
        return {"rows": value}
    return value if isinstance(value, dict) else None


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
    value = loads(raw.decode("utf-8", "replace").removeprefix("\ufeff"))
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
