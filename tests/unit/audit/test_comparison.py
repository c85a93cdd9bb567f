"""The comparison of runs: sums by hand, SciPy as the independent truth, and how often it cries wolf."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import make_audit
import numpy as np
import pytest
import scipy.spatial.distance
import scipy.stats

from rlmon.audit import parting
from rlmon.audit.compared import COMPARISON_VERSION, MetricDifference
from rlmon.audit.comparison import compare
from rlmon.audit.parting import departure
from rlmon.audit.result import Audit, Check, MetricSummary, ModeStory
from rlmon.errors import ConfigError

NAME = "rlmon/format/effective"
Values = Sequence[float | None]


def run(
    series: Mapping[str, Values],
    *,
    steps: Sequence[int] | None = None,
    config: Mapping[str, Any] | None = None,
    modes: Mapping[str, tuple[float, float]] | None = None,
    checks: Sequence[Check] = (),
    effective: tuple[float, float] | None = None,
) -> Audit:
    """An audit of a run with these series; ``modes``: share at the base and at the end."""
    plain = make_audit.healthy(1)
    count = len(next(iter(series.values())))
    summary = MetricSummary(unit="modes", base=None, first=None, last=None, min=None, max=None)
    if effective is not None:
        summary = dataclasses.replace(summary, base=effective[0], last=effective[1])
    stories = [
        ModeStory(
            mode=mode, fate="steady", base_share=base, last_share=last, base_reward=None, last_reward=None,
            last_seen_step=None,
        )
        for mode, (base, last) in (modes or {}).items()
    ]  # fmt: skip
    return dataclasses.replace(
        plain,
        run=dataclasses.replace(plain.run, config=config or {}),
        steps=list(range(1, count + 1)) if steps is None else steps,
        series=series,
        metrics=dict.fromkeys(series, summary),
        modes=stories,
        checks=checks,
    )


def only(a: Sequence[Audit], b: Sequence[Audit]) -> MetricDifference:
    [found] = compare(a, b).metrics
    return found


def ends(values: Sequence[float], steps: int = 50) -> list[Audit]:
    """Runs that stay at these values: the mean of the last tenth is the value."""
    return [run({NAME: [value] * steps}) for value in values]


def ar1(rng: np.random.Generator, pairs: int, steps: int, correlation: float) -> np.ndarray:
    """[pairs, steps] with unit spread and this correlation between neighbours."""
    noise = rng.standard_normal((pairs, steps))
    values = np.empty_like(noise)
    values[:, 0] = noise[:, 0]
    for t in range(1, steps):
        values[:, t] = correlation * values[:, t - 1] + math.sqrt(1 - correlation**2) * noise[:, t]
    return values


# --- several runs a side: Welch -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ([4.8, 4.5, 4.9], [1.2, 1.5, 1.1]),
        ([4.8, 4.5, 4.9], [4.6, 4.7, 4.4]),
        ([1.0, 1.1], [2.0, 2.6, 2.2, 1.9]),
        ([1.0, 9.0], [2.0, 2.01]),
        ([3.0, 3.2, 2.9, 3.1, 3.05], [3.4, 3.1, 3.3, 3.35, 3.2]),
    ],
)
def test_several_runs_are_compared_by_welch(a: list[float], b: list[float]) -> None:
    found = only(ends(a), ends(b))
    # var(ddof=1) / n of each side; degrees of Welch and Satterthwaite, cut to a whole number.
    parts = [np.var(side, ddof=1) / len(side) for side in (a, b)]
    degrees = int(sum(parts) ** 2 / sum(part**2 / (len(side) - 1) for part, side in zip(parts, (a, b), strict=True)))
    error = math.sqrt(sum(parts))
    difference = float(np.mean(b) - np.mean(a))
    reach = scipy.stats.t.ppf(0.975, degrees) * error
    assert found.method == "runs"
    assert found.difference == pytest.approx(difference)
    assert (found.low, found.high) == (pytest.approx(difference - reach), pytest.approx(difference + reach))
    assert found.p == pytest.approx(2 * scipy.stats.t.sf(abs(difference) / error, degrees), rel=1e-6)
    exact = scipy.stats.ttest_ind(a, b, equal_var=False)
    assert found.p >= exact.pvalue * (1 - 1e-9)
    lower, higher = (int(exact.df), int(exact.df) + 1)
    assert found.p == pytest.approx(2 * scipy.stats.t.sf(abs(exact.statistic), lower), rel=1e-6)
    assert exact.pvalue >= 2 * scipy.stats.t.sf(abs(exact.statistic), higher) * (1 - 1e-9)


def test_sides_that_never_vary() -> None:
    apart, equal = only(ends([1.0, 1.0]), ends([2.0, 2.0])), only(ends([1.0, 1.0]), ends([1.0, 1.0]))
    assert (apart.p, apart.low, apart.high, apart.distinct) == (0.0, 1.0, 1.0, True)
    # Nothing varies and nothing differs: there is nothing to test, and it costs the others no share of the error.
    assert (equal.p, equal.low, equal.high, equal.distinct) == (None, 0.0, 0.0, False)


def test_one_run_on_a_side_has_no_welch() -> None:
    found = compare(ends([1.0]), ends([2.0, 2.5, 3.0]))
    assert [row.method for row in found.metrics] == ["steps"]
    assert any("noise of sampling, not that of seeds" in note for note in found.notes)
    assert not compare(ends([1.0, 1.1]), ends([2.0, 2.5])).notes


# --- one run a side: steps ----------------------------------------------------------------------------------------


def test_the_end_is_the_last_tenth_and_the_base_the_first() -> None:
    a = [10.0] * 10 + [0.0] * 70 + [2.0] * 20
    b = [12.0] * 10 + [0.0] * 80 + [1.0, 3.0] * 5
    found = only([run({NAME: a})], [run({NAME: b})])
    # 100 steps: the last 10 and the first 10.
    assert (found.base_a, found.base_b, found.last_a, found.last_b) == (10.0, 12.0, 2.0, 2.0)
    assert (found.difference, found.common_steps) == (0.0, 100)


def test_white_noise_has_the_textbooks_interval_and_correlated_noise_a_wider_one() -> None:
    rng = np.random.default_rng(3)
    reaches: dict[float, list[float]] = {}
    for correlation in (0.0, 0.8):
        for a, b in zip(*(ar1(rng, 30, 400, correlation) for _ in "ab"), strict=True):
            found = only([run({NAME: a.tolist()})], [run({NAME: b.tolist()})])
            assert found.low is not None
            assert found.high is not None
            reaches.setdefault(correlation, []).append((found.high - found.low) / 2)
    # 40 steps of a gap with spread sqrt(2), 39 degrees; and with (1 + .8) / (1 - .8) = 9 times the variance.
    textbook = scipy.stats.t.ppf(0.975, 39) * math.sqrt(2) / math.sqrt(40)
    assert np.mean(reaches[0.0]) == pytest.approx(textbook, rel=0.25)
    assert 2.2 < np.mean(reaches[0.8]) / textbook < 5.0


def test_too_few_steps_for_an_interval_are_not_measured() -> None:
    found = only([run({NAME: [1.0, 2.0, 3.0]})], [run({NAME: [5.0, 6.0, 8.0]})])
    assert (found.low, found.high, found.p, found.distinct) == (None, None, None, False)
    assert found.difference == pytest.approx(19 / 3 - 2)
    assert not compare([run({NAME: [1.0]})], [run({NAME: [2.0]})]).metrics


def test_the_effect_is_in_units_of_one_steps_noise() -> None:
    a, b = [0.0, 2.0] * 25, [10.0, 12.0] * 25
    found = only([run({NAME: a})], [run({NAME: b})])
    # Differences of neighbours in the first 8 steps: +2 and -2 in turn, four and three of them; over sqrt(2).
    noise = float(np.std([2.0, -2.0, 2.0, -2.0, 2.0, -2.0, 2.0])) / math.sqrt(2)
    assert found.effect == pytest.approx(10.0 / noise)
    assert only([run({NAME: [1.0] * 50})], [run({NAME: [2.0] * 50})]).effect is None


# --- which steps and metrics --------------------------------------------------------------------------------------


def test_only_steps_that_every_run_has_are_compared() -> None:
    a = run({NAME: [float(step) for step in range(1, 81)]})
    b = run({NAME: [1000.0 + step for step in range(2, 161, 2)]}, steps=list(range(2, 161, 2)))
    found = compare([a], [b])
    # 2, 4, ..., 80: 40 steps, the last tenth of which is one, so the least of five counts: 72, ..., 80.
    assert found.metrics[0].common_steps == 40
    assert (found.metrics[0].last_a, found.metrics[0].last_b) == (76.0, 1076.0)
    assert found.notes[0] == "40 steps are common to all runs; the longest run has 80."


def test_steps_where_a_run_was_not_measured_are_left_out_and_the_last_of_a_repeated_step_counts() -> None:
    a = run({NAME: [1.0, None, 1.0, 5.0, 1.0, 2.0]}, steps=[1, 2, 3, 4, 5, 5])
    b = run({NAME: [1.0, 9.0, math.nan, 1.0, 1.0]})
    found = only([a], [b])
    # 1, 4 and 5 are left: 1, 5, 2 against 1, 1, 1.
    assert (found.common_steps, found.last_a, found.last_b) == (3, pytest.approx(8 / 3), 1.0)


def test_nothing_in_common_is_said() -> None:
    apart = compare([run({NAME: [1.0] * 30})], [run({NAME: [1.0] * 30}, steps=list(range(100, 130)))])
    other = compare([run({"x": [1.0] * 30})], [run({"y": [1.0] * 30})])
    for found in (apart, other):
        assert (found.metrics, found.same) == ([], False)
        assert "No metric was measured on both sides at the same steps." in found.notes


def test_a_run_that_sampled_its_base_and_one_that_did_not_are_told_apart() -> None:
    first = run({NAME: [1.0] * 30})
    sampled = dataclasses.replace(first, run=dataclasses.replace(first.run, baseline={"kind": "base_sample"}))
    note = "Only some of these runs sampled their base"
    assert not [text for text in compare([first], [first]).notes if note in text]
    assert not [text for text in compare([sampled], [sampled]).notes if note in text]
    assert [text for text in compare([sampled], [first]).notes if note in text]
    assert not [text for text in compare([first], [first], sampled).notes if note in text]
    assert compare([first], [first]).base == "each run's own first steps"
    assert compare([sampled], [first]).base == "each run's own first steps, or the sample of its base"


def test_a_side_without_runs_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"rlmon compare A B"):
        compare([], [make_audit.healthy()])


def test_the_important_metrics_come_first_and_parts_of_others_are_left_out() -> None:
    names = ["zz", "rlmon/kl/mean", NAME, "aa", "rlmon/format/share/json", "rlmon/entropy/mode/json"]
    audit = run({name: [1.0] * 30 for name in names})
    assert [row.name for row in compare([audit], [audit]).metrics] == [NAME, "rlmon/kl/mean", "aa", "zz"]


# --- equal runs ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [make_audit.healthy, make_audit.collapsed, make_audit.hostile])
@pytest.mark.parametrize("runs", [1, 3])
def test_a_run_is_equal_to_itself(make: Any, runs: int) -> None:
    side = [make() for _ in range(runs)]
    found = compare(side, side)
    assert found.same
    assert found.headline.startswith("No difference: every metric")
    assert found.metrics
    for row in found.metrics:
        assert (row.difference, row.distinct, row.departure_step) == (0.0, False, None)
    assert not [row for row in found.settings if row.a != row.b]
    assert not [check for check in found.checks if check.differs]
    assert all(row.last_a == row.last_b for row in found.modes)


def test_one_value_is_enough_to_be_different() -> None:
    values: list[float | None] = [1.0] * 50
    other = [*values[:-1], 1.0 + 1e-12]
    assert compare([run({NAME: values})], [run({NAME: values})]).same
    assert not compare([run({NAME: values})], [run({NAME: other})]).same
    assert not compare([run({NAME: values})], [run({NAME: [*values[:-1], None]})]).same


# --- Holm ---------------------------------------------------------------------------------------------------------


def adjusted(ps: Sequence[float]) -> list[float]:
    """Holm's adjusted p by the definition: the largest of (m - rank) p over all p that are no larger."""
    count = len(ps)
    result = []
    for p in ps:
        smaller = sorted(other for other in ps if other <= p)
        result.append(min(1.0, max((count - rank) * other for rank, other in enumerate(smaller))))
    return result


