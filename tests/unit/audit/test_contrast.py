"""The two ends of a run and the intervals between them, against sums by hand and the textbook's standard errors."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats

from rlmon.audit import contrast
from rlmon.audit.contrast import Contrast, windows


def groups(rng: np.random.Generator, base: int, last: int, same: bool = False) -> tuple[np.ndarray, ...]:
    """Keys of prompts, one group each, and which end they belong to; ``same``: the last window has the base's."""
    keys = rng.choice(2**62, size=base + (0 if same else last), replace=False)
    prompt = np.concatenate([keys[:base], keys[:last] if same else keys[base:]])
    is_base = np.arange(prompt.size) < base
    return prompt, is_base, ~is_base


# --- windows ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("steps", "prompts", "completions", "base", "last"),
    [
        # 64 prompts after 8 steps of 8; 1,000 completions by then. The last tenth of 100.
        (100, 8, 125, 8, 10),
        # 64 prompts at once, but 256 completions only after four steps.
        (100, 64, 64, 4, 10),
        # Everything at once: one step.
        (100, 500, 4_000, 1, 10),
        # Never enough: eight steps at most.
        (100, 1, 1, 8, 10),
        # A short run: a fifth of it is the base, five steps at least the end.
        (12, 1, 1, 2, 5),
        (3, 1, 1, 1, 2),
        (2, 1, 1, 1, 1),
    ],
)
def test_ends_of_a_run(steps: int, prompts: int, completions: int, base: int, last: int) -> None:
    numbers = 10 + 5 * np.arange(steps)
    found = windows(numbers, np.full(steps, float(prompts)), np.full(steps, float(completions)))
    assert found is not None
    assert found.base.tolist() == numbers[:base].tolist()
    assert found.last.tolist() == numbers[steps - last :].tolist()
    assert not set(found.base.tolist()) & set(found.last.tolist())


def test_one_step_has_no_ends() -> None:
    assert windows(np.array([1]), np.array([100.0]), np.array([800.0])) is None
    assert windows(np.array([], dtype=np.int64), np.array([]), np.array([])) is None


# --- differences --------------------------------------------------------------------------------------------------


def test_a_ratio_is_of_sums_not_of_means() -> None:
    # Base 1/1 and 1/3, last 3/4 and 0/4: 2/4 and 3/8.
    prompt = np.array([11, 12, 13, 14])
    is_base = np.array([True, True, False, False])
    found = Contrast(prompt, is_base, ~is_base, 0.01).ratio(np.array([1.0, 1, 3, 0]), np.array([1.0, 3, 4, 4]))
    assert found is not None
    assert (found.base, found.last, found.change) == (0.5, 0.375, -0.125)
    assert (found.prompts_base, found.prompts_last, found.paired) == (2, 2, 0)
    assert found.low < found.change < found.high
    # Symmetric round the change.
    assert found.high - found.change == pytest.approx(found.change - found.low)


def test_the_standard_error_is_that_of_the_textbook() -> None:
    rng = np.random.default_rng(1)
    prompt, is_base, is_last = groups(rng, 150, 90)
    values = np.where(is_base, rng.normal(1.0, 2.0, prompt.size), rng.normal(1.5, 1.0, prompt.size))
    found = Contrast(prompt, is_base, is_last, 0.01).mean(values)
    assert found is not None
    expected = math.sqrt(values[is_base].var() / 150 + values[is_last].var() / 90)
    z = scipy.stats.norm.ppf(0.995)
    assert (found.high - found.low) / 2 == pytest.approx(z * expected, rel=0.06)


def test_prompts_at_both_ends_are_compared_with_themselves() -> None:
    rng = np.random.default_rng(2)
    prompt, is_base, is_last = groups(rng, 100, 100, same=True)
    # Prompts differ by 3, a visit of one by .1.
    ease = np.tile(rng.normal(0.0, 3.0, 100), 2)
    values = ease + rng.normal(0.0, 0.1, 200)
    paired = Contrast(prompt, is_base, is_last, 0.01).mean(values)
    apart = Contrast(np.arange(200), is_base, is_last, 0.01).mean(values)
    assert paired is not None
    assert apart is not None
    assert (paired.paired, apart.paired) == (100, 0)
    # sqrt(2) .1 / sqrt(100) against sqrt(2) 3 / sqrt(100).
    z = scipy.stats.norm.ppf(0.995)
    assert (paired.high - paired.low) / 2 == pytest.approx(z * math.sqrt(2) * 0.1 / 10, rel=0.2)
    assert (apart.high - apart.low) / (paired.high - paired.low) > 20


