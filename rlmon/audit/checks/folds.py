"""The detectors, which looked at every step: what they said, in the words of a check."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import numpy as np

from rlmon.audit.case import Case
from rlmon.audit.checks.question import Ends, Question
from rlmon.audit.clauses import clause
from rlmon.audit.contrast import BASE_STEPS
from rlmon.audit.features import Floats
from rlmon.audit.result import Check, Core
from rlmon.audit.run import Lack
from rlmon.audit.stand_ins import NEXT_BEST
from rlmon.audit.timeline import SMOOTHING_STEPS, trailing_mean
from rlmon.detectors import DETECTORS, DetectorSpec
from rlmon.records import SEVERITIES, Finding

_SPECS: Mapping[str, DetectorSpec] = {spec.id: spec for spec in DETECTORS}
ONSET_NOISE = 3.0
"""Standard errors of the smoothed base that a change must exceed: a base of very diverse outputs is mostly noise."""


def _detector(ask: Question, ends: Ends, need: Lack | Literal["successes"]) -> Check:
    case, spec = ends.case, _SPECS[ask.id]
    row = next(row for row in case.fold.status if row["id"] == spec.id)
    mine = [finding for finding in case.fold.findings if finding.detector == spec.id]
    if mine:
        return _alarmed(ask, case, spec, row, mine)
    if row["status"] in ("waiting", "cannot"):
        return ask.skip(_why_silent(case, need, row), metric=spec.metrics[0], unit=spec.unit)
    if spec.rule == "immediate":
        return ask.says(
            status="pass", metric=spec.metrics[0], unit=spec.unit,
            value=0.0, threshold=0.0, message=f"no NaN or infinity in {case.fold.looks} steps",
        )  # fmt: skip
    worst = _nearest(spec, row)
    value, base, line = (_unit(spec, worst.get(key)) for key in ("now", "baseline", "warn_line"))
    return ask.says(
        status="pass",
        metric=worst.get("metric", spec.metrics[0]),
        unit=_named_unit(case, spec),
        value=value,
        baseline=base,
        threshold=line,
        source=worst.get("source") if len(case.counted.sources) > 1 else None,
        message=_passed(value, base, line),
        evidence={"log_evidence_over_threshold": row["evidence"], "bets": row["bets"]},
    )


def _alarmed(ask: Question, case: Case, spec: DetectorSpec, row: Mapping[str, Any], mine: Sequence[Finding]) -> Check:
    status = max((finding.severity for finding in mine), key=SEVERITIES.index)
    first = next(finding for finding in mine if finding.severity == status)
    shown = next(finding for finding in reversed(mine) if finding.severity == status)
    now = next((r for r in row["sources"] if r["metric"] == shown.metric and shown.source in (None, r["source"])), None)
    value = shown.value if now is None or now["now"] is None else _unit(spec, now["now"])
    recovered = row["status"] == "ok" and spec.rule != "immediate"
    found = ask.says(
        status=status,
        metric=shown.metric,
        unit=_named_unit(case, spec),
        value=value,
        baseline=shown.baseline,
        threshold=shown.threshold,
        first_step=first.step if spec.rule == "immediate" else onset(case, spec, shown),
        alarm_step=first.step,
        source=shown.source,
        message=shown.message.removeprefix(spec.id + ": "),
        evidence={
            "findings": [
                {"step": f.step, "severity": f.severity, "value": f.value, "threshold": f.threshold} for f in mine[:50]
            ],
            "benign_sharpening": shown.benign_sharpening,
            "baseline_kind": shown.baseline_kind,
            "baseline_prompts": shown.baseline_prompts,
            "recovered": recovered,
            **shown.evidence,
        },
        advice=spec.advice,
    )
    return dataclasses.replace(found, message=" ".join(_told(found, spec, row, mine, case)))


def _told(
    found: Check, spec: DetectorSpec, row: Mapping[str, Any], mine: Sequence[Finding], case: Case
) -> Iterator[str]:
    """The message: what was seen, with the numbers of the check itself, when it was sure, and what to know beside."""
    line = "" if found.threshold is None or found.evidence["recovered"] else f" (line {said(found.threshold)})"
    yield f"{clause(found)}{line}."
    steps = ", ".join(f"{finding.severity.upper()} at step {finding.step}" for finding in mine[:4])
    yield f"Confirmed: {steps}{' and more' if len(mine) > 4 else ''}."
    if missing := found.evidence.get("missing_baseline_prompts"):
        yield f"The base is {missing} prompts too small for the usual line."
    if seconds := found.evidence.get("second_signals"):
        yield f"Second signal: {', '.join(seconds)}."
    if spec.agreement and found.status == "warn" and (row["evidence"].get("fail") or -1.0) >= 0.0:
        absent = ", and this source holds no completions to give one" if "completions" in case.run.lacks else ""
        yield f"The FAIL line is passed too; FAIL needs a second signal{absent}."
    if found.evidence["recovered"]:
        yield "It has recovered since."


def onset(case: Case, spec: DetectorSpec, finding: Finding) -> int | None:
    """First step from which the 5-step mean of what the detector reads stays past its WARN line and beyond the noise of
    its base; where it comes back in the end, the start of the stay that the alarm fell in. ``None`` where the run has
    no such series. Effective numbers are smoothed as collisions, whose mean is unbiased."""
    values = _course(case, spec, finding.metric)
    if values is None:
        return None
    known = np.flatnonzero(np.isfinite(values))
    if not known.size:
        return None
    smooth = trailing_mean(values[known], SMOOTHING_STEPS)
    steps = case.line.steps[known]
    line = _onset_line(case, spec, finding, values)
    if line is None:
        return None
    past = smooth > line if spec.direction == "up" else smooth < line
    if not past.any():
        return None
    # The last run of steps past the line that began before the alarm (or the first one after it).
    starts = np.flatnonzero(past & ~np.concatenate([[False], past[:-1]]))
    before = starts[steps[starts] <= finding.step]
    start = int(before[-1]) if before.size else int(starts[0])
    stays = bool(past[start:].all())
    if not stays:
        # Noise may lift single steps over the line: the stay began where most of the steps since are past it.
        for candidate in before.tolist():
            if past[candidate:].mean() >= 0.9:
                start = candidate
                break
        else:
            last_back = np.flatnonzero(~past)[-1]
            if last_back + 1 < past.size:
                start = int(last_back) + 1
    return int(steps[start])


def _course(case: Case, spec: DetectorSpec, metric: str) -> Floats | None:
    """What the detector reads, step by step: collisions where it tells effective numbers."""
    if spec.rule != "effective":
        return case.series(metric)
    collision = case.series(metric.removesuffix("_effective")) if metric.endswith("_effective") else None
    told = case.series(metric)
    if told is None and metric in NEXT_BEST:
        told = case.series(NEXT_BEST[metric])
    if collision is not None or told is None:
        return collision
    with np.errstate(divide="ignore"):
        return 1.0 / told


def _onset_line(case: Case, spec: DetectorSpec, finding: Finding, values: Floats) -> float | None:
    """WARN line of ``values`` without the floors that hold an alarm back, or as far as the base's noise reaches."""
    level = spec.warn if spec.warn is not None else spec.fail
    if level is None:
        return None
    if spec.rule == "absolute":
        return finding.threshold if spec.warn is None else spec.absolute_level(_statistic(spec, finding), level)
    base = finding.baseline if spec.rule != "effective" or not finding.baseline else 1.0 / finding.baseline
    first = values[: min(BASE_STEPS, values.size)]
    first = first[np.isfinite(first)]
    if base is None:
        if not first.size:
            return None
        base = float(first.mean())
    line = base / level if spec.rule == "effective" else base * level
    # From differences of neighbours: a trend inside the base is no noise.
    noise = float(np.std(np.diff(first))) / math.sqrt(2.0 * SMOOTHING_STEPS) if first.size >= 3 else 0.0
    return max(line, base + ONSET_NOISE * noise) if spec.direction == "up" else min(line, base - ONSET_NOISE * noise)


