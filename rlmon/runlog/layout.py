"""Names inside a run directory, ``run.json``, and which attempts a reader shows."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import rlmon.runlog.files as files
import rlmon.runlog.lines as lines
import rlmon.runlog.schema as schema
from rlmon.errors import RunLogError
from rlmon.records import SCHEMA_VERSION, RunHeader

RUN_FILE = "run.json"
STEPS_FILE = "steps.jsonl"
EVENTS_FILE = "events.jsonl"
MANIFEST_FILE = "manifest.json"
SECRET_FILE = "secret"
LOCK_FILE = "compact.lock"
REPORT_FILE = "report.html"

OWN_NAMES = frozenset(
    {RUN_FILE, STEPS_FILE, EVENTS_FILE, MANIFEST_FILE, SECRET_FILE, LOCK_FILE, REPORT_FILE, *schema.TABLES}
)
"""What may lie in a directory that has no ``run.json`` yet (another rank was faster, or it was lost)."""

_PART = re.compile(r"part-a(\d+)-")


def part_name(attempt: int, split: str, round: int, rank: int, sequence: int) -> str:
    """File name of one part. ``sequence`` counts the parts of one writer, so that no name is ever used twice."""
    label = split if split.isalnum() else "other"
    return f"part-a{attempt:04d}-{label}-r{round:08d}-k{rank:05d}-n{sequence:08d}.parquet"


def is_part(name: str) -> bool:
    """Whether ``name`` is a finished part."""
    return name.startswith("part-") and name.endswith(".parquet")


def is_segment(name: str) -> bool:
    """Whether ``name`` is a segment; only the manifest says whether it counts."""
    return name.startswith("segment-") and name.endswith(".parquet")


def part_attempt(name: str) -> int | None:
    """Attempt that wrote the part (or its temporary file) of this name."""
    match = _PART.search(name)
    return int(match[1]) if match else None


def list_names(folder: Path) -> list[str]:
    """Names in ``folder``, sorted; empty where there is none."""
    try:
        return sorted(path.name for path in folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


@dataclass(frozen=True, kw_only=True, slots=True)
class Attempt:
    """One entry of ``run.json``."""

    header: RunHeader
    from_step: int | None
    """For a resumed attempt the ``global_step`` of its checkpoint: the last step of older attempts that still counts.
    ``None`` when unknown; the step before its first record is taken then."""


def run_json(attempts: Sequence[Attempt]) -> bytes:
    """The text of ``run.json``."""
    value = {
        "schema_version": SCHEMA_VERSION,
        "run_id": attempts[-1].header.run_id,
        "attempts": [{"from_step": a.from_step, "header": a.header} for a in attempts],
    }
    return lines.dump(value, indent=1).encode("ascii") + b"\n"


def read_attempts(path: Path) -> tuple[Attempt, ...]:
    """Every attempt in ``run.json``, oldest first; empty where there is no such file.

    Raises ``SchemaError`` for another schema and ``RunLogError`` where the file is not rlmon's or cannot be read.
    """
    file = path / RUN_FILE
    try:
        text = files.read_bytes(file)
    except (FileNotFoundError, NotADirectoryError):
        return ()
    except OSError as error:
        reason = error.strerror or error
        raise RunLogError(f"cannot read {file}: {reason}. Make it readable or set rlmon_dir.") from error
    foreign = f"{file} is not the header of an rlmon run. Choose another directory with rlmon_dir."
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RunLogError(foreign) from error
    if not isinstance(value, dict) or not isinstance(value.get("schema_version"), int) or "run_id" not in value:
        raise RunLogError(foreign)
    schema.migrations_from(value["schema_version"], str(path))
    attempts = []
    entries = value.get("attempts", [])
    if not isinstance(entries, list):
        raise RunLogError(foreign)
    for entry in entries:
        try:
            from_step = entry.get("from_step")
            if from_step is not None and not (type(from_step) is int and abs(from_step) <= lines.MAX_INTEGER):
                raise TypeError("from_step")
            header = schema.migrate_line("header", lines.restored(entry["header"]), str(file))
            attempts.append(Attempt(header=lines.checked(lines.build(RunHeader, header)), from_step=from_step))
        except (KeyError, TypeError, AttributeError) as error:
            raise RunLogError(foreign) from error
    return tuple(sorted(attempts, key=lambda attempt: attempt.header.attempt))


def last_steps(attempts: Iterable[Attempt], first_steps: Mapping[int, int]) -> dict[int, float]:
    """Attempt to the last of its steps that still counts (infinity: all), for the newest line of attempts.

    The line begins at the newest ``fresh`` attempt; older ones are absent. A resumed attempt supersedes the steps of
    older ones after its checkpoint. ``first_steps``: the first recorded step per attempt, used where the checkpoint's
    step is unknown.
    """
    ordered = list(attempts)
    start = max((i for i, a in enumerate(ordered) if a.header.attempt_kind == "fresh"), default=0)
    last: dict[int, float] = {}
    limit = math.inf
    for attempt in reversed(ordered[start:]):
        number = attempt.header.attempt
        last[number] = limit
        from_step: float | None = attempt.from_step
        if from_step is None:
            from_step = first_steps[number] - 1 if number in first_steps else math.inf
        limit = min(limit, from_step)
    return last
