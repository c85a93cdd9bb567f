"""The mode-marginal pressure on any round, and what it does to a softmax policy that collapses without it."""

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from round_tables import round_table

from rlmon.interventions import mode_counts
from rlmon.interventions import mode_marginal as mm
from rlmon.interventions.mode_marginal import ModeMarginal
from studies.frontier import predicted_shares

G = 8


def observe(of, state, rows):
    return mode_counts.observe(state, rows, of.modes, of.memory_completions)


def table(mode_N, reward_N, *, round=0, group_size=G, source_N=None):
    sources = {} if source_N is None else {"source": source_N}
    return round_table(reward_N, round=round, group_size=group_size, modes={"format": mode_N}, **sources)


modes = st.sampled_from([-1, 0, 1, 2, 3, 5, 8, -(2**63), 2**63 - 1])
rewards = st.sampled_from([0.0, 1.0, -1.0, 0.5, 2.0, float("nan"), float("inf")])


@st.composite
def runs(draw):
    group_size = draw(st.sampled_from([1, 2, 4]))
    rounds = []
    for r in range(draw(st.integers(9, 14))):
        rows = group_size * draw(st.integers(0, 5))
        rounds.append(
            table(
                draw(st.lists(modes, min_size=rows, max_size=rows)),
                draw(st.lists(rewards, min_size=rows, max_size=rows)),
                round=r,
                group_size=group_size,
                source_N=draw(st.lists(st.integers(0, 2), min_size=rows, max_size=rows)),
            )
        )
    return rounds


