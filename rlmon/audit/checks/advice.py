"""What to do, in a run in which it was done already."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from rlmon.audit.case import Case
from rlmon.audit.result import Check
from rlmon.detectors.catalog import HOLDING, where_held


def as_run(check: Check, case: Case) -> Check:
    """The check; where a policy of the run was to hold what narrowed, its advice is not to begin with one."""
    advice = where_held(check.advice)
    return check if advice == check.advice or not _held(case) else dataclasses.replace(check, advice=advice)


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
