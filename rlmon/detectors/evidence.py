"""The arithmetic of the detectors: baselines, damage lines, bets and evidence, for many runs at once.

Every function works on arrays whose leading axis N is the run. The fold over the records of one run calls them with
N = 1, ``benchmarks/alarm_price.py`` with N = 500: the price of an alarm is measured on the code that raises it.

Axes: N runs, S sources (strata of the data mix), Q statistics of a block, K processes (one per detector, rung and
statistic), L bet sizes, D detectors, 2 rungs (warn, fail).

Method: a weighted-restart betting e-process (Shin, Ramdas and Rinaldo, arXiv:2203.03532; Waudby-Smith and Ramdas,
arXiv:2010.09686). For a block with statistic Z and damage line z*,

    b = clip(+-(Z - z*) / u, -1, a)
    R(l) <- (R(l) + w) (1 + l b)          for every bet size l in (0, 1)
    M = mean over l of R(l) + the restart weight not yet spent

While E[b | past] <= 0, M is a nonnegative supermartingale that starts at 1, so P(M ever reaches 1/alpha) <= alpha
(Ville), whatever the autocorrelation.

The unit u decides how much may be bet. Bad when high: u = z* - z_least, with z_least the narrowest block of the
baseline, at most half the line and 0 for absolute lines. So b >= -1 holds by itself but for blocks narrower than any
of the baseline's, which count as that one; clipping from above only lowers E[b]. Bad when low: u = z*, and a block
above twice the line counts as twice the line. (The distance z* - base as the unit would bet more, but for statistics
that are zero in most blocks, such as equal answers, the clipping at -1 alone would then make E[b] positive at the
line.)
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]

LOG_ZERO = -1e12
"""Logarithm of zero wealth: finite, so that states are plain JSON, and far below anything that is ever reached."""

WARN, FAIL = 0, 1

# Sums kept of the blocks of a baseline, last axis of ``Arrays.sums``.
COUNT, WEIGHT, WEIGHT_Z, WEIGHT2, WEIGHT2_Z, WEIGHT2_ZZ, PROMPTS, COMPLETIONS, RECORDS = range(9)


@dataclass(frozen=True)
class Plan:
    """What is tested, as arrays; derived from the specs and the parameters, never stored."""

    stat_K: Ints
    """Index of the statistic that the process reads."""
    detector_K: Ints
    rung_K: Ints
    direction_K: Floats
    """+1 where high is bad, -1 where low is bad."""
    factor_K: Floats
    """Line as a multiple of the baseline; NaN where the line is absolute."""
    level_K: Floats
    """Absolute line, or the least value a relative line may have."""
    margin_Q: Floats
    """Distance of the nearest relative line from the baseline, as a share of it; infinite without one."""
    per_source_K: Bools
    """One process per source instead of one for all."""
    all_of_D: Bools
    """True where every statistic of the detector must pass its line, False where one is enough."""
    agreement_D: Bools
    """True where FAIL needs a second detector."""
    witness_D: Bools
    """Detectors that count as a second signal once they have warned."""
    lambdas_L: Floats
    clip: float
    log_threshold_D: Floats
    """log(1 / alpha) of each detector; both rungs have the same."""
    smoothing: float
    rearm_records: int
    se_multiplier: float
    baseline_prompts: int
    baseline_completions: int
    baseline_records: int
    baseline_blocks: int

    @property
    def detectors(self) -> int:
        return len(self.all_of_D)

    @cached_property
    def groups(self) -> tuple[Ints, tuple[Ints, Ints], Floats]:
        """Processes of one detector and rung stand together: where each run of them starts, its detector and rung, and
        per process the logarithm of how many there are in its run."""
        pair = 2 * self.detector_K + self.rung_K
        starts = np.flatnonzero(np.concatenate([[True], pair[1:] != pair[:-1]]))
        size = np.diff(np.append(starts, len(pair)))
        return starts, (self.detector_K[starts], self.rung_K[starts]), np.log(np.repeat(size, size))


@dataclass(frozen=True)
class Arrays:
    """Everything that changes while N runs are folded. Functions here return new ones and never write into old."""

    sums: Floats
    """[N, S, Q, 9] sums over the blocks of the baseline."""
    done: Bools
    """[N, S, Q] the baseline is complete."""
    base: Floats
    """[N, S, Q] baseline mean; NaN until done."""
    se: Floats
    """[N, S, Q] its standard error (jackknife over blocks); NaN until done."""
    least: Floats
    """[N, S, Q] smallest block of the baseline; NaN until one was seen."""
    smooth: Floats
    """[N, S, Q] exponentially smoothed record means; NaN until seen."""
    wealth: Floats
    """[N, S, K, L] log R; processes that are not per source live in slot 0."""
    spent: Floats
    """[N, S, K] restart weight spent."""
    excess: Floats
    """[N, S, K] smoothed bet: above 0 the recent blocks are past the line; NaN until the first bet."""
    bets: Ints
    """[N, S, K] bets made."""
    raised: Bools
    """[N, D, 2] the rung has alarmed and has not been re-armed."""
    calm: Ints
    """[N, D] records in a row with the smoothed statistic inside the WARN line."""


def empty(plan: Plan, runs: int, sources: int, statistics: int) -> Arrays:
    """The arrays before the first record."""
    processes, sizes = len(plan.stat_K), len(plan.lambdas_L)
    return Arrays(
        sums=np.zeros((runs, sources, statistics, 9)),
        done=np.zeros((runs, sources, statistics), dtype=np.bool_),
        base=np.full((runs, sources, statistics), np.nan),
        se=np.full((runs, sources, statistics), np.nan),
        least=np.full((runs, sources, statistics), np.nan),
        smooth=np.full((runs, sources, statistics), np.nan),
        wealth=np.full((runs, sources, processes, sizes), LOG_ZERO),
        spent=np.zeros((runs, sources, processes)),
        excess=np.full((runs, sources, processes), np.nan),
        bets=np.zeros((runs, sources, processes), dtype=np.int64),
        raised=np.zeros((runs, plan.detectors, 2), dtype=np.bool_),
        calm=np.zeros((runs, plan.detectors), dtype=np.int64),
    )


def with_source(arrays: Arrays) -> Arrays:
    """The same arrays with room for one more source."""
    fills = dict.fromkeys(("base", "se", "least", "smooth", "excess"), np.nan)
    fills["wealth"] = LOG_ZERO
    grown: dict[str, Any] = {}
    for name in ("sums", "done", "base", "se", "least", "smooth", "wealth", "spent", "excess", "bets"):
        old = getattr(arrays, name)
        extra = np.full((old.shape[0], 1, *old.shape[2:]), fills.get(name, 0), dtype=old.dtype)
        grown[name] = np.concatenate([old, extra], axis=1)
    return dataclasses.replace(arrays, **grown)


def restart_weight(records: int, total: int | None) -> float:
    """Share of the restart weight that may be spent by the given record, in [0, 1).

    Known length: nine tenths evenly over the planned records, one tenth kept for a run that goes on longer.
    Unknown length: increments proportional to 1 / (t log^2 t).
    """

    def open_ended(t: int) -> float:
        return 1.0 - 1.0 / (1.0 + math.log1p(t))

    if total is None or total < 1:
        return open_ended(records)
    return 0.9 * min(records / total, 1.0) + 0.1 * open_ended(max(records - total, 0))


def unit(line: Floats, least: Floats, direction: Floats) -> Floats:
    """Length of a bet of -1: from the line down to the least block of the baseline, or to zero; > 0."""
    spared = np.where(direction > 0, np.clip(np.where(np.isnan(least), 0.0, least), 0.0, 0.5 * line), 0.0)
    return np.asarray(line - spared, dtype=np.float64)


def bet(z: Floats, line: Floats, unit_: Floats, direction: Floats, clip: float) -> Floats:
    """Signed distance of z past its line in units of ``unit_``, in [-1, clip]; NaN where something is missing."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.clip(direction * (z - line) / unit_, -1.0, clip)


