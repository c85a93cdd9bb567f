"""One table of what every trainer calls the same number, so that no check asks which trainer wrote it.

``aliases.json``: canonical name (``rlmon/<family>/<name>`` where the metric catalogue has it, else a word of TRL) to
the trainers' keys. A key that measures a different quantity under the same heading says so in ``note``. Two families
are open: ``rewards/<function>`` with ``rewards/<function>/std``, and whatever rlmon itself logged.
"""

from __future__ import annotations

import fnmatch
import functools
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

Points = Sequence[tuple[int, float]]
LARGEST = 3.4028234663852886e38
"""Largest float32. Trainers compute in it: what a log has beyond is infinite, and its square would be for us."""


_SAYS_LITTLE = frozenset({"learning_rate", "clip_ratio"})
"""Canonical names whose keys are settings too: they do not make a curve of a file."""
_FUNCTION = re.compile(r"rewards/(?!(?:mean|std|min|max)\Z)(.+?)(?:/(mean|std)|(?<!/min)(?<!/max))", re.DOTALL)
"""Mean or deviation of one reward function; before TRL 0.17 the mean had no ending."""
_OWN = re.compile(r"rlmon/[^/]+/.+", re.DOTALL)
"""A metric of ours; counters of the monitor have one slash."""


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
    less: str = ""
    """A second key of the trainer's, whose number is taken off."""
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
                less=entry.get("less", ""),
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
            if len(fits) == 1 and (not alias.less or alias.less in keys):
                found[name] = (alias, keys[fits[0]])
                break
    return found


def canonical(scalars: Mapping[str, Points]) -> dict[str, list[tuple[int, float]]]:
    """What the trainer logged by canonical name, from the first of its keys that the run has.

    Values beyond ``LARGEST`` are infinite. NaN of one reward function is not measured: trainers log it where the
    function gave nothing for any row of the batch.
    """
    found = {}
    for key, points in scalars.items():
        name = key.removeprefix("train/")
        if points and _OWN.fullmatch(name):
            found[name] = [(step, _in_float32(value)) for step, value in points]
    for (function, part), key in functions(scalars).items():
        measured = [(step, _in_float32(value)) for step, value in scalars[key] if not math.isnan(value)]
        if measured:
            found[f"rewards/{function}" + ("/std" if part == "std" else "")] = measured
    for name, (alias, key) in chosen(scalars).items():
        points = scalars[key]
        if alias.less:
            lower = dict(scalars.get(alias.less) or scalars.get(f"train/{alias.less}", ()))
            points = [(step, value - lower[step]) for step, value in points if step in lower]
        found[name] = [(step, _in_float32(1 - value if alias.complement else value)) for step, value in points]
    return found


def functions(scalars: Mapping[str, Points]) -> dict[tuple[str, str], str]:
    """(Reward function, ``mean`` or ``std``) to the run's own key, for every reward function that was logged."""
    found = {}
    for key in sorted(scalars):
        if scalars[key] and (match := _FUNCTION.fullmatch(key.removeprefix("train/"))):
            found[match[1], match[2] or "mean"] = key
    return found


def taken(scalars: Mapping[str, Points]) -> dict[str, str]:
    """The run's own keys that checks read, to their canonical names."""
    own = {key: key.removeprefix("train/") for key in scalars if _OWN.fullmatch(key.removeprefix("train/"))}
    rewards = {
        key: f"rewards/{function}{'/std' * (part == 'std')}" for (function, part), key in functions(scalars).items()
    }
    named = chosen(scalars).items()
    lower = {key: name for name, (alias, _) in named if alias.less for key in (alias.less, f"train/{alias.less}")}
    taken_off = {key: name for key, name in lower.items() if key in scalars}
    return own | rewards | {key: name for name, (_, key) in named} | taken_off


@functools.lru_cache(maxsize=4_096)
def says_something(key: str) -> bool:
    """Whether a trainer logs a curve under this key, as far as the key alone can tell."""
    name = key.removeprefix("train/").removeprefix("eval_").removeprefix("eval/")
    if name in _telling() or _FUNCTION.fullmatch(name) or _OWN.fullmatch(name):
        return True
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in _telling() if "*" in pattern)


@functools.cache
def _telling() -> frozenset[str]:
    return frozenset(alias.key for name, keys in table().items() if name not in _SAYS_LITTLE for alias in keys)


def _in_float32(value: float) -> float:
    return value if not abs(value) > LARGEST else math.copysign(math.inf, value)
