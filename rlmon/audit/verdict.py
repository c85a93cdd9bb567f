"""The verdict: what the checks of a run come to together."""

from __future__ import annotations

from collections.abc import Sequence

from rlmon.audit.result import Check, Verdict
from rlmon.detectors import DETECTORS
from rlmon.records import verdict

_WITHOUT_A_BASE = frozenset(spec.id for spec in DETECTORS if spec.rule in ("absolute", "immediate"))


def reached(checks: Sequence[Check]) -> Verdict:
    """FAIL or WARN where a check says so, never a note; a pass needs a check that compared the run with its base, which
    two rows do not allow."""
    worst = verdict(check.status for check in checks)
    if worst != "pass":
        return worst
    compared = any(
        check.status == "pass" and check.method != "exact" and check.id not in _WITHOUT_A_BASE for check in checks
    )
    return "pass" if compared else "insufficient"
