"""What a check has to know of a detector: in which unit it tells, which way damage is, and what stands in for it."""

from __future__ import annotations

from rlmon.audit.case import Case
from rlmon.audit.stand_ins import NEXT_BEST
from rlmon.detectors import DetectorSpec
from rlmon.records import Finding


def falls(spec: DetectorSpec) -> bool:
    """Whether damage is down in the unit of the metric: collisions go up, effective numbers down."""
    return spec.direction == "down" or spec.rule == "effective"


def told_by(case: Case, metric: str) -> str:
    """The curve of a metric, or the one that stands in for it where only that was logged."""
    return NEXT_BEST[metric] if case.series(metric) is None and metric in NEXT_BEST else metric


def named_unit(case: Case, spec: DetectorSpec) -> str:
    """The unit of what is read: lengths are in characters where nobody counted tokens."""
    return "characters" if spec.id == "length-collapse" and case.characters else spec.unit


def statistic_of(spec: DetectorSpec, finding: Finding) -> str:
    """The statistic of blocks that a finding is about."""
    return dict(zip(spec.metrics, spec.statistics, strict=True)).get(finding.metric, spec.statistics[0])


def said(value: float | None) -> str:
    """A number in a message."""
    return "not known" if value is None else f"{value:.3g}"
