"""The simulator behind the price of alarms: its tables against brute force, its intervals against scipy."""

import importlib
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import beta, binom

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def simulator():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        yield importlib.import_module("alarm_price")


@pytest.fixture(scope="module")
def promise(simulator):
    return simulator.alarm_promise


@pytest.fixture(scope="module")
def rows(simulator):
    return simulator.Rows.load()


@pytest.mark.parametrize(("events", "trials"), [(0, 500), (1, 500), (5, 500), (20, 20), (7, 40)])
def test_clopper_pearson(simulator, events, trials):
    low, high = simulator.clopper_pearson(events, trials)
    assert low == pytest.approx(beta.ppf(0.025, events, trials - events + 1) if events else 0.0, abs=1e-9)
    assert high == pytest.approx(beta.ppf(0.975, events + 1, trials - events) if events < trials else 1.0, abs=1e-9)


def test_pair_tables_are_the_brute_force_means(simulator, rows):
    task = simulator.tasks(np.random.default_rng(0), len(rows.columns["mode_names"]), 1)[0]
    pool = simulator.build_pool(rows, task, 0.7, 6, 5)
    prompts, picks = simulator.draw_groups(rows, task, 0.7, 6, 5)
    mode = rows.columns["mode"][prompts[:, None], picks]
    h_MGB = rows.openers[prompts[:, None], picks]
    for i, j in ((0, 1), (2, 5), (4, 3)):
        assert pool.across["mode"][i, j] == pytest.approx(np.mean(mode[i][:, None] == mode[j][None, :]))
        overlap = np.minimum(h_MGB[i][:, None], h_MGB[j][None, :]).sum(-1).mean()
        assert pool.across["move"][i, j] == pytest.approx(overlap, abs=2e-3)
    same = (mode[0][:, None] == mode[0][None, :]).sum() - 8
    assert pool.within["mode"][0] == pytest.approx(same / 56)
    table = pool.across["mode"]
    assert simulator.mean_across(pool) == pytest.approx(table[~np.eye(6, dtype=bool)].mean())


def test_drift_ends_where_it_says(simulator, rows):
    task = simulator.tasks(np.random.default_rng(0), len(rows.columns["mode_names"]), 1)[0]
    base = simulator.build_pool(rows, task, 0.0, 200, 9)
    end = simulator.build_pool(rows, task, simulator.drift_for(rows, task, 0.8, 200, 9), 200, 9)
    # effective number is 1/C: .8 of the base within the grid's step
    assert simulator.mean_across(base) / simulator.mean_across(end) == pytest.approx(0.8, abs=0.02)
    assert end.winner.mean() > base.winner.mean()


def test_small_run_of_the_command(simulator, rows):
    healthy = simulator.healthy(rows, runs=4, looks=30, source_count=2, seed=1, groups=40, levels=3)
    assert not healthy["fail"].any()
    found = simulator.collapses(rows, runs=4, looks=200, seed=1, groups=60)
    fail = found["first"][:, 0, 1]
    assert (fail > 50).all()
    assert (fail < 160).all()


@pytest.mark.parametrize("spread", [1.0, 4.0])
@pytest.mark.parametrize("shape", range(4))
def test_no_false_fail_at_four_fifths_of_any_base(promise, shape, spread):
    # Every run draws its base of 32 prompts, and then stands at .8 of it. On the FAIL line itself, where nothing is
    # promised, the base's error alone gives tens of per cent.
    first = promise.at_the_edge(promise.SHAPES[shape], spread, runs=120, looks=250, seed=5)
    assert (first > 0).sum() <= binom.ppf(0.999, 120, 0.01)


@pytest.mark.parametrize("spread", [1.0, 4.0])
@pytest.mark.parametrize("kind", ["gamma", "lognormal"])
@pytest.mark.parametrize("detector", ["length-collapse", "entropy-collapse"])
def test_no_false_fail_where_low_is_bad_and_prompts_vary_by_their_mean(promise, detector, kind, spread):
    first = promise.low(detector, kind, spread, runs=200, looks=300, seed=5)
    assert (first > 0).sum() <= binom.ppf(0.999, 200, 0.01)
    # and a real collapse of such a statistic is seen: a tenth of the base
    found = promise.low(detector, kind, 1.0, runs=100, looks=60, seed=6, now=0.1)
    assert (found > 0).mean() > 0.9


@pytest.mark.parametrize("shape", range(4))
def test_collapses_that_stop_at_044_are_found(promise, shape):
    # Medians with the detectors before: 44, 62, 46 and 52 looks after the collapse began. Two more are allowed, and two
    # for the median of a hundred.
    first = promise.collapse(promise.SHAPES[shape], runs=100, looks=300, planned=2000, seed=5)
    found = first[first > 0] - promise.COLLAPSE_BEGINS
    assert len(found) >= 94
    assert np.median(found) <= (44, 62, 46, 52)[shape] + 4


def test_the_edge_of_the_promise_is_where_it_says(promise):
    # few wide formats at .8 of their base: E[Z] = .25 / .8 in either spread, and the spread four times as wide
    shape, rng = promise.SHAPES[0], np.random.default_rng(0)
    before = promise.Pool.of(rng, shape.shares, shape.alike, 400)
    assert before.means == pytest.approx(0.25, abs=0.01)
    at = np.triu_indices(400, 1)
    for spread in (1.0, 4.0):
        edge = promise.Edge.of(rng, shape, before.means / 0.8, spread, 400)
        means = [pool.means for pool in edge.pools]
        assert (1 - edge.upper_P) * means[0] + edge.upper_P * means[1] == pytest.approx(before.means / 0.8)
        wide = np.mean([pool.products[0][at].std() for pool in edge.pools]) / before.products[0][at].std()
        assert wide == pytest.approx(4.0, rel=0.15) if spread == 4.0 else 1.0 <= wide < 2.0
