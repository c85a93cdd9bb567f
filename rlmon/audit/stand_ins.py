"""Curves in the place of rows: what detectors read from blocks of completions, as far as somebody logged it.

A monitor in the run measured all completions of every step. Where a tracker kept its curves and few of the
completions, or none, the curves are judged as its own log would be, with the first logged steps as the base.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from rlmon.detectors import DETECTORS

Points = Sequence[tuple[int, float]]

NEXT_BEST: Mapping[str, str] = {
    "rlmon/collision/mode_across_effective": "rlmon/format/effective",
    "rlmon/collision/mode_within_effective": "rlmon/format/effective_within",
}
"""Effective number of Hill's order 2 to that of order 1, which trackers without a sink of ours are given."""
_OF_DETECTORS: Mapping[str, tuple[str, bool]] = {
    statistic: (metric, spec.rule == "effective")
    for spec in DETECTORS
    if spec.rule != "immediate"
    for statistic, metric in zip(spec.statistics, spec.metrics, strict=True)
} | {
    "reward": ("rlmon/health/reward_mean", False),
    "mode_collision_correct": ("rlmon/collision/mode_correct_across_effective", True),
    "opening_collision_correct_within": ("rlmon/collision/opening_correct_within_effective", True),
    "template_collision_correct_within": ("rlmon/collision/template_correct_within_effective", True),
}
"""Statistic of a block to the metric that tells it, and whether that is its inverse."""


def of_blocks(scalars: Mapping[str, Points]) -> dict[str, dict[int, float]]:
    """Statistic of a block to its values by step, from curves by canonical name."""
    found: dict[str, dict[int, float]] = {}
    for statistic, (metric, inverse) in _OF_DETECTORS.items():
        points = scalars.get(metric) or scalars.get(NEXT_BEST.get(metric, ""), ())
        values = {
            step: 1.0 / value if inverse else value
            for step, value in points
            if math.isfinite(value) and (value > 0 or not inverse)
        }
        if values:
            found[statistic] = values
    return found


def better(curve: int, rows: int) -> bool:
    """Whether a curve of so many steps says more than rows of so many: rows tell it in more detail, but not where they
    are a sample now and then."""
    return 2 * rows < curve
