"""The arithmetic of the detectors: baselines, damage lines, bets and evidence, for many runs at once.

Every function works on arrays whose leading axis N is the run. The fold over the records of one run calls them with
N = 1, ``benchmarks/alarm_price.py`` with N = 500: the price of an alarm is measured on the code that raises it.

Axes: N runs, S sources (strata of the data mix), Q statistics of a block, K processes (one per detector, rung and
statistic), L bet sizes, D detectors, 2 rungs (warn, fail).

Method: a weighted-restart betting e-process (Shin, Ramdas and Rinaldo, arXiv:2203.03532; Waudby-Smith and Ramdas,
arXiv:2010.09686). For a block with statistic Z, damage line z* and unit u,

    b = clip(+-(Z - z*) / u, -1, a)
    R(l) <- (R(l) + w) (1 + l b)          for every bet size l in (0, 1)
    M = mean over l of R(l) + the restart weight not yet spent

While E[b | past] <= 0, M is a nonnegative supermartingale that starts at 1, so P(M ever reaches 1/alpha) <= alpha
(Ville), whatever the autocorrelation.

What is healthy and where damage begins are two values. A rung tolerates a share of the base: FAIL .8 of its effective
number, WARN none. Only the base's *estimate* is known, so the limit h of what is tolerated is taken from the far end of
its confidence interval, base x exp(+-t SE/base), and the line z* is never inside of it. Between h and z* nothing is
promised: that room pays for larger bets.

* Bad when high: u = h, and at least .75 z*. Blocks below z* - u count as that much, and
  E[max(Z, z* - u)] <= E[Z] + z* - u <= z* as long as E[Z] <= h: for any spread of Z >= 0, whatever the baseline's was.
* Absolute lines are exact on the line: u = z*, so that b >= -1 holds by itself.
* Bad when low: a block counts for at most a cap c, and u = c - z*. Truncation is concave, so that with
  E[min(Z, 2 base)] >= h any c of 2 base z* / h or more keeps E[min(Z, c)] >= z*; c is once more wider by the base's
  error, since the cap at twice the base itself takes from the mean of a wide statistic, and at most 2 base.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlmon.baseline import complete
from rlmon.detectors.catalog import HEALTHY_SHARE
from rlmon.statistics import t_quantile

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]

LOG_ZERO = -1e12
"""Logarithm of zero wealth: finite, so that states are plain JSON, and far below anything that is ever reached."""

WARN, FAIL = 0, 1

TOLERATED = (1.0, HEALTHY_SHARE)
"""By rung: the share of its base, in the direction of damage, at which a statistic is still promised no alarm."""
LEAST_UNIT = 0.75
"""Least unit of a bet where high is bad, as a share of the line: what is tolerated over the line, .6 / .8."""
LEAST_BLOCKS = 8
"""A baseline has at least this many blocks: fewer say nothing about its error."""
LEAST_GIVEN_BLOCKS = 4
"""Of a baseline that was given whole, and cannot wait for more."""

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
    base_confidence: float
    """One-sided confidence of the limit of what the base may be: 1 - alpha of the run."""

    @property
    def detectors(self) -> int:
        return len(self.all_of_D)

    @cached_property
    def tolerated_K(self) -> Floats:
        return np.array(TOLERATED)[self.rung_K]

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
    """[N, S, Q] baseline; NaN until done."""
    se: Floats
    """[N, S, Q] its standard error by the jackknife; NaN until done."""
    reach: Floats
    """[N, S, Q] logarithmic distance from the base to its confidence limit, t SE / base; NaN until done."""
    smooth: Floats
    """[N, S, Q] exponentially smoothed record means; NaN until seen."""
    wealth: Floats
    """[N, S, K, L] log R; processes that are not per source live in slot 0."""
    spent: Floats
    """[N, S, K] restart weight spent."""
    excess: Floats
    """[N, S, K] smoothed distance past the line, in lines: above 0 the recent blocks are past it; NaN until the first
    bet."""
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
        reach=np.full((runs, sources, statistics), np.nan),
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
    fills = dict.fromkeys(("base", "se", "reach", "smooth", "excess"), np.nan)
    fills["wealth"] = LOG_ZERO
    grown: dict[str, Any] = {}
    for name in ("sums", "done", "base", "se", "reach", "smooth", "wealth", "spent", "excess", "bets"):
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


def pairs_mean_se(products_NBB: Floats, size_NB: Floats, record_B: Ints) -> tuple[Floats, Floats]:
    """Mean of a product kernel over the pairs of completions from different parts of one record, and its standard
    error, [N].

    A part is a set of completions (those of one prompt), a vector c of counts over codes; ``products_NBB`` holds
    c_i . c_j, ``size_NB`` the completions n_i and ``record_B`` the record that each part was sampled in. The mean is
    the U-statistic over the pairs i < j of one record, sum c_i . c_j / sum n_i n_j: unbiased for what a later block
    measures, which compares prompts of one record too, also where the prompts of one record resemble one another more
    than those of others (an ordered dataset). With P prompts a record it takes P - 1 times as many pairs as blocks of
    two. The error is the delete-one jackknife over parts. NaN where a part takes part in all of the pairs.
    """
    count = size_NB.shape[1]
    together_BB = (record_B[:, None] == record_B[None, :]) & ~np.eye(count, dtype=np.bool_)
    top_NB = (products_NBB * together_BB).sum(2)
    bottom_NB = size_NB * (size_NB @ together_BB)
    top, bottom = top_NB.sum(1), bottom_NB.sum(1)
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = top / bottom
        without = (top[:, None] - 2.0 * top_NB) / (bottom[:, None] - 2.0 * bottom_NB)
        deviation = without - without.mean(1, keepdims=True)
        return mean, np.sqrt((count - 1.0) / count * (deviation**2).sum(1))


def reach(mean: Floats, se: Floats, parts: Floats, confidence: float) -> Floats:
    """t SE / mean at the confidence, with parts - 1 degrees of freedom: 0 where SE is, NaN where it is not known."""
    quantile = np.full(np.shape(parts), np.nan)
    for count in np.unique(parts[np.isfinite(parts) & (parts >= 2)]):
        quantile[parts == count] = t_quantile(confidence, int(count) - 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        found = np.where(se == 0, 0.0 * quantile, quantile * se / np.abs(mean))
    return np.where(np.isfinite(found), found, np.nan)


def lines_and_units(plan: Plan, base_K: Floats, reach_K: Floats) -> tuple[Floats, Floats]:
    """Damage line of every process and the unit of its bets, both [..., K].

    NaN baselines give NaN, absolute lines need no baseline. A line that is not above zero (a base of zero) or not
    finite (a base whose error is out of all proportion) is NaN: with that baseline the detector cannot speak.
    """
    absolute = np.isnan(plan.factor_K)
    up = plan.direction_K > 0
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        limit = tolerated(plan, base_K, reach_K)
        nominal = base_K * np.where(absolute, 1.0, plan.factor_K)
        upward = np.maximum(np.maximum(nominal, limit), plan.level_K)
        line = np.where(absolute, plan.level_K, np.where(up, upward, np.minimum(nominal, limit)))
        line = np.where((line > 0) & np.isfinite(line), line, np.nan)
        most = 2.0 * base_K
        cap = np.minimum(most, most * line / limit * np.exp(reach_K))
        unit = np.where(up, np.where(absolute, line, np.maximum(limit, LEAST_UNIT * line)), cap - line)
    return line, unit


def tolerated(plan: Plan, base_K: Floats, reach_K: Floats) -> Floats:
    """The limit of what every process tolerates, [..., K]: the far end of the base's interval, in the bad direction,
    over (under) the share that its rung lets go; NaN for absolute lines."""
    limit = base_K * np.exp(plan.direction_K * reach_K) * plan.tolerated_K**-plan.direction_K
    return np.where(np.isnan(plan.factor_K), np.nan, limit)


def source_lines(plan: Plan, arrays: Arrays, source: int) -> tuple[Floats, Floats]:
    """[N, K] lines and units of one source."""
    return lines_and_units(plan, arrays.base[:, source][:, plan.stat_K], arrays.reach[:, source][:, plan.stat_K])


Pairs = Callable[[int, int], tuple[Floats, Floats, Floats] | None]
"""Of a source and a statistic whose baseline closes: mean, standard error and number of independent parts, [N] each,
over all pairs of its parts in one record; ``None`` where only the blocks are known."""


@dataclass
class _Record:
    """Means of one record while its blocks come in."""

    z_sum: Floats
    z_count: Floats
    past_sum: Floats
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
    pairs: Pairs | None = None,
    only_baseline: bool = False,
    given: bool = False,
) -> tuple[Arrays, Bools]:
    """Fold the blocks of one record, in order.

    ``blocks``: (source index, statistics [N, Q] with NaN for missing, prompts, completions). ``weight_by_now``: what
    ``restart_weight`` gives for this record. ``only_baseline``: nothing is bet. ``given``: the blocks are
    the whole baseline of their sources. Returns the new arrays and which rungs alarm now, [N, D, 2].
    """
    copies: dict[str, Any] = {f.name: getattr(arrays, f.name).copy() for f in dataclasses.fields(arrays)}
    arrays = Arrays(**copies)
    now = _Record(
        z_sum=np.zeros_like(arrays.base),
        z_count=np.zeros_like(arrays.base),
        past_sum=np.zeros_like(arrays.excess),
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
        _close_baseline(plan, arrays, source, now.z_count[:, source] > 0, pairs, given=given)
    if only_baseline:
        return arrays, np.zeros_like(arrays.raised)
    _smooth(arrays.smooth, now.z_sum, now.z_count, plan.smoothing)
    _smooth(arrays.excess, now.past_sum, now.bet_count, plan.smoothing)
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


def _close_baseline(
    plan: Plan, arrays: Arrays, source: int, seen_NQ: Bools, pairs: Pairs | None, *, given: bool
) -> None:
    open_ = ~arrays.done[:, source] & seen_NQ
    if not open_.any():
        return
    sums = arrays.sums[:, source]
    sums[..., RECORDS] += open_
    whole = complete(sums[..., PROMPTS], sums[..., COMPLETIONS], sums[..., RECORDS])
    enough = (sums[..., COUNT] >= LEAST_GIVEN_BLOCKS) if given else whole & (sums[..., COUNT] >= LEAST_BLOCKS)
    close = open_ & enough
    if not close.any():
        return
    mean, se = baseline_mean_se(sums)
    parts = sums[..., COUNT].copy()
    for q in np.flatnonzero(close.any(axis=0)):
        found = None if pairs is None else pairs(source, int(q))
        if found is not None:
            mean[:, q], se[:, q], parts[:, q] = found
    for into, value in (
        (arrays.base, mean), (arrays.se, se), (arrays.reach, reach(mean, se, parts, plan.base_confidence)),
    ):  # fmt: skip
        into[:, source] = np.where(close, value, into[:, source])
    # A line needs a finished baseline, and the record that finishes it is not tested against itself.
    arrays.done[:, source] |= close


def _place_bets(plan: Plan, arrays: Arrays, now: _Record, source: int, z_NQ: Floats, weight_by_now: float) -> None:
    z = z_NQ[:, plan.stat_K]
    if source not in now.lines_and_units:
        now.lines_and_units[source] = source_lines(plan, arrays, source)
    line, unit = now.lines_and_units[source]
    b = bet(z, line, unit, plan.direction_K, plan.clip)
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
    # The smoothed statistic is compared with the line as it is, but for what one block may do to it.
    past = bet(z, line, line, plan.direction_K, plan.clip)
    now.past_sum[at] += np.where(placed, np.where(plan.direction_K > 0, past, b * unit / line), 0.0)
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
    # The weighted average of e-processes is one: those of a detector's statistics, and of its sources where it has one
    # each. (Their maximum is not.)
    starts, owner, members = plan.groups
    average = np.logaddexp.reduce(np.where(bet_made, margin - members, LOG_ZERO), axis=1)
    evidence = np.full((runs, plan.detectors, 2), LOG_ZERO)
    has_bet = np.zeros((runs, plan.detectors, 2), dtype=np.bool_)
    gate = np.zeros((runs, plan.detectors, 2), dtype=np.bool_)
    evidence[:, owner[0], owner[1]] = np.logaddexp.reduceat(average, starts, axis=1)
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
            # The gate is that of the statistic with most of the evidence.
            parts = np.where(bet_made[:, :, mine], margin[:, :, mine], LOG_ZERO)
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
