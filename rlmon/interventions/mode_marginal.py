"""Hold the distribution over modes of completions to the base's, and leave the tokens within a mode free.

To each completion's advantage, in units of a group-normalised one, comes

    kappa * (log p0(m) - log p(m) + within * (expected concentration - concentration in its prompt))

with p0 the base's share of the completion's mode m and p the policy's now. The first part is the policy gradient of
-KL(p || p0) on the mode marginal (state marginal matching, arXiv:1906.05274; distributional control,
arXiv:2012.11635), so that the optimum has p(m) proportional to p0(m) exp(R(m) / kappa), where a reward alone has the
argmax and a penalty on tokens has exp(R / beta) over all sequences (arXiv:2510.20817). The second part sees what the
first cannot, that every prompt has a favourite mode of its own while the marginal stays wide.

Three kinds of modes are treated apart. One whose solve rate is credibly below ``DESERVES`` of the run's earns no
protection: it is neither pushed nor held, and the base's shares are renormalised over the others. Modes that are not
among the base's ``LABELS`` most frequent are one label, ``REST``, which is never rewarded: garbage would do to earn it.
A mode's mean advantage is not subtracted: whether a mode is good must stay visible to the reward.

What is said within a mode is free, and where the reward does not look it drifts: a run that held its modes came to
write the same noun in every sentence. A small ``beta`` (.02 to .1) beside the pressure holds that; alone it does not
hold the modes of every base.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from rlmon.interventions.intervention import (
    NO_CHANGE,
    Intervention,
    Round,
    RowChange,
    RuleState,
    RunSoFar,
    default_of,
    setting,
    tidy,
)
from rlmon.interventions.mode_counts import (
    MEMORY_COMPLETIONS,
    POOLED,
    REST,
    ModeCounts,
    known,
    labelled,
    load,
    observe,
)
from rlmon.interventions.rows import ModeKind, RoundTable
from rlmon.interventions.setting import Setting
from rlmon.statistics import beta_cdf, effective_number

SHRINK_COMPLETIONS = 16.0
"""The running shares are shrunk to the base's by so many completions: bounds the log ratio of a vanished mode."""
SHRINK_GROUP = 4.0
"""A prompt's shares are shrunk to the running ones by so many completions."""
SHRINK_SOURCE = 64.0
"""A source's base shares are shrunk to the pooled ones by so many completions."""
DESERVES = 0.25
"""A mode deserves protection unless its solve rate is credibly below this share of the run's."""
CREDIBILITY = 0.95
LEAST_SUCCESSES = 8.0
"""Fewer rewarded completions than this tell nothing about modes."""
LEAST_REWARDED = 16.0
"""Fewer rewarded completions than this have no effective number."""
NOISE_SE = 1.0
"""A log ratio below so many of its standard errors is none, and a large one is nearly whole (Breiman's garrote)."""
BASE_SE = 2.0
"""Prompts of the base differ from one another only when by more than so many standard errors."""
FULL_WITHIN = 0.15
"""Loss of the effective number within prompts at which the pressure inside prompts is whole."""
DEAD_BAND = 0.03
"""Kappa is lowered only when the effective number is this far above the floor."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModeMarginal(Intervention):
    """Hold the distribution over modes to the base's: kappa * (log p0(mode) - log p(mode)) on every advantage."""

    name = "mode_marginal"
    measured_by = ("rlmon/format/effective_correct", "up")
    starts_at = "kappa"
    holds: ClassVar[Mapping[str, float | None]] = {"kappa": 0.0, "mode_ratio": None}
    folds_base = True
    moves_when_dry = True

    modes: ModeKind = setting("format", "what counts as a mode")
    kappa: float = setting(1.0, "strength when the rule begins to act, in units of normalised advantage", low=0.0)
    bounds: tuple[float, float] = setting((0.25, 1.5), "least and most kappa while it acts", low=0.0)
    floor: float = setting(
        0.9,
        "share of the base's effective number (of rewarded completions) that kappa is steered to",
        low=0.0,
        high=1.0,
    )
    within: float = setting(
        2.0,
        "weight of the pressure inside each prompt beside that across prompts, once prompts narrow",
        low=0.0,
        high=4.0,
    )
    bound: float = setting(3.0, "most that one completion's log ratio may be, either way", low=0.0)
    memory_completions: int = setting(MEMORY_COMPLETIONS, "completions that the running shares remember", low=8)

    @property
    def knob(self) -> str:
        return f"kappa ({self.modes})"

    def fresh(self) -> ModeCounts:
        return ModeCounts()

    def load(self, found: Mapping[str, Any]) -> ModeCounts:
        return load(found)

    def on_round(self, state: ModeCounts, round: Round) -> tuple[ModeCounts, RowChange]:
        state = observe(state, round.table, self.modes, self.memory_completions)
        if not round.acting or round.dry_run:
            return state, NO_CHANGE
        return state, RowChange(addition_N=round.scale * addition(self, state, round.table, round.level))

    def next_level(self, at: RuleState, run: RunSoFar) -> tuple[float | None, str | None]:
        if not at.met:
            return 0.0, None
        if at.level == 0.0:
            return self.kappa, None
        steered = control(self, at.inner, at.level)
        return None if steered is None else tidy(steered), describe(self, at.inner)

    def measures(self, at: RuleState, step: int, *, dry_run: bool) -> Mapping[str, float | None]:
        return {"kappa": at.level, "mode_ratio": worst_ratio(at.inner)}

    def useless(self, setting: Setting) -> str | None:
        for name in ("kappa", "bound"):
            if getattr(self, name) == 0.0:
                return f"{name}: 0 adds nothing to any advantage. Type {name}: {default_of(self, name):g}"
        return None

    def reach(self) -> Mapping[str, float]:
        return {"kappa": max(self.kappa, self.bounds[1])}