def test_completions_of_one_prompt_are_not_independent() -> None:
    # Ten groups of each prompt, all alike: the standard error is that of 30 prompts, not of 300 groups.
    rng = np.random.default_rng(3)
    prompt, is_base, is_last = groups(rng, 30, 30)
    values = rng.normal(size=60)
    once = Contrast(prompt, is_base, is_last, 0.01).mean(values)
    prompt_10, base_10, last_10, values_10 = (np.repeat(column, 10) for column in (prompt, is_base, is_last, values))
    ten = Contrast(prompt_10, base_10, last_10, 0.01).mean(values_10)
    assert once is not None
    assert ten is not None
    assert ten.high - ten.low == pytest.approx(once.high - once.low)


def test_intervals_hold_their_level() -> None:
    # 300 pairs of ends with no difference at 5 %: 15 misses expected; binomial, 7 to 27 at three deviations.
    misses = 0
    for seed in range(300):
        rng = np.random.default_rng(seed)
        prompt, is_base, is_last = groups(rng, 64, 64)
        wins = rng.binomial(8, rng.beta(2, 2, prompt.size)).astype(np.float64)
        found = Contrast(prompt, is_base, is_last, 0.05).ratio(wins, np.full(prompt.size, 8.0))
        assert found is not None
        misses += not found.low <= 0.0 <= found.high
    assert misses <= 30


def test_an_end_of_one_prompt_says_nothing() -> None:
    is_base = np.array([True, False, False])
    made = Contrast(np.array([1, 2, 3]), is_base, ~is_base, 0.01)
    assert made.mean(np.array([1.0, 2.0, 3.0])) is None
    # Nor does an end without a known value.
    two = Contrast(np.arange(4), np.arange(4) < 2, np.arange(4) >= 2, 0.01)
    assert two.mean(np.array([1.0, 2.0, math.nan, math.nan])) is None
    assert two.ratio(np.zeros(4), np.zeros(4)) is None


def test_values_that_are_not_known_do_not_take_part() -> None:
    prompt, is_base, is_last = groups(np.random.default_rng(4), 3, 3)
    found = Contrast(prompt, is_base, is_last, 0.01).mean(np.array([1.0, math.nan, 3.0, 5.0, 6.0, math.nan]))
    assert found is not None
    assert (found.base, found.last) == (2.0, 5.5)
    assert (found.prompts_base, found.prompts_last) == (2, 2)


def test_the_base_alone_and_its_standard_error() -> None:
    rng = np.random.default_rng(5)
    prompt, is_base, is_last = groups(rng, 200, 10)
    values = rng.normal(2.0, 1.0, prompt.size)
    made = Contrast(prompt, is_base, is_last, 0.01)
    found = made.at_base(np.stack([values, np.ones(prompt.size)], axis=1), lambda s: s[..., 0] / s[..., 1])
    assert found is not None
    value, error = found
    assert value == pytest.approx(values[is_base].mean())
    assert error == pytest.approx(values[is_base].std() / math.sqrt(200), rel=0.1)


def test_more_prompts_than_are_drawn_are_thinned_by_their_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contrast, "MAX_PROMPTS", 50)
    rng = np.random.default_rng(6)
    prompt, is_base, is_last = groups(rng, 400, 400, same=True)
    values = np.where(is_base, 1.0, 2.0)
    found = Contrast(prompt, is_base, is_last, 0.01).mean(values)
    assert found is not None
    assert (found.prompts_base, found.prompts_last, found.paired) == (50, 50, 50)
    assert found.change == pytest.approx(1.0)


def test_the_same_ends_give_the_same_interval() -> None:
    prompt, is_base, is_last = groups(np.random.default_rng(7), 40, 40)
    values = np.random.default_rng(8).normal(size=80)
    order = np.random.default_rng(9).permutation(80)
    once = Contrast(prompt, is_base, is_last, 0.01).mean(values)
    again = Contrast(prompt[order], is_base[order], is_last[order], 0.01).mean(values[order])
    assert once is not None
    assert again is not None
    assert (again.low, again.high) == pytest.approx((once.low, once.high), rel=1e-5)
