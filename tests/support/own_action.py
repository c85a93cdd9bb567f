"""An action of one's own in one file: what a long completion earns counts for less, the more so the longer they get."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from rlmon.interventions import Intervention, Round, RowAct, RowChange, RuleState, RunSoFar, setting


@dataclass(frozen=True, kw_only=True, slots=True)
class Shorten(Intervention):
    """Push down the advantages of completions that are longer than usual, step by step."""

    name = "shorten"
    measured_by = ("rlmon/health/length_mean", "down")

    tokens: float = setting(8.0, "completions of more tokens than this are pushed down", low=1.0)
    increment: float = setting(0.1, "the push grows by this at each change, in units of advantage", low=0.0)
    most: float = setting(0.5, "and goes no further than this", low=0.0, high=3.0)

    def fresh(self) -> Any:
        return {"long_rows": 0}

    def on_round(self, state: Any, round: Round) -> tuple[Any, RowChange]:
        long_N = round.table.tokens_N > self.tokens
        state = {"long_rows": state["long_rows"] + int(long_N.sum())}
        if not round.acting or not long_N.any():
            return state, RowChange()
        act = RowAct(knob="advantages", count=int(long_N.sum()), reason=f"{long_N.mean():.0%} of completions are long")
        return state, RowChange(addition_N=np.where(long_N, -round.level * round.scale, 0.0), act=act)

    def next_level(self, at: RuleState, run: RunSoFar) -> tuple[float, str | None]:
        if not at.met:
            return 0.0, None
        return min(self.most, at.level + self.increment), f"{at.inner['long_rows']} completions were long by now"


@dataclass(frozen=True, kw_only=True, slots=True)
class Ramp(Intervention):
    """Raise the KL penalty by a step at each change."""

    name = "ramp"
    turns = "beta"
    measured_by = ("rlmon/kl/mean", "down")

    increment: float = setting(0.02, "beta is raised by this at each change", low=0.0)

    def next_level(self, at: RuleState, run: RunSoFar) -> tuple[float, str | None]:
        return (at.level + self.increment if at.met else run.rest), None