def test_holm_is_its_definition() -> None:
    [row] = compare(ends([1.0, 1.1]), ends([1.2, 1.4])).metrics
    rng = np.random.default_rng(0)
    for count in (1, 2, 5, 40):
        for _ in range(40):
            ps = (10.0 ** rng.uniform(-5, 0, count)).tolist()
            rows = parting.holm([dataclasses.replace(row, p=p, distinct=True) for p in ps])
            assert [one.distinct for one in rows] == [p <= 0.05 for p in adjusted(ps)]
            assert [one.p for one in rows] == ps


def test_what_one_compares_runs_for_does_not_pay_for_other_curves() -> None:
    [row] = compare(ends([1.0, 1.1]), ends([1.2, 1.4])).metrics
    mine = dataclasses.replace(row, name="rlmon/format/effective", p=0.04)
    others = [dataclasses.replace(row, name=f"other {i}", p=0.5) for i in range(50)]
    # .04 <= .05 in a family of one; in one family of 51 it would have to be below .001.
    assert [one.distinct for one in parting.holm([mine, *others])] == [True] + [False] * 50
    assert not any(one.distinct for one in parting.holm([dataclasses.replace(mine, name="other"), *others]))


def test_metrics_without_p_neither_count_nor_are_distinct() -> None:
    [row] = compare(ends([1.0, 1.1]), ends([1.2, 1.4])).metrics
    rows = parting.holm([dataclasses.replace(row, p=p) for p in (None, 0.03, None)])
    assert [one.distinct for one in rows] == [False, True, False]
    rows = parting.holm([dataclasses.replace(row, p=p) for p in (0.03, 0.04)])
    assert [one.distinct for one in rows] == [False, False]


