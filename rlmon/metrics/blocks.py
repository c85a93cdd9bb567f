"""From the table of a round's rows to pair sums, group sums, and the blocks that detectors look at.

The table holds the rows of all ranks in the order of ``global_row``, so every rank computes the same from it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlmon.keys import KEY_MASK, source_label
from rlmon.metrics import moves, text
from rlmon.metrics.collision import PairSums, equality_pairs, overlap_pairs
from rlmon.metrics.groups import GroupStats, group_statistics
from rlmon.metrics.layout import GROUP_FIELDS, Sums
from rlmon.metrics.rows import Rows, opener_entries
from rlmon.metrics.tallies import parts_of_prompts, tallies_of_blocks
from rlmon.records import Block

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

MAX_BLOCKS = 8
"""Of one source and round."""


# --- dealing prompts to blocks --------------------------------------------------------------------------------


def codes_of(*keys: NDArray[Any]) -> Ints:
    """Codes from 0 of the distinct tuples, in sorted order."""
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


class _Dealt:
    """Blocks that are being filled with statistics."""

    def __init__(self, rows: Rows) -> None:
        sources, stratum_B = np.unique(rows["source"].astype(np.int64), return_inverse=True)
        self.block_B, self.prompt_B, block_P = deal(stratum_B.reshape(-1), rows["prompt"].astype(np.int64))
        self.count = int(block_P.max()) + 1
        self._block_P = block_P
        stratum_of_block = np.zeros(self.count, dtype=np.int64)
        stratum_of_block[self.block_B] = stratum_B.reshape(-1)
        self._source = [source_label(int(key)) for key in sources[stratum_of_block]]
        self._stats: list[dict[str, float]] = [{} for _ in range(self.count)]
        self._tallies: list[dict[str, list[dict[str, int]]]] = [{} for _ in range(self.count)]

    def put(self, name: str, top: NDArray[Any], bottom: NDArray[Any]) -> None:
        """``top / bottom`` by block; absent where there is nothing to divide by."""
        for b in np.flatnonzero((bottom > 0) & np.isfinite(top)):
            self._stats[b][name] = float(top[b] / bottom[b])

    def by_block(self, value_B: NDArray[Any]) -> Floats:
        return np.bincount(self.block_B, weights=value_B, minlength=self.count).astype(np.float64)

    def put_mean(self, name: str, value_B: Floats) -> None:
        finite = np.isfinite(value_B)
        self.put(name, self.by_block(np.where(finite, value_B, 0.0)), self.by_block(finite))

    def tally(
        self, name: str, value_B: Ints, keep_B: NDArray[np.bool_] | None, wanted: Callable[[str], Collection[str]]
    ) -> None:
        """The tallies of a statistic, in blocks that have it and whose source wants them."""
        wanted_K = np.array(
            [name in stats and name in wanted(s) for stats, s in zip(self._stats, self._source, strict=True)]
        )
        if not wanted_K.any():
            return
        part_P = parts_of_prompts(self._block_P)
        block_of_part = np.zeros(int(part_P.max()) + 1, dtype=np.int64)
        block_of_part[part_P] = self._block_P
        found = tallies_of_blocks(value_B, part_P[self.prompt_B], block_of_part, wanted_K, keep_B)
        for b in np.flatnonzero(wanted_K):
            self._tallies[b][name] = found[b]

    def blocks(self, counted_B: NDArray[np.bool_] | slice = slice(None)) -> list[Block]:
        """The blocks, with the prompts and completions that are counted."""
        prompts = np.bincount(self._block_P[np.unique(self.prompt_B[counted_B])], minlength=self.count)
        rows = np.bincount(self.block_B[counted_B], minlength=self.count)
        return [
            Block(
                source=self._source[b],
                prompts=int(prompts[b]),
                completions=int(rows[b]),
                stats=self._stats[b],
                tallies=self._tallies[b],
            )
            for b in range(self.count)
        ]


# --- pairs and groups of one round ----------------------------------------------------------------------------


def by_round(rows: Rows) -> Iterator[Rows]:
    """The fresh rows of each round, in order of rounds and rows."""
    fresh = rows[rows["fresh"] > 0]
    fresh = fresh[np.lexsort((fresh["global_row"], fresh["round"]))]
    starts = np.flatnonzero(np.diff(fresh["round"])) + 1
    yield from (part for part in np.split(fresh, starts) if part.size)


def groups_of(rows: Rows, group_size: int, hard_B: NDArray[np.bool_] | None = None) -> GroupStats:
    """Group statistics of the rows of one round; ``hard_B`` is what the ledger knew before it."""
    return group_statistics(
        rows["global_row"].astype(np.int64),
        rows["reward"],
        group_size,
        advantages=rows["advantage"],
        hard_B=hard_B,
        success=rows["success"],
        trained_B=rows["trained"] > 0,
    )


def _pairs(rows: Rows, prompt_B: Ints, block_B: Ints, blocks: int) -> dict[str, PairSums]:
    mode, answer = rows["mode"].astype(np.int64), rows["answer"].astype(np.int64)
    kernels = {
        "mode": equality_pairs(mode, prompt_B, block_B, blocks),
        "mode_correct": equality_pairs(mode, prompt_B, block_B, blocks, rows["success"] > 0),
        "template": equality_pairs(rows["template"].astype(np.int64), prompt_B, block_B, blocks),
        # A change in how often an answer can be read must not look like concentration: only rows that have one.
        "answer": equality_pairs(answer, prompt_B, block_B, blocks, answer >= 0),
        "opening": equality_pairs(rows["opening"].astype(np.int64), prompt_B, block_B, blocks),
    }
    table = opener_entries(rows)
    kernels["moves"] = overlap_pairs(
        table.row_N, table.bucket_N, table.weight_N, prompt_B, block_B, blocks, moves.OPENER_BUCKETS
    )
    return kernels


def pair_and_group_sums(rows: Rows, groups: GroupStats) -> Sums:
    """The additive sums of one round that need to see its rows together: pairs of completions, effective numbers within
    prompts, and groups."""
    prompt_B = codes_of(rows["prompt"].astype(np.int64))
    pairs = _pairs(rows, prompt_B, np.zeros(len(rows), dtype=np.int64), 1)
    sums = {f"pairs_{kernel}": found.total() for kernel, found in pairs.items()}
    template, answer = rows["template"].astype(np.int64), rows["answer"].astype(np.int64)
    for name, value, keep in (
        ("mode_within", rows["mode"].astype(np.int64), None),
        ("templates_within", template, None),
        ("templates_within_correct", template, rows["success"] > 0),
        ("answers_within", answer, answer >= 0),
    ):
        sums[name] = np.array(text.effective_numbers(value, prompt_B, keep), dtype=np.float64)
    sums["group"] = _group_fields(rows, groups)
    known = np.isfinite(groups.success_B).sum(), groups.classified_P.sum(), groups.silent_P.sum()
    sums["success"] = np.array(known, dtype=np.float64)
    return sums


def _classified_rows(stats: GroupStats) -> NDArray[np.bool_]:
    """Rows whose group has two finite rewards or more, and is known to the last success."""
    inside = stats.group_B >= 0
    inside[inside] = stats.classified_P[stats.group_B[inside]]
    return inside


def _group_fields(rows: Rows, stats: GroupStats) -> Floats:
    fields = dict.fromkeys(GROUP_FIELDS, 0.0)
    judged = stats.size_P >= 2
    known_std = np.isfinite(stats.reward_std_P) & judged
    weight_B = np.where(np.isfinite(stats.advantage_B), np.abs(stats.advantage_B), 0.0)
    in_group = _classified_rows(stats)
    fields.update(
        whole=float(stats.whole),
        partial=float(stats.partial),
        judged=float(judged.sum()),
        all_good=float(stats.all_good_P.sum()),
        all_bad=float(stats.all_bad_P.sum()),
        lone=float(stats.lone_P.sum()),
        std_sum=float(stats.reward_std_P[known_std].sum()),
        std_groups=float(known_std.sum()),
        weight=float(weight_B[in_group].sum()),
        weight_lone=float(weight_B[stats.lone_B].sum()),
    )
    if stats.hard_B is not None:
        fields["weight_known"] = fields["weight"]
        fields["weight_lone_hard"] = float(weight_B[stats.lone_B & stats.hard_B].sum())
        fields["hard_rows"] = float(stats.hard_B.sum())
        fields["ledger_rows"] = float(stats.hard_B.size)
    lone_group_B = np.zeros(in_group.size, dtype=bool)
    lone_group_B[in_group] = stats.lone_P[stats.group_B[in_group]]
    for who, chosen in (("winner", stats.lone_B), ("other", lone_group_B & ~stats.lone_B)):
        fields[f"lone_{who}_rows"] = float(chosen.sum())
        fields[f"lone_{who}_repetition"] = float(rows["repetition"][chosen].sum())
        fields[f"lone_{who}_tokens"] = float(np.nan_to_num(rows["tokens"][chosen]).sum())
    return np.array([fields[name] for name in GROUP_FIELDS])


# --- blocks ---------------------------------------------------------------------------------------------------


def _no_tallies(source: str) -> Collection[str]:
    return ()


def rollout_blocks(
    rows: Rows, groups: GroupStats, tallied: Callable[[str], Collection[str]] = _no_tallies
) -> list[Block]:
    """The rows of one round as prompt-disjoint blocks inside one source each, with every statistic that can be
    computed.

    Statistics: the pair means of every kernel (``mode_collision``, ``template_collision``, ``answer_collision``,
    ``opening_collision``, ``move_collision`` over pairs of different prompts, ``*_within`` over pairs of one prompt,
    ``mode_collision_correct`` over rewarded completions), ``completion_tokens``, ``reward``, ``all_good``,
    ``all_bad``, ``lone_success_weight``. One that cannot be computed is absent. Row order does not matter.
    ``tallied``: the statistics of a source, by its key, whose baseline still takes tallies.
    """
    if not len(rows):
        return []
    dealt = _Dealt(rows)
    for kernel, pairs in _pairs(rows, dealt.prompt_B, dealt.block_B, dealt.count).items():
        name = {"mode_correct": "mode_collision_correct", "moves": "move_collision"}.get(kernel, f"{kernel}_collision")
        dealt.put(name, pairs.across_sum, pairs.across_pairs)
        dealt.put(f"{name}_within", pairs.within_sum, pairs.within_pairs)
    answer = rows["answer"].astype(np.int64)
    dealt.tally("mode_collision", rows["mode"].astype(np.int64), None, tallied)
    dealt.tally("template_collision", rows["template"].astype(np.int64), None, tallied)
    dealt.tally("answer_collision", answer, answer >= 0, tallied)
    dealt.put_mean("completion_tokens", rows["tokens"])
    dealt.put_mean("reward", rows["reward"])

    in_group = groups.group_B >= 0
    block_of_group = np.zeros(groups.size_P.size, dtype=np.int64)
    block_of_group[groups.group_B[in_group]] = dealt.block_B[in_group]
    judged = np.bincount(block_of_group[groups.classified_P], minlength=dealt.count)
    for name, flags in (("all_good", groups.all_good_P), ("all_bad", groups.all_bad_P)):
        dealt.put(name, np.bincount(block_of_group, weights=flags, minlength=dealt.count), judged)
    if groups.hard_B is not None:
        counted = np.isfinite(groups.advantage_B) & _classified_rows(groups)
        weight = np.where(counted, np.abs(groups.advantage_B), 0.0)
        lone = dealt.by_block(weight * (groups.lone_B & groups.hard_B))
        dealt.put("lone_success_weight", lone, dealt.by_block(weight))
    return dealt.blocks()


def token_blocks(rows: Rows) -> list[Block]:
    """Blocks of the rows that a step trained on, with ``entropy_nats`` (token-weighted); and of those that a comparison
    with the base stands for, with ``kl_nats`` (weighted mean exact KL per token) and ``kl_seq_nats`` (the same times
    the mean completion tokens of the block's rows)."""
    found: list[Block] = []
    trained = rows[rows["trained_tokens"] > 0]
    if len(trained):
        dealt = _Dealt(trained)
        dealt.put("entropy_nats", dealt.by_block(trained["entropy_nats"]), dealt.by_block(trained["trained_tokens"]))
        found += dealt.blocks()
    compared = rows[rows["kl_completion_tokens"] > 0]
    if len(compared):
        dealt = _Dealt(compared)
        total, tokens = dealt.by_block(compared["kl_nats"]), dealt.by_block(compared["kl_tokens"])
        dealt.put("kl_nats", total, tokens)
        completion_tokens = dealt.by_block(compared["kl_completion_tokens"])
        dealt.put("kl_seq_nats", total * completion_tokens, tokens * np.bincount(dealt.block_B, minlength=dealt.count))
        found += dealt.blocks(compared["kl_tokens"] > 0)  # counted are the rows that were looked at
    return [block for block in found if block.stats]


def at_most(blocks: Sequence[Block], count: int) -> list[Block]:
    """An even spread of at most ``count`` of the blocks: any of them is a fair look."""
    if len(blocks) <= count:
        return list(blocks)
    return [blocks[i] for i in np.linspace(0, len(blocks) - 1, count).astype(int)]
