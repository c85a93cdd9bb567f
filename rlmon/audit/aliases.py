"""One table of what every trainer calls the same number, so that no check asks which trainer wrote it.

``aliases.json``: canonical name (``rlmon/<family>/<name>`` where the metric catalogue has it, else a word of TRL) to
the trainers' keys. A key that measures a different quantity under the same heading says so in ``note``.
"""

from __future__ import annotations

import fnmatch
import functools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

Points = Sequence[tuple[int, float]]
LARGEST = 3.4028234663852886e38
"""Largest float32. Trainers compute in it: what a log has beyond is infinite, and its square would be for us."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Alias:
    """What one trainer calls a number."""

    name: str
    """Canonical name."""
    key: str
    """The trainer's key without ``train/``; ``*`` stands for a part that users name, such as an agent."""
    tool: str
    unit: str
    complement: bool = False
    """The number is 1 - what is logged."""
    note: str = ""
    """How it differs from the canonical quantity; empty where it does not."""


@functools.cache
def table() -> Mapping[str, tuple[Alias, ...]]:
    """Canonical name to the trainers' keys, in the order in which they are looked for."""
    stored = json.loads(Path(__file__).with_name("aliases.json").read_text(encoding="utf-8"))
    return {
        name: tuple(
            Alias(
                name=name,
                key=entry["key"].removeprefix("train/"),
                tool=entry["tool"],
                unit=entry.get("unit", group["unit"]),
                complement=entry.get("complement", False),
                note=entry.get("note", ""),
            )
            for entry in group["keys"]
        )
        for name, group in stored.items()
    }


def chosen(scalars: Mapping[str, Points]) -> dict[str, tuple[Alias, str]]:
    """Canonical name to the alias that was found and the run's own key for it; names that the run lacks are absent.

    Keys are compared without ``train/``. A pattern counts only where one key fits it.
    """
    keys = {key.removeprefix("train/"): key for key in sorted(scalars, reverse=True) if scalars[key]}
    found = {}
    for name, aliases in table().items():
        for alias in aliases:
            fits = fnmatch.filter(keys, alias.key) if "*" in alias.key else [alias.key] * (alias.key in keys)
            if len(fits) == 1:
                found[name] = (alias, keys[fits[0]])
                break
    return found


def canonical(scalars: Mapping[str, Points]) -> dict[str, list[tuple[int, float]]]:
    """What the trainer logged by canonical name, from the first of its keys that the run has.

    Values beyond ``LARGEST`` are infinite.
    """
    return {
        name: [(step, _in_float32(1 - value if alias.complement else value)) for step, value in scalars[key]]
        for name, (alias, key) in chosen(scalars).items()
    }


def _in_float32(value: float) -> float:
    return value if not abs(value) > LARGEST else math.copysign(math.inf, value)
