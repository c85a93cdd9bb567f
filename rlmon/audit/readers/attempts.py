"""Logs that lie in one place: attempts of one run, or runs of their own.

A run that was resumed writes a second log beside the first, and so does the next experiment with the same settings.
Their steps and their clocks tell them apart.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rlmon.audit.aliases import Points

TOLERANCE_SECONDS = 1.0
"""Clocks of two processes on one machine, and what was written while one gave way to the other."""


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One log as it was written."""

    name: str
    scalars: Mapping[str, Points]
    """Curves of training."""
    evals: Mapping[str, Points]
    began_seconds: float
    """Time of the first and of the last entry; 0 where it was not written."""
    ended_seconds: float


def runs_of(attempts: Sequence[Attempt]) -> list[list[Attempt]]:
    """The attempts of each run, in the order in which they came; the runs in order of their first attempt."""
    runs: list[list[Attempt]] = []
    for attempt in attempts:
        run = next((run for run in reversed(runs) if _goes_on(run, attempt)), None)
        if run is None:
            runs.append([attempt])
        else:
            run.append(attempt)
    return runs


def joined(run: Sequence[Attempt]) -> tuple[dict[str, list[tuple[int, float]]], dict[str, list[tuple[int, float]]]]:
    """All points of a run by key, in the order in which they were logged: of training and of evaluations."""
    train: dict[str, list[tuple[int, float]]] = {}
    held_out: dict[str, list[tuple[int, float]]] = {}
    for attempt in run:
        for points, into in ((attempt.scalars, train), (attempt.evals, held_out)):
            for key, values in points.items():
                into.setdefault(key, []).extend(values)
    return train, held_out


def steps_of(run: Sequence[Attempt]) -> list[int]:
    """Steps that a run logged, in order."""
    logged = [attempt.scalars or attempt.evals for attempt in run]
    return sorted({step for scalars in logged for points in scalars.values() for step, _ in points})


def _goes_on(run: Sequence[Attempt], attempt: Attempt) -> bool:
    """Whether an attempt continues a run: it logs something else, or the same from a later step on once the run had
    ended. One that begins anew, or while the run went on, is a run of its own."""
    here, there = joined(run)
    shared = [key for key in attempt.scalars if key in here] or [key for key in attempt.evals if key in there]
    if not shared:
        return True
    if attempt.began_seconds < max(before.ended_seconds for before in run) - TOLERANCE_SECONDS:
        return False
    first = min(step for key in shared for step, _ in {**here, **there}[key])
    mine = sorted({step for key in shared for step, _ in {**attempt.evals, **attempt.scalars}[key]})
    stride = min((b - a for a, b in itertools.pairwise(mine)), default=1)
    return mine[0] > max(first, stride)
