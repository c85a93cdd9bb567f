"""Mirrors of what a run shows: the terminal, W&B, and a user's own.

A sink derives from ``Sink`` and says what it takes; every method is optional. It gets plain records, on rank 0 only,
and may raise: the monitor contains it and counts a fault. Mirrors hold no truth; the run log does. TensorBoard, trackio
and the trainer's console need no sink: they get the headline scalars through the trainer's own metrics.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rlmon.records import Action, Finding, RunHeader, StepRecord

SampleRows = Callable[[int], Sequence[Mapping[str, Any]]]
"""At most that many rows of the newest round, as mappings with the field names of ``records.Rollout``."""


class Sink:
    """What the monitor calls, after what it hands over is in the run log; here all of it is passed over."""

    def open(self, header: RunHeader) -> None:
        """The run begins: what it is, its settings and those of its trainer."""

    def record(self, step: StepRecord, findings: Sequence[Finding], sample_rows: SampleRows) -> None:
        """Show one step, once per optimizer step. ``sample_rows`` is called only when the rows are wanted: it costs."""

    def action(self, action: Action) -> None:
        """Take one phase of an act of the policy; those of a step come before or after its ``record``."""

    def close(self) -> None:
        """Training ended."""


__all__ = ["SampleRows", "Sink"]
