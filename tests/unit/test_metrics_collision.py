"""Pair means from counts and sorts, against arithmetic on paper and the enumeration of all pairs."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from rlmon.metrics.collision import equality_pairs, overlap_pairs, overlap_sums, sampled_pairs


def brute_force(kernel, prompt, block, blocks, keep=None):
    out = np.zeros((blocks, 4))
    for i, j in itertools.combinations(range(len(prompt)), 2):
        if block[i] != block[j] or (keep is not None and not (keep[i] and keep[j])):
            continue
        at = 2 if prompt[i] == prompt[j] else 0
        out[block[i], at] += kernel(i, j)
        out[block[i], at + 1] += 1
    return out


def as_table(pairs) -> np.ndarray:
    return pairs.view(np.float64).reshape(-1, 4)


def total(pairs) -> np.ndarray:
    return as_table(pairs).sum(axis=0)


def test_equality_on_paper() -> None:
    # Prompt 0: a a b, prompt 1: a b. Within: (a,a) agrees of 3 + 1 = 4 pairs -> 1/4.
    # Across: 3 x 2 = 6 pairs; a-a twice, b-b once -> 3/6.
    value = np.array([0, 0, 1, 0, 1])
    prompt = np.array([0, 0, 0, 1, 1])
    pairs = equality_pairs(value, prompt, np.zeros(5, dtype=np.int64), 1)
    assert total(pairs).tolist() == [3.0, 6.0, 1.0, 4.0]


def test_a_single_row_has_no_pair() -> None:
    one = np.zeros(1, dtype=np.int64)
    assert total(equality_pairs(one, one, one, 1)).tolist() == [0.0] * 4
    assert equality_pairs(one[:0], one[:0], one[:0], 2)["across_pairs"].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("seed", range(5))
def test_equality_is_the_enumeration_of_pairs(seed: int) -> None:
    rng = np.random.default_rng(seed)
    prompt = rng.integers(0, 8, 40)
    block = prompt // 3
    value = rng.integers(0, 5, 40) * 10**15
    keep = rng.random(40) < 0.7
    got = as_table(equality_pairs(value, prompt, block, 3, keep))
    want = brute_force(lambda i, j: value[i] == value[j], prompt, block, 3, keep)
    np.testing.assert_array_equal(got, want)


def test_overlap_on_paper() -> None:
    # h0 = {1: .5, 2: .5}, h1 = {1: .25, 3: .75}, h2 = {1: 1}: min sums are .25 (0,1), .5 (0,2), .25 (1,2) -> 1.0.
    row = np.array([0, 0, 1, 1, 2])
    bucket = np.array([1, 2, 1, 3, 1])
    weight = np.array([0.5, 0.5, 0.25, 0.75, 1.0])
    assert overlap_sums(np.zeros(5, dtype=np.int64), bucket, weight, 1, 16).tolist() == [1.0]
    pairs = overlap_pairs(row, bucket, weight, np.array([0, 0, 1]), np.zeros(3, dtype=np.int64), 1, 16)
    # One prompt holds rows 0 and 1 (.25 of 1 pair); across are (0,2) and (1,2): .75 of 2 pairs.
    np.testing.assert_allclose(total(pairs), [0.75, 2.0, 0.25, 1.0], atol=1e-9)


@pytest.mark.parametrize("buckets", [32, 1 << 30])
def test_overlap_is_the_enumeration_of_pairs(buckets: int) -> None:
    rng = np.random.default_rng(1)
    prompt = rng.integers(0, 6, 24)
    block = prompt // 2
    dense = rng.random((24, 32)) * (rng.random((24, 32)) < 0.3)
    dense /= np.maximum(dense.sum(1, keepdims=True), 1e-12)
    row, bucket = np.nonzero(dense)
    pairs = overlap_pairs(row, bucket, dense[row, bucket], prompt, block, 3, buckets)
    want = brute_force(lambda i, j: np.minimum(dense[i], dense[j]).sum(), prompt, block, 3)
    np.testing.assert_allclose(as_table(pairs), want, atol=1e-6)


def test_sampled_pairs_are_all_pairs_when_few() -> None:
    prompt = np.array([0, 0, 1, 1, 1])
    i, j, a, b = sampled_pairs(prompt, 100)
    assert sorted(map(tuple, np.sort(np.stack([a, b], 1), 1).tolist())) == [(0, 1), (2, 3), (2, 4), (3, 4)]
    assert sorted(map(tuple, np.sort(np.stack([i, j], 1), 1).tolist())) == [
        (0, 2), (0, 3), (0, 4), (1, 2), (1, 3), (1, 4),
    ]  # fmt: skip


def test_sampled_pairs_are_bounded_fair_and_draw_no_random_number() -> None:
    prompt = np.repeat(np.arange(50), 20)
    state = np.random.get_state()[1].copy()
    i, j, a, b = sampled_pairs(prompt, 1_000)
    np.testing.assert_array_equal(np.random.get_state()[1], state)
    assert len(i) <= 1_000
    assert len(a) == 1_000
    assert (prompt[i] != prompt[j]).all()
    assert (prompt[a] == prompt[b]).all()
    assert (a != b).all()
    # 1,000 draws over 50 prompts: 20 each, sd 4.4; 6 sd = 27.
    assert np.abs(np.bincount(prompt[a], minlength=50) - 20).max() < 27
    again = sampled_pairs(prompt, 1_000)
    np.testing.assert_array_equal(again[0], i)
