"""Collision statistics: C = mean k(y, y') over pairs of completions, with k in [0, 1].

1/C is the similarity-sensitive effective number of Leinster and Cobbold (2012) at order 2, the Hill number q=2 when k
is 0 or 1. Every mean is over *different* completions, so it is unbiased for two independent draws. It is kept as
(sum of k, number of pairs), which adds over blocks and ranks.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlmon.statistics import Floats, hashed

PAIRS = np.dtype([(name, "f8") for name in ("across_sum", "across_pairs", "within_sum", "within_pairs")])
"""Sums of k and numbers of pairs; ``across`` pairs have different prompts, ``within`` one."""
PairSums = NDArray[Any]
"""[K] of ``PAIRS``: by block."""


def _pair_sums(all_sum: Floats, all_pairs: Floats, within_sum: Floats, within_pairs: Floats) -> PairSums:
    found = np.zeros(all_sum.size, dtype=PAIRS)
    found["within_sum"], found["within_pairs"] = within_sum, within_pairs
    # The difference of two large sums can leave -1e-16 where it should leave 0.
    found["across_sum"], found["across_pairs"] = np.maximum(all_sum - within_sum, 0.0), all_pairs - within_pairs
    return found


def pairs_of(counts: NDArray[Any]) -> NDArray[np.float64]:
    """n (n - 1) / 2, elementwise."""
    wide = np.asarray(counts, dtype=np.float64)
    return wide * (wide - 1.0) / 2.0


def _weighted(code: NDArray[np.int64], weight: NDArray[np.float64], least: int) -> NDArray[np.float64]:
    return np.bincount(code, weights=weight, minlength=least).astype(np.float64)


def equality_pairs(
    value_B: NDArray[np.int64],
    prompt_B: NDArray[np.int64],
    block_B: NDArray[np.int64],
    blocks: int,
    keep_B: NDArray[np.bool_] | None = None,
) -> PairSums:
    """Sums of the 0/1 kernel "same value" over all pairs inside each block, from counts (no pair is enumerated).

    ``prompt_B`` and ``block_B`` are codes from 0; a prompt lies in one block. Rows with ``keep_B`` false take part in
    no pair. Agreeing pairs of a block are sum_v n_v (n_v - 1) / 2; those of its prompts are taken off for ``across``.
    """
    if keep_B is not None:
        value_B, prompt_B, block_B = value_B[keep_B], prompt_B[keep_B], block_B[keep_B]
    if value_B.size == 0:
        return np.zeros(blocks, dtype=PAIRS)
    values, value_code = np.unique(value_B, return_inverse=True)
    prompts = int(prompt_B.max()) + 1
    block_of_prompt = np.zeros(prompts, dtype=np.int64)
    block_of_prompt[prompt_B] = block_B
    in_block = np.bincount(block_B, minlength=blocks)
    in_prompt = np.bincount(prompt_B, minlength=prompts)
    all_pairs = pairs_of(in_block)
    within_pairs = _weighted(block_of_prompt, pairs_of(in_prompt), blocks)

    def agreeing(owner: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        key, count = np.unique(owner * len(values) + value_code, return_counts=True)
        return key // len(values), pairs_of(count)

    owner, agree = agreeing(block_B)
    all_sum = _weighted(owner, agree, blocks)
    owner, agree = agreeing(prompt_B)
    within_sum = _weighted(block_of_prompt[owner], agree, blocks)
    return _pair_sums(all_sum, all_pairs, within_sum, within_pairs)


_WEIGHT_BITS = 31
_WEIGHT_ONE = float(1 << _WEIGHT_BITS)


def overlap_sums(
    owner_N: NDArray[np.int64],
    bucket_N: NDArray[np.int64],
    weight_N: NDArray[np.float64],
    owners: int,
    buckets: int,
) -> NDArray[np.float64]:
    """sum over all pairs of rows of one owner of sum_b min(h(b), h'(b)), exactly, [owners].

    Each entry is one non-zero h(b), in [0, 1], of one row; entries of one row have different buckets. In ascending
    order x_0 <= x_1 <= ... of the m weights in a bucket, sum over pairs of min = sum_r x_r (m - 1 - r): one sort
    replaces the enumeration of pairs. Weights are rounded to 2^-31.
    """
    if owner_N.size == 0:
        return np.zeros(owners)
    cells = owner_N * buckets + bucket_N
    if owners * buckets >= 1 << _WEIGHT_BITS:
        # Too many possible cells to stand above the weight bits: number those that occur.
        occurring, cells = np.unique(cells, return_inverse=True)
        owner_of_cell = occurring // buckets
    else:
        owner_of_cell = None
    packed = cells << (_WEIGHT_BITS + 1)
    packed |= np.rint(weight_N * _WEIGHT_ONE).astype(np.int64)
    packed.sort()
    group = packed >> (_WEIGHT_BITS + 1)
    starts = np.flatnonzero(np.concatenate([[True], group[1:] != group[:-1]]))
    sizes = np.diff(np.concatenate([starts, [group.size]]))
    above = np.repeat(starts + sizes - 1, sizes) - np.arange(group.size)
    contribution = (packed & ((1 << (_WEIGHT_BITS + 1)) - 1)) * (above / _WEIGHT_ONE)
    owner = group // buckets if owner_of_cell is None else owner_of_cell[group]
    return _weighted(owner, contribution, owners)


def overlap_pairs(
    row_N: NDArray[np.int64],
    bucket_N: NDArray[np.int64],
    weight_N: NDArray[np.float64],
    prompt_B: NDArray[np.int64],
    block_B: NDArray[np.int64],
    blocks: int,
    buckets: int,
) -> PairSums:
    """Sums of the overlap kernel k = sum_b min(h(b), h'(b)) over all pairs inside each block.

    Rows without any entry take part in no pair. Same layout as :func:`equality_pairs`.
    """
    present = np.zeros(prompt_B.size, dtype=bool)
    present[row_N] = True
    prompts = int(prompt_B.max()) + 1 if prompt_B.size else 0
    block_of_prompt = np.zeros(prompts, dtype=np.int64)
    block_of_prompt[prompt_B] = block_B
    all_sum = overlap_sums(block_B[row_N], bucket_N, weight_N, blocks, buckets)
    prompt_sum = overlap_sums(prompt_B[row_N], bucket_N, weight_N, prompts, buckets)
    within_sum = _weighted(block_of_prompt, prompt_sum, blocks)
    all_pairs = pairs_of(np.bincount(block_B[present], minlength=blocks))
    in_prompt = pairs_of(np.bincount(prompt_B[present], minlength=prompts))
    within_pairs = _weighted(block_of_prompt, in_prompt, blocks)
    return _pair_sums(all_sum, all_pairs, within_sum, within_pairs)


def sampled_pairs(
    prompt_B: NDArray[np.int64], limit: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """At most ``limit`` pairs of rows from different prompts and as many of one prompt: ``(i, j)`` across, then within.

    All pairs where there are no more than ``limit`` of the kind, otherwise draws by arithmetic: each kind uniform over
    its pairs. Uses no random number generator; row order decides, so sort rows first.
    """
    rows = prompt_B.size
    order = np.argsort(prompt_B, kind="stable")
    starts = np.flatnonzero(np.concatenate([[True], np.diff(prompt_B[order]) != 0])) if rows else np.zeros(0, np.int64)
    sizes = np.diff(np.concatenate([starts, [rows]])) if rows else np.zeros(0, np.int64)
    pairs = pairs_of(sizes)
    empty = np.zeros(0, dtype=np.int64)
    ticks = np.arange(2 * limit, dtype=np.uint64)

    def below(salt: int, bound: Any) -> NDArray[np.int64]:
        return (hashed(ticks, salt) % np.asarray(bound, dtype=np.uint64)).astype(np.int64)

    total_within = int(pairs.sum())
    if total_within <= limit:
        # One prompt size at a time, all prompts of that size at once.
        parts = [np.zeros((2, 0), dtype=np.int64)]
        for size in np.unique(sizes):
            inner = np.stack(np.triu_indices(int(size), 1))
            parts.append((inner[:, None, :] + starts[sizes == size][None, :, None]).reshape(2, -1))
        within = np.concatenate(parts, axis=1)
    else:
        chosen = np.searchsorted(np.cumsum(pairs), below(0, total_within), side="right")[:limit]
        size = sizes[chosen]
        first = (hashed(ticks[:limit], 1) % size.astype(np.uint64)).astype(np.int64)
        step = (hashed(ticks[:limit], 2) % (size - 1).astype(np.uint64)).astype(np.int64)
        within = np.stack([starts[chosen] + first, starts[chosen] + (first + 1 + step) % size])
    total_across = rows * (rows - 1) // 2 - total_within
    if total_across <= 0:
        across_i, across_j = empty, empty
    elif rows * (rows - 1) // 2 <= 2 * limit:
        i, j = np.triu_indices(rows, 1)
        apart = prompt_B[order[i]] != prompt_B[order[j]]
        across_i, across_j = i[apart][:limit], j[apart][:limit]
    else:
        i, j = below(3, rows), below(4, rows)
        apart = prompt_B[order[i]] != prompt_B[order[j]]
        across_i, across_j = i[apart][:limit], j[apart][:limit]
    return order[across_i], order[across_j], order[within[0]], order[within[1]]