def grow(log_wealth_L: Floats, log_weight: Floats, bet_: Floats, lambdas_L: Floats) -> Floats:
    """One bet: ``log((R + w)(1 + l b))``; shapes [..., L], [...], [...], [L]."""
    restarted: Floats = np.logaddexp(log_wealth_L, log_weight[..., None])
    return restarted + np.log1p(lambdas_L * bet_[..., None])


def log_evidence(log_wealth_L: Floats, spent: Floats) -> Floats:
    """log M of every process; 0 before the first bet."""
    peak = np.maximum(log_wealth_L.max(axis=-1), LOG_ZERO)
    mean = peak + np.log(np.mean(np.exp(log_wealth_L - peak[..., None]), axis=-1))
    with np.errstate(divide="ignore"):
        left = np.log(np.maximum(1.0 - spent, 0.0))
    return np.asarray(np.logaddexp(mean, left), dtype=np.float64)


def baseline_mean_se(sums: Floats) -> tuple[Floats, Floats]:
    """Weighted mean over the blocks and its standard error; sums is [..., 9], results [...].

    The error is the jackknife over blocks (blocks share no prompt), with n / (n - 1): for equal weights exactly
    s / sqrt(n), ddof 1. NaN with fewer than two blocks.
    """
    n, weight = sums[..., COUNT], sums[..., WEIGHT]
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = sums[..., WEIGHT_Z] / weight
        spread = sums[..., WEIGHT2_ZZ] - 2.0 * mean * sums[..., WEIGHT2_Z] + mean * mean * sums[..., WEIGHT2]
        se = np.sqrt(np.maximum(spread, 0.0) * n / (n - 1.0)) / weight
    return mean, np.where(n >= 2, se, np.nan)


