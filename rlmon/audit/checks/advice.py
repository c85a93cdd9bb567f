"""What to do, in a run in which it was done already."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from rlmon.audit.case import Case
from rlmon.audit.result import Check
from rlmon.detectors.catalog import HOLD

HOLDING = ("mode_marginal", "hold")
"""Actions that are to keep outputs from narrowing."""
GAVE_WAY = (
    "Train again with a larger kappa (in a policy file that says extends: protect), from the start or from a "
    "checkpoint before this began: the policy of this run acted and did not hold it."
)


def as_run(check: Check, case: Case) -> Check:
    """The check; where a policy of the run was to hold what narrowed, its advice is not to begin with one."""
    if not check.advice.startswith(HOLD) or not _held(case):
        return check
    return dataclasses.replace(check, advice=GAVE_WAY + check.advice.removeprefix(HOLD))


def _held(case: Case) -> bool:
    policy = case.run.config.get("policy")
    rules = policy.get("rules") if isinstance(policy, Mapping) else None
    if case.fold.live is None or not isinstance(rules, Mapping):
        return False
    acted = {act.rule for act in case.fold.live.actions if act.phase == "applied" and not act.dry_run}
    return any(_action(rules.get(rule)) in HOLDING for rule in acted)


def _action(rule: object) -> object:
    does = rule.get("do") if isinstance(rule, Mapping) else None
    return does.get("action") if isinstance(does, Mapping) else does
