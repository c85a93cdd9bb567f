"""What detectors say: where each of them stands, and findings in words."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

import rlmon.detectors.evidence as ev
from rlmon.detectors.catalog import GROUP_BASELINE, HEALTHY_SHARE, DetectorSpec
from rlmon.detectors.roster import WORDING
from rlmon.detectors.state import DetectorState
from rlmon.records import Finding, Severity, StepRecord

_WIDE = 0.05
"""Of a collision: 20 wordings in use are many, whatever the base had. Where no two answers of the base were alike, one
pair that is would otherwise be the end of them."""


def judged(state: DetectorState) -> bool:
    """Whether a detector that compares the run with its base has spoken, so that no finding is a pass."""
    compares = {spec.id for spec in state.roster.betting if spec.rule not in ("absolute", "immediate")}
    return any(
        row["bets"] > 0 and row["status"] not in ("waiting", "cannot") for row in status(state) if row["id"] in compares
    )


def status(state: DetectorState) -> list[dict[str, Any]]:
    """What every detector knows now, one dict each: for audits and live screens.

    ``id``; ``status``: ``ok | note | warn | fail | waiting | cannot``; ``reason`` for the last two; ``bets``;
    ``evidence``: per rung log evidence over its threshold, in nats (0 alarms); ``sources``: per source and statistic
    baseline, its standard error and prompts, value now, lines.
    """
    plan = state.plan
    margin, _, has_bet = ev.detector_evidence(plan, state.arrays)
    rows: list[dict[str, Any]] = []
    for d, spec in enumerate(state.roster.betting):
        sources = _source_rows(state, plan, spec, d)
        reachable = [row for row in sources if row["reachable"]]
        raised = state.arrays.raised[0, d]
        # What was noted stays raised; it is over where it would have been re-armed.
        noted = spec.milder == "note" and raised[ev.WARN]
        over = noted and state.arrays.calm[0, d] >= plan.rearm_records
        word: str = "fail" if raised[ev.FAIL] else spec.milder if raised[ev.WARN] and not over else "ok"
        reason = None
        if word == "ok" and not has_bet[0, d].any():
            word = "waiting"
            reason = "no block had " + " or ".join(spec.statistics) if not sources else "the baseline is not complete"
            if not sources and set(spec.statistics) <= set(GROUP_BASELINE):
                reason += ": no groups, or a critic in the place of their mean"
            if sources and all(row["baseline_done"] for row in sources):
                reason = "no block came after the baseline"
                if not reachable:
                    reason = "the values moved too far while the baseline was taken: no line can be drawn from it"
        elif word == "ok" and not reachable:
            word = "cannot"
            reason = "the lines lie beyond what the statistic can reach: the base is too narrow or its sample too small"
        rows.append(
            {
                "id": spec.id,
                "status": word,
                "reason": reason,
                "bets": int(state.arrays.bets[0][:, plan.detector_K == d].max(initial=0)),
                "evidence": {
                    name: round(float(margin[0, d, rung]), 6) if has_bet[0, d, rung] else None
                    for rung, name in ((ev.WARN, spec.milder), (ev.FAIL, "fail"))
                    if name in spec.rungs
                },
                "sources": sources,
            }
        )
    for spec, quiet in zip(state.roster.immediate, state.immediate_calm, strict=True):
        rows.append(
            {
                "id": spec.id,
                "status": "ok" if quiet < 0 else "fail",
                "reason": None,
                "bets": state.records,
                "evidence": {},
                "sources": [],
            }
        )
    return rows


def _source_rows(state: DetectorState, plan: ev.Plan, spec: DetectorSpec, d: int) -> list[dict[str, Any]]:
    """Per source and statistic that was ever seen: baseline, now, lines, and how far past them."""
    rows = []
    for s, source in enumerate(state.sources):
        line_K = ev.source_lines(plan, state.arrays, s)[0][0]
        for statistic, metric in zip(spec.statistics, spec.metrics, strict=True):
            q = state.roster.at[statistic]
            now = float(state.arrays.smooth[0, s, q])
            sums = state.arrays.sums[0, s, q]
            if math.isnan(now) and sums[ev.COUNT] == 0:
                continue
            mine = (plan.detector_K == d) & (plan.stat_K == q)
            line = {int(plan.rung_K[k]): float(line_K[k]) for k in np.flatnonzero(mine)}
            ceiling = 1.0 if spec.rule == "effective" or spec.unit.startswith("share") else math.inf
            ok = [v for v in line.values() if not math.isnan(v) and v < ceiling]
            absolute = spec.rule == "absolute"
            rows.append(
                {
                    "key": source,
                    "source": state.names.get(source, source),
                    "statistic": statistic,
                    "metric": metric,
                    "baseline": None if absolute else _value(state.arrays.base[0, s, q]),
                    "baseline_se": None if absolute else _value(state.arrays.se[0, s, q]),
                    "baseline_kind": "none" if absolute else state.baseline_kind(source, statistic),
                    "baseline_done": absolute or bool(state.arrays.done[0, s, q]),
                    "baseline_prompts": 0 if absolute else int(sums[ev.PROMPTS]),
                    "now": _value(now),
                    "warn_line": _value(line.get(ev.WARN, math.nan)),
                    "fail_line": _value(line.get(ev.FAIL, math.nan)),
                    "reachable": bool(ok),
                }
            )
    return rows


def finding(state: DetectorState, record: StepRecord, d: int, rung: int) -> Finding:
    """What detector ``d`` says where its rung fires."""
    plan = state.plan
    spec = state.roster.betting[d]
    slot = "fail" if rung == ev.FAIL else "warn"
    severity: Severity = "fail" if rung == ev.FAIL else spec.milder
    margin, _, _ = ev.detector_evidence(plan, state.arrays)
    rows = _source_rows(state, plan, spec, d)
    worst = max(rows, key=lambda row: _distance(row, slot, spec.direction))
    now, base, line = (_in_metric_unit(spec, worst[key]) for key in ("now", "baseline", f"{slot}_line"))
    missing = _missing_prompts(state, plan, spec, worst, rung)
    source = worst["source"] if len(state.sources) > 1 else None
    message = _sentence(spec, slot, worst, source)
    if missing:
        message += (
            f" The baseline of {worst['baseline_prompts']} prompts is too small for the nominal line: "
            f"{missing} more prompts are missing, until then the line stands where the base's error reaches."
        )
    sampled = _sampled(state, worst)
    if sampled:
        message += f" Its base is a sample of {sampled} completions."
    if spec.agreement:
        seconds = [
            other.id
            for i, other in enumerate(state.roster.betting)
            if other.witness and state.arrays.raised[0, i, ev.WARN]
        ]
        if severity == "fail":
            message += f" Second signal: {', '.join(seconds)}."
    else:
        seconds = []
    found: dict[str, Any] = {
        "log_evidence_over_threshold": round(float(margin[0, d, rung]), 6),
        "alpha": state.roster.alpha(spec, state.alpha),
        "baseline_se": worst["baseline_se"],
        "missing_baseline_prompts": missing,
        "statistic": worst["statistic"],
        "sources": [
            {key: row[key] for key in ("source", "statistic", "baseline", "now", f"{slot}_line")}
            for row in sorted(rows, key=lambda row: -_distance(row, slot, spec.direction))[:8]
        ],
    }
    if seconds:
        found["second_signals"] = seconds
    if sampled:
        found["base_completions"] = sampled
    return Finding(
        finding_id=f"{spec.id}-{severity}-{record.attempt}-{record.step}-{state.records}",
        detector=spec.id,
        severity=severity,
        step=record.step,
        metric=worst["metric"],
        value=now,
        baseline=base,
        threshold=line,
        source=source,
        message=message,
        advice=spec.advice,
        baseline_kind=worst["baseline_kind"],
        baseline_prompts=worst["baseline_prompts"],
        benign_sharpening=_benign(state, worst["key"]),
        evidence=found,
    )


def _sampled(state: DetectorState, row: Mapping[str, Any]) -> int:
    """Completions of the sample of the base that the baseline of a row of ``_source_rows`` is made of; 0: it is not."""
    if row["baseline_kind"] != "base_sample" or not state.base_completions:
        return 0
    s, q = state.sources.index(row["key"]), state.roster.at[row["statistic"]]
    return int(state.arrays.sums[0, s, q, ev.COMPLETIONS])


def _in_metric_unit(spec: DetectorSpec, value: float | None) -> float | None:
    """Collisions are judged as they are and told as effective numbers, 1/C."""
    if spec.rule != "effective" or value is None:
        return value
    return 1.0 / value if value > 0 else None


def _distance(row: Mapping[str, Any], slot: str, direction: str) -> float:
    now, line = row["now"], row[f"{slot}_line"]
    if now is None or not line:
        return -math.inf
    return float((now - line) / line if direction == "up" else (line - now) / line)


def _sentence(spec: DetectorSpec, slot: str, row: Mapping[str, Any], source: str | None) -> str:
    def short(value: float | None) -> str:
        if value is None:
            return "an unknown number of"
        if spec.unit.startswith("share"):
            return f"{value:.0%}"
        return f"{value:.2f}" if spec.rule == "effective" else f"{value:.3g}"

    base, now, line = (short(_in_metric_unit(spec, row[key])) for key in ("baseline", "now", f"{slot}_line"))
    told = spec.sentence(row["statistic"], base=base, now=now)
    stands = f"line {line}{', a prior' if spec.prior else ''}"
    # Sources come from the data: repr keeps control characters out of terminals and logs.
    where = f" in source {source[:60]!r}" if source else ""
    return f"{spec.id}: {told} ({stands}){where}."


def _missing_prompts(state: DetectorState, plan: ev.Plan, spec: DetectorSpec, row: Mapping[str, Any], rung: int) -> int:
    """Prompts by which the baseline is short: its reach shrinks with their square root, until the base's confidence
    limit leaves the line where it would be if the base were known."""
    s, q = state.sources.index(row["key"]), state.roster.at[row["statistic"]]
    base, reach = float(state.arrays.base[0, s, q]), float(state.arrays.reach[0, s, q])
    levels = state.parameters["lines"][spec.id]
    name = "fail" if rung == ev.FAIL else "warn"
    if spec.rule == "absolute" or not (base > 0 and reach > 0):
        return 0
    factor = 1.0 / levels[name] if spec.rule == "effective" else levels[name]
    nominal = max(base * factor, levels[f"{name}_floor"]) if spec.direction == "up" else base * factor
    room = abs(math.log(nominal / base)) + math.log(ev.TOLERATED[rung])
    if room <= 0 or reach <= room:
        return 0
    prompts = int(row["baseline_prompts"])
    return max(1, math.ceil(prompts * (reach / room) ** 2) - prompts)


def _benign(state: DetectorState, source: str) -> bool | None:
    """Reward up by 2 SE of its base, and right answers still in as many formats, and to one prompt in as many wordings,
    as .8 of the base. None where reward or formats were not measured; wording is asked where it was."""
    s = state.sources.index(source)

    def measured(array: ev.Floats, statistic: str) -> float:
        return float(array[0, s, state.roster.at[statistic]])

    arrays, formats = state.arrays, "mode_collision_correct"
    base, se, now = (measured(array, "reward") for array in (arrays.base, arrays.se, arrays.smooth))
    alike_base, alike_now = measured(arrays.base, formats), measured(arrays.smooth, formats)
    if not all(math.isfinite(v) for v in (base, se, now, alike_base, alike_now)):
        return None
    kept = alike_now <= alike_base / HEALTHY_SHARE
    for statistic in WORDING:
        alike_base, alike_now = measured(arrays.base, statistic), measured(arrays.smooth, statistic)
        if math.isfinite(alike_base) and math.isfinite(alike_now):
            kept &= alike_now <= max(alike_base / HEALTHY_SHARE, _WIDE)
    return bool(now > base + 2.0 * se and kept)


def immediate_finding(state: DetectorState, record: StepRecord, spec: DetectorSpec, value: float | None) -> Finding:
    """What an immediate detector says of a value past its line."""
    shown = value if value is not None and math.isfinite(value) else None
    amount = "values were" if shown is None else "1 value was" if shown == 1 else f"{shown:g} values were"
    return Finding(
        finding_id=f"{spec.id}-fail-{record.attempt}-{record.step}-{state.records}",
        detector=spec.id,
        severity="fail",
        step=record.step,
        metric=spec.metrics[0],
        value=shown,
        baseline=0.0,
        threshold=spec.fail or 0.0,
        source=None,
        message=f"{spec.id}: {amount} NaN or infinite.",
        advice=spec.advice,
        baseline_kind="none",
        baseline_prompts=0,
        benign_sharpening=False,
        evidence={},
    )


def _value(number: Any) -> float | None:
    return float(number) if math.isfinite(number) else None
