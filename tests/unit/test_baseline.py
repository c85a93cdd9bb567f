"""When the baseline is complete."""

from __future__ import annotations

import pytest

from rlmon.baseline import Baseline


def after(rounds: int, prompts: float, completions: float) -> Baseline:
    baseline = Baseline()
    for _ in range(rounds):
        baseline = baseline.with_round(prompts=prompts, completions=completions)
    return baseline


@pytest.mark.parametrize(
    ("prompts", "completions", "closes_at"),
    [
        (8, 32, 4),  # 4 x 8 = 32 prompts
        (2, 64, 4),  # 4 x 64 = 256 completions
        (1, 8, 8),  # 8 rounds at most: 8 prompts, 64 completions
        (64, 512, 1),  # one large round is enough
    ],
)
def test_it_closes_at_32_prompts_256_completions_or_8_rounds(prompts: int, completions: int, closes_at: int) -> None:
    assert not after(closes_at - 1, prompts, completions).complete
    closed = after(closes_at, prompts, completions)
    assert closed.complete
    assert closed.with_round(prompts=prompts, completions=completions) == closed


def test_a_round_without_completions_does_not_count() -> None:
    assert after(20, 0, 0) == Baseline()


def test_it_survives_a_checkpoint() -> None:
    baseline = after(3, 4, 16)
    assert Baseline.from_json(baseline.to_json()) == baseline
    with pytest.raises(KeyError):
        Baseline.from_json({"prompts": 1.0})
