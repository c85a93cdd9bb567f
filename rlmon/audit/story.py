"""The result: what the checks say, told with the numbers, curves and completions that show it."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

import rlmon.audit.aliases as aliases
import rlmon.audit.incidents as incidents
import rlmon.audit.verdict as verdict
from rlmon.audit.case import Case, values_of
from rlmon.audit.checks import Judged
from rlmon.audit.clauses import clause
from rlmon.audit.events import events
from rlmon.audit.examples import Samples
from rlmon.audit.heat import heat
from rlmon.audit.mode_stories import mode_stories
from rlmon.audit.result import (
    Audit,
    Check,
    Coverage,
    MetricSummary,
    ModeStory,
    RunFacts,
)
from rlmon.audit.timeline import spread
from rlmon.metrics.catalog import METRICS
from rlmon.records import Verdict

TOLD_IN_HEADLINE = 2


def tell(case: Case, judged: Judged, source: str, timing: Mapping[str, float]) -> Audit:
    """The finished audit of ``source``."""
    samples = Samples(case)
    stories = mode_stories(case, judged.checks, samples)
    checks = samples.shown(judged.checks, stories)
    covered = verdict.coverage(checks, outputs=case.counted.rows > 0, lacks=case.run.lacks)
    reached = verdict.reached(checks, covered)
    steps = case.line.steps
    columns = dict(sorted(case.line.series.items()))
    if judged.wording is not None:
        at = np.searchsorted(steps, judged.wording.steps)
        columns |= {name: spread(values, at, steps.size) for name, values in judged.wording.series.items()}
    case = dataclasses.replace(case, line=dataclasses.replace(case.line, series=columns))
    series = {name: values_of(values) for name, values in columns.items()}
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
        mode_shares={mode: values_of(values) for mode, values in case.line.mode_shares.items()},
        modes=stories,
        openings=judged.openings,
        heat=heat(case),
        samples=samples.browser(),
        events=events(case, checks),
        timing_seconds={name: round(value, 3) for name, value in timing.items()},
    )


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
            # A sample of the base comes before all steps.
            "steps": [] if case.baseline_kind == "base_sample" else np.unique(every["step"][is_base]).tolist(),
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
    return MetricSummary(
        unit=_UNITS.get(name, ""),
        base=case.base_mean(name),
        first=known[0] if known else None,
        last=case.last_mean(name),
        min=min(known, default=None),
        max=max(known, default=None),
    )


_UNITS = {metric.name: metric.unit for metric in METRICS} | {
    "completion characters": "characters",
    "exact duplicate share": "share",
    "sentence openings": "ways in use",
}
