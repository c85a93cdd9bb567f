"""The one writer of a run directory: synchronous, no thread, nothing buffered that a killed process could lose."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import heapq
import os
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

import rlmon.runlog.compaction as compaction
import rlmon.runlog.files as files
import rlmon.runlog.layout as layout
import rlmon.runlog.lines as lines
import rlmon.runlog.schema as schema
from rlmon.errors import ConfigError, RunLogError
from rlmon.records import SCHEMA_VERSION, RunHeader, StepRecord
from rlmon.runlog.layout import Attempt

STORE_TEXT: Final = ("full", "hash", "off")
BACKLOG_LINES: Final = 1_000
BACKLOG_BYTES: Final = 32 << 20
COMPACT_OVER_PARTS: Final = 64
COMPACT_SECONDS: Final = 10.0
SECRET_BYTES: Final = 32


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class WriteFault:
    """Something the writer could not do; training went on."""

    place: str
    """``runlog.rollouts``, ``runlog.passes``, ``runlog.directory`` or ``runlog.compact``; ``runlog.steps`` and
    ``runlog.events`` only from ``close`` (the appends raise)."""
    error: str
    """``TypeName: message`` of the last failure, and what was done about it."""
    count: int
    """Failures since the last ``take_faults``."""


def next_attempt(path: str | os.PathLike[str]) -> int:
    """Number of the attempt that a new writer should use: 0 for a new directory.

    Looks at ``run.json`` and at the names of the parts, so that a lost header never makes two attempts share a
    number. Raises ``RunLogError`` and ``SchemaError``.
    """
    root = Path(path)
    numbers = [attempt.header.attempt for attempt in layout.read_attempts(root)]
    for folder in schema.TABLES:
        numbers += [n for name in layout.list_names(root / folder) if (n := layout.part_attempt(name)) is not None]
    return max(numbers, default=-1) + 1


def peek(path: str | os.PathLike[str]) -> RunHeader | None:
    """Header of the newest attempt, or ``None`` where no run was logged. Raises ``RunLogError`` and ``SchemaError``."""
    attempts = layout.read_attempts(Path(path))
    return attempts[-1].header if attempts else None


class RunLogWriter:
    """Writes one attempt of one rank; made by ``open``.

    Rank 0 writes ``run.json``, steps and events; every rank writes its own row files. Rows given in are written or
    counted: ``rows_written + shed_rows`` is the number handed in, and likewise for passes.
    """

    def __init__(
        self,
        path: Path,
        attempts: tuple[Attempt, ...],
        *,
        rank: int,
        world_size: int,
        store_text: str,
        text_sample: int | None,
        fsync: bool,
        secret: bytes,
    ) -> None:
        self.path: Final = path
        self.header = attempts[-1].header
        """The header as written; ``run_id`` is the directory's when resumed."""
        self.rank: Final = rank
        self.world_size: Final = world_size
        self.store_text: Final = store_text
        self.secret: Final = secret
        """Key of this run's hashes (32 bytes), the same in all its attempts."""
        self.rows_written = 0
        self.shed_rows = 0
        """Rollout rows that could not be written."""
        self.shed_texts = 0
        """Rollout rows whose text was left out so that the rest could be written."""
        self.passes_written = 0
        self.shed_passes = 0
        self.shed_lines = 0
        """Steps and events dropped after more than 1,000 of them could not be written."""
        self._attempts = attempts
        self._fsync = fsync
        self._text_budget = None
        if text_sample is not None:
            self._text_budget = text_sample // world_size + (rank < text_sample % world_size)
        self._sequence = dict.fromkeys(schema.TABLES, 0)
        self._steps = _LineFile(path / layout.STEPS_FILE, fsync=fsync)
        self._events = _LineFile(path / layout.EVENTS_FILE, fsync=fsync)
        self._faults: dict[str, tuple[str, int]] = {}
        self._closed = False

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        header: RunHeader,
        *,
        rank: int = 0,
        world_size: int = 1,
        store_text: str = "full",
        text_sample: int | None = None,
        fsync: bool = False,
        resume: bool,
        from_step: int | None = None,
        secret: bytes | None = None,
    ) -> RunLogWriter:
        """A writer for a new attempt in ``path``, which is made when absent. Call it on every rank.

        ``header.attempt`` comes from ``next_attempt`` (on rank 0, then the same on all). ``resume`` continues what is
        there: readers then hide the older attempts' steps after ``from_step``, the ``global_step`` of the checkpoint
        (unknown: those from this attempt's first step on). Without ``resume`` the attempt is ``fresh`` and readers
        show only it. ``text_sample`` bounds the completions stored as text per round, over all ranks; their choice
        uses no random state. ``secret`` is given on ranks that do not share rank 0's file system.

        Raises ``RunLogError`` (not writable, foreign files, attempt taken), ``SchemaError`` (another schema) and
        ``ConfigError`` (unknown ``store_text``).
        """
        if store_text not in STORE_TEXT:
            raise ConfigError(f"rlmon_store_text is {store_text!r}; it must be one of {', '.join(STORE_TEXT)}.")
        root = Path(path)
        old = layout.read_attempts(root)
        if not old:
            _refuse_foreign(root)
        if resume and old:
            header = dataclasses.replace(header, run_id=old[-1].header.run_id)
        header = dataclasses.replace(
            header, attempt_kind="resumed" if resume else "fresh", schema_version=SCHEMA_VERSION
        )
        if rank == 0 and any(attempt.header.attempt >= header.attempt for attempt in old):
            raise RunLogError(
                f"{root} already holds attempt {old[-1].header.attempt}, and attempt {header.attempt} was asked for. "
                f"Take the number from rlmon.runlog.next_attempt({str(root)!r})."
            )
        attempts = (
            *(attempt for attempt in old if attempt.header.attempt < header.attempt),
            Attempt(header=header, from_step=from_step if resume else None),
        )
        try:
            root.mkdir(parents=True, exist_ok=True)
            writer = cls(
                root,
                attempts,
                rank=rank,
                world_size=world_size,
                store_text=store_text,
                text_sample=text_sample,
                fsync=fsync,
                secret=secret if secret is not None else _shared_secret(root, fsync=fsync),
            )
            writer._start()
        except OSError as error:
            if isinstance(error, RunLogError):
                raise
            raise RunLogError(_cannot_write(root, error)) from error
        return writer

    def write_rollouts(self, columns: Mapping[str, Sequence[Any] | None]) -> None:
        """Write the rows of one generation on this rank; one file, there as a whole or not at all.

        ``columns``: fields of ``records.Rollout`` to sequences of one length; an absent column is null, NaN and
        infinities become null. Never raises for what the disk does: after a failure the text of the round is left out
        (``shed_texts``), then its rows (``shed_rows``); ``take_faults`` has the reason. ``ValueError`` for columns
        that are not a table (their rows are counted as shed).
        """
        rows = _longest(columns)
        try:
            table = self._rollout_table(columns)
        except Exception:
            self.shed_rows += rows
            raise
        if self._write_rows("rollouts", table):
            self.rows_written += rows
            return
        has_text = any(table.column(name).null_count < rows for name in schema.TEXT_COLUMNS)
        if has_text and self._write_rows("rollouts", _without(table, schema.TEXT_COLUMNS)):
            self.rows_written += rows
            self.shed_texts += rows
            return
        self.shed_rows += rows

    def write_passes(self, columns: Mapping[str, Sequence[Any] | None]) -> None:
        """Write one row per completion and training pass; as ``write_rollouts``, counted in ``shed_passes``."""
        rows = _longest(columns)
        try:
            table = schema.table_from_columns(schema.TABLES["passes"], columns)
        except Exception:
            self.shed_passes += rows
            raise
        if self._write_rows("passes", table):
            self.passes_written += rows
        else:
            self.shed_passes += rows

    def append_step(self, record: StepRecord) -> None:
        """Append one line to ``steps.jsonl`` (rank 0; elsewhere nothing happens).

        Raises ``OSError`` where the line could not be written *now*: it is kept and written before the next one, so
        do not append it again. Not finite values are stored as ``as_stored`` says.
        """
        if self.rank == 0:
            self._append(self._steps, lines.dump_line(lines.as_stored(record)), keep=False)

    def append_event(self, kind: str, payload: Mapping[str, Any] | Any) -> None:
        """Append one line to ``events.jsonl`` (rank 0; elsewhere nothing happens). ``payload``: a mapping or a record.

        ``finding``, ``action`` and ``fault`` hold the records of that name. Raises as ``append_step``.
        """
        if self.rank == 0:
            event = {
                "schema_version": SCHEMA_VERSION,
                "kind": kind,
                "attempt": self.header.attempt,
                "time_unix_seconds": time.time(),
                "payload": payload,
            }
            self._append(self._events, lines.dump_line(event), keep=kind == "action")

    def revise(self, **changes: Any) -> None:
        """Change fields of this attempt's header, in ``run.json`` as well (rank 0). Raises ``OSError``."""
        self.header = dataclasses.replace(self.header, **changes)
        self._attempts = (*self._attempts[:-1], dataclasses.replace(self._attempts[-1], header=self.header))
        if self.rank == 0:
            files.replace_file(self.path / layout.RUN_FILE, layout.run_json(self._attempts), fsync=self._fsync)

    def take_faults(self) -> tuple[WriteFault, ...]:
        """What went wrong since the last call, one entry per place."""
        faults = tuple(WriteFault(place=p, error=e, count=n) for p, (e, n) in self._faults.items())
        self._faults.clear()
        return faults

    def close(self) -> None:
        """Write what is still waiting and, on rank 0 with more than 64 parts, compact for 10 seconds at most.

        Never raises; safe to call twice. Other ranks may still be writing.
        """
        if self._closed:
            return
        self._closed = True
        if self.rank != 0:
            return
        for file in (self._steps, self._events):
            try:
                file.flush()
            except OSError as error:
                self.shed_lines += file.clear()
                self._note(file.place, error, "lines lost at close")
        try:
            if any(
                sum(map(layout.is_part, layout.list_names(self.path / folder))) > COMPACT_OVER_PARTS
                for folder in schema.TABLES
            ):
                compaction.compact(self.path, fsync=self._fsync, budget_seconds=COMPACT_SECONDS)
        except Exception as error:
            self._note("runlog.compact", error, "the parts stay as they are")

    # ---- opening

    def _start(self) -> None:
        """Make the directories and headers and prove that rows can be written. Raises ``OSError``."""
        self._make_folders()
        for folder in schema.TABLES:
            probe = self.path / folder / f".probe-k{self.rank:05d}"
            files.replace_file(probe, b"rlmon\n")
            os.unlink(probe)
        if self.rank != 0:
            return
        files.replace_file(self.path / layout.RUN_FILE, layout.run_json(self._attempts), fsync=self._fsync)
        for file in (self._steps, self._events):
            if files.ends_torn(file.path):
                files.append_bytes(file.path, lines.TORN, fsync=self._fsync)
        self._remove_old_temporaries()
        newest = self._attempts[-1]
        self.append_event(
            "resumed" if newest.header.attempt_kind == "resumed" else "started",
            {"from_step": newest.from_step, "store_text": self.store_text, "world_size": self.world_size},
        )

    def _make_folders(self) -> None:
        for folder in schema.TABLES:
            (self.path / folder).mkdir(parents=True, exist_ok=True)

    def _remove_old_temporaries(self) -> None:
        """Unlink what killed attempts left half-written; this attempt's other ranks may be writing already."""
        for folder in schema.TABLES:
            for name in layout.list_names(self.path / folder):
                attempt = layout.part_attempt(name)
                if name.endswith(files.TMP_SUFFIX) and attempt is not None and attempt < self.header.attempt:
                    with contextlib.suppress(OSError):
                        os.unlink(self.path / folder / name)

    # ---- rows

    def _rollout_table(self, columns: Mapping[str, Sequence[Any] | None]) -> pa.Table:
        if self.store_text != "full":
            hidden = schema.TEXT_COLUMNS + (schema.SKETCH_COLUMNS if self.store_text == "off" else ())
            columns = {name: None if name in hidden else values for name, values in columns.items()}
        elif self._text_budget is not None:
            columns = _sampled_text(columns, self._text_budget)
        return schema.table_from_columns(schema.TABLES["rollouts"], columns)

    def _write_rows(self, folder: str, table: pa.Table) -> bool:
        """Whether the rows are in the directory now."""
        if table.num_rows == 0:
            return True
        first = table.slice(0, 1).select(["split", "round"]).to_pylist()[0]
        name = layout.part_name(self.header.attempt, first["split"], first["round"], self.rank, self._sequence[folder])
        self._sequence[folder] += 1
        file = self.path / folder / name
        try:
            data = schema.parquet_bytes(table, small_codec="snappy")
            try:
                files.replace_file(file, data, fsync=self._fsync)
            except FileNotFoundError as error:
                self._restore(error)
                files.replace_file(file, data, fsync=self._fsync)
        except Exception as error:
            self._note(f"runlog.{folder}", error)
            return os.path.exists(file)
        return True

    def _restore(self, error: OSError | None) -> None:
        """Make the directory again after somebody deleted it in the middle of the run. Raises ``OSError``."""
        self._make_folders()
        if self.rank == 0:
            files.replace_file(self.path / layout.RUN_FILE, layout.run_json(self._attempts), fsync=self._fsync)
            _write_secret(self.path, self.secret, fsync=self._fsync)
        self._note("runlog.directory", error, "the run directory was gone; it was made again")

    # ---- lines

    def _append(self, file: _LineFile, line: bytes, *, keep: bool) -> None:
        file.push(line, keep=keep)
        try:
            if not os.path.exists(self.path / layout.RUN_FILE):
                self._restore(FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self.path)))
            file.flush()
        except OSError:
            self.shed_lines += file.trim()
            raise
        with contextlib.suppress(OSError):
            (self._events if file is self._steps else self._steps).flush()

    def _note(self, place: str, error: BaseException | None, done: str = "") -> None:
        text = f"{type(error).__name__}: {error}"[:400] + (f" ({done})" if done else "")
        self._faults[place] = (text, self._faults.get(place, ("", 0))[1] + 1)


