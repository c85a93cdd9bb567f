"""An action: while its rule's condition holds, long completions that were rewarded count half as much.

rules:
  keep-it-short:
    when: {metric: shouting/share, above: 0.2}
    do: {action: halve_long, tokens: 64}
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from rlmon.interventions import Intervention, Round, RowAct, RowChange, setting


@dataclass(frozen=True, kw_only=True, slots=True)
class HalveLong(Intervention):
    """Halve the positive advantages of long completions."""

    name = "halve_long"  # the word after do:
    measured_by = ("rlmon/health/length_mean", "down")  # whether it helped

    tokens: float = setting(100.0, "completions longer than this are long", low=1.0)

    def fresh(self) -> Any:
        return 0  # the state: how many were halved so far. It is kept in checkpoints.

    def on_round(self, state: Any, round: Round) -> tuple[Any, RowChange]:
        """Called with the rows of all ranks, alike on each of them, whether the rule acts or not."""
        table = round.table
        long_N = (table.tokens_N > self.tokens) & (table.advantage_N > 0.0)
        if not round.acting or not long_N.any():
            return state, RowChange()
        count = int(long_N.sum())
        act = RowAct(knob="advantages", count=count, reason=f"{count} long completions count half, {state} before")
        return state + count, RowChange(factor_N=np.where(long_N, 0.5, 1.0), act=act)
