"""One audit from end to end: open, count shard by shard (in several processes where that pays), fold, check.

Everything is a function of the run's content: the shards, the order of merging and every seed. Serial and pooled
audits give the same result but for the timing.
"""

from __future__ import annotations

import importlib.abc
import multiprocessing
import os
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

import rlmon.audit.aliases as aliases
import rlmon.audit.readers.rlmon_log as rlmon_log
import rlmon.audit.replay as replay
import rlmon.audit.story as story
import rlmon.audit.successes as successes
import rlmon.detectors as detectors
from rlmon.audit.case import Case, Fold
from rlmon.audit.checks import Question, judge
from rlmon.audit.contrast import BASE_STEPS, Windows, windows
from rlmon.audit.features import codes, column
from rlmon.audit.partial import Partial, Settings, merge, partial
from rlmon.audit.readers import open_source
from rlmon.audit.result import Audit
from rlmon.audit.run import OpenedRun, Reader, Shard
from rlmon.audit.timeline import Timeline, group_total, records, timeline
from rlmon.criterion import Criterion
from rlmon.errors import ReadError
from rlmon.extensions import installed
from rlmon.metrics.formats import ModeSet
from rlmon.metrics.prompts import template_name
from rlmon.metrics.success import Success
from rlmon.records import Block, Finding

ALPHA = 0.01
"""Chance of any false FAIL of the detectors over a run that brings no level of its own."""
SAMPLE_ROWS = 8_192
"""Completions whose text is kept, spread over the run: the budget of all metrics of words."""
LEAST_SAMPLE = 16
"""Of each shard: a run of very many shards has a larger sample."""
POOL_BYTES = 24 << 20
"""Smaller runs are counted before other processes would have started."""
TEMPLATE_PROMPTS = 4.0
"""A prompt template is a stratum of its own where a step is expected to hold this many prompts of it: detectors
compare prompts inside a stratum."""
MAX_TEMPLATES = 63

Progress = Callable[[int, int], None]
"""Called with bytes done and bytes in all."""


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
    criterion = Criterion.parse(success)
    began = time.perf_counter(), _processor_seconds()
    run = open_source(Path(path), reader=reader, mapping=mapping, readers=readers)
    case = _case(run, criterion, processes, progress)
    if baseline is not None:
        case = _with_baseline(case, open_source(Path(baseline), readers=readers), criterion, processes)
    judged = judge(case, [*checks, *(one for one in installed("rlmon.checks") if one not in checks)])
    timing = {"wall": time.perf_counter() - began[0], "processor": _processor_seconds() - began[1]}
    return story.tell(case, judged, str(path), timing)


