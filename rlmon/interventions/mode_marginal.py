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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from rlmon.baseline import ROUNDS, Baseline
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
from rlmon.interventions.rows import ModeKind, RoundTable
from rlmon.interventions.setting import Setting
from rlmon.statistics import beta_cdf, effective_number

REST = -2
"""Key of all modes that are not among the base's most frequent; -1 is a mode that is not known."""
POOLED = -1
"""In place of a source: all of them together."""
LABELS = 64
"""Modes of the base that have a share of their own."""
SOURCES = 64
SHRINK_COMPLETIONS = 16.0
"""The running shares are shrunk to the base's by so many completions: bounds the log ratio of a vanished mode."""
SHRINK_GROUP = 4.0
"""A prompt's shares are shrunk to the running ones by so many completions."""
SHRINK_SOURCE = 64.0
"""A source's base shares are shrunk to the pooled ones by so many completions."""
DESERVES = 0.25
"""A mode deserves protection unless its solve rate is credibly below this share of the run's."""
CREDIBILITY = 0.95
TRIALS = 256.0
"""Completions of a mode that its solve rate remembers. Its own, so that what a dead mode was is not forgotten."""
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
    memory_completions: int = setting(320, "completions that the running shares remember", low=8)

    @property
    def knob(self) -> str:
        return f"kappa ({self.modes})"

    def fresh(self) -> ModeMarginalState:
        return ModeMarginalState()

    def on_round(self, state: ModeMarginalState, round: Round) -> tuple[ModeMarginalState, RowChange]:
        state = observe(self, state, round.table)
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


@dataclass(frozen=True, kw_only=True)
class Tally:
    """What has been counted: of the base all of it, of the run what is remembered."""

    rows: Mapping[int, float] = field(default_factory=dict)
    """Scored completions by mode."""
    rewarded: Mapping[int, float] = field(default_factory=dict)
    by_source: Mapping[int, float] = field(default_factory=dict)
    """Scored completions by source."""
    equal_pairs: float = 0.0
    """Ordered pairs of two completions of one prompt with equal mode, mean over prompts times prompts."""
    pairs: float = 0.0
    """Prompts with at least one pair."""
    equal_pairs_rewarded: float = 0.0
    pairs_rewarded: float = 0.0

    def plus(self, other: Tally, keep: float) -> Tally:
        """``keep`` times this and once ``other``."""
        return Tally(
            rows=_add(self.rows, other.rows, keep),
            rewarded=_add(self.rewarded, other.rewarded, keep),
            by_source=_add(self.by_source, other.by_source, keep),
            equal_pairs=self.equal_pairs * keep + other.equal_pairs,
            pairs=self.pairs * keep + other.pairs,
            equal_pairs_rewarded=self.equal_pairs_rewarded * keep + other.equal_pairs_rewarded,
            pairs_rewarded=self.pairs_rewarded * keep + other.pairs_rewarded,
        )

    @property
    def total(self) -> float:
        return math.fsum(self.rows.values())

    def to_json(self) -> dict[str, Any]:
        return {
            "rows": _pairs(self.rows),
            "rewarded": _pairs(self.rewarded),
            "by_source": _pairs(self.by_source),
            "equal_pairs": self.equal_pairs,
            "pairs": self.pairs,
            "equal_pairs_rewarded": self.equal_pairs_rewarded,
            "pairs_rewarded": self.pairs_rewarded,
        }

    @classmethod
    def from_json(cls, saved: Mapping[str, Any]) -> Tally:
        return cls(
            rows=_unpairs(saved["rows"]),
            rewarded=_unpairs(saved["rewarded"]),
            by_source=_unpairs(saved["by_source"]),
            equal_pairs=float(saved["equal_pairs"]),
            pairs=float(saved["pairs"]),
            equal_pairs_rewarded=float(saved["equal_pairs_rewarded"]),
            pairs_rewarded=float(saved["pairs_rewarded"]),
        )


