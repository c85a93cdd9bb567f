"""Effective numbers of formats, with the arithmetic shown."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import pytest

from rlmon.lab.evaluate import PROMPTS, SAMPLES_PER_PROMPT, effective_number, effective_within, held_out_sample
from rlmon.lab.task import is_held_out, split_questions


def test_effective_number() -> None:
    assert effective_number([]) is None
    assert effective_number(["a"] * 5) == pytest.approx(1.0)
    assert effective_number(["a", "b", "c", "d"]) == pytest.approx(4.0)
    # shares 1/2, 1/4, 1/4: H = .5 ln 2 + .5 ln 4 = 1.5 ln 2, exp(H) = 2^1.5
    assert effective_number(["a", "a", "b", "c"]) == pytest.approx(2**1.5)


def test_effective_within() -> None:
    # prompt 1: counts 2, 2 -> (2 + 2) / (4 * 3) = 1/3; prompt 2: count 4 -> 12/12 = 1; mean 2/3 -> 1.5
    assert effective_within([["a", "a", "b", "b"], ["c", "c", "c", "c"]]) == pytest.approx(1.5)
    assert effective_within([["a"], ["b"]]) is None
    assert effective_within([["a", "b"]]) is None
    assert effective_within([]) is None


def test_collision_estimate_is_unbiased_at_any_group_size() -> None:
    # Every draw of 3 from shares (.5, .3, .2), weighted by its chance: the mean must be .25 + .09 + .04 = .38.
    shares = {"a": 0.5, "b": 0.3, "c": 0.2}
    mean = 0.0
    for draw in itertools.product(shares, repeat=3):
        number = effective_within([draw])
        mean += math.prod(shares[mode] for mode in draw) * (0.0 if number is None else 1 / number)
    assert mean == pytest.approx(0.38)
    plug_in = sum(
        math.prod(shares[mode] for mode in draw) * sum((n / 3) ** 2 for n in Counter(draw).values())
        for draw in itertools.product(shares, repeat=3)
    )
    assert plug_in > 0.5  # what the obvious estimator would have said


def test_evaluation_is_1024_completions_on_held_out_prompts() -> None:
    assert PROMPTS * SAMPLES_PER_PROMPT == 1024
    _, held_out = split_questions()
    sample = held_out_sample(held_out)
    assert len({q.prompt for q in sample}) == PROMPTS
    assert all(is_held_out(q.prompt) for q in sample)
    assert sample == held_out_sample(held_out)
