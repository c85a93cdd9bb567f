"""Groups of completions that share one draw of one prompt: silent groups and lone successes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlmon.records import RolloutBatch


def column(values: Sequence[Any] | NDArray[Any] | None, rows: int) -> NDArray[np.float64]:
    """The values as float64 [B] with NaN for ``None`` and for anything that is not a number."""
    if values is None:
        return np.full(rows, np.nan)
    try:
        return np.array([np.nan if value is None else value for value in values], dtype=np.float64).reshape(rows)
    except (TypeError, ValueError, OverflowError):
        return np.array([_number(value) for value in values], dtype=np.float64).reshape(rows)


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


@dataclass(frozen=True, eq=False)
class GroupFacts:
    """What the rewards of each group say, each [P]. No spread: max - min <= 1e-9 max(1, max |reward|)."""

    size_P: NDArray[np.int64]
    """Rows with a finite reward."""
    successes_P: NDArray[np.int64]
    reward_std_P: NDArray[np.float64]
    """Standard deviation, ddof=1; NaN with fewer than two."""
    silent_P: NDArray[np.bool_]
    """At least two, and no spread."""
    classified_P: NDArray[np.bool_]
    """At least two, and of each of them it is known whether it is a success."""
    all_good_P: NDArray[np.bool_]
    """No spread, every completion a success."""
    all_bad_P: NDArray[np.bool_]
    """No spread, no success."""
    lone_P: NDArray[np.bool_]
    """Exactly one success among at least two."""


def facts_of_groups(
    group_N: NDArray[np.int64], reward_N: NDArray[np.float64], success_N: NDArray[np.float64], groups: int
) -> GroupFacts:
    """The facts of ``groups`` groups from their rows, whose group is a code from 0 (-1: of none)."""
    scored = np.isfinite(reward_N) & (group_N >= 0)
    group, value, won = group_N[scored], reward_N[scored], success_N[scored]
    size = np.bincount(group, minlength=groups)
    high, low = np.full(groups, -np.inf), np.full(groups, np.inf)
    np.maximum.at(high, group, value)
    np.minimum.at(low, group, value)
    with np.errstate(invalid="ignore", divide="ignore"):
        silent = (size >= 2) & (high - low <= 1e-9 * np.maximum(1.0, np.maximum(np.abs(high), np.abs(low))))
        mean = np.bincount(group, weights=value, minlength=groups) / size
        square = np.bincount(group, weights=(value - mean[group]) ** 2, minlength=groups)
        std: NDArray[np.float64] = np.where(size >= 2, np.sqrt(square / np.maximum(size - 1, 1)), np.nan)
    successes = np.bincount(group, weights=(won == 1.0), minlength=groups).astype(np.int64)
    classified = (size >= 2) & (np.bincount(group, weights=np.isfinite(won), minlength=groups) == size)
    return GroupFacts(
        size_P=size,
        successes_P=successes,
        reward_std_P=std,
        silent_P=silent,
        classified_P=classified,
        all_good_P=silent & classified & (successes == size),
        all_bad_P=silent & classified & (successes == 0),
        lone_P=classified & (successes == 1),
    )


@dataclass(frozen=True, eq=False)
class GroupStats(GroupFacts):
    """The facts of the groups counted here (length P; size 0 and no flag where another rank counts the group), and of
    each row (length B)."""

    group_B: NDArray[np.int64]
    """Code of the row's group among those; -1 when the group is not counted here."""
    lone_B: NDArray[np.bool_]
    """The row is the success of a lone group."""
    hard_B: NDArray[np.bool_] | None
    """The row's prompt had, before this round, a solve rate credibly below 1/8; ``None`` where there is no ledger."""
    advantage_B: NDArray[np.float64]
    """NaN where unknown."""
    success_B: NDArray[np.float64]
    """1.0 for a success, 0.0 for none, NaN where that is not known."""
    whole: int
    """Groups counted here."""
    partial: int
    """Groups left out, since rows of them are on another rank and their rewards are not known here."""

    @property
    def won_B(self) -> NDArray[np.bool_]:
        """Rows that are known to be successes."""
        return np.asarray(self.success_B == 1.0, dtype=bool)