@dataclass(frozen=True, kw_only=True)
class ModeMarginalState:
    """Where the fold stands."""

    base: Tally = field(default_factory=Tally)
    base_by_source: Mapping[int, Mapping[int, float]] = field(default_factory=dict)
    """The base's completions by source, then mode."""
    baseline: Baseline = field(default_factory=Baseline)
    """Rounds with completions that have a mode and a reward: what ``base`` covers."""
    now: Tally = field(default_factory=Tally)
    """Running, forgetting with ``memory_completions``."""
    now_by_source: Mapping[int, Mapping[int, float]] = field(default_factory=dict)
    """``now.rows`` by source, then mode; where the base has several sources."""
    rewarded_by_source: Mapping[int, float] = field(default_factory=dict)
    """Rewarded completions by source, remembered as ``now`` is."""
    trials: Mapping[int, Mapping[int, float]] = field(default_factory=dict)
    """By source (``POOLED`` where there is one), then mode, what its solve rate is judged from: forgets only as new
    completions of the mode come."""
    solved: Mapping[int, Mapping[int, float]] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        """Whether the base is known."""
        return self.baseline.complete

    def source_of(self, source: int) -> int:
        """The key under which a source is counted: its own where the base showed several and this is one of them."""
        return source if len(self.base_by_source) > 1 and source in self.base_by_source else POOLED

    def to_json(self) -> dict[str, Any]:
        """JSON types only; floats and keys survive exactly."""
        return {
            "base": self.base.to_json(),
            "base_by_source": _nested(self.base_by_source),
            "baseline": self.baseline.to_json(),
            "now": self.now.to_json(),
            "now_by_source": _nested(self.now_by_source),
            "rewarded_by_source": _pairs(self.rewarded_by_source),
            "trials": _nested(self.trials),
            "solved": _nested(self.solved),
        }

    @classmethod
    def from_json(cls, saved: Mapping[str, Any]) -> ModeMarginalState:
        return cls(
            base=Tally.from_json(saved["base"]),
            base_by_source=_unnested(saved["base_by_source"]),
            baseline=_baseline(saved),
            now=Tally.from_json(saved["now"]),
            now_by_source=_unnested(saved["now_by_source"]),
            rewarded_by_source=_unpairs(saved["rewarded_by_source"]),
            trials=_unnested(saved["trials"]),
            solved=_unnested(saved["solved"]),
        )


def _baseline(saved: Mapping[str, Any]) -> Baseline:
    """Checkpoints of 0.1 kept the prompts themselves, and whether it was complete."""
    if "baseline" in saved:
        return Baseline.from_json(saved["baseline"])
    rounds = float(ROUNDS if saved["complete"] else saved["base_rounds"])
    return Baseline(prompts=len(saved["base_prompts"]), completions=Tally.from_json(saved["base"]).total, rounds=rounds)


# -- the fold ----------------------------------------------------------------------------------------------------------


def observe(settings: ModeMarginal, state: ModeMarginalState, table: RoundTable) -> ModeMarginalState:
    """Fold one training round, whether the rule acts or not. Rows without a mode or a reward are not counted."""
    key_N = table.modes_N[settings.modes]
    known_N = _known(table, key_N)
    if state.complete:
        key_N = _labelled(state, key_N)
    tally = _tally(table, key_N, known_N)
    if not state.complete:
        state = _grow_base(state, table, key_N, known_N, tally)
        if state.complete:
            state = _close_base(state)
            # What the base's rounds showed is the first that is remembered. Which source earned what was not counted.
            return replace(
                state,
                now=state.base,
                now_by_source=state.base_by_source if len(state.base_by_source) > 1 else {},
                trials={POOLED: state.base.rows},
                solved={POOLED: state.base.rewarded},
            )
        return state
    keep = math.exp(-tally.total / settings.memory_completions)
    trials, solved = dict(state.trials), dict(state.solved)
    now_by_source = {source: _add(rows, {}, keep) for source, rows in state.now_by_source.items()}
    rewarded = {source: n * keep for source, n in state.rewarded_by_source.items()}
    source_N = np.array([state.source_of(source) for source in table.source_N.tolist()], dtype=np.int64)
    for source in sorted({POOLED, *source_N[known_N].tolist()}):
        of = tally if source == POOLED else _tally(table, key_N, known_N & (source_N == source))
        if source != POOLED:
            now_by_source[source] = _add(now_by_source.get(source, {}), of.rows, 1.0)
            rewarded[source] = rewarded.get(source, 0.0) + math.fsum(of.rewarded.values())
        tried, good = dict(trials.get(source, {})), dict(solved.get(source, {}))
        for label, rows in of.rows.items():
            kept = max(0.0, 1.0 - rows / TRIALS)
            tried[label] = tried.get(label, 0.0) * kept + min(rows, TRIALS)
            good[label] = good.get(label, 0.0) * kept + of.rewarded.get(label, 0.0) * min(1.0, TRIALS / rows)
        trials[source], solved[source] = tried, good
    return replace(
        state,
        now=_bounded_sources(state.now.plus(tally, keep)),
        now_by_source=now_by_source,
        rewarded_by_source=rewarded,
        trials=trials,
        solved=solved,
    )