class _LineFile:
    """One append-only file of lines, and the lines that could not be written yet."""

    def __init__(self, path: Path, *, fsync: bool) -> None:
        self.path = path
        self.place = f"runlog.{path.stem}"
        self._fsync = fsync
        self._torn = False
        self._waiting: deque[tuple[bytes, bool]] = deque()

    def push(self, line: bytes, *, keep: bool) -> None:
        """Queue a line; ``keep`` marks one that goes last when lines must be dropped."""
        self._waiting.append((line, keep))

    def flush(self) -> None:
        """Write all waiting lines in order, one ``os.write`` each. Raises ``OSError`` at the first that fails."""
        while self._waiting:
            line = self._waiting[0][0]
            try:
                files.append_bytes(self.path, lines.TORN + line if self._torn else line, fsync=self._fsync)
            except files.TornLineError:
                self._torn = True
                raise
            self._torn = False
            self._waiting.popleft()

    def trim(self) -> int:
        """Drop the oldest lines beyond the bounds; returns how many."""
        dropped = 0
        size = sum(len(line) for line, _ in self._waiting)
        while len(self._waiting) > BACKLOG_LINES or size > BACKLOG_BYTES:
            oldest = next((i for i, (_, keep) in enumerate(self._waiting) if not keep), 0)
            size -= len(self._waiting[oldest][0])
            del self._waiting[oldest]
            dropped += 1
        return dropped

    def clear(self) -> int:
        """Give up on all waiting lines; returns how many."""
        dropped = len(self._waiting)
        self._waiting.clear()
        return dropped


