"""The one reader of a run directory; it may still be written, and it may have been killed at any moment."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

import rlmon.runlog.compaction as compaction
import rlmon.runlog.layout as layout
import rlmon.runlog.lines as lines
import rlmon.runlog.schema as schema
from rlmon.errors import RunLogError, SchemaError
from rlmon.printable import nearest
from rlmon.records import SCHEMA_VERSION, Action, Fault, Finding, RunHeader, StepRecord

Payload = TypeVar("Payload")
READ_TRIES: Final = 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """One line of ``events.jsonl``."""

    kind: str
    """``finding``, ``action``, ``fault``, ``started``, ``resumed`` or another."""
    attempt: int
    time_unix_seconds: float | None
    payload: Mapping[str, Any]


class Run:
    """A run directory. Every access reads the files again, so that a live run shows its newest step.

    Unless ``all_attempts=True``, only the newest line of attempts is shown, without what a resume superseded.
    """

    def __init__(self, path: Path, attempts: tuple[layout.Attempt, ...]) -> None:
        self.path: Final = path
        self._attempts = attempts
        self.unreadable: dict[str, str] = {}
        """Row files that could not be read so far, and why; a writer of rlmon never leaves one."""
        self.torn_lines: dict[str, int] = {}
        """Complete lines that held no record when the file was last read: a crash tore them."""

    @property
    def attempts(self) -> tuple[layout.Attempt, ...]:
        """Every attempt with the step that it was resumed from, oldest first."""
        self._attempts = layout.read_attempts(self.path) or self._attempts
        return self._attempts

    @property
    def header(self) -> RunHeader:
        """Header of the newest attempt."""
        return self.attempts[-1].header

    @property
    def headers(self) -> tuple[RunHeader, ...]:
        """Headers of all attempts, oldest first."""
        return tuple(attempt.header for attempt in self.attempts)

    @property
    def run_id(self) -> str:
        """Identifier of the newest line of attempts."""
        return self.header.run_id

    # ---- steps

    def iter_steps(self, *, all_attempts: bool = False) -> Iterator[StepRecord]:
        """The StepRecords in the order in which they were written. Raises ``SchemaError`` for a newer schema."""
        last = None if all_attempts else self._last_steps()
        for values in self._objects(layout.STEPS_FILE, "step"):
            record = lines.checked_step(lines.build_step(values))
            if last is None or record.step <= last.get(record.attempt, -math.inf):
                yield record

    def step_records(self, all_attempts: bool = False) -> list[StepRecord]:
        """The StepRecords as a list; equal to ``as_stored`` of what was appended, floats to the last bit."""
        return list(self.iter_steps(all_attempts=all_attempts))

    def metrics(self, *names: str) -> pa.Table:
        """One row per optimizer step: ``step``, then one column per metric, null where it was not measured.

        ``names``: only these. Raises ``KeyError`` for one that the run never measured, with the nearest.
        """
        table = self.steps
        # A metric has a family, also one of the run's own; the numbers of the record have none.
        measured = {name: table[name] for name in table.column_names if "/" in name}
        for name in names:
            if name not in measured:
                hint = nearest(name, measured, 0.6) or " `rlmon metrics` lists what there is."
                raise KeyError(f"{name} was never measured in this run.{hint}")
        chosen = {name: measured[name] for name in names} if names else measured
        return pa.table({"step": table["step"], **chosen})

    def __repr__(self) -> str:
        attempts = self._attempts
        return f"<Run {str(self.path)!r} of {attempts[-1].header.trainer}, {len(attempts)} attempts>"

    @property
    def steps(self) -> pa.Table:
        """One row per optimizer step: the numbers of the StepRecord, then one column per metric by its name."""
        return steps_table(self.step_records())

    # ---- events

    def iter_events(self, *, all_attempts: bool = False) -> Iterator[Event]:
        """The events in the order in which they were written."""
        last = None if all_attempts else self._last_steps()
        for values in self._objects(layout.EVENTS_FILE, "event"):
            event = lines.checked(lines.build(Event, values))
            step = event.payload.get("step")
            if last is not None:
                limit = last.get(event.attempt, -math.inf)
                if limit == -math.inf or (isinstance(step, int) and step > limit):
                    continue
            yield event

    @property
    def events(self) -> list[Event]:
        """All events of the shown attempts."""
        return list(self.iter_events())

    @property
    def findings(self) -> list[Finding]:
        """What the detectors said, in order."""
        return _of_kind(self.iter_events(), "finding", Finding)

    @property
    def findings_ever(self) -> list[Finding]:
        """The same, with what a resume superseded: it is no part of the run any more, but people were told."""
        line = {attempt.header.attempt for attempt in self.attempts if attempt.header.run_id == self.run_id}
        events = (event for event in self.iter_events(all_attempts=True) if event.attempt in line)
        return _of_kind(events, "finding", Finding)

    @property
    def actions(self) -> list[Action]:
        """Phases of interventions, in order."""
        return _of_kind(self.iter_events(), "action", Action)

    @property
    def faults(self) -> list[Fault]:
        """Where the monitor itself failed, in order."""
        return _of_kind(self.iter_events(), "fault", Fault)

    # ---- rows

    def rollouts(self, columns: Sequence[str] | None = None, all_attempts: bool = False) -> pa.Table:
        """The sampled completions, sorted by attempt, split, round and global_row; ``columns``: only these.

        Raises ``KeyError`` for an unknown column and ``SchemaError`` for a newer schema.
        """
        return self._rows("rollouts", columns, all_attempts)

    def passes(self, columns: Sequence[str] | None = None, all_attempts: bool = False) -> pa.Table:
        """One row per completion and training pass; as ``rollouts``."""
        return self._rows("passes", columns, all_attempts)

    def row_files(self) -> list[str]:
        """Names of the files of rollouts that count now, in the order of attempt, split, round and rank."""
        return compaction.live_files(self.path / "rollouts", compaction.read_manifest(self.path).listing("rollouts"))

    def row_reader(self, columns: Sequence[str]) -> Callable[[str], pa.Table]:
        """What gives the shown rows of one of ``row_files``; which attempts count is read once, now. Picklable.

        The function raises ``OSError``, ``pa.ArrowException`` or ``SchemaError`` where a file is damaged.
        """
        return partial(_rollouts_of, self.path / "rollouts", columns, self._last_steps())

    # ---- internals

    def _objects(self, file: str, kind: str) -> Iterator[dict[str, Any]]:
        path = self.path / file
        self.torn_lines[file] = 0
        for line in lines.iter_lines(path):
            values = lines.parse_line(line)
            if values is None:
                self.torn_lines[file] += 1
                continue
            yield schema.migrate_line(kind, values, str(path))

    def _last_steps(self) -> dict[int, float]:
        attempts = self.attempts
        first_steps: dict[int, int] = {}
        if any(a.header.attempt_kind == "resumed" and a.from_step is None for a in attempts):
            for record in self.iter_steps(all_attempts=True):
                first_steps[record.attempt] = min(record.step, first_steps.get(record.attempt, record.step))
        return layout.last_steps(attempts, first_steps)

    def _rows(self, folder: str, columns: Sequence[str] | None, all_attempts: bool) -> pa.Table:
        record_type = schema.TABLES[folder]
        full = schema.arrow_schema(record_type)
        wanted = full.names if columns is None else list(columns)
        unknown = [name for name in wanted if name not in full.names]
        if unknown:
            raise KeyError(f"{folder} has no column {', '.join(unknown)}; it has {', '.join(full.names)}")
        keys = [key for key in (*schema.SORT_KEYS, "iteration", "step") if key in full.names]
        read = list(dict.fromkeys([*wanted, *keys]))
        last = None if all_attempts else self._last_steps()
        table, self.unreadable = read_table(self.path, folder, record_type, read, partial(_shown, last=last))
        order = pc.sort_indices(table.select(keys[:-1]), sort_keys=[(key, "ascending") for key in keys[:-1]])
        if len(order) > 1 and not pc.all(pc.less(order[:-1], order[1:])).as_py():
            table = table.take(order)
        return table.select(wanted).cast(pa.schema([full.field(name) for name in wanted], metadata=full.metadata))


def _of_kind(events: Iterable[Event], kind: str, record_type: type[Payload]) -> list[Payload]:
    return [lines.checked(lines.build(record_type, event.payload)) for event in events if event.kind == kind]


def open_run(path: str | os.PathLike[str]) -> Run:
    """The run in ``path``, or in ``path/rlmon``. Reads only ``run.json`` now.

    Raises ``RunLogError`` where there is none and ``SchemaError`` where this version cannot read it.
    """
    root = Path(path)
    for candidate in (root, root / "rlmon"):
        if attempts := layout.read_attempts(candidate):
            return Run(candidate, attempts)
    state = "is not an rlmon run directory: it has no run.json" if root.exists() else "does not exist"
    raise RunLogError(
        f"{root} {state}. A directory that rlmon wrote was needed (rlmon_dir; by default <output_dir>/rlmon)."
    )


def read_table(
    path: Path,
    folder: str,
    record_type: type,
    columns: Sequence[str],
    keep: Callable[[pa.Table], pa.Table],
) -> tuple[pa.Table, dict[str, str]]:
    """Every row of a folder once, with ``keep`` applied to each file, and the files that could not be read.

    Raises ``RunLogError`` if compactions ran during every one of 20 tries.
    """
    for _ in range(READ_TRIES):
        manifest = compaction.read_manifest(path)
        tables: list[pa.Table] = []
        unreadable: dict[str, str] = {}
        for name in compaction.live_files(path / folder, manifest.listing(folder)):
            try:
                tables.append(keep(_read_file(path / folder / name, folder, record_type, columns)))
            except SchemaError:
                raise
            except (OSError, pa.ArrowException) as error:
                unreadable[name] = f"{type(error).__name__}: {error}"
        # Parts are unlinked only after the manifest changed: unchanged, so nothing was missed or seen twice.
        if compaction.read_manifest(path).generation == manifest.generation:
            full = schema.arrow_schema(record_type)
            empty = pa.schema([pa.field(name, full.field(name).type) for name in columns]).empty_table()
            return pa.concat_tables([empty, *tables]), unreadable
    raise RunLogError(f"{path} was being compacted during {READ_TRIES} tries to read it. Try again.")


def _read_file(file: Path, folder: str, record_type: type, columns: Sequence[str]) -> pa.Table:
    with pq.ParquetFile(file) as parquet:
        version = schema.file_version(parquet.schema_arrow.metadata, str(file))
        if version == SCHEMA_VERSION:
            present = [name for name in columns if name in parquet.schema_arrow.names]
            return schema.conform(parquet.read(columns=present, use_threads=False), record_type, columns)
        steps = schema.migrations_from(version, str(file))
        table = parquet.read(use_threads=False)
    for step in steps:
        table = step.rows(folder, table)
    return schema.conform(table, record_type, columns)


def _rollouts_of(folder: Path, columns: Sequence[str], last: Mapping[int, float], name: str) -> pa.Table:
    return _shown(_read_file(folder / name, "rollouts", schema.TABLES["rollouts"], columns), last)


def _shown(table: pa.Table, last: Mapping[int, float] | None) -> pa.Table:
    """Rows of shown attempts up to the last step that counts."""
    if last is None:
        return table
    shown = None
    for attempt, limit in last.items():
        mask = pc.equal(table["attempt"], attempt)
        if limit != math.inf:
            mask = pc.and_(mask, pc.less_equal(table["step"], int(limit)))
        shown = mask if shown is None else pc.or_(shown, mask)
    if shown is None or pc.all(shown, min_count=0).as_py():
        return table
    return table.filter(shown)


def steps_table(records: Sequence[StepRecord]) -> pa.Table:
    """StepRecords as a table: attempt, step, time and counts, then each metric as float64 (null: not measured)."""
    names = sorted({name for record in records for name in record.metrics})
    columns: dict[str, pa.Array] = {}
    for name, kind in (
        ("attempt", pa.int64()),
        ("step", pa.int64()),
        ("time_unix_seconds", pa.float64()),
        ("completions", pa.int64()),
        ("prompts", pa.int64()),
        ("tokens", pa.int64()),
        ("shed_rows", pa.int64()),
        ("overhead_seconds", pa.float64()),
    ):
        columns[name] = pa.array([getattr(record, name) for record in records], type=kind)
    for name in names:
        columns[name] = pa.array([record.metrics.get(name) for record in records], type=pa.float64())
    return pa.table(columns)
