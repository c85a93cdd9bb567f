"""An arm: prompts that are always solved go on teaching, beside a wrong answer that nobody gave (arXiv 2605.21125)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlmon.interventions import Intervention, Round, RowChange, setting
from rlmon.interventions.rows import RoundTable


@dataclass(frozen=True, kw_only=True, slots=True)
class VirtualWrong(Intervention):
    """Give groups whose answers are all right the advantage that they would have with some wrong ones among them."""

    name = "virtual_wrong"
    needs_success = True
    measured_by = ("rlmon/health/reward_mean", "up")

    samples: float = setting(1.0, "wrong answers in the mean and the standard deviation; .5 has half a weight", low=0.0)

    def on_round(self, state: Any, round: Round) -> tuple[Any, RowChange]:
        if not round.acting or round.dry_run:
            return state, RowChange()
        added = advantage(round.table.group_size, self.samples)
        return state, RowChange(addition_N=np.where(all_right(round.table), added, 0.0))


def advantage(group_size: int, samples: float) -> float:
    """Of each of G right answers, rewarded 1, where v = ``samples`` answers rewarded 0 enter the mean and the standard
    deviation (ddof 1, as TRL's) and nothing else.

    The mean is G / (G + v), the sum of squares G v / (G + v), and so the advantage

        (v / (G + v)) / sqrt(G v / ((G + v) (G + v - 1))) = sqrt(v (G + v - 1) / (G (G + v)))

    sqrt(1 / (G + 1)) with one: 1/3 for G = 8. TRL's 1e-4 below the line is left out.
    """
    g, v = group_size, samples
    return math.sqrt(v * (g + v - 1.0) / (g * (g + v)))


def all_right(table: RoundTable) -> NDArray[np.bool_]:
    """Whether all completions of the row's group are successes [N]."""
    right_PG = (table.success_N == 1.0).reshape(-1, table.group_size)
    return np.repeat(right_PG.all(axis=1), table.group_size)
