"""The start of a run against its end: differences with intervals from a bootstrap over prompts.

The unit that is drawn is the prompt, with everything that was sampled of it: a prompt that was seen at both ends
brings both of its sides into every replicate (a paired bootstrap), one that was seen at one end only that side.
Intervals are normal with the bootstrap's standard error, at a level that is shared out over the checks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from rlmon.audit.features import Bools, Floats, Ints

REPLICATES = 1_000
MAX_PROMPTS = 4_096
"""More prompts than this are thinned by their keys: the intervals would be no wider than a hair."""
BASE_STEPS = 8
BASE_PROMPTS = 64
BASE_COMPLETIONS = 256
LAST_SHARE = 0.1
LAST_STEPS = 5


@dataclass(frozen=True, kw_only=True)
class Windows:
    """The two ends of a run."""

    base: Ints
    """Steps of the base: the first ones until 64 prompts and 256 completions, 8 at most, a fifth of the run at most."""
    last: Ints
    """The last tenth of the steps, 5 at least, never a step of the base."""


def windows(steps: Ints, prompts_S: Floats, completions_S: Floats) -> Windows | None:
    """The two ends of a run from what each step sampled; ``None`` with fewer than two steps."""
    if steps.size < 2:
        return None
    enough = (np.cumsum(prompts_S) >= BASE_PROMPTS) & (np.cumsum(completions_S) >= BASE_COMPLETIONS)
    needed = int(np.argmax(enough)) + 1 if enough.any() else steps.size
    base = max(1, min(needed, BASE_STEPS, steps.size // 5))
    last = min(max(LAST_STEPS, round(LAST_SHARE * steps.size)), steps.size - base)
    return Windows(base=steps[:base], last=steps[steps.size - last :])


@dataclass(frozen=True, kw_only=True)
class Difference:
    """An end of a run minus its base."""

    base: float
    last: float
    low: float
    """Interval of ``last - base``."""
    high: float
    prompts_base: int
    prompts_last: int
    paired: int
    """Prompts that were seen at both ends."""

    @property
    def change(self) -> float:
        """``last - base``."""
        return self.last - self.base


class Contrast:
    """Groups of the two ends of a run, ready to be compared in any statistic of theirs."""

    def __init__(
        self, prompt: Ints, is_base: Bools, is_last: Bools, alpha: float, weight_G: Floats | None = None
    ) -> None:
        """``prompt`` [G] is each group's prompt; ``alpha`` the error rate of one interval (two-sided); ``weight_G``
        what a group counts for, 1 by default and 0 for those that are left out."""
        weight_G = np.ones(prompt.size) if weight_G is None else weight_G
        self._rows = np.flatnonzero((is_base | is_last) & (weight_G > 0))
        keys, code = np.unique(prompt[self._rows], return_inverse=True)
        if keys.size > MAX_PROMPTS:
            inside = code < MAX_PROMPTS  # keys are hashes: the smallest are a uniform sample
            self._rows, code, keys = self._rows[inside], code[inside], keys[:MAX_PROMPTS]
        self._code = code
        self._last = is_last[self._rows]
        self._weight_RK = weight_G[self._rows][:, None]
        self._prompts = keys.size
        self.z = NormalDist().inv_cdf(1.0 - alpha / 2.0)
        # One set of weights for all checks: their errors are dependent, which the sharing of alpha allows.
        self._weights = np.random.default_rng(20_411).poisson(1.0, size=(REPLICATES, keys.size)).astype(np.float32)

    def of(
        self, values_GK: NDArray[np.floating], statistic: Callable[[NDArray[np.float64]], NDArray[np.float64]]
    ) -> Difference | None:
        """``statistic`` of the summed ``values`` [G, K] at both ends: it maps [..., K] to [...].

        ``None`` where an end has fewer than two prompts or the statistic is not finite there.
        """
        values = np.nan_to_num(np.asarray(values_GK, dtype=np.float64)[self._rows]) * self._weight_RK
        ends = []
        seen = []
        for side in (~self._last, self._last):
            sums = np.zeros((self._prompts, values.shape[1]))
            np.add.at(sums, self._code[side], values[side])
            seen.append(np.abs(sums).sum(axis=1) > 0)
            ends.append(sums)
        counts = [int(mask.sum()) for mask in seen]
        if min(counts) < 2:
            return None
        with np.errstate(invalid="ignore", divide="ignore"):
            base, last = (float(statistic(sums.sum(axis=0))) for sums in ends)
            replicates = statistic(self._weights @ ends[1]) - statistic(self._weights @ ends[0])
        replicates = replicates[np.isfinite(replicates)]
        if not (np.isfinite(base) and np.isfinite(last)) or replicates.size < REPLICATES // 2:
            return None
        reach = self.z * float(replicates.std(ddof=1))
        return Difference(
            base=base,
            last=last,
            low=last - base - reach,
            high=last - base + reach,
            prompts_base=counts[0],
            prompts_last=counts[1],
            paired=int((seen[0] & seen[1]).sum()),
        )

    def at_base(
        self, values_GK: NDArray[np.floating], statistic: Callable[[NDArray[np.float64]], NDArray[np.float64]]
    ) -> tuple[float, float] | None:
        """``statistic`` at the base alone, and its standard error; ``None`` where it cannot be computed."""
        sums = np.zeros((self._prompts, values_GK.shape[1]))
        side = ~self._last
        np.add.at(sums, self._code[side], np.nan_to_num(np.asarray(values_GK, dtype=np.float64)[self._rows][side]))
        with np.errstate(invalid="ignore", divide="ignore"):
            value, replicates = float(statistic(sums.sum(axis=0))), statistic(self._weights @ sums)
        replicates = replicates[np.isfinite(replicates)]
        if not np.isfinite(value) or replicates.size < REPLICATES // 2:
            return None
        return value, float(replicates.std(ddof=1))

    def ratio(self, top_G: NDArray[np.floating], bottom_G: NDArray[np.floating]) -> Difference | None:
        """The ratio of two sums at both ends."""
        return self.of(np.stack([top_G, bottom_G], axis=1), lambda sums: sums[..., 0] / sums[..., 1])

    def mean(self, values_G: NDArray[np.floating]) -> Difference | None:
        """The mean over the groups where the value is known (not NaN)."""
        known = np.isfinite(values_G)
        return self.ratio(np.where(known, values_G, 0.0), known.astype(np.float64))
