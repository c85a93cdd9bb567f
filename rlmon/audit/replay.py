"""An rlmon log folded again: the same records, the same detectors, the same findings; and what disagrees."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

import rlmon.detectors as detectors
from rlmon.audit.case import Fold, Live
from rlmon.audit.partial import Partial
from rlmon.audit.run import OpenedRun
from rlmon.audit.timeline import SHARE, Timeline, rewards_by_function, spread
from rlmon.detectors import DetectorState
from rlmon.errors import ConfigError
from rlmon.metrics.formats import BUILT_IN_MODES, ModeSet
from rlmon.records import Finding, RunHeader, StepRecord
from rlmon.runlog import Run, open_run
from rlmon.statistics import ByKey

KEPT_RECORDS = 64
"""First records that are kept as they are."""
MAX_DIFFERENCES = 200


def modes(run: OpenedRun) -> ModeSet:
    """The modes that the run was watched with: their names, since rows hold what they were parsed as."""
    own = open_run(run.path).header.config.get("rlmon_modes")
    names = tuple(own) if isinstance(own, Mapping) else ()
    return dataclasses.replace(ModeSet.build(None), names=(*names, *BUILT_IN_MODES))


def replay(run: OpenedRun, counted: Partial, mode_names: Sequence[str]) -> tuple[Timeline, Fold]:
    """The log's own metrics over time, and the detectors over its records."""
    log = open_run(run.path)
    headers = {attempt.header.attempt: attempt.header for attempt in log.attempts}
    restarted = _restarted(log)
    anew: list[str] = []
    state: DetectorState | None = None
    attempt: int | None = None
    findings: list[Finding] = []
    kept: list[StepRecord] = []
    steps: list[int] = []
    series: dict[str, dict[int, float]] = {}
    shed = 0
    for record in log.iter_steps():
        if state is None or (record.attempt != attempt and record.attempt in restarted):
            state = _started(headers[record.attempt], anew)
        attempt = record.attempt
        state, found = detectors.step(state, record)
        findings += found
        if len(kept) < KEPT_RECORDS:
            kept.append(record)
        for name, value in record.metrics.items():
            if value is not None:
                series.setdefault(name, {})[len(steps)] = value
        steps.append(record.step)
        shed = record.shed_rows
    at = np.array(steps, dtype=np.int64)
    logged = {name: spread(list(values.values()), list(values), at.size) for name, values in series.items()}
    line = Timeline(steps=at, series=rewards_by_function(counted, at) | logged)
    live = log.findings
    differences = [] if anew else _finding_differences(live, findings)
    differences += _row_differences(line, counted, mode_names)
    fold = Fold(
        findings=tuple(findings),
        status=tuple(detectors.status(state)) if state is not None else (),
        alpha=state.alpha if state is not None else 0.0,
        looks=len(steps),
        records=kept,
        own=state.roster.own if state is not None else (),
        live=Live(
            findings=live,
            actions=log.actions,
            faults=log.faults,
            shed_rows=shed,
            torn_lines=sum(log.torn_lines.values()),
            judged_anew=anew[0] if anew else None,
            differences=differences[:MAX_DIFFERENCES],
            stored_text=str(log.header.config.get("rlmon_store_text", "full")),
            base_completions=0 if state is None else state.base_completions,
        ),
    )
    return line, fold


def _restarted(log: Run) -> set[int]:
    """Attempts that began with new baselines: fresh ones, and resumed ones whose checkpoint did not give the
    detectors back."""
    fresh = {attempt.header.attempt for attempt in log.attempts if attempt.header.attempt_kind == "fresh"}
    lost = {
        event.attempt for event in log.iter_events() if event.kind == "note" and _detectors_began_anew(event.payload)
    }
    return fresh | lost


def _detectors_began_anew(note: Mapping[str, Any]) -> bool:
    anew = note.get("begins_anew")
    if isinstance(anew, list):
        return "detectors" in anew
    return "holds no state of rlmon" in str(note.get("text", ""))  # as earlier versions wrote it


def _started(header: RunHeader, anew: list[str]) -> DetectorState:
    try:
        return detectors.start_from(header.detectors)
    except ConfigError as error:
        anew.append(f"{error}"[:300])
        alpha = header.config.get("rlmon_alpha")
        return detectors.start(
            alpha=alpha if isinstance(alpha, float) and 0.0 < alpha < 1.0 else 0.01,
            total_steps=header.total_steps,
            group_size=header.group_size,
        )


def _finding_differences(live: Sequence[Finding], replayed: Sequence[Finding]) -> list[str]:
    """Findings that one side has and the other has not, in words."""

    def told(finding: Finding) -> tuple[str, str, int, str]:
        # The words are those of whoever tells it: another version may say the same otherwise.
        bare = dataclasses.replace(finding, message="", advice="")
        return finding.detector, finding.severity, finding.step, repr(as_stored_finding(bare))

    ours, theirs = {told(f) for f in replayed}, {told(f) for f in live}
    lines = [f"replayed but not in the log: {d} {s.upper()} at step {step}" for d, s, step, _ in sorted(ours - theirs)]
    lines += [f"in the log but not replayed: {d} {s.upper()} at step {step}" for d, s, step, _ in sorted(theirs - ours)]
    return lines


def as_stored_finding(finding: Finding) -> dict[str, Any]:
    """A finding as it comes back from the log: evidence as plain JSON types."""
    return dict(json.loads(json.dumps(dataclasses.asdict(finding), sort_keys=True, default=str)))


def _row_differences(line: Timeline, counted: Partial, mode_names: Sequence[str]) -> list[str]:
    """Steps whose stored format shares are not those of the stored rows (where as many rows are there)."""
    groups = counted.groups
    if not groups or "rlmon/format/top_share" not in line.series:
        return []
    by_step = ByKey(groups["step"], ~groups["eval"])
    counts = by_step.total(groups["modes"])
    total = counts.sum(axis=1)
    place = {int(step): i for i, step in enumerate(line.steps)}
    lines = []
    for code, mode in enumerate(mode_names):
        stored = line.series.get(SHARE + mode)
        if stored is None:
            continue
        for s, step in enumerate(by_step.keys.tolist()):
            i = place.get(step)
            if i is None or total[s] == 0 or np.isnan(stored[i]):
                continue
            own = counts[s, code] / total[s]
            # The record says how many rows it was made from only through its shares: 1e-9 is rounding, more is not.
            if abs(own - stored[i]) > 1e-9:
                lines.append(
                    f"step {step}: the log says {stored[i]:.4f} of the completions are {mode}, its rows {own:.4f}"
                )
    return lines[:MAX_DIFFERENCES]
