"""A metric's base, for rules: its mean over the records of its baseline."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rlmon.baseline import COMPLETIONS, PROMPTS, ROUNDS, Baseline
from rlmon.records import StepRecord

RECORDS_BEFORE = 5
"""Values that a complete base had in checkpoints of 0.1."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BaseMean:
    """The mean of a metric over its baseline: a fold over records that keeps two numbers and what was counted."""

    total: float = 0.0
    values: int = 0
    baseline: Baseline = field(default_factory=Baseline)
    newest: tuple[float, float] = (0.0, 0.0)
    """Prompts and completions of the newest round, while it is not counted: a metric that is measured on a later step
    of a round is measured on that round."""

    def after(self, record: StepRecord, value: float | None) -> BaseMean:
        """With one more record, and the metric's value in it; complete, it stays as it is."""
        if self.baseline.complete:
            return self
        newest = (float(record.prompts), float(record.completions)) if record.completions else self.newest
        if value is None or not math.isfinite(value):
            return BaseMean(total=self.total, values=self.values, baseline=self.baseline, newest=newest)
        return BaseMean(
            total=self.total + value,
            values=self.values + 1,
            baseline=self.baseline.with_round(prompts=newest[0], completions=newest[1]),
        )

    @property
    def mean(self) -> float | None:
        """``None`` until the baseline is complete."""
        return self.total / self.values if self.baseline.complete and self.values else None

    def progress(self) -> str:
        """How much of the baseline was seen, in words."""
        seen = self.baseline
        return (
            f"{seen.prompts:g} prompts and {seen.completions:g} completions in {seen.rounds:g} rounds; its base takes "
            f"{PROMPTS}, {COMPLETIONS} or {ROUNDS} of them"
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "total": self.total,
            "values": self.values,
            "baseline": self.baseline.to_json(),
            "newest": list(self.newest),
        }

    @classmethod
    def from_json(cls, saved: Mapping[str, Any] | Sequence[float]) -> BaseMean:
        """What ``to_json`` gave, or the list of first values that checkpoints of 0.1 have."""
        if not isinstance(saved, Mapping):
            complete = len(saved) >= RECORDS_BEFORE
            rounds = float(ROUNDS if complete else len(saved))
            return cls(total=math.fsum(saved), values=len(saved), baseline=Baseline(rounds=rounds))
        prompts, completions = saved["newest"]
        return cls(
            total=float(saved["total"]),
            values=int(saved["values"]),
            baseline=Baseline.from_json(saved["baseline"]),
            newest=(float(prompts), float(completions)),
        )