def lines(plan: Plan, base_K: Floats, se_K: Floats) -> Floats:
    """Damage line of every process: the farthest of base x factor, base +- 6 SE and the least allowed level.

    ``base_K`` and ``se_K`` are [..., K]; NaN baselines give NaN lines, absolute lines need no baseline. A line that is
    not above zero (a base of zero, or 6 SE below a small one) is NaN: with that baseline the detector cannot speak.
    """
    absolute = np.isnan(plan.factor_K)
    scaled = base_K * np.where(absolute, 1.0, plan.factor_K)
    beyond = base_K + plan.direction_K * plan.se_multiplier * se_K
    upward = np.maximum(np.maximum(scaled, beyond), plan.level_K)
    downward = np.minimum(scaled, beyond)
    line = np.where(absolute, plan.level_K, np.where(plan.direction_K > 0, upward, downward))
    return np.where(line > 0, line, np.nan)


def source_lines(plan: Plan, arrays: Arrays, source: int) -> Floats:
    """[N, K] lines of one source."""
    return lines(plan, arrays.base[:, source][:, plan.stat_K], arrays.se[:, source][:, plan.stat_K])


@dataclass
class _Record:
    """Means of one record while its blocks come in."""

    z_sum: Floats
    z_count: Floats
    bet_sum: Floats
    bet_count: Floats
    sources: set[int]
    lines_and_units: dict[int, tuple[Floats, Floats]]
    """By source: they change only where a baseline is completed, after the last block of a record."""


def observe(
    plan: Plan,
    arrays: Arrays,
    blocks: list[tuple[int, Floats, float, float]],
    weight_by_now: float,
    *,
    only_baseline: bool = False,
) -> tuple[Arrays, Bools]:
    """Fold the blocks of one record, in order.

    ``blocks``: (source index, statistics [N, Q] with NaN for missing, prompts, completions). ``weight_by_now``: what
    ``restart_weight`` gives for this record. Returns the new arrays and which rungs alarm now, [N, D, 2].
    """
    copies: dict[str, Any] = {f.name: getattr(arrays, f.name).copy() for f in dataclasses.fields(arrays)}
    arrays = Arrays(**copies)
    now = _Record(
        z_sum=np.zeros_like(arrays.base),
        z_count=np.zeros_like(arrays.base),
        bet_sum=np.zeros_like(arrays.excess),
        bet_count=np.zeros_like(arrays.excess),
        sources=set(),
        lines_and_units={},
    )
    for source, z_NQ, prompts, completions in blocks:
        _feed_baseline(arrays, source, z_NQ, prompts, completions)
        if not only_baseline:
            _place_bets(plan, arrays, now, source, z_NQ, weight_by_now)
        seen_NQ = np.isfinite(z_NQ)
        now.z_sum[:, source] += np.where(seen_NQ, z_NQ, 0.0)
        now.z_count[:, source] += seen_NQ
        now.sources.add(source)
    for source in now.sources:
        _close_baseline(plan, arrays, source, now.z_count[:, source] > 0)
    if only_baseline:
        return arrays, np.zeros_like(arrays.raised)
    _smooth(arrays.smooth, now.z_sum, now.z_count, plan.smoothing)
    _smooth(arrays.excess, now.bet_sum, now.bet_count, plan.smoothing)
    return arrays, _alarms(plan, arrays, now.bet_count > 0)


