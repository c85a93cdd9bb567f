"""From merged columns and the trainer's own scalars to one value per step, and to the records that detectors fold."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

import rlmon.audit.stand_ins as stand_ins
from rlmon.audit.features import Bools, Floats, Ints
from rlmon.audit.partial import BLOCK_STATISTICS, Partial
from rlmon.keys import source_key
from rlmon.metrics.ledger import CREDIBILITY, HARD_SOLVE_RATE, PRIOR_ATTEMPTS
from rlmon.records import Block, StepRecord
from rlmon.statistics import beta_cdf, codes_of, effective_number, js_distance, ratio

SMOOTHING_STEPS = 5
_PAIR_SERIES = ("mode", "mode_correct", "template", "answer")


@dataclass(frozen=True, kw_only=True)
class Timeline:
    """One value per step: [S] float64 with NaN where it was not measured."""

    steps: Ints
    series: Mapping[str, Floats]
    mode_shares: Mapping[str, Floats]


def group_total(values: NDArray[Any], at: Ints, steps: int, keep: Bools) -> NDArray[np.float64]:
    """Sums of a column of groups over the groups of each step: [S] or [S, M]."""
    if values.ndim == 1:
        return np.bincount(at[keep], weights=values[keep], minlength=steps).astype(np.float64)
    return np.stack([np.bincount(at[keep], weights=column[keep], minlength=steps) for column in values.T], axis=1)


def timeline(
    partial: Partial, modes: Sequence[str], scalars: Mapping[str, Sequence[tuple[int, float]]], base_steps: int
) -> Timeline:
    """Everything that rows and scalars say per step. ``scalars`` by canonical name; rows win over scalars where both
    say the same thing at most of the steps. ``base_steps``: how many first steps with rows are the baseline of
    distances."""
    series: dict[str, Floats] = {}
    shares: dict[str, Floats] = {}
    row_steps = np.zeros(0, dtype=np.int64)
    if partial.groups:
        series, shares, row_steps = _of_rows(partial, modes, base_steps)
    logged = sorted({step for values in scalars.values() for step, _ in values})
    steps = np.union1d(row_steps, np.array(logged, dtype=np.int64))
    at = np.searchsorted(steps, row_steps)
    series = {name: _spread(values, at, steps.size) for name, values in series.items()}
    shares = {name: _spread(values, at, steps.size) for name, values in shares.items()}
    for name, values in scalars.items():
        told = int(np.isfinite(series[name]).sum()) if name in series else 0
        if told and not stand_ins.better(len(values), told):
            continue
        column = np.full(steps.size, np.nan)
        for step, value in values:
            column[np.searchsorted(steps, step)] = value if math.isfinite(value) else np.nan
        series[name] = column
    return Timeline(steps=steps, series=series, mode_shares=shares | stand_ins.mode_shares(series))


def _spread(values: Floats, at: Ints, steps: int) -> Floats:
    column = np.full(steps, np.nan)
    column[at] = values
    return column


def _of_rows(
    partial: Partial, modes: Sequence[str], base_steps: int
) -> tuple[dict[str, Floats], dict[str, Floats], Ints]:
    groups = partial.groups
    keep = ~groups["eval"]
    steps, at_kept = np.unique(groups["step"][keep], return_inverse=True)
    at = np.zeros(keep.size, dtype=np.int64)
    at[keep] = at_kept
    count = steps.size

    def total(name: str) -> NDArray[np.float64]:
        return group_total(groups[name].astype(np.float64), at, count, keep)

    def mean_over_groups(name: str) -> Floats:
        values = groups[name].astype(np.float64)
        known = keep & np.isfinite(values)
        return ratio(group_total(values, at, count, known), group_total(np.ones(known.size), at, count, known))

    mode_counts, correct = total("modes"), total("modes_correct")
    known = mode_counts.sum(axis=1)
    series: dict[str, Floats] = {
        "rlmon/format/effective": effective_number(mode_counts),
        "rlmon/format/effective_correct": effective_number(correct),
        "rlmon/format/top_share": ratio(mode_counts.max(axis=1), known) if count else np.zeros(0),
        "rlmon/format/other_share": ratio(mode_counts[:, -1], known),
        "rlmon/health/reward_mean": ratio(total("reward"), total("scored")),
        "rlmon/health/reward_missing": np.where(total("scored").sum() > 0, total("missing"), np.nan),
        "rlmon/health/reward_non_finite": total("non_finite"),
        "rlmon/health/length_mean": ratio(total("tokens"), total("tokens_known")),
        "rlmon/health/truncated": ratio(total("truncated"), total("truncated_known")),
        "rlmon/text/effective_answers_within": mean_over_groups("answers"),
        "rlmon/text/effective_templates_within": mean_over_groups("templates"),
        "rlmon/text/effective_templates_within_correct": mean_over_groups("templates_correct"),
        "rlmon/text/answer_share": ratio(total("answered"), known),
        "completion characters": ratio(total("characters"), known),
    }
    for name, flags, of in (
        ("all_good", "all_good", "classified"),
        ("all_bad", "all_bad", "classified"),
        ("silent", "silent", "judged"),
        ("lone_success", "lone", "classified"),
    ):
        series[f"rlmon/group/{name}"] = ratio(total(flags), total(of))
    series["rlmon/group/reward_std"] = mean_over_groups("reward_std")
    series["rlmon/group/lone_success_weight"] = lone_success_weight(partial, at, count, keep)
    if count:
        # The base at a tenth of a step's noise: its first steps pooled.
        base = mode_counts[:base_steps].sum(axis=0)
        series["rlmon/format/js_to_base"] = np.array(
            [np.nan if (d := js_distance(now, base)) is None else d for now in mode_counts]
        )
    series |= rewards_by_function(partial, steps)
    shares = {mode: ratio(mode_counts[:, code], known) for code, mode in enumerate(modes)}
    shares = {mode: values for mode, values in shares.items() if np.nansum(values) > 0}
    for mode, values in shares.items():
        series[f"rlmon/format/share/{mode}"] = values
    if partial.steps:
        series |= _pairs(partial, steps)
    return {name: values for name, values in series.items() if np.isfinite(values).any()}, shares, steps


def rewards_by_function(partial: Partial, steps: Ints) -> dict[str, Floats]:
    """Mean of every reward function at ``steps`` [S] (``rewards/<function>``), NaN where it scored nothing."""
    series = {}
    for name, parts in partial.functions.items():
        mine = np.isin(parts["step"], steps)
        at = np.searchsorted(steps, parts["step"][mine])
        top, bottom = (
            np.bincount(at, weights=parts[column][mine], minlength=steps.size).astype(np.float64)
            for column in ("sum", "scored")
        )
        series[f"rewards/{name}"] = ratio(top, bottom)
    return series


def _pairs(partial: Partial, steps: Ints) -> dict[str, Floats]:
    at = np.searchsorted(steps, partial.steps["step"])
    series: dict[str, Floats] = {}

    def total(values: NDArray[Any]) -> Floats:
        return np.bincount(at, weights=values, minlength=steps.size).astype(np.float64)

    for kernel in _PAIR_SERIES:
        pairs = partial.steps[f"pairs_{kernel}"]
        for kind in ("across", "within"):
            collision = ratio(total(pairs[f"{kind}_sum"]), total(pairs[f"{kind}_pairs"]))
            series[f"rlmon/collision/{kernel}_{kind}"] = collision
            series[f"rlmon/collision/{kernel}_{kind}_effective"] = ratio(np.ones(steps.size), collision)
    series["exact duplicate share"] = 1.0 - ratio(total(partial.steps["distinct_texts"]), total(partial.steps["texts"]))
    return series


def lone_success_weight(partial: Partial, at: Ints, steps: int, keep: Bools) -> Floats:
    """Share of sum |advantage| of each step [S] that falls on lone successes of prompts whose solve rate was, before
    that step, credibly below 1/8; NaN without advantages.

    The posterior of a prompt before a visit is Beta with the solve rate of its source so far as its mean, at a
    strength of ``PRIOR_ATTEMPTS`` attempts, and its own attempts and successes so far.
    """
    groups = partial.groups
    weight = groups["weight"]
    weighed = keep & np.isfinite(weight) & groups["classified"]
    if not weighed.any():
        return np.full(steps, np.nan)
    n, k = np.where(keep, groups["known"], 0.0), np.where(keep, groups["successes"], 0.0)
    # A prompt that comes in two sources counts in each for itself: it is left out of the mean of its own.
    prompt = codes_of(groups["source"], groups["prompt"])
    before_n, before_k = _before(prompt, at, n), _before(prompt, at, k)
    source_n, source_k = _before(groups["source"], at, n), _before(groups["source"], at, k)
    mean = (source_k - before_k + 1.0) / (source_n - before_n + 2.0)
    a, b = PRIOR_ATTEMPTS * mean + before_k, PRIOR_ATTEMPTS * (1.0 - mean) + before_n - before_k
    hard = (before_n > 0) & groups["lone"]
    hard[hard] = beta_cdf(HARD_SOLVE_RATE, a[hard], b[hard]) >= CREDIBILITY
    top = np.where(hard, groups["weight_lone"], 0.0)
    return ratio(group_total(top, at, steps, weighed), group_total(weight, at, steps, weighed))


def _before(key: Ints, at: Ints, values: Floats) -> Floats:
    """Sum of ``values`` over entries of the same key at an earlier step, per entry."""
    order = np.lexsort([at, key])
    ordered_key, ordered_at = key[order], at[order]
    running = np.cumsum(values[order]) - values[order]
    new_key = np.ones(order.size, dtype=bool)
    new_key[1:] = ordered_key[1:] != ordered_key[:-1]
    new_visit = new_key.copy()
    new_visit[1:] |= ordered_at[1:] != ordered_at[:-1]
    at_key = np.maximum.accumulate(np.where(new_key, np.arange(order.size), 0))
    at_visit = np.maximum.accumulate(np.where(new_visit, np.arange(order.size), 0))
    before = np.empty(order.size)
    before[order] = running[at_visit] - running[at_key]
    return before


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
