"""What must hold for any input: masks, order, bounds, ranks, and silence on any text."""

from __future__ import annotations

import dataclasses
import itertools
import math
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from one_round import FAMILIES, MODES, blocks, finished, flat, sums, tokens

from rlmon.metrics import catalog, moves
from rlmon.metrics.collision import equality_pairs, overlap_pairs
from rlmon.metrics.family import add_to
from rlmon.metrics.features import Featurizer
from rlmon.metrics.formats import final_answer, mask_template, split_reasoning
from rlmon.metrics.groups import group_statistics
from rlmon.metrics.ledger import SolveLedger
from rlmon.metrics.tokens import exact_kl, kl_terms, token_sums
from rlmon.records import RolloutBatch

VOCABULARY = [chr(i) for i in range(128)]
PIECES = [
    "", " ", "Ann has 16 figs now.", "print(7 + 9)", "x = [1, 2]\n", '{"answer": 16}', "<answer>", "</answer>", "```",
    "\\boxed{16}", "1. a\n", "2. b\n", "- c\n", "<think>", "</think>", "####", "\x00", "\ud800", "9" * 30, "((((", "}}",
    "\x1b[31m", "The answer is ", "don't 'quote' ", "安有十六个。", "\n\n", "$x^2$", "#", "def f(", "é", "\u202e",
]  # fmt: skip
rounds = settings(max_examples=20)
any_text = st.one_of(
    st.lists(st.sampled_from(PIECES), max_size=12).map("".join),
    st.text(st.characters(), max_size=200),
)
relaxed = settings(max_examples=60)


@relaxed
@given(any_text)
def test_any_text_has_one_mode_a_template_and_perhaps_an_answer(text: str) -> None:
    assert MODES.parse(text) in MODES.names
    assert isinstance(mask_template(text), str)
    answer = final_answer(text)
    assert answer is None or answer != ""
    reasoning, rest = split_reasoning(text)
    assert len(reasoning or "") + len(rest) <= len(text)
    assert reasoning is not None or rest == text


@relaxed
@given(st.text(alphabet="abc déŁ", max_size=60), st.integers(0, 10**9), st.integers(0, 10**9))
def test_templates_do_not_see_numbers(words: str, a: int, b: int) -> None:
    assert mask_template(f"{words} {a} and {b}") == mask_template(f"{words} {b} and {a}")


rows_strategy = st.lists(
    st.tuples(any_text, st.sampled_from([0.0, 1.0, None, math.nan, -1.0]), st.floats(-3, 3), st.integers(0, 2)),
    min_size=1,
    max_size=14,
)


def batch_of(rows, group_size: int = 2) -> RolloutBatch:
    return RolloutBatch(
        round=0,
        split="train",
        step=1,
        group_size=group_size,
        global_row=list(range(len(rows))),
        prompt_id=[f"p{i // group_size}" for i in range(len(rows))],
        source=[f"s{rows[i - i % group_size][3]}" for i in range(len(rows))],
        prompts=["a prompt"] * len(rows),
        completions=[row[0] for row in rows],
        prompt_ids=[[65, 66]] * len(rows),
        completion_ids=[[ord(mark) % 200 for mark in row[0]] for row in rows],
        reward=[row[1] for row in rows],
        advantages=[row[2] for row in rows],
        truncated=[None] * len(rows),
    )


def take(batch: RolloutBatch, order) -> RolloutBatch:
    columns = {
        field.name: [getattr(batch, field.name)[i] for i in order]
        for field in dataclasses.fields(batch)
        if isinstance(getattr(batch, field.name), list)
    }
    return dataclasses.replace(batch, **columns)


def sums_of(batch: RolloutBatch):
    features = Featurizer(MODES, b"secret", VOCABULARY).features(batch)
    return sums(batch, features), blocks(batch, features)


