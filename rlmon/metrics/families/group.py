"""Groups of completions that share one draw of one prompt: silent ones, and lone successes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from rlmon.metrics.blocks import Dealt
from rlmon.metrics.family import (
    NO_ROUND,
    Drawn,
    Entries,
    Metric,
    MetricFamily,
    Numbers,
    RankRows,
    RoundRows,
    Shape,
    StepSums,
    Sums,
    histogram,
)
from rlmon.metrics.groups import GroupStats
from rlmon.statistics import Bools, Ints, ratio

ADVANTAGE_EDGES: NDArray[np.float64] = np.concatenate([[0.0], np.geomspace(1e-4, 1e2, 161)])
"""|advantage|: one bin below 1e-4, then bins of 9 %."""
PERCENTS = (50, 95, 99)
_KNAPSACK, _HARD = "Knapsack RL, arXiv 2509.25849", "arXiv 2605.28388"
_entry = Entries(family="group", needs="rewards")


def _entries() -> Iterator[Metric]:
    for name, source, formula in (
        ("all_good", _KNAPSACK, "groups without reward spread, all completions rewarded"),
        ("all_bad", _KNAPSACK, "groups without reward spread, no completion rewarded"),
        ("silent", _KNAPSACK, "groups without reward spread: they give no gradient"),
        ("lone_success", _HARD, "groups with exactly one rewarded completion"),
    ):
        yield _entry(name, "share", 0, 1, "up", formula, source=source, of_successes=name != "silent")
    yield _entry(
        "lone_weight", "share", 0, 1, "up", "sum |advantage| of lone successes / sum |advantage|",
        source=_HARD, needs="rewards, advantages", of_successes=True,
    )  # fmt: skip
    yield _entry(
        "lone_success_weight", "share", 0, 1, "up",
        "the same, only on prompts whose solve rate before this round was below 1/8 with posterior probability .95",
        source=_HARD, needs="rewards, advantages, ledger", of_successes=True,
    )  # fmt: skip
    yield _entry("hard_share", "share", 0, 1, "up", "completions of such prompts", needs="ledger", of_successes=True)
    yield _entry(
        "lone_length_ratio", "ratio", 0, None, "both",
        "mean tokens of lone successes / mean tokens of the other completions of their groups",
        source=_HARD, needs="rewards, token ids", of_successes=True,
    )  # fmt: skip
    yield _entry(
        "lone_repetition_excess", "share", -1, 1, "up",
        "mean 4-gram repetition of lone successes - that of the other completions of their groups",
        source=_HARD, of_successes=True,
    )  # fmt: skip
    yield _entry(
        "reward_std", "reward", 0, None, "down", "mean over groups of sd (ddof=1)", source="RAGEN-2, arXiv 2604.06268"
    )
    yield _entry("coverage", "share", 0, 1, "none", "groups that were judged, of all of the step", needs="completions")
    for percent in PERCENTS:
        yield _entry(
            f"advantage_abs_p{percent}", "advantage", 0, 100, "none",
            f"{percent} % quantile of |advantage| from 162 fixed bins; a lone success reaches (G - 1) / sqrt(G)",
            needs="advantages", kind="sketch",
        )  # fmt: skip


class Group(MetricFamily):
    name = "group"
    about = (
        "Groups of completions of one draw of one prompt that are trained on, from raw rewards. Rewarded means a "
        "success as `rlmon_success` defines it; unset, it is decided once from the rewards of the baseline."
    )
    entries = tuple(_entries())

    histograms = (Drawn("abs_advantage", "advantages", ADVANTAGE_EDGES),)

    def fields(self, modes: Sequence[str]) -> Mapping[str, Shape]:
        names = (
            *("sampled", "whole", "judged", "classified", "silent", "all_good", "all_bad", "lone"),  # groups
            *("std", "std_groups", "known_rows", "hard_rows", "ledger_rows"),
            *("weight", "weight_lone", "weight_known", "weight_lone_hard"),  # sums of |advantage|
            *(f"{who}_{what}" for who in ("winner", "other") for what in ("rows", "tokens", "repetition")),
        )
        return {**dict.fromkeys(names, ()), "advantages": (ADVANTAGE_EDGES.size - 1,)}

    def add_rows(self, sums: Sums, seen: RankRows) -> None:
        group_size = max(1, seen.batch.group_size)
        sums["sampled"] += np.count_nonzero(np.asarray(seen.batch.global_row) % group_size == 0)
        advantage_B = seen.groups.advantage_B
        sums["advantages"] += histogram(np.abs(advantage_B[np.isfinite(advantage_B)]), ADVANTAGE_EDGES)

    def add_round(self, sums: Sums, seen: RoundRows) -> None:
        rows, stats = seen.rows, seen.groups
        judged = stats.size_P >= 2
        known_std = np.isfinite(stats.reward_std_P) & judged
        weight_B = np.where(np.isfinite(stats.advantage_B), np.abs(stats.advantage_B), 0.0)
        in_group = _classified_rows(stats)
        for name, flags in (
            ("judged", judged),
            ("classified", stats.classified_P),
            ("silent", stats.silent_P),
            ("all_good", stats.all_good_P),
            ("all_bad", stats.all_bad_P),
            ("lone", stats.lone_P),
            ("std_groups", known_std),
            ("known_rows", np.isfinite(stats.success_B)),
        ):
            sums[name] += flags.sum()
        sums["whole"] += stats.whole
        sums["std"] += stats.reward_std_P[known_std].sum()
        weight = weight_B[in_group].sum()
        sums["weight"] += weight
        sums["weight_lone"] += weight_B[stats.lone_B].sum()
        if stats.hard_B is not None:
            sums["weight_known"] += weight
            sums["weight_lone_hard"] += weight_B[stats.lone_B & stats.hard_B].sum()
            sums["hard_rows"] += stats.hard_B.sum()
            sums["ledger_rows"] += stats.hard_B.size
        lone_group_B = np.zeros(in_group.size, dtype=bool)
        lone_group_B[in_group] = stats.lone_P[stats.group_B[in_group]]
        for who, chosen in (("winner", stats.lone_B), ("other", lone_group_B & ~stats.lone_B)):
            sums[f"{who}_rows"] += chosen.sum()
            sums[f"{who}_repetition"] += rows["repetition"][chosen].sum()
            sums[f"{who}_tokens"] += np.nan_to_num(rows["tokens"][chosen]).sum()

    def put_round(self, into: Dealt, seen: RoundRows) -> None:
        """``all_good``, ``all_bad``, and ``lone_success_weight`` where there is a ledger."""
        stats = seen.groups
        put_silent(into, stats.group_B, stats.classified_P, stats.all_good_P, stats.all_bad_P)
        if stats.hard_B is not None:
            counted = np.isfinite(stats.advantage_B) & _classified_rows(stats)
            weight = np.where(counted, np.abs(stats.advantage_B), 0.0)
            lone = into.by_block(weight * (stats.lone_B & stats.hard_B))
            into.put("lone_success_weight", lone, into.by_block(weight))

    def finish(self, out: Numbers, sums: Sums, step: StepSums) -> None:
        judged, classified = sums["judged"], sums["classified"]
        reason = "no whole group has two finite rewards"
        unjudged = step.why and judged <= 0
        unclassified = reason if unjudged else "of no group is the success of every completion known"
        out.ratio("group/all_good", sums["all_good"], classified, unclassified)
        out.ratio("group/all_bad", sums["all_bad"], classified, unclassified)
        out.ratio("group/silent", sums["silent"], judged, reason)
        out.ratio("group/lone_success", sums["lone"], classified, unclassified)
        out.ratio("group/reward_std", sums["std"], sums["std_groups"], reason)
        out.ratio("group/coverage", sums["whole"], sums["sampled"], NO_ROUND)
        weightless = reason if unjudged else "no advantages were captured, or all of them are 0"
        out.ratio("group/lone_weight", sums["weight_lone"], sums["weight"], weightless)
        unread = "no ledger of earlier rounds"
        unknown = weightless if step.why and sums["ledger_rows"] > 0 else unread
        out.ratio("group/lone_success_weight", sums["weight_lone_hard"], sums["weight_known"], unknown)
        out.ratio("group/hard_share", sums["hard_rows"], sums["ledger_rows"], unread)
        no_lone = "no group with a single success"
        winners, others = sums["winner_rows"], sums["other_rows"]
        winner, other = ratio(sums["winner_tokens"], winners), ratio(sums["other_tokens"], others)
        lengthless = "completion lengths were not captured, or the other completions are empty"
        out.ratio("group/lone_length_ratio", winner, other, no_lone if step.why and winners <= 0 else lengthless)
        excess = ratio(sums["winner_repetition"], winners) - ratio(sums["other_repetition"], others)
        out.put("group/lone_repetition_excess", excess, no_lone, known=(winners > 0) & (others > 0))
        for percent in PERCENTS:
            name, lacking = f"group/advantage_abs_p{percent}", "no finite advantages were captured"
            out.quantile(name, sums["advantages"], ADVANTAGE_EDGES, percent, lacking)


def put_silent(into: Dealt, group_B: Ints, classified_P: Bools, all_good_P: Bools, all_bad_P: Bools) -> None:
    """``all_good`` and ``all_bad``: shares of the groups of each block of which all successes are known."""
    in_group = group_B >= 0
    block_of_group = np.full(classified_P.size, into.count)  # those without a row here are counted behind all blocks
    block_of_group[group_B[in_group]] = into.block_B[in_group]
    judged = np.bincount(block_of_group[classified_P], minlength=into.count + 1)[:-1]
    for name, flags in (("all_good", all_good_P), ("all_bad", all_bad_P)):
        into.put(name, np.bincount(block_of_group, weights=flags, minlength=into.count + 1)[:-1], judged)


def _classified_rows(stats: GroupStats) -> Bools:
    """Rows whose group has two finite rewards or more, and is known to the last success."""
    inside = stats.group_B >= 0
    inside[inside] = stats.classified_P[stats.group_B[inside]]
    return inside
