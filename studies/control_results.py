"""What the runs of the study of control came to: what could be reached, what was, and how soon.

A policy that spreads its answers over formats learns each of them on fewer samples. What that costs is judged against
what the *same formats in the same shares* can reach: A*(p) = sum over formats m of p(m) a*(m), p the run's own shares
and a*(m) the accuracy, in format m, of runs that were rewarded in that format only, at their plateau.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlmon.statistics import t_quantile

NEARLY_ALL = 0.9
"""A single-format run is judged once so much of what it writes is in its format."""
OF_THE_WAY = 0.9
"""The line of a run lies so far on the way from the base's accuracy to A*(p)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Single:
    """A run that was rewarded in one format only."""

    mode: str
    seed: int
    steps: int
    plateaued: bool
    share: float
    """Of its format in what it writes at the end."""
    accuracy_at_the_end: float
    """In its format."""
    best_step: int
    """Where the evaluations along the way were best."""
    accuracy_of_best: float
    """In its format with the weights of ``best_step``, on other draws than chose them."""

    @property
    def counts(self) -> bool:
        return self.share >= NEARLY_ALL

    @property
    def accuracy(self) -> float:
        """The higher of the two: what could be reached is not to be understated."""
        return max(self.accuracy_at_the_end, self.accuracy_of_best)


@dataclass(frozen=True, kw_only=True, slots=True)
class Ratio:
    """Geometric mean over seeds of an arm's steps over the reference's; ``None`` where no seed has both."""

    mean: float | None
    pairs: int
    at_least: bool
    """The arm did not reach its line on some seed: the steps that it trained stand for more."""


def best_of(singles: Sequence[Single]) -> dict[str, float]:
    """a*(m): mean over the runs of each format in which they came to write nearly always."""
    found: dict[str, list[float]] = {}
    for single in singles:
        if single.counts:
            found.setdefault(single.mode, []).append(single.accuracy)
    return {mode: statistics.fmean(values) for mode, values in found.items()}


def reachable(shares: Mapping[str, float], best: Mapping[str, float]) -> float:
    """A*(p) of the format ``shares``. A format without an a*(m), such as ``other``, counts as the best one: what is
    written in it is charged for all that it loses."""
    top = max(best.values())
    return sum(share * best.get(mode, top) for mode, share in shares.items())


def upper_bound(values: Sequence[float]) -> float | None:
    """Upper end of the one-sided 95 % interval of their mean (Student's t); ``None`` for fewer than two."""
    if len(values) < 2:
        return None
    error = statistics.stdev(values) / math.sqrt(len(values))
    return statistics.fmean(values) + t_quantile(0.95, len(values) - 1) * error


def line(base: float, reachable: float) -> float:
    """The accuracy that counts as having learned."""
    return base + OF_THE_WAY * (reachable - base)


def steps_to(curve: Sequence[Mapping[str, Any]], accuracy: float) -> int | None:
    """Step of the first of two evaluations in a row that are at least ``accuracy``; ``None`` if there are none."""
    for now, after in itertools.pairwise(curve):
        if now["accuracy"] >= accuracy and after["accuracy"] >= accuracy:
            return int(now["step"])
    return None


def in_format(curve: Sequence[Mapping[str, Any]], mode: str) -> list[tuple[int, float]]:
    """(step, accuracy in format ``mode``) of the evaluations at which nearly everything was written in it."""
    return [
        (point["step"], point["accuracy_by_format"][mode])
        for point in curve
        if point["format_shares"].get(mode, 0.0) >= NEARLY_ALL
    ]


def plateaued(curve: Sequence[Mapping[str, Any]], mode: str) -> bool:
    """Whether the last two evaluations ``in_format`` are not above the best before them."""
    judged = [accuracy for _, accuracy in in_format(curve, mode)]
    return len(judged) > 2 and max(judged[-2:]) <= max(judged[:-2])


def moves_by(curve: Sequence[Mapping[str, Any]], last: int) -> float:
    """Standard deviation (ddof 1) of the accuracy over the ``last`` evaluations of a run."""
    return statistics.stdev(float(point["accuracy"]) for point in curve[-last:])


def ratio_of_steps(arm: Mapping[int, int | None], reference: Mapping[int, int | None], trained: int) -> Ratio:
    """Over the seeds on which the reference reached its line; an arm that did not counts as ``trained`` steps."""
    logs, cut = [], False
    for seed in sorted(arm.keys() & reference.keys()):
        ours, theirs = arm[seed], reference[seed]
        if theirs is None:
            continue
        cut |= ours is None
        logs.append(math.log((trained if ours is None else ours) / theirs))
    return Ratio(mean=math.exp(statistics.fmean(logs)) if logs else None, pairs=len(logs), at_least=cut)
