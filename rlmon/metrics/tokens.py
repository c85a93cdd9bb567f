"""Token-level sums: entropy, log-probabilities, their covariance with the advantage, and exact KL.

The only module of this room that touches torch, and only inside its functions. Nothing here draws random numbers,
keeps a graph or writes to its inputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor
else:
    Tensor = Any

ENTROPY_BINS = 256
ENTROPY_EDGES_NATS: NDArray[np.float64] = np.concatenate([[0.0], np.geomspace(1e-4, 16.0, ENTROPY_BINS)])
"""Edges of the entropy histogram: ``[0, 1e-4)``, then 255 bins that each grow by 4.8 %; above 16 nats is clipped."""
HISTOGRAM_TOKENS = 262_144
"""Above this many tokens in a micro-batch only every k-th enters the histogram, with weight k: sorting millions of
values into bins costs more than everything else, and a quarter of a million fix a quantile to a third digit."""
FIRST_TOKENS = 5
"""How many tokens "first tokens" are (the shift sits there: arXiv 2608.00220)."""


@dataclass
class TokenSums:
    """Sums over completion tokens, per row where the name ends in ``_B``. All are additive over rows and ranks."""

    tokens_B: NDArray[np.float64]
    """Tokens counted: in the mask, with finite entropy."""
    entropy_sum_B: NDArray[np.float64]
    """nats"""
    logp_tokens_B: NDArray[np.float64]
    """Tokens in the mask with finite log-probability."""
    logp_sum_B: NDArray[np.float64]
    """nats, at most 0"""
    first5_entropy_sum_B: NDArray[np.float64]
    first5_tokens_B: NDArray[np.float64]
    entropy_hist: NDArray[np.float64]
    """Counts in the bins between ``ENTROPY_EDGES_NATS``."""
    cov_sums: NDArray[np.float64]
    """n, sum logp, sum A, sum logp*A over tokens where both are finite."""
    non_finite: float
    """Tokens in the mask with a NaN or infinite entropy, log-probability or advantage."""


def token_sums(
    entropies_BT: Tensor | None,
    logps_BT: Tensor | None,
    mask_BT: Tensor,
    advantages_B: Tensor | None,
) -> TokenSums:
    """Sums over the tokens of a micro-batch, reduced on the tensors' device, moved to the host in one transfer.

    Args: ``entropies_BT`` and ``logps_BT`` in nats, any float type (bf16 is widened first), ``None`` where not
    measured; ``mask_BT`` non-zero where a token counts; ``advantages_B`` of shape (B,), (B, 1) or (B, T), or ``None``.

    Non-finite values are counted once per token and left out of every sum; an empty mask gives zeros.
    Raises ``ValueError`` on shapes that do not fit.
    """
    import torch

    with torch.no_grad():
        mask = mask_BT.detach() != 0
        if mask.dim() != 2:
            raise ValueError(f"mask_BT must have 2 dimensions, got shape {tuple(mask.shape)}.")
        rows, length = mask.shape
        device = mask.device
        wide = torch.float32 if device.type == "mps" else torch.float64

        def widened(values: Tensor | None, name: str) -> tuple[Tensor, Tensor] | None:
            if values is None:
                return None
            values = values.detach()
            if values.dim() == 1:
                values = values[:, None]
            if values.shape[0] != rows or values.shape[1] not in (1, length):
                raise ValueError(f"{name} has shape {tuple(values.shape)}, the mask {tuple(mask.shape)}.")
            values = values.to(device=device, dtype=wide)
            finite = torch.isfinite(values)
            values = torch.where(finite, values, torch.zeros_like(values))
            return values.expand(rows, length), finite.expand(rows, length)

        entropy = widened(entropies_BT, "entropies_BT")
        logp = widened(logps_BT, "logps_BT")
        advantage = widened(advantages_B, "advantages_B")
        zero_B = torch.zeros(rows, device=device, dtype=wide)
        bad = torch.zeros_like(mask)
        for pair in (entropy, logp, advantage):
            if pair is not None:
                bad = bad | (mask & ~pair[1])

        tokens_B = entropy_sum_B = logp_tokens_B = logp_sum_B = first_sum_B = first_tokens_B = zero_B
        histogram = torch.zeros(ENTROPY_BINS, device=device, dtype=wide)
        cov = torch.zeros(4, device=device, dtype=wide)
        if entropy is not None:
            values, finite = entropy
            counted = mask & finite
            tokens_B = counted.sum(1).to(wide)
            entropy_sum_B = torch.where(counted, values, torch.zeros_like(values)).sum(1)
            first = counted & (mask.cumsum(1) <= FIRST_TOKENS)
            first_tokens_B = first.sum(1).to(wide)
            first_sum_B = torch.where(first, values, torch.zeros_like(values)).sum(1)
            edges = torch.as_tensor(ENTROPY_EDGES_NATS[1:-1], device=device, dtype=wide)
            chosen = values[counted]
            stride = max(1, -(-chosen.numel() // HISTOGRAM_TOKENS))
            bins = torch.bucketize(chosen[::stride].contiguous(), edges, right=True)
            histogram = torch.bincount(bins, minlength=ENTROPY_BINS).to(wide) * stride
        if logp is not None:
            values, finite = logp
            counted = mask & finite
            logp_tokens_B = counted.sum(1).to(wide)
            logp_sum_B = torch.where(counted, values, torch.zeros_like(values)).sum(1)
            if advantage is not None:
                both = (counted & advantage[1]).to(wide)
                weight = advantage[0] * both
                cov = torch.stack([both.sum(), (values * both).sum(), weight.sum(), (values * weight).sum()])
        flat = torch.cat(
            [
                tokens_B,
                entropy_sum_B,
                logp_tokens_B,
                logp_sum_B,
                first_sum_B,
                first_tokens_B,
                histogram,
                cov,
                bad.sum().to(wide)[None],
            ]
        )
        host = flat.cpu().numpy().astype(np.float64)
    parts = [part.copy() for part in np.split(host, np.cumsum([rows] * 6 + [ENTROPY_BINS, 4]))]
    return TokenSums(
        tokens_B=parts[0],
        entropy_sum_B=parts[1],
        logp_tokens_B=parts[2],
        logp_sum_B=parts[3],
        first5_entropy_sum_B=parts[4],
        first5_tokens_B=parts[5],
        entropy_hist=parts[6],
        cov_sums=parts[7],
        non_finite=float(parts[8][0]),
    )


class ExactKL(NamedTuple):
    """Full-vocabulary comparison of two models on T tokens, each column [T] in nats."""

    kl_pi_base_T: NDArray[np.float64]
    kl_base_pi_T: NDArray[np.float64]
    entropy_base_T: NDArray[np.float64]
    logp_pi_T: NDArray[np.float64] | None
    """Log-probability of the sampled token under the policy; ``None`` where the tokens were not given."""
    logp_base_T: NDArray[np.float64] | None


@dataclass(frozen=True, kw_only=True, eq=False)
class KLSample:
    """The T sampled tokens of a comparison with the base, of B rows; nats."""

    kl_T: NDArray[np.float64]
    reverse_T: NDArray[np.float64]
    entropy_base_T: NDArray[np.float64]
    logp_pi_T: NDArray[np.float64] | None = None
    logp_base_T: NDArray[np.float64] | None = None
    row_T: NDArray[np.int64]
    """Each token's row."""
    weight_T: NDArray[np.float64]
    """How many tokens of its row each sampled one stands for (``metrics.sampling``)."""
    tokens_B: NDArray[np.float64]
    """Completion tokens of every row that the sample stands for, whether it is in it or not."""
    mode_code_B: NDArray[np.int64]
    """-1 where it is not known."""
    prompt_B: NDArray[np.int64]
    """A code per row: the cluster of the estimators' standard errors."""

    @cached_property
    def finite_T(self) -> NDArray[np.bool_]:
        """Tokens whose comparison is finite."""
        return np.asarray(np.isfinite(self.kl_T) & np.isfinite(self.reverse_T) & np.isfinite(self.entropy_base_T))


