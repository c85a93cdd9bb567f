"""Several audits side by side, the worst run first, each with the one curve that says most."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rlmon.audit.incidents import incidents
from rlmon.audit.result import Audit
from rlmon.audit.verdict import QUESTIONS
from rlmon.records import Verdict

WORST_FIRST: Sequence[Verdict] = ("fail", "warn", "insufficient", "pass")
CURVES = (
    "rlmon/health/reward_mean",
    "rlmon/format/effective",
    "rlmon/entropy/mean",
    "rlmon/kl/mean",
    "rlmon/health/length_mean",
    "loss",
)
"""What is shown of a run without an alarm, and of one whose alarm has no curve: the first that it has."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """One run in one line."""

    audit: Audit
    name: str
    """Where it lies, without what all paths have in common."""
    metric: str | None
    """The curve: that of the gravest event where there is one; ``None``: the run has none."""
    values: Sequence[float]
    """Its measured values in order of step."""
    said: str
    """The gravest event in one sentence, what keeps the run from a pass, or what a pass does not speak of."""


def overview(audits: Sequence[Audit]) -> list[Line]:
    """A line a run, worst first; of one verdict in the order in which they came."""
    names = _names([audit.run.source for audit in audits])
    lines = [_line(audit, name) for audit, name in zip(audits, names, strict=True)]
    return sorted(lines, key=lambda line: WORST_FIRST.index(line.audit.verdict))


def _line(audit: Audit, name: str) -> Line:
    told = incidents(audit)
    wanted = [check.metric for incident in told[:1] for check in incident.checks if check.metric]
    metric = next((key for key in (*wanted, *CURVES) if _measured(audit, key)), None)
    said = told[0].sentence if told else ""
    if audit.verdict == "insufficient":
        said = f"No answer about {', '.join(QUESTIONS[core] for core in audit.coverage.missing)}."
    elif audit.verdict == "pass" and not audit.coverage.outputs:
        said = "Curves only: outputs not seen."
    return Line(
        audit=audit,
        name=name,
        metric=metric,
        values=[] if metric is None else _measured(audit, metric),
        said=said,
    )


def _measured(audit: Audit, metric: str) -> list[float]:
    return [value for value in audit.series.get(metric, ()) if value is not None]


def _names(sources: Sequence[str]) -> list[str]:
    """The paths without the folders that all of them share."""
    if len(set(sources)) < 2:
        return [Path(source).name or source for source in sources]
    try:
        common = os.path.commonpath([os.path.abspath(source) for source in sources])
    except ValueError:
        return list(sources)
    return [os.path.relpath(os.path.abspath(source), common) for source in sources]
