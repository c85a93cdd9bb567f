"""From merged columns and the trainer's own scalars to one value per step, and to the records that detectors fold."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

import rlmon.audit.stand_ins as stand_ins
from rlmon.audit.features import Bools, Floats, Ints
from rlmon.audit.partial import BLOCK_STATISTICS, PAIRS_OF, Partial
from rlmon.keys import source_key
from rlmon.metrics.collision import PAIRS
from rlmon.metrics.families import OF_ROWS
from rlmon.metrics.family import Sums
from rlmon.metrics.ledger import PRIOR_ATTEMPTS, hard
from rlmon.metrics.step import Families
from rlmon.records import Block, StepRecord
from rlmon.statistics import ByKey, codes_of, effective_number

SMOOTHING_STEPS = 5
SHARE = "rlmon/format/share/"


_SUMS: Mapping[str, str] = {
    "mode_count": "modes", "mode_count_correct": "modes_correct", "mode_reward": "modes_reward",
    "mode_rewarded": "modes_scored", "length": "tokens", "length_rows": "tokens_known",
    "truncation_known": "truncated_known", "rewarded": "scored", "reward_missing": "missing",
    "reward_non_finite": "non_finite",
}  # fmt: skip
"""Sums of the families that are a column of groups by another name; the others have its name."""


@dataclass(frozen=True, kw_only=True)
class Timeline:
    """One value per step: [S] float64 with NaN where it was not measured."""

    steps: Ints
    series: Mapping[str, Floats]

    @cached_property
    def mode_shares(self) -> dict[str, Floats]:
        """The share of every format [S] that was written at all."""
        return {
            name.removeprefix(SHARE): values
            for name, values in self.series.items()
            if name.startswith(SHARE) and np.nansum(values) > 0
        }


def timeline(
    partial: Partial, modes: Sequence[str], scalars: Mapping[str, Sequence[tuple[int, float]]], base_steps: int
) -> Timeline:
    """Everything that rows and scalars say per step. ``scalars`` by canonical name; rows win over scalars where both
    say the same thing at most of the steps. ``base_steps``: how many first steps with rows are the baseline of
    distances."""
    series: dict[str, Floats] = {}
    row_steps = np.zeros(0, dtype=np.int64)
    if partial.groups:
        row_steps, series = _of_rows(partial, modes, base_steps)
    logged = sorted({step for values in scalars.values() for step, _ in values})
    steps = np.union1d(row_steps, np.array(logged, dtype=np.int64))
    at = np.searchsorted(steps, row_steps)
    series = {name: spread(values, at, steps.size) for name, values in series.items()}
    for name, values in scalars.items():
        told = int(np.isfinite(series[name]).sum()) if name in series else 0
        if told and not stand_ins.better(len(values), told):
            continue
        column = np.full(steps.size, np.nan)
        for step, value in values:
            column[np.searchsorted(steps, step)] = value if math.isfinite(value) else np.nan
        series[name] = column
    return Timeline(steps=steps, series=series)


def spread(values: Floats | list[float], at: Ints | list[int], steps: int) -> Floats:
    """Values at some places of so many steps, NaN at the others [S]."""
    column = np.full(steps, np.nan)
    column[at] = values
    return column


def _of_rows(partial: Partial, modes: Sequence[str], base_steps: int) -> tuple[Ints, dict[str, Floats]]:
    """The steps that have rows [S], and what rows tell of each: the metrics of the families, and an audit's own."""
    families, groups = Families(OF_ROWS, modes), partial.groups
    by_step, sums = sums_of_steps(partial, families)
    steps = by_step.keys
    # The base at a tenth of a step's noise: its first steps pooled.
    base = {place: values.sum(axis=0) for place, values in families.of_base(sums[:base_steps])}
    series = families.finish_steps(sums, base)
    series["completion characters"] = by_step.ratio(groups["characters"], groups["modes"].sum(axis=1))
    if partial.steps:
        parsed = ByKey(partial.steps["step"])
        distinct = parsed.ratio(partial.steps["distinct_texts"], partial.steps["texts"])
        series["exact duplicate share"] = spread(1.0 - distinct, np.searchsorted(steps, parsed.keys), steps.size)
    series |= rewards_by_function(partial, steps)
    return steps, {
        name: values
        for name, values in series.items()
        if (np.nansum(values) > 0 if name.startswith(SHARE) else np.isfinite(values).any())
    }


