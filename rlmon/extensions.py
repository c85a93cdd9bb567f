"""What people add to rlmon from outside of it: metrics, detectors, actions and sinks for a live run (``Extensions``),
and by entry point also readers and checks for audits (``installed``). docs/extending.md shows one file of each.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, fields
from importlib.metadata import entry_points
from typing import Any

from rlmon.console import say
from rlmon.printable import one_line

GROUPS = ("rlmon.metrics", "rlmon.detectors", "rlmon.actions", "rlmon.sinks", "rlmon.readers", "rlmon.checks")
"""Groups of entry points that a package may have, under ``[project.entry-points."rlmon.metrics"]`` and the like."""


@dataclass(frozen=True, kw_only=True)
class Extensions:
    """What a run is watched by beside what is built in. The same on all ranks."""

    metrics: Sequence[Any] = ()
    """``rlmon.metrics.MetricFamily`` objects."""
    detectors: Sequence[Any] = ()
    """``rlmon.detectors.DetectorSpec`` objects."""
    actions: Sequence[Any] = ()
    """Classes of actions that a policy may name."""
    sinks: Sequence[Any] = ()
    """``rlmon.sinks.Sink`` objects, or classes that are made without arguments: each run needs sinks of its own."""

    def with_installed(self) -> Extensions:
        """And those that installed packages bring; what was given by hand comes first, and comes once."""
        return Extensions(
            **{
                field.name: (*given, *(one for one in installed(f"rlmon.{field.name}") if one not in given))
                for field in fields(self)
                for given in [getattr(self, field.name)]
            }
        )


@functools.cache
def installed(group: str) -> tuple[Any, ...]:
    """What the entry points of ``group`` name, in order of their names. One that cannot be loaded is named on the
    console, once, and left out: a broken package is no reason why a run is not watched."""
    found = []
    for entry in sorted(entry_points(group=group), key=lambda entry: entry.name):
        try:
            found.append(entry.load())
        except Exception as error:
            package = entry.dist.name if entry.dist is not None else entry.value
            why = one_line(f"{type(error).__name__}: {error}")
            say(f"{group} {entry.name!r} of {package} was left out, since it cannot be loaded ({why}).")
    return tuple(found)
