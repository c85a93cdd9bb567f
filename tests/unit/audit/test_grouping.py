"""Which completions were drawn together, from the order of the rows alone."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from rlmon.audit.grouping import inferred


def groups_of(steps: list[str], group_size: int | None = None, held_out: str = "") -> tuple[list[list[int]], list[int]]:
    """Rows of each group, and the rows whose group is ambiguous; a letter is a row of that prompt."""
    prompts = [ord(letter) for step in steps for letter in step]
    step = [at for at, letters in enumerate(steps) for _ in letters]
    evaluation = [letter in held_out for letters in steps for letter in letters]
    code, ambiguous = inferred(np.array(step), np.array(evaluation, bool), np.array(prompts), group_size)
    assert sorted(set(code.tolist())) == list(range(int(code.max()) + 1))
    found = [np.flatnonzero(code == one).tolist() for one in dict.fromkeys(code.tolist())]
    return found, np.flatnonzero(ambiguous).tolist()


@pytest.mark.parametrize(
    ("steps", "groups"),
    [
        (["aaabbb", "cccddd"], [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11]]),
        (["abab", "cdcd"], [[0, 2], [1, 3], [4, 6], [5, 7]]),
        # a is drawn twice in each round, so its rows 0 and 2 are not of one group.
        (["abacabac"], [[0, 4], [1, 5], [2, 6], [3, 7]]),
        # Neighbours are two each, so four are two groups.
        (["aabbaacc", "aaaabb"], [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9], [10, 11], [12, 13]]),
        (["aabb", "cccc"], [[0, 1], [2, 3], [4, 5], [6, 7]]),
        # Every prompt is drawn twice, one draw after the other.
        (["aabbaabb", "ccddccdd"], [[n, n + 1] for n in range(0, 16, 2)]),
        # Dealt out anew, each prompt as often as the others.
        (["abbcac"], [[0, 4], [1, 2], [3, 5]]),
        (["abcd"], [[0], [1], [2], [3]]),
        (["aaaa"], [[0, 1, 2, 3]]),
        # A row of b was lost.
        (["aaabbccc", "dddeee"], [[0, 1, 2], [3, 4], [5, 6, 7], [8, 9, 10], [11, 12, 13]]),
    ],
)
def test_orders(steps: list[str], groups: list[list[int]]) -> None:
    assert groups_of(steps) == (groups, [])


def test_scattered_rows_of_a_prompt_with_twice_as_many_are_ambiguous() -> None:
    """Four rows of a, two of b and of c: a may have been drawn twice, and nothing says which rows belong together."""
    groups, ambiguous = groups_of(["abacabca"[:8]])
    assert groups == [[0, 2, 4, 7], [1, 5], [3, 6]]
    assert ambiguous == [0, 2, 4, 7]


def test_the_size_that_a_source_tells_parts_what_the_order_alone_does_not() -> None:
    assert groups_of(["aaaa"], group_size=2)[0] == [[0, 1], [2, 3]]
    assert groups_of(["abab"], group_size=2)[0] == [[0, 2], [1, 3]]


def test_steps_and_sides_that_are_mixed_up_are_told_apart() -> None:
    code, _ = inferred(np.array([1, 2, 1, 2]), np.zeros(4, bool), np.array([7, 7, 7, 7]), None)
    assert code.tolist() == [0, 1, 0, 1]
    groups, _ = groups_of(["aexaexbb"], held_out="ex")
    assert groups == [[0, 3], [1, 4], [2, 5], [6, 7]]


@pytest.mark.parametrize("order", ["neighbours", "in turn", "dealt out"])
def test_any_order_gives_back_groups_of_equal_size(order: str) -> None:
    rng = np.random.default_rng(0)
    for prompts, size in itertools.product((2, 3, 8), (2, 4)):
        step = np.repeat(np.arange(6), prompts * size)
        names = np.concatenate([rng.choice(100, prompts, replace=False) for _ in range(6)]).reshape(6, prompts)
        rows = np.repeat(names, size, axis=1) if order == "neighbours" else np.tile(names, size)
        if order == "dealt out":
            rows = rng.permuted(rows, axis=1)
        code, ambiguous = inferred(step, np.zeros(step.size, bool), rows.ravel(), None)
        assert np.bincount(code).tolist() == [size] * (6 * prompts)
        assert all(len(set(rows.ravel()[code == one].tolist())) == 1 for one in range(6 * prompts))
        assert not ambiguous.any()
