"""What a user adds to a run, looked at before the run begins: a mistake is said where it was made."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rlmon.detectors.catalog import DetectorSpec
from rlmon.detectors.roster import Roster
from rlmon.errors import ConfigError
from rlmon.extensions import Extensions
from rlmon.interventions.intervention import Intervention
from rlmon.metrics.family import MetricFamily
from rlmon.metrics.step import refuse_names
from rlmon.sinks import Sink

KINDS: dict[str, tuple[type[Any], str, bool, bool]] = {
    "metrics": (MetricFamily, "rlmon.metrics.MetricFamily", True, False),
    "detectors": (DetectorSpec, "rlmon.detectors.DetectorSpec", True, False),
    "actions": (Intervention, "rlmon.interventions.intervention.Intervention", False, True),
    "sinks": (Sink, "rlmon.sinks.Sink", True, True),
}
"""Of each kind its class, where that is, and whether objects and whether classes of it are taken."""


def extensions_of(**given: Sequence[Any]) -> Extensions:
    """What was given, by kind. Raises ``ConfigError`` saying what came, what was needed and what to type."""
    for kind, found in given.items():
        if not isinstance(found, list | tuple):
            raise ConfigError(f"{kind} is a list, got {_shown(found)}. Type: {kind}=[{_typed(found)}]")
        for one in found:
            _refuse(kind, one)
        names = [name for one in found if (name := getattr(one, "id", getattr(one, "name", None))) is not None]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ConfigError(f"{kind} has two that are called {twice!r}: give one of them another name.")
    extensions = Extensions(**given)
    refuse_names(extensions.metrics)
    Roster(own=tuple(extensions.detectors))
    return extensions


def _refuse(kind: str, one: Any) -> None:
    wanted, home, objects, classes = KINDS[kind]
    if isinstance(one, type):
        if issubclass(one, wanted) and not classes:
            raise ConfigError(f"{kind} takes objects, got {_shown(one)}. Type: {kind}=[{_typed(one)}]")
        right = issubclass(one, wanted)
    else:
        right = isinstance(one, wanted)
        if right and not objects:
            raise ConfigError(f"{kind} takes classes, got {_shown(one)}. Type: {kind}=[{type(one).__name__}]")
    if not right:
        what = "classes derived from" if not objects else "objects of"
        raise ConfigError(f"{kind} takes {what} {home}, got {_shown(one)}. docs/extending.md shows one.")


def _shown(one: Any) -> str:
    return f"the class {one.__name__}" if isinstance(one, type) else f"an object of {type(one).__name__}"


def _typed(one: Any) -> str:
    return f"{one.__name__}()" if isinstance(one, type) else "..."
