"""Silent groups, lone successes and the ledger of solve rates."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

import numpy as np
import pytest
import scipy.stats

from rlmon.keys import content_key, recorded_source_key, source_key, source_label
from rlmon.metrics.groups import group_statistics
from rlmon.metrics.ledger import STATE_BYTES_PER_PROMPT, SolveLedger
from rlmon.metrics.success import TOTAL, Success


def won(rewards: Sequence[float | None]) -> np.ndarray:
    return Success({TOTAL: 0.5}).of(rewards, {})


def test_groups_on_paper() -> None:
    # G=3. Group 0: all 1 (good). 1: all 0 (bad). 2: 1 0 0 (lone). 3: only two rows here (partial).
    reward = [1, 1, 1, 0, 0, 0, 1, 0, 0, 1, 1]
    stats = group_statistics(range(11), reward, 3, advantages=[0.5] * 11, success=won(reward))
    assert (stats.whole, stats.partial) == (3, 1)
    assert stats.all_good_P.tolist() == [True, False, False]
    assert stats.all_bad_P.tolist() == [False, True, False]
    assert stats.lone_P.tolist() == [False, False, True]
    assert np.flatnonzero(stats.lone_B).tolist() == [6]
    # sd of (1, 0, 0) with ddof=1: mean 1/3, squares 4/9 + 1/9 + 1/9 = 2/3, over 2 -> sqrt(1/3).
    np.testing.assert_allclose(stats.reward_std_P, [0.0, 0.0, np.sqrt(1 / 3)])


def test_groups_of_which_nothing_is_trained_on_are_not_counted() -> None:
    # G=2. Group 0 (bad) is dropped, of group 1 (good) one row is trained, group 2 (lone) whole.
    trained = np.array([False, False, False, True, True, True])
    reward = [0, 0, 1, 1, 1, 0]
    stats = group_statistics(range(6), reward, 2, success=reward, trained_B=trained)
    assert (stats.whole, stats.all_bad_P.sum(), stats.all_good_P.sum(), stats.lone_P.sum()) == (2, 0, 1, 1)
    assert stats.group_B.tolist() == [-1, -1, 1, 1, 2, 2]
    assert np.flatnonzero(stats.lone_B).tolist() == [4]
    assert stats.success_B.tolist() == [False, False, True, True, True, False], (
        "what was sampled is judged all the same"
    )


def test_group_rewards_that_are_missing_or_not_finite_do_not_count() -> None:
    # Group 0 has one finite reward: neither silent nor lone. Group 1 has 1, NaN, 1: all good among the finite.
    reward = [None, float("inf"), 1.0, 1.0, float("nan"), 1.0]
    stats = group_statistics(range(6), reward, 3, success=won(reward))
    assert stats.size_P.tolist() == [1, 2]
    assert stats.all_good_P.tolist() == [False, True]
    assert not stats.lone_P.any()
    assert not stats.lone_B.any()


def test_a_group_with_spread_is_not_silent_though_nothing_in_it_succeeds() -> None:
    stats = group_statistics(range(4), [0.1, 0.4, 0.6, 0.9], 2, success=won([0.1, 0.4, 0.6, 0.9]))
    assert not stats.all_bad_P.any()
    assert not stats.all_good_P.any()


def test_equal_rewards_without_success_are_bad_and_a_batch_std_is_not_asked() -> None:
    # Every group is silent though the batch has spread (scale_rewards="batch").
    reward = [-1.0, -1.0, 1.0, 1.0]
    stats = group_statistics(range(4), reward, 2, success=won(reward))
    assert stats.all_bad_P.tolist() == [True, False]
    assert stats.all_good_P.tolist() == [False, True]


def test_where_a_success_is_not_known_a_silent_group_is_neither_good_nor_bad() -> None:
    # Group 0: equal rewards, all known to fail; 1: equal rewards, one row unknown; 2: lone but for one unknown row.
    reward = [0.3, 0.3, 0.3, 0.7, 0.7, 0.7, 1.0, 0.0, 0.0]
    known = [0.0, 0.0, 0.0, 1.0, 1.0, None, 1.0, 0.0, None]
    stats = group_statistics(range(9), reward, 3, success=known)
    assert stats.silent_P.tolist() == [True, True, False]
    assert stats.classified_P.tolist() == [True, False, False]
    assert stats.all_bad_P.tolist() == [True, False, False]
    assert not stats.all_good_P.any()
    assert not stats.lone_P.any()
    nothing = group_statistics(range(9), reward, 3)
    assert not (nothing.all_good_P | nothing.all_bad_P | nothing.classified_P).any()
    assert nothing.silent_P.sum() == 2


def test_ledger_posterior_on_paper() -> None:
    ledger = SolveLedger()
    ledger.update(["p"] * 10, ["s"] * 10, [False] * 10, step=1)
    ledger.update(["q"] * 10, ["s"] * 10, [True] * 5 + [False] * 5, step=1)
    assert ledger.counts("p") == (10, 0)
    # p's prior mean leaves p out: (5 + 1) / (10 + 2) = .5. Strength: m = 6/22 = .2727, m(1 - m) = .1983;
    # spread (.2727^2 + .2273^2)/.1983 = .6354; rho = (.6354 - .2) / 1.8 = .2419; 1/rho - 1 = 3.134.
    a, b = ledger.posterior(["p"], ["s"])
    assert a[0] == pytest.approx(0.5 * 3.134, abs=2e-3)
    assert b[0] == pytest.approx(0.5 * 3.134 + 10, abs=2e-3)
    # q's leaves q out: (0 + 1) / (10 + 2) = 1/12, then its own 5 of 10.
    a, b = ledger.posterior(["q"], ["s"])
    assert a[0] == pytest.approx(3.134 / 12 + 5, abs=2e-3)
    assert b[0] == pytest.approx(3.134 * 11 / 12 + 5, abs=2e-3)


def test_a_prompt_that_is_met_under_another_source_stays_with_its_first() -> None:
    ledger = SolveLedger()
    ledger.update(["p"] * 8, ["s"] * 8, [1.0] * 8, step=1)
    # p's prior mean leaves p out, (0 + 1) / (0 + 2), whatever is asked with it: not (0 - 8 + 1) / (0 - 8 + 2).
    own, others = ledger.posterior(["p"], ["s"]), ledger.posterior(["p", "p"], ["t", "s"])
    for mine, theirs in zip(own, others, strict=True):
        assert mine[0] > 0
        assert theirs.tolist() == [mine[0]] * 2


def test_a_source_whose_name_looks_like_a_key_has_a_key_of_its_own() -> None:
    name = "0123456789ab"
    assert source_key(name) == source_label(content_key(name)) != name
    assert recorded_source_key(source_key(name)) == source_key(name)
    assert recorded_source_key("plums") == source_key("plums")
    by_name, by_key = SolveLedger(), SolveLedger()
    by_name.update(["p"], [name], [1.0], step=1)
    by_key.update(["p"], [content_key(name)], [1.0], step=1)
    assert by_name.state() == by_key.state()


def test_only_a_prompt_with_evidence_is_credibly_hard() -> None:
    ledger = SolveLedger()
    ledger.update(["hard"] * 64, ["s"] * 64, [0.0] * 64, step=1)
    ledger.update(["new"] * 2, ["s"] * 2, [0.0] * 2, step=1)
    ledger.update(["easy"] * 64, ["s"] * 64, [1.0] * 64, step=1)
    hard = ledger.credibly_below(["hard", "new", "easy", "unseen", "hard"], ["s"] * 5)
    assert hard.tolist() == [True, False, False, False, True]
    a, b = ledger.posterior(["hard"], ["s"])
    assert scipy.stats.beta.cdf(0.125, a[0], b[0]) > 0.95


def test_missing_rewards_are_no_attempt_and_minus_one_is_no_success() -> None:
    ledger = SolveLedger()
    ledger.update(["p"] * 4, ["s"] * 4, [None, float("nan"), -1.0, 1.0], step=1)
    assert ledger.counts("p") == (2, 1)


def test_ledger_survives_json() -> None:
    ledger = SolveLedger(max_prompts=100)
    ledger.update([f"p{i}" for i in range(40)], [f"s{i % 3}" for i in range(40)], [i % 2 for i in range(40)], step=7)
    state = json.loads(json.dumps(ledger.state()))
    again = SolveLedger.load(state)
    assert again.state() == ledger.state()
    asked = ["p1", "x"], ["s1", "s2"]
    np.testing.assert_array_equal(again.posterior(*asked), ledger.posterior(*asked))
    again.update(["p1"], ["s1"], [1], step=8)
    assert again.counts("p1") == (2, 2)
    with pytest.raises(ValueError, match="version"):
        SolveLedger.load({**state, "version": 2})


def test_ledger_is_bounded_and_forgets_the_oldest() -> None:
    ledger = SolveLedger(max_prompts=64, max_sources=2)
    for step in range(400):
        ledger.update([f"p{step}", "always"], [f"s{step}", "s0"], [1, 0], step=step)
    assert len(ledger) <= 64
    assert ledger.counts("always") == (400, 0)
    assert ledger.counts("p0") == (0, 0)
    assert ledger.counts("p399") == (1, 1)


def test_ledger_bytes_per_prompt_are_as_stated() -> None:
    ledger = SolveLedger(max_prompts=5_000)
    ledger.update([f"p{i}" for i in range(5_000)], ["s"] * 5_000, [1] * 5_000, step=1)
    stored = sum(len(value) for value in ledger.state().values() if isinstance(value, str))
    assert stored * 3 / 4 / 5_000 == pytest.approx(STATE_BYTES_PER_PROMPT, rel=0.01)
    # In memory: the columns, a dict slot and two int objects a prompt.
    index = sys.getsizeof(ledger._slot) + 5_000 * (sys.getsizeof(2**63) + sys.getsizeof(5_000))
    columns = sum(getattr(ledger, name).nbytes for name in ledger._columns())
    assert (index + columns) / 5_000 <= 160


def test_a_group_on_two_ranks_is_counted_once() -> None:
    # Three groups of 4 over two ranks of 6: the middle one has rows 4, 5 here and 6, 7 there.
    reward = [1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0]
    whole = {"round_reward": reward, "round_success": won(reward)}
    first = group_statistics(range(6), reward[:6], 4, success=won(reward[:6]), **whole)
    second = group_statistics(range(6, 12), reward[6:], 4, success=won(reward[6:]), **whole)
    assert (first.whole, second.whole) == (2, 1)
    assert first.partial == second.partial == 0
    assert first.all_good_P.tolist() == [True, False]
    assert second.all_bad_P.tolist() == [False, True]
    # Its lone success, row 7, is known to be one on the rank that holds it; the group is counted by the other.
    assert first.lone_P.tolist() == [False, True]
    assert second.lone_P.tolist() == [False, False]
    assert second.lone_B.tolist() == [False, True, False, False, False, False]
    assert second.size_P.tolist() == [0, 4]
    alone = group_statistics(range(6), reward[:6], 4)
    assert (alone.whole, alone.partial) == (1, 1)
