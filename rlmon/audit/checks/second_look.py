"""The two ends of the curve of a detector that was silent."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from rlmon.audit.checks.detectors import falls, named_unit, said, told_by
from rlmon.audit.checks.question import Ends, Question
from rlmon.audit.clauses import clause
from rlmon.audit.curves import smooth_since
from rlmon.audit.result import Check
from rlmon.detectors import DETECTORS, DetectorSpec

ON_THE_WAY = 0.65
"""Of its base: what fell further, and is certain to pass its line if it goes on, is told before it has."""


def second_look(ask: Question, ends: Ends, spec: DetectorSpec, *, waiting: bool) -> Check | None:
    """What the two ends of the curve say where the detector was silent; ``None`` where they add nothing.

    A detector that bets against the base's own error has no line where the metric fell while the base was taken, or
    fell too late for it. ``waiting``: it never bet, so that well separated ends are the only answer there is.
    """
    if not is_looked_at_twice(spec) or not ends.same_data:
        return None
    case, down = ends.case, falls(spec)
    witnesses = {spec.id for spec in (*DETECTORS, *case.fold.own) if spec.witness}
    seconds = [f.detector for f in case.fold.findings if f.detector in witnesses]
    passed: Check | None = None
    for metric in spec.metrics:
        name = "completion characters" if named_unit(case, spec) == "characters" else told_by(case, metric)
        found = ends.move(name, relative=True)
        if found is None:
            continue
        lines = {"fail": _line(spec, found.base, spec.fail, spec.fail_floor),
                 "warn": _line(spec, found.base, spec.warn, spec.warn_floor)}  # fmt: skip
        if spec.agreement and not seconds:
            del lines["fail"]
        facts: dict[str, Any] = {
            "method": "hindsight", "metric": name, "unit": named_unit(case, spec), "value": found.last,
            "baseline": found.base, "interval": (found.low, found.high),
        }  # fmt: skip
        values = case.line.series[name]
        for status, line in lines.items():
            if not (found.high < line if down else found.low > line):
                continue
            seen = ask.says(
                status=status, threshold=line, advice=spec.advice, message="",
                first_step=smooth_since(case.line.steps, values, lines["warn"], upward=not down), **facts,
            )  # fmt: skip
            reach = f"first points against the last window, interval {said(found.low)} to {said(found.high)}"
            return dataclasses.replace(seen, message=f"{clause(seen)} (line {said(line)}; {reach}).")
        if spec.rule == "ratio" and down and found.last < ON_THE_WAY * found.base:
            ahead = ends.heading(name, 3 * found.points // 4)
            if ahead is not None and ahead < lines["warn"]:
                seen = ask.says(status="warn", threshold=lines["warn"], advice=spec.advice, message="", **facts)
                on = f"going on like that, it is past its line of {said(lines['warn'])} before the run has doubled"
                return dataclasses.replace(seen, message=f"{clause(seen)}, and still falls: {on}.")
        clear = found.low > lines["warn"] if down else found.high < lines["warn"]
        if waiting and clear and passed is None:
            passed = ask.says(status="pass", threshold=lines["warn"], message=found.within(), **facts)
    return passed


def is_looked_at_twice(spec: DetectorSpec) -> bool:
    """Whether the two ends of its curve say what it reads: of sources, or of counts, they do not."""
    return spec.rule in ("ratio", "effective") and spec.per_source != "only"


def _line(spec: DetectorSpec, base: float, level: float | None, floor: float) -> float:
    """A rung's line in the unit of the metric; out of reach where the detector has no such rung."""
    if level is None:
        return 0.0 if falls(spec) else math.inf
    if spec.rule == "effective":
        return min(base * level, 1.0 / floor if floor else math.inf)
    return max(base * level, floor) if spec.direction == "up" else base * level


SECOND_LOOKS = sum(len(spec.metrics) for spec in DETECTORS if is_looked_at_twice(spec))
"""Intervals of the second looks, which take their part of the error rate of hindsight checks."""
