"""Statistics that more than one room needs: one copy of each, over arrays, without SciPy."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


# -- ratios, means and quantiles ---------------------------------------------------------------------------------------


def ratio(top: Any, bottom: Any) -> Floats:
    """``top / bottom``, elementwise, with NaN where there is nothing to divide by."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(bottom > 0, top / bottom, np.nan)


class ByKey:
    """Sums over the entries of each key: ``keys`` [K] in ascending order, of the entries that ``mine_N`` takes, whose
    places in it are ``at``."""

    def __init__(self, key_N: Ints, mine_N: Bools | slice = slice(None)) -> None:
        self._mine = mine_N
        self.keys, self.at = np.unique(key_N[mine_N], return_inverse=True)

    def total(self, values_N: NDArray[Any]) -> Floats:
        """The sums of a column, [K], or [K, M] of [N, M]."""
        mine = values_N[self._mine].T
        if mine.ndim > 1:
            return np.stack([self._sum(column) for column in mine], axis=1)
        return self._sum(mine)

    def _sum(self, values: NDArray[Any]) -> Floats:
        return np.bincount(self.at, weights=values, minlength=self.keys.size).astype(np.float64)

    def ratio(self, top_N: NDArray[Any], bottom_N: NDArray[Any]) -> Floats:
        """The ratios of the sums of two columns [K]."""
        return ratio(self.total(top_N), self.total(bottom_N))


def trailing_mean(values: ArrayLike, window: int) -> Floats:
    """Mean of each value and the ``window - 1`` before it (fewer at the start)."""
    given = np.asarray(values, dtype=np.float64)
    sums = np.concatenate([[0.0], np.cumsum(given)])
    ends = np.arange(1, given.size + 1)
    begins = np.maximum(0, ends - window)
    return np.asarray((sums[ends] - sums[begins]) / (ends - begins), dtype=np.float64)


def histogram_quantile(counts: NDArray[Any], edges: Floats, share: float) -> float | None:
    """The ``share`` quantile of a histogram with fixed edges, linear inside its bin; ``None`` for an empty one.

    The error is at most the width of the bin.
    """
    weights = np.asarray(counts, dtype=np.float64)
    total = float(weights.sum())
    if not total > 0.0:  # none of NaN either
        return None
    below = np.concatenate([[0.0], np.cumsum(weights)])
    target = share * total
    at = min(int(np.searchsorted(below, target, side="right")) - 1, weights.size - 1)
    while weights[at] <= 0.0:
        at -= 1
    inside = (target - below[at]) / weights[at]
    return float(edges[at] + min(1.0, max(0.0, inside)) * (edges[at + 1] - edges[at]))


# -- distributions over kinds ------------------------------------------------------------------------------------------


def effective_number(counts: ArrayLike) -> Any:
    """exp(-sum p ln p) of counts over the last axis (Hill q=1): between 1 and the number of non-empty bins; NaN where
    all are 0."""
    given = np.asarray(counts, dtype=np.float64)
    total = given.sum(axis=-1, keepdims=True)
    p = given / np.where(total > 0, total, 1.0)
    logs = np.log(np.where(p > 0, p, 1.0))
    # exp(0) of a single bin is 1; rounding may leave 1 - 1e-16.
    return np.where(total[..., 0] > 0, np.maximum(1.0, np.exp(-(p * logs).sum(axis=-1))), np.nan)


def effective_number_of_each(value_N: Ints, owner_N: Ints, owners: int) -> Floats:
    """The effective number of the values of each owner [owners] (plug-in): between 1 and its number of rows; NaN for an
    owner with fewer than two."""
    rows = np.bincount(owner_N, minlength=owners)
    if value_N.size == 0:
        return np.full(owners, np.nan)
    values, code = np.unique(value_N, return_inverse=True)
    key, count = np.unique(owner_N * len(values) + code, return_counts=True)
    owner = key // len(values)
    share = count / rows[owner]
    entropy = np.bincount(owner, weights=-share * np.log(share), minlength=owners)
    return np.where(rows >= 2, np.exp(entropy), np.nan)