def _feed_baseline(arrays: Arrays, source: int, z_NQ: Floats, prompts: float, completions: float) -> None:
    feed = np.isfinite(z_NQ) & ~arrays.done[:, source]
    if not feed.any():
        return
    z = np.where(feed, z_NQ, 0.0)
    weight = max(prompts, 1.0)
    terms: tuple[float | Floats, ...] = (
        1.0, weight, weight * z, weight**2, weight**2 * z, weight**2 * z * z, prompts, completions,
    )  # fmt: skip
    for index, term in enumerate(terms):
        arrays.sums[:, source, :, index] += np.where(feed, term, 0.0)
    arrays.least[:, source] = np.where(feed, np.fmin(arrays.least[:, source], z), arrays.least[:, source])


def _close_baseline(plan: Plan, arrays: Arrays, source: int, seen_NQ: Bools) -> None:
    open_ = ~arrays.done[:, source] & seen_NQ
    if not open_.any():
        return
    sums = arrays.sums[:, source]
    sums[..., RECORDS] += open_
    enough = (sums[..., PROMPTS] >= plan.baseline_prompts) | (sums[..., COMPLETIONS] >= plan.baseline_completions)
    enough &= sums[..., COUNT] >= plan.baseline_blocks
    # A standard error from two or three blocks is worth nothing: rarer statistics wait for a fourth.
    late = (sums[..., RECORDS] >= plan.baseline_records) & (sums[..., COUNT] >= 4)
    mean, se = baseline_mean_se(sums)
    # Where 6 SE would still push the line beyond its nominal place, the baseline goes on to its last record.
    with np.errstate(invalid="ignore"):
        precise = np.isinf(plan.margin_Q) | (plan.se_multiplier * se <= plan.margin_Q * np.abs(mean))
    close = open_ & ((enough & precise) | late)
    arrays.base[:, source] = np.where(close, mean, arrays.base[:, source])
    arrays.se[:, source] = np.where(close, se, arrays.se[:, source])
    # A line needs a finished baseline, and the record that finishes it is not tested against itself.
    arrays.done[:, source] |= close


def _place_bets(plan: Plan, arrays: Arrays, now: _Record, source: int, z_NQ: Floats, weight_by_now: float) -> None:
    z = z_NQ[:, plan.stat_K]
    if source not in now.lines_and_units:
        line = source_lines(plan, arrays, source)
        least = np.where(np.isnan(plan.factor_K), 0.0, arrays.least[:, source][:, plan.stat_K])
        now.lines_and_units[source] = line, unit(line, least, plan.direction_K)
    b = bet(z, *now.lines_and_units[source], plan.direction_K, plan.clip)
    placed = np.isfinite(b)
    if not placed.any():
        return
    b = np.where(placed, b, 0.0)
    # A process that is not per source lives in slot 0 whatever the source is.
    at = (slice(None), np.where(plan.per_source_K, source, 0), np.arange(len(plan.stat_K)))
    spent = arrays.spent[at]
    fresh = weight_by_now - spent
    log_weight = np.where(fresh > 0, np.log(np.where(fresh > 0, fresh, 1.0)), LOG_ZERO)
    old = arrays.wealth[at]
    new = np.maximum(grow(old, log_weight, b, plan.lambdas_L), LOG_ZERO)
    arrays.wealth[at] = np.where(placed[..., None], new, old)
    arrays.spent[at] = np.where(placed, np.maximum(spent, weight_by_now), spent)
    arrays.bets[at] += placed
    now.bet_sum[at] += b
    now.bet_count[at] += placed


def _smooth(into: Floats, total: Floats, count: Floats, smoothing: float) -> None:
    seen = count > 0
    value = total / np.where(seen, count, 1.0)
    moved = np.where(np.isnan(into), value, into + smoothing * (value - into))
    np.copyto(into, moved, where=seen)


