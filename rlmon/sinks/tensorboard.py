"""Everything under ``rlmon/*`` in TensorBoard, through the writer that the trainer's own integration has open.

TensorBoard reads two files that grow in one folder only partly, so there is no second writer beside the trainer's.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlmon.console import first, what_happened
from rlmon.dashboard.story import STORY, Lines
from rlmon.printable import one_line
from rlmon.records import Finding, Histogram, RunHeader, StepRecord
from rlmon.runlog import open_run
from rlmon.sinks import Sink
from rlmon.sinks.alerts import Alerts
from rlmon.sinks.numbers import numbers_of
from rlmon.sinks.tables import MAX_TABLE_ROWS

MAX_TEXT_CHARACTERS = 1_000


def charts() -> dict[str, dict[str, list[Any]]]:
    """The page of custom scalars: the curves of the story, by section and title."""
    layout: dict[str, dict[str, list[Any]]] = {}
    for part in STORY:
        for lines in part.panels:
            if isinstance(lines, Lines):
                tags = [f"^{name}$" for name in lines.metrics] or [f"^{lines.family}"]
                layout.setdefault(part.title, {})[lines.title] = ["Multiline", tags]
    return layout


class TensorBoardSink(Sink):
    """Mirrors what it is told into ``writer``: a ``SummaryWriter``, or a function that gives the one that is open now
    (``None``: nothing is written). It is never closed here.

    ``log``: the run directory, where a run that goes on finds what was said before.
    """

    def __init__(self, writer: Callable[[], Any] | Any, log: Path | None = None) -> None:
        self._given, self._log, self._alerts = writer, log, Alerts(log)
        self._met: Any = None
        self._told_verdict: str | None = None

    def open(self, header: RunHeader) -> None:
        """Say where the run begins; of one that goes on, take what was found before."""
        self._alerts.open(header)
        writer = self._writer()
        if writer is not None and self._log is not None:
            _begin(writer, open_run(self._log).attempts[-1].from_step or 0)

    def record(self, step: StepRecord, histograms: Mapping[str, Histogram]) -> None:
        """The step's measured metrics as scalars, and its histograms."""
        writer = self._writer()
        if writer is None:
            return
        if writer is not self._met:
            self._met = writer
            writer.add_custom_scalars(charts())
            self._told_verdict = None
        self._sum_up(writer, step.step)
        for name, value in numbers_of(step, self._alerts.gravest).items():
            writer.add_scalar(name, float(value), step.step)
        for name, histogram in histograms.items():
            _add_histogram(writer, name, histogram, step.step)

    def judged(self) -> None:
        self._alerts.judged = True

    def finding(self, finding: Finding) -> None:
        """The finding as text, and the verdict where it changes."""
        self._alerts.take(finding)
        writer = self._writer()
        if writer is None:
            return
        happened = _escaped(what_happened(finding))
        text = f"**{finding.severity.upper()}** {_escaped(finding.detector)}: {happened}."
        if finding.advice:
            text += f" {_escaped(first(finding.advice))}."
        # The detector is in the tag: texts of one tag and step would replace each other.
        writer.add_text(f"rlmon/findings/{finding.detector}", text, finding.step)
        self._sum_up(writer, finding.step)

    def table(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """The rows as paragraphs: beside a long text TensorBoard breaks the short cells of a table letter by letter."""
        writer = self._writer()
        if writer is not None:
            writer.add_text("rlmon/samples", "\n\n".join(map(_sample, rows[:MAX_TABLE_ROWS])), step)

    def _writer(self) -> Any:
        return self._given() if callable(self._given) else self._given

    def _sum_up(self, writer: Any, step: int) -> None:
        """The verdict, where it is another than was told."""
        if self._alerts.verdict != self._told_verdict:
            self._told_verdict = self._alerts.verdict
            writer.add_text("rlmon/verdict", _escaped(": ".join([self._told_verdict, *self._alerts.loud])), step)


def _begin(writer: Any, step: int) -> None:
    """Say that what follows supersedes what a folder has of the steps after ``step``.

    TensorBoard's own loader drops a curve's later steps when it goes back; the older one (``--load_fast=false``, and
    where there is no other) and ``EventAccumulator`` ask for this, of the first attempt too.
    """
    try:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
    except ImportError:  # tensorboardX writes for readers of its own
        return
    writer.file_writer.add_event(Event(session_log=SessionLog(status=SessionLog.START)), step + 1)


def _add_histogram(writer: Any, name: str, histogram: Histogram, step: int) -> None:
    edges, counts = [float(edge) for edge in histogram.edges], [float(count) for count in histogram.counts]
    total = sum(counts)
    if total <= 0:
        return
    middles = [(low + high) / 2 for low, high in itertools.pairwise(edges)]
    writer.add_histogram_raw(
        name,
        min=edges[0],
        max=edges[-1],
        num=total,
        sum=sum(count * middle for count, middle in zip(counts, middles, strict=True)),
        sum_squares=sum(count * middle**2 for count, middle in zip(counts, middles, strict=True)),
        bucket_limits=edges[1:],
        bucket_counts=counts,
        global_step=step,
    )


def _sample(row: Mapping[str, Any]) -> str:
    """``**json**, dying, reward 1, advantage -0.35, 7 tokens``, and quoted below it the prompt and the completion."""

    def part(column: str, words: str = "{}") -> str:
        value = row.get(column)
        if value is None:
            return ""
        return words.format(_escaped(f"{value:.4g}" if isinstance(value, float) else str(value)))

    about = (
        part("mode", "**{}**"),
        part("mode_change"),
        part("reward", "reward {}"),
        part("advantage", "advantage {}"),
        part("completion_tokens", "{} tokens"),
        "truncated" if row.get("truncated") else "",
    )
    texts = (part("prompt", "*{}*"), part("completion"))
    return "\n\n".join([", ".join(filter(None, about)), *(f"> {text}" for text in texts if text)])


def _escaped(text: str) -> str:
    """One line that is neither Markdown nor HTML, whatever a completion holds."""
    shown = one_line(text.strip(), MAX_TEXT_CHARACTERS)
    return "".join(one if one.isalnum() or one in " ,:;" else f"&#{ord(one)};" for one in shown)
