"""The KL penalty: ``beta`` goes up while a condition holds, and down again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rlmon.interventions.intervention import SILENT_VALUES, Intervention, RuleState, RunSoFar, setting, tidy
from rlmon.interventions.setting import Setting

SILENT_BACK = 0.05
"""It comes back once the share is so far below that from which it is suspended."""


@dataclass(frozen=True, kw_only=True, slots=True)
class KLPenalty(Intervention):
    """Raise ``beta`` while the condition holds, lower it again when it is released."""

    name = "kl_penalty"
    turns = "beta"
    knob_name = "beta"
    measured_by = ("rlmon/kl/mean", "down")
    starts_at = "start"

    start: float = setting(0.02, "beta that the first raise from 0 sets", low=0.0)
    bounds: tuple[float, float] = setting((0.0, 0.3), "least and most beta", low=0.0)
    factor: float = setting(1.5, "beta is multiplied (or divided) by this at each change", low=1.0, high=10.0)
    off_when_silent: float = setting(
        0.9,
        "share of groups without reward variance from which beta is 0: there the penalty speeds up template collapse "
        "(not under a critic, to which such a group still teaches something)",
        low=0.0,
        high=1.0,
    )

    def suspends(self, at: RuleState, run: RunSoFar) -> tuple[bool, str | None]:
        """Held at 0 while nearly no group has reward variance."""
        if len(run.silent) < SILENT_VALUES or at.level <= run.rest:
            return at.suspended and at.level > run.rest, None
        share = sum(run.silent) / len(run.silent)
        if not at.suspended and share >= self.off_when_silent:
            return True, f"{share:.0%} of groups have no reward variance: the penalty is suspended"
        if at.suspended and share < self.off_when_silent - SILENT_BACK:
            return False, f"{1 - share:.0%} of groups have reward variance again"
        return at.suspended, None

    def next_level(self, at: RuleState, run: RunSoFar) -> tuple[float, None]:
        low, high = max(self.bounds[0], run.rest), max(self.bounds[1], run.rest)
        if at.met:
            return min(high, max(self.start, tidy(at.level * self.factor))), None
        lower = tidy(at.level / self.factor)
        return (low if lower < max(self.start, low) else lower), None

    def useless(self, setting: Setting) -> str | None:
        name, given, most = setting.beta_name, setting.beta, self.bounds[1]
        if given >= most and given > 0.0:
            return (
                f"{name} is {given:g} from the start, and bounds end at {most:g}. Raise the second of bounds above "
                f"{given:g}"
            )
        if min(max(most, given), max(self.start, given * self.factor)) <= given:
            wrong = "bounds" if most == 0.0 else "start" if given == 0.0 else "factor"
            value = getattr(self, wrong)
            shown = f"[{value[0]:g}, {value[1]:g}]" if isinstance(value, tuple) else f"{value:g}"
            return f"{wrong}: {shown} never takes {name} above the {given:g} that it is at the start. Raise {wrong}"
        if self.off_when_silent == 0.0 and not setting.critic:
            return "off_when_silent: 0 suspends the penalty in every step. Type off_when_silent: 0.9"
        return None

    def reach(self) -> Mapping[str, float]:
        return {"beta": self.bounds[1]}
