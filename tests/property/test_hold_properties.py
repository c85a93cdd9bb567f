"""What ``hold`` adds on any round, that it is the gradient it claims to be, and what it does to a softmax policy."""

import dataclasses
import itertools
import json

import numpy as np
import pytest
from held import known
from hypothesis import given, settings
from hypothesis import strategies as st
from round_tables import round_table

from rlmon.interventions import hold
from rlmon.interventions.hold import Hold
from rlmon.interventions.intervention import Round

G = 8


def added(of, table, *, state=None, kappa=1.0):
    state = known(of) if state is None else state
    return hold.addition(of, state, hold.look(of, state.pool, table), table, kappa, 1.0)


# -- any round ---------------------------------------------------------------------------------------------------------

keys = st.sampled_from([-1, 0, 1, 2, -(2**63), 2**63 - 1])
rewards = st.sampled_from([0.0, 1.0, 1.0, 1.0, float("nan")])
advantages = st.sampled_from([-2.0, -0.5, 0.0, 0.5, 1.5])


@st.composite
def runs(draw):
    group_size, rng = draw(st.sampled_from([1, 3, 4])), np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    rounds = []
    for r in range(draw(st.integers(1, 12))):
        rows = group_size * draw(st.integers(0, 5))

        def column(of, rows=rows):
            return draw(st.lists(of, min_size=rows, max_size=rows))

        rounds.append(
            round_table(
                column(rewards), round=r, group_size=group_size, advantage=column(advantages),
                modes={"format": column(keys), "template": column(keys), "opening": column(keys)},
                truncated=column(st.integers(0, 1)), parsed=column(st.sampled_from([1, 1, 0])),
                sketch=np.sort(rng.integers(rng.choice([2, 60, 301]), size=(rows, 128), dtype=np.uint32), axis=1),
            )
        )  # fmt: skip
    return rounds


@settings(max_examples=40)
@given(runs(), st.floats(0, 1), st.floats(0, 4), st.sampled_from(["mean", "max"]))
def test_on_any_run_it_is_centred_bounded_and_resumable_and_gives_to_right_answers_alone(rounds, across, kappa, join):
    of = Hold(format=1.0, sketch=2.0, across=across, join=join)
    state = of.fresh()
    for now in rounds:
        group_size = now.group_size
        seen = hold.look(of, state.pool, now)
        state = hold.after(of, state, seen)
        again = of.load(json.loads(json.dumps(of.save(state), allow_nan=False)))
        pushed = dataclasses.replace(known(of), pool=state.pool)  # whatever the run has come to
        for one in (state, pushed):
            push = hold.addition(of, one, seen, now, kappa, 0.5)
            assert np.isfinite(push).all()
            of_group = np.zeros(len(now)) if group_size == 1 else np.arange(len(now)) // group_size
            for group in np.unique(of_group):
                assert abs(push[of_group == group].sum()) < 1e-9
            assert np.abs(push).max(initial=0.0) <= of.bound * 0.5 + 1e-12
            assert not push[(now.success_N != 1.0) | (now.truncated_N == 1) | (now.parsed_N == 0)].any()
            after = now.advantage_N + push
            for group in np.unique(of_group) if group_size > 1 else ():
                inside = of_group == group
                right, wrong = inside & (now.success_N == 1.0), inside & (now.success_N != 1.0)
                if right.any() and wrong.any() and now.advantage_N[right].min() > now.advantage_N[wrong].max():
                    assert after[right].min() > after[wrong].max()
        resumed = hold.look(of, again.pool, now)
        assert np.array_equal(resumed.away["across"], hold.look(of, state.pool, now).away["across"])
        assert len(state.pool) <= of.memory_completions
        steered = hold.control(of, state, 1.0)
        assert steered is None or of.bounds[0] <= steered <= of.bounds[1]


@settings(max_examples=25)
@given(st.integers(0, 2**32 - 1), st.sampled_from([16, 40, 500]))
def test_order_of_rows_and_groups_and_names_of_modes_do_not_matter(seed, memory):
    rng = np.random.default_rng(seed)
    of = Hold(format=1.0, memory_completions=memory)
    one, other = known(of), known(of)
    names = rng.permutation(6) + 100
    for r in range(4):
        mode_PG, good_PG = rng.choice(6, size=(6, G), p=[0.4, 0.2, 0.15, 0.1, 0.1, 0.05]), rng.random((6, G)) < 0.7
        place = np.arange(6 * G).reshape(6, G)
        place = rng.permuted(place[rng.permutation(6)], axis=1)
        prompt = np.repeat(np.arange(6), G) + 100 * r
        advantage = np.where(good_PG, 1.0, -1.0).ravel()
        plain = round_table(
            good_PG.ravel(), group_size=G, modes={"format": mode_PG.ravel()}, prompt=prompt, advantage=advantage
        )
        order = place.ravel()
        moved = round_table(
            good_PG.ravel()[order], group_size=G, modes={"format": names[mode_PG.ravel()[order]]},
            prompt=prompt[order], advantage=advantage[order],
        )  # fmt: skip
        a, b = hold.look(of, one.pool, plain), hold.look(of, other.pool, moved)
        one, other = hold.after(of, one, a), hold.after(of, other, b)
        push = hold.addition(of, one, a, plain, 1.0, 1.0)
        assert hold.addition(of, other, b, moved, 1.0, 1.0) == pytest.approx(push[order], abs=1e-9)
        assert other.within.now.mean == pytest.approx(one.within.now.mean)


