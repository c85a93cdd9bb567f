"""The result: what the checks say, told with the numbers, curves and completions that show it."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

import rlmon.audit.aliases as aliases
import rlmon.audit.incidents as incidents
import rlmon.audit.verdict as verdict
from rlmon.acts import ROW_KNOBS, Act, fold
from rlmon.audit.case import Case
from rlmon.audit.checks import Judged
from rlmon.audit.checks.solving import prompt_halves
from rlmon.audit.clauses import clause
from rlmon.audit.examples import Samples
from rlmon.audit.features import Bools, Floats, Ints
from rlmon.audit.result import (
    Audit,
    Check,
    Coverage,
    Event,
    Heat,
    HeatRow,
    MetricSummary,
    ModeStory,
    RunFacts,
    Verdict,
)
from rlmon.metrics.catalog import METRICS
from rlmon.metrics.groups import CREDIBILITY, HARD_SOLVE_RATE
from rlmon.records import SEVERITIES
from rlmon.statistics import beta_cdf, ratio

HEAT_BINS = 64
HEAT_ROWS = 200
TOLD_IN_HEADLINE = 2
ACT_MARKS = 40
"""Marks of one rule's acts on rows over the timeline, at most."""
Fate = Literal["extinct", "shrunk", "steady", "grown", "newborn"]


def tell(case: Case, judged: Judged, source: str, timing: Mapping[str, float]) -> Audit:
    """The finished audit of ``source``."""
    samples = Samples(case)
    stories = _mode_stories(case, judged.checks, samples)
    checks = samples.shown(judged.checks, stories)
    covered = verdict.coverage(checks, outputs=case.counted.rows > 0, lacks=case.run.lacks)
    reached = verdict.reached(checks, covered)
    steps = case.line.steps
    series = {name: _values(values) for name, values in sorted(case.line.series.items())}
    if judged.wording is not None:
        at = np.searchsorted(steps, judged.wording.steps)
        for name, values in judged.wording.series.items():
            column = np.full(steps.size, np.nan)
            column[at] = values
            series[name] = _values(column)
    metrics = {name: _summary(case, name, values) for name, values in series.items()}
    return Audit(
        run=_facts(case, judged, source),
        verdict=reached,
        coverage=covered,
        headline=f"{_headline(reached, covered, checks, case, stories, metrics)} {covered}.",
        checks=checks,
        actions=[dataclasses.asdict(action) for action in case.fold.live.actions] if case.fold.live else [],
        findings=[dataclasses.asdict(finding) for finding in case.fold.findings],
        metrics=metrics,
        correction=judged.correction,
        steps=steps.tolist(),
        series=series,
        mode_shares={mode: _values(values) for mode, values in case.line.mode_shares.items()},
        modes=stories,
        heat=_heat(case),
        samples=samples.browser(),
        events=_events(case, checks),
        timing_seconds={name: round(value, 3) for name, value in timing.items()},
    )


def _values(values: Floats) -> list[float | None]:
    return [value if math.isfinite(value) else None for value in values.tolist()]


def _headline(
    reached: Verdict,
    covered: Coverage,
    checks: Sequence[Check],
    case: Case,
    stories: Sequence[ModeStory],
    metrics: Mapping[str, MetricSummary],
) -> str:
    steps = case.line.steps.size
    read = f"{steps:,} step{'s' if steps != 1 else ''}" + (
        f" and {case.counted.rows:,} completions" if covered.outputs else ""
    )
    if reached == "insufficient":
        return verdict.unsure(covered, read)
    if reached == "pass":
        notes = [check for check in checks if check.status == "note"]
        since = [f"{check.id} since step {check.first_step}" for check in notes if check.first_step is not None]
        cost = f" A note on compute: {', '.join(since)}." if since else ""
        stood = [clause(check) for check in notes if check.first_step is None]
        cost += f" Noted: {'; '.join(stood)}." if stood else ""
        seen = "" if covered.outputs else "Pass (curves only: outputs not seen). "
        return f"{seen}Nothing passed its damage line in {read}.{cost}"
    happened = incidents.among(checks, stories, metrics, (int(case.line.steps[0]), int(case.line.steps[-1])))
    if not happened:
        failed = [check.id for check in checks if check.status == "error"]
        return f"{len(failed)} of {len(checks)} checks failed themselves: {', '.join(failed)}."
    told = [one.sentence for one in happened[:TOLD_IN_HEADLINE]]
    more = len(happened) - len(told)
    return " ".join(told) + (f" {more} more below." if more else "")


