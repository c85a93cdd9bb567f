"""Where a monitor says what it saw: the log, the console, sinks and subscribers; what fails there is a fault."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import rlmon.console as console
from rlmon.config import RLMonConfig
from rlmon.monitor.faults import Faults
from rlmon.monitor.observed import Share
from rlmon.monitor.setting import Ranks
from rlmon.printable import one_line
from rlmon.records import Action, Finding, Histogram, StepRecord
from rlmon.runlog import RunLogWriter
from rlmon.sinks.posting import Webhook

if TYPE_CHECKING:
    from rlmon.sinks import Sink


class Journal:
    """One rank's voice. The console, sinks and subscribers are those of rank 0.

    ``writer`` is the rank's log, once it is open; ``webhook`` is where alerts are posted.
    """

    writer: RunLogWriter

    def __init__(self, config: RLMonConfig, ranks: Ranks) -> None:
        self.config, self._ranks = config, ranks
        self.webhook: Webhook | None = None
        self.faults = Faults(
            ranks,
            write=lambda fault: self.writer.append_event("fault", dataclasses.asdict(fault)),
            keep=config.rlmon_strict,
            console=config.rlmon_console,
        )
        self.sinks: list[Sink] = []
        self.subscribers: list[Callable[[StepRecord, tuple[Finding, ...]], None]] = []
        self.no_base = "no base model was compared"
        """Why ``rlmon/kl/*`` is null where nothing was compared."""
        self.unseen: dict[str, str] = {}
        """Signals that the losses of the step did not show, and why."""
        self._unseen_said = False
        self._last_table_step: int | None = None
        self._judged_told = False
        self._expected = 0
        """Completions that were sampled and have still to be observed."""

    def open_sinks(self, own: Sequence[Any] = ()) -> None:
        """Mirror to the terminal and to the runs of W&B and trackio that are open, as configured, to the webhook of the
        environment, and to the user's ``own`` sinks or classes of them. Of rank 0 alone."""
        if self._ranks.rank != 0:
            return
        made = list(own)
        if self.config.rlmon_trackio:
            from rlmon.sinks.trackio import TrackioSink

            made.insert(0, TrackioSink(self.writer.path))
        if self.webhook is not None:
            from rlmon.sinks.webhook import WebhookSink

            made.insert(0, WebhookSink(self.webhook, self.writer.path, self.remark))
        if self.config.rlmon_wandb:
            from rlmon.sinks.wandb import WandbSink

            made.insert(0, WandbSink(self.writer.path))
        if self.config.rlmon_console:
            from rlmon.sinks.terminal import TerminalSink

            made.insert(0, TerminalSink)
        for one in made:
            with self._contained(one):
                sink = one() if isinstance(one, type) else one
                sink.open(self.writer.header)
                self.sinks.append(sink)

    @contextlib.contextmanager
    def _contained(self, sink: Any) -> Iterator[None]:
        """What fails in a sink switches it off, and is said once for each class of them."""
        kind = (sink if isinstance(sink, type) else type(sink)).__name__
        with self.faults.guard(f"sinks:{kind}"):
            try:
                yield
            except Exception as error:
                self._remove(sink)
                self.note(f"{kind} is switched off from step {self.faults.step} on: {type(error).__name__}: {error}")
                self.say(f"{kind} is switched off for the rest of the run; training and the log go on")
                raise

    def close_sinks(self, kind: type[Sink]) -> None:
        """Close those of a kind before the others: what they write to is about to end."""
        for sink in [sink for sink in self.sinks if isinstance(sink, kind)]:
            self._remove(sink)
            with self._contained(sink):
                sink.close()

    def _remove(self, sink: Any) -> None:
        self.sinks[:] = [other for other in self.sinks if other is not sink]

    def _tell(self, what: Callable[[Sink], None]) -> None:
        for sink in tuple(self.sinks):
            with self._contained(sink):
                what(sink)

    def _table_due(self, step: int) -> bool:
        every = self.config.rlmon_table_every if self.config.rlmon_store_text == "full" else 0
        return every > 0 and (self._last_table_step is None or step - self._last_table_step >= every)

    @property
    def attempt(self) -> int:
        """Of the log."""
        return self.writer.header.attempt

    def event(self, kind: str, payload: Any) -> None:
        """Write an event into the log."""
        with self.faults.guard("runlog.events"):
            self.writer.append_event(kind, payload)

    def say(self, text: str) -> None:
        """One line on stderr of rank 0."""
        if self._ranks.rank == 0 and self.config.rlmon_console:
            console.say(one_line(text))

    def note(self, text: str) -> None:
        """Write a remark into the log."""
        self.event("note", {"text": text})

    def remark(self, text: str) -> None:
        """One line on stderr of rank 0, and the same in the log."""
        self.say(text)
        self.note(text)

    def action(self, action: Action) -> None:
        """An act of the policy, to log and sinks."""
        self.event("action", action)
        if self._ranks.rank == 0:
            self._tell(lambda sink: sink.action(action))

    def record(
        self,
        record: StepRecord,
        findings: tuple[Finding, ...],
        histograms: Mapping[str, Histogram],
        samples: Sequence[Mapping[str, Any]],
        *,
        words: Mapping[str, str],
        judged: Callable[[], bool],
    ) -> None:
        """A step that is in the log, to sinks and subscribers. ``words``: what narrowed, by the id of the finding.
        ``judged``: whether a detector that compares the run with its base has spoken by now; it is asked until it
        has."""
        if self._ranks.rank != 0:
            return
        table_due = bool(samples) and self._table_due(record.step)
        if table_due:
            self._last_table_step = record.step

        tell_judged = False
        if self.sinks and not self._judged_told:
            with self.faults.guard("detectors"):
                tell_judged = self._judged_told = judged()

        def show(sink: Sink) -> None:
            if tell_judged:
                sink.judged()
            sink.record(record, histograms)
            for finding in findings:
                sink.finding(finding)
                if told := words.get(finding.finding_id):
                    sink.words(finding, told)
            if table_due:
                sink.table(record.step, samples)

        self._tell(show)
        for subscriber in self.subscribers:
            with self.faults.guard("subscribers"):
                subscriber(record, findings)

    def cannot_see(self, reasons: Mapping[str, str]) -> None:
        """This step's losses showed nothing of these signals (``entropy``, ``kl``), each with its reason; it stands
        beside every null of theirs. The first time the table of capabilities is revised, in the log and in words."""
        if reasons and not self._unseen_said:
            self._unseen_said = True
            rows = [
                {**row, "status": "skip", "reason": reasons[row["signal"]]} if row["signal"] in reasons else row
                for row in self.writer.header.capabilities
            ]
            text = f"{' and '.join(reasons)} cannot be measured: {next(iter(reasons.values()))}"
            self.remark(text)
            with self.faults.guard("runlog.directory"):
                self.writer.revise(capabilities=rows)
        self.unseen = dict(reasons)

    # -- rows --------------------------------------------------------------------------------------------------------

    def expect_rows(self, count: int) -> None:
        """So many completions were sampled, and are going to be observed; those that are not by the end of the step
        are counted as shed."""
        self._expected += count

    def rows_come(self, rows: int) -> int:
        """Rows of a round are being observed, and no longer expected; how many were accounted for before."""
        self._expected = max(0, self._expected - rows)
        return self.accounted

    def rows_observed(self, rows: int, accounted_before: int) -> None:
        """Those of a round that were neither written nor shed since ``rows_come`` are shed."""
        self._shed(rows - (self.accounted - accounted_before))

    @property
    def accounted(self) -> int:
        """Rows that are in the log or were shed."""
        return self.writer.rows_written + self.writer.shed_rows

    def reconcile(self) -> None:
        """What was sampled is in the log by now, or counted as shed."""
        missing, self._expected = self._expected, 0
        self._shed(missing)

    def _shed(self, rows: int) -> None:
        if rows > 0:
            self.writer.shed_rows += rows
            self.faults.fault("runlog.rollouts", f"{rows} sampled completions did not reach the log")

    def write_passes(self, local: Share) -> None:
        """The token statistics of a share; they are written once."""
        with self.faults.guard("runlog.passes"):
            if local.passes.get("round"):
                self.writer.write_passes(local.passes)
                local.passes = {}
        self.drain()

    def drain(self) -> None:
        """What the writer could not do since the last call is counted here."""
        for fault in self.writer.take_faults():
            self.faults.fault(fault.place, fault.error, fault.count)

    def close(self) -> None:
        """The log and the sinks. Safe to call twice."""
        self.event("ended", {"step": self.faults.step, "faults": self.faults.totals})
        self._tell(lambda sink: sink.close())  # of a log that says that it ended
        self.sinks.clear()
        with self.faults.guard("runlog.events"):
            self.writer.close()
        self.drain()