def addition(settings: ModeMarginal, state: ModeMarginalState, table: RoundTable, kappa: float) -> NDArray[np.float64]:
    """What comes to each row's advantage [N], in units of a group-normalised one.

    Call it after ``observe`` of the same table: the shares are then those of the policy that sampled it. Each row is
    left out of the shares it is compared with. Sums to zero; zero for rows without a mode or a reward, for modes that
    deserve no protection, and for all rows while the base is incomplete.
    """
    result_N = np.zeros(len(table))
    if not state.complete or kappa == 0.0:
        return result_N
    key_N = table.modes_N[settings.modes]
    known_N = _known(table, key_N)
    label_N = _labelled(state, key_N)
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


def control(settings: ModeMarginal, state: ModeMarginalState, kappa: float) -> float | None:
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


def worst_ratio(state: ModeMarginalState) -> float | None:
    """The smaller of the effective numbers, across and within, over the base's: those of rewarded completions, or of
    all where the base or the run has too few rewarded ones. Where a source has modes that deserve no protection, what
    counts is what is held in each source: the rest is no loss, and no kappa would bring it back."""
    lost = {source: undeserving(state, source) for source in state.now_by_source}
    if any(lost.values()):
        return _held_ratio(state, lost)
    found = _ratios(state)
    known = [
        found[name] if found[f"correct_{name}"] is None else found[f"correct_{name}"] for name in ("across", "within")
    ]
    present = [ratio for ratio in known if ratio is not None]
    return min(present) if present else None


def _held_ratio(state: ModeMarginalState, lost: Mapping[int, frozenset[int]]) -> float | None:
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


def measures(settings: ModeMarginal, state: ModeMarginalState) -> dict[str, float | None]:
    """Where the modes stand; ``None`` while the base is incomplete or too little was counted.

    ``ratio_*``: effective number (order 1) now over the base's, across prompts or within (that across times the
    chance of equal modes in the run over that in one prompt), of all or of rewarded (``correct``) completions.
    ``divergence_nats``: KL of the shares now to the base's, by as much as exceeds noise, over the modes that
    deserve protection. ``undeserving_modes``: how many do not. ``rest_share``: modes that the base did not show.
    """
    ratios = {f"ratio_{name}": value for name, value in _ratios(state).items()}
    if not state.complete:
        return {**ratios, "divergence_nats": None, "undeserving_modes": None, "rest_share": None}
    lost = undeserving(state)
    across = _across(state, lost)
    held = {label: n for label, n in state.now.rows.items() if n > 0 and label not in lost and label != REST}
    total = math.fsum(held.values())
    divergence = -math.fsum(n / total * across[label] for label, n in held.items()) if total else None
    return {
        **ratios,
        "divergence_nats": divergence,
        "undeserving_modes": float(len(lost)),
        "rest_share": state.now.rows.get(REST, 0.0) / state.now.total if state.now.total else None,
    }


def describe(settings: ModeMarginal, state: ModeMarginalState) -> str:
    """Why kappa is what it is, in a line."""
    ratio = worst_ratio(state)
    if ratio is None:
        return "the base's modes are not known yet"
    side = "below" if ratio < settings.floor else "at or above"
    return (
        f"effective {settings.modes}s of rewarded completions are {ratio:.2f} of the base's "
        f"(the lower of across and within prompts), {side} the floor of {settings.floor:g}"
    )


def shares(state: ModeMarginalState) -> dict[int, tuple[float, float]]:
    """By mode key the base's share and the share now; empty while the base is incomplete."""
    if not state.complete:
        return {}
    base, now = state.base.total, state.now.total
    return {
        label: (n / base, state.now.rows.get(label, 0.0) / now) for label, n in state.base.rows.items() if base and now
    }


def undeserving(state: ModeMarginalState, source: int = POOLED) -> frozenset[int]:
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


def _across(state: ModeMarginalState, lost: frozenset[int], source: int = POOLED) -> dict[int, float]:
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


def _target(state: ModeMarginalState, source: int = POOLED) -> dict[int, float]:
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


def _source_shares(state: ModeMarginalState, pooled: Mapping[int, float], source: int) -> dict[int, float]:
    rows = state.base_by_source.get(source, {})
    total = math.fsum(rows.values()) + SHRINK_SOURCE
    return {label: (rows.get(label, 0.0) + SHRINK_SOURCE * share) / total for label, share in pooled.items()}


