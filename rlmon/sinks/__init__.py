"""Mirrors of what a run shows: the terminal, W&B, trackio, TensorBoard, and a user's own.

A sink derives from ``Sink`` and says what it takes; every method is optional. It gets plain records, on rank 0 only,
and may raise: the monitor contains it, names it once and switches that sink off, while training and the log go on.
Mirrors hold no truth; the run log does. Trackers without a sink get the headline scalars through the trainer's own
metrics.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rlmon.records import Action, Finding, Histogram, RunHeader, StepRecord


class Sink:
    """What the monitor calls, after what it hands over is in the run log; here all of it is passed over.

    In one step: ``record`` once, ``finding`` for each finding of it, with ``words`` where something narrowed, and
    ``table`` when one is due.
    """

    def open(self, header: RunHeader) -> None:
        """The run begins: what it is, its settings and those of its trainer."""

    def judged(self) -> None:
        """From here on a run without findings is a pass: a detector that compares it with its base has spoken. Called
        once, before the ``record`` of that step."""

    def record(self, step: StepRecord, histograms: Mapping[str, Histogram]) -> None:
        """Show one step, once per optimizer step, with the histograms that were measured in it, by their names."""

    def finding(self, finding: Finding) -> None:
        """Show what a detector states, after the ``record`` of its step."""

    def words(self, finding: Finding, words: str) -> None:
        """Show what narrowed in one line, after the ``finding``: formats that lost and won, and how sentences begin,
        which is text of the run and told only where it stores its text in full."""

    def action(self, action: Action) -> None:
        """Take one phase of an act of the policy; those of a step come before or after its ``record``."""

    def table(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Show rows of the newest round, at most ``rlmon.monitor.illustration.SAMPLE_ROWS``, every
        ``rlmon_table_every`` steps where the run stores its text in full: mappings with the field names of
        ``records.Rollout`` and ``mode_change`` (``new`` and ``dying`` formats come first)."""

    def close(self) -> None:
        """Training ended."""


__all__ = ["Sink"]
