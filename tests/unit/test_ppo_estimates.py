"""PPO's arithmetic by hand, and against independent implementations."""

from __future__ import annotations

import math
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlmon.trl.ppo.estimates import (
    KLControl,
    at_last_token,
    clipped_value_loss,
    explained_variance,
    gae,
    whiten,
)

pytestmark = pytest.mark.trl


def row(*values: float) -> torch.Tensor:
    return torch.tensor([values], dtype=torch.float64)


def test_gae_by_hand() -> None:
    # gamma .9, lambda .5, so gamma lambda = .45; the episode ends after the third token.
    # delta_2 = 1 - .3 = .7                     A_2 = .7
    # delta_1 = 0 + .9 * .3 - .2 = .07          A_1 = .07 + .45 * .7 = .385
    # delta_0 = -.1 + .9 * .2 - .5 = -.42       A_0 = -.42 + .45 * .385 = -.24675
    advantages, returns = gae(row(-0.1, 0.0, 1.0), row(0.5, 0.2, 0.3), row(1, 1, 1), gamma=0.9, lam=0.5)
    assert advantages.tolist()[0] == pytest.approx([-0.24675, 0.385, 0.7])
    assert returns.tolist()[0] == pytest.approx([-0.24675 + 0.5, 0.385 + 0.2, 0.7 + 0.3])


def test_a_bootstrap_takes_the_place_of_the_end() -> None:
    # As above with V = .4 after the last token: delta_2 = 1 + .9 * .4 - .3 = 1.06; A_1 = .07 + .45 * 1.06 = .547;
    # A_0 = -.42 + .45 * .547 = -.17385.
    advantages, _ = gae(
        row(-0.1, 0.0, 1.0), row(0.5, 0.2, 0.3), row(1, 1, 1), gamma=0.9, lam=0.5, bootstrap_B=torch.tensor([0.4])
    )
    assert advantages.tolist()[0] == pytest.approx([-0.17385, 0.547, 1.06])


def test_tool_results_and_padding_are_no_steps() -> None:
    plain, returns = gae(row(-0.1, 0.0, 1.0), row(0.5, 0.2, 0.3), row(1, 1, 1), gamma=0.9, lam=0.5)
    mask = row(1, 0, 0, 1, 1, 0)
    gapped, gapped_returns = gae(row(-0.1, 7, 7, 0.0, 1.0, 7), row(0.5, 9, 9, 0.2, 0.3, 9), mask, gamma=0.9, lam=0.5)
    assert gapped[mask.bool()].tolist() == pytest.approx(plain[0].tolist())
    assert gapped_returns[mask.bool()].tolist() == pytest.approx(returns[0].tolist())
    assert gapped[~mask.bool()].abs().max() == 0.0
    assert gapped_returns[~mask.bool()].abs().max() == 0.0


def test_a_row_without_tokens_of_its_own_has_nothing() -> None:
    advantages, returns = gae(
        torch.ones(2, 3), torch.ones(2, 3), torch.tensor([[0, 0, 0], [1, 1, 1]]), gamma=1.0, lam=1.0
    )
    assert advantages[0].tolist() == [0.0, 0.0, 0.0]
    assert returns[1].tolist() == [3.0, 2.0, 1.0]  # undiscounted: rewards of 1 until the end


@settings(max_examples=60)
@given(
    rows=st.integers(1, 4),
    tokens=st.integers(1, 12),
    gamma=st.floats(0.5, 1.0),
    lam=st.floats(0.0, 1.0),
    seed=st.integers(0, 10_000),
    bootstrapped=st.booleans(),
)
def test_gae_is_the_weighted_sum_of_its_definition(
    rows: int, tokens: int, gamma: float, lam: float, seed: int, bootstrapped: bool
) -> None:
    """Against the mixture of n-step estimates: (1 - lam) sum_n lam^(n-1) A^(n), the rest on the whole episode."""
    draw = np.random.default_rng(seed)
    rewards, values = draw.normal(size=(rows, tokens)), draw.normal(size=(rows, tokens))
    mask = draw.random((rows, tokens)) < 0.7
    end = draw.normal(size=rows) if bootstrapped else np.zeros(rows)
    found, returns = gae(
        torch.from_numpy(rewards), torch.from_numpy(values), torch.from_numpy(mask), gamma=gamma, lam=lam,
        bootstrap_B=torch.from_numpy(end) if bootstrapped else None,
    )  # fmt: skip
    for b in range(rows):
        own = np.flatnonzero(mask[b])
        r, v = rewards[b, own], np.append(values[b, own], end[b])
        for t in range(len(own)):
            steps = len(own) - t
            n_step = [
                sum(gamma**k * r[t + k] for k in range(n)) + gamma**n * v[t + n] - v[t] for n in range(1, steps + 1)
            ]
            weights = [(1 - lam) * lam ** (n - 1) for n in range(1, steps)] + [lam ** (steps - 1)]
            expected = sum(w * a for w, a in zip(weights, n_step, strict=True))
            assert found[b, own[t]].item() == pytest.approx(expected, abs=1e-9)
            assert returns[b, own[t]].item() == pytest.approx(expected + v[t], abs=1e-9)
    assert not found[torch.from_numpy(~mask)].any()


def test_whitening_by_hand() -> None:
    # 1, 2, 6: mean 3, squares 4 + 1 + 9 = 14, variance 14 / 2 = 7. The masked 100 counts for nothing.
    whitened = whiten(row(1, 2, 100, 6), row(1, 1, 0, 1))
    assert whitened.tolist()[0] == pytest.approx([-2 / math.sqrt(7), -1 / math.sqrt(7), 0.0, 3 / math.sqrt(7)])