def addition(settings: ModeMarginal, state: ModeCounts, table: RoundTable, kappa: float) -> NDArray[np.float64]:
    """What comes to each row's advantage [N], in units of a group-normalised one.

    Call it after ``observe`` of the same table: the shares are then those of the policy that sampled it. Each row is
    left out of the shares it is compared with. Sums to zero; zero for rows without a mode or a reward, for modes that
    deserve no protection, and for all rows while the base is incomplete.
    """
    result_N = np.zeros(len(table))
    if not state.complete or kappa == 0.0:
        return result_N
    key_N = table.modes_N[settings.modes]
    known_N = known(table, key_N)
    label_N = labelled(state, key_N)
    source_N = np.array([state.source_of(source) for source in table.source_N.tolist()], dtype=np.int64)
    lost = {source: undeserving(state, source) for source in np.unique(source_N).tolist()}
    held_N = known_N & (label_N != REST)
    for source, labels in lost.items():
        held_N &= ~((source_N == source) & np.isin(label_N, np.array(sorted(labels), dtype=np.int64)))
    rest_N = known_N & (label_N == REST)
    if not held_N.any():
        return result_N
    pressure_N = np.zeros(len(table))
    acted_N = held_N | rest_N
    across = {source: _across(state, labels, source) for source, labels in lost.items()}
    pressure_N[acted_N] = [
        across[source][label]
        for source, label in zip(source_N[acted_N].tolist(), label_N[acted_N].tolist(), strict=True)
    ]
    if settings.within > 0.0:
        concentration_N = _concentration(state, table.group_size, source_N, label_N, acted_N, lost)
        pressure_N += settings.within * _narrowed(state) * concentration_N
    pressure_N = np.clip(pressure_N, -settings.bound, settings.bound)
    centre = float(pressure_N[held_N].mean())
    result_N[rest_N] = np.minimum(pressure_N[rest_N] - centre, 0.0)
    # What the rest loses the held modes gain, so that nothing is added in sum and the rest is never rewarded.
    result_N[held_N] = pressure_N[held_N] - centre - float(result_N[rest_N].sum()) / int(held_N.sum())
    return np.asarray(kappa * result_N, dtype=np.float64)


def control(settings: ModeMarginal, state: ModeCounts, kappa: float) -> float | None:
    """The next kappa, ``None`` where it stays.

    Raised, by up to a quarter, as far as the effective number of rewarded completions is below ``floor`` times the
    base's, across or within prompts, whichever is worse; lowered by a tenth when both are ``DEAD_BAND`` above it.
    """
    ratio = worst_ratio(state)
    if ratio is None:
        return None
    lack = settings.floor - ratio
    if lack > 0.0:
        new = kappa * (1.0 + min(0.25, 2.0 * lack))
    elif lack < -DEAD_BAND:
        new = kappa * 0.9
    else:
        return None
    new = min(max(new, settings.bounds[0]), settings.bounds[1])
    return None if new == kappa else new


