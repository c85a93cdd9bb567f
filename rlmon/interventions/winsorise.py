"""Bound the size of every advantage."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlmon.interventions.intervention import Intervention, Level, Round, RowChange, setting
from rlmon.interventions.setting import Setting


@dataclass(frozen=True, kw_only=True, slots=True)
class Winsorise(Intervention):
    """Bound the size of every advantage."""

    name = "winsorise"
    knob_name = "advantage_limit"
    measured_by = ("rlmon/group/lone_success_weight", "down")

    limit: float = setting(2.5, "advantages are clipped to plus or minus this", low=0.0)

    def on_round(self, state: Any, round: Round) -> tuple[Any, RowChange]:
        return state, RowChange(limit=self.limit)

    def change(self, old: float, new: float) -> tuple[Level, Level]:
        return (None, self.limit) if new else (self.limit, None)

    def useless(self, setting: Setting) -> str | None:
        if self.limit == 0.0:
            return "limit: 0 makes every advantage 0, and training learns nothing. Type limit: 2.5"
        if setting.most_advantage is not None and self.limit >= setting.most_advantage:
            return (
                f"advantages of groups of {setting.group_size} never pass {setting.most_advantage:.3g} (scale_rewards: "
                f"group), and limit is {self.limit:g}. Type a lower limit"
            )
        return None


def winsorise(advantage_N: NDArray[np.float64], limit: float) -> tuple[NDArray[np.float64], int]:
    """``advantage_N`` [N] clipped to plus or minus ``limit``, and how many were clipped. NaN stays NaN.

    A lone success in a group of G has (G - 1) / sqrt(G) under TRL's normalisation: 2.5 leaves groups of 8 as they are
    (2.47) and bounds those of 16 (3.75). Only the winner is clipped, so the group no longer sums to zero: it falls to
    limit - (G - 1) / sqrt(G).
    """
    over_N = np.abs(advantage_N) > limit
    return np.asarray(np.clip(advantage_N, -limit, limit), dtype=np.float64), int(over_N.sum())
