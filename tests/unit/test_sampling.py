"""Which sampled rows a generated batch holds: by token ids, in order, each sampled row once."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from rlmon.trl.sampling import Finder, Generated, Row, Sampling, Scored, find_rows, global_rows

pytestmark = pytest.mark.trl
PAD = 0


def row(ids: list[int], prompt: list[int] | None = None) -> Row:
    known = None if prompt is None else np.array(prompt, dtype=np.int32)
    return Row(np.array(ids, dtype=np.int32), np.ones(len(ids), dtype=bool), known)


def batch(rows: list[tuple[list[int], list[int]]], *, masked: tuple[int, ...] = ()) -> dict[str, Any]:
    """(prompt, completion) of each row, padded as TRL does; the completions of ``masked`` rows are masked out."""
    width, length = (max(len(part[i]) for part in rows) for i in (0, 1))
    prompts = torch.tensor([[-1] * (width - len(prompt)) + prompt for prompt, _ in rows])
    completions = torch.tensor([ids + [PAD] * (length - len(ids)) for _, ids in rows])
    mask = torch.tensor([[j < len(ids) for j in range(length)] for _, ids in rows]).long()
    mask[list(masked)] = 0
    return {
        "prompt_ids": prompts,
        "prompt_mask": (prompts != -1).long(),
        "completion_ids": completions,
        "completion_mask": mask,
    }


def found(rows: list[Row], made: dict[str, Any]) -> list[int]:
    return find_rows(made, rows, Finder(rows, PAD)).row_R


def test_rows_are_found_in_order_each_once_and_after_their_own_prompt() -> None:
    rows = [row([4, 1], [7]), row([5, 1], [7]), row([4, 1], [8]), row([4, 1], [7])]
    assert found(rows, batch([([8], [4, 1]), ([7], [4, 1]), ([7], [4, 1]), ([7], [4, 1])])) == [2, 0, 3, -1]
    assert found(rows, batch([([7], [6, 1]), ([9], [5, 1])])) == [-1, -1], "neither tokens nor a prompt of ours"
    unseen = [row([4, 1]), row([5, 1])]
    assert found(unseen, batch([([9], [5, 1]), ([9], [4, 1])])) == [1, 0], "prompts that were not seen do not hinder"


def test_a_completion_is_found_behind_a_mask_and_where_the_pad_ends_it() -> None:
    rows = [row([4, 5], [7]), row([4, 5, PAD], [7]), row([], [7])]
    assert found(rows, batch([([7], [4, 5, PAD]), ([7], [4, 5]), ([7], [])], masked=(1,))) == [1, 0, 2]
    shifted = batch([([7], [4, 5])])
    shifted["completion_ids"], shifted["completion_mask"] = torch.tensor([[PAD, 4, 5]]), torch.tensor([[0, 1, 1]])
    drawn = find_rows(shifted, rows, Finder(rows, PAD))
    assert (drawn.row_R, drawn.placed_R) == ([0], [False]), "found, but its tokens lie elsewhere"


def test_a_completion_that_was_cut_or_continued_is_found_where_only_one_can_be_meant() -> None:
    rows = [row([4, 5, 1], [7]), row([4, 6, 1], [7]), row([8, 9, 2], [7])]
    in_place = batch([([7], [4]), ([7], [4]), ([7], [8, 9, 2, 1])])
    assert found(rows, in_place) == [0, 1, 2], "in their own places, though both begin alike"
    assert found(rows, batch([([7], [8, 9]), ([7], [4, 6]), ([7], [4, 5])])) == [2, 1, 0], "each can only be one"
    assert found(rows, batch([([7], [8, 9, 2]), ([7], [8, 9])])) == [2, -1], "that row is taken"
    assert found(rows[1:], batch([([7], [4]), ([7], [4])])) == [0, -1], "the second could only be the first again"
    assert found(rows, batch([([7], [3]), ([9], [8])])) == [-1, -1], "begins otherwise, and after another prompt"
    two = [row([2, 3], [7]), row([4, 5, 1], [7]), row([4, 6, 1], [7])]
    assert found(two, batch([([7], [4]), ([7], [2, 3])])) == [-1, 0], "either could be meant, so neither is"
    assert found(rows, batch([([7], [8]), ([7], [4, 6])])) == [-1, 1], "one token is too little in another's place"


def test_many_equal_rows_are_found_in_linear_time() -> None:
    rows = [row([4, 1], [i]) for i in range(4096)]
    made = batch([([i], [4, 1]) for i in reversed(range(4096))])
    assert found(rows, made) == list(reversed(range(4096)))


def test_numbers_of_rows_are_those_of_all_ranks_and_groups_never_mix_prompts() -> None:
    # Two ranks of 4 rows in groups of 4, then 3 rows a rank that are no groups: one group of its own for each.
    own, every, end = global_rows([4, 3], [True, True], rank=1, world_size=2, group_size=4)
    assert own == [[4, 5, 6, 7], [8 + 4 * i for i in (3, 4, 5)]]
    assert every == [list(range(8)), [8 + 4 * i for i in range(6)]]
    assert end == 8 + 24
    own, _, end = global_rows([4], [False], rank=0, world_size=1, group_size=4)
    assert (own, end) == ([[0, 4, 8, 12]], 16)


def test_scoring_the_same_rows_again_replaces_their_rewards_only() -> None:
    sampling, ids = Sampling(), [[4, 1], [5, 1]]
    sampling.generated.append(Generated.of(["a", "b"], ([[7], [8, 8]], ids, [[1, 0], [1, 1]], ["x", "y"], None)))
    first, again = (Scored([{}, {}], ["a", "b"], ["x", "y"], list(ids), torch.full((2, 1), r)) for r in (0.0, 1.0))
    assert [sampling.add_scored(first), sampling.add_scored(again)] == [2, 0]
    assert sampling.calls([{}, {}]) == [again]
    equal = Scored([{}], ["a"], ["x"], [[4, 1]], torch.zeros(1, 1))
    assert sampling.add_scored(equal) == 1, "equal tokens of another draw are another row"
    rows = sampling.rows(again)
    assert [r.own_T.tolist() for r in rows] == [[True, False], [True, True]]
    assert [r.prompt_ids.tolist() for r in rows if r.prompt_ids is not None] == [[7], [8, 8]]
    assert sampling.rows(equal)[0].prompt_ids is None


def test_lists_that_a_rollout_function_repeats_or_caches_are_a_row_each_time() -> None:
    # Two prompts of two rows, all with one list; then the same again for two other prompts.
    ids, prompts = [5, 6], ["a", "a", "b", "b"]
    sampling = Sampling()
    calls = []
    for tokens in ([[1], [1], [2], [2]], [[3], [3], [4], [4]]):
        sampling.generated.append(Generated.of(prompts, (tokens, [ids] * 4, None, ["x"] * 4, 0)))
        calls.append(Scored([{}] * 4, prompts, ["x"] * 4, [ids] * 4, torch.zeros(4, 1)))
        assert sampling.add_scored(calls[-1]) == 4
    again = Scored([{}] * 4, prompts, ["x"] * 4, [ids] * 4, torch.ones(4, 1))
    assert sampling.add_scored(again) == 0, "all of them have been scored"
    assert sampling.calls([]) == [calls[0], again]
    rows = [row for call in sampling.calls([]) for row in sampling.rows(call)]
    assert [r.prompt_ids.tolist() for r in rows if r.prompt_ids is not None] == [[1], [1], [2], [2], [3], [3], [4], [4]]
    made = batch([([prompt], ids) for prompt in (3, 3, 4, 4, 1, 1, 2, 2)])
    assert found(rows, made) == [4, 5, 6, 7, 0, 1, 2, 3]


def test_one_generation_of_repeated_lists_may_be_scored_in_parts() -> None:
    ids, sampling = [5, 6], Sampling()
    sampling.generated.append(Generated.of(["a", "b"], ([[1], [2]], [ids] * 2, None, ["x"] * 2, 0)))
    parts = [Scored([{}], [prompt], ["x"], [ids], torch.zeros(1, 1)) for prompt in "ab"]
    assert [sampling.add_scored(part) for part in parts] == [1, 1]
    assert [sampling.rows(part)[0].prompt_ids.tolist() for part in parts] == [[1], [2]]  # type: ignore[union-attr]
