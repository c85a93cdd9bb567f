"""What a comparison of runs comes to, as every output has it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rlmon.audit.settings import SettingDifference

COMPARISON_VERSION = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class MetricDifference:
    """One metric on both sides."""

    name: str
    unit: str
    base_a: float | None
    base_b: float | None
    last_a: float
    last_b: float
    difference: float
    """``last_b - last_a``."""
    low: float | None
    """95 % interval of the difference; ``None`` where there are too few steps for one."""
    high: float | None
    p: float | None
    """Two-sided, before Holm's correction; ``None`` without an interval, and where nothing varies or differs."""
    distinct: bool
    """Different at .05 after Holm's correction over the metrics of its family (``FIRST_METRICS``, or the others)."""
    effect: float | None
    """The difference in units of one step's noise at the base; ``None`` where that is zero or not known."""
    departure_step: int | None
    """First step of the first sustained departure."""
    common_steps: int
    method: str
    """``steps`` (one run a side) or ``runs`` (Welch over runs)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModeDifference:
    """One format's share at the base and at the end of both sides."""

    mode: str
    base: float | None
    last_a: float
    last_b: float


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckDifference:
    """One check on both sides."""

    id: str
    title: str
    a: Sequence[str]
    """A status per run."""
    b: Sequence[str]
    onsets_a: Sequence[int | None]
    onsets_b: Sequence[int | None]

    @property
    def differs(self) -> bool:
        """Whether the sides do not have the same statuses."""
        return sorted(self.a) != sorted(self.b)


@dataclass(frozen=True, kw_only=True, slots=True)
class SideFacts:
    """One side: its runs and how far they went from the base."""

    name: str
    runs: Sequence[str]
    readers: Sequence[str]
    verdicts: Sequence[str]
    steps: Sequence[int]
    completions: Sequence[int]
    kept_formats: float | None
    """Formats in use at the end over those of the base, mean over runs."""
    format_distance: float | None
    """Jensen-Shannon distance of the format shares at the end to those of the base, mean over runs, in [0, 1]."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Curves:
    """What a page draws: one line per run."""

    steps: Mapping[str, Sequence[int]]
    """By run label (``A``, ``A 2``, ``B``, ...)."""
    series: Mapping[str, Mapping[str, Sequence[float | None]]]
    """By metric, then by run label."""
    mode_shares: Mapping[str, Mapping[str, Sequence[float | None]]]
    """By run label, then by mode."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """Everything that differs between A and B."""

    headline: str
    same: bool
    """Every common value of every common metric is equal."""
    a: SideFacts
    b: SideFacts
    base: str
    """What the distances are measured from, in words."""
    settings: Sequence[SettingDifference]
    other_settings: Sequence[SettingDifference]
    """Seeds, folders and names: differing, but no reason for a difference."""
    settings_note: str
    metrics: Sequence[MetricDifference]
    modes: Sequence[ModeDifference]
    checks: Sequence[CheckDifference]
    correction: str
    notes: Sequence[str]
    curves: Curves = field(repr=False)

    def to_json(self) -> dict[str, Any]:
        """The object that ``--format json`` prints: everything but the curves."""
        values = dataclasses.asdict(self)
        del values["curves"]
        return {"schema_version": COMPARISON_VERSION, "tool": "rlmon", **values}
