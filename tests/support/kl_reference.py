"""Estimators of KL from sampled tokens as a textbook has them: what the sums of the family must come to."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlmon.metrics.tokens import kl_terms


@dataclass(frozen=True)
class KLEstimates:
    """Sampled estimators of KL(pi || base) per token in nats, with standard errors; ``None`` where not computable."""

    k1: float | None
    k1_se: float | None
    k2: float | None
    k2_se: float | None
    k3: float | None
    k3_se: float | None
    tokens: int
    clusters: int
    non_finite: int


def kl_estimators(
    logp_pi_T: NDArray[np.floating[Any]],
    logp_base_T: NDArray[np.floating[Any]],
    cluster_T: NDArray[np.integer[Any]] | None = None,
    weight_T: NDArray[np.floating[Any]] | None = None,
) -> KLEstimates:
    """k1, k2, k3 and their standard errors over tokens drawn from the policy.

    Without ``cluster_T`` the standard error is sd(ddof=1)/sqrt(T). With it (one integer per token, the prompt) it is
    that of a ratio estimator over clusters, sqrt(C/(C-1) * sum_c (S_c - mean n_c)^2) / T, since tokens of one prompt
    are not independent. ``weight_T`` is how many tokens each stands for: means, S_c, n_c and T are weighted sums then.
    Non-finite log-probabilities are counted and left out.
    """
    logp_pi_T = np.asarray(logp_pi_T, dtype=np.float64)
    logp_base_T = np.asarray(logp_base_T, dtype=np.float64)
    finite = np.isfinite(logp_pi_T) & np.isfinite(logp_base_T)
    terms = kl_terms(logp_pi_T[finite], logp_base_T[finite])
    tokens = int(finite.sum())
    cluster = np.arange(tokens) if cluster_T is None else np.asarray(cluster_T)[finite]
    codes = np.unique(cluster, return_inverse=True)[1]
    clusters = int(codes.max()) + 1 if tokens else 0
    weight = np.ones(tokens) if weight_T is None else np.asarray(weight_T, dtype=np.float64)[finite]
    columns: dict[str, float | None] = {}
    for name, values in zip(("k1", "k2", "k3"), terms, strict=True):
        mean = float(weight @ values / weight.sum()) if tokens else None
        columns[name] = mean
        columns[f"{name}_se"] = None
        if mean is not None and clusters > 1:
            residual = np.bincount(codes, weights=weight * (values - mean), minlength=clusters)
            spread = math.sqrt(clusters / (clusters - 1) * float(residual @ residual))
            columns[f"{name}_se"] = float(spread / weight.sum())
    return KLEstimates(**columns, tokens=tokens, clusters=clusters, non_finite=int((~finite).sum()))