@settings(max_examples=60)
@given(runs(), st.floats(0, 1), st.floats(0, 4))
def test_any_run_is_finite_bounded_centred_and_resumable(rounds, within, kappa):
    of = ModeMarginal(within=within)
    state = of.fresh()
    for now in rounds:
        state = observe(of, state, now)
        added = mm.addition(of, state, now, kappa)
        again = of.load(json.loads(json.dumps(of.save(state), allow_nan=False)))
        assert again == state
        assert np.array_equal(mm.addition(of, again, now, kappa), added)
        assert np.isfinite(added).all()
        assert abs(added.sum()) < 1e-9 * max(1.0, kappa) * max(1, len(added))
        unknown = (now.modes_N["format"] == -1) | ~np.isfinite(now.reward_N)
        assert not added[unknown].any()
        new = ~unknown & ~np.isin(now.modes_N["format"], list(state.base.rows))
        assert (added[new] <= 0.0).all()
        # Two values within the bound, their mean, and what the rest lost.
        assert np.abs(added).max(initial=0.0) <= kappa * of.bound * (2 + len(added)) + 1e-9
        assert all(value is None or np.isfinite(value) for value in mm.ratios(state).values())
        steered = mm.control(of, state, 1.0)
        assert steered is None or of.bounds[0] <= steered <= of.bounds[1]


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1), st.integers(1, 2**62))
def test_names_of_modes_and_order_of_groups_do_not_matter(seed, factor):
    rng = np.random.default_rng(seed)
    of = ModeMarginal()
    names = rng.permutation(6) * (factor // 6) + 1
    if len(set(names.tolist())) < 6:
        names = np.arange(6) + 1
    one, other = of.fresh(), of.fresh()
    for r in range(8):
        mode_PG = rng.choice(6, size=(8, G), p=[0.4, 0.2, 0.15, 0.1, 0.1, 0.05])
        good_PG = rng.integers(2, size=(8, G))
        order = rng.permutation(8)
        plain = table(mode_PG.ravel(), good_PG.ravel(), round=r)
        moved = table(names[mode_PG[order]].ravel(), good_PG[order].ravel(), round=r)
        one, other = observe(of, one, plain), observe(of, other, moved)
        added = mm.addition(of, one, plain, 1.0).reshape(8, G)
        assert mm.addition(of, other, moved, 1.0).reshape(8, G) == pytest.approx(added[order], abs=1e-9)


# -- a softmax policy over classes of prompts and modes ----------------------------------------------------------------

P0 = np.array([0.36, 0.2, 0.12, 0.12, 0.08, 0.055, 0.065])


def softmax(z):
    p = np.exp(z - z.max(axis=-1, keepdims=True))
    return p / p.sum(axis=-1, keepdims=True)


def train(solve_CM, *, kappa, within=0.5, steps=160, rate=0.3, seed=0, groups=8, fixed=None, control=False):
    """REINFORCE with group-normalised advantages, logits by class and mode, started at P0; the end's shares [C, M].

    ``fixed``: mean advantage by mode instead of sampled rewards, to compare with the predicted shares.
    """
    rng = np.random.default_rng(seed)
    C = len(solve_CM)
    z = np.log(np.tile(P0, (C, 1)))
    of = ModeMarginal(within=within)
    state, path = of.fresh(), []
    for t in range(steps):
        c_N = np.repeat(rng.integers(C, size=groups), G)
        p = softmax(z)
        m_N = (p[c_N].cumsum(1) > rng.random((len(c_N), 1))).argmax(1)
        good_N = (rng.random(len(c_N)) < solve_CM[c_N, m_N]).astype(float)
        good_PG = good_N.reshape(-1, G)
        advantage = (good_PG - good_PG.mean(1, keepdims=True)) / (good_PG.std(1, ddof=1, keepdims=True) + 1e-4)
        advantage_N = advantage.ravel() if fixed is None else fixed[m_N] - float(p.mean(0) @ fixed)
        now = table(m_N, good_N, round=t)
        state = observe(of, state, now)
        advantage_N = advantage_N + mm.addition(of, state, now, kappa)
        gradient = np.zeros_like(z)
        np.add.at(gradient, (c_N, m_N), advantage_N)
        np.subtract.at(gradient, c_N, advantage_N[:, None] * p[c_N])
        z = z + rate * C * gradient / len(c_N)
        if control and kappa and state.complete and t % 10 == 9:
            kappa = mm.control(of, state, kappa) or kappa
        path.append((p.mean(0), kappa))
    return softmax(z), state, path


def effective(p):
    return float(np.exp(-(p[p > 0] * np.log(p[p > 0])).sum()))


def solve(best_by_class, good=0.98, others=0.65):
    rates = np.full((len(best_by_class), len(P0)), others)
    rates[np.arange(len(best_by_class)), best_by_class] = good
    return rates


def test_without_it_the_policy_collapses_and_with_it_it_does_not():
    one_best = solve([2])
    free, _, _ = train(one_best, kappa=0.0)
    held, _, _ = train(one_best, kappa=1.0)
    assert effective(free[0]) < 0.5 * effective(P0)
    assert effective(held[0]) > 0.85 * effective(P0)
    # And it still likes the best mode more than the base did.
    assert held[0, 2] > 1.2 * P0[2]


def test_prompts_that_each_have_a_best_mode_need_the_pressure_within():
    by_class = solve([1, 2, 4, 6])
    across, _, _ = train(by_class, kappa=1.0, within=0.0, steps=240)
    both, _, _ = train(by_class, kappa=1.0, within=1.0, steps=240)
    base = effective(P0)
    # The marginal is wide in either; inside the classes only one is.
    assert effective(across.mean(0)) > 0.85 * base
    assert min(effective(p) for p in across) < 0.7 * base
    assert min(effective(p) for p in both) > 0.8 * base


def test_an_always_wrong_mode_of_a_fifth_dies_and_the_others_keep_their_proportions():
    rates = solve([2])
    rates[:, 1] = 0.0
    end, state, _ = train(rates, kappa=1.0)
    assert mm.undeserving(state) == {1}
    assert end[0, 1] < 0.05
    others = np.delete(end[0], 1)
    base = np.delete(P0, 1) / np.delete(P0, 1).sum()
    assert effective(others / others.sum()) > 0.85 * effective(base)


def test_the_shares_end_where_they_are_predicted():
    """Constant advantages by mode: the balance is at p0 exp(R / kappa) / Z, up to what is left alone as noise."""
    fixed = np.array([0.0, 0.0, 1.2, 0.0, 0.0, 0.0, 0.0])
    kappa = 1.5
    end, _, path = train(np.ones((1, 7)), kappa=kappa, within=0.0, fixed=fixed, steps=300, groups=32)
    late = np.mean([p for p, _ in path[-100:]], axis=0)
    predicted = predicted_shares(P0, fixed, kappa)
    # .12 e^.8 / (.88 + .12 e^.8) = .233
    assert predicted[2] == pytest.approx(0.2328, abs=1e-4)
    assert late[2] == pytest.approx(predicted[2], abs=0.05)
    assert abs(late - predicted).sum() / 2 < 0.1
    assert effective(end[0]) > 0.85 * effective(P0)


def test_a_steered_kappa_settles():
    _, _, path = train(solve([2]), kappa=1.0, control=True, steps=300)
    kappas = np.array([kappa for _, kappa in path])
    assert (kappas >= 0.25).all()
    assert (kappas <= 1.5).all()
    shares = np.array([p for p, _ in path[150:]])
    assert min(effective(p) for p in shares) > 0.7 * effective(P0)


def test_the_work_of_a_round_grows_no_faster_than_its_rows():
    import time

    def seconds(rows: int) -> float:
        rng = np.random.default_rng(0)
        of = ModeMarginal()
        now = table(rng.integers(100, size=rows), rng.integers(2, size=rows), source_N=rng.integers(64, size=rows))
        state = observe(of, observe(of, of.fresh(), now), dataclasses.replace(now, round=1))
        began = time.thread_time()
        mm.addition(of, observe(of, state, now), now, 1.0)
        return time.thread_time() - began

    # 11 times as much on a slow machine (0.07 and 0.8 s); pairs of rows would be 64 times as many.
    few, many = (min(seconds(rows) for _ in range(2)) for rows in (512, 4096))
    assert many < 24 * few
