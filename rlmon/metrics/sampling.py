"""Which completion tokens a bounded measurement looks at, and how many tokens each of them stands for."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

LEAST_ROWS, WANTED_ROWS, WANTED_TOKENS = 2, 8, 64
"""Rows that are looked at where the budget holds fewer whole ones: 8 as long as each then has 64 tokens, since rows
differ more than tokens of one row; 2 in any case, since a single row has no standard error."""


class TokenSample(NamedTuple):
    """A sample of the tokens of B completions of up to T tokens."""

    chosen_BT: NDArray[np.bool_]
    """The sampled tokens, at most ``max_tokens``."""
    weight_B: NDArray[np.float64]
    """Tokens that one sampled token of the row stands for: 1 where all are taken, 0 where the row has none in it."""


def sample_tokens(mask_BT: NDArray[Any], identity_B: Sequence[tuple[int, int]], max_tokens: int) -> TokenSample:
    """At most ``max_tokens`` of the tokens in ``mask_BT``, with weights under which sums over the sample are unbiased
    (Horvitz-Thompson) for sums over all of them.

    Everything where that fits. Otherwise two stages: rows with probability min(1, c x tokens) without replacement,
    then tokens evenly spread over each chosen row, from a random first one. A row's KL grows with its length, so a
    probability that does too leaves little variance; rows taken whole while they fit would be the short ones. The
    number of rows is fixed, and so sum(weight) is the number of all tokens and the weighted mean per token (Hajek) is
    the Horvitz-Thompson one.

    ``identity_B`` is (round, global row) of each row. The draw is a hash of it and depends on nothing else: no random
    state, the same in a replay, independent of what the rows say and of their order. ``max_tokens`` is at least 1.
    """
    mask_BT = np.asarray(mask_BT, dtype=bool)
    tokens_B = mask_BT.sum(axis=1)
    if tokens_B.sum() <= max_tokens:
        return TokenSample(mask_BT, (tokens_B > 0).astype(np.float64))
    filled = np.flatnonzero(tokens_B)
    digests = [hashlib.blake2b(struct.pack("<qq", *identity_B[int(row)]), digest_size=16).digest() for row in filled]
    place = np.argsort([int.from_bytes(digest[:8], "little") for digest in digests], kind="stable")
    filled, digests = filled[place], [digests[i] for i in place]
    share = inclusion(tokens_B[filled], _rows_within(tokens_B[filled], max_tokens))
    ends = np.floor(np.round(np.cumsum(share), 9) + _uniform(hashlib.blake2b(b"".join(digests)).digest()))
    picked = np.flatnonzero(np.diff(ends, prepend=0.0) > 0)

    chosen_BT = np.zeros_like(mask_BT)
    weight_B = np.zeros(len(tokens_B))
    for i, most in zip(picked, _capped(tokens_B[filled[picked]], max_tokens), strict=True):
        row, tokens = filled[i], int(tokens_B[filled[i]])
        at = np.flatnonzero(mask_BT[row])
        spread = (np.arange(most) + _uniform(digests[i][8:])) * (tokens / most)
        chosen_BT[row, at[np.minimum(spread.astype(np.int64), tokens - 1)]] = True
        weight_B[row] = tokens / (share[i] * most)
    return TokenSample(chosen_BT, weight_B)


def inclusion(tokens_B: NDArray[Any], rows: int) -> NDArray[np.float64]:
    """min(1, c x tokens) with c such that the sum is ``rows``; ``tokens_B`` above 0, ``rows`` at most as many."""
    share = np.ones(len(tokens_B))
    open_B = np.ones(len(tokens_B), dtype=bool)
    while open_B.any():
        share[open_B] = (rows - np.count_nonzero(~open_B)) * tokens_B[open_B] / tokens_B[open_B].sum()
        full = open_B & (share >= 1.0)
        if not full.any():
            break
        share[full] = 1.0
        open_B &= ~full
    return share


def _rows_within(tokens_B: NDArray[Any], max_tokens: int) -> int:
    """The most rows that hold ``max_tokens`` tokens on average, but some in any case where there are as many."""
    least = max(LEAST_ROWS, min(WANTED_ROWS, max_tokens // WANTED_TOKENS))
    low, high = min(least, len(tokens_B), max_tokens), len(tokens_B)
    while low < high:
        middle = (low + high + 1) // 2
        if float(inclusion(tokens_B, middle) @ tokens_B) <= max_tokens:
            low = middle
        else:
            high = middle - 1
    return low


def _capped(tokens_b: NDArray[Any], max_tokens: int) -> list[int]:
    """How many tokens of each row are taken: all of them, or the same number of each where they do not fit."""
    taken, left = np.zeros(len(tokens_b), dtype=np.int64), max_tokens
    order = np.argsort(tokens_b, kind="stable")
    for done, i in enumerate(order):
        taken[i] = min(int(tokens_b[i]), left // (len(order) - done))
        left -= int(taken[i])
    return [int(count) for count in taken]


def _uniform(digest: bytes) -> float:
    """A number in [0, 1) from the first 8 bytes of a hash."""
    return (int.from_bytes(digest[:8], "little") >> 11) / 2.0**53
