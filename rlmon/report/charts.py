"""What the pages of an audit and of a comparison draw alike: which charts come first, curves, and stacked shares."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

from rlmon.report.figure import OTHER_COLOUR, Shares, colours, draw_order

ITEMS_SHOWN = 300
ITEM_CHARACTERS = 500
"""Of a list or a text of the run in a page, at most."""
MODES_DRAWN = 9
"""Formats that have a colour of their own; the others are one."""
Title = tuple[str, str, tuple[tuple[str, str], ...]]
VARIED = "as varied as so many equally common ones"
CHARTS: Sequence[Title] = (
    ("Formats in use", VARIED, (
        ("rlmon/collision/mode_across_effective", "across prompts"),
        ("rlmon/collision/mode_within_effective", "same prompt"),
        ("rlmon/collision/mode_correct_across_effective", "rewarded"),
    )),
    ("Formats in use", "e to the entropy of their shares", (
        ("rlmon/format/effective", "all"), ("rlmon/format/effective_correct", "rewarded"),
    )),
    ("Largest format", "share of completions", (("rlmon/format/top_share", "share"),)),
    ("Reward", "mean", (("rlmon/health/reward_mean", "reward"),)),
    ("Token entropy", "nats per token", (("rlmon/entropy/mean", "entropy"),)),
    ("KL to the base", "nats per token", (("rlmon/kl/mean", "KL"),)),
    ("Groups that teach nothing", "share of groups", (
        ("rlmon/group/silent", "equal rewards"), ("rlmon/group/all_good", "all good"),
        ("rlmon/group/all_bad", "all bad"),
    )),
    ("Completion length", "tokens", (("rlmon/health/length_mean", "mean"),)),
    ("Completion length", "characters", (("completion characters", "mean"),)),
    ("Distinct n-grams", "share, at a fixed budget of words", (
        ("rlmon/text/distinct_1", "1-grams"), ("rlmon/text/distinct_2", "2-grams"),
        ("rlmon/text/distinct_3", "3-grams"),
    )),
    ("Near-duplicates", "share of pairs", (
        ("rlmon/text/near_duplicate_within", "same prompt"), ("rlmon/text/near_duplicate_across", "across prompts"),
    )),
    ("Templates in use", VARIED, (
        ("rlmon/collision/template_across_effective", "across prompts"),
        ("rlmon/collision/template_within_effective", "same prompt"),
    )),
    ("Ways to begin a sentence", VARIED, (
        ("rlmon/moves/effective_across", "across prompts"), ("rlmon/moves/effective_within", "same prompt"),
    )),
    ("Templates of correct answers", "to one prompt", (
        ("rlmon/text/effective_templates_within_correct", "templates"),
    )),
    ("Different answers", "to one prompt", (("rlmon/text/effective_answers_within", "answers"),)),
    ("Weight of lucky one-offs", "share of |advantage|", (("rlmon/group/lone_success_weight", "weight"),)),
    ("Truncated", "share of completions", (("rlmon/health/truncated", "truncated"),)),
    ("Distance to the base's formats", "Jensen-Shannon", (("rlmon/format/js_to_base", "distance"),)),
    ("Critic: explained variance", "share of the returns' variance", (("rlmon/value/explained_variance", "share"),)),
    ("Critic: value loss", "squared reward", (("rlmon/value/loss", "loss"),)),
    ("Critic: values and returns", "reward, mean over tokens", (
        ("rlmon/value/mean", "values"), ("rlmon/value/return_mean", "returns"),
    )),
    ("Critic: advantages", "quantiles over tokens", (
        ("rlmon/value/advantage_p05", "5 %"), ("rlmon/value/advantage_p50", "50 %"),
        ("rlmon/value/advantage_p95", "95 %"),
    )),
    ("Policy: KL penalty", "beta", (("rlmon/intervention/beta", "beta"),)),
    ("Policy: hold on the formats", "strength", (("rlmon/intervention/kappa", "strength"),)),
    ("Policy: right answers kept apart", "strength", (("rlmon/intervention/hold_kappa", "strength"),)),
    ("Policy: rows and prompts set aside", "share", (
        ("rlmon/intervention/neutralised_share", "neutralised"), ("rlmon/intervention/deferred_share", "deferred"),
    )),
)  # fmt: skip
"""Title, unit and curves of the charts that come first, in their order; a chart without a value is left out."""


def metric_title(name: str) -> str:
    """The title of the audit's chart of this metric, or its name in words."""
    for title, _, curves in CHARTS:
        for known, label in curves:
            if known == name:
                return title if len(curves) == 1 or label == "all" else f"{title}, {label}"
    if not name.startswith("rlmon/"):
        return name
    words = name.removeprefix("rlmon/").replace("_", " ").replace("/", ": ", 1)
    return words[:1].upper() + words[1:]


