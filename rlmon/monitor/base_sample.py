"""A sample of the base, taken before the first update: what becomes of its rows.

They are measured like rows of training and trained on by nobody. All of it is one round: blocks for the detectors, sums
for what metrics are compared with, and a table for the rules that compare the run with its base.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rlmon.metrics.family import add_to
from rlmon.metrics.features import RowFeatures
from rlmon.metrics.rows import Rows
from rlmon.monitor.closing import Closing
from rlmon.monitor.journal import Journal
from rlmon.monitor.observed import Share
from rlmon.monitor.setting import Ranks
from rlmon.monitor.state import State
from rlmon.records import BaseSample, RolloutBatch
from rlmon.runlog import as_stored_base
from rlmon.statistics import Floats

PLACE = "base.sample"
"""Where a failure of it counts."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One round of the sample on one rank."""

    batch: RolloutBatch
    features: RowFeatures
    share: Share
    success_B: Floats


def fold(
    measured: Sequence[Measured],
    *,
    rounds: int,
    rows: int,
    state: State,
    closing: Closing,
    journal: Journal,
    ranks: Ranks,
) -> BaseSample | None:
    """Let detectors, metrics and rules know the base by ``rounds`` rounds of ``rows`` rows on each rank; ``None``, and
    nothing knows it, where any rank could not measure its own. The same on all ranks, which all come here."""
    failed, expected = ranks.sum(np.array([float(len(measured) < rounds), float(rounds * rows)])).tolist()
    if failed:
        return None
    sums, tables, completions, prompts = state.families.zeros(), [], 0.0, 0.0
    for one in measured:
        whole = closing.base_round(one.share)
        completions, prompts = completions + whole.head["completions"], prompts + whole.head["prompts"]
        add_to(sums, whole.sums)
        tables.append(whole.rows)
    if completions != expected:  # the share of some rank could not be made
        return None
    if state.controller is not None:
        with journal.faults.guard("interventions"):
            state.controller.base([(one.batch, one.features, one.success_B) for one in measured], rows)
    blocks = state.judging.base_blocks(as_one_round(tables), sums, state.families, state.successes)
    closing.base = as_stored_base(BaseSample(prompts=int(prompts), completions=int(completions), blocks=blocks))
    state.base.take_sample(sums, prompts=prompts, completions=completions)
    if ranks.rank == 0:
        for one in measured:
            state.illustration.keep_base(one.features.mode, one.batch.completions)
    return closing.base


def as_one_round(tables: Sequence[Rows]) -> Rows:
    """The rows of several rounds as those of one, numbered behind one another, group by group."""
    joined, first = [], 0.0
    for table in tables:
        table = table.copy()
        group_size = table["group_size"].max(initial=1.0)
        end = table["global_row"].max(initial=-1.0) + 1.0
        table["global_row"] += first
        table["round"] = -1.0
        first += np.ceil(end / group_size) * group_size
        joined.append(table)
    return np.concatenate(joined)


def as_logged(batch: RolloutBatch) -> RolloutBatch:
    """The batch as the log has it: its rows are trained on by nobody."""
    return dataclasses.replace(batch, trained=[False] * len(batch))
