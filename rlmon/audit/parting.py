"""One metric on two sides: how far apart its ends are, how sure that is, and from where on the runs part.

*Differences at the end* are means over the last tenth of the common steps. With one run a side their interval comes
from the steps, with the autocorrelation of the gap taken into account: it covers the noise of sampling, not of seeds.
With two runs or more on both sides it is Welch's, over runs.

*The first sustained departure* is the first step from which the 5-step mean of the gap B - A stays beyond its early
band, on one side, until the end. The band is the mean of the first steps, plus or minus ``BAND`` standard errors with
the gap's long-run spread. On pairs of runs with the same AR(1) law (2,000 pairs, 200 steps, by
``benchmarks/departure_alarms.py``) it is found in .2 % or fewer, and p falls below .05 in 3 % or fewer, whatever the
correlation between 0 and .9. Short and slow series mislead: at a correlation of .9 it is 6 % and 17 % with 60
steps, 7 % and 36 % with 30.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from rlmon.audit.compared import MetricDifference
from rlmon.audit.contrast import LAST_SHARE, LAST_STEPS
from rlmon.audit.features import Floats, Ints
from rlmon.audit.result import Audit
from rlmon.series import LEVEL, independent
from rlmon.statistics import t_quantile, t_two_sided_p, trailing_mean

SMOOTHING_STEPS = 5
EARLY_SHARE = 0.1
EARLY_STEPS = 8
BAND = 2.5
LEAST_STEPS = 20
"""A departure is looked for where at least this many steps are common."""
ENOUGH_STEPS = 90
"""With fewer the band is wider in proportion: a short series says too little about its own slowness."""
LEAST_STAY = 0.1
"""It must last for this share of the common steps."""
FIRST_METRICS = (
    "rlmon/collision/mode_across_effective",
    "rlmon/format/effective",
    "rlmon/format/top_share",
    "rlmon/health/reward_mean",
    "rlmon/entropy/mean",
    "rlmon/kl/mean",
    "rlmon/collision/template_across_effective",
    "rlmon/text/effective_templates_within_correct",
    "rlmon/text/effective_answers_within",
    "rlmon/group/silent",
    "rlmon/health/length_mean",
    "rlmon/health/truncated",
)
"""Shown first, in this order, and tested as a family of their own: what one compares runs for should not pay for fifty
other curves."""
TOTAL_REWARD = "rlmon/health/reward_mean"
OF_FUNCTIONS = "rewards/"


def matters(name: str) -> bool:
    """Whether a metric is one of those that one compares runs for: ``FIRST_METRICS`` and each reward function."""
    return name in FIRST_METRICS or (name.startswith(OF_FUNCTIONS) and not name.endswith("/std"))


def common_steps(runs: Sequence[Audit]) -> Ints:
    common = set.intersection(*(set(run.steps) for run in runs))
    return np.array(sorted(common), dtype=np.int64)


def values_of(name: str, runs: Sequence[Audit], steps: Ints) -> Floats:
    """[R, S] values of a metric at some steps, NaN where it was not measured; the last of a repeated step counts."""
    rows = []
    for run in runs:
        known = {step: value for step, value in zip(run.steps, run.series[name], strict=True) if value is not None}
        rows.append([known.get(int(step), math.nan) for step in steps])
    return np.array(rows, dtype=np.float64).reshape(len(runs), steps.size)


def equal(name: str, a: Sequence[Audit], b: Sequence[Audit]) -> bool:
    steps = common_steps([*a, *b])
    left, right = values_of(name, a, steps), values_of(name, b, steps)
    return left.shape == right.shape and bool(np.array_equal(left, right, equal_nan=True))


def metric_difference(name: str, a: Sequence[Audit], b: Sequence[Audit]) -> MetricDifference | None:
    steps = common_steps([*a, *b])
    if not steps.size:
        return None
    left, right = values_of(name, a, steps), values_of(name, b, steps)
    known = np.isfinite(left).all(axis=0) & np.isfinite(right).all(axis=0)
    steps, left, right = steps[known], left[:, known], right[:, known]
    count = steps.size
    if count < 2:
        return None
    last = min(max(LAST_STEPS, round(LAST_SHARE * count)), count)
    ends_a, ends_b = left[:, -last:].mean(axis=1), right[:, -last:].mean(axis=1)
    difference = float(ends_b.mean() - ends_a.mean())
    gap = right.mean(axis=0) - left.mean(axis=0)
    several = len(a) >= 2 and len(b) >= 2
    error, degrees = _welch(ends_a, ends_b) if several else _of_steps(gap, last)
    reach = None if error is None else t_quantile(0.5 + LEVEL / 2.0, degrees) * error
    p = None if difference == 0.0 and error == 0.0 else _p(difference, error, degrees)
    early = _early(count)
    noise = float(np.sqrt(np.mean([_noise(values[:early]) ** 2 for values in (*left, *right)])))
    any_run = a[0].metrics.get(name)
    return MetricDifference(
        name=name,
        unit="" if any_run is None else any_run.unit,
        base_a=float(left[:, :early].mean()),
        base_b=float(right[:, :early].mean()),
        last_a=float(ends_a.mean()),
        last_b=float(ends_b.mean()),
        difference=difference,
        low=None if reach is None else difference - reach,
        high=None if reach is None else difference + reach,
        p=p,
        distinct=False,
        effect=difference / noise if noise > 0 else None,
        # The mean gap of few runs drifts with its seeds: a departure counts where the runs differ in the end.
        departure_step=departure(steps, gap) if not several or (p is not None and p < 1.0 - LEVEL) else None,
        common_steps=int(count),
        method="runs" if several else "steps",
    )


def _early(count: int) -> int:
    return min(count, max(EARLY_STEPS, round(EARLY_SHARE * count)))


def _noise(values: Floats) -> float:
    """Spread of one step around its neighbours, from differences of consecutive steps: a trend does not add to it."""
    return float(np.std(np.diff(values)) / math.sqrt(2.0)) if values.size >= 3 else 0.0


def _welch(a: Floats, b: Floats) -> tuple[float | None, int]:
    """Standard error of the difference of two means over runs, and degrees of freedom (Welch and Satterthwaite)."""
    parts = [values.var(ddof=1) / values.size for values in (a, b)]
    total = float(sum(parts))
    if total == 0.0:
        return 0.0, a.size + b.size - 2
    degrees = total**2 / sum(part**2 / (values.size - 1) for part, values in zip(parts, (a, b), strict=True))
    return math.sqrt(total), max(1, int(degrees))


def _of_steps(gap: Floats, last: int) -> tuple[float | None, int]:
    """Standard error of the mean of the last steps of a gap, with its autocorrelation, and degrees of freedom."""
    if gap.size < LAST_STEPS:
        return None, 1
    spread, correlation = _long_run(gap)
    effective = max(2.0, independent(last, correlation))
    return spread / math.sqrt(effective), max(3, int(effective) - 1)


def _long_run(gap: Floats) -> tuple[float, float]:
    """Spread and lag-one correlation (0 to .95) of a gap around its slow course (a running median of a fifth of it).

    A median keeps the edge of a jump: what a mean smears of it would count as noise, and hide the jump itself.
    """
    width = max(5, gap.size // 5) | 1
    padded = np.pad(gap, width // 2, mode="reflect") if gap.size > width // 2 else np.pad(gap, width // 2, mode="edge")
    # At about 400 places, so that a long run takes no longer than the sum of its steps.
    every = max(1, gap.size // 400)
    windows = np.lib.stride_tricks.sliding_window_view(padded, width)[: gap.size : every]
    course = np.interp(np.arange(gap.size), np.arange(0, gap.size, every), np.median(windows, axis=1))
    rest = gap - course
    spread = float(rest.std())
    if spread == 0.0:
        return 0.0, 0.0
    correlation = float((rest[1:] * rest[:-1]).mean() / rest.var())
    # Taking the course off makes neighbours look less alike than they are: by about this much.
    corrected = correlation + (1.0 + 3.0 * max(0.0, correlation)) / width
    inflation = 1.0 / math.sqrt(max(0.2, 1.0 - 1.0 / width * (1 + corrected) / max(0.05, 1 - corrected)))
    return spread * inflation, min(0.95, max(0.0, corrected))


def _p(difference: float, error: float | None, degrees: int) -> float | None:
    """Two-sided p of a t statistic."""
    if error is None:
        return None
    if error == 0.0:
        return 1.0 if difference == 0.0 else 0.0
    return t_two_sided_p(difference / error, degrees)


def holm(found: Sequence[MetricDifference]) -> list[MetricDifference]:
    """The same metrics with ``distinct`` set by Holm's step-down procedure at .05, in each of the two families."""
    distinct = set()
    for important in (True, False):
        tested = sorted(
            (row.p, at) for at, row in enumerate(found) if row.p is not None and matters(row.name) is important
        )
        for rank, (p, at) in enumerate(tested):
            if p > (1.0 - LEVEL) / (len(tested) - rank):
                break
            distinct.add(at)
    return [dataclasses.replace(row, distinct=at in distinct) for at, row in enumerate(found)]


def departure(steps: Ints, gap: Floats) -> int | None:
    """First step from which the 5-step mean of the gap stays beyond its early band, on one side, until the end.

    ``None`` where it does not, or where fewer than 20 steps are common.
    """
    count = gap.size
    if count < LEAST_STEPS:
        return None
    early = _early(count)
    spread, correlation = _long_run(gap)
    long_run = spread * math.sqrt((1.0 + correlation) / (1.0 - correlation))
    middle = float(gap[:early].mean())
    band = BAND * max(1.0, ENOUGH_STEPS / count) * long_run * math.sqrt(1.0 / SMOOTHING_STEPS + 1.0 / early)
    smooth = trailing_mean(gap - middle, SMOOTHING_STEPS)
    # Equal runs have a gap of zero and a band of zero: rounding is no departure.
    band = max(band, 1e-12 * max(1.0, float(np.abs(gap).max())))
    side = np.where(smooth > band, 1, np.where(smooth < -band, -1, 0))
    if side[-1] == 0:
        return None
    other = np.flatnonzero(side != side[-1])
    start = int(other[-1]) + 1 if other.size else 0
    return int(steps[start]) if count - start >= LEAST_STAY * count else None