def sums_of_steps(partial: Partial, families: Families) -> tuple[ByKey, Sums]:
    """The training groups by step, and the sums of each step [S] as the families name them. What rows do not tell is
    NaN, and not measured whatever a family makes of it."""
    groups = partial.groups
    by_step = ByKey(groups["step"], ~groups["eval"])
    several = np.where(groups["modes"].sum(axis=1) >= 2, effective_number(groups["modes"]), np.nan)
    weighed = np.isfinite(groups["weight"]) & groups["classified"]
    weight, weight_lone = (np.where(weighed, groups[name], 0.0) for name in ("weight", "weight_lone"))
    columns: dict[str, NDArray[Any]] = {
        **groups,
        **{field: groups[column] for field, column in _SUMS.items()},
        **_known("within", "within_prompts", several),
        **_known("std", "std_groups", groups["reward_std"]),
        "weight": weight,
        "weight_lone": weight_lone,
        "weight_known": weight,
        "weight_lone_hard": np.where(_of_hard_prompts(groups), weight_lone, 0.0),
    }
    for of in ("answers", "templates", "templates_correct"):
        columns |= _known(f"{of}_within", f"{of}_within_prompts", groups[of])
    sums = np.empty(by_step.keys.size, dtype=families.layout)
    sums.view(np.float64)[:] = np.nan
    for family in families.layout.names or ():
        for name in columns.keys() & set(families.layout[family].names or ()):
            sums[family][name] = by_step.total(columns[name])
    if not sums["health"]["rewarded"].any():
        sums["health"]["reward_missing"] = np.nan  # a run without rewards misses none
    if partial.steps:
        parsed = ByKey(partial.steps["step"])
        at = np.searchsorted(by_step.keys, parsed.keys)
        for name in (name for name in partial.steps if name.startswith(PAIRS_OF)):
            for part in PAIRS.names or ():
                sums["collision"][name.removeprefix(PAIRS_OF)][part][at] = parsed.total(partial.steps[name][part])
    return by_step, sums


def _known(total: str, count: str, values_G: Floats) -> dict[str, NDArray[Any]]:
    """What a mean over the groups where a number is known is made of, under these names."""
    known = np.isfinite(values_G)
    return {total: np.where(known, values_G, 0.0), count: known}


def rewards_by_function(partial: Partial, steps: Ints) -> dict[str, Floats]:
    """Mean of every reward function at ``steps`` [S] (``rewards/<function>``), NaN where it scored nothing."""
    series = {}
    for name, parts in partial.functions.items():
        found = ByKey(parts["step"], np.isin(parts["step"], steps))
        means = found.ratio(parts["sum"], parts["scored"])
        series[f"rewards/{name}"] = spread(means, np.searchsorted(steps, found.keys), steps.size)
    return series


def _of_hard_prompts(groups: Mapping[str, NDArray[Any]]) -> Bools:
    """Groups with a lone success of a prompt whose solve rate was, before that step, credibly below 1/8 [G].

    The posterior of a prompt before a visit is Beta with the solve rate of its source so far as its mean, at a
    strength of ``PRIOR_ATTEMPTS`` attempts, and its own attempts and successes so far.
    """
    step, source, train = groups["step"], groups["source"], ~groups["eval"]
    n, k = np.where(train, groups["known"], 0.0), np.where(train, groups["successes"], 0.0)
    # A prompt that comes in two sources counts in each for itself: it is left out of the mean of its own.
    prompt = codes_of(source, groups["prompt"])
    before_n, before_k = _before(prompt, step, n), _before(prompt, step, k)
    mean = (_before(source, step, k) - before_k + 1.0) / (_before(source, step, n) - before_n + 2.0)
    a, b = PRIOR_ATTEMPTS * mean + before_k, PRIOR_ATTEMPTS * (1.0 - mean) + before_n - before_k
    tried = (before_n > 0) & groups["lone"]
    tried[tried] = hard(a[tried], b[tried])
    return np.asarray(tried)


