"""All rows of a run as one ``Partial``, shard by shard, in several processes where that pays."""

from __future__ import annotations

import importlib.abc
import multiprocessing
import os
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pyarrow as pa

import rlmon.audit.successes as successes
from rlmon.audit.features import codes, column
from rlmon.audit.partial import Partial, merge, partial
from rlmon.audit.rows import Settings
from rlmon.audit.run import OpenedRun, Shard
from rlmon.metrics.formats import ModeSet
from rlmon.metrics.prompts import template_name
from rlmon.metrics.success import Success

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


def count(
    run: OpenedRun,
    modes: ModeSet,
    processes: int | None = None,
    progress: Progress | None = None,
    success: Success | None = None,
    notes: list[str] | None = None,
) -> Partial:
    """All rows of a run as one ``Partial``, the same whatever the number of processes. ``notes``: where it is told that
    other processes could not be used."""
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
    for shard, part in zip(shards, _counted(shards, settings, processes, total, notes), strict=True):
        parts.append(part)
        done += shard.bytes
        if progress is not None:
            progress(done, total)
    return merge(parts)


def _counted(
    shards: Sequence[Shard], settings: Settings, processes: int | None, total: int, notes: list[str] | None
) -> Iterator[Partial]:
    wanted = processes if processes is not None else (os.cpu_count() or 1) if total > POOL_BYTES else 1
    workers = min(wanted, len(shards))
    if workers <= 1 or settings.modes.names != ModeSet.build(None).names:
        # A run's own modes may be callables, which do not travel.
        yield from (partial(shard, settings) for shard in shards)
        return
    done = 0
    try:
        for part in _pooled(shards, settings, workers):
            done += 1
            yield part
    except Exception as error:
        # A shard that does not travel (a lambda, a class that only this process knows), a worker that died, no pool at
        # all. What is wrong with the rows themselves is raised again below.
        if notes is not None:
            why = f"{type(error).__name__}: {error}"[:200]
            notes.append(f"Counted in one process, since other processes could not take its parts ({why}).")
    yield from (partial(shard, settings) for shard in shards[done:])


def _pooled(shards: Sequence[Shard], settings: Settings, workers: int) -> Iterator[Partial]:
    # Not fork: this process may have threads (Arrow's), and a forked lock is held for ever.
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"), initializer=_worker) as pool:
        waiting = deque(pool.submit(partial, shard, settings) for shard in shards)
        try:
            while waiting:
                # Taken off first: a future keeps its result for as long as it is held.
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


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