def _longest(columns: Mapping[str, Sequence[Any] | None]) -> int:
    return max((len(values) for values in columns.values() if values is not None), default=0)


def _without(table: pa.Table, names: Sequence[str]) -> pa.Table:
    for name in names:
        index = table.schema.get_field_index(name)
        table = table.set_column(index, table.schema.field(index), pa.nulls(table.num_rows, pa.string()))
    return table


def _sampled_text(columns: Mapping[str, Sequence[Any] | None], budget: int) -> dict[str, Sequence[Any] | None]:
    """``columns`` with the text of ``budget`` rows only, chosen by a fixed hash of (round, global_row)."""
    rounds, rows = columns.get("round"), columns.get("global_row")
    if rounds is None or rows is None or len(rows) <= budget:
        return dict(columns)
    # Multiplicative hashing (Knuth) spreads neighbours: the choice is even over prompts and differs by round.
    spread = [
        ((int(row) + 1) * 2654435761 ^ (int(round) + 1) * 2246822519) & 0xFFFFFFFF
        for row, round in zip(rows, rounds, strict=True)
    ]
    kept = set(heapq.nsmallest(budget, range(len(rows)), key=spread.__getitem__))
    sampled: dict[str, Sequence[Any] | None] = dict(columns)
    for name in schema.TEXT_COLUMNS:
        if (values := columns.get(name)) is not None:
            sampled[name] = [value if i in kept else None for i, value in enumerate(values)]
    return sampled


