"""A sink: every finding as a line of JSON in a file of one's own, and what the rules of a policy did about it."""

import json
from pathlib import Path

from rlmon.records import Action, Finding, RunHeader
from rlmon.sinks import Sink


class LinesOfJson(Sink):
    """Findings and acts, as they come; a sink says only what it takes."""

    def __init__(self, path: str | Path = "findings.jsonl") -> None:
        self.path = Path(path)

    def open(self, header: RunHeader) -> None:
        self._write({"run": header.run_id, "trainer": header.trainer})

    def finding(self, finding: Finding) -> None:
        self._write({"step": finding.step, "severity": finding.severity, "message": finding.message})

    def action(self, action: Action) -> None:
        self._write({"step": action.step, "rule": action.rule, "phase": action.phase, "reason": action.reason})

    def _write(self, line: dict[str, object]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
