"""Everything under ``rlmon/*`` in the trackio run that the trainer has open.

trackio counts log calls and takes that for the step unless it is told one, as TRL does for its timings and as is done
here. The trainer's integration leaves it to the counter, which a call with a step moves on behind that step: so a
step's calls are held back until the next one, and the trainer's curves stay where they are without us.

What trackio is given waits in its own thread, so that its data base, or a Space that does not answer, never holds up a
step. A run is never opened here, and trackio is never imported before somebody else has.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlmon.console import say
from rlmon.dashboard.story import AXIS
from rlmon.records import SEVERITIES, VERDICT_WORDS, Action, Finding, Histogram, RunHeader, StepRecord
from rlmon.sinks import Sink
from rlmon.sinks.alerts import LEVELS, Alerts
from rlmon.sinks.numbers import numbers_of
from rlmon.sinks.tables import (
    ACT_COLUMNS,
    FINDING_COLUMNS,
    MAX_ACTS,
    MAX_FINDINGS,
    MAX_TABLE_ROWS,
    SAMPLE_COLUMNS,
    NewestRows,
    Told,
    cell,
    put_act,
)

MAX_WAITING = 1_000
"""Log calls that trackio may hold in memory, where its Space does not answer, before ours are left out."""
_MARKS = str.maketrans({"*": None, "`": None, "#": None, "[": "(", "]": ")", "<": "\u2039", ">": "\u203a"})
"""Characters that are Markdown or HTML, and what stands for them in a report."""


class TrackioSink(Sink):
    """Mirrors what it is told into the open trackio run; silent while there is none.

    ``log``: the run directory, where a run that goes on finds what was said before.
    """

    def __init__(self, log: Path | None = None) -> None:
        self._alerts = Alerts(log)
        self._about: dict[str, Any] = {}
        self._console = True
        self._run: Any = None
        self._acts = NewestRows(ACT_COLUMNS, MAX_ACTS)
        self._findings = NewestRows(FINDING_COLUMNS, MAX_FINDINGS)
        self._held: list[tuple[dict[str, Any], int]] = []
        """Log calls of the newest step, and that step."""
        self._step = 0
        self._left_out = False

    def open(self, header: RunHeader) -> None:
        """Take what goes into the config, under ``rlmon``; of a run that goes on, what was found before."""
        self._console = bool(header.config.get("rlmon_console", True))
        self._about = {"config": dict(header.config), "run_id": header.run_id}
        for finding in self._alerts.open(header):
            self._findings.put(finding.finding_id, Told(finding))
        self._meet()

    def record(self, step: StepRecord, histograms: Mapping[str, Histogram]) -> None:
        """One log call with the step's numbers and histograms, and one for each table that is due."""
        trackio, run = self._meet()
        if run is None:
            return
        self._send(run)
        self._step = step.step
        row: dict[str, Any] = {**numbers_of(step, self._alerts.gravest)}
        for name, histogram in histograms.items():
            row[name] = trackio.Histogram(np_histogram=(list(histogram.counts), list(histogram.edges)))
        self._log(row, step.step)
        for name, kept in self._kept.items():
            if kept.due(step.step):
                self._log({name: _table(trackio, kept, step.step)}, step.step)

    def judged(self) -> None:
        self._alerts.judged = True

    def finding(self, finding: Finding) -> None:
        """A row of the table of findings; an alert where it says something new; a report where the verdict changes."""
        before = self._alerts.verdict
        self._findings.put(finding.finding_id, Told(finding))
        alert = self._alerts.take(finding)
        trackio, run = _open_run()
        if run is None or run is not self._run:
            return
        if alert is not None:
            level = getattr(trackio.AlertLevel, LEVELS[alert.severity])
            run.alert(title=alert.title, text=alert.text, level=level, step=alert.step)
        if self._alerts.verdict != before:
            self._report(trackio, finding.step)

    def action(self, action: Action) -> None:
        """Keep the act for the next table: all phases of one are one row, and the newest 200 acts are kept."""
        put_act(self._acts, action)

    def table(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """The rows, as a table of their step."""
        trackio, run = _open_run()
        if run is not None and run is self._run:
            cells = [[cell(row.get(column)) for column in SAMPLE_COLUMNS] for row in rows[:MAX_TABLE_ROWS]]
            self._log({"rlmon/samples": trackio.Table(columns=list(SAMPLE_COLUMNS), data=cells)}, step)

    def close(self) -> None:
        """Write the last findings and acts, and what they come to."""
        trackio, run = _open_run()
        if run is not None and run is self._run:
            for name, kept in self._kept.items():
                if kept.unsent:
                    self._log({name: _table(trackio, kept, self._step)}, self._step)
            self._report(trackio, self._step)
            self._send(run)

    @property
    def _kept(self) -> Mapping[str, NewestRows]:
        return {"rlmon/findings": self._findings, "rlmon/interventions": self._acts}

    def _log(self, row: Mapping[str, Any], step: int) -> None:
        # Tables in calls of their own: of a long run the dashboard shows only some of the calls that hold the same
        # names, and all that hold rare ones.
        self._held.append(({**row, AXIS: step}, step))

    def _send(self, run: Any) -> None:
        """Hand over what was held back; where trackio holds too much, leave it out, and say so once."""
        held, self._held = self._held, []
        if len(getattr(run, "_queued_logs", ())) < MAX_WAITING:
            for row, step in held:
                run.log(row, step=step)
        elif not self._left_out:
            self._left_out = True
            if self._console:
                say(
                    f"trackio could not send {MAX_WAITING} log calls; rlmon leaves its own out until it can, and its "
                    "run log has them"
                )

    def _meet(self) -> tuple[Any, Any]:
        """trackio and the run that is open; a new one is given the settings and what was found so far."""
        trackio, run = _open_run()
        if run is None or run is self._run:
            return trackio, run
        if self._run is not None:
            self._alerts.tell_anew()
            for kept in self._kept.values():
                kept.begin_anew()
        self._run, self._held = run, []
        run.config["rlmon"] = self._about  # trackio sends it with the first log call
        return trackio, run

    def _report(self, trackio: Any, step: int) -> None:
        """The verdict, and what each detector said that is part of it; the gravest first."""
        alerts = self._alerts
        lines = [f"# rlmon: {VERDICT_WORDS[alerts.verdict]}", ""]
        alarm = alerts.first_alarm_step
        none = "No detector said WARN or FAIL."
        if alerts.verdict == "insufficient":
            none = "Nothing was compared with the base yet."
        lines += [none if alarm is None else f"First alarm at step {alarm}.", ""]
        newest = {(told.detector, told.severity): told for told in self._findings.rows.values()}
        for detector, severity in sorted(alerts.gravest.items(), key=lambda one: -SEVERITIES.index(one[1])):
            told = newest.get((detector, severity))
            said = "" if told is None else f", step {told.step}: {told.what_happened}. {told.what_to_change}."
            lines.append(f"- **{severity.upper()}** {detector}{said.translate(_MARKS).removesuffix(' .')}")
        self._log({"rlmon/report": trackio.Markdown("\n".join(lines)), "rlmon/verdict": alerts.verdict}, step)


def _table(trackio: Any, kept: NewestRows, step: int) -> Any:
    """A table to look at: its columns in words, its numbers short."""
    columns = [column.replace("_", " ") for column in kept.columns]
    rows = [[float(f"{one:.4g}") if isinstance(one, float) else one for one in row] for row in kept.take(step)]
    return trackio.Table(columns=columns, data=rows)


def _open_run() -> tuple[Any, Any]:
    """trackio and its open run; ``None`` for what there is not."""
    trackio = sys.modules.get("trackio")
    return trackio, None if trackio is None else trackio.context_vars.current_run.get()
