"""An arm: formats are held to shares of which the better ones have more than at the base."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from rlmon.interventions import Round, RowChange, setting
from rlmon.interventions.mode_counts import POOLED, REST, ModeCounts, observe
from rlmon.interventions.mode_marginal import ModeMarginal, addition, equal_across
from rlmon.statistics import effective_number

HALVINGS = 40


@dataclass(frozen=True, kw_only=True, slots=True)
class TiltedMarginal(ModeMarginal):
    """Hold the distribution over modes to the base's, tilted to the modes that are solved more often.

    The target is p*(m) proportional to p0(m) exp(s_m / tau) in place of p0, s_m the mode's solve rate now. Kappa is
    steered as before, by the base's own effective number.
    """

    name = "tilted_marginal"

    keeps: float = setting(0.9, "share of the base's effective number that the target keeps", low=0.0, high=1.0)
    least_tau: float = setting(0.02, "tau is no less: solve rates of 256 completions are noisy", low=0.001)

    def on_round(self, state: ModeCounts, round: Round) -> tuple[ModeCounts, RowChange]:
        state = observe(state, round.table, self.modes, self.memory_completions)
        if not round.acting or round.dry_run:
            return state, RowChange()
        target = tilted(state, self.keeps, self.least_tau)
        return state, RowChange(addition_N=round.scale * addition(self, target, round.table, round.level))


def solve_rates(state: ModeCounts) -> dict[int, float]:
    """s by mode of the base: what is remembered of each, and two completions as right as the run beside it."""
    tried, solved = state.trials[POOLED], state.solved[POOLED]
    rate = math.fsum(state.now.rewarded.values()) / state.now.total
    return {
        mode: (solved.get(mode, 0.0) + 2.0 * rate) / (tried.get(mode, 0.0) + 2.0)
        for mode in state.base.rows
        if mode != REST
    }


def tilt(rows: Mapping[int, float], rates: Mapping[int, float], tau: float) -> dict[int, float]:
    """``rows`` times exp(rate / tau), in sum what they were."""
    top = max(rates[mode] for mode in rows)
    weight = {mode: n * math.exp((rates[mode] - top) / tau) for mode, n in rows.items()}
    scale = math.fsum(rows.values()) / math.fsum(weight.values())
    return {mode: n * scale for mode, n in weight.items()}


def least_tau(rows: Mapping[int, float], rates: Mapping[int, float], keeps: float, low: float) -> float:
    """The least tau from ``low`` on with which the tilted rows keep this share of their effective number; infinite
    where that takes more than 1000."""
    floor = keeps * effective_number(list(rows.values()))

    def kept(tau: float) -> bool:
        return bool(effective_number(list(tilt(rows, rates, tau).values())) >= floor)

    if kept(low):
        return low
    high = 1000.0
    if not kept(high):
        return math.inf
    for _ in range(HALVINGS):
        middle = math.sqrt(low * high)
        low, high = (low, middle) if kept(middle) else (middle, high)
    return high


def tilted(state: ModeCounts, keeps: float, low: float) -> ModeCounts:
    """The counts with a base that has its modes in the tilted shares, and prompts that differ as much as they did.

    The rest stays as it is. Shares by source stay too: the task of this study has one source.
    """
    if not state.complete:
        return state
    base, rates = state.base, solve_rates(state)
    rows = {mode: n for mode, n in base.rows.items() if mode != REST}
    rest = {mode: n for mode, n in base.rows.items() if mode == REST}
    shifted = {**tilt(rows, rates, least_tau(rows, rates, keeps, low)), **rest}
    before, after = equal_across(base.rows), equal_across(shifted)
    equal_pairs = base.equal_pairs
    if before is not None and after is not None and before < 1.0:
        # Chance of equal modes within a prompt: across + correlation (1 - across), with the same correlation.
        equal_pairs = base.pairs - (base.pairs - base.equal_pairs) * (1.0 - after) / (1.0 - before)
    return replace(state, base=replace(base, rows=shifted, equal_pairs=equal_pairs))