def _refuse_foreign(root: Path) -> None:
    if not root.exists():
        return
    if not root.is_dir():
        raise RunLogError(f"{root} is a file; a directory was needed. Choose another one with rlmon_dir.")
    foreign = [name for name in layout.list_names(root) if name not in layout.OWN_NAMES and not name.startswith(".")]
    if foreign:
        shown = ", ".join(foreign[:3]) + (", ..." if len(foreign) > 3 else "")
        raise RunLogError(
            f"{root} holds files that rlmon did not write ({shown}); an empty or new directory, or one of an rlmon "
            f"run, was needed. Set rlmon_dir, for example rlmon_dir={root / 'rlmon'}."
        )


def _cannot_write(root: Path, error: OSError) -> str:
    at = f" ({error.filename})" if error.filename and str(error.filename) != str(root) else ""
    return (
        f"cannot write the run log in {root}: {error.strerror or error}{at}. A directory that this user can write, "
        "with free space, was needed. Set rlmon_dir, for example rlmon_dir=/tmp/rlmon-run."
    )


def _shared_secret(root: Path, *, fsync: bool) -> bytes:
    """The secret in ``root``, made when absent; all ranks of one file system get the same one. Raises ``OSError``."""
    file = root / layout.SECRET_FILE
    for _ in range(2):
        with contextlib.suppress(FileNotFoundError, ValueError):
            secret = bytes.fromhex(files.read_bytes(file).decode("ascii").strip())
            if len(secret) == SECRET_BYTES:
                return secret
            break
        fresh = root / f".{layout.SECRET_FILE}-{os.getpid()}-{os.urandom(4).hex()}"
        files.replace_file(fresh, os.urandom(SECRET_BYTES).hex().encode("ascii") + b"\n", fsync=fsync, mode=0o600)
        try:
            os.link(fresh, file)  # fails where another rank was faster, so that nobody's secret is replaced
        except FileExistsError:
            pass
        except OSError:
            os.replace(fresh, file)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(fresh)
    raise RunLogError(f"{file} does not hold a secret of {SECRET_BYTES} bytes in hex. Delete it, or set rlmon_dir.")


def _write_secret(root: Path, secret: bytes, *, fsync: bool) -> None:
    files.replace_file(root / layout.SECRET_FILE, secret.hex().encode("ascii") + b"\n", fsync=fsync, mode=0o600)
