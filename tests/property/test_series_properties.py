"""The change of a mean in autocorrelated series: rarely found where there is none, found where it is large."""

from __future__ import annotations

import math

import numpy as np
import pytest

from rlmon import series

RUNS = 4_000


def ar1(phi: float, values: int, seed: int, noise: float = 0.0) -> np.ndarray:
    """Series of unit variance [RUNS, values], under white noise of so many standard deviations."""
    random = np.random.default_rng(seed)
    x = random.standard_normal((RUNS, values))
    for at in range(1, values):
        x[:, at] = phi * x[:, at - 1] + math.sqrt(1 - phi * phi) * x[:, at]
    return x + noise * random.standard_normal((RUNS, values))


@pytest.mark.parametrize("values", [6, 7, 10, 20, 40])
@pytest.mark.parametrize(("phi", "noise"), [(0.0, 0.0), (0.5, 0.0), (0.8, 0.0), (0.95, 0.0), (0.8, 1.2), (0.95, 1.0)])
def test_no_change_is_rarely_found(phi: float, noise: float, values: int) -> None:
    x = ar1(phi, 2 * values, seed=values, noise=noise)
    found = series.shift(x[:, :values], x[:, values:]).distinct.mean()
    # At most .10, with 4,000 runs: .10 + 2.6 sqrt(.1 x .9 / 4,000) = .112. Measured: .009 to .081.
    assert found < 0.10 + 2.6 * math.sqrt(0.1 * 0.9 / RUNS)


@pytest.mark.parametrize(
    ("phi", "values", "least"), [(0.0, 10, 0.8), (0.0, 20, 0.98), (0.5, 20, 0.75), (0.5, 40, 0.95)]
)
def test_a_change_of_three_standard_deviations_is_mostly_found(phi: float, values: int, least: float) -> None:
    x = ar1(phi, 2 * values, seed=values)
    x[:, values:] += 3.0
    moved = series.shift(x[:, :values], x[:, values:])
    assert moved.distinct.mean() > least
    assert (moved.change[moved.distinct] > 0).all()


def test_a_change_is_no_part_of_the_correlation() -> None:
    x = ar1(0.0, 40, seed=1)
    still = series.shift(x[:, :20], x[:, 20:]).correlation
    x[:, 20:] += 50.0
    assert np.allclose(series.shift(x[:, :20], x[:, 20:]).correlation, still)


def test_a_slow_series_is_too_short() -> None:
    x = ar1(0.95, 40, seed=2)
    assert series.shift(x[:, :20], x[:, 20:]).enough.mean() < 0.3
    x = ar1(0.0, 40, seed=2)
    assert series.shift(x[:, :20], x[:, 20:]).enough.all()


def test_what_never_moves_and_then_jumps_is_found() -> None:
    assert series.shift(np.ones(6), np.full(6, 2.0)).distinct
    assert not series.shift(np.ones(6), np.ones(6)).distinct


def test_too_few_values_are_refused() -> None:
    with pytest.raises(ValueError, match="6 each are needed"):
        series.shift(np.ones(5), np.ones(20))
