"""What PPO's critic shows: value loss, explained variance, quantiles of returns and advantages.

One micro-batch becomes one flat float64 vector of additive sums (``value_sums``); the sum of such vectors over
micro-batches and ranks becomes the metrics (``finish``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlmon.metrics.tokens import HISTOGRAM_TOKENS
from rlmon.statistics import histogram_quantile

Matrix = Any
"""A tensor or an array, of shape (B, T): this room names torch in one file only, and a tensor's own methods suffice."""
Scalar = Any
"""A float or a tensor of one element."""

SMALLEST, BINS_PER_DECADE = 1e-4, 96
_POSITIVE = 10.0 ** (np.arange(-4 * BINS_PER_DECADE, 6 * BINS_PER_DECADE + 1) / BINS_PER_DECADE)
SIGNED_EDGES: NDArray[np.float64] = np.concatenate([-_POSITIVE[::-1], _POSITIVE])
"""Edges of both histograms: one bin below ``SMALLEST``, then on either side bins that each grow by 2.4 % up to 1e6;
what is further out is clipped."""
CONSTANT = 1e-8
"""Returns are constant where their variance is at most this share of max(1, their mean square)."""
ROUNDING = 1e-15
"""Relative error of a sum of squares in float64, generously."""

FIELDS = (
    "tokens",
    "loss_tokens",
    "loss",
    "clip_tokens",
    "clip",
    "value_tokens",
    "value",
    "pair_tokens",
    "residual",
    "residual_square",
    "pair_return",
    "pair_return_square",
    "return_tokens",
    "return",
    "non_finite",
)
"""Names of the sums before the two histograms. ``pair``: tokens where value and return are finite."""
BINS = SIGNED_EDGES.size - 1
VALUE_SUMS = len(FIELDS) + 2 * BINS
"""Length of the vector."""
PERCENTS = (5, 25, 50, 75, 95)
_NOTHING = "no values were observed in this step"


def value_sums(
    values_BT: Matrix,
    returns_BT: Matrix,
    advantages_BT: Matrix,
    mask_BT: Matrix,
    loss: Scalar | None,
    clip_ratio: Scalar | None,
) -> NDArray[np.float64]:
    """The sums of one micro-batch: a float64 vector of length ``VALUE_SUMS``, additive over micro-batches and ranks.

    Args: ``values_BT`` at rollout and the discounted rewards to go ``returns_BT`` in units of reward, ``advantages_BT``
    as trained on, ``mask_BT`` non-zero where a token counts; all four of shape (B, T), all tensors (of any float type,
    on any device: one transfer) or all arrays. ``loss`` (squared reward) and ``clip_ratio`` (in [0, 1]) are means over
    the tokens of the mask; ``None`` where there is none.

    Non-finite values are left out, each of its own sums only, and counted once per token; an empty mask gives zeros.
    Raises ``ValueError`` on shapes that do not fit.
    """
    shape = tuple(mask_BT.shape)
    for name, given in (("values_BT", values_BT), ("returns_BT", returns_BT), ("advantages_BT", advantages_BT)):
        if tuple(given.shape) != shape or len(shape) != 2:
            raise ValueError(f"{name} has shape {tuple(given.shape)}, the mask {shape}; both must be (B, T).")
    table_4N, scalars = _on_host((values_BT, returns_BT, advantages_BT, mask_BT), (loss, clip_ratio))
    value_N, return_N, advantage_N = table_4N[:3, table_4N[3] != 0]
    of = dict.fromkeys(FIELDS, 0.0)
    of["tokens"] = float(value_N.size)
    for name, scalar in zip(("loss", "clip"), scalars, strict=True):
        if scalar is None or not value_N.size:
            continue
        if math.isfinite(scalar):
            of[name], of[f"{name}_tokens"] = scalar * value_N.size, float(value_N.size)
        else:
            of["non_finite"] += 1.0
    valued_N, returned_N, advantaged_N = np.isfinite(value_N), np.isfinite(return_N), np.isfinite(advantage_N)
    of["non_finite"] += float(value_N.size - np.count_nonzero(valued_N & returned_N & advantaged_N))
    pair_N = valued_N & returned_N
    paired_n, residual_n = return_N[pair_N], return_N[pair_N] - value_N[pair_N]
    of["value_tokens"], of["return_tokens"] = float(np.count_nonzero(valued_N)), float(np.count_nonzero(returned_N))
    of["pair_tokens"] = float(paired_n.size)
    # A float64 of 1e200 is finite and its square is not: the sum says so, and ``finish`` reads it as not measured.
    with np.errstate(over="ignore"):
        of["value"], of["return"] = float(value_N[valued_N].sum()), float(return_N[returned_N].sum())
        of["residual"], of["residual_square"] = float(residual_n.sum()), float(residual_n @ residual_n)
        of["pair_return"], of["pair_return_square"] = float(paired_n.sum()), float(paired_n @ paired_n)
    return np.concatenate([list(of.values()), _histogram(return_N[returned_N]), _histogram(advantage_N[advantaged_N])])


