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
        from rlmon.interventions.actions import known_actions
        from rlmon.metrics.step import refuse

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
        refuse(self.metrics)
        known_actions(self.actions)
        Roster(own=tuple(self.detectors))

    def with_installed(self) -> Extensions:
        """And those that installed packages bring; what was given by hand comes first, and wins where two have one
        name."""
        added = self
        for kind in (field.name for field in fields(self)):
            given = getattr(self, kind)
            names = [_name(one) for one in given if _name(one) is not None]
            for one in installed(f"rlmon.{kind}"):
                if any(one is other for other in given) or _name(one) in names:
                    continue
                try:
                    added = replace(added, **{kind: (*getattr(added, kind), one)})
                except ConfigError as problem:
                    _say_once(f"{_shown(one)} of an installed package was left out beside what was given: {problem}")
        return added


@functools.cache
def installed(group: str) -> tuple[Any, ...]:
    """What the entry points of ``group`` (``rlmon.metrics``, ``.detectors``, ``.actions``, ``.sinks``, ``.readers``,
    ``.checks``) name, in order of their names. One that cannot be loaded, or is of another
    kind, or has a name that is taken, is named on the console, once, and left out: a broken package is no reason why a
    run is not watched."""
    found: list[Any] = []
    for entry in sorted(entry_points(group=group), key=lambda entry: entry.name):
        try:
            one = entry.load()
            if (kind := group.removeprefix("rlmon.")) in _kinds():
                if kind == "sinks" and not isinstance(one, type):
                    raise ConfigError(
                        f"each run needs sinks of its own, so that an entry point names a class, got {_shown(one)}. "
                        f'Type: {entry.name} = "{entry.module}:{type(one).__name__}"'
                    )
                Extensions(**{kind: (*found, one)})
        except (Exception, SystemExit) as error:
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


@functools.cache
def _say_once(text: str) -> None:
    say(one_line(text))


def _name(one: Any) -> str | None:
    """What tells metrics, detectors and actions apart; sinks have no names."""
    from rlmon.sinks import Sink

    is_sink = isinstance(one, Sink) or (isinstance(one, type) and issubclass(one, Sink))
    name = None if is_sink else getattr(one, "id", getattr(one, "name", None))
    return name if isinstance(name, str) else None


def _shown(one: Any) -> str:
    return f"the class {one.__name__}" if isinstance(one, type) else f"an object of {type(one).__name__}"


def _typed(one: Any) -> str:
    return f"{one.__name__}()" if isinstance(one, type) else "..."