# --- where they part ----------------------------------------------------------------------------------------------


def stepped(*pieces: tuple[int, float], noise: float = 0.1) -> np.ndarray:
    """Pieces of (steps, level) with noise that is +, -, +, - in turn."""
    gap = np.concatenate([np.full(steps, level) for steps, level in pieces])
    return gap + noise * np.where(np.arange(gap.size) % 2 == 0, 1.0, -1.0)


def at(gap: np.ndarray) -> int | None:
    return departure(np.arange(1, gap.size + 1), gap)


def test_a_lasting_jump_is_found_where_it_begins() -> None:
    # The jump is at the 61st step; the mean over five steps is past any band between the two levels by the 65th.
    assert at(stepped((60, 0.0), (140, 5.0))) in range(61, 66)
    assert at(stepped((100, 0.0), (100, -5.0))) in range(101, 106)
    assert departure(np.arange(10, 2010, 10), stepped((60, 0.0), (140, 5.0))) in range(610, 660, 10)


@pytest.mark.parametrize(
    "gap",
    [
        np.zeros(200),
        np.full(200, 5.0),
        1e-15 * np.where(np.arange(200) < 60, 0.0, 1.0),
        stepped((200, 0.0)),
        # There and back again.
        stepped((60, 0.0), (60, 5.0), (80, 0.0)),
        # Less than a tenth of the steps at the end.
        stepped((185, 0.0), (15, 5.0)),
        # Fewer than 20 steps.
        stepped((9, 0.0), (10, 5.0)),
        np.zeros(0),
    ],
    ids=["equal", "always apart", "rounding", "noise", "there and back", "too late", "too short", "nothing"],
)
def test_what_is_no_departure(gap: np.ndarray) -> None:
    assert at(gap) is None


