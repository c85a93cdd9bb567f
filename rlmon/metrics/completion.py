"""A number per completion as a metric: the smallest family of your own.

EMOJI = CompletionMetric("emoji/share", lambda text: sum(mark in EMOJIS for mark in text) / max(1, len(text)))
RLMon(trainer, metrics=[EMOJI])
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from rlmon.metrics.family import (
    NO_BASE,
    Bound,
    Direction,
    Metric,
    MetricFamily,
    Numbers,
    RankRows,
    Shape,
    StepSums,
    Sums,
)
from rlmon.records import RolloutBatch


class CompletionMetric(MetricFamily):
    """The mean of a number per completion over all ranks, ``<name>``; the same over that of the baseline,
    ``<name>_ratio_to_base``; and its means over blocks of prompts, a statistic ``<name>`` that a detector can read.

    Args:
        name: ``<family>/<name>``, of your own.
        of: the number of a completion's text; ``None`` or NaN where it has none. Override ``row_values`` for a number
            of more than the text.
        unit: of it.
        low: least possible value; ``None``: unbounded.
        high: largest possible value.
        bad: which way is bad.
        formula: what it is, in words.
        source: where it is from.
    """

    def __init__(
        self,
        name: str,
        of: Callable[[str], float | None],
        *,
        unit: str = "",
        low: Bound = None,
        high: Bound = None,
        bad: Direction = "none",
        formula: str = "",
        source: str = "",
    ) -> None:
        self.name, self.about, self._of = name, formula, of
        self.columns, self.base = (name,), ("total", "rows")
        self.entries = (
            Metric(name, unit, low, high, bad, source, formula, "exact", "completions"),
            Metric(
                f"{name}_ratio_to_base", "ratio", None, None, bad, source, f"{name} / {name} of the baseline", "exact",
                "completions",
            ),
        )  # fmt: skip

    def fields(self, modes: Sequence[str]) -> Mapping[str, Shape]:
        return {"total": (), "rows": ()}

    def row_values(self, batch: RolloutBatch) -> Mapping[str, Any]:
        return {self.name: [self._of(text) for text in batch.completions]}

    def add_rows(self, sums: Sums, seen: RankRows) -> None:
        value_B = seen.rows["measured"][self.name]
        known = np.isfinite(value_B)
        sums["total"] += value_B[known].sum()
        sums["rows"] += known.sum()

    def finish(self, out: Numbers, sums: Sums, step: StepSums) -> None:
        mean = out.ratio(self.name, sums["total"], sums["rows"], "no completion of this step has a value")
        ratio, reason = None, "no completion of this step has a value"
        if mean is not None:
            reason = NO_BASE if step.base is None else "the mean of the baseline is 0, or none was measured"
        if mean is not None and step.base is not None and step.base["rows"] > 0 and step.base["total"] != 0:
            ratio = mean / float(step.base["total"] / step.base["rows"])
        out.put(f"{self.name}_ratio_to_base", ratio, reason)
