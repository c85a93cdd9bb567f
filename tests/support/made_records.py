"""Records to feed a sink with: complete ones, of which a test changes what it is about."""

from __future__ import annotations

from typing import Any

from rlmon.records import Action, Finding, StepRecord


def made_finding(**changes: Any) -> Finding:
    """``made_finding(severity="warn")`` is complete, with that field changed."""
    fields: dict[str, Any] = {
        "finding_id": "f0",
        "detector": "format-collapse",
        "severity": "fail",
        "step": 47,
        "metric": "rlmon/format/effective",
        "value": 2.1,
        "baseline": 4.7,
        "threshold": 2.8,
        "source": None,
        "message": "effective formats fell to 2.1 of 4.7",
        "advice": "set beta: 0.1",
        "baseline_kind": "early_rounds",
        "baseline_prompts": 32,
        "benign_sharpening": None,
    }
    return Finding(**{**fields, **changes})


def made_action(**changes: Any) -> Action:
    """``made_action(phase="failed")`` is complete, with that field changed."""
    fields: dict[str, Any] = {
        "action_id": "hold-formats-120",
        "phase": "decided",
        "step": 120,
        "knob": "kappa (format)",
        "old": 1.0,
        "new": 1.15,
        "reason": "effective formats are 0.8 of the base's",
        "finding_id": None,
        "rule": "hold-formats",
    }
    return Action(**{**fields, **changes})


def made_step(number: int, **changes: Any) -> StepRecord:
    """``made_step(3, faults={...})`` is a complete record of optimizer step 3."""
    fields: dict[str, Any] = {
        "attempt": 0,
        "step": number,
        "time_unix_seconds": 0.0,
        "rounds": (number,),
        "completions": 8,
        "prompts": 2,
        "tokens": 80,
        "metrics": {},
    }
    return StepRecord(**{**fields, **changes})