def test_whitening_of_what_is_all_the_same() -> None:
    assert whiten(row(2, 2, 2), row(1, 1, 1)).tolist() == [[0.0, 0.0, 0.0]]
    assert whiten(row(5, 2), row(1, 0)).tolist() == [[0.0, 0.0]]
    assert whiten(row(5, 2), row(0, 0)).tolist() == [[0.0, 0.0]]


def on_two_ranks(whole: torch.Tensor, mask: torch.Tensor, split: int) -> torch.Tensor:
    """``whiten`` of two ranks at once, in threads that wait for each other at every sum."""
    barrier, given = threading.Barrier(2), {}

    def one(rank: int) -> torch.Tensor:
        def reduce(x: torch.Tensor) -> torch.Tensor:
            given[rank] = x
            barrier.wait()
            total = given[0] + given[1]
            barrier.wait()
            return total

        rows = slice(None, split) if rank == 0 else slice(split, None)
        return whiten(whole[rows], mask[rows], reduce)

    with ThreadPoolExecutor(2) as pool:
        return torch.cat(list(pool.map(one, (0, 1))))


def test_whitening_over_ranks_is_that_of_the_whole() -> None:
    torch_draw = torch.Generator().manual_seed(0)
    whole = torch.randn(7, 5, generator=torch_draw, dtype=torch.float64) * 3 + 1
    mask = (torch.rand(7, 5, generator=torch_draw) < 0.8).double()
    together = on_two_ranks(whole, mask, 2)
    assert torch.allclose(together, whiten(whole, mask), atol=1e-12)
    kept = together[mask.bool()]
    assert kept.mean().item() == pytest.approx(0.0, abs=1e-12)
    assert kept.std(unbiased=True).item() == pytest.approx(1.0, abs=1e-8)
    assert not torch.allclose(torch.cat([whiten(whole[:2], mask[:2]), whiten(whole[2:], mask[2:])]), together)


def test_explained_variance_by_hand() -> None:
    # R = 0, 1, 2: variance 2/3. R - V = 0, .5, 0: mean 1/6, variance (1/36 + 1/9 + 1/36) / 3 = 1/18.
    found = explained_variance(row(0, 1, 2, 50), row(0, 0.5, 2, -50), row(1, 1, 1, 0))
    assert found == pytest.approx(1 - (1 / 18) / (2 / 3))
    # A constant error is no error of shape; values that do not move explain nothing.
    assert explained_variance(row(0, 1, 2), row(1, 2, 3), row(1, 1, 1)) == pytest.approx(1.0)
    assert explained_variance(row(0, 1, 2), row(4, 4, 4), row(1, 1, 1)) == pytest.approx(0.0)


def test_constant_returns_leave_nothing_to_explain() -> None:
    assert math.isnan(explained_variance(row(1, 1, 1), row(0, 1, 2), row(1, 1, 1)))
    assert math.isnan(explained_variance(row(1000, 1000.0001), row(0, 1), row(1, 1)))
    assert math.isnan(explained_variance(row(1, 1), row(0, 1), row(0, 0)))


def test_the_value_loss_by_hand() -> None:
    # c = .2. First: V moved from 0 to .5 towards R = 1: (.5 - 1)^2 = .25, held at .2: .64, so .64 / 2, on the clipped
    # branch. Second: V moved away to -.5: 2.25 against (-.2 - 1)^2 = 1.44, so 2.25 / 2. Third: within reach.
    loss, clipped = clipped_value_loss(row(0.5, -0.5, 0.1), row(0, 0, 0), row(1, 1, 1), 0.2)
    assert loss.tolist()[0] == pytest.approx([0.32, 1.125, 0.405])
    assert clipped.tolist() == [[True, False, False]]
    loss, clipped = clipped_value_loss(row(0.5, -0.5, 0.1), row(0, 0, 0), row(1, 1, 1), None)
    assert loss.tolist()[0] == pytest.approx([0.125, 1.125, 0.405])
    assert not clipped.any()


def test_the_score_comes_with_the_last_token() -> None:
    mask = torch.tensor([[1, 1, 0, 0], [1, 0, 1, 0], [0, 0, 0, 0]])
    assert at_last_token(torch.tensor([2.0, 3.0, 4.0]), mask).tolist() == [[0, 2, 0, 0], [0, 0, 3, 0], [0, 0, 0, 0]]


def test_the_kl_control_moves_towards_its_target() -> None:
    control = KLControl(coef=0.1, target_nats=2.0, horizon_completions=1000)
    # 2.2 / 2 - 1 = .1, times 500 / 1000; then 8 / 2 - 1 = 3, held at .2; a KL of 0 is held at -.2.
    assert control.after(2.2, 500).coef == pytest.approx(0.1 * 1.05)
    assert control.after(8.0, 500).coef == pytest.approx(0.1 * 1.1)
    assert control.after(0.0, 500).coef == pytest.approx(0.1 * 0.9)
    # However many completions, no more than 20 %.
    assert control.after(0.0, 50_000).coef == pytest.approx(0.1 * 0.8)
    assert control.after(2.0, 500) == control
    fixed = KLControl(coef=0.1, target_nats=None, horizon_completions=1000)
    assert fixed.after(50.0, 500) == fixed