def test_the_last_side_counts() -> None:
    noise = np.random.default_rng(1).standard_normal(200)
    assert at(noise + stepped((40, 0.0), (60, 4.0), (100, -4.0))) in range(101, 106)


def test_a_departure_does_not_depend_on_units_or_order_of_the_sides() -> None:
    rng = np.random.default_rng(5)
    gap = stepped((80, 0.0), (120, 3.0)) + 0.3 * rng.standard_normal(200)
    found = at(gap)
    assert found is not None
    assert at(1000.0 * gap) == at(gap / 1000.0) == at(-gap) == at(gap + 7.0) == found


def test_equal_law_is_rarely_told_apart() -> None:
    """400 pairs of runs with the same law: what is found is a false alarm. A real gap is found."""
    rng = np.random.default_rng(11)
    last = max(parting.LAST_STEPS, round(parting.LAST_SHARE * 200))
    for correlation in (0.0, 0.5, 0.9):
        gaps = ar1(rng, 400, 200, correlation) - ar1(rng, 400, 200, correlation)
        departures = sum(at(gap) is not None for gap in gaps)
        small = 0
        for gap in gaps:
            error, degrees = parting._of_steps(gap, last)
            p = parting._p(float(gap[-last:].mean()), error, degrees)
            assert p is not None
            small += p < 0.05
        assert departures / 400 < 0.01
        assert small / 400 < 0.06
    moved = ar1(rng, 200, 200, 0.0) - ar1(rng, 200, 200, 0.0)
    moved[:, 80:] += 5.0
    assert sum(at(gap) is not None for gap in moved) / 200 > 0.95


