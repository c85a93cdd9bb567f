"""base + A (checkpoint - base) of a stretch of values."""

from __future__ import annotations

import numpy as np

from rlmon.blending.tensors import decoded, encoded


class NotFiniteError(ValueError):
    """A blend would hold values that are no finite numbers."""


def blended(base: bytes, checkpoint: bytes, alpha: float, base_dtype: str, dtype: str) -> bytes:
    """``base + alpha (checkpoint - base)`` as values of ``dtype``, which is the checkpoint's.

    Computed in float32 (in float64 where one of them is), rounded once. At 1 it is the checkpoint bit for bit, at 0 the
    base as values of ``dtype``. Where both are equal, infinite values too, they stay what they are. Raises
    ``NotFiniteError`` where anything else would not be finite.
    """
    if alpha == 1.0:
        return checkpoint
    if alpha == 0.0 and base_dtype == dtype:
        return base
    b, c = decoded(base, base_dtype), decoded(checkpoint, dtype)
    wide = np.result_type(b, c)
    with np.errstate(over="ignore", invalid="ignore"):
        mixed = b.astype(wide) if alpha == 0.0 else b + wide.type(alpha) * (c - b)
    data = encoded(mixed, dtype)
    lost = ~np.isfinite(decoded(data, dtype))
    if not lost.any():
        return data
    same = b == c
    if not (lost & ~same).any():
        return encoded(np.where(same, c, mixed), dtype)
    for name, values in (("CHECKPOINT", c), ("BASE", b)):
        if not np.isfinite(values[lost & ~same]).all():
            raise NotFiniteError(f"has values in {name} that are no finite numbers, so that nothing lies between")
    raise NotFiniteError(f"has values at A = {alpha:g} that are too large for {dtype}: type an A nearer to 1")
