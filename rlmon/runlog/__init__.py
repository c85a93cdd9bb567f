"""The run directory: the one writer, the one reader, and compaction.

::

    run.json          headers, one per attempt; replaced as a whole
    steps.jsonl       one StepRecord a line; a step exists when its line ends in a newline
    events.jsonl      findings, actions, faults, resumes; one a line
    rollouts/         part-*.parquet written at generation (tmp, then rename), segment-*.parquet after compaction
    passes/           the same, one row per completion and training pass
    manifest.json     which segments are valid and which parts they replaced; absent before the first compaction
    secret            key of the hashes in the rows, mode 0600; readers and audits do not need it

Only the newest line of attempts is shown: a fresh run into an old directory hides what was there, and a resumed run
hides the steps after the checkpoint that it started from. ``all_attempts=True`` shows everything.

Imports the standard library, ``rlmon.records``, ``rlmon.errors`` and pyarrow.
"""

from __future__ import annotations

from rlmon.runlog.compaction import compact
from rlmon.runlog.lines import as_stored, as_stored_base
from rlmon.runlog.reader import Event, Run, open_run
from rlmon.runlog.text import restore_text
from rlmon.runlog.writer import RunLogWriter, WriteFault, next_attempt, peek

__all__ = [
    "Event",
    "Run",
    "RunLogWriter",
    "WriteFault",
    "as_stored",
    "as_stored_base",
    "compact",
    "next_attempt",
    "open_run",
    "peek",
    "restore_text",
]
