"""What PPO's critic shows: value loss, explained variance, quantiles of returns and advantages."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlmon.metrics.family import CriticTokens, Entries, Metric, MetricFamily, Numbers, Shape, StepSums, Sums
from rlmon.metrics.tokens import HISTOGRAM_TOKENS
from rlmon.statistics import histogram_quantile

SMALLEST, BINS_PER_DECADE = 1e-4, 96
_POSITIVE = 10.0 ** (np.arange(-4 * BINS_PER_DECADE, 6 * BINS_PER_DECADE + 1) / BINS_PER_DECADE)
SIGNED_EDGES: NDArray[np.float64] = np.concatenate([-_POSITIVE[::-1], _POSITIVE])
"""Edges of both histograms: one bin below ``SMALLEST``, then on either side bins that each grow by 2.4 % up to 1e6;
what is further out is clipped."""
BINS = SIGNED_EDGES.size - 1
CONSTANT = 1e-8
"""Returns are constant where their variance is at most this share of max(1, their mean square)."""
ROUNDING = 1e-15
"""Relative error of a sum of squares in float64, generously."""
PERCENTS = (5, 25, 50, 75, 95)
_NOTHING = "no values were observed in this step"
_NUMBERS = (
    *("tokens", "loss_tokens", "loss", "clip_tokens", "clip", "value_tokens", "value", "return_tokens", "return"),
    # Tokens where value and return are finite.
    *("pair_tokens", "residual", "residual_square", "pair_return", "pair_return_square"),
    "non_finite",
)
_PPO, _GAE = "arXiv 2005.12729", "arXiv 1506.02438"
_entry = Entries(family="value", needs="a critic")


def _entries() -> Iterator[Metric]:
    sketch = "over tokens from 1,921 fixed bins: within 2.5 % for sizes of 1e-4 to 1e6, 0 below"
    yield _entry(
        "explained_variance", "share", None, 1, "down",
        "1 - Var(R - V) / Var(R) over completion tokens: V the values at rollout, R the discounted rewards to go; "
        "a constant offset between them does not count; null where Var(R) <= 1e-8 max(1, mean R^2)",
        source="OpenAI Baselines",
    )  # fmt: skip
    yield _entry(
        "loss", "reward^2", 0, None, "up",
        "mean over tokens of max((V_now - R)^2, (V_clipped - R)^2) / 2, without its coefficient", source=_PPO,
    )  # fmt: skip
    yield _entry(
        "clip_ratio", "share", 0, 1, "none", "share of tokens where the clipped branch of the loss is the larger",
        source=_PPO,
    )  # fmt: skip
    yield _entry("mean", "reward", None, None, "none", "mean over tokens of V")
    yield _entry("return_mean", "reward", None, None, "none", "mean over tokens of R", source=_GAE)
    for name, unit, what in (
        ("return", "reward", "R"),
        ("advantage", "advantage", "the signed advantage as trained on, after whitening and rules,"),
    ):
        for percent in PERCENTS:
            yield _entry(
                f"{name}_p{percent:02}", unit, None, None, "none", f"{percent} % quantile of {what} {sketch}",
                source=_GAE, kind="sketch",
            )  # fmt: skip


class Value(MetricFamily):
    name = "value"
    about = "The critic of PPO, over the completion tokens of the step and all ranks; only in runs with one."
    entries = tuple(_entries())

    def fields(self, modes: Sequence[str]) -> Mapping[str, Shape]:
        return {**dict.fromkeys(_NUMBERS, ()), "returns": (BINS,), "advantages": (BINS,)}

    def add_values(self, sums: Sums, critic: CriticTokens) -> None:
        """Non-finite values are left out, each of its own sums only, and counted once per token; an empty mask adds
        nothing.

        Raises ``ValueError`` on shapes that do not fit.
        """
        shape = tuple(critic.mask_BT.shape)
        matrices = critic.values_BT, critic.returns_BT, critic.advantages_BT
        for name, given in zip(("values_BT", "returns_BT", "advantages_BT"), matrices, strict=True):
            if tuple(given.shape) != shape or len(shape) != 2:
                raise ValueError(f"{name} has shape {tuple(given.shape)}, the mask {shape}; both must be (B, T).")
        table_4N, scalars = _on_host((*matrices, critic.mask_BT), (critic.loss, critic.clip_ratio))
        value_N, return_N, advantage_N = table_4N[:3, table_4N[3] != 0]
        sums["tokens"] += value_N.size
        for name, scalar in zip(("loss", "clip"), scalars, strict=True):
            if scalar is None or not value_N.size:
                continue
            if math.isfinite(scalar):
                sums[name] += scalar * value_N.size
                sums[f"{name}_tokens"] += value_N.size
            else:
                sums["non_finite"] += 1.0
        valued_N, returned_N, advantaged_N = np.isfinite(value_N), np.isfinite(return_N), np.isfinite(advantage_N)
        sums["non_finite"] += value_N.size - np.count_nonzero(valued_N & returned_N & advantaged_N)
        pair_N = valued_N & returned_N
        paired_n, residual_n = return_N[pair_N], return_N[pair_N] - value_N[pair_N]
        sums["value_tokens"] += np.count_nonzero(valued_N)
        sums["return_tokens"] += np.count_nonzero(returned_N)
        sums["pair_tokens"] += paired_n.size
        # A float64 of 1e200 is finite and its square is not: the sum says so, and ``finish`` reads it as not measured.
        with np.errstate(over="ignore"):
            sums["value"] += value_N[valued_N].sum()
            sums["return"] += return_N[returned_N].sum()
            sums["residual"] += residual_n.sum()
            sums["residual_square"] += residual_n @ residual_n
            sums["pair_return"] += paired_n.sum()
            sums["pair_return_square"] += paired_n @ paired_n
        sums["returns"] += _histogram(return_N[returned_N])
        sums["advantages"] += _histogram(advantage_N[advantaged_N])

    def finish(self, out: Numbers, sums: Sums, step: StepSums) -> None:
        """Variances come from raw sums in float64: their rounding moves the explained variance by about ``ROUNDING`` x
        mean((R - V)^2) / Var(R), which is 1e-9 for returns of mean 1,000 and deviation 1 with a critic at 0; it is null
        where that passes 1e-3."""
        of = {name: float(sums[name]) for name in _NUMBERS}

        def reason(text: str) -> str:
            return text if of["tokens"] > 0 else _NOTHING

        out.ratio("value/loss", of["loss"], of["loss_tokens"], reason("no finite value loss"))
        out.ratio("value/clip_ratio", of["clip"], of["clip_tokens"], reason("no finite clip ratio"))
        explained, why = _explained_variance(of)
        out.put("value/explained_variance", explained, reason(why))
        out.ratio("value/mean", of["value"], of["value_tokens"], reason("no finite value"))
        out.ratio("value/return_mean", of["return"], of["return_tokens"], reason("no finite return"))
        for name in ("return", "advantage"):
            for percent in PERCENTS:
                found = histogram_quantile(sums[f"{name}s"], SIGNED_EDGES, percent / 100)
                # Where nothing finer is known, a position inside the bin would be made up.
                around_zero = found is not None and abs(found) <= SMALLEST
                out.put(f"value/{name}_p{percent:02}", 0.0 if around_zero else found, reason(f"no finite {name}"))

    def unmeasured(self, sums: Sums, step: StepSums) -> str | None:
        """Each metric says it for itself."""
        return None


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
