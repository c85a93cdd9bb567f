"""A bounded sample of tokens says the same, on average, as all of them: long and short completions alike."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from rlmon.metrics.families import WATCHING
from rlmon.metrics.sampling import inclusion, sample_tokens
from rlmon.metrics.step import Families
from rlmon.metrics.tokens import KLSample

FAMILIES = Families(WATCHING, ("prose", "other"))
ROWS = 16


def completions(rng: np.random.Generator) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Mask and per-token KL of a round: lengths log-normal around 60 tokens, the KL per token growing with the length
    of the completion and with the place in it."""
    tokens_B = np.clip((60 * np.exp(0.5 * rng.standard_normal(ROWS))).astype(int), 1, 240)
    place_T = np.arange(tokens_B.max())
    mask_BT = place_T < tokens_B[:, None]
    rate_BT = 0.1 * np.sqrt(tokens_B[:, None] / 60) * (1 + place_T / 60)
    return mask_BT, np.where(mask_BT, rate_BT * rng.exponential(size=mask_BT.shape), 0.0)


def measured(
    ranks: Sequence[tuple[NDArray[np.bool_], NDArray[np.float64]]], budget: int, number: int = 0
) -> dict[str, float | None]:
    """The metrics of one step of several ranks; completions over 90 tokens are in the mode ``other``."""
    sums = FAMILIES.zeros()

    def add(sampled: KLSample) -> None:
        FAMILIES.add(sums, lambda family, own: family.add_kl(own, sampled))

    for rank, (mask_BT, kl_BT) in enumerate(ranks):
        sample = sample_tokens(mask_BT, [(number, ROWS * rank + row) for row in range(ROWS)], budget)
        row_T, _ = np.nonzero(sample.chosen_BT)
        kl_T = kl_BT[sample.chosen_BT]
        add(
            KLSample(
                kl_T=kl_T, reverse_T=2 * kl_T, entropy_base_T=3 * kl_T, row_T=row_T,
                tokens_B=mask_BT.sum(1).astype(float), weight_T=sample.weight_B[row_T],
                mode_code_B=(mask_BT.sum(1) > 90).astype(np.int64), prompt_B=np.arange(ROWS) // 4,
                logp_pi_T=kl_T, logp_base_T=np.zeros(kl_T.size),
            )
        )  # fmt: skip
    return FAMILIES.finish(sums)[0]


@pytest.mark.parametrize(("budget", "steps"), [(256, 600), (600, 300)])
def test_no_metric_of_a_bounded_sample_is_biased(budget: int, steps: int) -> None:
    # Whole rows while they fit gave, on these rounds: kl/seq -16 and -7 %, kl/mean -9 and -2 %.
    rng = np.random.default_rng(0)
    names = ("mean", "seq", "reverse", "base_entropy", "k1", "k2", "k3", "mode/prose")
    seen, all_of_it = [], []
    for step in range(steps):
        ranks = [completions(rng) for _ in range(4)]
        for into, tokens in ((seen, budget), (all_of_it, 10**6)):
            metrics = measured(ranks, tokens, step)
            into.append([metrics[f"rlmon/kl/{name}"] for name in names])
    bias = np.array(seen, dtype=float).mean(axis=0) / np.mean(all_of_it, axis=0) - 1.0
    # The Monte-Carlo error of these is .2 to .4 %, of k2 and k3 .8 %.
    assert np.abs(np.delete(bias, (5, 6))).max() < 0.01, dict(zip(names, bias, strict=True))
    assert np.abs(bias[5:7]).max() < 0.02


def test_what_fits_is_measured_exactly() -> None:
    mask_BT, kl_BT = completions(np.random.default_rng(1))
    got = measured([(mask_BT, kl_BT)], int(mask_BT.sum()))
    assert got["rlmon/kl/mean"] == pytest.approx(kl_BT.sum() / mask_BT.sum(), rel=1e-12)
    assert got["rlmon/kl/seq"] == pytest.approx(kl_BT.sum(1).mean(), rel=1e-12)


@pytest.mark.parametrize("budget", [1, 2, 7, 50, 333, 1000])
def test_the_budget_holds_and_the_weights_add_up(budget: int) -> None:
    rng = np.random.default_rng(2)
    for number in range(50):
        mask_BT, _ = completions(rng)
        mask_BT[3] = False
        sample = sample_tokens(mask_BT, [(number, row) for row in range(ROWS)], budget)
        sampled_B = sample.chosen_BT.sum(1)
        assert sampled_B.sum() <= budget
        assert not (sample.chosen_BT & ~mask_BT).any()
        assert np.array_equal(sampled_B > 0, sample.weight_B > 0)
        assert sampled_B @ sample.weight_B == pytest.approx(mask_BT.sum())
        assert (sampled_B > 0).sum() >= min(2, budget)


def test_the_draw_is_one_of_identity_alone() -> None:
    mask_BT, _ = completions(np.random.default_rng(3))
    identity = [(5, row) for row in range(ROWS)]
    state = np.random.get_state()[1].copy()
    first = sample_tokens(mask_BT, identity, 200)
    assert np.array_equal(np.random.get_state()[1], state)
    order = np.random.default_rng(4).permutation(ROWS)
    shuffled = sample_tokens(mask_BT[order], [identity[i] for i in order], 200)
    assert np.array_equal(first.chosen_BT[order], shuffled.chosen_BT)
    assert np.allclose(first.weight_B[order], shuffled.weight_B)
    other = sample_tokens(mask_BT, [(6, row) for row in range(ROWS)], 200)
    assert not np.array_equal(first.chosen_BT, other.chosen_BT)


def test_inclusion_on_paper() -> None:
    # c = 1/20: the row of 40 is certain, and the rest of two is shared over 10 + 10 + 20 = 40.
    assert inclusion(np.array([10, 40, 10, 20]), 2).tolist() == [0.25, 1.0, 0.25, 0.5]
    assert inclusion(np.array([1, 1000]), 2).tolist() == [1.0, 1.0]


def test_standard_errors_hold_what_they_say() -> None:
    """Over many rounds of four prompts the k1 of a round varies by about its standard error."""
    rng = np.random.default_rng(5)
    found = []
    for number in range(600):
        got = measured([completions(rng)], 600, number)
        if got["rlmon/kl/k1_se"] is not None:
            found.append((got["rlmon/kl/k1"], got["rlmon/kl/k1_se"]))
    values, errors = np.array(found, dtype=float).T
    assert 0.7 < np.sqrt((errors**2).mean()) / values.std() < 1.3
