"""When a rule acts: the evaluation of conditions as a fold over step records and findings.

::

    state = start(when)
    state, met, why, finding_id = step(when, state, record, findings, hysteresis)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

from rlmon.interventions import saved
from rlmon.interventions.base_mean import BaseMean
from rlmon.interventions.policy import AllOf, Always, AnyOf, Condition, OnFinding, OnMetric
from rlmon.printable import one_line
from rlmon.records import SEVERITIES, Finding, StepRecord


@dataclass(frozen=True, kw_only=True, slots=True)
class AlwaysState:
    """Nothing to remember."""

    kind: ClassVar[str] = "always"


@dataclass(frozen=True, kw_only=True, slots=True)
class FindingState:
    """The newest finding that counted."""

    kind: ClassVar[str] = "finding"

    finding: str
    severity: str
    """As the condition asks; after a change of it in a resumed run, the state is of no use."""
    step: int | None = None
    finding_id: str | None = None
    found_severity: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class MetricState:
    """The newest values of a metric, and its base."""

    kind: ClassVar[str] = "metric"

    metric: str
    met: bool = False
    window: tuple[float, ...] = ()
    """Newest values, at most ``smooth_steps``."""
    base: BaseMean = field(default_factory=BaseMean)


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupState:
    """States of the parts of an ``any`` or ``all``, in their order."""

    parts: tuple[State, ...]


State = AlwaysState | FindingState | MetricState | GroupState


def start(condition: Condition) -> State:
    """Before the first record."""
    if isinstance(condition, OnFinding):
        return FindingState(finding=condition.finding, severity=condition.severity)
    if isinstance(condition, OnMetric):
        return MetricState(metric=condition.metric)
    if isinstance(condition, AnyOf | AllOf):
        return GroupState(parts=tuple(start(part) for part in condition.conditions))
    return AlwaysState()


def step(
    condition: Condition, state: State, record: StepRecord, findings: Sequence[Finding], hysteresis: float
) -> tuple[State, bool, str, str | None]:
    """Fold one record and the findings raised at it.

    Args:
        hysteresis: share of its line by which a metric must be back before its condition is released.

    Returns:
        The new state, whether the condition holds, why in one line for a person, and the finding that it holds by.
    """
    if isinstance(condition, OnFinding) and isinstance(state, FindingState):
        return _finding(condition, state, record, findings)
    if isinstance(condition, OnMetric) and isinstance(state, MetricState):
        return _metric(condition, state, record, hysteresis)
    if isinstance(condition, AnyOf | AllOf) and isinstance(state, GroupState):
        return _group(condition, state, record, findings, hysteresis)
    if isinstance(condition, Always):
        return state, True, "always", None
    raise TypeError(f"{type(state).__name__} is no state of {type(condition).__name__}")


def _finding(
    condition: OnFinding, state: FindingState, record: StepRecord, findings: Sequence[Finding]
) -> tuple[State, bool, str, str | None]:
    taken = SEVERITIES[SEVERITIES.index(condition.severity) :]
    for finding in findings:
        if finding.detector == condition.finding and finding.severity in taken:
            state = replace(state, step=record.step, finding_id=finding.finding_id, found_severity=finding.severity)
    wanted = condition.finding if condition.severity == "warn" else f"{condition.finding} ({condition.severity})"
    if state.step is None:
        return state, False, f"no finding of {wanted} yet", None
    said = f"{condition.finding} ({state.found_severity}) at step {state.step}"
    if condition.lasts_steps is not None and record.step - state.step >= condition.lasts_steps:
        return state, False, f"{said} was {record.step - state.step} steps ago", None
    return state, True, said, state.finding_id


def _metric(
    condition: OnMetric, state: MetricState, record: StepRecord, hysteresis: float
) -> tuple[State, bool, str, str | None]:
    value = record.metrics.get(condition.metric)
    state = replace(state, base=state.base.after(record, value))
    if value is not None and math.isfinite(value):
        state = replace(state, window=(*state.window, float(value)))
    # Also where a resumed run smooths over fewer values than before.
    state = replace(state, window=state.window[-condition.smooth_steps :])
    met, why = _compare(condition, state, hysteresis)
    if value is None and state.window:
        why += " (not measured at this step)"
    return replace(state, met=met), met, one_line(why), None


def _compare(condition: OnMetric, state: MetricState, hysteresis: float) -> tuple[bool, str]:
    """Whether the smoothed metric is past its line. Nothing new leaves the answer as it was."""
    name = condition.metric
    if not state.window:
        return state.met, f"{name} was not measured yet"
    side: Literal["above", "below"] = "above" if condition.above is not None else "below"
    share = condition.above if condition.above is not None else condition.below
    assert share is not None
    line, shown = share, f"{share:g}"
    if condition.of == "base":
        base = state.base.mean
        if base is None:
            return False, f"{name} was measured over {state.base.progress()}"
        if base <= 0.0:
            return False, f"{name} has a base of {base:.4g}, which nothing is a share of"
        line = share * base
        shown = f"{share:g} of base {base:.4g} = {line:.4g}"
    now = _mean(state.window)
    past = now > line if side == "above" else now < line
    if past:
        return True, f"{name} {now:.4g} is {side} {shown}"
    back = hysteresis * abs(line)
    held = now > line - back if side == "above" else now < line + back
    if state.met and held:
        return True, f"{name} {now:.4g} is back by less than {hysteresis:.0%} of its line, {side} {shown}"
    return False, f"{name} {now:.4g} is not {side} {shown}"


def _group(
    condition: AnyOf | AllOf,
    state: GroupState,
    record: StepRecord,
    findings: Sequence[Finding],
    hysteresis: float,
) -> tuple[State, bool, str, str | None]:
    # Every part is folded, also after the answer is known: its state must not depend on the others.
    parts = [
        step(part, before, record, findings, hysteresis)
        for part, before in zip(condition.conditions, state.parts, strict=True)
    ]
    answers = [met for _, met, _, _ in parts]
    met = any(answers) if isinstance(condition, AnyOf) else all(answers)
    # What decided: of an `any` that holds those that hold, of an `all` that does not those that do not.
    why = "; ".join(why for _, answer, why, _ in parts if answer == met)
    finding_id = next((found for _, answer, _, found in parts if answer and found is not None), None) if met else None
    return GroupState(parts=tuple(after for after, _, _, _ in parts)), met, one_line(why), finding_id


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def metric_of(condition: Condition) -> tuple[str, Literal["up", "down"]] | None:
    """The metric that a condition watches and the way back across its line, the first of several; ``None``: none."""
    if isinstance(condition, OnMetric):
        return condition.metric, ("down" if condition.above is not None else "up")
    if isinstance(condition, AnyOf | AllOf):
        return next((found for part in condition.conditions if (found := metric_of(part)) is not None), None)
    return None


def to_json(state: State) -> dict[str, Any]:
    """The state as JSON types; floats survive exactly."""
    if isinstance(state, GroupState):
        return {"kind": "group", "parts": [to_json(part) for part in state.parts]}
    return {"kind": state.kind, **saved.to_json(state)}


def from_json(condition: Condition, found: Mapping[str, Any]) -> State:
    """The state that ``to_json`` described. A part whose condition is another now begins anew."""
    fresh = start(condition)
    if isinstance(condition, OnFinding) and found["kind"] == "finding":
        same = (found["finding"], found["severity"]) == (condition.finding, condition.severity)
        return saved.from_json(FindingState, found) if same else fresh
    if isinstance(condition, OnMetric) and found["kind"] == "metric" and found["metric"] == condition.metric:
        base = saved.to_json(BaseMean.from_json(found["base"]))
        return saved.from_json(MetricState, {**found, "base": base})
    if isinstance(condition, AnyOf | AllOf) and found["kind"] == "group":
        parts = found["parts"]
        if len(parts) == len(condition.conditions):
            return GroupState(parts=tuple(map(from_json, condition.conditions, parts)))
    return fresh
