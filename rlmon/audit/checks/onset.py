"""Since when: the first step from which what a detector reads stays past where damage begins."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from rlmon.audit.case import Case
from rlmon.audit.checks.detectors import statistic_of, told_by
from rlmon.audit.contrast import BASE_STEPS
from rlmon.audit.features import Bools, Floats, Ints
from rlmon.audit.timeline import SMOOTHING_STEPS
from rlmon.detectors import DetectorSpec
from rlmon.records import Finding
from rlmon.statistics import trailing_mean

ONSET_NOISE = 3.0
"""Standard errors of the smoothed value and of its base that a change must exceed: a base of very
diverse outputs is mostly noise."""


class Onset(NamedTuple):
    """When something began."""

    step: int
    at_latest: bool
    """It may have begun before: until then what was read lay within the error of its base."""


def onset(case: Case, spec: DetectorSpec, finding: Finding) -> Onset | None:
    """First step from which the 5-step mean of what the detector reads stays past where damage begins and beyond the
    error of its base; where it comes back in the end, the start of the stay that the alarm fell in.

    ``None`` where the run has no such series. Effective numbers are smoothed as collisions, whose mean is unbiased.
    """
    values = _course(case, spec, finding.metric)
    if values is None:
        return None
    at = np.flatnonzero(np.isfinite(values))
    if not at.size:
        return None
    smooth = trailing_mean(values[at], SMOOTHING_STEPS)
    steps = case.line.steps[at]
    lines = _lines(spec, finding, values)
    if lines is None:
        return None
    dated, sure = (_stays(smooth > line if spec.direction == "up" else smooth < line, steps, finding) for line in lines)
    if dated is None:
        return None
    # The evidence sufficed at the alarm, whatever the mean of five steps says.
    if sure is None or dated < finding.step < sure:
        sure = finding.step
    # A mean of five steps is late by as many: less between the two is no news.
    late = sure - dated > SMOOTHING_STEPS
    return Onset(sure if late else dated, at_latest=late)


def _stays(past: Bools, steps: Ints, finding: Finding) -> int | None:
    """The last run of steps past the line that began before the alarm, or the first one after it."""
    if not past.any():
        return None
    starts = np.flatnonzero(past & ~np.concatenate([[False], past[:-1]]))
    before = starts[steps[starts] <= finding.step]
    start = int(before[-1]) if before.size else int(starts[0])
    if not past[start:].all():
        # Noise may lift single steps over the line: the stay began where most of the steps since are past it.
        for candidate in before.tolist():
            if past[candidate:].mean() >= 0.9:
                start = candidate
                break
        else:
            last_back = np.flatnonzero(~past)[-1]
            if last_back + 1 < past.size:
                start = int(last_back) + 1
    return int(steps[start])


def _course(case: Case, spec: DetectorSpec, metric: str) -> Floats | None:
    """What the detector reads, step by step: collisions where it tells effective numbers."""
    if spec.rule != "effective":
        return case.series(metric)
    collision = case.series(metric.removesuffix("_effective")) if metric.endswith("_effective") else None
    told = case.series(told_by(case, metric))
    if collision is not None or told is None:
        return collision
    with np.errstate(divide="ignore"):
        return 1.0 / told


def _lines(spec: DetectorSpec, finding: Finding, values: Floats) -> tuple[float, float] | None:
    """Where damage begins in means of ``values``, without the floors that hold an alarm back, or as far as their noise
    reaches; and the same with the error of the base."""
    level = spec.began
    if level is None:
        return None
    if spec.rule == "absolute":
        absolute = finding.threshold if spec.warn is None else spec.absolute_level(statistic_of(spec, finding), level)
        return None if absolute is None else (absolute, absolute)
    base = finding.baseline if spec.rule != "effective" or not finding.baseline else 1.0 / finding.baseline
    first = values[: min(BASE_STEPS, values.size)]
    first = first[np.isfinite(first)]
    if base is None:
        if not first.size:
            return None
        base = float(first.mean())
    line = base / level if spec.rule == "effective" else base * level
    # From differences of neighbours: a trend inside the base is no noise.
    noise = float(np.std(np.diff(first))) / math.sqrt(2.0 * SMOOTHING_STEPS) if first.size >= 3 else 0.0
    reaches = (ONSET_NOISE * error for error in (noise, math.hypot(noise, finding.evidence.get("baseline_se") or 0.0)))
    if spec.direction == "up":
        dated, sure = (max(line, base + reach) for reach in reaches)
    else:
        dated, sure = (min(line, base - reach) for reach in reaches)
    return dated, sure
