"""One audit from end to end: open, count, fold, check.

Everything is a function of the run's content: the shards, the order of merging and every seed. Serial and pooled
audits give the same result but for the timing.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import rlmon.audit.aliases as aliases
import rlmon.audit.readers.rlmon_log as rlmon_log
import rlmon.audit.replay as replay
import rlmon.audit.story as story
import rlmon.audit.successes as successes
import rlmon.detectors as detectors
from rlmon.audit.case import Case, Fold
from rlmon.audit.checks import Question, judge
from rlmon.audit.contrast import BASE_STEPS, Windows, windows
from rlmon.audit.counting import Progress, count
from rlmon.audit.partial import Partial
from rlmon.audit.readers import open_source, written
from rlmon.audit.result import Audit
from rlmon.audit.run import OpenedRun, Reader
from rlmon.audit.timeline import Timeline, records, timeline
from rlmon.criterion import Criterion
from rlmon.errors import ConfigError, ReadError
from rlmon.extensions import installed
from rlmon.metrics.formats import ModeSet
from rlmon.records import Block, Finding
from rlmon.statistics import ByKey

ALPHA = 0.01
"""Chance of any false FAIL of the detectors over a run that brings no level of its own."""


def audit(
    path: str | os.PathLike[str],
    *,
    reader: str | None = None,
    mapping: Mapping[str, str] | None = None,
    baseline: str | os.PathLike[str] | None = None,
    success: float | str | None = None,
    readers: Sequence[Reader] = (),
    checks: Sequence[Question] = (),
    processes: int | None = None,
    progress: Progress | None = None,
) -> Audit:
    """What happened to the run in ``path``.

    Args:
        reader: name of the reader; by default what lies in ``path`` decides.
        mapping: canonical column to the file's own, for files that no reader knows.
        baseline: another run whose first steps are the base; by default this run's own.
        success: what counts as a success, as in ``rlmon_success``; by default what the run's own log says, else what
            its rewards decide.
        readers: some of your own beside those that there are and those of installed packages; see docs/extending.md.
        checks: the same of checks.
        processes: workers; by default as many as there are cores where the run is large, else none.
        progress: told how many bytes are done.

    Raises ``ReadError`` (or another ``RLMonError``) where the path holds nothing that can be read.
    """
    for name, given in (("readers", readers), ("checks", checks)):
        if not isinstance(given, list | tuple):
            raise ConfigError(f"{name} is a list, got an object of {type(given).__name__}. Type: {name}=[...]")
    criterion = Criterion.parse(success)
    began = time.perf_counter(), _processor_seconds()
    run = open_source(Path(path), reader=reader, mapping=mapping, readers=readers)
    case = _case(run, criterion, processes, progress)
    if baseline is not None:
        case = _with_baseline(case, open_source(Path(baseline), readers=readers), criterion, processes)
    added = [one for one in installed("rlmon.checks") if not any(one is given for given in checks)]
    judged = judge(case, [*checks, *added])
    timing = {"wall": time.perf_counter() - began[0], "processor": _processor_seconds() - began[1]}
    return story.tell(case, judged, written(os.fspath(path)), timing)


def _processor_seconds() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _case(run: OpenedRun, criterion: Criterion | None, processes: int | None, progress: Progress | None) -> Case:
    watched = run.reader == rlmon_log.NAME
    modes = replay.modes(run) if watched else ModeSet.build(None)
    success = successes.definition(run, criterion)
    notes: list[str] = []
    counted = count(run, modes, processes, progress, success, notes)
    run = dataclasses.replace(run, notes=[*run.notes, *notes])
    scalars: Mapping[str, Sequence[tuple[int, float]]] = {}
    fold: Fold | None = None
    if watched:
        line, fold = replay.replay(run, counted, modes.names)
    else:
        scalars = aliases.canonical(run.scalars)
        line = timeline(counted, modes.names, scalars, BASE_STEPS)
    if not line.steps.size and counted.groups:
        raise ReadError(
            f"{run.path} was read as {run.reader} and holds evaluations only: there is no training step to judge. "
            "Look at them with `rlmon show`."
        )
    if not line.steps.size:
        raise ReadError(
            f"{run.path} was read as {run.reader} and holds neither completions nor logged scalars of any step. "
            "Name the folder that holds them, or choose with --reader."
        )
    ends = _windows(counted, line)
    characters = "rlmon/health/length_mean" not in line.series
    if fold is None:
        fold = _fold(counted, line, scalars, characters)
    case = Case(
        run=run,
        modes=modes.names,
        counted=counted,
        line=line,
        windows=ends,
        fold=fold,
        scalars=scalars,
        success=success,
        characters=characters and "completion characters" in line.series,
        baseline_kind="early_rounds" if watched else "first_logged",
    )
    if fold.live is None or fold.live.base_completions == 0:
        return case
    sampled = count(rlmon_log.base_sample_of(run), modes, processes, None, success)
    return case.with_sample(sampled) if sampled.groups else case


def _windows(counted: Partial, line: Timeline) -> Windows | None:
    """Ends of the run by the steps that have rows, else by the steps that have scalars."""
    if not counted.groups:
        # One step of curves is no base: as many as a base may have.
        return windows(line.steps, np.zeros(line.steps.size), np.zeros(line.steps.size))
    rows, train = counted.groups["rows"], ~counted.groups["eval"]
    by_step = ByKey(counted.groups["step"], train)
    return windows(by_step.keys, by_step.total(np.ones(train.size)), by_step.total(rows))


def _fold(
    counted: Partial,
    line: Timeline,
    scalars: Mapping[str, Sequence[tuple[int, float]]],
    characters: bool,
    base: Sequence[Block] = (),
) -> Fold:
    """The detectors over the whole run; ``base``: blocks of another run that feed their baselines."""
    folded = records(counted, line, scalars, characters=characters)
    parameters: dict[str, Any] = {"baseline_kind": "first_logged"}
    if base:
        parameters = {"baseline_kind": "given"}
    state = detectors.start(alpha=ALPHA, total_steps=len(folded), group_size=0, parameters=parameters)
    if base:
        state = detectors.seed_baseline(state, tuple(base))
    findings: list[Finding] = []
    for record in folded:
        state, found = detectors.step(state, record)
        findings += found
    return Fold(
        findings=tuple(findings),
        status=tuple(detectors.status(state)),
        alpha=ALPHA,
        looks=len(folded),
        live=None,
        records=folded,
    )


def _with_baseline(case: Case, run: OpenedRun, criterion: Criterion | None, processes: int | None) -> Case:
    other = _case(run, criterion, processes, None)
    if other.windows is None or not other.counted.groups or case.fold.live is not None:
        raise ReadError(
            f"--baseline needs a run with completions of at least two steps, and it cannot replace the baseline that "
            f"an rlmon log was judged with; {run.path} was read as {run.reader}."
        )
    first = set(other.windows.base.tolist())
    base = [block for record in other.fold.records if record.step in first for block in record.blocks]
    fold = _fold(case.counted, case.line, case.scalars, case.characters, base)
    return case.with_base(other, fold)