def _statistic(spec: DetectorSpec, finding: Finding) -> str:
    return dict(zip(spec.metrics, spec.statistics, strict=True)).get(finding.metric, spec.statistics[0])


def _why_silent(case: Case, need: Lack | Literal["successes"], row: Mapping[str, Any]) -> str:
    if need in ("successes", "advantages") and not case.success.known and "rewards" not in case.run.lacks:
        return f"it is not known what counts as a success: {case.success} (--success)."
    if need == "successes":
        need = "rewards"
    if need in case.run.lacks and not row["sources"]:
        return case.run.lacks[need]
    return f"{row['reason']}."


def _nearest(spec: DetectorSpec, row: Mapping[str, Any]) -> Mapping[str, Any]:
    """The source and statistic that is nearest to its line."""

    def distance(entry: Mapping[str, Any]) -> float:
        now, line = entry["now"], entry["warn_line"] or entry["fail_line"]
        if now is None or not line:
            return -math.inf
        return float((now - line) / line if spec.direction == "up" else (line - now) / line)

    return max(row["sources"], key=distance, default={})


def _unit(spec: DetectorSpec, value: float | None) -> float | None:
    if spec.rule != "effective" or value is None:
        return value
    return 1.0 / value if value > 0 else None


def _named_unit(case: Case, spec: DetectorSpec) -> str:
    return "characters" if spec.id == "length-collapse" and case.characters else spec.unit


def _passed(value: float | None, base: float | None, line: float | None) -> str:
    parts = [f"{said(base)} -> {said(value)}" if base is not None else f"now {said(value)}"]
    if line is not None:
        parts.append(f"line {said(line)}")
    return ", ".join(parts)


def said(value: float | None) -> str:
    return "not known" if value is None else f"{value:.3g}"


def _fold(check_id: str, title: str, need: Lack | Literal["successes"], core: Core | None = None) -> Question:
    """``need``: what gives the reason where the detector saw nothing."""
    return Question(id=check_id, title=title, core=core, method="fold", judge=partial(_detector, need=need))


FOLDS: tuple[Question, ...] = (
    _fold("format-collapse", "Do answers keep their formats?", "completions", "formats"),
    _fold("template-collapse", "Do completions differ beyond numbers and names?", "completions", "formats"),
    _fold("move-collapse", "Does reasoning keep its moves?", "tokens"),
    _fold("entropy-collapse", "Does token entropy hold?", "entropy", "entropy"),
    _fold("entropy-explosion", "Does token entropy stay in bounds?", "entropy", "entropy"),
    _fold("kl-drift", "Does the policy stay near its base?", "kl"),
    _fold("silent-groups-bad", "Are few groups failing as a whole?", "successes", "groups"),
    _fold("silent-groups-good", "Is there still something to learn in most groups?", "successes", "groups"),
    _fold("lone-success", "Do lucky one-offs carry little weight?", "advantages"),
    _fold("answer-concentration", "Do different prompts get different answers?", "completions"),
    _fold("length-collapse", "Do completions keep their length?", "tokens", "length"),
    Question(
        id="non-finite", title="Are all numbers finite?", core="non-finite", method="exact",
        judge=partial(_detector, need="completions"),
    ),
)  # fmt: skip
