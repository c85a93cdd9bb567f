"""Detectors as a pure fold: ``step(state, record) -> (state, findings)``.

The state is plain data of bounded size: per source and statistic a handful of sums, per process a few logarithms of
wealth. Nothing in it is random and no clock is read, so that folding stored records gives the findings of the run.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

import rlmon.detectors.evidence as ev
from rlmon.detectors.state import POOL, DetectorState
from rlmon.detectors.tallies import TALLIED, Tallies, over_all_pairs, with_tallies
from rlmon.detectors.telling import finding, immediate_finding
from rlmon.keys import recorded_source_key
from rlmon.records import BaseSample, Block, Finding, StepRecord

MAX_SOURCES = 65
"""64 strata and one pool for the rest."""
MAX_NAMES = 1_024
IMPLAUSIBLE = 1e9
"""No share, length, reward or number of nats is this large: such a value is passed over like a missing one."""


def step(state: DetectorState, record: StepRecord) -> tuple[DetectorState, tuple[Finding, ...]]:
    """Fold one record: the next state and what there is to say now (usually nothing).

    Missing and non-finite statistics are passed over; the step number is only quoted, so that repeated or negative
    steps do no harm. Cost: O(blocks x detectors), independent of the length of the run.
    """
    plan = state.plan
    state = _named(state, record.sources)
    if record.base is not None and not state.records:
        state = _with_sample(state, record.base)
    state, blocks = _columns(state, record.blocks)
    records = state.records + 1
    fire = np.zeros((1, len(state.roster.betting), 2), dtype=np.bool_)
    arrays = state.arrays
    if blocks:
        weight = ev.restart_weight(records, state.total_steps)
        arrays, fire = ev.observe(plan, arrays, blocks, weight, pairs=_pairs(state))
        # A note is said once: re-arming does not take back that it was.
        notes = state.roster.notes
        arrays.raised[:, notes, ev.WARN] |= state.arrays.raised[:, notes, ev.WARN]
    state = dataclasses.replace(state, arrays=arrays, records=records)
    state = dataclasses.replace(state, tallies=_still_open(state))
    findings: list[Finding] = []
    for detector, rung in np.argwhere(fire[0]):
        findings.append(finding(state, record, int(detector), int(rung)))
    calm = []
    for spec, quiet in zip(state.roster.immediate, state.immediate_calm, strict=True):
        value = record.metrics.get(spec.statistics[0])
        bad = value is not None and not value <= (spec.fail or 0.0)
        if bad and quiet < 0:
            findings.append(immediate_finding(state, record, spec, value))
        quiet = 0 if bad else quiet if quiet < 0 else quiet + 1
        calm.append(-1 if quiet >= state.parameters["rearm_records"] else quiet)
    return dataclasses.replace(state, immediate_calm=tuple(calm), fired=state.fired + len(findings)), tuple(findings)


def seed_baseline(state: DetectorState, blocks: tuple[Block, ...], *, whole: bool = True) -> DetectorState:
    """The state after feeding blocks of the base to the baselines only; for ``base_sample`` and ``given``.

    Nothing is bet and no look is spent. Call it before the first ``step``. The blocks are the whole baseline of what
    they measure, where there are four or more; without ``whole`` they are its first record, which completes it where
    it is as large as a baseline has to be.
    """
    plan = state.plan
    state, columns = _columns(dataclasses.replace(state, records=-1), blocks)
    state = dataclasses.replace(state, records=0)
    if not columns:
        return state
    arrays, _ = ev.observe(plan, state.arrays, columns, 0.0, pairs=_pairs(state), only_baseline=True, given=whole)
    state = dataclasses.replace(state, arrays=arrays)
    return dataclasses.replace(state, tallies=_still_open(state))


def _with_sample(state: DetectorState, sample: BaseSample) -> DetectorState:
    """The state whose baselines begin with a sample of the base. Those that it completed by the run's one rule
    (``rlmon.baseline``) are the sample's; what it did not measure, or of too few prompts, goes on with the records."""
    state = seed_baseline(state, tuple(sample.blocks), whole=False)
    done_SQ, names = state.arrays.done[0], state.roster.statistics
    found = {s: tuple(names[q] for q in np.flatnonzero(done_SQ[at])) for at, s in enumerate(state.sources)}
    sampled = {source: statistics for source, statistics in found.items() if statistics}
    return dataclasses.replace(state, base_completions=sample.completions, sampled=sampled)


def open_tallies(state: DetectorState, source: str) -> frozenset[str]:
    """Statistics of a source whose baseline still takes ``Block.tallies``; of all others they need not be recorded."""
    name = _slot(state.sources, recorded_source_key(source))
    if name not in state.sources:
        return TALLIED
    done = state.arrays.done[0, state.sources.index(name)]
    return frozenset(statistic for statistic in TALLIED if not done[state.roster.at[statistic]])


def _named(state: DetectorState, names: Mapping[str, str]) -> DetectorState:
    """The state that knows these names too, ``MAX_NAMES`` at most."""
    new = {key: name for key, name in names.items() if key not in state.names}
    if not new or len(state.names) + len(new) > MAX_NAMES:
        return state
    return dataclasses.replace(state, names={**state.names, **new})


def _columns(state: DetectorState, blocks: Any) -> tuple[DetectorState, list[tuple[int, ev.Floats, float, float]]]:
    """The blocks as columns, and the state with their sources and with what they bring to open baselines."""
    columns = []
    keys = {block.source: recorded_source_key(block.source) for block in blocks}
    state = _named(state, {key: source for source, key in keys.items() if key != source})
    sources, arrays, at = list(state.sources), state.arrays, state.roster.at
    tallies = {source: dict(of_source) for source, of_source in state.tallies.items()}
    for block in blocks:
        z = np.full((1, len(at)), np.nan)
        for name, value in block.stats.items():
            if name in at and isinstance(value, (int, float)) and abs(value) < IMPLAUSIBLE:
                z[0, at[name]] = float(value)
        name = _slot(sources, keys[block.source])
        if name not in sources:
            sources.append(name)
            if len(sources) > arrays.spent.shape[1]:
                arrays = ev.with_source(arrays)
        source = sources.index(name)
        for statistic in TALLIED & block.stats.keys():
            if not arrays.done[0, source, at[statistic]] and math.isfinite(z[0, at[statistic]]):
                kept = tallies.setdefault(name, {})
                kept[statistic] = with_tallies(kept.get(statistic, ()), block.tallies.get(statistic), state.records)
        columns.append((source, z, float(max(block.prompts, 0)), float(max(block.completions, 0))))
    return dataclasses.replace(state, sources=tuple(sources), arrays=arrays, tallies=tallies), columns


def _slot(sources: Sequence[str], source: str) -> str:
    """The name under which a source is folded: its own, or that of the pool once there are too many."""
    return POOL if source not in sources and len(sources) >= MAX_SOURCES - 1 else source


def _pairs(state: DetectorState) -> ev.Pairs:
    """What the tallies of a closing baseline say over all their pairs."""

    def of(source: int, statistic: int) -> tuple[ev.Floats, ev.Floats, ev.Floats] | None:
        kept = state.tallies.get(state.sources[source], {})
        return over_all_pairs(kept.get(state.roster.statistics[statistic]) or ())

    return of


def _still_open(state: DetectorState) -> dict[str, Tallies]:
    kept = {
        source: {
            statistic: parts
            for statistic, parts in of_source.items()
            if not state.arrays.done[0, state.sources.index(source), state.roster.at[statistic]]
        }
        for source, of_source in state.tallies.items()
    }
    return {source: of_source for source, of_source in kept.items() if of_source}
