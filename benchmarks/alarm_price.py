"""The price of an alarm: how often each detector cries wolf on healthy runs, and how fast it sees a collapse.

    python benchmarks/alarm_price.py [--runs 1000] [--looks 2000] [--collapses 200] [--promise-runs 3000]
                                     [--out rlmon/detectors/prices.json]

Healthy runs are bootstrapped by prompt group from real completions (``benchmarks/data/base_rows.npz``, made by
``sample_base_rows.py``): 8 prompts x 8 completions a step as 4 blocks of 2 prompts. What makes them hard:

* drift: over the first half of the run the format mix tilts to one winner until the effective number of formats
  (order 2) is ``final`` times its base, with final = .8 in half of the runs and uniform in (.8, 1) in the others;
  token entropy falls to between .7 and 1 of its base; KL rises to .025 nats per token, measured every 10 steps;
* prompt heterogeneity: every prompt has its own log-normal tilt over the formats (sd .5), and one in twenty prompts
  is nearly impossible (one lucky completion in 25);
* half of the runs draw prompts from one source, the other half are sorted by task: four sources with other mixes,
  lengths and entropies, one after the other.

Every run draws its own base. A FAIL is false here in every run: what is promised is that there is none while the
effective number stays at .8 of its base or above. A WARN is false where the run has not narrowed at all; half of these
runs end exactly on the WARN line, .8, and the WARNs of all are told for what they are. The promise itself, at its edge
and over other shapes and spreads, is measured by ``alarm_promise.py``, which is run here too.

Collapses have the shape of the runs measured in TRL: the share of one format rises logistically from .13, onset at
step 30 to 50, past .9 at about step 110. The alarm must come at least 10 steps before the top share of a step's
completions first stays at .9 or more for two steps, and not before the 5-step mean of effective formats is below .9
of its base. All runs go through ``rlmon.detectors.evidence.observe``, the code that the fold runs, many at a time.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import alarm_promise
import numpy as np
from numpy.typing import NDArray

from rlmon import baseline
from rlmon.detectors import DETECTORS, Roster, evidence, start
from rlmon.detectors.catalog import VERSION

Floats = NDArray[np.float64]
DATA = Path(__file__).with_name("data") / "base_rows.npz"
STATISTICS = Roster().statistics
Q = {name: i for i, name in enumerate(STATISTICS)}
KERNELS = ("mode", "template", "answer", "move")
GROUP = 8
STEP_PROMPTS = 8
WINNER = "python"
IMPOSSIBLE, LUCK = 0.05, 0.04
HETEROGENEITY = 0.5
PASSES_STEP = 121
KL_EVERY = 10


@dataclass(frozen=True)
class Pool:
    """Prompt groups of one source at one strength of drift: everything a block needs, by table lookup."""

    across: dict[str, NDArray[np.float32]]
    """[M, M] mean kernel between the completions of two groups."""
    within: dict[str, Floats]
    """[M] mean kernel over the pairs of a group."""
    tokens: Floats
    entropy_sum: Floats
    """[M] entropy in nats, summed over the group's tokens."""
    reward: Floats
    good: Floats
    bad: Floats
    advantage: Floats
    """[M] sum of |advantage|."""
    lone: Floats
    """[M] the part of it on a lone success of an impossible prompt."""
    winner: Floats
    """[M] share of the winner format."""
    counts: NDArray[np.int64]
    """[M, modes] completions per format."""
    codes: dict[str, NDArray[np.int64]]
    """[M, G] what the kernels of equality compare."""


