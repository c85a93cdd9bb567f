"""Alarms with a price: pure folds over step records.

::

    state = start(alpha=0.01, total_steps=2000, group_size=8)
    for record in records:
        state, findings = step(state, record)
"""

from rlmon.detectors.catalog import DETECTORS, GROUP_BASELINE, VERSION, DetectorSpec, catalogue, prices
from rlmon.detectors.fold import open_tallies, seed_baseline, step
from rlmon.detectors.roster import Roster
from rlmon.detectors.state import (
    DetectorState,
    describe,
    start,
    start_from,
    state_from_json,
    state_to_json,
    with_own,
)
from rlmon.detectors.telling import judged, status

__all__ = [
    "DETECTORS",
    "GROUP_BASELINE",
    "VERSION",
    "DetectorSpec",
    "DetectorState",
    "Roster",
    "catalogue",
    "describe",
    "judged",
    "open_tallies",
    "prices",
    "seed_baseline",
    "start",
    "start_from",
    "state_from_json",
    "state_to_json",
    "status",
    "step",
    "with_own",
]
