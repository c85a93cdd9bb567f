"""A metric's base, for rules: its mean over the records of its baseline."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rlmon.baseline import COMPLETIONS, PROMPTS, ROUNDS, Baseline
from rlmon.interventions import saved
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

    @classmethod
    def from_json(cls, found: Mapping[str, Any] | Sequence[float]) -> BaseMean:
        """That of a checkpoint; those of 0.1 have the list of first values."""
        if isinstance(found, Mapping):
            return saved.from_json(cls, found)
        rounds = float(ROUNDS if len(found) >= RECORDS_BEFORE else len(found))
        return cls(total=math.fsum(found), values=len(found), baseline=Baseline(rounds=rounds))
