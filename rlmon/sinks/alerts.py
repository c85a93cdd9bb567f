"""What is worth an alert, of all that detectors say: what is new, what is graver, and what comes back.

One for each destination, since they need not have been told the same.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rlmon.console import one_thing, what_happened
from rlmon.printable import one_line, several
from rlmon.records import Finding, RunHeader, Severity, Verdict, graver, verdict
from rlmon.runlog import open_run

LEVELS: Mapping[Severity, str] = {"note": "INFO", "warn": "WARN", "fail": "ERROR"}
"""What W&B and trackio call them."""
MAX_TITLE_CHARACTERS = 120


@dataclass(frozen=True, kw_only=True, slots=True)
class Alert:
    """What people are told of a finding; one line each, printable and short."""

    severity: Severity
    detector: str | None
    """``None`` where it is about the run as a whole."""
    step: int
    title: str
    """``rlmon FAIL: format-collapse``."""
    text: str
    """Three plain sentences at most: what happened at which step, what to change, and when it was found before."""


@dataclass(frozen=True, slots=True)
class _Alarm:
    """What was told of one detector, since it was last armed."""

    severity: Severity
    step: int
    """Of its newest finding."""


class Alerts:
    """What one destination was told, and what the findings of the training come to.

    ``log``: the run directory, where a run that goes on finds what was told before.
    """

    def __init__(self, log: Path | None = None) -> None:
        self._log = log
        self._rearm_records = math.inf
        self._told: dict[str, _Alarm] = {}
        self._gravest: dict[str, Severity] = {}
        self.judged = False
        """Whether anything of the run was compared with its base: without that no finding is no pass."""
        self.first_alarm_step: int | None = None
        """Of the first WARN or FAIL; a note is none."""

    def open(self, header: RunHeader) -> Sequence[Finding]:
        """Begin with a run. Of one that goes on, its findings so far; they were told, as were those that the resume
        superseded, which count no more."""
        self._rearm_records = header.detectors.get("parameters", {}).get("rearm_records", math.inf)
        self._told, self._gravest, self.first_alarm_step, self.judged = {}, {}, None, False
        if header.attempt_kind != "resumed" or self._log is None:
            return ()
        run = open_run(self._log)
        for finding in run.findings_ever:
            self._news(finding)
        before = run.findings
        for finding in before:
            self._count(finding)
        return before

    def take(self, finding: Finding) -> Alert | None:
        """What to tell of a finding; ``None`` where it says nothing new.

        New is the first word of a detector, a graver one, and one after it was armed again. It is armed again after so
        many records on the good side (``rearm_records``), and silent until then: a finding that comes sooner is that
        of a run that went back to a checkpoint. A note is told once.
        """
        self._count(finding)
        return self._news(finding)

    def _count(self, finding: Finding) -> None:
        self._gravest[finding.detector] = graver(finding.severity, self._gravest.get(finding.detector))
        if finding.severity != "note" and self.first_alarm_step is None:
            self.first_alarm_step = finding.step

    def _news(self, finding: Finding) -> Alert | None:
        before = self._told.get(finding.detector)
        is_graver = before is None or graver(finding.severity, before.severity) != before.severity
        came_back = (
            before is not None
            and not is_graver
            and finding.severity != "note"
            and finding.step - before.step >= self._rearm_records
        )
        if before is None or is_graver or came_back:
            self._told[finding.detector] = _Alarm(finding.severity, finding.step)
        else:
            self._told[finding.detector] = _Alarm(before.severity, max(before.step, finding.step))
            return None
        sentences = [f"Step {finding.step}: {what_happened(finding)}", one_thing(finding.advice)]
        if before is not None and came_back:
            sentences.append(f"It was found before, at step {before.step}")
        return Alert(
            severity=finding.severity,
            detector=finding.detector,
            step=finding.step,
            title=one_line(f"rlmon {finding.severity.upper()}: {finding.detector}", MAX_TITLE_CHARACTERS),
            text=" ".join(f"{sentence}." for sentence in sentences if sentence),
        )

    def ended(self, step: int) -> Alert | None:
        """What to tell of a training that ended; ``None`` where no detector warned or failed."""
        came_to = verdict(self._gravest.values())
        if came_to == "pass":
            return None
        return Alert(
            severity=came_to,
            detector=None,
            step=step,
            title=f"rlmon {came_to.upper()}: training ended",
            text=one_line(
                f"Training ended at step {step}. Since step {self.first_alarm_step}: {several(self.loud, 5)}."
            ),
        )

    def tell_anew(self) -> None:
        """What comes now goes somewhere else, where nothing was told."""
        self._told = {}

    @property
    def gravest(self) -> Mapping[str, Severity]:
        """The gravest that each detector said in this training, in the order in which they spoke first."""
        return self._gravest

    @property
    def loud(self) -> Sequence[str]:
        """``FAIL format-collapse``, one for each detector that warned or failed."""
        return [f"{severity.upper()} {name}" for name, severity in self._gravest.items() if severity != "note"]

    @property
    def verdict(self) -> Verdict:
        """What the findings come to; ``insufficient`` where none is no pass yet."""
        came_to = verdict(self._gravest.values())
        return came_to if came_to != "pass" or self.judged else "insufficient"
