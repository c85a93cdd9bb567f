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
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from rlmon.errors import RunLogError
from rlmon.records import BaseSample, Block, StepRecord
from rlmon.runlog.text import MARK, restore_text, stored_text

TORN = b"<torn>\n"
"""Ends a line that a crash left without its newline: the line can then never be taken for a record."""

_ESCAPED_SURROGATE = "\\ud"
_ESCAPED_MARK = json.dumps(MARK)[1:-1].encode("ascii")

MAX_INTEGER = (1 << 63) - 1

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
    return dataclasses.replace(
        record,
        rounds=tuple(int(r) for r in record.rounds),
        metrics=metrics,
        missing={**record.missing, **lost},
        blocks=_stored_blocks(record.blocks),
        base=None if record.base is None else as_stored_base(record.base),
        sources={str(key): str(name) for key, name in record.sources.items()},
        faults=dict(record.faults),
        overhead_seconds=_number(record.overhead_seconds),
    )


def as_stored_base(sample: BaseSample) -> BaseSample:
    """A sample of the base exactly as a reader will give it back, in the record that holds it."""
    return dataclasses.replace(sample, blocks=_stored_blocks(sample.blocks))


def _stored_blocks(blocks: Sequence[Block]) -> tuple[Block, ...]:
    return tuple(
        dataclasses.replace(
            block,
            source=str(block.source),
            stats={name: number for name, value in block.stats.items() if (number := _number(value)) is not None},
        )
        for block in blocks
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


def checked(record: Record) -> Record:
    """The record, whose fields have the types of their annotations. ``RunLogError`` where one has not: a log may come
    from anybody, and what is computed from it relies on them."""
    kind: Any = type(record)
    for name, kinds in _hints(kind).items():
        value = getattr(record, name)
        if not _fits(value, kinds):
            said = f"{name}={value!r:.80}"
            raise RunLogError(f"a {kind.__name__} in the run log has {said}; rlmon did not write it.")
    return record


@cache
def _hints(record_type: Any) -> Mapping[str, _Kinds | None]:
    return {name: _kinds(hint) for name, hint in typing.get_type_hints(record_type).items()}


@dataclasses.dataclass(frozen=True, slots=True)
class _Kinds:
    """Types that a value may have, and those of the values inside it (``None``: any)."""

    types: frozenset[type]
    inside: frozenset[type] | None = None


def _kinds(hint: Any) -> _Kinds | None:
    """What JSON makes of an annotation; ``None``: anything."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return None
    if origin is typing.Literal:
        # A newer version may know more words.
        return _Kinds(frozenset({str}))
    if origin in (typing.Union, types.UnionType):
        found = [_kinds(argument) for argument in arguments]
        inside = next((kinds.inside for kinds in found if kinds is not None and kinds.inside is not None), None)
        return _Kinds(frozenset().union(*(kinds.types for kinds in found if kinds is not None)), inside)
    if origin is not None:
        item = _kinds(arguments[-1])
        kept = {dict} if issubclass(origin, Mapping) else {list, tuple}
        return _Kinds(frozenset(kept), None if item is None else item.types)
    # A float that was not finite was written as null, and 1.0 may come back as 1.
    return _Kinds(frozenset({int, float, type(None)} if hint is float else {hint}))


def _fits(value: Any, kinds: _Kinds | None) -> bool:
    """Whether ``value`` has the types of an annotation, and its numbers are such that rlmon could have written them."""
    if kinds is None:
        return True
    if type(value) not in kinds.types:
        return False
    if isinstance(value, (dict, list, tuple)):
        if kinds.inside is None:
            return True
        inner = value.values() if isinstance(value, dict) else value
        return {type(item) for item in inner} <= kinds.inside and all(map(_in_range, inner))
    return _in_range(value)


def _in_range(value: Any) -> bool:
    if type(value) is int:
        return -MAX_INTEGER <= value <= MAX_INTEGER
    return type(value) is not float or math.isfinite(value)


def build_step(values: Mapping[str, Any]) -> StepRecord:
    """A ``StepRecord`` with its blocks and those of a sample of the base; sequences are tuples."""
    rounds, base = values.get("rounds", ()), values.get("base")
    if not isinstance(rounds, (list, tuple)):
        raise RunLogError(f"a StepRecord in the run log has rounds={rounds!r:.80}; rlmon did not write it.")
    if not isinstance(base, (dict, types.NoneType)):
        raise RunLogError(f"a StepRecord in the run log has base={base!r:.80}; rlmon did not write it.")
    sample = None if base is None else build(BaseSample, {**base, "blocks": _built_blocks(base.get("blocks"))})
    built = _built_blocks(values.get("blocks"))
    return build(StepRecord, {**values, "rounds": tuple(rounds), "blocks": built, "base": sample})


def _built_blocks(blocks: Any) -> tuple[Block, ...]:
    blocks = blocks or ()
    if not (isinstance(blocks, (list, tuple)) and all(isinstance(block, dict) for block in blocks)):
        raise RunLogError(f"a StepRecord in the run log has blocks={blocks!r:.80}; rlmon did not write it.")
    return tuple(build(Block, block) for block in blocks)


def checked_step(record: StepRecord) -> StepRecord:
    """As ``checked``, its blocks and its sample of the base too."""
    if record.base is not None:
        checked(record.base)
    for block in (*record.blocks, *(() if record.base is None else record.base.blocks)):
        checked(block)
    return checked(record)
