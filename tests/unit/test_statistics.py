"""The shared statistics against SciPy and closed forms."""

import math

import numpy as np
import pytest
import scipy.spatial
import scipy.special
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from rlmon import statistics as stats


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 5, 7, 8, 15, 31, 63, 200, 2000])
def test_students_quantiles_and_tails_are_those_of_scipy(degrees: int) -> None:
    for p in (0.5, 0.9, 0.975, 0.995, 0.9995, 0.999999):
        # the tail is 1 less a sum of order 1, so that 1e-16 is lost: 1e-10 of a tail of 1e-6
        assert stats.t_quantile(p, degrees) == pytest.approx(scipy.stats.t.ppf(p, degrees), rel=1e-7, abs=1e-9)
    for t in (0.0, 0.3, 2.0, 5.0, 15.0):
        wanted = max(2 * scipy.stats.t.sf(t, degrees), stats.LEAST_P)
        assert stats.t_two_sided_p(-t, degrees) == pytest.approx(wanted, rel=1e-3)


def test_what_students_t_cannot_answer() -> None:
    for p, degrees in ((0.4, 3), (1.0, 3), (0.9, 0)):
        with pytest.raises(ValueError, match="degree of freedom"):
            stats.t_quantile(p, degrees)


@pytest.mark.parametrize(("a", "b"), [(0.3, 5.0), (1.0, 1.0), (2.5, 40.0), (400.0, 1000.0), (0.01, 0.02), (32.0, 0.5)])
def test_beta_cdf_is_scipy(a: float, b: float) -> None:
    x = np.array([0.0, 1e-6, 0.01, 0.125, 0.3, 0.5, 0.9, 1.0])
    assert stats.beta_cdf(x, a, b) == pytest.approx(scipy.stats.beta.cdf(x, a, b), abs=1e-10)


@pytest.mark.parametrize(
    ("x", "a", "b", "expected"),
    [
        (0.3, 2, 3, 0.3483),  # sum over k = 2..4 of C(4,k) .3^k .7^(4-k)
        (0.7, 2, 3, 0.9163),
        (0.125, 1, 78, 1 - 0.875**78),
        (0.4, 5, 1, 0.4**5),
        (0.0, 2, 3, 0.0),
        (1.0, 2, 3, 1.0),
    ],
)
def test_closed_forms_of_beta(x: float, a: float, b: float, expected: float) -> None:
    assert float(stats.beta_cdf(x, a, b)) == pytest.approx(expected, abs=1e-12)


@settings(max_examples=100)
@given(st.floats(0.05, 30), st.floats(0.05, 30))
def test_beta_rises_from_0_to_1_and_mirrors(a: float, b: float) -> None:
    grid = np.linspace(0, 1, 41)
    values = stats.beta_cdf(grid, a, b)
    assert (np.diff(values) >= -1e-12).all()
    assert values[[0, -1]].tolist() == [0.0, 1.0]
    assert values + stats.beta_cdf(1 - grid, b, a) == pytest.approx(np.ones(41), abs=1e-9)


def test_log_gamma_is_scipy() -> None:
    x = np.array([0.01, 0.5, 1.0, 2.0, 3.7, 40.0, 1e4])
    assert stats.log_gamma(x) == pytest.approx(scipy.special.gammaln(x), rel=1e-12, abs=1e-13)


def test_effective_number_and_distance_are_scipy() -> None:
    rng = np.random.default_rng(0)
    p, q = rng.integers(0, 20, 12), rng.integers(0, 20, 12)
    many = stats.effective_number(np.stack([p, q, np.zeros(12)]))
    assert many[:2] == pytest.approx([math.exp(scipy.stats.entropy(p)), math.exp(scipy.stats.entropy(q))])
    assert math.isnan(many[2])
    assert float(stats.effective_number([3, 0])) == 1.0
    assert stats.js_distance(p, q) == pytest.approx(scipy.spatial.distance.jensenshannon(p, q, base=2))
    several = stats.js_distance(np.stack([p, q, np.zeros(12)]), q)
    assert several[:2] == pytest.approx([stats.js_distance(p, q), 0.0])
    assert np.isnan(several[2])
    assert np.isnan(stats.js_distance(np.ones(3), np.zeros(3)))


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4), st.booleans()), max_size=30))
def test_sums_by_key_are_those_of_a_loop(rows: list[tuple[int, int, bool]]) -> None:
    key, value, mine = np.array(rows, dtype=np.int64).reshape(-1, 3).T
    found = stats.ByKey(key, mine == 1)
    expected: dict[int, list[int]] = {}
    for one, of, taken in sorted(rows):
        if taken:
            expected.setdefault(one, []).append(of)
    assert found.keys.tolist() == list(expected)
    assert found.total(value).tolist() == [sum(of) for of in expected.values()]
    assert found.total(np.stack([value, -value], axis=1)).tolist() == [[sum(of), -sum(of)] for of in expected.values()]
    means = [sum(of) / len(of) for of in expected.values()]
    assert found.ratio(value, np.ones(len(rows))).tolist() == pytest.approx(means)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4)), max_size=30))
def test_the_effective_number_of_each_owner_is_that_of_its_counts(rows: list[tuple[int, int]]) -> None:
    owner, value = np.array(rows, dtype=np.int64).reshape(-1, 2).T
    found = stats.effective_number_of_each(value, owner, 4)
    for one in range(4):
        own = value[owner == one]
        expected = stats.effective_number(np.bincount(own, minlength=5)) if own.size > 1 else math.nan
        assert found[one] == pytest.approx(expected, nan_ok=True)
    assert stats.distinct_of_each(value, owner, 4).tolist() == [
        len(set(value[owner == one].tolist())) for one in range(4)
    ]


def test_histogram_quantile_is_within_a_bin() -> None:
    values = np.random.default_rng(0).exponential(0.7, 5_000)
    edges = np.concatenate([[0.0], np.geomspace(1e-4, 16.0, 256)])
    counts = np.histogram(values, edges)[0]
    for share in (0.0, 0.2, 0.5, 0.95, 1.0):
        assert stats.histogram_quantile(counts, edges, share) == pytest.approx(np.quantile(values, share), rel=0.05)
    assert stats.histogram_quantile(np.zeros(3), np.arange(4.0), 0.5) is None


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=20), st.integers(1, 7))
def test_trailing_mean_is_the_mean_of_the_last_few(values: list[float], window: int) -> None:
    found = stats.trailing_mean(values, window)
    for at in range(len(values)):
        part = values[max(0, at - window + 1) : at + 1]
        assert found[at] == pytest.approx(sum(part) / len(part), abs=1e-9)


def test_a_ratio_of_nothing_is_not_a_number() -> None:
    halves = stats.ratio(np.array([1.0, 0.0]), np.array([2.0, 0.0]))
    assert halves[0] == 0.5
    assert math.isnan(halves[1])


def test_hashes_of_integers_are_those_that_logs_were_sampled_by() -> None:
    places = np.arange(3, dtype=np.uint64)
    # splitmix64 with seed 0 (Steele et al. 2014): its first outputs, of counters 1 and 2.
    assert [hex(value) for value in stats.splitmix64(places[1:] * stats.GOLDEN)] == [
        "0xe220a8397b1dcdaf",
        "0x6e789e6aa1b965f4",
    ]
    assert stats.hashed(places, 7).tolist() == [16743478909532023646, 8117291557761468393, 18034412292537157879]
    assert np.unique(stats.hashed(np.arange(10_000, dtype=np.uint64), 0)).size == 10_000
