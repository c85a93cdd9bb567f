"""The two ends of one curve, with intervals that know that neighbouring points resemble one another.

A curve is all that most runs leave behind: one value a step, no prompts to draw again. Its noise is estimated near
each end by itself (a run that collapses is quiet at its end), from what a straight line leaves over there, as an
autoregressive process of order 1; the mean of k neighbouring points then has the variance
s^2 / k (1 + 2 sum_j (1 - j / k) phi^j). Positive quantities are compared in logarithms, where an exponential decay is a
straight line, so that a fall inside the first few points is seen for what it is. Intervals are Student's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from rlmon.audit.features import Bools, Floats, Ints
from rlmon.audit.timeline import SMOOTHING_STEPS
from rlmon.series import MOST_CORRELATION, independent
from rlmon.statistics import t_quantile, trailing_mean

LEAST_POINTS = 8
"""Fewer points have no two ends: a base of one step is no base."""
_NOISE_POINTS = 12
"""Points near an end from which its noise is estimated."""
_LEAST_FREEDOM = 6
_LEAST_SHARE = 1e-6
"""Of the largest value near an end: what is smaller, or not positive, counts as this much in logarithms."""


@dataclass(frozen=True, kw_only=True)
class Move:
    """The last window of a curve against its first points."""

    base: float
    """Level of the first points: their mean; geometric where the move is relative."""
    last: float
    """The same of the last window."""
    low: float
    """Interval of what ``last`` would be if ``base`` were exact: the errors of both ends are in it."""
    high: float
    points: int

    def within(self, text: str = "") -> str:
        """Both levels and the interval in words."""
        return f"{self.base:.3g} -> {self.last:.3g}{text} (interval {self.low:.3g} to {self.high:.3g})"


def known(values: Floats | None) -> Floats:
    """The finite values of a curve in order; none where there is no curve."""
    return np.zeros(0) if values is None else values[np.isfinite(values)]


def last_points(points: int) -> int:
    """Points of the last window: a tenth, five at least, a quarter at most."""
    return int(max(min(5, points // 4), round(0.1 * points), 1))


def move(values: Floats, alpha: float, *, relative: bool, base: Floats | None = None) -> Move | None:
    """The ends of a curve (finite values, in order); ``None`` where it has fewer than eight points.

    ``alpha``: error rate of the interval (two-sided). ``relative``: in logarithms, for quantities that are positive.
    ``base``: values of another run, all of which are the base. ``None`` too for a relative move neither of whose ends
    is positive.
    """
    if values.size < LEAST_POINTS or (base is not None and base.size < 3):
        return None
    own = values[: values.size // 2] if base is None else base
    first = int(np.clip(values.size // 20, 3, 8)) if base is None else own.size
    last = last_points(values.size)
    noise = max(8, min(_NOISE_POINTS, values.size // 4))
    start, end = own[: max(noise, first)], values[-min(max(noise, last), values.size - first) :]
    if relative:
        largest = max(float(start.max()), float(end.max()))
        if not largest > 0:
            return None
        # A base has its own scale, since what came later may be larger by any factor; what fell to nothing has not.
        scale = float(start.max()) if start.max() > 0 else largest
        start, end = np.log(np.maximum(start, _LEAST_SHARE * scale)), np.log(np.maximum(end, _LEAST_SHARE * largest))
    error, freedom = _error_of_mean(start, first)
    last_error, last_freedom = _error_of_mean(end, last)
    base_level, last_level = float(start[:first].mean()), float(end[-last:].mean())
    variance, last_variance = error**2, last_error**2
    spread = variance**2 / freedom + last_variance**2 / last_freedom
    # Welch and Satterthwaite: the degrees of freedom of a sum of two variances.
    both = int((variance + last_variance) ** 2 / spread) if spread > 0 else min(freedom, last_freedom)
    reach = t_quantile(1.0 - alpha / 2.0, max(1, both)) * math.hypot(error, last_error)
    levels = np.array([base_level, last_level, last_level - reach, last_level + reach])
    if relative:
        levels = np.exp(np.minimum(levels, 700.0))
    return Move(
        base=float(levels[0]), last=float(levels[1]), low=float(levels[2]), high=float(levels[3]), points=values.size
    )


def heading(values: Floats, alpha: float, ahead: int) -> tuple[float, float] | None:
    """Upper and lower end of the interval of where a positive curve will be ``ahead`` points after its end if it goes
    on as in its second half, an exponential; ``None`` where that half has fewer than eight points or is not positive.
    """
    half = values[values.size // 2 :]
    if half.size < LEAST_POINTS or not half.min() > 0:
        return None
    level = np.log(half)
    size = level.size
    time, slope, rest = _line(level)
    variance, phi = _noise(rest)
    weight = independent(size, phi)
    distance = (size - 1) / 2.0 + ahead
    error = math.sqrt(variance * size / weight * (1.0 / size + distance**2 / float(time @ time)))
    freedom = int(max(_LEAST_FREEDOM, min(size - 2, weight - 2)))
    reach = t_quantile(1.0 - alpha / 2.0, freedom) * error
    there = float(level.mean()) + slope * distance
    return math.exp(min(there + reach, 700.0)), math.exp(there - reach)


def _line(values: Floats) -> tuple[Floats, float, Floats]:
    """Time around its middle, the slope of the straight line through the values, and what it leaves over."""
    time: Floats = np.arange(values.size, dtype=np.float64) - (values.size - 1) / 2.0
    centred: Floats = values - values.mean()
    slope = float(time @ centred) / float(time @ time)
    rest: Floats = centred - slope * time
    return time, slope, rest


def _noise(rest: Floats) -> tuple[float, float]:
    """Variance and correlation of neighbours of what a straight line left over.

    A line takes noise of long memory along: both are estimated too small, and are corrected for that.
    """
    size, square = rest.size, float(rest @ rest)
    if square <= 1e-24 * size:
        return 0.0, 0.0
    phi = float(rest[1:] @ rest[:-1]) / square
    phi = min(MOST_CORRELATION, max(0.0, phi + (1.0 + 3.0 * phi) / size))
    return square / (size - 2) / max(0.2, 1.0 - 2.0 / independent(size, phi)), phi


def _error_of_mean(values: Floats, window: int) -> tuple[float, int]:
    """Standard error of the mean of ``window`` neighbouring values like these, and its degrees of freedom."""
    size = values.size
    if size < 4:
        return math.inf, 1
    variance, phi = _noise(_line(values)[2])
    if not variance:
        return 0.0, size - 2
    lags = np.arange(1, window)
    inflation = 1.0 + 2.0 * float(((1.0 - lags / window) * phi**lags).sum())
    freedom = int(max(_LEAST_FREEDOM, min(size - 2, independent(size, phi) - 2)))
    return math.sqrt(variance / window * inflation), freedom


def since(steps: Ints, past: Bools) -> int | None:
    """First step from which nine in ten of the steps are past a line, up to the end; ``None`` where the end is not."""
    if not past.size or not past[-1]:
        return None
    share = np.cumsum(past[::-1])[::-1] / np.arange(past.size, 0, -1)
    at = np.flatnonzero(past & (share >= 0.9))
    return int(steps[at[0]]) if at.size else None


def smooth_since(steps: Ints, values: Floats, line: float, *, upward: bool) -> int | None:
    """First step from which the 5-step mean of a curve stays past a line; missing values are passed over."""
    at = np.flatnonzero(np.isfinite(values))
    if not at.size:
        return None
    level = trailing_mean(values[at], SMOOTHING_STEPS)
    return since(steps[at], level > line if upward else level < line)
