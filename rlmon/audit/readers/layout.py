"""Where the columns of rows lie in files of JSON lines, JSON, Parquet and CSV, and which part of a file is read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

import rlmon.audit.readers.columns as columns
from rlmon.audit.run import Lack

CANONICAL = (
    "prompt", "completion", "reward", "step", "group", "advantage", "source", "split", "truncated",
    "completion_tokens", "prompt_id", "tool_calls",
)  # fmt: skip
PART = "reward/"
"""Stands before the name of a single reward among the canonical columns."""
FORMATS = re.compile(r"\.(jsonl|ndjson|json|csv|parquet)(\.gz|\.zst)?$", re.ASCII | re.IGNORECASE)


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


def format_of(name: str) -> tuple[str, str]:
    """``json``, ``jsonl``, ``csv`` or ``parquet``, and how it is compressed (empty: not)."""
    match = FORMATS.search(name)
    kind, packed = (match[1].lower(), (match[2] or "").lower()) if match else ("jsonl", "")
    return "jsonl" if kind == "ndjson" else kind, packed


STEP_LIMIT = 1 << 53


def whole(value: Any) -> int | None:
    """A step as a whole number, also from a name such as ``step_7``; ``None`` for what is none."""
    number = columns.step_number(value)
    return int(number) if number is not None and 0 <= number < STEP_LIMIT and number == int(number) else None
