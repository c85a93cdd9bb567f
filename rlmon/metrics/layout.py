"""The additive sums of one optimizer step: names, shapes, and the one vector that the ranks add up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from rlmon.metrics import moves
from rlmon.metrics.tokens import ENTROPY_BINS

LENGTH_EDGES_TOKENS: NDArray[np.float64] = np.concatenate([np.arange(0.0, 32.0), np.geomspace(32.0, 2.0**20, 181)])
"""Exact to 32 tokens, then bins of 5.9 % up to 1M tokens."""
ADVANTAGE_EDGES: NDArray[np.float64] = np.concatenate([[0.0], np.geomspace(1e-4, 1e2, 161)])
"""|advantage|: one bin below 1e-4, then bins of 9 %."""
Sums = dict[str, NDArray[np.float64]]

GROUP_FIELDS = (
    "whole",
    "partial",
    "judged",
    "all_good",
    "all_bad",
    "lone",
    "std_sum",
    "std_groups",
    "weight",
    "weight_lone",
    "weight_known",
    "weight_lone_hard",
    "hard_rows",
    "ledger_rows",
    "lone_winner_tokens",
    "lone_other_tokens",
    "lone_other_rows",
    "lone_winner_rows",
    "lone_winner_repetition",
    "lone_other_repetition",
)
TEXT_FIELDS = (
    "words",
    "ranks",
    "distinct_1",
    "distinct_2",
    "distinct_3",
    "total_1",
    "total_2",
    "total_3",
    "raw_bytes",
    "compressed_bytes",
    "repetition",
    "repetition_rows",
)
PAIR_KERNELS = ("mode", "mode_correct", "template", "answer", "opening", "moves", "similarity", "near_duplicate")


class SumsLayout:
    """Names and shapes of all sums of one optimizer step: the content of the one fixed-shape collective."""

    def __init__(self, mode_names: Sequence[str]) -> None:
        """``mode_names`` as in ``ModeSet.names``; the same on all ranks."""
        self.mode_names = tuple(mode_names)
        modes = len(self.mode_names)
        keys: dict[str, tuple[int, ...]] = {
            "rows": (1,),
            "groups": (1,),
            "mode_count": (modes,),
            "mode_count_correct": (modes,),
            "mode_reward": (modes, 2),
            "mode_within": (2,),
            "reasoning_count": (modes,),
            "templates_within": (2,),
            "templates_within_correct": (2,),
            "answers_within": (2,),
            "answer_known": (1,),
        }
        keys.update({f"pairs_{kernel}": (4,) for kernel in PAIR_KERNELS})
        keys.update(
            {
                "pairs_moves_decile": (moves.DECILES, 4),
                "openers": (moves.OPENER_BUCKETS,),
                "opener_tokens": (1,),
                "text": (len(TEXT_FIELDS),),
                "length": (2,),
                "length_hist": (LENGTH_EDGES_TOKENS.size - 1,),
                "truncated": (2,),
                "reward": (2,),
                "reward_missing": (1,),
                "reward_non_finite": (1,),
                "group": (len(GROUP_FIELDS),),
                "advantage_hist": (ADVANTAGE_EDGES.size - 1,),
                "entropy": (2,),
                "entropy_first": (2,),
                "entropy_hist": (ENTROPY_BINS,),
                "entropy_mode": (modes, 2),
                "logp": (2,),
                "cov": (4,),
                "token_non_finite": (1,),
                "kl": (4,),
                "kl_rows": (2,),
                "kl_mode": (modes, 2),
                "kl_estimators": (12,),
                # Rows of which it is known whether they are a success, groups of which all rows are, silent groups.
                "success": (3,),
            }
        )
        self.keys: dict[str, tuple[int, ...]] = keys
        self.size = sum(int(np.prod(shape)) for shape in keys.values())
        """Length of the flat vector."""

    def zeros(self) -> Sums:
        """All sums at zero: what a rank without data, or one that failed, contributes."""
        return {name: np.zeros(shape) for name, shape in self.keys.items()}

    def flatten(self, sums: Mapping[str, NDArray[np.float64]]) -> NDArray[np.float64]:
        """The sums as one float64 vector of length ``size``. Raises ``ValueError`` for a missing or misshapen key."""
        parts = []
        for name, shape in self.keys.items():
            if name not in sums or sums[name].shape != shape:
                raise ValueError(f"sum {name!r} must have shape {shape}, got {getattr(sums.get(name), 'shape', None)}.")
            parts.append(sums[name].reshape(-1))
        return np.concatenate(parts)

    def unflatten(self, vector: NDArray[np.float64]) -> Sums:
        """The inverse of :meth:`flatten`. Raises ``ValueError`` for another length."""
        if vector.shape != (self.size,):
            raise ValueError(f"expected a vector of length {self.size}, got shape {vector.shape}.")
        sums: Sums = {}
        begin = 0
        for name, shape in self.keys.items():
            count = int(np.prod(shape))
            sums[name] = np.array(vector[begin : begin + count], dtype=np.float64).reshape(shape)
            begin += count
        return sums


def add_sums(*parts: Mapping[str, NDArray[np.float64]]) -> Sums:
    """Key-wise sum of several dicts of the same layout; a new dict. Raises ``ValueError`` for none."""
    if not parts:
        raise ValueError("no sums to add")
    return {name: np.sum([part[name] for part in parts], axis=0) for name in parts[0]}