def distinct_of_each(value_N: Ints, owner_N: Ints, owners: int) -> Ints:
    """How many different values each owner has [owners]."""
    values, code = np.unique(value_N, return_inverse=True)
    return np.bincount(np.unique(owner_N * len(values) + code) // max(1, len(values)), minlength=owners)


def js_distance(p_counts: ArrayLike, q_counts: ArrayLike) -> Any:
    """Jensen-Shannon distance of histograms over the last axis: the square root of the divergence in bits, in [0, 1];
    NaN where either is empty."""

    def shares(given: ArrayLike) -> Floats:
        counts = np.asarray(given, dtype=np.float64)
        total = counts.sum(axis=-1, keepdims=True)
        return np.asarray(counts / np.where(total > 0, total, np.nan))

    p, q = shares(p_counts), shares(q_counts)
    middle = 0.5 * (p + q)
    middle = np.where(middle > 0, middle, 1.0)

    def relative(a: Floats) -> Floats:
        return np.asarray((a * np.log2(np.where(a > 0, a, middle) / middle)).sum(axis=-1))

    return np.sqrt(np.clip(0.5 * relative(p) + 0.5 * relative(q), 0.0, 1.0))


# -- Beta --------------------------------------------------------------------------------------------------------------


def beta_cdf(x: ArrayLike, a: ArrayLike, b: ArrayLike) -> Any:
    """P(X < x) for X ~ Beta(a, b), elementwise, by the continued fraction of DLMF 8.17.22 (Lentz's method).

    ``a`` and ``b`` positive. Agrees with scipy.stats.beta.cdf to 1e-10.
    """
    x, a, b = np.broadcast_arrays(*(np.asarray(given, dtype=np.float64) for given in (x, a, b)))
    inside = np.clip(x, 1e-300, 1.0 - 1e-16)
    swap = inside > (a + 1.0) / (a + b + 2.0)  # the fraction converges fast only below the mean
    a, b = np.where(swap, b, a), np.where(swap, a, b)
    z = np.where(swap, 1.0 - inside, inside)
    log_beta = log_gamma(a) + log_gamma(b) - log_gamma(a + b)
    front = np.exp(a * np.log(z) + b * np.log1p(-z) - log_beta) / a
    tiny = 1e-300
    c = np.ones_like(a)
    d = 1.0 - (a + b) * z / (a + 1.0)
    d = 1.0 / np.where(np.abs(d) < tiny, tiny, d)
    h = d.copy()
    for m in range(1, 400):
        even = m * (b - m) * z / ((a + 2 * m - 1.0) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * z / ((a + 2 * m) * (a + 2 * m + 1.0))
        change = np.ones_like(a)
        for term in (even, odd):
            d = 1.0 + term * d
            d = 1.0 / np.where(np.abs(d) < tiny, tiny, d)
            c = 1.0 + term / c
            c = np.where(np.abs(c) < tiny, tiny, c)
            change = d * c
            h = h * change
        if not np.any(np.abs(change - 1.0) > 1e-14):
            break
    below = np.clip(front * h, 0.0, 1.0)
    return np.where(x <= 0.0, 0.0, np.where(x >= 1.0, 1.0, np.where(swap, 1.0 - below, below)))


_LANCZOS = (
    0.99999999999980993,
    676.5203681218851,
    -1259.1392167224028,
    771.32342877765313,
    -176.61502916214059,
    12.507343278686905,
    -0.13857109526572012,
    9.9843695780195716e-6,
    1.5056327351493116e-7,
)


def log_gamma(x: Floats) -> Floats:
    """ln of the gamma function of positive numbers, elementwise, to 1e-13 or so."""
    # Lanczos (g=7, n=9) on x + 1, so that small arguments need no reflection: log G(x) = log G(x + 1) - log x.
    total = np.full_like(x, _LANCZOS[0])
    for i, coefficient in enumerate(_LANCZOS[1:], start=1):
        total = total + coefficient / (x + i)
    t = x + 7.5
    return 0.5 * math.log(2.0 * math.pi) + (x + 0.5) * np.log(t) - t + np.log(total) - np.log(x)


# -- Student's t -------------------------------------------------------------------------------------------------------

LEAST_P = 1e-12
"""Smaller tails than this are told as this."""


def t_two_sided_p(t: float, degrees: int) -> float:
    """Chance that |T| of ``degrees`` (1 or more) degrees of freedom is ``abs(t)`` or more, 1e-12 at least.

    The finite sums of Abramowitz and Stegun 26.7.3 and 26.7.4: exact also at 1 to 4 degrees of freedom, where
    expansions in 1 / degrees are far off.
    """
    angle = math.atan2(abs(t), math.sqrt(degrees))
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = degrees % 2
    term = cosine if odd else 1.0
    total = term if degrees > 1 else 0.0
    for at in range(2 + odd, degrees - 1, 2):
        term *= cosine * cosine * (at - 1) / at
        total += term
    inside = 2.0 / math.pi * (angle + sine * total) if odd else sine * total
    return min(1.0, max(LEAST_P, 1.0 - inside))


@lru_cache(maxsize=1024)
def t_quantile(p: float, degrees: int) -> float:
    """The value below which T of ``degrees`` (1 or more) degrees of freedom lies with chance ``p``, by bisection.

    For .5 <= p <= 1 - 1e-10. Raises ``ValueError`` outside of that.
    """
    if not 0.5 <= p <= 1.0 - 1e-10 or degrees < 1:
        raise ValueError(f"t_quantile takes .5 <= p <= 1 - 1e-10 and 1 degree of freedom or more, got {p}, {degrees}.")
    tail = 2.0 * (1.0 - p)
    low, high = 0.0, 1.0
    while t_two_sided_p(high, degrees) > tail:
        low, high = high, 2.0 * high
    while high - low > 1e-12 * high:
        middle = 0.5 * (low + high)
        low, high = (middle, high) if t_two_sided_p(middle, degrees) > tail else (low, middle)
    return high


# -- codes -------------------------------------------------------------------------------------------------------------


def codes_of(*keys: NDArray[Any]) -> Ints:
    """Codes from 0 of the distinct tuples, in sorted order, so that the order of the rows does not matter. Several keys
    are of numbers; a single one may be of objects."""
    if len(keys) == 1:
        return np.asarray(np.unique(keys[0], return_inverse=True)[1], dtype=np.int64).reshape(-1)
    if not keys[0].size:
        return np.zeros(0, dtype=np.int64)
    order = np.lexsort(keys[::-1])
    change = np.zeros(order.size, dtype=np.int64)
    for key in keys:
        ordered = key[order]
        change[1:] |= ordered[1:] != ordered[:-1]
    codes = np.empty(order.size, dtype=np.int64)
    codes[order] = np.cumsum(change)
    return codes


def place_in_run(*keys: NDArray[Any], order_by: NDArray[Any] | None = None) -> Ints:
    """Place from 0 of each row among those with its keys, in the order of the rows or of ``order_by``."""
    order = np.lexsort(keys if order_by is None else (order_by, *keys))
    fresh = np.zeros(order.size, dtype=bool)
    fresh[:1] = True
    for key in keys:
        ordered = key[order]
        fresh[1:] |= ordered[1:] != ordered[:-1]
    start = np.maximum.accumulate(np.where(fresh, np.arange(order.size), 0))
    place = np.empty(order.size, dtype=np.int64)
    place[order] = np.arange(order.size) - start
    return place


# -- hashes of integers ------------------------------------------------------------------------------------------------

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX = np.uint64(0xBF58476D1CE4E5B9)


def splitmix64(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finalizer of splitmix64 (Steele et al. 2014): every bit of a value moves every bit of its hash. The numbers
    of a stream are the hashes of ``seed + i * GOLDEN``."""
    with np.errstate(over="ignore"):
        z = (values ^ (values >> np.uint64(30))) * _MIX
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(z ^ (z >> np.uint64(31)), dtype=np.uint64)


def hashed(values: NDArray[np.uint64], salt: int) -> NDArray[np.uint64]:
    """A hash of each value without the last round of ``splitmix64``: what is sampled by it is what logs were sampled
    by."""
    with np.errstate(over="ignore"):
        x = (values + np.uint64(salt + 1)) * GOLDEN
        x ^= x >> np.uint64(30)
        x *= _MIX
        x ^= x >> np.uint64(27)
    return np.asarray(x, dtype=np.uint64)