# -- the gradient of -kappa C ------------------------------------------------------------------------------------------

KAPPA = 0.7


def softmax(z):
    p = np.exp(z - z.max(axis=-1, keepdims=True))
    return p / p.sum(axis=-1, keepdims=True)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Graded(Hold):
    """Hold by a kernel of one's own."""

    name = "hold_graded"

    def alike(self, one, other):
        return K[one["format"]][:, other["format"]]


SAME = np.eye(4)
K = np.array([[1.0, 0.6, 0.1, 0.0], [0.6, 1.0, 0.3, 0.2], [0.1, 0.3, 1.0, 0.9], [0.0, 0.2, 0.9, 1.0]])
UNBOUNDED = {"bound": 1e9, "of_gap": 0.95}


def expected(of, z, shape, right):
    """E[sum over rows of addition * grad log p] / rows, over every round of ``shape`` (groups, rows of each)."""
    p, total = softmax(z), np.zeros_like(z)
    groups, rows = shape
    for drawn in itertools.product(range(len(z)), repeat=groups * rows):
        m = np.array(drawn)
        good = right[m].astype(float)
        # A gap so wide that nothing is bounded by it.
        table = round_table(
            good, group_size=rows, modes={"format": m}, prompt=np.arange(len(m)) // rows, advantage=1e12 * good
        )
        push = added(of, table, kappa=KAPPA)
        if push.any():
            score = np.eye(len(z))[m] - p
            total += float(np.prod(p[m])) * (push[:, None] * score).sum(0) / len(m)
    return total


def gradient(z, right, kernel, weight=1.0):
    """-kappa dC/dz by differences, with C = sum q q' k over right answers; ``weight``: how much of it comes in."""

    def collision(at):
        q = softmax(at) * right
        q = q / q.sum()
        return q @ kernel @ q

    steps = 1e-6 * np.eye(len(z))
    return np.array([-KAPPA * weight * (collision(z + h) - collision(z - h)) / 2e-6 for h in steps])


Z = np.array([0.9, 0.2, -0.4, -1.0])
ALL = np.array([True] * 4)


@pytest.mark.parametrize(("kind", "kernel"), [(Hold, SAME), (Graded, K)], ids=["formats", "graded"])
def test_within_a_prompt_it_is_the_gradient(kind, kernel):
    of = kind(format=1.0, across=0.0, **UNBOUNDED)
    assert expected(of, Z, (1, 4), ALL) == pytest.approx(gradient(Z, ALL, kernel), abs=1e-8)


@pytest.mark.parametrize(("kind", "kernel"), [(Hold, SAME), (Graded, K)], ids=["formats", "graded"])
def test_across_prompts_it_is_the_gradient(kind, kernel):
    of = kind(format=1.0, across=1.0, **UNBOUNDED)
    assert expected(of, Z, (2, 2), ALL) == pytest.approx(gradient(Z, ALL, kernel), abs=1e-8)


def test_wrong_answers_take_no_part_in_it():
    """Of four answers n are right: the gradient comes with weight n / 4 where n is 3 or 4, and 0 for fewer."""
    right = np.array([True, True, True, False])
    p = softmax(Z)[:3].sum()
    weight = 4 * p**3 * (1 - p) * 3 / 4 + p**4
    of = Graded(format=1.0, across=0.0, **UNBOUNDED)
    assert expected(of, Z, (1, 4), right) == pytest.approx(gradient(Z, right, K, weight), abs=1e-8)


# -- a softmax policy over classes of prompts and ways of answering ----------------------------------------------------

P0 = np.array([0.36, 0.2, 0.12, 0.12, 0.08, 0.055, 0.065])


