"""Blocks of prompts: the units that detectors look at, and their statistics.

The rows are of one round, or of many at once: prompts are dealt inside of each stratum (a source, or a source of a
step).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlmon.keys import KEY_MASK, source_label
from rlmon.records import Block
from rlmon.statistics import Bools, Floats, Ints, codes_of, ratio

Tallies = list[dict[str, int]]

MAX_BLOCKS = 8
"""Of one stratum."""


def deal(stratum_B: Ints, prompt_B: Ints) -> tuple[Ints, Ints, Ints]:
    """Deal the P prompts of each stratum to min(8, P // 2) prompt-disjoint blocks, at least one.

    ``stratum_B`` are codes from 0, ``prompt_B`` keys: prompts are dealt in the order of their low 48 bits. Returns the
    block of each row, the prompt of each row as a code from 0 that lies in one block, and the block of each prompt.
    The order of the rows does not matter.
    """
    prompt_code_B = codes_of(stratum_B, prompt_B & KEY_MASK, prompt_B)
    prompts, first_row = np.unique(prompt_code_B, return_index=True)
    stratum_P = stratum_B[first_row]
    prompts_S = np.bincount(stratum_P)
    blocks_S = np.clip(prompts_S // 2, 1, MAX_BLOCKS)
    place_P = np.arange(prompts.size) - (np.cumsum(prompts_S) - prompts_S)[stratum_P]
    first_block_S = np.cumsum(blocks_S) - blocks_S
    block_P = first_block_S[stratum_P] + place_P * blocks_S[stratum_P] // prompts_S[stratum_P]
    return block_P[prompt_code_B], prompt_code_B, block_P


class Dealt:
    """Rows dealt to blocks, and the statistics that the blocks are being filled with.

    ``stratum_B`` are codes from 0, ``prompt_B`` keys. ``wants_tallies(statistic)`` says of each block [K] whether the
    baseline of its source still takes tallies of a statistic.
    """

    def __init__(self, stratum_B: Ints, prompt_B: Ints, wants_tallies: Callable[[str], Bools] | None = None) -> None:
        self.block_B, self.prompt_B, self._block_P = deal(stratum_B, prompt_B)
        self.count = int(self._block_P.max()) + 1
        self.stats: dict[str, Floats] = {}
        """By name, a value per block; NaN where it could not be computed."""
        self.tallies: dict[str, list[Tallies]] = {}
        """By name, of each block; empty where they are not wanted."""
        self.wants_tallies = wants_tallies

    @property
    def first_row(self) -> Ints:
        """A row of each block, the first of it."""
        first = np.zeros(self.count, dtype=np.int64)
        first[self.block_B[::-1]] = np.arange(self.block_B.size)[::-1]
        return first

    def by_block(self, value_B: NDArray[Any]) -> Floats:
        """The sum over the rows of each block."""
        return np.bincount(self.block_B, weights=value_B, minlength=self.count).astype(np.float64)

    def put(self, name: str, top: NDArray[Any], bottom: NDArray[Any]) -> None:
        """``top / bottom`` by block; absent where there is nothing to divide by."""
        self.stats[name] = np.where(np.isfinite(top), ratio(top, bottom), np.nan)

    def put_mean(self, name: str, value_B: Floats) -> None:
        """The mean of the rows of each block, of those whose value is known."""
        finite = np.isfinite(value_B)
        self.put(name, self.by_block(np.where(finite, value_B, 0.0)), self.by_block(finite))

    def tally(self, name: str, value_B: Ints, keep_B: Bools | None = None) -> None:
        """The tallies of a statistic, in blocks that have it and whose source wants them."""
        if self.wants_tallies is None:
            return
        wanted_K = np.isfinite(self.stats[name]) & self.wants_tallies(name)
        if not wanted_K.any():
            return
        part_P = parts_of_prompts(self._block_P)
        block_of_part = np.zeros(int(part_P.max()) + 1, dtype=np.int64)
        block_of_part[part_P] = self._block_P
        self.tallies[name] = tallies_of_blocks(value_B, part_P[self.prompt_B], block_of_part, wanted_K, keep_B)

    def prompts_and_rows(self, counted_B: Bools | slice = slice(None)) -> tuple[Ints, Ints]:
        """How many prompts and rows of each block are counted."""
        prompts = np.bincount(self._block_P[np.unique(self.prompt_B[counted_B])], minlength=self.count)
        return prompts, np.bincount(self.block_B[counted_B], minlength=self.count)


def no_tallies(source: str) -> Collection[str]:
    """No baseline takes tallies."""
    return ()


class SourceBlocks:
    """The blocks of some rows of a step's table, by source.

    ``tallied``: the statistics of a source, by its key, whose baseline still takes tallies.
    """

    def __init__(self, rows: NDArray[Any], tallied: Callable[[str], Collection[str]] = no_tallies) -> None:
        sources, stratum_B = np.unique(rows["source"].astype(np.int64), return_inverse=True)
        stratum_B = np.asarray(stratum_B, dtype=np.int64).reshape(-1)
        self.dealt = Dealt(stratum_B, rows["prompt"].astype(np.int64), self._wanted)
        self._source = [source_label(int(key)) for key in sources[stratum_B[self.dealt.first_row]]]
        self._tallied = tallied

    def _wanted(self, name: str) -> Bools:
        return np.array([name in self._tallied(source) for source in self._source])

    def blocks(self, counted_B: Bools | slice = slice(None)) -> list[Block]:
        """The blocks, with the prompts and completions that are counted."""
        dealt = self.dealt
        prompts, rows = dealt.prompts_and_rows(counted_B)
        return [
            Block(
                source=source,
                prompts=int(prompts[b]),
                completions=int(rows[b]),
                stats={name: float(values[b]) for name, values in dealt.stats.items() if np.isfinite(values[b])},
                tallies={name: found[b] for name, found in dealt.tallies.items() if found[b]},
            )
            for b, source in enumerate(self._source)
        ]


def by_round(rows: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """The fresh rows of each round, in order of rounds and rows."""
    fresh = rows[rows["fresh"] > 0]
    fresh = fresh[np.lexsort((fresh["global_row"], fresh["round"]))]
    starts = np.flatnonzero(np.diff(fresh["round"])) + 1
    yield from (part for part in np.split(fresh, starts) if part.size)


def at_most(blocks: Sequence[Block], count: int) -> list[Block]:
    """An even spread of at most ``count`` of the blocks: any of them is a fair look."""
    if len(blocks) <= count:
        return list(blocks)
    return [blocks[i] for i in np.linspace(0, len(blocks) - 1, count).astype(int)]


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