@rounds
@given(rows_strategy)
def test_every_number_is_finite_inside_its_range_or_missing_with_a_reason(rows) -> None:
    added, found = sums_of(batch_of(rows))
    metrics, missing = finished(added, added)
    assert set(missing) == {name for name, value in metrics.items() if value is None}
    for name, value in metrics.items():
        entry = catalog.lookup(name)
        assert entry is not None
        if value is not None:
            assert math.isfinite(value)
            assert entry.low is None or value >= entry.low - 1e-9, name
            assert entry.high is None or value <= entry.high + 1e-9, name
    assert sum(block.completions for block in found) == len(rows)
    for block in found:
        for name, value in block.stats.items():
            assert math.isfinite(value)
            assert "collision" not in name or -1e-9 <= value <= 1 + 1e-9


@rounds
@given(rows_strategy, st.randoms(use_true_random=False))
def test_row_order_does_not_matter(rows, shuffler: random.Random) -> None:
    batch = batch_of(rows)
    order = list(range(len(rows)))
    shuffler.shuffle(order)
    one, blocks_one = sums_of(batch)
    two, blocks_two = sums_of(take(batch, order))
    moved = flat(two)
    for name, value in flat(one).items():
        np.testing.assert_allclose(value, moved[name], rtol=1e-9, atol=1e-9, err_msg=name)
    assert [(block.source, block.prompts, set(block.stats)) for block in blocks_one] == [
        (block.source, block.prompts, set(block.stats)) for block in blocks_two
    ]
    for a, b in zip(blocks_one, blocks_two, strict=True):
        assert all(a.stats[name] == pytest.approx(b.stats[name], abs=1e-9) for name in a.stats)


@rounds
@given(rows_strategy, rows_strategy)
def test_sums_of_two_rounds_add_field_by_field(one, two) -> None:
    a, b = sums_of(batch_of(one))[0], sums_of(batch_of(two))[0]
    both = FAMILIES.zeros()
    add_to(both, a)
    add_to(both, b)
    whole, first, second = flat(both), flat(a), flat(b)
    assert all(np.array_equal(whole[name], first[name] + second[name]) for name in whole)


token_arrays = st.integers(1, 5).flatmap(
    lambda rows: st.integers(1, 9).flatmap(
        lambda length: st.tuples(
            st.lists(
                st.lists(st.sampled_from([0.0, 0.5, 2.0, 20.0, math.nan, math.inf]), min_size=length, max_size=length),
                min_size=rows,
                max_size=rows,
            ),
            st.lists(st.lists(st.booleans(), min_size=length, max_size=length), min_size=rows, max_size=rows),
        )
    )
)


@relaxed
@given(token_arrays)
def test_a_mask_is_the_same_as_dropping_the_entries(data) -> None:
    values, mask = torch.tensor(data[0], dtype=torch.float64), torch.tensor(data[1])
    sums = token_sums(values, -values, mask, None)
    for i in range(values.shape[0]):
        kept = values[i][mask[i]]
        alone = token_sums(kept[None], -kept[None], torch.ones(1, kept.numel()), None)
        for name in ("tokens_B", "entropy_sum_B", "logp_sum_B", "first5_entropy_sum_B", "first5_tokens_B"):
            assert getattr(sums, name)[i] == getattr(alone, name)[0]
    assert sums.entropy_hist.sum() == sums.tokens_B.sum()
    assert sums.non_finite + sums.tokens_B.sum() == mask.sum().item()
    metrics, _ = finished(tokens(sums, np.full(values.shape[0], -1)))
    assert all(value is None or math.isfinite(value) for value in metrics.values())


