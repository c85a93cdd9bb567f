"""What PPO computes from rewards and values: advantages, returns, and the loss of the critic. Pure functions.

Positions are those of a completion: reward and value at ``t`` belong to the state *before* token ``t`` and to the
choice of that token. A mask is true for the model's own tokens; tool results between them and padding after them are
no steps of the decision process, so estimates reach over them as if they were not there.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

Reduce = Callable[[Tensor], Tensor]
"""Sum of a tensor over all ranks."""
CONSTANT_RETURNS = 1e-8
"""Variance, relative to the mean square (at least 1), below which returns are constant."""


def at_last_token(values_B: Tensor, mask_BT: Tensor) -> Tensor:
    """``values_B`` placed at the last token of each row's mask [B, T]; nowhere where the row has none."""
    mask = mask_BT.bool()
    last_BT = mask & (mask.flip(1).cumsum(1).flip(1) == 1)
    return torch.where(last_BT, values_B.unsqueeze(1), torch.zeros_like(values_B).unsqueeze(1))


def gae(
    rewards_BT: Tensor,
    values_BT: Tensor,
    mask_BT: Tensor,
    *,
    gamma: float,
    lam: float,
    bootstrap_B: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimates and lambda-returns, each [B, T], float64 on the CPU; 0 where masked.

    delta_t = r_t + gamma V_{t+1} - V_t; A_t = sum_k (gamma lam)^k delta_{t+k}; R_t = A_t + V_t (Schulman et al.
    2016, arXiv 1506.02438, eq. 16), over the tokens of the mask only.

    Args:
        bootstrap_B: value of the state after a row's last token; default 0: the episode ends there.
    """
    mask = mask_BT.bool().cpu()
    rewards, values = rewards_BT.detach().double().cpu(), values_BT.detach().double().cpu()
    length_B = mask.sum(1)
    # The row's own tokens moved to the front, in order: step t of every row is then its t-th decision.
    order_BT = torch.argsort((~mask).to(torch.int8), dim=1, stable=True)
    rewards, values = rewards.gather(1, order_BT), values.gather(1, order_BT)
    end_B = torch.zeros(len(mask), dtype=torch.float64) if bootstrap_B is None else bootstrap_B.detach().double().cpu()
    advantage_BT = torch.zeros_like(rewards)
    following_B = torch.zeros(len(mask), dtype=torch.float64)
    for t in range(int(length_B.max()) - 1 if len(mask) else -1, -1, -1):
        is_last_B = length_B == t + 1
        next_B = values[:, t + 1] if t + 1 < values.size(1) else torch.zeros_like(end_B)
        delta_B = rewards[:, t] + gamma * torch.where(is_last_B, end_B, next_B) - values[:, t]
        estimate_B = delta_B + gamma * lam * torch.where(is_last_B, torch.zeros_like(end_B), following_B)
        following_B = torch.where(length_B > t, estimate_B, torch.zeros_like(end_B))
        advantage_BT[:, t] = following_B
    back_BT = torch.zeros_like(advantage_BT).scatter_(1, order_BT, advantage_BT)
    values_back_BT = torch.zeros_like(values).scatter_(1, order_BT, values)
    return back_BT, torch.where(mask, back_BT + values_back_BT, torch.zeros_like(back_BT))


def whiten(x_BT: Tensor, mask_BT: Tensor, reduce: Reduce | None = None) -> Tensor:
    """``x_BT`` with mean 0 and variance 1 (``ddof=1``) over the mask of all ranks; 0 where masked.

    Where all values are equal, or there is only one, they become 0. Every rank calls it: it holds two sums over ranks.
    """
    add = reduce or _itself
    mask = mask_BT.to(x_BT)
    total, count = add(torch.stack([(x_BT * mask).sum(), mask.sum()])).unbind()
    centred_BT = (x_BT - total / count.clamp(min=1.0)) * mask
    squares = add(centred_BT.square().sum().reshape(1))[0]
    variance = squares / (count - 1.0).clamp(min=1.0)
    return centred_BT * torch.rsqrt(variance + 1e-8)


def explained_variance(returns_BT: Tensor, values_BT: Tensor, mask_BT: Tensor, reduce: Reduce | None = None) -> float:
    """1 - Var(R - V) / Var(R) over the mask of all ranks (population variances), at most 1; NaN where the returns are
    constant, so that there is nothing to explain (``CONSTANT_RETURNS``). Holds two sums over ranks."""
    add = reduce or _itself
    mask = mask_BT.to(returns_BT)
    error_BT = returns_BT - values_BT.to(returns_BT)
    count, sum_r, sum_e, square_r = add(
        torch.stack(
            [mask.sum(), (returns_BT * mask).sum(), (error_BT * mask).sum(), (returns_BT.square() * mask).sum()]
        )
    ).unbind()
    n = count.clamp(min=1.0)
    centred = torch.stack(
        [((returns_BT - sum_r / n).square() * mask).sum(), ((error_BT - sum_e / n).square() * mask).sum()]
    )
    var_r, var_e = (add(centred) / n).tolist()
    if var_r <= CONSTANT_RETURNS * max(1.0, float(square_r / n)):
        return math.nan
    return float(1.0 - var_e / var_r)


def clipped_value_loss(
    values_BT: Tensor, old_values_BT: Tensor, returns_BT: Tensor, cliprange: float | None
) -> tuple[Tensor, Tensor]:
    """Loss per token [B, T], and where the clipped branch is the larger [B, T].

    max((V - R)^2, (V_old + clip(V - V_old, -c, c) - R)^2) / 2, as in OpenAI's baselines and TRL; without
    ``cliprange`` the first term alone.
    """
    plain_BT = (values_BT - returns_BT).square()
    if cliprange is None:
        return 0.5 * plain_BT, torch.zeros_like(plain_BT, dtype=torch.bool)
    held_BT = old_values_BT + (values_BT - old_values_BT).clamp(-cliprange, cliprange)
    clipped_BT = (held_BT - returns_BT).square()
    return 0.5 * torch.maximum(plain_BT, clipped_BT), clipped_BT.detach() > plain_BT.detach()


@dataclass(frozen=True, kw_only=True)
class KLControl:
    """The weight of the KL penalty, moved towards a target (Ziegler et al. 2019, arXiv 1909.08593, section 2.2)."""

    coef: float
    target_nats: float | None
    """KL of a whole completion to hold; ``None`` keeps ``coef``."""
    horizon_completions: int

    def after(self, kl_nats: float, completions: int) -> KLControl:
        """After ``completions`` with a mean KL of ``kl_nats``: coef (1 + clip(kl / target - 1, -.2, .2) n / horizon).

        n is at most the horizon, so that one step never turns the sign.
        """
        if self.target_nats is None or not math.isfinite(kl_nats):
            return self
        error = min(0.2, max(-0.2, kl_nats / self.target_nats - 1.0))
        return replace(self, coef=self.coef * (1.0 + error * min(1.0, completions / self.horizon_completions)))


def _itself(x: Tensor) -> Tensor:
    return x
