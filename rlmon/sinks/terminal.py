"""Findings and acts on the console, one line each, on stderr; and the first loss of rows.

A part of the monitor that fails is not said here: the rank it happens on says it at once, with the error.

Text from a run is hostile: `rlmon.printable.one_line` is the only way it reaches a terminal here.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Mapping
from typing import TextIO

from rlmon.acts import change
from rlmon.console import first, sentence
from rlmon.printable import one_line
from rlmon.records import Action, Finding, Histogram, StepRecord
from rlmon.sinks import Sink

ACT_EVERY_STEPS = 20
"""A rule may act in every round: at most one line in so many steps says so, and the acts between are counted."""
_COLOURS = {"note": "2", "warn": "33", "fail": "1;31", "fault": "35", "act": "36", "failed": "1;31", "harmed": "33"}


@dataclasses.dataclass
class _Said:
    """What was last said of one rule."""

    step: int
    unsaid: int = 0
    """Acts since then."""


class TerminalSink(Sink):
    """Writes findings and acts as they come, and once that rows were lost."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream
        self._shed_shown = False
        self._acts: dict[str, _Said] = {}
        self._harms: dict[str, _Said] = {}

    def record(self, step: StepRecord, histograms: Mapping[str, Histogram]) -> None:
        """One line for the first lost rows."""
        if step.shed_rows and not self._shed_shown:
            self._shed_shown = True
            self._say("fault", f"step {step.step} {step.shed_rows} rollout rows could not be written to the run log")

    def finding(self, finding: Finding) -> None:
        """One line: a sentence, and what to change."""
        advice = f" -> {first(finding.advice)}" if finding.advice else ""
        self._say(finding.severity, f"step {finding.step} {sentence(finding)}{advice}")

    def words(self, finding: Finding, words: str) -> None:
        """One line below the finding."""
        self._say(finding.severity, f"step {finding.step} {words}")

    def action(self, action: Action) -> None:
        """One line for what was decided, for what failed, and for an effect that harmed."""
        turned = change(action.knob, action.old, action.new)
        why = f"{turned} · {action.reason}" if turned else action.reason
        if action.phase == "decided":
            said = self._due(self._acts, action)
            if said is not None:
                more = f" ({said} more since the last line)" if said else ""
                would = " would" if action.dry_run else ""
                self._say("act", f"step {action.step} {action.rule}{would}: {why}{more}")
        elif action.phase == "failed":
            self._say("failed", f"step {action.step} {action.rule}: {why}")
        elif action.phase == "measured" and action.effect == "harmed" and self._due(self._harms, action) is not None:
            self._say("harmed", f"step {action.step} {action.rule}: {turned or action.knob} · {action.effect_reason}")

    def close(self) -> None:
        """Say what was only counted so far; the stream is the caller's."""
        for rule, said in self._acts.items():
            if said.unsaid:
                self._say("act", f"{rule}: {said.unsaid} more after step {said.step}, all of them in the log")
                said.unsaid = 0

    def _due(self, kept: dict[str, _Said], action: Action) -> int | None:
        """How many of the rule's acts were not said since the last line; ``None`` where it is too soon for another."""
        before = kept.get(action.rule)
        if before is not None and action.step - before.step < ACT_EVERY_STEPS:
            before.unsaid += 1
            return None
        kept[action.rule] = _Said(step=action.step)
        return 0 if before is None else before.unsaid

    def _say(self, kind: str, text: str) -> None:
        stream = self._stream or sys.stderr
        word = kind.upper()
        if stream.isatty() and "NO_COLOR" not in os.environ:
            word = f"\x1b[{_COLOURS[kind]}m{word}\x1b[0m"
        line = f"rlmon {word} {one_line(text)}"
        encoding = stream.encoding or "utf-8"
        line = line.encode(encoding, "backslashreplace").decode(encoding)
        # A progress bar owns the last line of the terminal: ask it to step aside when there is one.
        tqdm = sys.modules.get("tqdm")
        if tqdm is not None:
            tqdm.tqdm.write(line, file=stream)
        else:
            print(line, file=stream, flush=True)
