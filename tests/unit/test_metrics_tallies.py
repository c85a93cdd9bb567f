"""Tallies of blocks: who is counted with whom, and that the base over them is what one large block would say."""

from collections import Counter

import numpy as np
import pytest

from rlmon.metrics.blocks import MAX_PARTS, deal, parts_of_prompts, tallies_of_blocks
from rlmon.metrics.collision import equality_pairs


def test_prompts_are_parts_of_their_own_until_a_block_has_more_than_four():
    # blocks of 2, 4 and 9 prompts: the ninth of 4 parts: places 0..8 times 4 // 9 are 0 0 0 1 1 2 2 3 3
    block_P = np.repeat([0, 1, 2], [2, 4, 9])
    expected = [0, 1, 2, 3, 4, 5, *(6 + part for part in (0, 0, 0, 1, 1, 2, 2, 3, 3))]
    assert parts_of_prompts(block_P).tolist() == expected
    assert parts_of_prompts(np.zeros(0, dtype=np.int64)).size == 0


@pytest.mark.parametrize("prompts", [2, 8, 19, 64])
def test_the_tallies_of_a_round_count_each_completion_once_and_give_its_pair_mean(prompts):
    rng = np.random.default_rng(prompts)
    prompt_B = np.repeat(rng.permutation(10_000)[:prompts], 8)
    value_B = rng.integers(0, 5, prompt_B.size)
    keep_B = rng.random(prompt_B.size) < 0.9
    block_B, code_B, block_P = deal(np.zeros(prompt_B.size, dtype=np.int64), prompt_B)
    part_P = parts_of_prompts(block_P)
    block_of_part = np.zeros(part_P.max() + 1, dtype=np.int64)
    block_of_part[part_P] = block_P
    wanted = np.ones(block_P.max() + 1, dtype=bool)
    wanted[1:2] = False
    found = tallies_of_blocks(value_B, part_P[code_B], block_of_part, wanted, keep_B)
    pairs = equality_pairs(value_B, code_B, block_B, wanted.size, keep_B)
    assert sum(map(len, found)) <= 32
    for b, parts in enumerate(found):
        if not wanted[b]:
            assert parts == []
            continue
        assert len(parts) == min(MAX_PARTS, (block_P == b).sum())
        counted = sum((Counter(part) for part in parts), Counter())
        mine = (block_B == b) & keep_B
        assert counted == Counter(map(str, value_B[mine].tolist()))
        if len(parts) == (block_P == b).sum():
            # every prompt a part: agreeing pairs of different parts are those of different prompts
            agreeing = sum(n * (n - 1) / 2 for n in counted.values())
            within = sum(n * (n - 1) / 2 for part in parts for n in part.values())
            assert agreeing - within == pairs["across_sum"][b]
