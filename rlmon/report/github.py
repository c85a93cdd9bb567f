"""An audit as GitHub workflow commands: each bad check becomes an annotation, a note one that is no alarm."""

from __future__ import annotations

from collections.abc import Mapping

import rlmon.report.phrases as phrases
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


def render(*audits: Audit) -> str:
    """One command a line: the verdict of each audit, then the bad checks, worst first, and the notes."""
    lines: list[str] = []
    for audit in audits:
        read = f"({phrases.counts(audit)}; {one_line(audit.run.source, 200)})"
        verdict = " ".join([one_line(audit.headline), *phrases.missing(audit), read])
        lines.append(command(VERDICT_LEVELS[audit.verdict], f"rlmon: {phrases.verdict(audit)}", verdict))
        lines += [command(LEVELS[check.status], f"rlmon: {check.id}", _text(check)) for check in phrases.spoken(audit)]
    return "".join(f"{line}\n" for line in lines)


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