def _facts(case: Case, judged: Judged, source: str) -> RunFacts:
    counted, groups = case.counted, case.counted.groups
    steps = case.line.steps
    with_rows = np.unique(groups["step"][~groups["eval"]]).size if groups else 0
    coverage: dict[str, Any] = {
        "rows": counted.rows,
        "duplicate_rows": counted.duplicates,
        "damaged_rows": counted.damaged,
        "unreadable_files": len(counted.unreadable),
        "steps_without_rows": int(steps.size - with_rows),
    }
    if judged.wording is not None:
        coverage["text_budget"] = {
            "rows": judged.wording.rows,
            "rows_share": judged.wording.rows / counted.rows,
            "words": judged.wording.words,
        }
    if case.run.scalars:
        judged_as = aliases.taken(case.run.scalars)
        coverage["columns"] = {
            "judged": judged_as,
            "kept": sorted(case.run.scalars.keys() - judged_as.keys()),
            "without_numbers": list(case.run.passed_over),
        }
    evaluated = int(groups["rows"][groups["eval"]].sum()) if groups else 0
    base: dict[str, Any] = {"kind": case.baseline_kind, "prompts": 0, "completions": 0, "steps": []}
    every, is_base, _ = case.ends()
    if every:
        base |= {
            "prompts": int(np.unique(every["prompt"][is_base]).size),
            "completions": int(every["rows"][is_base].sum()),
            "steps": np.unique(every["step"][is_base]).tolist(),
        }
    elif case.windows is not None:
        base["steps"] = case.windows.base.tolist()
    sizes = groups["rows"] if groups else np.zeros(0)
    size = case.run.group_size or (int(np.median(sizes)) if sizes.size else None)
    return RunFacts(
        id=case.run.run_id,
        source=source,
        reader=case.run.reader,
        steps=int(steps.size),
        first_step=int(steps[0]),
        last_step=int(steps[-1]),
        completions=counted.rows,
        prompts=int(np.unique(groups["prompt"]).size) if groups else 0,
        eval_completions=evaluated,
        group_size=size,
        coverage=coverage,
        baseline=base,
        config=without_secrets(case.run.config),
        notes=list(case.run.notes),
        success=case.success.to_json(),
    )


_SECRET = re.compile(
    r"(?i)api_?key|secret|passw|credential|private_key|\A(?:hub|hf|api|auth|use_auth|access|bearer|refresh|session)?_?token\Z"
)
HIDDEN = "(hidden)"