def _before(key: Ints, step: Ints, values: Floats) -> Floats:
    """Sum of ``values`` over entries of the same key at an earlier step, per entry."""
    visit = codes_of(key, step)
    of_visit = np.bincount(visit, weights=values)
    running = np.cumsum(of_visit) - of_visit
    key_of_visit = key[np.unique(visit, return_index=True)[1]]
    return np.asarray((running - running[np.searchsorted(key_of_visit, key_of_visit)])[visit])


def records(
    partial: Partial, line: Timeline, scalars: Mapping[str, Sequence[tuple[int, float]]], *, characters: bool
) -> list[StepRecord]:
    """The run as the records that detectors fold, in order of step.

    ``characters``: lengths in characters stand in for tokens, where nothing else is known.
    """
    of_step: dict[int, list[Block]] = {int(step): [] for step in line.steps}
    sources = partial.sources or ["all"]
    keys = [source_key(name) for name in sources]
    shared = sources[0] if len(sources) == 1 else "all"
    names = dict(zip(keys, sources, strict=True)) | {source_key(shared): shared}
    curves = {
        statistic: values
        for statistic, values in stand_ins.of_blocks(scalars).items()
        if not (characters and statistic == "completion_tokens")
        and stand_ins.better(len(values), _steps_with(partial, statistic))
    }
    blocks = partial.blocks
    order = np.argsort(blocks["step"], kind="stable") if blocks else np.zeros(0, dtype=np.int64)
    for row in order.tolist():
        values = blocks["stats"][row]
        stats = {
            name: float(v)
            for name, v in zip(BLOCK_STATISTICS.names or (), values, strict=True)
            if math.isfinite(v) and name not in curves
        }
        if characters and math.isfinite(blocks["characters"][row]):
            stats["completion_tokens"] = float(blocks["characters"][row])
        of_step[int(blocks["step"][row])].append(
            Block(
                source=keys[blocks["source"][row]],
                prompts=int(blocks["prompts"][row]),
                completions=int(blocks["completions"][row]),
                stats=stats,
                tallies={name: tally for name, tally in blocks["tallies"][row].items() if name in stats},
            )
        )
    extra: dict[int, dict[str, float]] = {}
    for statistic, points in curves.items():
        for step, value in points.items():
            extra.setdefault(step, {})[statistic] = value
    weights = line.series.get("rlmon/group/lone_success_weight")
    if weights is not None and "lone_success_weight" not in curves:
        for step, value in zip(line.steps.tolist(), weights.tolist(), strict=True):
            if math.isfinite(value):
                extra.setdefault(step, {})["lone_success_weight"] = value
    for step, stats in extra.items():
        prompts = sum(block.prompts for block in of_step[step]) or 1
        completions = sum(block.completions for block in of_step[step]) or 1
        of_step[step].append(Block(source=source_key(shared), prompts=prompts, completions=completions, stats=stats))
    non_finite = _non_finite(line, scalars)
    return [
        StepRecord(
            attempt=0,
            step=step,
            time_unix_seconds=0.0,
            rounds=(),
            completions=sum(block.completions for block in found),
            prompts=sum(block.prompts for block in found),
            tokens=0,
            metrics={"rlmon/health/non_finite": non_finite.get(step, 0.0)},
            blocks=tuple(found),
            sources={block.source: names[block.source] for block in found},
        )
        for step, found in of_step.items()
    ]


def _steps_with(partial: Partial, statistic: str) -> int:
    """At how many steps rows tell a statistic of blocks."""
    if not partial.blocks or statistic not in (BLOCK_STATISTICS.names or ()):
        return 0
    told = np.isfinite(partial.blocks["stats"][statistic])
    return int(np.unique(partial.blocks["step"][told]).size)


def _non_finite(line: Timeline, scalars: Mapping[str, Sequence[tuple[int, float]]]) -> dict[int, float]:
    counts: dict[int, float] = {}
    for name in ("rlmon/health/reward_non_finite", "rlmon/health/non_finite"):
        found = line.series.get(name)
        if found is not None:
            for step, value in zip(line.steps.tolist(), found.tolist(), strict=True):
                if value > 0:
                    counts[step] = max(counts.get(step, 0.0), value)
    for values in scalars.values():
        for step, value in values:
            if not math.isfinite(value):
                counts[step] = counts.get(step, 0.0) + 1.0
    return counts
