"""States of ``hold`` as they are in the middle of a run."""

from __future__ import annotations

from typing import Any

from rlmon.baseline import Baseline
from rlmon.interventions.hold import Hold, HoldState, Mean, Seen


def known(settings: Hold, *, now: float = 0.9, best: float = 0.2, pool: Any = None) -> HoldState:
    """A state after a baseline, in which right answers are ``now`` alike, and were ``best`` once."""
    seen = Seen(now=Mean(groups=16.0, total=16.0 * now, square=16.0 * now**2), best=best)
    return HoldState(
        baseline=Baseline(32.0, 256.0, 4.0),
        within=seen,
        across=seen,
        pool=settings.fresh().pool if pool is None else pool,
    )
