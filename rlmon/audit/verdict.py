"""The verdict: what the checks of a run come to together, and what it rests on.

A pass is a claim, so it has to be earned: every core question needs an answer. Nothing bad seen is not the same as
nothing bad there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from rlmon.audit.result import Check, Core, Coverage
from rlmon.audit.run import Lack
from rlmon.records import Status, Verdict, verdict

QUESTIONS: Mapping[Core, str] = {
    "formats": "formats",
    "entropy": "entropy",
    "reward": "reward",
    "groups": "the spread of reward in groups",
    "length": "length or truncation",
    "non-finite": "NaN and infinity",
}
"""The core questions, in words."""
OF_OUTPUTS: frozenset[Core] = frozenset({"formats"})
"""Asked only where completions were read."""
BY_CURVE: Mapping[Core, str] = {
    "reward": "reward",
    "groups": "reward_std or frac_reward_zero_std",
    "length": "completions/mean_length or completions/clipped_ratio",
}
"""The curves that answer a question where there are no completions, by TRL's names."""
JUDGED: frozenset[Status] = frozenset({"pass", "note", "warn", "fail"})


def coverage(checks: Sequence[Check], *, outputs: bool, lacks: Mapping[Lack, str] = MappingProxyType({})) -> Coverage:
    """How much of what is asked has an answer; ``outputs``: whether completions were read, ``lacks``: what the reader
    said of what the source does not hold."""
    missing = {core: _missing(checks, core, outputs, lacks) for core in QUESTIONS if outputs or core not in OF_OUTPUTS}
    return Coverage(
        judged=sum(check.status in JUDGED for check in checks),
        checks=len(checks),
        outputs=outputs,
        missing={core: reason for core, reason in missing.items() if reason is not None},
    )


def _missing(checks: Sequence[Check], core: Core, outputs: bool, lacks: Mapping[Lack, str]) -> str | None:
    """Why a core question has no answer, ``None`` where it has one. A value that may be past its line leaves it open,
    whatever else was found to be well."""
    asked = [check for check in checks if check.core == core]
    if doubts := [check for check in asked if check.status == "unsure"]:
        return "; ".join(f"{check.id}: {check.message}: {check.reason}" for check in doubts)
    if any(check.status in JUDGED for check in asked):
        return None
    reasons = list(dict.fromkeys((check.reason or check.message).rstrip(".") for check in asked))
    # What was logged and does not suffice says more than what might have been logged.
    if told := [reason for reason in reasons if reason not in {lack.rstrip(".") for lack in lacks.values()}]:
        return "; ".join(told)
    if not outputs and core in BY_CURVE and set(reasons) <= {lacks.get("completions", "").rstrip(".")}:
        return f"it was not logged; log {BY_CURVE[core]} (TRL's names, those of other trainers are known too)"
    return "; ".join(reasons) or "no check asks for it"


def reached(checks: Sequence[Check], covered: Coverage) -> Verdict:
    """FAIL or WARN where a check says so, never a note; else a pass where no core question is open."""
    worst = verdict(check.status for check in checks)
    return "insufficient" if worst == "pass" and covered.missing else worst


def unsure(covered: Coverage, read: str) -> str:
    """What a run that is no pass lacks, in one sentence; ``read``: how much of it there is."""
    *first, last = (QUESTIONS[core] for core in covered.missing)
    names = f"{', '.join(first)} and {last}" if first else last
    return f"Nothing bad was seen in {read}, but too little to call it a pass: no answer about {names}."
