"""What is done once, each time that the condition becomes true: the reference is reset, training ends or goes back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

from rlmon.interventions.intervention import Intervention, Level, setting
from rlmon.interventions.setting import Setting


@dataclass(frozen=True, kw_only=True, slots=True)
class Once(Intervention):
    """Something that is done once, and not taken back when the condition is released."""

    knob_name = "training"
    does: ClassVar[str]
    """What an act says that it turned to."""

    def change(self, old: float, new: float) -> tuple[Level, Level] | None:
        return (None, self.does) if new == 1.0 else None


@dataclass(frozen=True, kw_only=True, slots=True)
class ResetReference(Once):
    """Make the present policy TRL's reference of the KL penalty; KL to the initial base is measured on."""

    name = "reset_reference"
    turns = "reference"
    knob_name = "reference"
    measured_by = ("rlmon/health/reward_mean", "up")
    does = "the present policy"

    def lacks(self, setting: Setting) -> str | None:
        lack = Once.lacks(self, setting)
        if lack is None and not setting.penalised:
            return (
                "reset_reference has nothing to reset: beta is 0 and no rule raises it. Add a rule with do: "
                "kl_penalty, or set beta above 0 in the trainer's config"
            )
        return lack


@dataclass(frozen=True, kw_only=True, slots=True)
class Stop(Once):
    """End training at this step, on all ranks, with a checkpoint."""

    name = "stop"
    turns = "stop"
    ends_training = True
    does = "stop"

    def odd(self, setting: Setting, *, always: bool) -> Iterator[str]:
        if always:
            yield "always ends training at the first step. Name a finding or a metric in when"


@dataclass(frozen=True, kw_only=True, slots=True)
class RollBack(Once):
    """Stop, and go on once from the last checkpoint before the alarm."""

    name = "roll_back"
    turns = "roll_back"
    ends_training = True
    does = "roll back"

    beta: float | None = setting(None, "beta after the return; unset: as it was then", low=0.0)

    def lacks(self, setting: Setting) -> str | None:
        lack = setting.lacks.get("beta") if self.beta else None
        return Once.lacks(self, setting) or lack

    def too_late(self, setting: Setting) -> str | None:
        first, steps = setting.first_checkpoint, setting.steps
        if first is not None and steps is not None and first >= steps:
            return f"the first checkpoint would come at step {first}, and the run has {steps}. Lower save_steps"
        return None

    def odd(self, setting: Setting, *, always: bool) -> Iterator[str]:
        if always:
            yield "always wants to go back at the first step. Name a finding or a metric in when"

    def reach(self) -> Mapping[str, float]:
        return {} if self.beta is None else {"beta": self.beta}
