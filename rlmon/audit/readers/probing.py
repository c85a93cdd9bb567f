"""What the first records of files say of all: their shape, their types, and whether they tell their steps."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

import rlmon.audit.readers.columns as columns
import rlmon.audit.readers.folder as folder
import rlmon.audit.readers.parsing as parsing
import rlmon.audit.readers.shapes as shapes
from rlmon.audit.readers.choosing import PROBES
from rlmon.audit.readers.layout import Part, Spec, whole
from rlmon.audit.readers.messages import SPOKEN
from rlmon.audit.readers.parsing import walk
from rlmon.errors import ReadError


class NoStepsError(ReadError):
    """There are rows of completions, and nothing says of which step they are."""


def probed(spec: Spec, files: Sequence[Part], notes: list[str]) -> Spec:
    """The spec with the shape of its records, and the types of the top-level keys it uses where whole blocks can be
    parsed at once."""
    if spec.rows != "line":
        return spec
    records = [record for part in [*files[:2], *files[-1:]] for record in folder.probe(part, PROBES)]
    spec = _folded(spec, records, notes)
    if spec.folded or "tool_calls" in spec.columns:
        return spec
    tops: dict[str, None] = {}
    for path in spec.paths.values():
        plain = any(path in record for record in records)
        for option in [path] if plain else path.split("|"):
            tops[option if plain else option.split(".")[0]] = None
    if spec.eval_key:
        tops[spec.eval_key] = None
    nested = [path for path in spec.paths.values() if path not in tops]
    if any(all(walk(record, path) is None for record in records) for path in nested):
        return spec
    kinds = []
    for name in tops:
        values = [record[name] for record in records if record.get(name) is not None]
        if not values:
            # Never seen: numbers are the likeliest, and another kind sends the block to the slow path.
            kinds.append((name, pa.float64()))
            continue
        if all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values):
            kinds.append((name, pa.float64()))
            continue
        try:
            kind = pa.array(values).type
        except columns.UNREADABLE:
            return spec
        if "null" in str(kind) or (pa.types.is_struct(kind) and name in spec.paths.values()):
            return spec
        full = _with_all_that_is_said(kind)
        if full is None:
            return spec
        kinds.append((name, full))
    return dataclasses.replace(spec, kinds=tuple(kinds))


def refuse_steps(spec: Spec, files: Sequence[Part], path: Path) -> None:
    """Raises ``NoStepsError`` where none of the rows that are looked into has a step that can be read."""
    if spec.rows != "line" or "step" not in spec.columns:
        return
    looked_at = [record for part in [*files[:2], *files[-1:]] for record in folder.probe(part, PROBES)]
    flat = [row for record in looked_at for _, row in shapes.flattened(record, spec.within)]
    steps = [walk(row, spec.columns["step"]) for row in flat]
    given = [step for step in steps if step is not None]
    if given and all(whole(parsing.single(step)) is None for step in given):
        raise NoStepsError(
            f"None of the first {len(steps)} rows of {str(path)!r} has a whole number as its step, under "
            f"{spec.columns['step']!r} (the first has {str(given[0])[:60]!r}). Name the column that counts steps: "
            "--map step=..., with completion=... and reward=..."
        )


def _folded(spec: Spec, records: Sequence[Mapping[str, Any]], notes: list[str]) -> Spec:
    """The spec with what its records hold: one row, or several, nested or as lists."""
    rows = [
        {name: shapes.listed(walk(flat, path)) for name, path in spec.paths.items()}
        for record in records
        for _, flat in shapes.flattened(record, spec.within)
    ]
    many = spec.columns.get("completion", "").rpartition(".")[2] in shapes.MANY
    several = [row for row in rows if shapes.holds_several(row, many)]
    together = [row for row in several if shapes.scored_together(row)]
    if together:
        why = (
            f"records have one reward for several completions ({len(together[0]['completion'])} in the first of them), "
            "so it is not known which of them earned it: their rewards are missing here. Write a list of rewards."
        )
        notes.append(why[0].upper() + why[1:])
        if len(together) == len(rows):
            spec = dataclasses.replace(spec, lacks={**spec.lacks, "rewards": why})
    prompt = spec.columns.get("prompt", "").split(".")[0]
    inner = [item for record in records for item in shapes.innermost(record, spec.within)]
    whole = spec.columns.get("prompt") is not None and spec.columns["prompt"] == spec.columns.get("completion")
    return dataclasses.replace(
        spec,
        folded=bool(spec.within or spec.written or several or whole),
        grouped=bool(spec.within) and bool(prompt) and not any(prompt in item for item in inner),
    )


def _with_all_that_is_said(kind: pa.DataType) -> pa.DataType | None:
    """The type of messages, with the fields that are rendered and that the first of them may be without.

    ``None`` where messages hold more than text: arguments of tool calls have no type in common.
    """
    if not pa.types.is_list(kind) or not pa.types.is_struct(kind.value_type):
        return kind
    fields = {field.name: field for field in kind.value_type}
    if "content" not in fields:
        return kind
    if any(name in fields and pa.types.is_nested(fields[name].type) for name in SPOKEN):
        return None
    # A list of tool calls is no string: the block that has one takes the slow path.
    missing = [pa.field(name, pa.string()) for name in SPOKEN if name not in fields]
    return pa.list_(pa.struct([*fields.values(), *missing]))
