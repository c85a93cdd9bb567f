"""A control arm: prompts are deferred as ``Defer`` would, as many and at the same times, but random ones.

An action of one's own, as anybody may write one: ``RLMon(trainer, actions=[RandomDefer])``, and in the policy
``do: {action: random_defer, by: source}``.
"""

from __future__ import annotations

from dataclasses import dataclass

from rlmon.interventions.deferral import Changes, Defer, DeferralState
from rlmon.interventions.intervention import Blocked, unit_hash


@dataclass(frozen=True, kw_only=True)
class RandomShare(Blocked):
    """A share of all prompts, chosen by hash."""

    share: float

    def __bool__(self) -> bool:
        return self.share > 0.0

    def holds(self, prompt: int, source: int | None = None) -> bool:
        return unit_hash(prompt, 1) < self.share


@dataclass(frozen=True, kw_only=True, slots=True)
class RandomDefer(Defer):
    """Draw no more of as many random prompts as would be deferred for being unsolvable now."""

    name = "random_defer"

    def describe(self, changes: Changes) -> str:
        return f"{changes.describe()}; in their place random ones (control)"

    def blocked(self, state: DeferralState, round: int) -> Blocked:
        return RandomShare(share=state.share_in(round))
