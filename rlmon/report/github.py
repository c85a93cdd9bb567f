"""An audit in a workflow of GitHub: annotations, the job's summary and outputs.

Each bad check becomes an annotation, a note one that is no alarm. The summary is the Markdown of ``report.markdown``.
"""

from __future__ import annotations

from collections.abc import Mapping

import rlmon.report.markdown as markdown
import rlmon.report.phrases as phrases
from rlmon.audit.overview import WORST_FIRST
from rlmon.audit.result import Audit, Check
from rlmon.printable import one_line
from rlmon.records import Status

LEVELS: Mapping[Status, str] = {
    "fail": "error",
    "warn": "warning",
    "error": "error",
    "unsure": "warning",
    "note": "notice",
}
VERDICT_LEVELS = {"fail": "error", "warn": "warning", "pass": "notice", "insufficient": "warning"}
SUMMARY_BYTES = 1024 * 1024
"""Most that GitHub takes as the summary of one step; a larger one is refused as a whole."""


def render(*audits: Audit) -> str:
    """One command a line: the verdict of each audit, then the bad checks, worst first, and the notes."""
    lines: list[str] = []
    for audit in audits:
        read = f"({phrases.counts(audit)}; {one_line(audit.run.source, 200)})"
        verdict = " ".join([one_line(audit.headline), *phrases.missing(audit), read])
        lines.append(command(VERDICT_LEVELS[audit.verdict], f"rlmon: {phrases.verdict(audit)}", verdict))
        lines += [command(LEVELS[check.status], f"rlmon: {check.id}", _text(check)) for check in phrases.spoken(audit)]
    return "".join(f"{line}\n" for line in lines)


def summary(*audits: Audit, written: int = 0) -> str:
    """The Markdown to append to a step's summary that holds ``written`` bytes already: all of it, or else a line for
    each verdict, or nothing where even these no longer fit."""
    lines = "".join(f"rlmon: {phrases.verdict(audit)}\n\n" for audit in audits)
    for text in (f"{markdown.render(*audits)}\n", lines):
        if written + len(text.encode()) <= SUMMARY_BYTES:
            return text
    return ""


def outputs(*audits: Audit) -> str:
    """The step's outputs, a line each: ``verdict``, the worst of all runs, as ``--format json`` words it."""
    verdicts = [audit.verdict for audit in audits]
    return f"verdict={min(verdicts, key=WORST_FIRST.index)}\n" if verdicts else ""


def command(level: str, title: str, message: str) -> str:
    """``::error title=...::message`` with everything escaped that would end the title, the command or the line."""
    return f"::{level} title={_property(one_line(title, 120))}::{_data(one_line(message, 4_000))}"


def _text(check: Check) -> str:
    parts = [phrases.said(check)]
    if where := phrases.where(check):
        parts.append(f"{where[0].upper()}{where[1:]}.")
    if check.advice:
        parts.append(f"What to do: {one_line(check.advice)}")
    return " ".join(parts)


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
