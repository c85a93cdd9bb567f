"""What becomes of the advantages of a round."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from rlmon.interventions.winsorise import winsorise


@dataclass(frozen=True, kw_only=True)
class RowEffect:
    """What the rules do to the advantages of rows [n]: ``clip(A * factor, limit) + addition``."""

    factor_n: NDArray[np.float64]
    """0 for the rows of a neutralised group, else 1."""
    limit: float | None
    """Bound on the size of every advantage."""
    addition_n: NDArray[np.float64]

    def on(self, advantage: NDArray[np.float64]) -> NDArray[np.float64]:
        """``advantage`` [n] or [n, T] as it is to be trained on."""
        return self._with(advantage, self.addition_n)

    def on_tokens(
        self, advantage_nT: NDArray[np.float64], mask_nT: NDArray[np.bool_], gamma: float, lam: float
    ) -> NDArray[np.float64]:
        """The same for advantages by token of generalised advantage estimation: the addition is part of the reward at
        the last token of ``mask_nT``."""
        return self._with(advantage_nT, per_token(self.addition_n, mask_nT, gamma, lam))

    def _with(self, advantage: NDArray[np.float64], addition: NDArray[np.float64]) -> NDArray[np.float64]:
        shape = (-1,) + (1,) * (advantage.ndim - 1)
        kept = advantage * self.factor_n.reshape(shape)
        if self.limit is not None:
            kept = winsorise(kept, self.limit)[0]
        return np.asarray(kept + (addition.reshape(shape) if addition.ndim == 1 else addition), dtype=np.float64)

    @property
    def identity(self) -> bool:
        """Whether all stays as it is."""
        return self.limit is None and bool((self.factor_n == 1.0).all()) and not self.addition_n.any()

    def of(self, rows: slice) -> RowEffect:
        """The effect on some of the rows."""
        return replace(self, factor_n=self.factor_n[rows], addition_n=self.addition_n[rows])


def per_token(
    addition_B: NDArray[np.float64], mask_BT: NDArray[np.bool_], gamma: float, lam: float
) -> NDArray[np.float64]:
    """The addition as a trainer with advantages by token needs it [B, T]: a reward at the last token of ``mask_BT``,
    through generalised advantage estimation without a critic, (gamma lam) ** (tokens until the end); 0 where masked.
    """
    mask = np.asarray(mask_BT, dtype=bool)
    # Tokens of the completion that come after each.
    after_BT = mask[:, ::-1].cumsum(axis=1)[:, ::-1] - 1
    weight_BT = np.where(mask, np.power(gamma * lam, np.maximum(after_BT, 0), dtype=np.float64), 0.0)
    return np.asarray(np.asarray(addition_B, dtype=np.float64)[:, None] * weight_BT, dtype=np.float64)