def worst_ratio(state: ModeCounts) -> float | None:
    """The smaller of the effective numbers, across and within, over the base's: those of rewarded completions, or of
    all where the base or the run has too few rewarded ones. Where a source has modes that deserve no protection, what
    counts is what is held in each source: the rest is no loss, and no kappa would bring it back."""
    lost = {source: undeserving(state, source) for source in state.now_by_source}
    if any(lost.values()):
        return _held_ratio(state, lost)
    found = ratios(state)
    known = [
        found[name] if found[f"correct_{name}"] is None else found[f"correct_{name}"] for name in ("across", "within")
    ]
    present = [ratio for ratio in known if ratio is not None]
    return min(present) if present else None


def _held_ratio(state: ModeCounts, lost: Mapping[int, frozenset[int]]) -> float | None:
    """Effective number over the base's of the modes held in each source, mean over what is remembered of it."""
    total = weighted = 0.0
    for source, rows in state.now_by_source.items():
        target = _target(state, source)
        held = [label for label in target if label != REST and label not in lost[source]]
        seen = {label: rows.get(label, 0.0) for label in held}
        count = math.fsum(seen.values())
        ratio = _over(_effective(seen), _effective({label: target[label] for label in held}))
        if len(held) > 1 and count >= LEAST_REWARDED and ratio is not None:
            total += count
            weighted += count * ratio
    return weighted / total if total else None


def describe(settings: ModeMarginal, state: ModeCounts) -> str:
    """Why kappa is what it is, in a line."""
    ratio = worst_ratio(state)
    if ratio is None:
        return "the base's modes are not known yet"
    side = "below" if ratio < settings.floor else "at or above"
    return (
        f"effective {settings.modes}s of rewarded completions are {ratio:.2f} of the base's "
        f"(the lower of across and within prompts), {side} the floor of {settings.floor:g}"
    )


def undeserving(state: ModeCounts, source: int = POOLED) -> frozenset[int]:
    """Modes whose solve rate in the source is credibly (``CREDIBILITY``) below ``DESERVES`` times the source's.

    By source, since a kind of prompt may be solvable in one mode alone: to hold the others there would be to hold back
    what is being learned. Posterior Beta(2r + solved, 2(1 - r) + failed) with r the source's solve rate.
    """
    if source == POOLED:
        trials, successes = state.now.total, math.fsum(state.now.rewarded.values())
    else:
        trials = math.fsum(state.now_by_source.get(source, {}).values())
        successes = state.rewarded_by_source.get(source, 0.0)
    if not state.complete or successes < LEAST_SUCCESSES:
        return frozenset()
    rate = min(1.0, successes / trials)
    lost = set()
    for label, tried in state.trials.get(source, {}).items():
        good = min(state.solved.get(source, {}).get(label, 0.0), tried)
        a, b = 2.0 * rate + good, max(2.0 * (1.0 - rate), 1e-3) + tried - good
        if label != REST and beta_cdf(DESERVES * rate, a, b) >= CREDIBILITY:
            lost.add(label)
    # All cannot be worse than their mean; memories of different length may say so.
    return frozenset() if lost >= set(state.base.rows) - {REST} else frozenset(lost)


# -- pressure ----------------------------------------------------------------------------------------------------------


def _across(state: ModeCounts, lost: frozenset[int], source: int = POOLED) -> dict[int, float]:
    """log p0(m) - log p(m) by mode that is held, both of the source and renormalised over the held modes, and the same
    of the rest.

    p leaves one completion of m out, and is shrunk to p0.
    """
    target = _target(state, source)
    held = [label for label in target if label not in lost and label != REST]
    rows = state.now.rows if source == POOLED else state.now_by_source.get(source, {})
    base_held = math.fsum(target[label] for label in held)
    now_held = math.fsum(rows.get(label, 0.0) for label in held)
    result = dict.fromkeys(lost, 0.0)
    for label in (*held, REST):
        p0 = target[label] / base_held
        others = max(0.0, rows.get(label, 0.0) - 1.0)
        seen = max(0.0, now_held - 1.0) + SHRINK_COMPLETIONS
        p = (others + SHRINK_COMPLETIONS * p0) / seen
        ratio = math.log(p0) - math.log(p)
        # At rest the pressure would be sampling noise, and a trainer that normalises gradients follows noise.
        error = math.sqrt(max(0.0, 1.0 - min(p0, p)) / (seen * max(p0, p)))
        result[label] = ratio - (NOISE_SE * error) ** 2 / ratio if abs(ratio) > NOISE_SE * error else 0.0
    return result


