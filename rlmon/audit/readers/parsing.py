"""Values out of text and records that nobody vouches for: bounded, and data only."""

from __future__ import annotations

import ast
import json
import re
import warnings
from collections.abc import Mapping
from typing import Any

from rlmon.errors import ReadError

PARSED_BYTES = 512 << 20
"""What one JSON value takes in memory, at most, by an estimate that errs upwards."""
LITERAL_CHARACTERS = 1 << 20
"""A longer Python literal is not parsed: its parser takes many times its size."""


def loads(text: str, **options: Any) -> Any:
    """``json.loads``. Raises ``ReadError`` for a value that might take more than ``PARSED_BYTES``: an object of eight
    characters is kept in 250 bytes, so a file within all other limits could fill the memory thirty times over."""
    if 256 * text.count("{") + 96 * text.count("[") + 64 * text.count(",") > PARSED_BYTES:
        raise ReadError("has too many objects in one JSON value; write a JSON object a line (.jsonl)")
    return json.loads(text, **options)


def literal(text: str) -> Any:
    """The value that was written out in ``text``, as JSON or as Python's ``repr``; ``None`` where it is neither."""
    try:
        return loads(text)
    except (ValueError, RecursionError, MemoryError, ReadError):
        pass
    if len(text) > LITERAL_CHARACTERS:
        return None
    text = text.strip()
    if text.startswith("array("):  # NumPy's repr, as pandas writes it into CSV
        text = text[len("array(") :].rpartition("]")[0] + "]"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)  # of escapes such as \\d, which mean themselves
            # Items of a NumPy array stand on lines of their own, without commas; a line break inside quotes is \\n.
            return ast.literal_eval(text.replace("}\n {", "}, {"))
    except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
        return None


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


def single(value: Any) -> Any:
    """One number of a list of equal ones: an advantage or reward that was written per token."""
    return value[-1] if isinstance(value, list) and value else value
