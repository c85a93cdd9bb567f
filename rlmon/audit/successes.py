"""What counts as a success in a run that is audited: given, stored in its own log, or decided by the live rule."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

import rlmon.audit.readers.rlmon_log as rlmon_log
from rlmon.audit.features import column, floats
from rlmon.audit.rows import rewards_by_function
from rlmon.audit.run import OpenedRun, Shard
from rlmon.criterion import Criterion
from rlmon.metrics.success import Deciding, Success
from rlmon.runlog import open_run


def definition(run: OpenedRun, criterion: Criterion | None) -> Success:
    """What counts as a success in ``run``.

    ``criterion`` wins; then what an rlmon log says of itself; else it is decided from the rewards of the first steps
    with completions, and by those of the run's middle and end where the first did not settle it.
    Raises ``ConfigError`` where ``criterion`` names a reward function that the run does not have.
    """
    if criterion is None and run.reader == rlmon_log.NAME and (stored := _stored(run)) is not None:
        return stored
    deciding = Deciding.start(criterion)
    for rows in _first_steps(run.shards):
        rewards = rewards_by_function(rows)
        if criterion is not None and rewards:
            criterion.refuse_unknown(list(rewards))
        deciding = _with(deciding, rows, run)
        if deciding.baseline.complete or not deciding.open:
            break
    if deciding.open:
        deciding = deciding.settled()
        for at in sorted({len(run.shards) // 2, len(run.shards) - 1} if run.shards else ()):
            batch = next(iter(run.shards[at].read()), None)
            rows = None if batch is None else _training(batch.rows)
            if deciding.open and rows is not None and rows.num_rows:
                deciding = _with(deciding, rows, run)
    return deciding.definition


def _stored(run: OpenedRun) -> Success | None:
    """The last definition that the log says; ``None`` for a log from before there was one."""
    said = [event.payload for event in open_run(run.path).iter_events() if event.kind == "success"]
    try:
        return Success.from_json(said[-1]) if said else None
    except (KeyError, TypeError, ValueError):
        return None


def _with(deciding: Deciding, rows: pa.Table, run: OpenedRun) -> Deciding:
    prompt = column(rows, "prompt_id")
    prompt = column(rows, "prompt") if prompt is None else prompt
    prompts = rows.num_rows / (run.group_size or 1) if prompt is None else pc.count_distinct(prompt).as_py()
    return deciding.with_round(
        floats(rows, "reward"), rewards_by_function(rows), prompts=prompts, weights=run.reward_weights
    )


def _training(rows: pa.Table) -> pa.Table:
    return rows.filter(pc.equal(rows["split"], "train")) if rows.num_rows else rows


def _first_steps(shards: Sequence[Shard]) -> Iterator[pa.Table]:
    """Training rows of one step after another, as far as anyone asks."""
    for shard in shards:
        for batch in shard.read():
            rows = _training(batch.rows)
            if not rows.num_rows:
                continue
            steps = rows["step"].to_numpy()
            for step in np.unique(steps):
                yield rows.filter(pa.array(steps == step))