def _target(state: ModeCounts, source: int = POOLED) -> dict[int, float]:
    """The base's share of each mode: the source's, or standardised to the mix of sources that the run remembers.

    A mode that the base did not show has half a completion, so that the first of it is no catastrophe and the
    hundredth is.
    """
    pooled = _floored(state.base.rows)
    if source != POOLED:
        return _source_shares(state, pooled, source)
    weights = state.now.by_source
    total = math.fsum(weights.values())
    if len(state.base_by_source) < 2 or total <= 0.0:
        return pooled
    mixed = dict.fromkeys(pooled, 0.0)
    for source, weight in weights.items():
        for label, share in _source_shares(state, pooled, source).items():
            mixed[label] += weight / total * share
    return mixed


def _floored(rows: Mapping[int, float]) -> dict[int, float]:
    counts = {**rows, REST: max(0.5, rows.get(REST, 0.0))}
    total = math.fsum(counts.values())
    return {label: n / total for label, n in counts.items()}


def _source_shares(state: ModeCounts, pooled: Mapping[int, float], source: int) -> dict[int, float]:
    rows = state.base_by_source.get(source, {})
    total = math.fsum(rows.values()) + SHRINK_SOURCE
    return {label: (rows.get(label, 0.0) + SHRINK_SOURCE * share) / total for label, share in pooled.items()}


def _concentration(
    state: ModeCounts,
    group_size: int,
    source_N: NDArray[np.int64],
    label_N: NDArray[np.int64],
    acted_N: NDArray[np.bool_],
    lost: Mapping[int, frozenset[int]],
) -> NDArray[np.float64]:
    """How much less than expected each row's mode fills the rest of its prompt's group, in nats [N].

    The share of its mode among the g other completions of the group that are acted on, q = (n + c pi) / (g + c) with
    pi the mode's running share in the source, against what log q would be were the prompt like the base's prompts:
    E[log q] for n beta-binomial around pi with the base's own correlation within prompts. The expectation is exact,
    since that of a plain log would reward rare modes in small groups.
    """
    result_N = np.zeros(len(label_N))
    group_N = np.arange(len(label_N)) // max(1, group_size)
    others_N = np.bincount(group_N, weights=acted_N, minlength=1)[group_N].astype(np.int64) - 1
    label_names, code_N = np.unique(label_N, return_inverse=True)
    cell_N = group_N * len(label_names) + code_N
    same_N = np.bincount(cell_N, weights=acted_N, minlength=1)[cell_N].astype(np.int64) - 1
    correlation = _base_correlation(state)
    cache: dict[tuple[int, int, int], NDArray[np.float64]] = {}
    priors = {source: _running(state, labels, source) for source, labels in lost.items()}
    for row in np.flatnonzero(acted_N & (others_N > 0)):
        found = int(source_N[row]), int(label_N[row]), int(others_N[row])
        if found not in cache:
            cache[found] = _surprise(priors[found[0]][found[1]], found[2], correlation)
        result_N[row] = cache[found][int(same_N[row])]
    return result_N


def _running(state: ModeCounts, lost: frozenset[int], source: int) -> dict[int, float]:
    """The source's shares now over the modes that are acted on, shrunk to its base's."""
    target = _target(state, source)
    rows = state.now.rows if source == POOLED else state.now_by_source.get(source, {})
    weights = {
        label: rows.get(label, 0.0) + SHRINK_COMPLETIONS * share for label, share in target.items() if label not in lost
    }
    total = math.fsum(weights.values())
    return {label: weight / total for label, weight in weights.items()}


def _narrowed(state: ModeCounts) -> float:
    """How much prompts have narrowed more than the run, 0 (not) to 1 (by ``FULL_WITHIN`` or more).

    What one group shows is mostly noise: it is worth its variance only when the run's groups together have narrowed.
    """
    now, base = state.now, state.base
    ratio = _over(_spread(now.rows, now.equal_pairs, now.pairs), _base_spread(base.rows, base.equal_pairs, base.pairs))
    return 0.0 if ratio is None else min(1.0, max(0.0, (1.0 - ratio) / FULL_WITHIN))