def detector_evidence(plan: Plan, arrays: Arrays) -> tuple[Floats, Bools, Bools]:
    """Evidence of every detector and rung, whether the recent blocks agree, and whether it ever bet.

    Returns log evidence minus its threshold [N, D, 2] (0 and above alarms), the gate [N, D, 2] (the smoothed
    statistic is past the line too; only looked at where the evidence is 0 and above) and has-bet [N, D, 2].
    """
    runs, sources = arrays.spent.shape[:2]
    log_m = log_evidence(arrays.wealth, arrays.spent)  # [N, S, K]
    slots = np.arange(sources)
    # Slot s of a per-source process answers for a share 1 / ((s + 1)(s + 2)) of its error rate; these sum to 1.
    share = np.where(plan.per_source_K[None, :], np.log((slots + 1.0) * (slots + 2.0))[:, None], 0.0)
    margin = log_m - plan.log_threshold_D[plan.detector_K] - share[None]
    past = arrays.excess > 0  # False where nothing was bet yet: NaN
    bet_made = arrays.bets > 0
    # Most of the time nothing is near an alarm: the maxima of all detectors at once, and the rest where it matters.
    starts, owner, members = plan.groups
    best = np.where(bet_made, margin - members, LOG_ZERO).max(axis=1)
    evidence = np.full((runs, plan.detectors, 2), LOG_ZERO)
    has_bet = np.zeros((runs, plan.detectors, 2), dtype=np.bool_)
    gate = np.zeros((runs, plan.detectors, 2), dtype=np.bool_)
    evidence[:, owner[0], owner[1]] = np.maximum.reduceat(best, starts, axis=1)
    has_bet[:, owner[0], owner[1]] = np.logical_or.reduceat(bet_made.any(axis=1), starts, axis=1)
    ends = np.append(starts[1:], len(plan.stat_K))
    for detector, rung, start, end in zip(*owner, starts, ends, strict=True):
        mine = slice(start, end)
        if plan.all_of_D[detector]:
            # Every statistic that was measured must have passed: the weakest one speaks.
            used = bet_made[:, :, mine]
            parts = np.where(used, margin[:, :, mine], np.inf)
            evidence[:, detector, rung] = np.where(used.any(axis=(1, 2)), parts.min(axis=(1, 2)), LOG_ZERO)
            gate[:, detector, rung] = np.where(used, past[:, :, mine], True).all(axis=(1, 2)) & used.any(axis=(1, 2))
        elif (evidence[:, detector, rung] >= 0).any():
            # The average of e-processes is one, but the maximum is not: each statistic gets an equal share (above).
            parts = np.where(bet_made[:, :, mine], margin[:, :, mine] - math.log(end - start), LOG_ZERO)
            speaker = parts.reshape(runs, -1).argmax(axis=1)
            gate[:, detector, rung] = past[:, :, mine].reshape(runs, -1)[np.arange(runs), speaker]
    return evidence, gate, has_bet


def _alarms(plan: Plan, arrays: Arrays, bet_now: Bools) -> Bools:
    """Which rungs fire now; writes ``raised`` and ``calm`` and empties the wealth of what is re-armed."""
    evidence, gate, _ = detector_evidence(plan, arrays)
    alarm: Bools = np.asarray((evidence >= 0) & gate)
    warned = arrays.raised[:, :, WARN] | alarm[:, :, WARN]
    witness: Bools = np.asarray((warned & plan.witness_D).any(axis=1))
    alarm[:, :, FAIL] &= ~plan.agreement_D | witness[:, None]
    alarm[:, :, WARN] |= alarm[:, :, FAIL]
    fire = np.logical_and(alarm, np.logical_not(arrays.raised))
    arrays.raised[:] |= alarm
    fire[:, :, WARN] &= ~fire[:, :, FAIL]

    spoke = np.zeros_like(arrays.calm, dtype=np.bool_)
    inside = np.ones_like(spoke)
    past = arrays.excess > 0  # False where nothing was bet yet: NaN
    starts, (detector, rung), _ = plan.groups
    for d, bet_made in zip(detector, np.logical_or.reduceat(bet_now.any(axis=1), starts, axis=1).T, strict=True):
        spoke[:, d] |= bet_made
    outside = np.logical_or.reduceat(past.any(axis=1), starts, axis=1)
    inside[:, detector[rung == WARN]] = ~outside[:, rung == WARN]
    arrays.calm[:] = np.where(spoke, np.where(inside, arrays.calm + 1, 0), arrays.calm)
    rearm = (arrays.calm >= plan.rearm_records) & arrays.raised.any(axis=2)
    if rearm.any():
        arrays.raised[rearm] = False
        for k in range(len(plan.stat_K)):
            arrays.wealth[rearm[:, plan.detector_K[k]], :, k] = LOG_ZERO
    return fire
