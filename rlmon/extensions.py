"""What people add to rlmon from outside of it: metrics, detectors, actions and sinks for a live run (``Extensions``),
and by entry point also readers and checks for audits (``installed``). docs/extending.md shows one file of each.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from importlib.metadata import entry_points
from typing import Any

from rlmon.console import say
from rlmon.errors import ConfigError
from rlmon.printable import one_line

GROUPS = ("rlmon.metrics", "rlmon.detectors", "rlmon.actions", "rlmon.sinks", "rlmon.readers", "rlmon.checks")
"""Groups of entry points that a package may have, under ``[project.entry-points."rlmon.metrics"]`` and the like."""


@dataclass(frozen=True, kw_only=True)
class Extensions:
    """What a run is watched by beside what is built in. The same on all ranks.

    Raises ``ConfigError`` saying what came, what was needed and what to type.
    """

    metrics: Sequence[Any] = ()
    """``rlmon.metrics.MetricFamily`` objects."""
    detectors: Sequence[Any] = ()
    """``rlmon.detectors.DetectorSpec`` objects."""
    actions: Sequence[Any] = ()
    """Classes of actions that a policy may name."""
    sinks: Sequence[Any] = ()
    """``rlmon.sinks.Sink`` objects, or classes that are made without arguments: each run needs sinks of its own."""

    def __post_init__(self) -> None:
        from rlmon.detectors.roster import Roster
        from rlmon.metrics.step import refuse_names

        for kind in _kinds():
            given = getattr(self, kind)
            if not isinstance(given, list | tuple):
                raise ConfigError(f"{kind} is a list, got {_shown(given)}. Type: {kind}=[{_typed(given)}]")
            for one in given:
                _refuse(kind, one)
            names = [_name(one) for one in given if _name(one) is not None]
            twice = next((name for name in names if names.count(name) > 1), None)
            if twice is not None:
                raise ConfigError(f"{kind} has two that are called {twice!r}: give one of them another name.")
        refuse_names(self.metrics)
        Roster(own=tuple(self.detectors))

    def with_installed(self) -> Extensions:
        """And those that installed packages bring; what was given by hand comes first, and wins where two have one
        name."""
        added = self
        for kind in (field.name for field in fields(self)):
            given = getattr(self, kind)
            names = [_name(one) for one in given if _name(one) is not None]
            new = [one for one in installed(f"rlmon.{kind}") if one not in given and _name(one) not in names]
            added = replace(added, **{kind: (*given, *new)})
        return added


@functools.cache
def installed(group: str) -> tuple[Any, ...]:
    """What the entry points of ``group`` name, in order of their names. One that cannot be loaded, or is of another
    kind, is named on the console, once, and left out: a broken package is no reason why a run is not watched."""
    found = []
    for entry in sorted(entry_points(group=group), key=lambda entry: entry.name):
        try:
            one = entry.load()
            if (kind := group.removeprefix("rlmon.")) in _kinds():
                _refuse(kind, one)
        except Exception as error:
            package = entry.dist.name if entry.dist is not None else entry.value
            why = one_line(f"{type(error).__name__}: {error}")
            say(f"{group} {entry.name!r} of {package} was left out, since it cannot be used ({why}).")
        else:
            found.append(one)
    return tuple(found)


@functools.cache
def _kinds() -> Mapping[str, tuple[type[Any], bool, bool]]:
    """Of each kind for a live run its class, and whether objects and whether classes of it are taken."""
    from rlmon.detectors.catalog import DetectorSpec
    from rlmon.interventions.intervention import Intervention
    from rlmon.metrics.family import MetricFamily
    from rlmon.sinks import Sink

    return {
        "metrics": (MetricFamily, True, False),
        "detectors": (DetectorSpec, True, False),
        "actions": (Intervention, False, True),
        "sinks": (Sink, True, True),
    }


def _refuse(kind: str, one: Any) -> None:
    wanted, objects, classes = _kinds()[kind]
    is_class = isinstance(one, type)
    if not (issubclass(one, wanted) if is_class else isinstance(one, wanted)):
        what = "objects of" if objects else "classes derived from"
        home = ".".join([*wanted.__module__.split(".")[:2], wanted.__name__])
        raise ConfigError(f"{kind} takes {what} {home}, got {_shown(one)}. docs/extending.md shows one.")
    if is_class and not classes:
        raise ConfigError(f"{kind} takes objects, got {_shown(one)}. Type: {kind}=[{_typed(one)}]")
    if not is_class and not objects:
        raise ConfigError(f"{kind} takes classes, got {_shown(one)}. Type: {kind}=[{type(one).__name__}]")


def _name(one: Any) -> str | None:
    name: str | None = getattr(one, "id", getattr(one, "name", None))
    return name


def _shown(one: Any) -> str:
    return f"the class {one.__name__}" if isinstance(one, type) else f"an object of {type(one).__name__}"


def _typed(one: Any) -> str:
    return f"{one.__name__}()" if isinstance(one, type) else "..."
