"""Records as JSON lines and back.

Written lines are plain ASCII, hold no NaN or infinity (they become null, and a metric gets a reason), and floats are
written with the digits that read back to the same float. Reading keeps fields that it knows, ignores those that it
does not (a newer minor version may add some), and takes a line that does not parse for one torn by a crash.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from rlmon.errors import RunLogError
from rlmon.records import Block, StepRecord
from rlmon.runlog.text import MARK, restore_text, stored_text

TORN = b"<torn>\n"
"""Ends a line that a crash left without its newline: the line can then never be taken for a record."""

_ESCAPED_SURROGATE = "\\ud"
_ESCAPED_MARK = json.dumps(MARK)[1:-1].encode("ascii")

Record = TypeVar("Record")


def dump_line(value: Any) -> bytes:
    """``value`` as one line of ASCII JSON, newline included. Never raises for odd values: see ``plain``."""
    return dump(value).encode("ascii") + b"\n"


def dump(value: Any, *, indent: int | None = None) -> str:
    """``value`` as strict JSON in ASCII: records become objects, NaN and infinities become null."""
    try:
        text = json.dumps(value, allow_nan=False, default=_jsonable, indent=indent)
    except (ValueError, TypeError, RecursionError):
        return json.dumps(plain(value), allow_nan=False, indent=indent)
    if _ESCAPED_SURROGATE in text:
        # Rare: text beyond the basic plane, perhaps with half a pair, which other JSON readers refuse.
        return json.dumps(plain(value), allow_nan=False, indent=indent)
    return text


def _jsonable(value: Any) -> Any:
    """What ``json`` should encode instead of ``value``; the fast path for records and mappings."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {name: getattr(value, name) for name in field_names(type(value))}
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, (bytes, bytearray)):
        return bytes(value).decode("utf-8", "backslashreplace")
    if isinstance(value, Sequence):
        return list(value)
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, (set, frozenset)):
        return sorted(value, key=str)
    return str(value)


def plain(value: Any, depth: int = 0) -> Any:
    """``value`` from JSON types alone, with null for NaN and infinities and all text in its stored form."""
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, str):
        return stored_text(str(value))
    if depth > 64:
        return "<too deep>"
    if isinstance(value, Mapping):
        return {stored_text(str(key)): plain(item, depth + 1) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item, depth + 1) for item in value]
    return plain(_jsonable(value), depth + 1)


def as_stored(record: StepRecord) -> StepRecord:
    """``record`` exactly as a reader will give it back.

    A metric that is not finite becomes ``None`` with a reason in ``missing``; a block statistic that is not finite is
    left out. Detectors that fold this record live see what an audit will fold later.
    """
    metrics = {name: _number(value) for name, value in record.metrics.items()}
    lost = {
        name: f"the value was {float(value)}"
        for name, value in record.metrics.items()
        if value is not None and metrics[name] is None
    }
    blocks = tuple(
        dataclasses.replace(
            block,
            source=str(block.source),
            stats={name: number for name, value in block.stats.items() if (number := _number(value)) is not None},
        )
        for block in record.blocks
    )
    return dataclasses.replace(
        record,
        rounds=tuple(int(r) for r in record.rounds),
        metrics=metrics,
        missing={**record.missing, **lost},
        blocks=blocks,
        faults=dict(record.faults),
        overhead_seconds=_number(record.overhead_seconds),
    )


def _number(value: Any) -> float | None:
    if value is None:
        return None
    number = value if type(value) is float or type(value) is int else float(value)
    return number if math.isfinite(number) else None


def parse_line(line: bytes) -> dict[str, Any] | None:
    """The object on one line; ``None`` where the line was torn by a crash."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict):
        return None
    return restored(value) if _ESCAPED_MARK in line else value


def restored(value: Any) -> Any:
    """``value`` with all text as it was before it was stored."""
    if isinstance(value, str):
        return restore_text(value)
    if isinstance(value, dict):
        return {restore_text(key): restored(item) for key, item in value.items()}
    if isinstance(value, list):
        return [restored(item) for item in value]
    return value


def iter_lines(path: Path) -> Iterator[bytes]:
    """Every line that ends in a newline, without it. Nothing where there is no file."""
    try:
        fd = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
    except FileNotFoundError:
        return
    with os.fdopen(fd, "rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                yield line[:-1]


@cache
def field_names(record_type: Any) -> tuple[str, ...]:
    """Names of the fields of a record, in order."""
    return tuple(f.name for f in dataclasses.fields(record_type))


@cache
def _required(record_type: Any) -> tuple[str, ...]:
    none = dataclasses.MISSING
    return tuple(f.name for f in dataclasses.fields(record_type) if f.default is none and f.default_factory is none)


def build(record_type: type[Record], values: Mapping[str, Any]) -> Record:
    """A record from an object read back; fields that it does not know are ignored. ``RunLogError`` if one lacks."""
    kind: Any = record_type
    missing = [name for name in _required(kind) if name not in values]
    if missing:
        lacking = ", ".join(missing)
        raise RunLogError(f"a {record_type.__name__} in the run log lacks {lacking}; rlmon did not write it.")
    return record_type(**{name: values[name] for name in field_names(kind) if name in values})


def build_step(values: Mapping[str, Any]) -> StepRecord:
    """A ``StepRecord`` with its blocks; sequences are tuples."""
    blocks: Iterable[Mapping[str, Any]] = values.get("blocks") or ()
    return build(
        StepRecord,
        {**values, "rounds": tuple(values.get("rounds", ())), "blocks": tuple(build(Block, block) for block in blocks)},
    )
