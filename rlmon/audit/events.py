"""Marks on the timeline: findings, onsets, acts of a policy and faults of the monitor."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from rlmon.acts import ROW_KNOBS, Act, fold
from rlmon.audit.case import Case
from rlmon.audit.result import Check, Event
from rlmon.records import SEVERITIES

ACT_MARKS = 40
"""Marks of one rule's acts on rows over the timeline, at most."""


def events(case: Case, checks: Sequence[Check]) -> list[Event]:
    """All marks, in order of step."""
    marks = [
        Event(step=f.step, kind="finding", severity=f.severity, check=f.detector, text=f.message)
        for f in case.fold.findings[:1_000]
    ]
    for check in checks:
        if check.first_step is not None and check.status in SEVERITIES:
            marks.append(
                Event(
                    step=check.first_step,
                    kind="onset",
                    severity=check.status,
                    check=check.id,
                    text=f"{check.id} began by then" if check.at_latest else f"{check.id} begins",
                )
            )
    if case.fold.live is not None:
        marks += _acts([dataclasses.asdict(action) for action in case.fold.live.actions])
        for fault in case.fold.live.faults[:100]:
            text = f"{fault.place} failed: {fault.error}"
            marks.append(Event(step=fault.step, kind="fault", severity="info", check=None, text=text[:300]))
    return sorted(marks, key=lambda event: event.step)


def _acts(actions: Sequence[Mapping[str, Any]]) -> list[Event]:
    """What really was changed, or was to be and failed. Acts of one rule on rows are marked once in a stretch."""
    acts = [act for act in fold(actions) if act.outcome in ("applied", "failed")]
    stretch = max(1, math.ceil(max((act.step for act in acts), default=0) / ACT_MARKS))
    marked: dict[Any, list[Act]] = {}
    for at, act in enumerate(acts):
        together = act.knob in ROW_KNOBS and act.outcome == "applied"
        marked.setdefault((act.rule, act.knob, act.step // stretch) if together else at, []).append(act)
    events = []
    for group in list(marked.values())[:1_000]:
        first = group[0]
        head = f"{first.rule} failed:" if first.outcome == "failed" else f"{first.rule}:"
        times = f" {len(group)} times by step {group[-1].step}," if len(group) > 1 else ""
        what = f"{first.change} ({first.reason})" if first.change else first.reason
        text = f"{head}{times} {what}"
        events.append(Event(step=first.step, kind="action", severity="info", check=first.rule or None, text=text[:300]))
    return events