def train(solve_CM, of, *, p0=P0, steps=300, rate=0.3, seed=0, groups=8):
    """REINFORCE with group-normalised advantages, logits by class and way, started at ``p0``: by step the effective
    number of right answers (order 2, mean over classes), accuracy and kappa."""
    rng = np.random.default_rng(seed)
    C = len(solve_CM)
    z = np.log(np.tile(p0, (C, 1)))
    state, kappa, path = None if of is None else of.fresh(), 0.0, []
    for t in range(steps):
        c_N = np.repeat(rng.integers(C, size=groups), G)
        p = softmax(z)
        m_N = (p[c_N].cumsum(1) > rng.random((len(c_N), 1))).argmax(1)
        good_N = (rng.random(len(c_N)) < solve_CM[c_N, m_N]).astype(float)
        good_PG = good_N.reshape(-1, G)
        advantage = (good_PG - good_PG.mean(1, keepdims=True)) / (good_PG.std(1, ddof=1, keepdims=True) + 1e-4)
        advantage_N = advantage.ravel()
        if of is not None:
            table = round_table(good_N, group_size=G, round=t, modes={"format": m_N}, advantage=advantage_N)
            now = Round(table=table, level=kappa, acting=kappa > 0.0, dry_run=False, scale=1.0)
            state, change = of.on_round(state, now)
            advantage_N = advantage_N + (0.0 if change.addition_N is None else change.addition_N)
            if t % 2 == 1:
                steered = hold.control(of, state, kappa)
                kappa = kappa if steered is None else steered
        gradient_CM = np.zeros_like(z)
        np.add.at(gradient_CM, (c_N, m_N), advantage_N)
        np.subtract.at(gradient_CM, c_N, advantage_N[:, None] * p[c_N])
        z = z + rate * C * gradient_CM / len(c_N)
        right = softmax(z) * solve_CM
        q = right / right.sum(1, keepdims=True)
        path.append(((1.0 / (q**2).sum(1)).mean(), right.sum(1).mean(), kappa))
    return np.array(path)


BY_FORMAT = Hold(format=1.0)


@pytest.mark.parametrize("seed", range(2))
def test_a_policy_that_collapses_without_it_keeps_its_kinds_and_its_reward(seed):
    """Twenty-one ways, six of which are right nine times in ten: what is learned is which."""
    p0 = np.array([0.045] * 20 + [0.1])
    solve = np.array([[0.0] * 15 + [0.9] * 6])
    free, held = train(solve, None, p0=p0, seed=seed), train(solve, BY_FORMAT, p0=p0, seed=seed)
    late = slice(-50, None)
    assert free[0, 0] > 5.0
    assert free[late, 0].mean() < 1.2
    assert held[late, 0].mean() > 3.5
    # What there is to be learned is .9.
    assert free[late, 1].mean() > 0.88
    assert held[late, 1].mean() > 0.85
    assert held[late, 2].mean() < held[:, 2].max(), "and less is spent once it is held"


@pytest.mark.parametrize(("centre", "kinds"), [("group", 1.8), ("run", 2.4)])
def test_what_is_decided_while_few_are_right_is_held_back(centre, kinds):
    """Eighty ways, twenty of them right, one answer in eight; four prompts a round and a learning rate at which all but
    one way is gone after 25 rounds: nothing would be left to hold once the base is known."""
    wrong, right = (np.random.default_rng(seed).dirichlet(np.full(n, 0.5)) for seed, n in ((5, 60), (6, 20)))
    p0 = np.concatenate([0.88 * wrong, 0.12 * right])
    solve = np.array([[0.0] * 60 + [0.95] * 20])
    free, held = (
        np.mean([train(solve, of, p0=p0, rate=1.0, groups=4, steps=80, seed=seed) for seed in range(3)], axis=0)
        for of in (None, Hold(format=1.0, kappa=2.0, bounds=(2.0, 8.0), enough=8.0, of_gap=0.8, centre=centre))
    )
    assert free[25, 0] < 1.3
    assert held[-20:, 0].mean() > kinds
    assert held[-1, 1] > free[-1, 1] - 0.08


def test_where_nothing_narrows_little_is_spent():
    held = train(np.full((1, 7), 0.9), BY_FORMAT, steps=200)
    assert (held[:, 2] == 0.0).mean() > 0.8
    assert held[:, 2].mean() < 0.1


def test_one_better_way_is_preferred_within_the_line():
    solve = np.full((1, 7), 0.65)
    solve[0, 2] = 0.98
    free, held = train(solve, None), train(solve, BY_FORMAT)
    assert free[-1, 0] < 1.1
    assert held[-50:, 0].mean() > 0.6 * held[0, 0]
    assert held[-50:, 1].mean() > held[0, 1] + 0.03


def test_prompts_that_each_have_a_best_way_are_held_within():
    solve = np.full((4, 7), 0.65)
    solve[np.arange(4), [1, 2, 4, 6]] = 0.98
    free, held = train(solve, None, steps=500), train(solve, BY_FORMAT, steps=500)
    assert free[-1, 0] < 1.5
    assert held[-50:, 0].mean() > 0.6 * held[0, 0]


def test_a_round_of_256_takes_milliseconds():
    import time

    rng = np.random.default_rng(0)
    of = Hold(moves=1.0, sketch=1.0)
    tables = [
        round_table(
            np.ones(256), group_size=8, round=r, modes={"template": rng.integers(50, size=256)},
            sketch=np.sort(rng.integers(2000, size=(256, 128), dtype=np.uint32), axis=1),
            openers=rng.integers(64, size=(256, 64)) << 32 | 2**25,
        )
        for r in range(2)
    ]  # fmt: skip
    pool = hold.look(of, of.fresh().pool, tables[0]).pool
    began = time.process_time()
    hold.look(of, pool, tables[1])
    assert time.process_time() - began < 2.0
