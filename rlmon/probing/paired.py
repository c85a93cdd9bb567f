"""Two models on the same prompts: differences and ratios of means over prompts, with intervals of Student's t.

The prompt is the unit. Few are usual here, so that a bootstrap with normal intervals, as audits of thousands of groups
use it, would be too sure.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from rlmon.statistics import Floats, t_quantile

Interval = tuple[float, float]


@dataclass(frozen=True, eq=False)
class Paired:
    """A number of each prompt [P] at the base and at the checkpoint; NaN where it is not known."""

    base_P: Floats
    checkpoint_P: Floats
    most: float = math.inf
    """What neither can be more than, where there is such a number: 1 of chances and shares."""

    def __post_init__(self) -> None:
        both_P = np.isfinite(self.base_P) & np.isfinite(self.checkpoint_P)
        object.__setattr__(self, "base_P", self.base_P[both_P])
        object.__setattr__(self, "checkpoint_P", self.checkpoint_P[both_P])

    @property
    def prompts(self) -> int:
        """Those at which both are known: only these are compared."""
        return int(self.base_P.size)

    @property
    def base(self) -> float:
        return float(self.base_P.mean())

    @property
    def checkpoint(self) -> float:
        return float(self.checkpoint_P.mean())

    def difference(self, alpha: float) -> Interval:
        """Of checkpoint minus base, with error rate ``alpha``: the paired t interval, of two prompts at least.

        Where chances of no prompt changed there is no spread: what n prompts did not show may be true of
        1 - (alpha / 2) ** (1 / n) of all.
        """
        low, high = mean_interval(self.checkpoint_P - self.base_P, alpha)
        if math.isfinite(self.most) and low == high == 0.0:
            high = self.most * (1.0 - (alpha / 2.0) ** (1.0 / self.prompts))
            low = -high
        return max(low, -self.most), min(high, self.most)

    def ratio(self, alpha: float) -> Interval:
        """Of checkpoint over base (Fieller 1954): the ratios r at which the mean of checkpoint - r base may be 0.

        Of means of numbers that are never negative. The upper end is infinite where the base's mean may be 0.
        """
        a, b = self.checkpoint, self.base
        if b and math.isfinite(self.most) and np.array_equal(self.base_P, self.checkpoint_P):
            low, high = self.difference(alpha)
            return max(0.0, 1.0 + low / b), 1.0 + high / b
        t = t_quantile(1.0 - alpha / 2.0, self.prompts - 1)
        (va, cov), (_, vb) = np.cov(self.checkpoint_P, self.base_P) / self.prompts
        # (a - r b)^2 = t^2 (va - 2 r cov + r^2 vb) is q r^2 - 2 h r + c = 0.
        q, h, c = b * b - t * t * vb, a * b - t * t * cov, a * a - t * t * va
        root = math.sqrt(max(0.0, h * h - q * c))
        if q > 0.0:
            return max(0.0, float(h - root) / q), float(h + root) / q
        return (float(h - root) / q if q < 0.0 < c else 0.0), math.inf


def mean_interval(values_P: Floats, alpha: float) -> Interval:
    """Of the mean over prompts, with error rate ``alpha``."""
    middle = float(values_P.mean())
    reach = t_quantile(1.0 - alpha / 2.0, values_P.size - 1) * float(values_P.std(ddof=1)) / math.sqrt(values_P.size)
    return middle - reach, middle + reach
