"""The sources of a run at its two ends: what can be compared where the mixture of the data changed on the way.

A curriculum or a new task is no collapse. Where the mixture moved, only sources that are at both ends are compared,
and those of the last window are weighed so that they make up the shares that they had at the base.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rlmon.audit.features import Bools, Floats
from rlmon.printable import several

MOVED = 0.1
"""Total variation distance of the two mixtures from which they are two: less is the luck of the draw."""
_NAMED = 3


@dataclass(frozen=True, kw_only=True)
class Strata:
    """What of the two ends can be compared."""

    moved: bool
    """Another mixture of the data at the end than at the base."""
    weight_G: Floats
    """Weight of each group: 0 for sources that are not at both ends, 1 where the mixture did not move."""
    names: frozenset[str]
    """Sources at both ends."""
    said: str
    """What came and what went, in words; empty where the mixture did not move."""


def strata(groups: Mapping[str, Any], sources: Sequence[str], is_base: Bools, is_last: Bools) -> Strata:
    """The sources at both ends, by the completions that they sampled there."""
    shares = []
    for mine in (is_base, is_last):
        rows = np.bincount(groups["source"][mine], weights=groups["rows"][mine], minlength=len(sources))
        shares.append(rows / max(1.0, rows.sum()))
    base, last = shares
    both = (base > 0) & (last > 0)
    moved = 0.5 * float(np.abs(base - last).sum()) > MOVED
    if not moved:
        return Strata(moved=False, weight_G=np.ones(groups["source"].size), names=frozenset(sources), said="")
    factor = np.where(both, base / np.where(last > 0, last, 1.0), 0.0)
    weight = np.where(is_last, factor[groups["source"]], both[groups["source"]].astype(np.float64))
    parts = [
        f"{several([repr(sources[at][:60]) for at in codes], _NAMED)} {verb}"
        for codes, verb in (
            (np.flatnonzero((base > 0) & ~both).tolist(), "went"),
            (np.flatnonzero((last > 0) & ~both).tolist(), "came"),
        )
        if codes
    ]
    return Strata(
        moved=True,
        weight_G=weight,
        names=frozenset(sources[at] for at in np.flatnonzero(both).tolist()),
        said=f"the sources of the data changed ({'; '.join(parts) or 'other shares of the same ones'})",
    )
