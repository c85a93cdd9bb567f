"""Everything under ``rlmon/*`` in the W&B run that the trainer has open.

The trainer's own integration logs many times per step and never passes ``step=``, so W&B's counter is not the
optimizer step: the x axis is ``train/global_step``, as in the trainer's own charts. A run is never opened here, and
wandb is never imported before somebody else has.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlmon.console import say
from rlmon.dashboard.live import make_view_beside
from rlmon.dashboard.story import AXIS
from rlmon.records import Action, Finding, Histogram, RunHeader, StepRecord
from rlmon.sinks import Sink
from rlmon.sinks.alerts import LEVELS, Alerts
from rlmon.sinks.numbers import numbers_of
from rlmon.sinks.tables import ACT_COLUMNS, FINDING_COLUMNS, MAX_ACTS, MAX_FINDINGS, NewestRows, Told, put_act
from rlmon.sinks.wandb_tables import SUMMARIES, SampleTable


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
        self._step = 0

    def open(self, header: RunHeader) -> None:
        """Take what goes into W&B's config, under ``rlmon``; of a run that goes on, what was found before."""
        self._settings = header.config
        self._about = {"config": dict(header.config), "run_id": header.run_id}
        for finding in self._alerts.open(header):
            self._findings.put(finding.finding_id, Told(finding))

    def record(self, step: StepRecord, histograms: Mapping[str, Histogram]) -> None:
        """One log call with the step's measured metrics and histograms, and with the tables that are due."""
        wandb = sys.modules.get("wandb")
        run = None if wandb is None else wandb.run
        if wandb is None or run is None:
            return
        is_new = run is not self._run
        if is_new:
            self._meet(run)
        row: dict[str, Any] = {AXIS: step.step}
        row |= {_metric_name(name): value for name, value in numbers_of(step, self._alerts.gravest).items()}
        for name, histogram in histograms.items():
            counted = (list(histogram.counts), list(histogram.edges))
            row[_metric_name(name)] = wandb.Histogram(np_histogram=counted)
        self._step = step.step
        row |= {name: _table(wandb, kept, step.step) for name, kept in self._kept.items() if kept.due(step.step)}
        run.log(row)
        if is_new and self._settings.get("rlmon_wandb_view", True):
            make_view_beside(run, self._say)

    def finding(self, finding: Finding) -> None:
        """A row of the table of findings; an alert where it says something new."""
        self._findings.put(finding.finding_id, Told(finding))
        alert = self._alerts.take(finding)
        wandb = sys.modules.get("wandb")
        if alert is not None and wandb is not None and wandb.run is not None and wandb.run is self._run:
            self._sum_up()
            level = getattr(wandb.AlertLevel, LEVELS[alert.severity])
            self._run.alert(title=alert.title, text=alert.text, level=level, wait_duration=0)

    def action(self, action: Action) -> None:
        """Keep the act for the next table: all phases of one are one row, and the newest 200 acts are kept."""
        put_act(self._acts, action)

    def table(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """The rows, in one table with those of other steps."""
        wandb = sys.modules.get("wandb")
        if wandb is not None and wandb.run is not None and wandb.run is self._run:
            self._run.log({AXIS: step, "rlmon/samples": self._samples.of(wandb, rows)})

    def close(self) -> None:
        """Write the last findings and acts, the verdict of a run that came to its end without a finding, and the
        artifact that was asked for."""
        wandb = sys.modules.get("wandb")
        # The trainer's integration may have finished the run before us.
        if wandb is not None and wandb.run is not None and wandb.run is self._run:
            self._sum_up()
            row = {name: _table(wandb, kept, self._step) for name, kept in self._kept.items() if kept.unsent}
            if row:
                self._run.log({AXIS: self._step, **row})
            what = str(self._settings.get("rlmon_wandb_artifacts", "none"))
            if what != "none" and self._log is not None:
                from rlmon.sinks.wandb_artifact import log_artifact

                left_out = log_artifact(wandb, self._run, self._log, what)
                if left_out is not None:
                    self._say(left_out)

    @property
    def _kept(self) -> Mapping[str, NewestRows]:
        return {"rlmon/findings": self._findings, "rlmon/interventions": self._acts}

    def _say(self, text: str) -> None:
        if self._settings.get("rlmon_console", True):
            say(text)

    def _meet(self, run: Any) -> None:
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


def _metric_name(name: str) -> str:
    """W&B's interface cannot sort or filter names with other characters; users name their own format modes."""
    return re.sub(r"[^A-Za-z0-9_/.]", "_", name)
