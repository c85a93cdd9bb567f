"""Student's t: the one implementation, for intervals and tests wherever some are made."""

from __future__ import annotations

import math
from functools import lru_cache

LEAST_P = 1e-12
"""Smaller tails than this are told as this."""


def two_sided_p(t: float, degrees: int) -> float:
    """Chance that |T| of ``degrees`` (1 or more) degrees of freedom is ``abs(t)`` or more, 1e-12 at least.

    The finite sums of Abramowitz and Stegun 26.7.3 and 26.7.4: exact also at 1 to 4 degrees of freedom, where
    expansions in 1 / degrees are far off.
    """
    angle = math.atan2(abs(t), math.sqrt(degrees))
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = degrees % 2
    term = cosine if odd else 1.0
    total = term if degrees > 1 else 0.0
    for at in range(2 + odd, degrees - 1, 2):
        term *= cosine * cosine * (at - 1) / at
        total += term
    inside = 2.0 / math.pi * (angle + sine * total) if odd else sine * total
    return min(1.0, max(LEAST_P, 1.0 - inside))


@lru_cache(maxsize=1024)
def quantile(p: float, degrees: int) -> float:
    """The value below which T of ``degrees`` (1 or more) degrees of freedom lies with chance ``p``, by bisection.

    For .5 <= p <= 1 - 1e-10. Raises ``ValueError`` outside of that.
    """
    if not 0.5 <= p <= 1.0 - 1e-10 or degrees < 1:
        raise ValueError(f"quantile takes .5 <= p <= 1 - 1e-10 and 1 degree of freedom or more, got {p}, {degrees}.")
    tail = 2.0 * (1.0 - p)
    low, high = 0.0, 1.0
    while two_sided_p(high, degrees) > tail:
        low, high = high, 2.0 * high
    while high - low > 1e-12 * high:
        middle = 0.5 * (low + high)
        low, high = (middle, high) if two_sided_p(middle, degrees) > tail else (low, middle)
    return high
