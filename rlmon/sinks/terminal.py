"""Findings on the console, one line each, on stderr; and the first loss of rows.

A part of the monitor that fails is not said here: the rank it happens on says it at once, with the error.

Text from a run is hostile: `rlmon.printable.one_line` is the only way it reaches a terminal here.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TextIO

from rlmon.printable import one_line
from rlmon.records import Finding, StepRecord
from rlmon.sinks import SampleRows

_COLOURS = {"warn": "33", "fail": "1;31", "fault": "35"}


class TerminalSink:
    """Writes findings as they come, and once that rows were lost."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream
        self._shed_shown = False

    def record(self, step: StepRecord, findings: Sequence[Finding], sample_rows: SampleRows) -> None:
        """One line per finding of this step, and one for the first lost rows."""
        for finding in findings:
            advice = f" -> {finding.advice}" if finding.advice else ""
            self._say(finding.severity, f"step {finding.step} {finding.detector}: {finding.message}{advice}")
        if step.shed_rows and not self._shed_shown:
            self._shed_shown = True
            self._say("fault", f"step {step.step} {step.shed_rows} rollout rows could not be written to the run log")

    def close(self) -> None:
        """Nothing to release: the stream is the caller's."""

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
