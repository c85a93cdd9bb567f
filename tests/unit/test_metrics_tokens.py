"""Token sums and KL against full logits and arithmetic on paper."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from kl_reference import kl_estimators

from rlmon.metrics.tokens import (
    ENTROPY_BINS,
    ENTROPY_EDGES_NATS,
    exact_kl,
    kl_terms,
    token_sums,
)

NAN, INF = float("nan"), float("inf")


def test_sums_on_paper() -> None:
    entropy = torch.tensor([[1.0, 2.0, 4.0], [0.5, 9.0, 9.0]])
    logp = torch.tensor([[-1.0, -2.0, -4.0], [-0.5, -9.0, -9.0]])
    mask = torch.tensor([[1, 1, 1], [1, 0, 0]])
    sums = token_sums(entropy, logp, mask, torch.tensor([1.0, -2.0]))
    assert sums.tokens_B.tolist() == [3.0, 1.0]
    assert sums.entropy_sum_B.tolist() == [7.0, 0.5]
    assert sums.logp_sum_B.tolist() == [-7.0, -0.5]
    assert sums.entropy_hist.sum() == 4.0
    # n = 4; sum logp = -7.5; sum A = 3 - 2 = 1; sum logp A = -7 + 1 = -6.
    assert sums.cov_sums.tolist() == [4.0, -7.5, 1.0, -6.0]
    assert sums.non_finite == 0.0


def test_non_finite_tokens_are_counted_once_and_left_out() -> None:
    entropy = torch.tensor([[1.0, NAN, 3.0, NAN]])
    logp = torch.tensor([[-1.0, NAN, -INF, NAN]])
    mask = torch.tensor([[1, 1, 1, 0]])
    sums = token_sums(entropy, logp, mask, torch.tensor([1.0]))
    # Token 1 (both NaN) and token 2 (-inf) are bad: 2. Token 3 is outside of the mask.
    assert sums.non_finite == 2.0
    assert sums.entropy_sum_B.tolist() == [4.0]
    assert sums.logp_sum_B.tolist() == [-1.0]
    assert sums.cov_sums.tolist() == [1.0, -1.0, 1.0, -1.0]


def test_empty_masks_and_absent_inputs_give_zeros() -> None:
    sums = token_sums(torch.ones(2, 3), None, torch.zeros(2, 3), None)
    assert sums.tokens_B.tolist() == [0.0, 0.0]
    assert sums.entropy_hist.shape == (ENTROPY_BINS,)
    assert sums.entropy_hist.sum() == sums.cov_sums.sum() == sums.logp_sum_B.sum() == 0.0
    assert token_sums(None, None, torch.zeros(0, 4), None).tokens_B.shape == (0,)


def test_the_first_five_tokens_are_those_of_the_mask() -> None:
    mask = torch.tensor([[0, 1, 1, 1, 1, 1, 1]])
    sums = token_sums(torch.arange(7.0)[None], None, mask, None)
    # Tokens 1..5 of the row: 1 + 2 + 3 + 4 + 5 = 15.
    assert sums.first5_entropy_sum_B.tolist() == [15.0]
    assert sums.first5_tokens_B.tolist() == [5.0]


def test_bf16_and_per_token_advantages() -> None:
    logp = torch.full((1, 600), -0.5, dtype=torch.bfloat16)
    sums = token_sums(logp.abs(), logp, torch.ones(1, 600), torch.full((1, 600), 2.0, dtype=torch.bfloat16))
    # 600 x .5 in bf16 would stick at 128.
    assert sums.entropy_sum_B.tolist() == [300.0]
    assert sums.cov_sums.tolist() == [600.0, -300.0, 1200.0, -600.0]


def test_inputs_keep_their_gradients_and_values() -> None:
    logp = torch.full((1, 2), -0.5, requires_grad=True)
    token_sums(None, logp * 1.0, torch.ones(1, 2), None)
    assert logp.grad is None
    with pytest.raises(ValueError, match="entropies_BT"):
        token_sums(torch.ones(2, 3), None, torch.ones(2, 4), None)


def test_micro_batches_add_up_to_the_batch() -> None:
    generator = torch.Generator().manual_seed(0)
    entropy = torch.rand(6, 9, generator=generator)
    mask = torch.rand(6, 9, generator=generator) < 0.6
    advantage = torch.rand(6, generator=generator)
    whole = token_sums(entropy, -entropy, mask, advantage)
    rows = (slice(2), slice(2, 6))
    parts = [token_sums(entropy[i], -entropy[i], mask[i], advantage[i]) for i in rows]
    np.testing.assert_allclose(np.concatenate([part.entropy_sum_B for part in parts]), whole.entropy_sum_B)
    np.testing.assert_array_equal(sum(part.entropy_hist for part in parts), whole.entropy_hist)
    np.testing.assert_allclose(sum(part.cov_sums for part in parts), whole.cov_sums)


@pytest.mark.parametrize(("temperature", "cap"), [(1.0, None), (0.7, None), (1.3, 30.0)])
def test_exact_kl_is_that_of_full_float64_logits(temperature: float, cap: float | None) -> None:
    generator = torch.Generator().manual_seed(3)
    hidden_pi = torch.randn(37, 16, generator=generator)
    hidden_base = hidden_pi + 0.3 * torch.randn(37, 16, generator=generator)
    head_pi = torch.randn(5_000, 16, generator=generator)
    head_base = head_pi + 0.1 * torch.randn(5_000, 16, generator=generator)

    def transform(logits: torch.Tensor) -> torch.Tensor:
        return logits if cap is None else cap * torch.tanh(logits / cap)

    got = exact_kl(
        hidden_pi, head_pi, hidden_base, head_base,
        temperature=temperature, chunk_tokens=8, logit_transform=None if cap is None else transform,
    )  # fmt: skip

    def logs(hidden: torch.Tensor, head: torch.Tensor) -> torch.Tensor:
        return torch.log_softmax(transform(hidden.double() @ head.double().T) / temperature, -1)

    log_pi, log_base = logs(hidden_pi, head_pi), logs(hidden_base, head_base)
    want = [
        (log_pi.exp() * (log_pi - log_base)).sum(-1),
        (log_base.exp() * (log_base - log_pi)).sum(-1),
        -(log_base.exp() * log_base).sum(-1),
    ]
    for value, reference in zip(got, want, strict=False):
        np.testing.assert_allclose(value, reference.numpy(), atol=1e-5)


def test_exact_kl_on_paper_with_a_callable_head_and_masked_entries() -> None:
    # Policy (3/4, 1/4), base (1/2, 1/2): 3/4 ln 3/2 + 1/4 ln 1/2 = .1308; back: 1/2 ln 2/3 + 1/2 ln 2 = .1438.
    pi = torch.log(torch.tensor([[0.75, 0.25, 0.0]]))
    base = torch.log(torch.tensor([[0.5, 0.5, 0.0]]))
    forward, backward, entropy = exact_kl(pi, lambda h: h, base, lambda h: h)[:3]
    assert forward[0] == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5), abs=1e-6)
    assert backward[0] == pytest.approx(0.5 * math.log(2 / 3) + 0.5 * math.log(2), abs=1e-6)
    assert entropy[0] == pytest.approx(math.log(2), abs=1e-6)


def test_exact_kl_of_a_model_with_itself_is_zero_and_bad_input_is_refused() -> None:
    hidden, head = torch.randn(4, 8), torch.randn(11, 8)
    result = exact_kl(hidden, head, hidden, head)
    assert result[0].tolist() == result[1].tolist() == [0.0] * 4
    assert exact_kl(hidden[:0], head, hidden[:0], head)[0].shape == (0,)
    with pytest.raises(ValueError, match="tokens"):
        exact_kl(hidden, head, hidden[:2], head)
    with pytest.raises(ValueError, match="temperature"):
        exact_kl(hidden, head, hidden, head, temperature=0.0)


def test_kl_terms_on_paper() -> None:
    # x = ln 2: k1 = .693, k2 = .240, k3 = 1/2 - 1 + .693 = .193.
    k1, k2, k3 = kl_terms(np.array([math.log(0.5)]), np.array([math.log(0.25)]))
    assert k1[0] == pytest.approx(math.log(2))
    assert k2[0] == pytest.approx(math.log(2) ** 2 / 2)
    assert k3[0] == pytest.approx(math.log(2) - 0.5)


def test_kl_estimators_agree_with_the_exact_kl_and_state_their_error() -> None:
    rng = np.random.default_rng(0)
    pi, base = np.array([0.6, 0.3, 0.1]), np.array([0.4, 0.4, 0.2])
    drawn = rng.choice(3, size=20_000, p=pi)
    estimates = kl_estimators(np.log(pi)[drawn], np.log(base)[drawn])
    exact = float((pi * np.log(pi / base)).sum())
    for name in ("k1", "k3"):
        error = getattr(estimates, f"{name}_se")
        assert abs(getattr(estimates, name) - exact) < 4 * error
    # Independent tokens: sd(ddof=1) / sqrt(n).
    x = np.log(pi / base)[drawn]
    assert estimates.k1_se == pytest.approx(x.std(ddof=1) / math.sqrt(x.size), rel=1e-9)


def test_clusters_widen_the_error_and_non_finite_tokens_are_left_out() -> None:
    # Two prompts of two equal tokens: 4 tokens but 2 independent values 0 and 1 -> mean .5,
    # residuals of the sums -1 and +1: sqrt(2/1 * 2) / 4 = .5; as independent tokens it would be .289.
    logp = np.array([0.0, 0.0, 1.0, 1.0, NAN])
    clustered = kl_estimators(logp, np.zeros(5), np.array([0, 0, 1, 1, 1]))
    assert (clustered.k1, clustered.k1_se) == (0.5, 0.5)
    assert (clustered.tokens, clustered.clusters, clustered.non_finite) == (4, 2, 1)
    assert kl_estimators(logp[:4], np.zeros(4)).k1_se == pytest.approx(0.288675, abs=1e-5)
    nothing = kl_estimators(np.array([NAN]), np.zeros(1))
    assert nothing.k1 is None
    assert nothing.k1_se is None


def test_a_long_micro_batch_enters_the_histogram_thinned() -> None:
    torch.manual_seed(0)
    entropies = torch.rand(4, 200_000)  # 800,000 tokens: every fourth is counted, with weight 4
    sums = token_sums(entropies, None, torch.ones_like(entropies), None)
    assert sums.entropy_hist.sum() == 800_000
    assert set(sums.entropy_hist % 4) == {0.0}
    assert sums.tokens_B.sum() == 800_000
    half = np.searchsorted(ENTROPY_EDGES_NATS, 0.5)
    assert sums.entropy_hist[:half].sum() / 800_000 == pytest.approx(0.5, abs=0.03)  # bins are 4.8 % wide