def group_statistics(
    global_row: Sequence[int] | NDArray[np.integer[Any]],
    reward: Sequence[Any] | NDArray[Any] | None,
    group_size: int,
    *,
    advantages: Sequence[Any] | NDArray[Any] | None = None,
    hard_B: NDArray[np.bool_] | None = None,
    success: Sequence[Any] | NDArray[Any] | None = None,
    round_reward: Sequence[Any] | NDArray[Any] | None = None,
    round_success: Sequence[Any] | NDArray[Any] | None = None,
    trained_B: Sequence[bool] | NDArray[np.bool_] | None = None,
) -> GroupStats:
    """Facts about the groups ``global_row // group_size`` that are whole in these rows.

    ``round_reward`` holds the rewards of all rows of the round over all ranks, in the order of ``global_row``: with it
    groups that straddle ranks are judged as well, each counted once, by the rank that holds its first row.
    ``success`` says of each row whether it is one (NaN or ``None``: not known), as ``Success.of`` gives it;
    ``round_success`` the same of all rows of the round.

    Uses the raw rewards, never the trainer's normalising standard deviation (which is the batch's under
    ``scale_rewards="batch"``). Groups with fewer than 2 finite rewards are neither silent nor lone. *No spread* means
    max - min <= 1e-9 max(1, max |reward|). Where a row's success is not known, the group is neither good, bad nor lone.
    Groups of which ``trained_B`` takes no row are not counted.
    """
    rows = len(global_row)
    reward_B = column(reward, rows)
    success_B = np.where(np.isfinite(reward_B), column(success, rows), np.nan)
    row_B = np.asarray(global_row, dtype=np.int64)
    ids = np.unique(row_B // max(1, group_size))
    if round_reward is None:
        judged_row, judged_reward, judged_success = row_B, reward_B, success_B
    else:
        judged_row = np.arange(len(round_reward), dtype=np.int64)
        judged_reward = column(round_reward, len(round_reward))
        judged_success = column(round_success, len(round_reward))
        touched = np.isin(judged_row // max(1, group_size), ids)
        judged_row, judged_reward, judged_success = judged_row[touched], judged_reward[touched], judged_success[touched]
    code_J = np.searchsorted(ids, judged_row // max(1, group_size))
    whole_all = np.bincount(code_J, minlength=ids.size) >= group_size
    renumber = np.where(whole_all, np.cumsum(whole_all) - 1, -1)
    group_J = renumber[code_J]
    group_B = renumber[np.searchsorted(ids, row_B // max(1, group_size))]
    groups = int(whole_all.sum())
    own = np.isin(ids[whole_all] * group_size, row_B)
    if trained_B is not None:
        counted = group_B >= 0
        taken_P = np.bincount(group_B[counted], weights=np.asarray(trained_B)[counted], minlength=groups) > 0
        counted[counted] = taken_P[group_B[counted]]
        group_B, own = np.where(counted, group_B, -1), own & taken_P
    facts = facts_of_groups(group_J, judged_reward, judged_success, groups)
    lone_B = (success_B == 1.0) & (group_B >= 0)
    lone_B[lone_B] = facts.lone_P[group_B[lone_B]]
    return GroupStats(
        group_B=group_B.astype(np.int64),
        size_P=np.where(own, facts.size_P, 0).astype(np.int64),
        successes_P=facts.successes_P,
        reward_std_P=facts.reward_std_P,
        silent_P=own & facts.silent_P,
        classified_P=own & facts.classified_P,
        all_good_P=own & facts.all_good_P,
        all_bad_P=own & facts.all_bad_P,
        lone_P=own & facts.lone_P,
        lone_B=lone_B,
        hard_B=None if hard_B is None else np.asarray(hard_B, dtype=bool),
        advantage_B=column(advantages, rows),
        success_B=success_B,
        whole=int(own.sum()),
        partial=int(ids.size - groups),
    )


def groups_of_batch(
    batch: RolloutBatch,
    success_B: NDArray[np.float64],
    round_success_N: NDArray[np.float64] | None = None,
    hard_B: NDArray[np.bool_] | None = None,
) -> GroupStats:
    """Group statistics of the rows of one rank; ``hard_B`` is what the ledger knew before this round."""
    return group_statistics(
        batch.global_row,
        batch.reward,
        batch.group_size,
        advantages=batch.advantages,
        hard_B=hard_B,
        success=success_B,
        round_reward=batch.round_reward,
        round_success=round_success_N,
        trained_B=batch.trained,
    )


def groups_of_round(rows: NDArray[Any], group_size: int, hard_B: NDArray[np.bool_] | None = None) -> GroupStats:
    """Group statistics of the rows of one round of all ranks (``rlmon.metrics.rows.ROW``)."""
    return group_statistics(
        rows["global_row"].astype(np.int64),
        rows["reward"],
        group_size,
        advantages=rows["advantage"],
        hard_B=hard_B,
        success=rows["success"],
        trained_B=rows["trained"] > 0,
    )
