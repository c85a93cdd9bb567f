"""The simulator behind the price of alarms: its tables against brute force, its intervals against scipy."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import beta

PATH = Path(__file__).resolve().parents[2] / "benchmarks" / "alarm_price.py"


@pytest.fixture(scope="module")
def simulator():
    spec = importlib.util.spec_from_file_location("alarm_price", PATH)
    module = importlib.util.module_from_spec(spec)
    sys.modules["alarm_price"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["alarm_price"]


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