def exact_kl(
    hidden_pi_TD: Tensor,
    head_pi: Tensor | Callable[[Tensor], Tensor],
    hidden_base_TD: Tensor,
    head_base: Tensor | Callable[[Tensor], Tensor],
    *,
    temperature: float = 1.0,
    chunk_tokens: int = 128,
    logit_transform: Callable[[Tensor], Tensor] | None = None,
    sampled_T: Tensor | None = None,
) -> ExactKL:
    """Full-vocabulary KL both ways per token, without holding [tokens, vocabulary] for all tokens.

    ``head_pi`` and ``head_base`` are output matrices [V, D] or callables from hidden states to logits.
    ``logit_transform`` (for example a soft cap) is applied to the logits before the division by ``temperature``.
    Computed in fp32 from one logsumexp per model and chunk: KL(p||q) = sum_v p_v (log p_v - log q_v).

    ``sampled_T`` (token ids) asks for their log-probabilities as well, from the same logits.

    Returns ``ExactKL``, KL at least 0 and ``inf`` or NaN where the logits are not finite. At most ``chunk_tokens`` x V
    logits per model live at once.
    Raises ``ValueError`` for shapes that do not fit or a temperature or chunk that is not positive.
    """
    import torch

    if hidden_pi_TD.shape[0] != hidden_base_TD.shape[0]:
        raise ValueError(f"{hidden_pi_TD.shape[0]} policy and {hidden_base_TD.shape[0]} base tokens.")
    if not (temperature > 0.0 and math.isfinite(temperature)) or chunk_tokens < 1:
        raise ValueError(f"temperature and chunk_tokens must be positive, got {temperature} and {chunk_tokens}.")

    def log_probs(hidden: Tensor, head: Any) -> Tensor:
        if isinstance(head, torch.Tensor):
            logits = torch.nn.functional.linear(hidden.to(head.dtype), head.detach())
        else:
            logits = head(hidden)
        if logit_transform is not None:
            logits = logit_transform(logits)
        logits = logits.float()
        if temperature != 1.0:
            logits = logits / temperature
        return logits - torch.logsumexp(logits, dim=-1, keepdim=True)

    def expected(weights: Tensor, values: Tensor) -> Tensor:
        # A vocabulary entry that is masked to -inf on both sides contributes nothing: 0 * (-inf - -inf) is NaN.
        return torch.where(weights > 0, weights * values, torch.zeros_like(values)).sum(-1)

    collected: list[Tensor] = []
    with torch.no_grad():
        tokens = hidden_pi_TD.shape[0]
        for begin in range(0, tokens, chunk_tokens):
            log_pi = log_probs(hidden_pi_TD[begin : begin + chunk_tokens].detach(), head_pi)
            log_base = log_probs(hidden_base_TD[begin : begin + chunk_tokens].detach(), head_base)
            if log_pi.shape != log_base.shape:
                raise ValueError(f"policy logits {tuple(log_pi.shape)}, base logits {tuple(log_base.shape)}.")
            p_pi = log_pi.exp()
            p_base = log_base.exp()
            difference = log_pi - log_base
            columns = [
                expected(p_pi, difference).clamp_min(0.0),
                (-expected(p_base, difference)).clamp_min(0.0),
                -expected(p_base, log_base),
            ]
            if sampled_T is not None:
                ids = sampled_T[begin : begin + chunk_tokens, None].to(log_pi.device)
                columns += [log_pi.gather(1, ids)[:, 0], log_base.gather(1, ids)[:, 0]]
            collected.append(torch.stack(columns))
            del log_pi, log_base, p_pi, p_base, difference
        if not collected:
            collected.append(torch.zeros(3 if sampled_T is None else 5, 0))
        host = torch.cat(collected, dim=1).cpu().numpy().astype(np.float64)
    return ExactKL(host[0], host[1], host[2], *((None, None) if sampled_T is None else (host[3], host[4])))


MAX_LOG_RATIO = 20.0
"""k3 grows as exp; log ratios are clamped to +-20 as verl does, so that one token cannot be the whole estimate."""


def kl_terms(logp_pi_T: NDArray[np.floating[Any]], logp_base_T: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """k1, k2 and k3 of each token, [3, T] in nats: with x = log pi - log base on tokens drawn from pi,
    k1 = x, k2 = x^2 / 2, k3 = exp(-x) - 1 + x (Schulman 2020). x is clamped to +-``MAX_LOG_RATIO``; NaN stays NaN."""
    with np.errstate(invalid="ignore"):
        x = np.clip(
            np.asarray(logp_pi_T, dtype=np.float64) - np.asarray(logp_base_T, dtype=np.float64),
            -MAX_LOG_RATIO,
            MAX_LOG_RATIO,
        )
    return np.stack([x, 0.5 * x * x, np.expm1(-x) + x])