@dataclass(frozen=True)
class Rows:
    """The stored completions, [prompts, completions]."""

    columns: dict[str, NDArray[Any]]
    openers: NDArray[np.float32]
    """[prompts, completions, buckets] share of each opener."""
    winner: int

    @staticmethod
    def load(path: Path = DATA) -> Rows:
        with np.load(path) as data:
            columns = {name: data[name] for name in data.files}
        ids = columns["openers"].astype(np.int64)
        known, inverse = np.unique(ids, return_inverse=True)
        hot = np.zeros((*ids.shape[:2], len(known)), dtype=np.float32)
        for k in range(ids.shape[2]):
            np.put_along_axis(
                hot,
                inverse.reshape(ids.shape)[:, :, k : k + 1],
                np.take_along_axis(hot, inverse.reshape(ids.shape)[:, :, k : k + 1], 2) + 1,
                2,
            )
        hot = hot[:, :, known >= 0]
        hot /= np.maximum(hot.sum(-1, keepdims=True), 1)
        return Rows(columns, hot, list(columns["mode_names"]).index(WINNER))


@dataclass(frozen=True)
class Task:
    """What makes one source differ from another."""

    tilt_modes: Floats
    length: float
    entropy: float


def tasks(rng: np.random.Generator, modes: int, count: int) -> list[Task]:
    """One plain source, or several with other format mixes, lengths and entropies."""
    if count == 1:
        return [Task(np.zeros(modes), 1.0, 1.0)]
    return [
        Task(rng.normal(0, 0.5, modes), float(rng.uniform(0.5, 2)), float(rng.uniform(0.6, 1.6))) for _ in range(count)
    ]