def test_the_headline_names_the_wider_side_and_the_step() -> None:
    rng = np.random.default_rng(2)
    flat = [run({NAME: (4.0 + 0.1 * rng.standard_normal(100)).tolist()}) for _ in range(3)]
    fallen = [run({NAME: (stepped((50, 4.0), (50, 1.0)) + 0.1 * rng.standard_normal(100)).tolist()}) for _ in range(3)]
    found = compare(flat, fallen, names=("kl", "plain"))
    assert found.metrics[0].distinct
    assert found.metrics[0].departure_step == pytest.approx(52, abs=2)
    step = found.metrics[0].departure_step
    assert found.headline.startswith("kl ends with 4.")
    assert re.search(r"formats in use where plain has (1\.0|0\.9)", found.headline)
    assert f"they part at step {step}" in found.headline
    swapped = compare(fallen, flat, names=("plain", "kl"))
    assert swapped.headline == found.headline
    assert swapped.metrics[0].difference == pytest.approx(-found.metrics[0].difference)
    assert list(swapped.curves.steps) == ["plain", "plain 2", "plain 3", "kl", "kl 2", "kl 3"]


# --- settings -----------------------------------------------------------------------------------------------------


def settings(*configs: Mapping[str, Any]) -> list[Audit]:
    return [run({NAME: [1.0] * 30}, config=config) for config in configs]


def test_settings_that_differ() -> None:
    a = settings({"beta": 0.0, "seed": 1, "opt": {"lr": 1e-4, "eps": 1e-8}, "only_a": [1, 2], "output_dir": "x"})
    b = settings({"beta": 0.1, "seed": 2, "opt": {"lr": 1e-4, "eps": 1e-6}, "output_dir": "y"})
    found = compare(a, b)
    assert [(row.key, list(row.a), list(row.b)) for row in found.settings] == [
        ("beta", ["0.0"], ["0.1"]), ("only_a", ["[1, 2]"], []), ("opt.eps", ["1e-08"], ["1e-06"]),
    ]  # fmt: skip
    assert [row.key for row in found.other_settings] == ["output_dir", "seed"]
    assert found.settings_note.startswith("6 settings compared")


