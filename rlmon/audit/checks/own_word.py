"""What the run said of itself while it was on, beside what the other checks come to."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from rlmon.audit.case import Case
from rlmon.audit.result import Check
from rlmon.audit.run import OwnWord, Remark
from rlmon.detectors import DETECTORS
from rlmon.printable import one_line, several
from rlmon.records import verdict

REMARKS_SHOWN = 8
_NOTES = frozenset(spec.id for spec in DETECTORS if spec.milder == "note")
_DETECTORS = frozenset(spec.id for spec in DETECTORS)


def _of(case: Case) -> OwnWord | None:
    """What the run says of itself, in its own log or in what its reader found."""
    live = case.fold.live
    if live is None:
        return case.run.own_word
    remarks = [Remark(detector=f.detector, severity=f.severity, step=f.step) for f in live.findings]
    return OwnWord(verdict=verdict(remark.severity for remark in remarks), remarks=remarks)


def agreement(case: Case, checks: Sequence[Check]) -> Check | None:
    """``None`` where the run says nothing of itself; WARN where its verdict is neither that of the detectors here nor
    that of all checks, and FAIL where it said FAIL.

    A monitor saw every completion of every step, a tracker's file holds a part: what it said is not overruled by what
    that file does not show.
    """
    own = _of(case)
    if own is None:
        return None
    # What the rest of the run shows to be mild was grave to a monitor that saw its first steps only.
    mild = {check.id for check in checks if check.status == "warn" and check.id == "non-finite"}
    remarks = [
        dataclasses.replace(remark, severity="warn") if remark.detector in mild else remark
        for remark in own.remarks
        if not _is_note(remark)
    ]
    explained = verdict(remark.severity for remark in own.remarks) == own.verdict
    theirs = verdict(remark.severity for remark in remarks) if explained else own.verdict
    ours = verdict(check.status for check in checks)
    detectors = verdict(check.status for check in checks if check.id in _DETECTORS)
    said = several([_told(remark) for remark in remarks], REMARKS_SHOWN)
    itself = f"the run itself said {theirs.upper()}" + (f" ({said})" if said else "")
    agrees = theirs in (ours, detectors)
    graver = theirs == "fail" and not agrees
    return Check(
        id="own-verdict",
        title="Does what the run said of itself agree?",
        status="pass" if agrees else "fail" if graver else "warn",
        method="exact",
        message=itself if agrees else f"{itself}; what was read here comes to {ours.upper()}",
        evidence={
            "own_verdict": theirs,
            "own_findings": [
                {"detector": remark.detector, "severity": remark.severity, "step": remark.step}
                for remark in own.remarks[:50]
            ],
        },
        advice=""
        if agrees
        else "Audit the run's own log (OUTPUT_DIR/rlmon): it holds every completion, and what the monitor saw.",
    )


def _is_note(remark: Remark) -> bool:
    """Also where an earlier version called it a warning."""
    return remark.severity == "note" or (remark.severity == "warn" and remark.detector in _NOTES)


def _told(remark: Remark) -> str:
    at = "" if remark.step is None else f" at step {remark.step}"
    return f"{one_line(remark.detector, 60)} {remark.severity.upper()}{at}"