def draw_groups(
    rows: Rows, task: Task, drift: float, count: int, seed: int, heterogeneity: float = HETEROGENEITY
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """[M] prompts and [M, G] completions, format-tilted; the same uniforms for every drift."""
    mode = rows.columns["mode"].astype(np.int64)
    local = np.random.default_rng(seed)
    prompts = local.integers(0, mode.shape[0], count)
    own_tilt = local.normal(0, heterogeneity, (count, len(rows.columns["mode_names"])))
    uniforms = local.random((count, GROUP))
    log_weight = task.tilt_modes[mode[prompts]] + np.take_along_axis(own_tilt, mode[prompts], 1)
    log_weight = log_weight + drift * (mode[prompts] == rows.winner)
    weight = np.exp(log_weight - log_weight.max(axis=1, keepdims=True))
    cumulative = np.cumsum(weight, axis=1)
    cumulative /= cumulative[:, -1:]
    picks = np.minimum((uniforms[:, :, None] > cumulative[:, None, :]).sum(-1), mode.shape[1] - 1)
    return prompts, picks


def across_matrix(onehot_MB: NDArray[np.float32]) -> NDArray[np.float32]:
    """[M, M] mean of the product kernel between groups, from group means [M, buckets]."""
    return onehot_MB @ onehot_MB.T


def overlap_matrix(h_MGB: NDArray[np.float32]) -> NDArray[np.float32]:
    """[M, M] mean over pairs of sum_b min(h, h'), by layers of the min where values lie on a small grid."""
    levels = np.unique(np.round(h_MGB[h_MGB > 0], 5))
    total = np.zeros((len(h_MGB), len(h_MGB)), dtype=np.float32)
    below = 0.0
    for level in levels:
        share = (h_MGB >= level - 1e-4).mean(axis=1).astype(np.float32)
        total += np.float32(level - below) * (share @ share.T)
        below = float(level)
    return total


def build_pool(
    rows: Rows, task: Task, drift: float, count: int, seed: int, heterogeneity: float = HETEROGENEITY
) -> Pool:
    prompts, picks = draw_groups(rows, task, drift, count, seed, heterogeneity)
    take = {name: rows.columns[name][prompts[:, None], picks] for name in ("mode", "template", "answer")}
    across, within = {}, {}
    for name, values in take.items():
        size = int(rows.columns[name].max()) + 1
        onehot = np.zeros((count, size), dtype=np.float32)
        for g in range(GROUP):
            onehot[np.arange(count), values[:, g]] += 1
        across[name] = across_matrix(onehot / GROUP)
        within[name] = ((onehot * (onehot - 1)).sum(1) / (GROUP * (GROUP - 1))).astype(np.float64)
    h_MGB = rows.openers[prompts[:, None], picks]
    across["move"] = overlap_matrix(h_MGB)
    pairs = [np.minimum(h_MGB[:, a], h_MGB[:, b]).sum(-1) for a in range(GROUP) for b in range(a)]
    within["move"] = np.mean(pairs, axis=0).astype(np.float64)
    local = np.random.default_rng(seed + 1)
    impossible = local.random(count) < IMPOSSIBLE
    correct = rows.columns["correct"][prompts[:, None], picks]
    correct = np.where(impossible[:, None], local.random((count, GROUP)) < LUCK, correct).astype(np.float64)
    tokens = rows.columns["tokens"][prompts[:, None], picks].astype(np.float64) * task.length
    entropy = rows.columns["entropy_mean_nats"][prompts[:, None], picks].astype(np.float64) * task.entropy
    solved = correct.sum(1)
    advantage = np.abs(correct - correct.mean(1, keepdims=True)) / (correct.std(1, ddof=1, keepdims=True) + 1e-4)
    counts = np.stack([(take["mode"] == m).sum(1) for m in range(len(rows.columns["mode_names"]))], axis=1)
    return Pool(
        across=across,
        within=within,
        tokens=tokens.mean(1),
        entropy_sum=(entropy * tokens).sum(1),
        reward=correct.mean(1),
        good=(solved == GROUP).astype(np.float64),
        bad=(solved == 0).astype(np.float64),
        advantage=advantage.sum(1),
        lone=np.where(impossible & (solved == 1), advantage.sum(1), 0.0),
        winner=(take["mode"] == rows.winner).mean(1),
        counts=counts,
        codes={name: values.astype(np.int64) for name, values in take.items()},
    )


def mean_across(pool: Pool, kernel: str = "mode") -> float:
    """E[Z] of blocks from this pool: the mean over pairs of different groups."""
    table = pool.across[kernel].astype(np.float64)
    m = len(table)
    return float((table.sum() - np.trace(table)) / (m * (m - 1)))


def drift_for(rows: Rows, task: Task, ratio: float, count: int, seed: int) -> float:
    """Log tilt towards the winner at which the effective number of formats (order 2) is ratio times its base.

    A winner with a small share first evens the mix out, so the search starts where the mix is widest.
    """

    def collision(drift: float) -> float:
        prompts, picks = draw_groups(rows, task, drift, count, seed)
        values = rows.columns["mode"][prompts[:, None], picks]
        share = np.stack([(values == m).mean(1) for m in range(len(rows.columns["mode_names"]))], axis=1)
        total = share.sum(0)
        return float((total @ total - (share * share).sum()) / (count * (count - 1)))

    target = collision(0.0) / ratio
    grid = np.linspace(0.0, 4.0, 81)
    values = np.array([collision(d) for d in grid])
    widest = int(values.argmin())
    above = np.flatnonzero(values[widest:] >= target)
    if ratio >= 1.0 or not len(above):
        return 0.0
    high = widest + int(above[0])
    span = values[high] - values[high - 1]
    return float(grid[high - 1] + (grid[1] - grid[0]) * (target - values[high - 1]) / span) if high else 0.0


class Pools:
    """Pools at several strengths of drift, stacked for lookup by (strength, group)."""

    def __init__(self, pools: list[Pool]) -> None:
        self.size = len(pools[0].tokens)
        self.across = {k: np.stack([p.across[k] for p in pools]) for k in KERNELS}
        self.codes = {k: np.stack([p.codes[k] for p in pools]) for k in pools[0].codes}
        self.within = {k: np.stack([p.within[k] for p in pools]) for k in KERNELS}
        names = ("tokens", "entropy_sum", "reward", "good", "bad", "advantage", "lone", "winner", "counts")
        self.column = {name: np.stack([getattr(p, name) for p in pools]) for name in names}

    def draw(
        self, rng: np.random.Generator, level_N: NDArray[np.int64], entropy_factor_N: Floats, prompts: int
    ) -> tuple[Floats, NDArray[np.int64]]:
        """One block per run: statistics [N, Q] and the groups drawn [N, prompts] (without replacement)."""
        n = len(level_N)
        groups = rng.integers(0, self.size, (n, prompts))
        for k in range(1, prompts):
            clash = (groups[:, :k] == groups[:, k : k + 1]).any(1)
            groups[clash, k] = (groups[clash, :k].max(1) + 1) % self.size
        z = np.full((n, len(STATISTICS)), np.nan)
        level = level_N[:, None]
        for kernel in KERNELS:
            pairs = [self.across[kernel][level_N, groups[:, a], groups[:, b]] for a in range(prompts) for b in range(a)]
            if pairs:
                z[:, Q[f"{kernel}_collision"]] = np.mean(pairs, axis=0)
            if f"{kernel}_collision_within" in Q:
                z[:, Q[f"{kernel}_collision_within"]] = self.within[kernel][level, groups].mean(1)
        get = {name: table[level, groups] for name, table in self.column.items()}
        z[:, Q["completion_tokens"]] = get["tokens"].mean(1)
        z[:, Q["entropy_nats"]] = get["entropy_sum"].sum(1) / (get["tokens"].sum(1) * GROUP) * entropy_factor_N
        z[:, Q["reward"]] = get["reward"].mean(1)
        z[:, Q["all_good"]] = get["good"].mean(1)
        z[:, Q["all_bad"]] = get["bad"].mean(1)
        weight = get["advantage"].sum(1)
        known = weight > 0
        z[known, Q["lone_success_weight"]] = get["lone"].sum(1)[known] / weight[known]
        return z, groups


class Bases:
    """The groups of every source's baseline, so that its collision can be taken over all their pairs."""

    def __init__(self, tables: list[Pools]) -> None:
        self.tables = tables
        self.drawn: dict[int, list[tuple[NDArray[np.int64], NDArray[np.int64]]]] = {}

    def add(self, source: int, level_N: NDArray[np.int64], groups: NDArray[np.int64]) -> None:
        """Groups [N, prompts] of one block, drawn at these strengths."""
        if len(self.drawn.setdefault(source, [])) * groups.shape[1] < baseline.PROMPTS:
            self.drawn[source].append((level_N, groups))

    def pairs(self, source: int, statistic: int) -> tuple[Floats, Floats, Floats] | None:
        """As ``evidence.Pairs``."""
        kernel = STATISTICS[statistic].removesuffix("_collision")
        codes = self.tables[source].codes.get(kernel)
        if codes is None:
            return None
        codes_NBG = np.concatenate([codes[level[:, None], groups] for level, groups in self.drawn[source]], axis=1)
        runs, parts, group = codes_NBG.shape
        record = np.arange(parts) // STEP_PROMPTS
        mean, se = np.empty(runs), np.empty(runs)
        for n in range(0, runs, 50):
            flat = codes_NBG[n : n + 50].reshape(-1, parts * group)
            same = (flat[:, :, None] == flat[:, None, :]).reshape(-1, parts, group, parts, group).sum((2, 4))
            size = np.full(same.shape[:2], float(group))
            mean[n : n + 50], se[n : n + 50] = evidence.pairs_mean_se(same.astype(np.float64), size, record)
        return mean, se, np.full(runs, float(parts))


def healthy(
    rows: Rows,
    *,
    runs: int,
    looks: int,
    source_count: int,
    seed: int,
    groups: int,
    levels: int,
    parameters: dict[str, Any] | None = None,
    block_prompts: int = 2,
) -> dict[str, NDArray[np.bool_]]:
    """Which detectors ever alarmed in each run: ``warn`` and ``fail``, [runs, D]."""
    rng = np.random.default_rng(seed)
    state = start(alpha=0.01, total_steps=looks, group_size=GROUP, parameters=parameters)
    plan = state.plan
    arrays = evidence.empty(plan, runs, source_count, len(STATISTICS))
    ratios = np.linspace(1.0, 0.8, levels)
    tables = []
    for s, task in enumerate(tasks(rng, len(rows.columns["mode_names"]), source_count)):
        drifts = [drift_for(rows, task, float(r), groups, seed * 100 + s) for r in ratios]
        tables.append(Pools([build_pool(rows, task, d, groups, seed * 100 + s) for d in drifts]))
    bases = Bases(tables)
    final = np.where(np.arange(runs) % 2 == 0, 0.8, rng.uniform(0.8, 1.0, runs))
    entropy_final = rng.uniform(0.7, 1.0, runs)
    ever = np.zeros((runs, plan.detectors, 2), dtype=np.bool_)
    for t in range(looks):
        progress = min(1.0, 2.0 * t / looks)
        ratio = 1.0 - (1.0 - final) * progress
        # The step between two strengths is drawn so that the expected ratio is met.
        place = (1.0 - ratio) / 0.2 * (levels - 1)
        level = np.minimum(np.floor(place + rng.random(runs)).astype(np.int64), levels - 1)
        entropy_factor = 1.0 - (1.0 - entropy_final) * progress
        source = min(source_count - 1, t * source_count // looks)
        blocks = []
        for _ in range(STEP_PROMPTS // block_prompts):
            z, groups_drawn = tables[source].draw(rng, level, entropy_factor, block_prompts)
            bases.add(source, level, groups_drawn)
            if t % KL_EVERY == 0:
                kl = 0.025 * progress * rng.gamma(4.0, 0.25, runs)
                z[:, Q["kl_nats"]] = kl
                z[:, Q["kl_seq_nats"]] = kl * z[:, Q["completion_tokens"]]
            blocks.append((source, z, float(block_prompts), float(block_prompts * GROUP)))
        weight = evidence.restart_weight(t + 1, looks)
        arrays, fire = evidence.observe(plan, arrays, blocks, weight, pairs=bases.pairs)
        ever |= fire
    return {"warn": ever[:, :, evidence.WARN], "fail": ever[:, :, evidence.FAIL]}


def collapses(
    rows: Rows,
    *,
    runs: int,
    looks: int,
    seed: int,
    groups: int,
    steps: int = 200,
    parameters: dict[str, Any] | None = None,
    block_prompts: int = 2,
) -> dict[str, Any]:
    """Steps of the first WARN and FAIL of every detector [runs, D] (-1: never), of the top share passing .9, and the
    5-step mean of effective formats over its base at the first FAIL of format-collapse."""
    rng = np.random.default_rng(seed)
    state = start(alpha=0.01, total_steps=looks, group_size=GROUP, parameters=parameters)
    plan = state.plan
    arrays = evidence.empty(plan, runs, 1, len(STATISTICS))
    task = tasks(rng, len(rows.columns["mode_names"]), 1)[0]
    drifts = np.concatenate([[0.0], np.linspace(0.2, 8.0, 32)])
    pools = [build_pool(rows, task, float(d), groups, seed, 0.0) for d in drifts]
    table = Pools(pools)
    bases = Bases([table])
    share_by_drift = np.array([p.winner.mean() for p in pools])
    onset = rng.uniform(30, 50, runs)
    passes = rng.normal(PASSES_STEP, 3, runs)
    first, last = share_by_drift[0], 0.98
    logit = lambda p: np.log(p / (1 - p))  # noqa: E731
    slope = (logit(0.9 / last) - logit(first / last)) / (passes - onset)
    first_step = np.full((runs, plan.detectors, 2), -1)
    share_history, effective_history = [], []
    for t in range(steps):
        x = logit(first / last) + slope * np.maximum(t - onset, 0.0)
        share = last / (1.0 + np.exp(-x))
        place = np.interp(share, share_by_drift, np.arange(len(drifts)))
        level = np.minimum(np.floor(place + rng.random(runs)).astype(np.int64), len(drifts) - 1)
        # Entropy was the late signal: it follows the share with the square.
        entropy_factor = 1.0 - 0.9 * ((share - first) / (1 - first)) ** 2
        blocks, counts = [], 0
        for _ in range(STEP_PROMPTS // block_prompts):
            z, drawn = table.draw(rng, level, entropy_factor, block_prompts)
            bases.add(0, level, drawn)
            blocks.append((0, z, float(block_prompts), float(block_prompts * GROUP)))
            counts = counts + table.column["counts"][level[:, None], drawn].sum(1)
        weight = evidence.restart_weight(t + 1, looks)
        arrays, fire = evidence.observe(plan, arrays, blocks, weight, pairs=bases.pairs)
        new = fire & (first_step < 0)
        first_step[new] = t + 1
        p = counts / np.sum(counts, axis=1, keepdims=True)
        share_history.append(p.max(1))
        effective_history.append(np.exp(-(p * np.log(np.where(p > 0, p, 1.0))).sum(1)))
    top = np.array(share_history)
    effective = np.array(effective_history)
    twice = (top[1:] >= 0.9) & (top[:-1] >= 0.9)
    over = np.where(twice.any(0), twice.argmax(0) + 1, -1)
    once = np.where((top >= 0.9).any(0), (top >= 0.9).argmax(0) + 1, -1)
    base = effective[:5].mean(0)
    fail = first_step[:, 0, evidence.FAIL]
    at_fail = np.array(
        [effective[max(0, f - 5) : f, n].mean() / base[n] if f > 0 else np.nan for n, f in enumerate(fail)]
    )
    return {"first": first_step, "over_0_9": over, "once_over_0_9": once, "effective_at_fail": at_fail}


def clopper_pearson(events: int, trials: int, level: float = 0.95) -> tuple[float, float]:
    """Exact two-sided interval of a binomial rate."""

    def cdf(k: int, p: float) -> float:
        if p <= 0.0:
            return 1.0
        if p >= 1.0:
            return 1.0 if k >= trials else 0.0
        logs = [
            math.lgamma(trials + 1)
            - math.lgamma(i + 1)
            - math.lgamma(trials - i + 1)
            + i * math.log(p)
            + (trials - i) * math.log1p(-p)
            for i in range(k + 1)
        ]
        return min(1.0, math.fsum(math.exp(v) for v in logs))

    def solve(k: int, tail: float) -> float:
        low, high = 0.0, 1.0
        for _ in range(60):
            middle = 0.5 * (low + high)
            low, high = (middle, high) if cdf(k, middle) > tail else (low, middle)
        return 0.5 * (low + high)

    tail = (1.0 - level) / 2.0
    lower = 0.0 if events == 0 else solve(events - 1, 1.0 - tail)
    upper = 1.0 if events == trials else solve(events, tail)
    return lower, upper


def rate(events: int, trials: int, looks: int) -> dict[str, Any]:
    low, high = clopper_pearson(events, trials)
    return {
        "rate": round(events / trials, 6),
        "low": round(low, 6),
        "high": round(high, 6),
        "events": int(events),
        "runs": trials,
        "looks": looks,
    }


def price(rows: Rows, args: argparse.Namespace) -> dict[str, Any]:
    half = args.runs // 2
    parts = [
        healthy(
            rows, runs=n, looks=args.looks, source_count=sources, seed=args.seed + sources, groups=args.groups, levels=6
        )
        for n, sources in ((half, 1), (args.runs - half, 4))
        if n
    ]
    table: dict[str, Any] = {}
    for d, spec in enumerate(Roster().betting):
        table[spec.id] = {
            name: rate(int(sum(p[name][:, d].sum() for p in parts)), args.runs, args.looks)
            for name in ("warn", "fail")
            if getattr(spec, name) is not None
        }
    total = {
        name: rate(int(sum(p[name].any(axis=1).sum() for p in parts)), args.runs, args.looks)
        for name in ("warn", "fail")
    }
    return {"version": VERSION, "seed": args.seed, "alpha": 0.01, "detectors": table, "total": total}


def power(rows: Rows, args: argparse.Namespace) -> dict[str, Any]:
    out = {}
    for looks in (200, 2000):
        got = collapses(rows, runs=args.collapses, looks=looks, seed=args.seed + 7, groups=args.groups)
        over, ids = got["over_0_9"], [spec.id for spec in Roster().betting]
        fail, warn = (got["first"][:, 0, r] for r in (evidence.FAIL, evidence.WARN))
        lead = (over - fail)[(fail > 0) & (over > 0)]
        out[str(looks)] = {
            "collapses": args.collapses,
            "planned_steps": looks,
            "failed": int((fail > 0).sum()),
            "failed_before": int((lead > 0).sum()),
            "at_least_10_steps_before": int((lead >= 10).sum()),
            "steps_before_min_p5_p50_p95": [int(v) for v in np.quantile(lead, [0, 0.05, 0.5, 0.95])],
            "first_batch_over_0_9_p50": int(np.median(got["once_over_0_9"])),
            "step_over_0_9_p50": int(np.median(over)),
            "fail_step_p50": int(np.median(fail)),
            "warn_step_p50": int(np.median(warn[warn > 0])) if (warn > 0).any() else None,
            "effective_over_base_at_fail_max": round(float(np.nanmax(got["effective_at_fail"])), 4),
            "others_fail_step_p50": {
                name: int(np.median(steps[steps > 0]))
                for d, name in enumerate(ids)
                if d and ((steps := got["first"][:, d, evidence.FAIL]) > 0).mean() > 0.5
            },
        }
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--looks", type=int, default=2000)
    parser.add_argument("--collapses", type=int, default=200)
    parser.add_argument("--promise-runs", type=int, default=3000, help="runs for each line of alarm_promise.py")
    parser.add_argument("--groups", type=int, default=400, help="prompt groups per source and strength of drift")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=None, help="write the table as JSON (the docs are made from it)")
    args = parser.parse_args()
    rows = Rows.load()
    began = time.process_time()
    result = price(rows, args)
    print(f"Alarms on {args.runs} healthy runs of {args.looks} looks, 95 % Clopper-Pearson interval, per run")
    print(f"{'detector':24} {'FAIL':>26} {'WARN':>26}")

    def percent(cell: dict[str, Any] | None) -> str:
        if cell is None:
            return "no such rung"
        return f"{100 * cell['rate']:.2f} % [{100 * cell['low']:.2f}, {100 * cell['high']:.2f}]"

    for name, row in [*result["detectors"].items(), ("any", result["total"])]:
        cells = [percent(row.get(rung)) for rung in ("fail", "warn")]
        print(f"{name:24} {cells[0]:>26} {cells[1]:>26}")
    priced = {spec.id for spec in DETECTORS} - set(result["detectors"])
    print(f"exact, nothing to price: {', '.join(sorted(priced))}")
    if args.collapses:
        result["power"] = power(rows, args)
        print("\nSimulated collapses (steps before the top share passes .9)")
        for block in result["power"].values():
            print(json.dumps(block))
    print("\nThe promise: runs that stand at .8 of their base, upper ends of 95 % Clopper-Pearson intervals")
    result["promise"] = alarm_promise.measure(args.promise_runs, args.looks, 5 * args.collapses, args.seed, rate)
    print(f"\n{time.process_time() - began:.0f} CPU-seconds on {platform.machine()}, numpy {np.__version__}")
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        print(f"written: {args.out.name}")


if __name__ == "__main__":
    main()
