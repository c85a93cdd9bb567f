"""The entropy bonus: ``entropy_coef``, or the target of TRL's own controller of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rlmon.interventions.intervention import Intervention, RuleState, RunSoFar, setting, tidy
from rlmon.interventions.setting import Setting


@dataclass(frozen=True, kw_only=True, slots=True)
class EntropyBonus(Intervention):
    """Raise ``entropy_coef`` while the condition holds; with TRL's adaptive entropy, set its target instead."""

    name = "entropy_bonus"
    turns = "entropy_coef"
    knob_name = "entropy bonus"
    measured_by = ("rlmon/entropy/mean", "up")

    increment: float = setting(0.005, "entropy_coef is raised (or lowered) by this at each change", low=0.0)
    bounds: tuple[float, float] = setting((0.0, 0.05), "least and most entropy_coef", low=0.0)
    target: float = setting(
        0.7, "share of the run's initial entropy that TRL's own controller is told to hold, where that is on", low=0.0
    )

    def resting_level(self, given: Mapping[str, float]) -> float:
        return given.get("entropy_target", given.get("entropy_coef", 0.0))

    def next_level(self, at: RuleState, run: RunSoFar) -> tuple[float, None]:
        if "entropy_target" in run.given:
            base = run.base_entropy_nats
            return (run.rest if base is None or not at.met else round(self.target * base, 6)), None
        low, high = max(self.bounds[0], run.rest), max(self.bounds[1], run.rest)
        if at.met:
            return min(high, tidy(at.level + self.increment)), None
        return max(low, tidy(at.level - self.increment)), None

    def useless(self, setting: Setting) -> str | None:
        if "entropy_coef" in setting.moved:
            return None if self.target else "target: 0 tells TRL's controller to hold no entropy. Type target: 0.7"
        given = setting.entropy_coef
        if min(max(self.bounds[1], given), given + self.increment) == given:
            return (
                f"entropy_coef is {given:g} from the start, bounds end at {self.bounds[1]:g}, and increment is "
                f"{self.increment:g}. Raise increment above 0, and the second of bounds above {given:g}"
            )
        return None

    def reach(self) -> Mapping[str, float]:
        return {"entropy_coef": self.bounds[1]}
