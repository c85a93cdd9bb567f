"""What was found in a run before it was resumed: a sink that begins in its midst has to know."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rlmon.records import Finding, RunHeader
from rlmon.runlog import open_run


def said_before(header: RunHeader, log: Path | None) -> Sequence[Finding]:
    """The findings in the log of a resumed run, in their order; none of a run that begins. ``log``: the run directory,
    where it is known."""
    return open_run(log).findings if header.attempt_kind == "resumed" and log is not None else ()