def _surprise(share: float, others: int, correlation: float) -> NDArray[np.float64]:
    """E[log q] - log q for each count n of 0..others, n beta-binomial given that the row itself is of the mode."""
    count = np.arange(others + 1)
    log_q = np.log((count + SHRINK_GROUP * share) / (others + SHRINK_GROUP))
    # Given one draw of the mode, a Dirichlet prompt of concentration s has Beta(s pi + 1, s (1 - pi)) for the next.
    s = 1.0 / correlation - 1.0
    a, b = s * share + 1.0, s * (1.0 - share)
    log_weight = [
        math.lgamma(others + 1)
        - math.lgamma(n + 1)
        - math.lgamma(others - n + 1)
        + math.lgamma(n + a)
        + math.lgamma(others - n + b)
        - math.lgamma(others + a + b)
        - math.lgamma(a)
        - math.lgamma(b)
        + math.lgamma(a + b)
        for n in range(others + 1)
    ]
    weight = np.exp(np.array(log_weight))
    return np.asarray(float(weight @ log_q / weight.sum()) - log_q, dtype=np.float64)


def _base_correlation(state: ModeCounts) -> float:
    """How much more often than two completions of the run two of one prompt have the same mode in the base, between
    .001 (not credibly more often: prompts do not matter) and .9."""
    spread = _base_spread(state.base.rows, state.base.equal_pairs, state.base.pairs)
    across = equal_across(state.base.rows)
    if spread is None or across is None:
        return 0.001
    # within = across / spread, and the correlation is (within - across) / (1 - across).
    return float(min(0.9, max(0.001, across * (1.0 / spread - 1.0) / max(1e-9, 1.0 - across))))


def _effective(rows: Mapping[int, float]) -> float | None:
    """exp of the entropy of the counts (Hill number of order 1); ``None`` for no counts."""
    # In one order on all ranks, whatever each of them met first.
    return float(effective_number(sorted(rows.values()))) if math.fsum(rows.values()) > 0.0 else None


def ratios(state: ModeCounts) -> dict[str, float | None]:
    names = ("across", "within", "correct_across", "correct_within")
    if not state.complete:
        return dict.fromkeys(names, None)
    few = min(math.fsum(tally.rewarded.values()) for tally in (state.base, state.now)) < LEAST_REWARDED
    numbers = []
    for tally, spread_of in ((state.base, _base_spread), (state.now, _spread)):
        across = _effective(tally.rows)
        correct = None if few else _effective(tally.rewarded)
        within = _times(across, spread_of(tally.rows, tally.equal_pairs, tally.pairs))
        correct_within = _times(correct, spread_of(tally.rewarded, tally.equal_pairs_rewarded, tally.pairs_rewarded))
        numbers.append((across, within, correct, correct_within))
    base, now = numbers
    return {name: _over(n, b) for name, n, b in zip(names, now, base, strict=True)}


def _spread(rows: Mapping[int, float], equal: float, prompts: float) -> float | None:
    """Chance that two completions of the run have the same mode over that for two of one prompt: 1 where prompts do
    not matter, less the narrower each is.

    Unbiased above and below for groups of any size from two on. An effective number within prompts alone has the
    error of the marginal besides its own; this has not.
    """
    across = equal_across(rows)
    return None if across is None or prompts <= 1.0 or equal <= 0.0 else across / (equal / prompts)


def _base_spread(rows: Mapping[int, float], equal: float, prompts: float) -> float | None:
    """``_spread`` of the base, by as much as it is credibly below 1: few prompts are seen, and the narrowness that
    chance gives them would be allowed to the run for ever."""
    spread, across = _spread(rows, equal, prompts), equal_across(rows)
    each = math.fsum(rows.values()) / prompts if prompts else 0.0
    if spread is None or across is None or each <= 1.0 or across <= 0.0:
        return None
    # Of the chance of equal modes in a prompt, relative; pairs of one prompt that share no completion are independent.
    error = math.sqrt(max(0.0, 1.0 - across) / (across * prompts * each * (each - 1.0) / 2.0))
    # In the scale of the chance, where the error is.
    excess = 1.0 / spread - 1.0
    if excess <= BASE_SE * error:
        return 1.0
    return 1.0 / (1.0 + excess - (BASE_SE * error) ** 2 / excess)


def equal_across(rows: Mapping[int, float]) -> float | None:
    """Chance that two different completions of the run have the same mode."""
    total = math.fsum(rows.values())
    if total <= 1.0:
        return None
    return math.fsum(n * max(0.0, n - 1.0) for n in rows.values()) / (total * (total - 1.0))


def _times(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a * b


def _over(now: float | None, base: float | None) -> float | None:
    return None if now is None or base is None else now / base