def _concentration(
    state: ModeMarginalState,
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


def _running(state: ModeMarginalState, lost: frozenset[int], source: int) -> dict[int, float]:
    """The source's shares now over the modes that are acted on, shrunk to its base's."""
    target = _target(state, source)
    rows = state.now.rows if source == POOLED else state.now_by_source.get(source, {})
    weights = {
        label: rows.get(label, 0.0) + SHRINK_COMPLETIONS * share for label, share in target.items() if label not in lost
    }
    total = math.fsum(weights.values())
    return {label: weight / total for label, weight in weights.items()}


def _narrowed(state: ModeMarginalState) -> float:
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


def _base_correlation(state: ModeMarginalState) -> float:
    """How much more often than two completions of the run two of one prompt have the same mode in the base, between
    .001 (not credibly more often: prompts do not matter) and .9."""
    spread = _base_spread(state.base.rows, state.base.equal_pairs, state.base.pairs)
    across = _equal_across(state.base.rows)
    if spread is None or across is None:
        return 0.001
    # within = across / spread, and the correlation is (within - across) / (1 - across).
    return float(min(0.9, max(0.001, across * (1.0 / spread - 1.0) / max(1e-9, 1.0 - across))))


# -- what follows from it ----------------------------------------------------------------------------------------------


def predicted_shares(
    p0_M: Sequence[float] | NDArray[np.float64], mean_reward_M: Sequence[float] | NDArray[np.float64], kappa: float
) -> NDArray[np.float64]:
    """Shares [M] at which reward and pressure balance, p0 exp(R / kappa) / Z.

    ``mean_reward_M``: mean of each mode in units of the advantage that ``kappa`` is added to, for the policy as it is
    then. ``kappa`` 0 is the best mode alone.
    """
    p0, reward = np.asarray(p0_M, dtype=np.float64), np.asarray(mean_reward_M, dtype=np.float64)
    if kappa <= 0.0:
        best = np.where((p0 > 0) & (reward == reward[p0 > 0].max()), p0, 0.0)
        return np.asarray(best / best.sum(), dtype=np.float64)
    exponent = np.where(p0 > 0, reward / kappa, -np.inf)
    weight = p0 * np.exp(exponent - exponent.max())
    return np.asarray(weight / weight.sum(), dtype=np.float64)


def _effective(rows: Mapping[int, float]) -> float | None:
    """exp of the entropy of the counts (Hill number of order 1); ``None`` for no counts."""
    # In one order on all ranks, whatever each of them met first.
    return float(effective_number(sorted(rows.values()))) if math.fsum(rows.values()) > 0.0 else None


# -- counting ----------------------------------------------------------------------------------------------------------


def _known(table: RoundTable, key_N: NDArray[np.int64]) -> NDArray[np.bool_]:
    return np.asarray((key_N != -1) & np.isfinite(table.reward_N), dtype=np.bool_)


def _labelled(state: ModeMarginalState, key_N: NDArray[np.int64]) -> NDArray[np.int64]:
    """Keys [N] with all that have no share of their own replaced by ``REST``."""
    own = np.array([label for label in state.base.rows if label != REST], dtype=np.int64)
    return np.where(np.isin(key_N, own) | (key_N == -1), key_N, REST)


def _tally(table: RoundTable, key_N: NDArray[np.int64], known_N: NDArray[np.bool_]) -> Tally:
    rewarded_N = known_N & (table.success_N == 1.0)
    equal, prompts = _pairs_within(table.group_size, key_N, known_N)
    equal_rewarded, prompts_rewarded = _pairs_within(table.group_size, key_N, rewarded_N)
    return Tally(
        rows=_counts(key_N[known_N]),
        rewarded=_counts(key_N[rewarded_N]),
        by_source=_counts(table.source_N[known_N]),
        equal_pairs=equal,
        pairs=prompts,
        equal_pairs_rewarded=equal_rewarded,
        pairs_rewarded=prompts_rewarded,
    )


def _pairs_within(group_size: int, key_N: NDArray[np.int64], of_N: NDArray[np.bool_]) -> tuple[float, float]:
    """Sum over groups of the share of pairs with equal mode, and the number of groups that have a pair."""
    if not of_N.any():
        return 0.0, 0.0
    group_n = np.arange(len(key_N))[of_N] // max(1, group_size)
    cells, count = np.unique(np.stack([group_n, key_N[of_N]]), axis=1, return_counts=True)
    size = np.bincount(group_n).astype(np.float64)
    equal = np.bincount(cells[0].astype(np.int64), weights=count * (count - 1.0), minlength=len(size))
    several = size > 1
    return float((equal[several] / (size[several] * (size[several] - 1.0))).sum()), float(several.sum())


def _grow_base(
    state: ModeMarginalState,
    table: RoundTable,
    key_N: NDArray[np.int64],
    known_N: NDArray[np.bool_],
    tally: Tally,
) -> ModeMarginalState:
    by_source = {source: dict(rows) for source, rows in state.base_by_source.items()}
    for source in np.unique(table.source_N[known_N]).tolist():
        if source in by_source or len(by_source) < SOURCES:
            rows = _counts(key_N[known_N & (table.source_N == source)])
            by_source[source] = _add(by_source.get(source, {}), rows, 1.0)
    base = state.base.plus(tally, 1.0)
    # Nothing scored is no base, however many rounds it took.
    completions = len(table) if known_N.any() else 0
    baseline = state.baseline.with_round(prompts=len(table) / max(1, table.group_size), completions=completions)
    return replace(state, base=base, base_by_source=by_source, baseline=baseline)


def _close_base(state: ModeMarginalState) -> ModeMarginalState:
    """Pool what is not among the ``LABELS`` most frequent modes; of equally frequent ones the smaller key is kept."""
    ranked = sorted(state.base.rows.items(), key=lambda entry: (-entry[1], entry[0]))
    own = {label for label, _ in ranked[:LABELS]}

    def pool(rows: Mapping[int, float]) -> dict[int, float]:
        kept = {label: n for label, n in rows.items() if label in own}
        rest = math.fsum(n for label, n in rows.items() if label not in own)
        return {**kept, REST: rest} if rest else kept

    base = replace(state.base, rows=pool(state.base.rows), rewarded=pool(state.base.rewarded))
    by_source = {source: pool(rows) for source, rows in state.base_by_source.items()}
    return replace(state, base=_bounded_sources(base), base_by_source=by_source)


def _bounded_sources(tally: Tally) -> Tally:
    """The ``SOURCES`` heaviest sources; what is hardly remembered goes first."""
    if len(tally.by_source) <= SOURCES:
        return tally
    ranked = sorted(tally.by_source.items(), key=lambda entry: (-entry[1], entry[0]))
    return replace(tally, by_source=dict(sorted(ranked[:SOURCES])))


def _ratios(state: ModeMarginalState) -> dict[str, float | None]:
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
    across = _equal_across(rows)
    return None if across is None or prompts <= 1.0 or equal <= 0.0 else across / (equal / prompts)


def _base_spread(rows: Mapping[int, float], equal: float, prompts: float) -> float | None:
    """``_spread`` of the base, by as much as it is credibly below 1: few prompts are seen, and the narrowness that
    chance gives them would be allowed to the run for ever."""
    spread, across = _spread(rows, equal, prompts), _equal_across(rows)
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


def _equal_across(rows: Mapping[int, float]) -> float | None:
    """Chance that two different completions of the run have the same mode."""
    total = math.fsum(rows.values())
    if total <= 1.0:
        return None
    return math.fsum(n * max(0.0, n - 1.0) for n in rows.values()) / (total * (total - 1.0))


def _times(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a * b


def _over(now: float | None, base: float | None) -> float | None:
    return None if now is None or base is None else now / base


def _counts(key_n: NDArray[np.int64]) -> dict[int, float]:
    keys, count = np.unique(key_n, return_counts=True)
    return dict(zip(keys.tolist(), count.astype(np.float64).tolist(), strict=True))


def _add(old: Mapping[int, float], new: Mapping[int, float], keep: float) -> dict[int, float]:
    return {key: old.get(key, 0.0) * keep + new.get(key, 0.0) for key in sorted({*old, *new})}


def _nested(values: Mapping[int, Mapping[int, float]]) -> list[list[Any]]:
    return [[key, _pairs(rows)] for key, rows in values.items()]


def _unnested(saved: Sequence[Sequence[Any]]) -> dict[int, dict[int, float]]:
    return {int(key): _unpairs(rows) for key, rows in saved}


def _pairs(values: Mapping[int, float]) -> list[list[float]]:
    return [[key, value] for key, value in values.items()]


def _unpairs(saved: Sequence[Sequence[Any]]) -> dict[int, float]:
    return {int(key): float(value) for key, value in saved}
