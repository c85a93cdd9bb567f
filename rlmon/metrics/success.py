"""What counts as a success: one definition for the ledger, groups, interventions and the audit.

A run has one ``Success``: bounds on reward functions (or on their total), all of which a completion must pass. It is
given (``rlmon_success``) or decided once from the rewards of the baseline by a fold over rounds, ``Deciding``::

    deciding = Deciding.start(criterion)
    deciding = deciding.with_round(reward_N, rewards_N, prompts=P)       # every training round, rows of all ranks
    success_B = deciding.definition.of(reward_B, rewards_B)              # 1.0, 0.0, NaN where it is not known
    deciding, rows = deciding.observe(batch, world_size)                 # both, for a batch of one rank
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlmon.baseline import Baseline
from rlmon.criterion import Criterion
from rlmon.errors import ConfigError
from rlmon.keys import content_key
from rlmon.metrics.groups import column
from rlmon.records import RolloutBatch

Column = Sequence[Any] | NDArray[Any]

TOTAL = ""
"""Stands for the total reward among the functions."""
HALF = 0.5
"""Divides 0 from 1, and -1 from 1."""
PLAIN = (-1.0, 0.0, 1.0)
"""Values of rewards that say no more than right or wrong."""
PENALTY_WORDS = ("penal", "punish", "overlong")
"""In the name of a function that takes off and never adds: while it is 0, its values do not tell it from a goal that
was never met."""
WAITING = "what counts as a success is not decided yet: more rewards of the baseline are awaited"
GRADED = "rewards are graded without a plain top: set rlmon_success to a threshold or a function's name"
ON_ONE_RANK = (
    "the rewards of the whole round are not known on every process: set rlmon_success to a threshold, or give "
    "RolloutBatch.round_rewards"
)
_DECIMALS = 9
"""Rewards that agree so far are one value, unless they are large."""
_LARGE = 1e6


def _short(name: str) -> str:
    """The name of a reward function, which comes from a run and may be of any length, as it is shown."""
    return name if len(name) <= 40 else f"{name[:37]}..."


@dataclass(frozen=True)
class Success:
    """What counts as a success."""

    above: Mapping[str, float] = field(default_factory=dict)
    """A success has more than this from every function (``TOTAL``: from their weighted sum). Empty: not known."""
    optional: frozenset[str] = frozenset()
    """Functions that leave rows out: of these, those that scored the row count, and one of them must have."""
    reason: str | None = None
    """Why it is not known what counts as a success."""

    @property
    def known(self) -> bool:
        return bool(self.above)

    def of(self, reward: Column | None, rewards: Mapping[str, Column], rows: int | None = None) -> NDArray[np.float64]:
        """1.0 for a success, 0.0 for none, NaN where that is not known, [rows].

        Args:
            reward: the total of every row; ``None`` or NaN where no function scored it.
            rewards: the same by function.
            rows: how many; by default as many as ``reward`` has.
        """
        rows = len(reward) if rows is None and reward is not None else rows or 0
        failed = np.zeros(rows, dtype=bool)
        lacking = np.full(rows, not self.above)
        scored = np.zeros(rows, dtype=bool)
        for name, above in self.above.items():
            values = column(reward if name == TOTAL else rewards.get(name), rows)
            finite = np.isfinite(values)
            failed |= finite & (np.where(finite, values, 0.0) <= above)
            if name in self.optional:
                scored |= finite
            else:
                lacking |= ~finite
        if self.optional:
            lacking |= ~scored
        return np.where(failed, 0.0, np.where(lacking, np.nan, 1.0))

    def __str__(self) -> str:
        """In plain words: ``accuracy_reward above 0.5 and format_reward above 0.5``."""
        if not self.above:
            return self.reason or WAITING
        said = [
            f"{'the total reward' if name == TOTAL else _short(name)} above {above:g}"
            + (" (where it scores)" if name in self.optional else "")
            for name, above in self.above.items()
        ]
        return " and ".join(said)

    def to_json(self) -> dict[str, Any]:
        """As JSON types, with the plain words under ``says``."""
        return {
            "above": dict(self.above),
            "optional": sorted(self.optional),
            "reason": self.reason,
            "says": str(self),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Success:
        """What ``to_json`` gave. Raises ``KeyError``, ``TypeError`` or ``ValueError`` for anything else."""
        above = {str(name): float(value) for name, value in dict(data["above"]).items()}
        if not np.isfinite(list(above.values())).all():
            raise ValueError(f"thresholds of a success must be finite, got {above}.")
        reason = data["reason"]
        return cls(above, frozenset(map(str, data["optional"])), None if reason is None else str(reason))


@dataclass(frozen=True)
class _Seen:
    """What is known of one function."""

    values: tuple[float, ...] = ()
    """Different values met, in order; three stand for many."""
    leaves_out: bool = False
    """It has left rows to others, without a score of its own."""

    def add(self, values: NDArray[np.float64], scored: NDArray[np.bool_]) -> _Seen:
        """With one more round; ``scored``: rows that some function scored."""
        known = np.isfinite(values)
        finite = values[known]
        small = np.abs(finite) < _LARGE
        finite[small] = np.round(finite[small], _DECIMALS) + 0.0
        distinct = np.unique(np.concatenate([self.values, finite]))
        return _Seen(tuple(distinct[:3].tolist()), self.leaves_out or bool((scored & ~known).any()))


def _bound(name: str, seen: _Seen, alone: bool) -> tuple[float | None, bool]:
    """What a success has more than of this function (``None``: it has no plain top), and whether more rewards of the
    baseline would not change that."""
    if not 1 <= len(seen.values) <= 2:
        return None, True
    low, top = seen.values[0], seen.values[-1]
    if low == top:
        if top not in PLAIN:
            return None, False
        is_penalty = top == 0.0 and not alone and any(word in name.lower() for word in PENALTY_WORDS)
        # A constant 0 is a goal that was never met, a constant 1 one that always was.
        return (None if is_penalty else HALF), True
    if top == 1.0 and low in PLAIN:
        return HALF, True
    if top <= 0.0 and not (alone and top == 0.0):
        return None, True  # it only ever takes off
    return low / 2.0 + top / 2.0, False


@dataclass(frozen=True)
class Deciding:
    """The definition as far as the rewards have decided it; a fold over training rounds, the same on all ranks.

    It is decided as soon as the rewards are conclusive, at the latest when the baseline is complete. After that only
    what had to be assumed can still move, once: a function of which one value was seen, or none, is settled by the
    first round that shows another. Whoever folds says every change of ``definition``.
    """

    criterion: Criterion | None = None
    baseline: Baseline = field(default_factory=Baseline)
    seen: Mapping[str, _Seen] = field(default_factory=dict)
    decided: bool = False
    definition: Success = field(default_factory=lambda: Success(reason=WAITING))

    @classmethod
    def start(cls, criterion: Criterion | None) -> Deciding:
        """Before the first round; a threshold decides it at once."""
        if criterion is None or criterion.above is None:
            return cls(criterion)
        name = TOTAL if criterion.function is None else criterion.function
        return cls(criterion, decided=True, definition=Success({name: criterion.above}))

    def resumed(self, saved: Mapping[str, Any] | None) -> tuple[Deciding, str | None]:
        """The state of a run that goes on from a checkpoint (``saved``: what ``to_json`` gave there), and a sentence
        where ``rlmon_success`` is no longer what it was; then it is decided anew.

        Raises ``KeyError``, ``TypeError`` or ``ValueError`` where ``saved`` is something else.
        """
        if saved is None:  # written before there was one definition
            return self, None
        before = Deciding.from_json(saved)
        if before.criterion == self.criterion:
            return before, None
        was, now = (f"{one.criterion}" if one.criterion is not None else "unset" for one in (before, self))
        return self, f"rlmon_success was {was} at the checkpoint and is {now}: successes are counted anew."

    @property
    def _given(self) -> bool:
        return self.criterion is not None and self.criterion.above is not None

    def with_round(
        self,
        reward: Column | None,
        rewards: Mapping[str, Column],
        *,
        prompts: float,
        weights: Mapping[str, float] | None = None,
    ) -> Deciding:
        """After one more training round, of all ranks together.

        Args:
            reward: the total of every row [N].
            rewards: the same by function.
            prompts: how many prompts they complete.
            weights: of the functions in the total; 1 for those that are not named. Those of weight 0 or less are no
                part of a success, unless ``rlmon_success`` names them.
        """
        rows = _rows(reward, rewards)
        if not rows:
            return self
        if self.criterion is not None and self.criterion.function is not None and rewards:
            try:
                self.criterion.refuse_unknown(list(rewards))
            except ConfigError as error:
                return dataclasses.replace(self, definition=Success(reason=str(error)))
        if self._given:
            return self
        columns = self._columns(reward, rewards, weights or {})
        began = bool(self.baseline.rounds)
        seen = dict(self.seen)
        for name in self.seen.keys() - columns.keys():
            seen[name] = dataclasses.replace(seen[name], leaves_out=seen[name].leaves_out or not self.decided)
        values_of = {name: column(values, rows) for name, values in columns.items()}
        scored = np.any([np.isfinite(values) for values in values_of.values()], axis=0)
        for name, values in values_of.items():
            before = seen.get(name, _Seen(leaves_out=began))
            after = before.add(values, scored)
            if not self.decided:
                seen[name] = after
            elif len(before.values) < 2:
                seen[name] = dataclasses.replace(before, values=after.values)
        baseline = self.baseline.with_round(prompts=prompts, completions=rows)
        state = dataclasses.replace(self, baseline=baseline, seen=seen)
        sure = any(one.values for one in seen.values()) and all(sure for _, sure in state._bounds().values())
        return state.settled() if self.decided or sure or baseline.complete else state

    @property
    def open(self) -> bool:
        """Whether rewards of a later round may still settle it."""
        return not self._given and (not self.decided or any(len(one.values) < 2 for one in self.seen.values()))

    def called(self, scorer_N: NDArray[Any], names: Mapping[int, str]) -> str | None:
        """What the totals that several ranks have exchanged are called: a function, ``TOTAL``, or ``None`` where they
        are not of one function.

        ``scorer_N`` holds ``scorer`` of each row; ``names`` are those of functions by it, as far as all ranks know
        them. Where totals are of one function, it keeps the name that it was first seen by.
        """
        scorers = np.unique(scorer_N)
        if len(scorers) != 1 or scorers[0] <= 0:
            return None
        asked = None if self.criterion is None else self.criterion.function
        if asked is not None and content_key(asked) + 1 == scorers[0]:
            return asked
        name = names.get(int(scorers[0]), TOTAL)
        return next(iter(self.seen)) if len(self.seen) == 1 and TOTAL in (name, *self.seen) else name

    def settled(self) -> Deciding:
        """Decided by what was seen so far, however little."""
        if self._given:
            return self
        bounds = self._bounds()
        above = {name: bound for name, (bound, _) in bounds.items() if bound is not None}
        optional = frozenset(name for name in above if self.seen[name].leaves_out and len(above) > 1)
        definition = Success(above, optional) if above else Success(reason=self._why_not())
        return dataclasses.replace(self, decided=True, definition=definition)

    def _bounds(self) -> dict[str, tuple[float | None, bool]]:
        return {name: _bound(name, one, len(self.seen) == 1) for name, one in self.seen.items()}

    def observe(self, batch: RolloutBatch, world_size: int) -> tuple[Deciding, RowSuccess]:
        """After a generation, and what is known of its rows. An evaluation decides nothing.

        The same on all ranks, since it looks at what all of them have in common: ``round_reward`` and
        ``round_rewards``. Where those are not handed in, several ranks can only decide from rows that they exchange
        (``only_function``).
        """
        whole = _of_all_ranks(batch, world_size)
        after = self
        if batch.split != "eval":
            if whole is not None:
                prompts = _rows(*whole) / max(1, batch.group_size)
                after = self.with_round(*whole, prompts=prompts, weights=batch.reward_weights)
            elif not self.decided and only_function(batch, world_size) is None:
                after = dataclasses.replace(self, definition=Success(reason=ON_ONE_RANK))
        return after, after.of_batch(batch, world_size)

    def of_batch(self, batch: RolloutBatch, world_size: int) -> RowSuccess:
        """What is known of the rows of a generation by what is decided now."""
        whole = _of_all_ranks(batch, world_size)
        if whole is None or (batch.round_rewards is None and batch.round_reward is None):
            return RowSuccess(self.definition.of(batch.reward, batch.rewards, len(batch)), None)
        round_N = self.definition.of(*whole, _rows(*whole))
        return RowSuccess(round_N[np.asarray(batch.global_row, dtype=np.int64)], round_N)

    def _columns(
        self, reward: Column | None, rewards: Mapping[str, Column], weights: Mapping[str, float]
    ) -> Mapping[str, Column]:
        if self.criterion is not None and self.criterion.function is not None:
            name = self.criterion.function
            return {name: rewards[name]} if name in rewards else {}
        counted = {name: values for name, values in rewards.items() if weights.get(name, 1.0) > 0.0}
        if counted:
            return counted
        return {} if reward is None else {TOTAL: reward}

    def _why_not(self) -> str:
        if not any(one.values for one in self.seen.values()):
            return "no reward function has scored a completion yet"
        graded = any(len(one.values) > 1 for one in self.seen.values())
        if self.criterion is not None:
            name = self.criterion.function
            what = "is graded without a plain top" if graded else "has not varied and is neither 0 nor 1"
            return f"{name} {what}: give it a threshold (rlmon_success: {name}>0.9)"
        if graded:
            return GRADED
        return "rewards have not varied and are neither 0 nor 1: set rlmon_success to a threshold or a function's name"

    def to_json(self) -> dict[str, Any]:
        """The state, for a checkpoint."""
        return {
            "criterion": None if self.criterion is None else str(self.criterion),
            "baseline": self.baseline.to_json(),
            "seen": {name: [list(one.values), one.leaves_out] for name, one in self.seen.items()},
            "decided": self.decided,
            "definition": self.definition.to_json(),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Deciding:
        """What ``to_json`` gave. Raises ``KeyError``, ``TypeError`` or ``ValueError`` for anything else."""
        return cls(
            criterion=Criterion.parse(data["criterion"]),
            baseline=Baseline.from_json(data["baseline"]),
            seen={
                str(name): _Seen(tuple(float(v) for v in values), bool(out))
                for name, (values, out) in data["seen"].items()
            },
            decided=bool(data["decided"]),
            definition=Success.from_json(data["definition"]),
        )


def _of_all_ranks(batch: RolloutBatch, world_size: int) -> tuple[Column | None, Mapping[str, Column]] | None:
    """Total and rewards of every row of the round; ``None`` where several ranks know their own alone."""
    if batch.round_rewards is not None or batch.round_reward is not None:
        return batch.round_reward, batch.round_rewards or {}
    return (batch.reward, batch.rewards) if world_size == 1 else None


def only_function(batch: RolloutBatch, world_size: int) -> str | None:
    """Of which function the totals of all ranks' rows are, where the ranks have nothing else to decide from: its name,
    ``TOTAL`` without one, ``None`` where they have the rewards of the round or several functions."""
    if world_size == 1 or batch.round_rewards is not None or batch.round_reward is not None or len(batch.rewards) > 1:
        return None
    weights = batch.reward_weights or {}
    return next((name for name in batch.rewards if weights.get(name, 1.0) == 1.0), TOTAL)


def scorer(batch: RolloutBatch, world_size: int) -> int:
    """``only_function`` as a number that ranks can exchange: 0 for ``None``, else one more than the key of the name."""
    name = only_function(batch, world_size)
    return 0 if name is None else content_key(name) + 1


def _rows(reward: Column | None, rewards: Mapping[str, Column]) -> int:
    return max((len(values) for values in (reward, *rewards.values()) if values is not None), default=0)


@dataclass(frozen=True)
class RowSuccess:
    """1.0 for a success, 0.0 for none, NaN where that is not known."""

    success_B: NDArray[np.float64]
    """Of this rank's rows."""
    round_N: NDArray[np.float64] | None
    """Of all rows of the round over all ranks, by ``global_row``, where the batch has their rewards."""
