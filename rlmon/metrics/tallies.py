"""What the baseline of a collision is taken from: how many completions of which prompt have which code."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

MAX_PARTS = 4
"""Of one block: where it has more prompts, neighbours are counted together. The eight blocks of a source are 32 parts
at most, and a baseline has room for 64."""


def parts_of_prompts(block_P: NDArray[np.int64]) -> NDArray[np.int64]:
    """The part of each prompt, [P] from 0; ``block_P`` is the block of each, in ascending order."""
    blocks = int(block_P.max()) + 1 if block_P.size else 0
    prompts_K = np.bincount(block_P, minlength=blocks)
    parts_K = np.minimum(prompts_K, MAX_PARTS)
    place_P = np.arange(block_P.size) - (np.cumsum(prompts_K) - prompts_K)[block_P]
    first_K = np.cumsum(parts_K) - parts_K
    return np.asarray(first_K[block_P] + place_P * parts_K[block_P] // prompts_K[block_P], dtype=np.int64)


def tallies_of_blocks(
    value_B: NDArray[np.int64],
    part_B: NDArray[np.int64],
    block_of_part: NDArray[np.int64],
    wanted_K: NDArray[np.bool_],
    keep_B: NDArray[np.bool_] | None = None,
) -> list[list[dict[str, int]]]:
    """Per block one mapping per part from code to completions; empty for blocks that are not wanted.

    Rows with ``keep_B`` false are counted nowhere.
    """
    counted_B = wanted_K[block_of_part[part_B]]
    if keep_B is not None:
        counted_B &= keep_B
    found: list[dict[str, int]] = [{} for _ in block_of_part]
    pairs, counts = np.unique(np.stack([part_B[counted_B], value_B[counted_B]]), axis=1, return_counts=True)
    for part, value, count in zip(*pairs.tolist(), counts.tolist(), strict=True):
        found[part][str(value)] = count
    of_block: list[list[dict[str, int]]] = [[] for _ in wanted_K]
    for block, tally in zip(block_of_part.tolist(), found, strict=True):
        if wanted_K[block]:
            of_block[block].append(tally)
    return of_block
