"""A state as JSON types and back: dataclasses of numbers, texts, tuples and mappings. Floats survive exactly."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np

State = TypeVar("State")


def to_json(state: Any) -> Any:
    """What ``from_json`` reads: a dataclass as a mapping of its fields, a mapping with integers for keys as a list of
    pairs, everything else as it is."""
    return _plain(state, type(state))


def from_json(kind: type[State], found: Any) -> State:
    """The dataclass of this kind that ``to_json`` described. Raises where it is something else."""
    made: State = _made(found, kind)
    return made


def _has_fields(kind: Any) -> bool:
    return dataclasses.is_dataclass(kind)


@functools.cache
def _fields(kind: Any) -> Mapping[str, Any]:
    hints = get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def _plain(value: Any, hint: Any) -> Any:
    kind: Any = type(value)
    if _has_fields(kind):
        return {name: _plain(getattr(value, name), inside) for name, inside in _fields(kind).items()}
    inside = get_args(hint)
    if isinstance(value, Mapping) and inside:
        pairs = [(key, _plain(item, inside[1])) for key, item in value.items()]
        return [list(pair) for pair in pairs] if inside[0] is int else dict(pairs)
    if type(value) is dict:
        return {key: _plain(item, type(item)) for key, item in value.items()}
    if type(value) is list:
        return [_plain(item, type(item)) for item in value]
    if isinstance(value, np.generic):  # what arithmetic on the rows of a round gives
        return value.item()
    return [_plain(item, inside[0]) for item in value] if isinstance(value, tuple) and inside else value


def _made(found: Any, hint: Any) -> Any:
    origin, inside = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return found if found is None or len(inside) > 2 else _made(found, inside[0])
    if _has_fields(hint):
        return hint(**{name: _made(found[name], one) for name, one in _fields(hint).items()})
    if origin is Mapping:
        pairs = found if inside[0] is int else found.items()
        return {inside[0](key): _made(item, inside[1]) for key, item in pairs}
    if origin is tuple:
        each = inside[:1] * len(found) if inside[-1] is Ellipsis else inside
        return tuple(_made(item, one) for item, one in zip(found, each, strict=True))
    return hint(found) if hint in (int, float) else found