def thin(steps: Sequence[int], values: Sequence[float | None], points: int) -> tuple[list[int], list[float | None]]:
    """At most about ``points`` measured values with their steps, the least and the greatest of every bucket kept.

    Steps without a value are left out, but one ``None`` stands in every gap more than four times as wide as usual, so
    that a curve measured every few steps is drawn through and one that stopped for a while is not.
    """
    known = [(s, v) for s, v in zip(steps, values, strict=True) if v is not None and math.isfinite(v)]
    if not known:
        return [], []
    gaps = sorted(b[0] - a[0] for a, b in pairwise(known))
    wide = 4 * gaps[len(gaps) // 2] if gaps else math.inf
    if len(known) > points:
        buckets = max(1, points // 2)
        kept: set[int] = {0, len(known) - 1}
        for bucket in range(buckets):
            inside = range(len(known) * bucket // buckets, len(known) * (bucket + 1) // buckets)
            kept |= {min(inside, key=lambda at: known[at][1]), max(inside, key=lambda at: known[at][1])}
        order = sorted(kept)
    else:
        order = list(range(len(known)))
    out_steps: list[int] = []
    out_values: list[float | None] = []
    broken = [at for at in range(1, len(known)) if known[at][0] - known[at - 1][0] > wide]
    next_break = 0
    for at in order:
        passed = False
        while next_break < len(broken) and broken[next_break] <= at:
            passed, next_break = True, next_break + 1
        if passed and out_steps and known[at][0] - out_steps[-1] > 1:
            out_steps.append(out_steps[-1] + 1)
            out_values.append(None)
        out_steps.append(known[at][0])
        out_values.append(_rounded(known[at][1]))
    return out_steps, out_values


def _rounded(value: float) -> float:
    """Six significant digits."""
    return float(f"{value:.6g}")


def coded(steps: Sequence[int], values: Sequence[float | None], points: int) -> tuple[list[int], list[float | None]]:
    """A curve as a page holds it: ``thin``, with steps as differences to the one before, which is half the bytes."""
    kept, thinned = thin(steps, values, points)
    return kept[:1] + [after - before for before, after in pairwise(kept)], thinned


def bucketed(
    title: str, steps: Sequence[int], shares: Mapping[str, Sequence[float | None]], points: int
) -> tuple[Shares, int]:
    """Format shares of one run as means over at most so many buckets of the steps that have completions, and the steps
    of the largest bucket; each bucket stands at its middle."""
    present = [at for at in range(len(steps)) if any(values[at] is not None for values in shares.values())]
    buckets = min(points, len(present))
    parts = [present[len(present) * b // buckets : len(present) * (b + 1) // buckets] for b in range(buckets)]
    means = {
        mode: [math.fsum(values[at] or 0.0 for at in part) / len(part) for part in parts]
        for mode, values in shares.items()
    }
    middles = [steps[part[len(part) // 2]] for part in parts]
    return Shares(title=title, steps=middles, shares=means), max(map(len, parts), default=0)


def stacked(runs: Sequence[Shares]) -> tuple[list[tuple[str, str]], list[list[list[float]]]]:
    """Names and colours of what is stacked, the same for all runs (the last may be all small formats together), and
    the values of each by run."""
    order = draw_order(runs)
    kept, pooled = order[:MODES_DRAWN], order[MODES_DRAWN:]
    palette = colours(kept)
    layers = [(mode[:ITEM_CHARACTERS], palette[mode]) for mode in kept]
    if pooled:
        layers.append((f"{len(pooled)} more", OTHER_COLOUR))
    rows = []
    for run in runs:
        nothing = [0.0] * len(run.steps)
        values = [[round(v, 4) for v in run.shares.get(mode, nothing)] for mode in kept]
        if pooled:
            rest = [run.shares.get(mode, nothing) for mode in pooled]
            values.append([round(math.fsum(column), 4) for column in zip(*rest, strict=True)])
        rows.append(values)
    return layers, rows