def test_settings_of_several_runs_are_sets() -> None:
    a, b = settings({"beta": 0.1}, {"beta": 0.0}), settings({"beta": 0.0}, {"beta": 0.1})
    assert not compare(a, b).settings
    [row] = compare(a, settings({"beta": 0.0})).settings
    assert (list(row.a), list(row.b)) == (["0.0", "0.1"], ["0.0"])


@pytest.mark.parametrize(
    ("a", "b", "said"),
    [({}, {}, "Neither side"), ({}, {"beta": 1}, "Side A did not"), ({"beta": 1}, {}, "Side B did not")],
)
def test_settings_that_were_not_logged(a: Any, b: Any, said: str) -> None:
    found = compare(settings(a), settings(b))
    assert (found.settings, found.other_settings) == ([], [])
    assert found.settings_note.startswith(said)


def policy(**kappas: float) -> dict[str, Any]:
    rules = {
        name: {"when": "always", "do": {"action": "mode_marginal", "kappa": kappa}} for name, kappa in kappas.items()
    }
    return {"beta": 0.0, "policy": {"dry_run": False, "rules": rules}}


def test_a_policy_is_a_setting() -> None:
    """One row where only one side has it, its knobs where both have, its action where one has a rule more."""

    def rows(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[tuple[str, list[str], list[str]]]:
        return [(row.key, list(row.a), list(row.b)) for row in compare(settings(a), settings(b)).settings]

    assert rows({"beta": 0.0}, policy(hold=0.3, near=0.1)) == [("policy", [], ["hold, near"])]
    assert rows(policy(hold=0.3), policy(hold=0.3)) == []
    assert rows(policy(hold=0.3), policy(hold=0.5)) == [("policy.rules.hold.do.kappa", ["0.3"], ["0.5"])]
    assert rows(policy(hold=0.3, near=0.1), policy(hold=0.3)) == [("policy.rules.near", ['"mode_marginal"'], [])]


# --- rewards ------------------------------------------------------------------------------------------------------


def rewarded(seed: int, total: float, **functions: float) -> Audit:
    noise = np.random.default_rng(seed)
    curves = {"rlmon/health/reward_mean": total} | {f"rewards/{name}": level for name, level in functions.items()}
    return run({name: (level + 0.01 * noise.standard_normal(100)).tolist() for name, level in curves.items()})


def test_what_only_one_side_is_rewarded_for_is_no_gain() -> None:
    a = rewarded(0, 0.3, correct=0.3)
    found = compare([a], [rewarded(1, 1.25, correct=0.25, language=1.0)], names=("a", "b"))
    assert re.fullmatch(
        r"b's reward has what a's has not: language; correct, which both have, ends lower in b \(0\.\d+ and 0\.\d+\).",
        found.headline,
    )
    assert "rlmon/health/reward_mean" not in {row.name for row in found.metrics}
    # The same functions on both sides: their sum is a measure, and each of them too.
    same = compare([a], [rewarded(1, 0.5, correct=0.5)], names=("a", "b"))
    assert re.search(r"b's reward ends 0\.2\d* higher", same.headline)
    assert {row.name for row in same.metrics if row.distinct} == {"rlmon/health/reward_mean", "rewards/correct"}
    # Nothing is known of the functions of one side: no claim about them.
    bare = compare([run({"rlmon/health/reward_mean": [0.3] * 100})], [rewarded(1, 0.5, correct=0.5)])
    assert "which both have" not in bare.headline


def test_hostile_and_huge_settings() -> None:
    hostile = make_audit.HOSTILE
    a = settings({"__proto__": {"polluted": True}, hostile: hostile, "huge": "x" * 10_000, "nan": math.nan})
    found = compare(a, settings({"__proto__": {"polluted": False}, "nan": math.inf, "k" * 1_000: 1}))
    for row in found.settings:
        assert len(row.key) <= 200
        assert all(value.isascii() or value.endswith("…") for value in (*row.a, *row.b))
        assert all(len(value) <= 300 for value in (*row.a, *row.b))
    assert {"__proto__.polluted", "huge", "nan"} <= {row.key for row in found.settings}


# --- formats, checks, sides ---------------------------------------------------------------------------------------


def test_formats_by_how_differently_the_sides_end() -> None:
    a = [run({NAME: [1.0] * 30}, modes={"json": (0.5, 0.2), "prose": (0.5, 0.8)}) for _ in range(2)]
    b = [
        run({NAME: [1.0] * 30}, modes={"json": (0.4, 0.0), "prose": (0.6, 1.0)}),
        run({NAME: [1.0] * 30}, modes={"json": (0.4, 0.5), "xml": (0.6, 0.5)}),
    ]
    rows = {row.mode: (row.base, row.last_a, row.last_b) for row in compare(a, b).modes}
    # Means over runs; a mode that a run never wrote has share 0 there.
    assert rows["json"] == (pytest.approx(1.8 / 4), pytest.approx(0.2), pytest.approx(0.25))
    assert rows["prose"] == (pytest.approx(1.6 / 4), pytest.approx(0.8), pytest.approx(0.5))
    assert rows["xml"] == (pytest.approx(0.6 / 4), 0.0, pytest.approx(0.25))
    assert list(rows) == ["prose", "xml", "json"]


def test_how_far_a_side_went_from_the_base() -> None:
    a = run({NAME: [1.0] * 30}, modes={"json": (0.5, 0.0), "prose": (0.5, 1.0)}, effective=(2.0, 1.0))
    b = run({NAME: [1.0] * 30}, modes={"json": (0.4, 0.4), "prose": (0.6, 0.6)}, effective=(1.9, 1.9))
    found = compare([a], [b])
    assert (found.a.kept_formats, found.b.kept_formats) == (0.5, 1.0)
    assert found.a.format_distance == pytest.approx(scipy.spatial.distance.jensenshannon([0, 1], [0.5, 0.5], base=2))
    assert found.b.format_distance == pytest.approx(0.0, abs=1e-9)
    other = compare([a], [b], base=a)
    assert other.b.kept_formats == pytest.approx(0.95)
    assert other.b.format_distance == pytest.approx(
        scipy.spatial.distance.jensenshannon([0.4, 0.6], [0.5, 0.5], base=2)
    )
    bare = compare([run({"x": [1.0] * 30})], [run({"x": [1.0] * 30})])
    assert (bare.a.kept_formats, bare.a.format_distance) == (None, None)


def test_checks_side_by_side() -> None:
    def check(name: str, status: Any, step: int | None = None) -> Check:
        return Check(id=name, title=f"{name}?", status=status, method="fold", message="", first_step=step)

    a = [run({NAME: [1.0] * 30}, checks=[check("x", "fail", step), check("y", "pass")]) for step in (5, 7)]
    b = [
        run({NAME: [1.0] * 30}, checks=[check("x", "pass"), check("y", "pass"), check("z", "skip")]),
        run({NAME: [1.0] * 30}, checks=[check("x", "fail", 9), check("y", "pass"), check("z", "skip")]),
    ]
    rows = compare(a, b).checks
    assert [(row.id, row.differs) for row in rows] == [("x", True), ("z", True), ("y", False)]
    assert (rows[0].a, rows[0].onsets_a) == (["fail", "fail"], [5, 7])
    assert (rows[0].b, rows[0].onsets_b) == (["pass", "fail"], [None, 9])
    assert rows[1].a == ["absent", "absent"]


def test_the_object_is_json_and_holds_no_curves() -> None:
    found = compare([make_audit.collapsed()], [make_audit.healthy(180)])
    values = found.to_json()
    assert "curves" not in values
    assert json.loads(json.dumps(values, allow_nan=False))["schema_version"] == COMPARISON_VERSION