def _processor_seconds() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _case(run: OpenedRun, criterion: Criterion | None, processes: int | None, progress: Progress | None) -> Case:
    watched = run.reader == rlmon_log.NAME
    modes = replay.modes(run) if watched else ModeSet.build(None)
    success = successes.definition(run, criterion)
    counted = count(run, modes, processes, progress, success)
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
    return Case(
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


def _windows(counted: Partial, line: Timeline) -> Windows | None:
    """Ends of the run by the steps that have rows, else by the steps that have scalars."""
    if not counted.groups:
        # One step of curves is no base: as many as a base may have.
        return windows(line.steps, np.zeros(line.steps.size), np.zeros(line.steps.size))
    keep = ~counted.groups["eval"]
    steps, at = np.unique(counted.groups["step"][keep], return_inverse=True)
    whole = np.ones(at.size, dtype=bool)
    prompts = group_total(np.ones(at.size), at, steps.size, whole)
    rows = group_total(counted.groups["rows"][keep], at, steps.size, whole)
    return windows(steps, prompts, rows)


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
    """The case with another run's first steps as its base."""
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


# --- counting -----------------------------------------------------------------------------------------------------


def count(
    run: OpenedRun,
    modes: ModeSet,
    processes: int | None = None,
    progress: Progress | None = None,
    success: Success | None = None,
) -> Partial:
    """All rows of a run as one ``Partial``, the same whatever the number of processes."""
    shards = list(run.shards)
    if not shards:
        return Partial()
    settings = Settings(
        modes=modes,
        templates=_templates(shards),
        group_size=run.group_size,
        sample_rows=max(LEAST_SAMPLE, SAMPLE_ROWS // len(shards)),
        success=successes.definition(run, None) if success is None else success,
    )
    parts: list[Partial] = []
    done, total = 0, sum(shard.bytes for shard in shards)
    for shard, part in zip(shards, _counted(shards, settings, processes, total), strict=True):
        parts.append(part)
        done += shard.bytes
        if progress is not None:
            progress(done, total)
    return merge(parts)


def _counted(shards: Sequence[Shard], settings: Settings, processes: int | None, total: int) -> Iterator[Partial]:
    wanted = processes if processes is not None else (os.cpu_count() or 1) if total > POOL_BYTES else 1
    workers = min(wanted, len(shards))
    if workers <= 1 or settings.modes.names != ModeSet.build(None).names:
        # A run's own modes may be callables, which do not travel.
        yield from (partial(shard, settings) for shard in shards)
        return
    # Not fork: this process may have threads (Arrow's), and a forked lock is held for ever.
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"), initializer=_worker) as pool:
        waiting = deque(
            pool.submit(
                _partial_of, shard, settings.templates, settings.group_size, settings.sample_rows, settings.success
            )
            for shard in shards
        )
        while waiting:
            # Taken off first: a future keeps its result for as long as it is held.
            yield waiting.popleft().result()


def _worker() -> None:
    spare_pandas()
    pa.set_cpu_count(1)
    pa.set_io_thread_count(1)


class _NoPandas(importlib.abc.MetaPathFinder):
    """Says that pandas is not installed."""

    def find_spec(self, fullname: str, path: object, target: object = None) -> None:
        if fullname == "pandas":
            raise ModuleNotFoundError("pandas is not needed here", name="pandas")


def spare_pandas() -> None:
    """Keep pyarrow from importing pandas, as it does with its first array wherever pandas is installed: 0.2 s for
    nothing. Only for processes that are ours alone: pyarrow's ``to_pandas`` does not work in them any more."""
    if "pandas" not in sys.modules:
        finder = _NoPandas()
        sys.meta_path.insert(0, finder)
        pa.array([0])
        sys.meta_path.remove(finder)


def _partial_of(
    shard: Shard, templates: frozenset[str], group_size: int | None, sample_rows: int, success: Success
) -> Partial:
    settings = Settings(
        modes=ModeSet.build(None),
        templates=templates,
        group_size=group_size,
        sample_rows=sample_rows,
        success=success,
    )
    return partial(shard, settings)


def _templates(shards: Sequence[Shard]) -> frozenset[str]:
    """Templates of prompts so frequent that a step is expected to hold four prompts of each: from the first rows of
    shards at the start, the middle and the end."""
    chosen = sorted({0, len(shards) // 2, len(shards) - 1})
    counts: Counter[str] = Counter()
    prompts_per_step: list[float] = []
    for at in chosen:
        batch = next(iter(shards[at].read()), None)
        if batch is None or batch.rows.num_rows == 0 or column(batch.rows, "source") is not None:
            continue
        text = column(batch.rows, "prompt")
        if text is None:
            continue
        _, values = codes(text)
        steps = len(set(batch.rows["step"].to_pylist()))
        prompts_per_step.append(len(values) / max(1, steps))
        counts.update(template_name(value) for value in values[:1_024])
    total = sum(counts.values())
    if len(counts) < 2 or not prompts_per_step:
        return frozenset()
    needed = max(0.05, TEMPLATE_PROMPTS / max(1.0, float(np.mean(prompts_per_step)))) * total
    return frozenset(name for name, seen in counts.most_common(MAX_TEMPLATES) if seen >= needed)
