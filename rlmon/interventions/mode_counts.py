"""Counts of modes: of the base all that its rounds showed, of the run what is remembered; by source as well.

A fold over training rounds, whatever a rule does meanwhile. Modes that are not among the base's ``LABELS`` most
frequent are one label, ``REST``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlmon.baseline import ROUNDS, Baseline
from rlmon.interventions import saved
from rlmon.interventions.rows import ModeKind, RoundTable

REST = -2
"""Key of all modes that are not among the base's most frequent; -1 is a mode that is not known."""
POOLED = -1
"""In place of a source: all of them together."""
LABELS = 64
"""Modes of the base that have a share of their own."""
SOURCES = 64
TRIALS = 256.0
"""Completions of a mode that its solve rate remembers. Its own, so that what a dead mode was is not forgotten."""
MEMORY_COMPLETIONS = 320
"""Completions that the run's shares remember."""


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


@dataclass(frozen=True, kw_only=True)
class ModeCounts:
    """Which modes the base had, and which the run has now: where the fold stands."""

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


def observe(
    state: ModeCounts, table: RoundTable, kind: ModeKind, memory_completions: float = MEMORY_COMPLETIONS
) -> ModeCounts:
    """Fold one training round. Rows without a mode or a reward are not counted."""
    key_N = table.modes_N[kind]
    known_N = known(table, key_N)
    if state.complete:
        key_N = labelled(state, key_N)
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
    keep = math.exp(-tally.total / memory_completions)
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


def shares(state: ModeCounts) -> dict[int, tuple[float, float]]:
    """By mode key the base's share and the share now; empty while the base is incomplete."""
    if not state.complete:
        return {}
    base, now = state.base.total, state.now.total
    return {
        label: (n / base, state.now.rows.get(label, 0.0) / now) for label, n in state.base.rows.items() if base and now
    }


# -- counting ----------------------------------------------------------------------------------------------------------


def known(table: RoundTable, key_N: NDArray[np.int64]) -> NDArray[np.bool_]:
    return np.asarray((key_N != -1) & np.isfinite(table.reward_N), dtype=np.bool_)


def labelled(state: ModeCounts, key_N: NDArray[np.int64]) -> NDArray[np.int64]:
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
    state: ModeCounts,
    table: RoundTable,
    key_N: NDArray[np.int64],
    known_N: NDArray[np.bool_],
    tally: Tally,
) -> ModeCounts:
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


def _close_base(state: ModeCounts) -> ModeCounts:
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


def _counts(key_n: NDArray[np.int64]) -> dict[int, float]:
    keys, count = np.unique(key_n, return_counts=True)
    return dict(zip(keys.tolist(), count.astype(np.float64).tolist(), strict=True))


def _add(old: Mapping[int, float], new: Mapping[int, float], keep: float) -> dict[int, float]:
    return {key: old.get(key, 0.0) * keep + new.get(key, 0.0) for key in sorted({*old, *new})}


def load(found: Mapping[str, Any]) -> ModeCounts:
    """The counts of a checkpoint. Those of 0.1 kept the prompts of the base themselves, and whether it was complete."""
    if "baseline" not in found:
        rounds = float(ROUNDS if found["complete"] else found["base_rounds"])
        completions = math.fsum(n for _, n in found["base"]["rows"])
        seen = Baseline(prompts=len(found["base_prompts"]), completions=completions, rounds=rounds)
        found = {**found, "baseline": seen.to_json()}
    return saved.from_json(ModeCounts, found)