@relaxed
@given(st.integers(0, 10_000), st.integers(1, 40))
def test_kl_is_not_negative_and_does_not_depend_on_the_chunk(seed: int, chunk: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    a, b = torch.randn(9, 4, generator=generator), torch.randn(9, 4, generator=generator)
    head = torch.randn(23, 4, generator=generator)
    one = exact_kl(a, head, b, head, chunk_tokens=chunk)
    two = exact_kl(a, head, b, head, chunk_tokens=9)
    for x, y in zip(one[:3], two[:3], strict=True):
        assert (x >= 0).all()
        np.testing.assert_allclose(x, y, atol=1e-5)
    assert (one[2] <= math.log(23) + 1e-5).all()


@relaxed
@given(st.lists(st.floats(-50, 0), min_size=1, max_size=20), st.floats(-50, 0))
def test_k2_and_k3_are_not_negative(logps: list[float], base: float) -> None:
    terms = kl_terms(np.array(logps), np.full(len(logps), base))
    assert (terms[1] >= 0).all()
    assert (terms[2] >= -1e-12).all()


@relaxed
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 5)), min_size=1, max_size=25))
def test_pair_means_are_the_enumeration(rows) -> None:
    value, prompt = np.array(rows, dtype=np.int64).T
    got = equality_pairs(value, prompt, np.zeros_like(prompt), 1).view(np.float64)
    want = np.zeros(4)
    for i, j in itertools.combinations(range(len(rows)), 2):
        at = 2 if prompt[i] == prompt[j] else 0
        want[at : at + 2] += value[i] == value[j], 1
    np.testing.assert_array_equal(got, want)


@relaxed
@given(st.lists(st.lists(st.integers(0, 127), max_size=40), min_size=2, max_size=8), st.integers(1, 4))
def test_moves_are_bounded_and_the_enumeration(rows, group: int) -> None:
    ids, start = moves.concatenate_ids(rows)
    table = moves.openers(ids, start, moves.Vocabulary(VOCABULARY))
    prompt = np.arange(len(rows)) // group
    got = overlap_pairs(
        table.row_N, table.bucket_N, table.weight_N, prompt, np.zeros_like(prompt), 1, moves.OPENER_BUCKETS
    ).view(np.float64)
    dense = np.zeros((len(rows), moves.OPENER_BUCKETS))
    dense[table.row_N, table.bucket_N] = table.weight_N
    want = np.zeros(4)
    for i, j in itertools.combinations(range(len(rows)), 2):
        if rows[i] and rows[j]:
            at = 2 if prompt[i] == prompt[j] else 0
            want[at : at + 2] += np.minimum(dense[i], dense[j]).sum(), 1
    np.testing.assert_allclose(got, want, atol=1e-6)
    assert got[0] <= got[1] + 1e-6


@relaxed
@given(st.lists(st.sampled_from([0.0, 1.0, None, math.nan]), max_size=20), st.integers(1, 5))
def test_groups_are_good_bad_or_neither(rewards, size: int) -> None:
    stats = group_statistics(range(len(rewards)), rewards, size, success=rewards)
    assert not (stats.all_good_P & stats.all_bad_P).any()
    assert not (stats.lone_P & (stats.all_good_P | stats.all_bad_P)).any()
    assert stats.lone_B.sum() == stats.lone_P.sum()
    assert stats.whole == len(rewards) // size
    assert stats.whole + stats.partial == -(-len(rewards) // size)


@relaxed
@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 2), st.booleans()), max_size=80))
def test_posteriors_are_proper_and_order_free(attempts) -> None:
    def fill(rows) -> SolveLedger:
        ledger = SolveLedger(max_prompts=1_000)
        for prompt, source, solved in rows:
            ledger.update([f"p{prompt}"], [f"s{source}"], [solved], step=1)
        return ledger

    # A prompt lies in one source.
    rows = [(prompt, prompt % 3, solved) for prompt, _, solved in attempts]
    names = [f"p{i}" for i in range(31)]
    sources = [f"s{i % 3}" for i in range(31)]
    a, b = fill(rows).posterior(names, sources)
    assert (a > 0).all()
    assert (b > 0).all()
    again = fill(rows[::-1]).posterior(names, sources)
    np.testing.assert_allclose(a, again[0])
    np.testing.assert_allclose(b, again[1])