def _on_host(
    matrices: tuple[Any, Any, Any, Any], scalars: tuple[Any, Any]
) -> tuple[NDArray[np.float64], list[float | None]]:
    """The four matrices as rows of one table of shape (4, B x T) and the two scalars, in float64 on the CPU."""
    first = matrices[0]
    if not hasattr(first, "detach"):
        table = np.stack([np.asarray(matrix, dtype=np.float64).reshape(-1) for matrix in matrices])
        return table, [None if scalar is None else float(scalar) for scalar in scalars]
    size = math.prod(first.shape)
    wide = first.detach() if first.dtype.itemsize == 8 and first.is_floating_point() else first.detach().float()
    # One buffer on the tensors' device, so that a GPU is waited for once.
    packed = wide.new_zeros(4 * size + 2)
    for at, matrix in enumerate(matrices):
        packed[at * size : (at + 1) * size] = (matrix != 0 if at == 3 else matrix).detach().reshape(-1)
    for at, scalar in enumerate(scalars):
        if scalar is not None:
            packed[4 * size + at] = scalar.detach().reshape(()) if hasattr(scalar, "detach") else float(scalar)
    host = packed.cpu().numpy().astype(np.float64)
    known = [None if scalar is None else float(host[4 * size + at]) for at, scalar in enumerate(scalars)]
    return host[: 4 * size].reshape(4, size), known


def _histogram(values_N: NDArray[np.float64]) -> NDArray[np.float64]:
    """Counts between ``SIGNED_EDGES``; of more than ``HISTOGRAM_TOKENS`` only every k-th, with weight k."""
    stride = max(1, -(-values_N.size // HISTOGRAM_TOKENS))
    bins_n = np.searchsorted(SIGNED_EDGES[1:-1], values_N[::stride], side="right")
    return np.bincount(bins_n, minlength=BINS).astype(np.float64) * stride


def non_finite(vector: NDArray[np.float64]) -> float:
    """Tokens and scalars with a NaN or infinite value, return, advantage, loss or clip ratio."""
    return float(vector[FIELDS.index("non_finite")])


def finish(vector: NDArray[np.float64]) -> tuple[dict[str, float | None], dict[str, str]]:
    """Every metric ``rlmon/value/*`` from the summed vector, and the reason for each that is ``None``.

    Variances come from raw sums in float64: their rounding moves the explained variance by about ``ROUNDING`` x
    mean((R - V)^2) / Var(R), which is 1e-9 for returns of mean 1,000 and deviation 1 with a critic at 0; it is null
    where that passes 1e-3.
    Raises ``ValueError`` for another length.
    """
    if vector.shape != (VALUE_SUMS,):
        raise ValueError(f"expected a vector of length {VALUE_SUMS}, got shape {vector.shape}.")
    of = dict(zip(FIELDS, vector.tolist(), strict=False))
    metrics: dict[str, float | None] = {}
    missing: dict[str, str] = {}

    def put(name: str, value: float | None, reason: str) -> None:
        name = f"rlmon/value/{name}"
        if value is not None and not math.isfinite(value):
            value, reason = None, "the sums are not finite"
        metrics[name] = value
        if value is None:
            missing[name] = reason if of["tokens"] > 0 else _NOTHING

    def ratio(name: str, top: str, bottom: str, reason: str) -> None:
        put(name, of[top] / of[bottom] if of[bottom] > 0 else None, reason)

    ratio("loss", "loss", "loss_tokens", "no finite value loss")
    ratio("clip_ratio", "clip", "clip_tokens", "no finite clip ratio")
    put("explained_variance", *_explained_variance(of))
    ratio("mean", "value", "value_tokens", "no finite value")
    ratio("return_mean", "return", "return_tokens", "no finite return")
    for name, begin in (("return", len(FIELDS)), ("advantage", len(FIELDS) + BINS)):
        for percent in PERCENTS:
            found = histogram_quantile(vector[begin : begin + BINS], SIGNED_EDGES, percent / 100)
            # Where nothing finer is known, a position inside the bin would be made up.
            around_zero = found is not None and abs(found) <= SMALLEST
            put(f"{name}_p{percent:02}", 0.0 if around_zero else found, f"no finite {name}")
    return metrics, missing


def _explained_variance(of: Mapping[str, float]) -> tuple[float | None, str]:
    """1 - Var(R - V) / Var(R), or ``None`` and why."""
    count = of["pair_tokens"]
    if count <= 0:
        return None, "no token has a finite value and a finite return"
    square = of["pair_return_square"] / count
    mean, offset = of["pair_return"] / count, of["residual"] / count
    spread, residual = square - mean * mean, of["residual_square"] / count - offset * offset
    if not (math.isfinite(spread) and math.isfinite(residual)):
        return None, "the sums are not finite"
    if spread <= CONSTANT * max(1.0, square):
        return None, "returns are constant"
    if ROUNDING * of["residual_square"] / count > 1e-3 * spread:
        return None, "the values are too far from the returns for float64 to tell how both vary"
    return 1.0 - max(0.0, residual) / spread, ""
