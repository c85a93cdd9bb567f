"""Everything under ``rlmon/*`` in the W&B run that the trainer has open.

The trainer's own integration logs many times per step and never passes ``step=``, so W&B's counter is not the
optimizer step: the x axis is ``train/global_step``, as in the trainer's own charts. A run is never opened here, and
wandb is never imported before somebody else has.
"""

from __future__ import annotations

import errno
import os
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlmon.console import say
from rlmon.dashboard.live import make_view_beside
from rlmon.dashboard.story import AXIS
from rlmon.records import Action, Finding, Histogram, RunHeader, StepRecord
from rlmon.sinks import Sink
from rlmon.sinks.alerts import LEVELS, Alerts
from rlmon.sinks.numbers import numbers_of
from rlmon.sinks.posting import MOST_WAITING, Answer, Outbox
from rlmon.sinks.tables import ACT_COLUMNS, FINDING_COLUMNS, MAX_ACTS, MAX_FINDINGS, NewestRows, Told, put_act
from rlmon.sinks.wandb_tables import SUMMARIES, SampleTable

SILENT_SECONDS = 20.0
"""That a table may be on its way before it is said."""
THREAD = "rlmon-wandb-tables"
CLOSE_SECONDS = 10.0
"""Longest that the end of training waits for tables that are on their way to a run on the server."""


