"""The numbers of one step, as every tracker is given them."""

from __future__ import annotations

from collections.abc import Mapping

from rlmon.records import Severity, StepRecord


def numbers_of(step: StepRecord, gravest: Mapping[str, Severity]) -> dict[str, float]:
    """What was measured, by the names of the catalogue, and what the monitor counts of itself; not measured is absent,
    not 0. ``gravest``: what each detector said before this step."""
    found = {**step.metrics, "rlmon/faults": sum(step.faults.values()), "rlmon/shed_rows": step.shed_rows}
    found["rlmon/detectors_failed"] = sum(severity == "fail" for severity in gravest.values())
    found |= {f"rlmon/{name}": getattr(step, name) for name in ("overhead_seconds", "base_forward_seconds")}
    return {name: value for name, value in found.items() if value is not None}
