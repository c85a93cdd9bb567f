"""Bound the size of every advantage."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def winsorise(advantage_N: NDArray[np.float64], limit: float) -> tuple[NDArray[np.float64], int]:
    """``advantage_N`` [N] clipped to plus or minus ``limit``, and how many were clipped. NaN stays NaN.

    A lone success in a group of G has (G - 1) / sqrt(G) under TRL's normalisation: 2.5 leaves groups of 8 as they are
    (2.47) and bounds those of 16 (3.75). Only the winner is clipped, so the group no longer sums to zero: it falls to
    limit - (G - 1) / sqrt(G).
    """
    over_N = np.abs(advantage_N) > limit
    return np.asarray(np.clip(advantage_N, -limit, limit), dtype=np.float64), int(over_N.sum())