class WandbSink(Sink):
    """Mirrors what it is told into the open W&B run; silent while there is none.

    ``log``: the run directory, where a run that goes on finds what was said before.
    """

    def __init__(self, log: Path | None = None) -> None:
        self._log = log
        self._settings: Mapping[str, Any] = {}
        self._about: dict[str, Any] = {}
        self._run: Any = None
        self._alerts = Alerts(log)
        self._acts = NewestRows(ACT_COLUMNS, MAX_ACTS)
        self._findings = NewestRows(FINDING_COLUMNS, MAX_FINDINGS)
        self._samples = SampleTable()
        self._outbox = Outbox(_done, THREAD)
        self._asked = (0.0, 0)
        """When the first of the tables that are on their way was due, by the clock and by the step."""
        self._late_said = False
        self._step = 0
        self._missed = False
        """The run was found finished, and that was said."""
        self._file_seen = False

    def open(self, header: RunHeader) -> None:
        """Take what goes into W&B's config, under ``rlmon``; of a run that goes on, what was found before."""
        self._settings = header.config
        self._about = {"config": dict(header.config), "run_id": header.run_id}
        for finding in self._alerts.open(header):
            self._findings.put(finding.finding_id, Told(finding))

    def record(self, step: StepRecord, histograms: Mapping[str, Histogram]) -> None:
        """One log call with the step's measured metrics and histograms, and one with the tables that are due."""
        wandb = sys.modules.get("wandb")
        run = None if wandb is None else wandb.run
        if wandb is None or run is None:
            self._miss(step.step)
            return
        is_new = run is not self._run
        if is_new:
            self._meet(run, step.step)
        self._check_file(run)
        self._check_tables()
        row: dict[str, Any] = {AXIS: step.step}
        row |= {_metric_name(name): value for name, value in numbers_of(step, self._alerts.gravest).items()}
        for name, histogram in histograms.items():
            counted = (list(histogram.counts), list(histogram.edges))
            row[_metric_name(name)] = wandb.Histogram(np_histogram=counted)
        self._step = step.step
        run.log(row)
        self._log_kept(wandb, [name for name, kept in self._kept.items() if kept.due(step.step)])
        if is_new and self._settings.get("rlmon_wandb_view", True):
            make_view_beside(run, self._say)

    def judged(self) -> None:
        self._alerts.judged = True

    def finding(self, finding: Finding) -> None:
        """A row of the table of findings; an alert where it says something new."""
        self._findings.put(finding.finding_id, Told(finding))
        alert = self._alerts.take(finding)
        wandb = self._met()
        if wandb is None:
            return
        self._sum_up()  # also of what people were told before a resume superseded it
        if alert is not None:
            level = getattr(wandb.AlertLevel, LEVELS[alert.severity])
            self._run.alert(title=alert.title, text=alert.text, level=level, wait_duration=0)

    def action(self, action: Action) -> None:
        """Keep the act for the next table: all phases of one are one row, and the newest 200 acts are kept."""
        put_act(self._acts, action)

    def table(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """The rows, in one table with those of other steps."""
        wandb = self._met()
        if wandb is not None:
            samples = self._samples
            self._log_tables(lambda: {AXIS: step, "rlmon/samples": samples.of(wandb, rows)})

    def close(self) -> None:
        """Write the last findings and acts, the verdict of a run that came to its end without a finding, and the
        artifact that was asked for."""
        wandb = self._met()
        # The trainer's integration may have finished the run before us.
        if wandb is not None:
            self._sum_up()
            self._log_kept(wandb, [name for name, kept in self._kept.items() if kept.unsent])
            if left := self._outbox.close(CLOSE_SECONDS):
                self._say_late(f"{left} tables have not reached W&B {CLOSE_SECONDS:.0f} s after the end of training")
            what = str(self._settings.get("rlmon_wandb_artifacts", "none"))
            if what != "none" and self._log is not None:
                from rlmon.sinks.wandb_artifact import log_artifact

                left_out = log_artifact(wandb, self._run, self._log, what)
                if left_out is not None:
                    self._say(left_out)
            self._check_tables()
        else:
            self._outbox.close(0.0)

    @property
    def _kept(self) -> Mapping[str, NewestRows]:
        return {"rlmon/findings": self._findings, "rlmon/interventions": self._acts}

    def _met(self) -> Any:
        """wandb, where the run that was met is still the open one; else ``None``."""
        wandb = sys.modules.get("wandb")
        return wandb if wandb is not None and wandb.run is not None and wandb.run is self._run else None

    def _log_kept(self, wandb: Any, names: Sequence[str]) -> None:
        if names:
            row = {AXIS: self._step, **{name: _table(wandb, self._kept[name], self._step) for name in names}}
            self._log_tables(lambda: row)

    def _log_tables(self, make: Callable[[], dict[str, Any]]) -> None:
        """Log what ``make`` gives: at once where the run is offline, else from a thread. Before W&B takes a table it
        asks the server about it, and the step would wait for the answer: 19 s where none comes."""
        run = self._run
        if run.offline:
            run.log(make())
            return
        left = self._outbox.left
        if not left:
            self._asked = (time.monotonic(), self._step)
        elif left >= MOST_WAITING or time.monotonic() - self._asked[0] > SILENT_SECONDS:
            since = f"tables have not reached W&B since step {self._asked[1]}"
            self._say_late(f"{since}: is its server there? The newest {MOST_WAITING} wait")
        self._outbox.put(lambda: run.log(make()))

    def _check_tables(self) -> None:
        """Raise where the thread could not log one; those that made room for newer ones are no failure."""
        if self._outbox.failed is not None:
            raise RuntimeError(f"a table could not be logged: {self._outbox.failed}")

    def _say_late(self, text: str) -> None:
        if not self._late_said:
            self._late_said = True
            self._say(text)

    def _say(self, text: str) -> None:
        if self._settings.get("rlmon_console", True):
            say(text)

    def _miss(self, step: int) -> None:
        """Say once that the run is no longer open."""
        if self._run is not None and not self._missed:
            self._missed = True
            self._say(f"the W&B run was finished: what is measured from step {step} on is in the run log alone")

    def _check_file(self, run: Any) -> None:
        """Raise where an offline run's file was deleted: W&B writes on into nothing, and does not say so."""
        if not run.offline:
            return
        is_there = os.path.exists(run.settings.sync_file)
        if self._file_seen and not is_there:
            raise FileNotFoundError(errno.ENOENT, "the file of the W&B run was deleted", run.settings.sync_file)
        self._file_seen = is_there

    def _meet(self, run: Any, step: int) -> None:
        if self._run is not None:
            self._say(f"another W&B run is open: what is measured from step {step} on is logged there")
        self._missed = self._file_seen = False
        # Here, not in __init__: the trainer's integration defines its own metrics when training begins, and the
        # definition made last wins.
        run.define_metric("rlmon/*", step_metric=AXIS)
        for name, worst in SUMMARIES.items():
            run.define_metric(name, step_metric=AXIS, summary=f"{worst},last")
        run.config.update({"rlmon": self._about}, allow_val_change=True)
        if self._run is not None:
            self._alerts.tell_anew()
        self._run = run
        self._samples = SampleTable()
        # Tables that are on their way belong to the run that is over, and so does what fails with them.
        self._outbox.close(0.0)
        self._outbox = Outbox(_done, THREAD)
        for kept in self._kept.values():
            kept.begin_anew()
        if self._alerts.gravest:
            self._sum_up()

    def _sum_up(self) -> None:
        self._run.summary["rlmon/verdict"] = self._alerts.verdict
        if self._alerts.first_alarm_step is not None:
            self._run.summary["rlmon/first_alarm_step"] = self._alerts.first_alarm_step


def _table(wandb: Any, kept: NewestRows, step: int) -> Any:
    return wandb.Table(columns=list(kept.columns), data=kept.take(step), allow_mixed_types=True)


def _done(log: Callable[[], None]) -> Answer:
    try:
        log()
    except Exception as error:
        return Answer(why_not=f"{type(error).__name__}: {error}")
    return Answer()


def _metric_name(name: str) -> str:
    """W&B's interface cannot sort or filter names with other characters; users name their own format modes."""
    return re.sub(r"[^A-Za-z0-9_/.]", "_", name)
