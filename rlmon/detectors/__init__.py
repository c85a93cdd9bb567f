"""Alarms with a price: pure folds over step records.

::

    state = start(alpha=0.01, total_steps=2000, group_size=8)
    for record in records:
        state, findings = step(state, record)
"""

from rlmon.detectors.catalog import DETECTORS, GROUP_BASELINE, VERSION, DetectorSpec, prices
from rlmon.detectors.fold import (
    DEFAULTS,
    STATISTICS,
    DetectorState,
    catalogue,
    describe,
    open_tallies,
    seed_baseline,
    start,
    start_from,
    state_from_json,
    state_to_json,
    status,
    step,
)

__all__ = [
    "DEFAULTS",
    "DETECTORS",
    "GROUP_BASELINE",
    "STATISTICS",
    "VERSION",
    "DetectorSpec",
    "DetectorState",
    "catalogue",
    "describe",
    "open_tallies",
    "prices",
    "seed_baseline",
    "start",
    "start_from",
    "state_from_json",
    "state_to_json",
    "status",
    "step",
]