def without_secrets(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings with the values of passwords, keys and tokens hidden: results are printed, mailed and kept by CI."""
    shown: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            shown[key] = without_secrets(value)
        elif _SECRET.search(str(key)) and value not in (None, "", True, False):
            shown[key] = HIDDEN
        else:
            shown[key] = value
    return shown


def _summary(case: Case, name: str, values: Sequence[float | None]) -> MetricSummary:
    known = [value for value in values if value is not None]
    column = np.array([math.nan if value is None else value for value in values])

    def mean(steps: Ints | None) -> float | None:
        if steps is None:
            return None
        mine = column[np.isin(case.line.steps, steps)]
        mine = mine[np.isfinite(mine)]
        return float(mine.mean()) if mine.size else None

    ends = case.windows
    return MetricSummary(
        unit=_UNITS.get(name, ""),
        base=case.base_mean(name) if case.base_line is not None else mean(None if ends is None else ends.base),
        first=known[0] if known else None,
        last=mean(None if ends is None else ends.last),
        min=min(known, default=None),
        max=max(known, default=None),
    )


_UNITS = {metric.name: metric.unit for metric in METRICS} | {
    "completion characters": "characters",
    "exact duplicate share": "share",
    "sentence openings": "ways in use",
}


def _events(case: Case, checks: Sequence[Check]) -> list[Event]:
    events = [
        Event(step=f.step, kind="finding", severity=f.severity, check=f.detector, text=f.message)
        for f in case.fold.findings[:1_000]
    ]
    for check in checks:
        if check.first_step is not None and check.status in SEVERITIES:
            events.append(
                Event(
                    step=check.first_step,
                    kind="onset",
                    severity=check.status,
                    check=check.id,
                    text=f"{check.id} begins",
                )
            )
    if case.fold.live is not None:
        events += _acts([dataclasses.asdict(action) for action in case.fold.live.actions])
        for fault in case.fold.live.faults[:100]:
            text = f"{fault.place} failed: {fault.error}"
            events.append(Event(step=fault.step, kind="fault", severity="info", check=None, text=text[:300]))
    return sorted(events, key=lambda event: event.step)


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


# --- formats ------------------------------------------------------------------------------------------------------


def _mode_stories(case: Case, checks: Sequence[Check], samples: Samples) -> list[ModeStory]:
    groups, is_base, is_last = case.ends()
    if not groups or not is_base.any() or not is_last.any() or case.windows is None:
        return []
    counts = groups["modes"].astype(np.float64)
    base_counts, last_counts = counts[is_base].sum(axis=0), counts[is_last].sum(axis=0)
    if not base_counts.sum() or not last_counts.sum():
        return []
    base, last = base_counts / base_counts.sum(), last_counts / last_counts.sum()
    base_reward = _mode_reward(groups, is_base)
    last_reward = _mode_reward(groups, is_last)
    winner = int(last.argmax())
    onsets = [check.first_step for check in checks if check.first_step is not None and check.status in ("warn", "fail")]
    since = min(onsets, default=int(case.windows.last[0]))
    judged = next((check for check in checks if check.id == "mode-extinction" and check.status != "skip"), None)
    stories = []
    for code, mode in enumerate(case.modes):
        if base[code] == 0 and last[code] == 0:
            continue
        values = case.line.mode_shares.get(mode)
        seen = np.zeros(0, dtype=np.int64) if values is None else np.flatnonzero(np.nan_to_num(values) > 0)
        fate = _fate(float(base[code]), float(last[code]))
        if fate == "extinct" and judged is not None and mode not in judged.evidence["modes"]:
            fate = "shrunk"  # too few completions to be sure: one count of what died out
        stories.append(
            ModeStory(
                mode=mode,
                fate=fate,
                base_share=float(base[code]),
                last_share=float(last[code]),
                base_reward=base_reward[code],
                last_reward=last_reward[code],
                last_seen_step=int(case.line.steps[seen[-1]]) if seen.size else None,
                examples=samples.of_lost(code, winner, since) if fate != "steady" else [],
            )
        )
    order = {"extinct": 0, "shrunk": 1, "newborn": 2, "grown": 3, "steady": 4}
    return sorted(stories, key=lambda story: (order[story.fate], -story.base_share))


def _mode_reward(groups: Mapping[str, Any], mine: Bools) -> list[float | None]:
    means = ratio(
        groups["modes_reward"][mine].sum(axis=0).astype(np.float64),
        groups["modes_scored"][mine].sum(axis=0).astype(np.float64),
    )
    return _values(means)


def _fate(base: float, last: float) -> Fate:
    if base >= 0.02 and last < 0.1 * base:
        return "extinct"
    if base < 0.01 and last >= 0.05:
        return "newborn"
    if last < 0.67 * base and base - last > 0.02:
        return "shrunk"
    return "grown" if last > 1.5 * base and last - base > 0.02 else "steady"


# --- prompts over time --------------------------------------------------------------------------------------------


def _heat(case: Case) -> Heat | None:
    """Solve rates of prompts that were sampled at two steps or more, worst first; ``None`` where there are none."""
    groups = case.counted.groups
    if not groups or not groups["known"].any():
        return None
    mine = ~groups["eval"] & (groups["known"] > 0)
    steps = np.unique(groups["step"][mine])
    keys, code = np.unique(groups["prompt"][mine], return_inverse=True)
    visits = np.bincount(_pairs(code, np.searchsorted(steps, groups["step"][mine])), minlength=keys.size)
    several = visits >= 2
    if not several.any():
        return None
    bins = min(HEAT_BINS, steps.size)
    place = np.searchsorted(steps, groups["step"][mine]) * bins // steps.size
    n = np.zeros((keys.size, bins))
    k = np.zeros((keys.size, bins))
    np.add.at(n, (code, place), groups["known"][mine])
    np.add.at(k, (code, place), groups["successes"][mine])
    halves = prompt_halves(case)
    at = np.searchsorted(np.unique(groups["prompt"][~groups["eval"]]), keys)
    fates = _fates(*(half[at] for half in halves))
    source = np.zeros(keys.size, dtype=np.int64)
    source[code] = groups["source"][mine]
    rank = {"forgotten": 0, "lucky": 1, "impossible": 2, "mixed": 3, "learned": 4, "solved": 5}
    chosen = sorted(np.flatnonzero(several).tolist(), key=lambda p: (rank[fates[p]], -n[p].sum(), keys[p]))[:HEAT_ROWS]
    edges = [steps[np.flatnonzero(np.arange(steps.size) * bins // steps.size == b)] for b in range(bins)]
    rows = []
    for p in chosen:
        identity, text = case.counted.prompts.get(int(keys[p]), (f"{int(keys[p]):016x}", None))
        rates = [float(k[p, b] / n[p, b]) if n[p, b] else None for b in range(bins)]
        rows.append(
            HeatRow(
                prompt_id=identity,
                prompt=text,
                source=case.counted.sources[source[p]],
                rates=rates,
                attempts=int(n[p].sum()),
                fate=fates[p],
            )
        )
    return Heat(
        bins=[(int(edge[0]), int(edge[-1])) for edge in edges],
        rows=rows,
        prompts=int(several.sum()),
        note=f"{len(rows)} of {int(several.sum())} prompts that were sampled at two steps or more, worst first",
    )


def _pairs(code: Ints, step: Ints) -> Ints:
    """The code of every distinct (code, step), so that counting them counts visits."""
    width = int(step.max()) + 1 if step.size else 1
    return np.asarray(np.unique(code * width + step) // width, dtype=np.int64)


def _fates(early_n: Floats, early_k: Floats, late_n: Floats, late_k: Floats) -> list[Any]:
    n, k = early_n + late_n, early_k + late_k
    below = beta_cdf(HARD_SOLVE_RATE, k + 1.0, n - k + 1.0) >= CREDIBILITY
    early, late = ratio(early_k, early_n), ratio(late_k, late_n)
    fates = []
    for p in range(n.size):
        if below[p]:
            fates.append("lucky" if k[p] else "impossible")
        elif early[p] >= 0.5 and late[p] < 0.25 and min(early_n[p], late_n[p]) >= 4:
            fates.append("forgotten")
        elif k[p] == n[p]:
            fates.append("solved")
        elif late[p] >= 0.9 and early[p] < 0.9:
            fates.append("learned")
        else:
            fates.append("mixed")
    return fates
