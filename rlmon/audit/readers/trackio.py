"""trackio: one SQLite data base a project, with metrics, inline tables, traces and alerts.

The data base is opened read-only; nothing of trackio is imported. The step of a row is the trainer's own where it was
logged: trackio's counter goes up with every log call.
"""

from __future__ import annotations

import contextlib
import re
import sqlite3
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import pyarrow as pa

import rlmon.audit.readers.columns as columns
from rlmon.audit.readers.history import History, beside_curves, reward_functions, step_key_of
from rlmon.audit.readers.messages import rendered
from rlmon.audit.readers.own_word import MAX_REMARKS, OwnWordInFile, remark_of
from rlmon.audit.readers.table_layout import (
    MAX_TABLE_BYTES,
    Cells,
    Logged,
    UnreadableTable,
    group_size,
    is_count,
    number_of,
    parse_json,
)
from rlmon.audit.readers.tables import plan
from rlmon.audit.run import ROWS, OpenedRun, Remark, RowBatch, stretches
from rlmon.errors import ReadError
from rlmon.metrics.prompts import prompt_identity

NAME = "trackio"
Found = TypeVar("Found")
MAGIC = b"SQLite format 3\0"
SMALL_BYTES = 65_536
"""Cells up to this are parsed when the run is opened; of larger ones only the beginning is looked at."""
TRACES = 512
"""Traces of one batch."""
TRACES_OF_A_SHARD = 8_192

DAMAGE = (sqlite3.Error, UnicodeDecodeError, OverflowError)
"""What SQLite's binding raises for a damaged file: it decodes names of a broken schema for its own message."""

_PEEK_ROWS = 400
_TABLE = re.compile(rb'\s*\{"((?:[^"\\]|\\.){1,200})":\{"_type":"trackio\.table"')


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """One run of a project."""

    name: str
    id: str | None
    """``None``: a data base from before runs had ids."""
    rows: int
    first: str
    """When it began, as text that sorts by time."""
    last: str


def recognises(path: Path) -> bool:
    """Whether ``path`` is a trackio data base (``FILE.db`` or ``FILE.db::RUN``), or a folder that has one."""
    return bool(_data_bases(columns.place_and_run(path)[0]))


def open_run(path: Path) -> OpenedRun:
    """The run at ``path``: a data base, a folder with one, or either with ``::RUN`` behind it.

    Raises ``ReadError`` where there is no such run, or more than one to choose from.
    """
    return _of_the_run(path, _open)


def settings(path: Path) -> Mapping[str, Any]:
    """The trainer's settings of the run at ``path``, without reading what it logged. Raises as ``open_run``."""
    return _of_the_run(path, lambda _, base, run: _config(base, run))


def runs_at(path: Path) -> list[Path]:
    """Addresses of the runs of the projects at ``path``, the newest last, where they are several; else none."""
    place, wanted = columns.place_and_run(path)
    found = []
    for file in [] if wanted else _data_bases(place):
        with contextlib.suppress(*DAMAGE), contextlib.closing(_connect(file)) as base:
            runs = _runs(base)
            names = Counter(run.name for run in runs)
            found += [Path(f"{file}::{run.name if names[run.name] == 1 else run.id}") for run in runs]
    return found if len(found) > 1 else []


def _of_the_run(path: Path, read: Callable[[Path, sqlite3.Connection, Run], Found]) -> Found:
    """What ``read`` makes of the data base and the run that ``path`` names."""
    place, wanted = columns.place_and_run(path)
    files = _data_bases(place)
    if not files:
        raise ReadError(
            f"{str(place)!r} holds no trackio data base (*.db with a table metrics). trackio keeps them in "
            "TRACKIO_DIR, by default ~/.cache/huggingface/trackio/PROJECT.db."
        )
    if len(files) > 1:
        names = ", ".join(repr(file.name) for file in files[:20])
        raise ReadError(f"{str(place)!r} holds {len(files)} trackio projects: {names}. Give one of the files.")
    try:
        with contextlib.closing(_connect(files[0])) as base:
            run = _choose(files[0], _runs(base), wanted)
            return read(files[0], base, run)
    except DAMAGE as error:
        raise ReadError(f"{str(files[0])!r} is a damaged data base: {error}.") from error


def _data_bases(place: Path) -> list[Path]:
    """The trackio data bases that ``place`` is, holds, or holds in ``trackio/``."""
    if place.is_file():
        found = [place]
    else:
        found = sorted(place.glob("*.db")) or sorted(place.glob("trackio/*.db"))
        found = [file for file in found if not file.is_symlink() and not file.parent.is_symlink()]
    return [file for file in found if file.is_file() and _is_trackio(file)]


def _is_trackio(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            if file.read(len(MAGIC)) != MAGIC:
                return False
        with contextlib.closing(_connect(path)) as base:
            return {"run_name", "step", "metrics"} <= _columns(base, "metrics")
    except (OSError, *DAMAGE):
        return False


def _connect(path: Path) -> sqlite3.Connection:
    """A connection that writes nothing, not even beside the file.

    Rows of a running program may still lie in the write-ahead log, which an immutable data base has not. It is read
    where its index is there too; making one would be writing.
    """
    modes = ["mode=ro&immutable=1"]
    if _has_log(path) and path.with_name(path.name + "-shm").is_file():
        modes.insert(0, "mode=ro")
    for mode in modes:
        base = sqlite3.connect(f"file:{quote(str(path.resolve()))}?{mode}", uri=True, timeout=5)
        base.text_factory = _decode
        try:
            # A view or trigger of a hostile file must not call functions; a damaged page is found and not followed.
            base.execute("PRAGMA trusted_schema=OFF")
            base.execute("PRAGMA cell_size_check=ON")
            base.execute("SELECT count(*) FROM sqlite_master").fetchone()
            return base
        except DAMAGE:
            base.close()
            if mode == modes[-1]:
                raise
    raise AssertionError("unreachable")


def _has_log(path: Path) -> bool:
    """Whether rows may lie in a write-ahead log."""
    log = path.with_name(path.name + "-wal")
    try:
        return log.stat().st_size > 0
    except OSError:
        return False


def _decode(text: bytes) -> str:
    return text.decode("utf-8", "replace")


def _columns(base: sqlite3.Connection, table: str) -> set[str]:
    """Columns of an ordinary table; none of a view or a virtual table, which could run for ever."""
    row = base.execute("SELECT sql FROM sqlite_master WHERE type = 'table' AND name = ?", (table,)).fetchone()
    if row is None or not isinstance(row[0], str) or not re.match(r"\s*CREATE\s+TABLE\b", row[0], re.IGNORECASE):
        return set()
    return {str(column[1]) for column in base.execute("SELECT * FROM pragma_table_info(?)", (table,))}


def _time_of(base: sqlite3.Connection, table: str) -> str:
    """What to ask for the time of a row, which is text that sorts."""
    return "timestamp" if "timestamp" in _columns(base, table) else "''"


def _runs(base: sqlite3.Connection) -> list[Run]:
    """The runs with metrics or traces, the newest last."""
    found: dict[tuple[str, str | None], Run] = {}
    for table in ("metrics", "traces"):
        names = _columns(base, table)
        if "run_name" not in names:
            continue
        run_id = "run_id" if "run_id" in names else "NULL"
        time = _time_of(base, table)
        query = f"SELECT run_name, {run_id}, count(*), min({time}), max({time}) FROM {table} GROUP BY 1, 2"
        for name, identity, rows, first, last in base.execute(query):
            key = (str(name), None if identity is None else str(identity))
            before = found.get(key)
            found[key] = Run(
                name=key[0],
                id=key[1],
                rows=rows + (before.rows if before else 0),
                first=min(str(first), before.first) if before else str(first),
                last=max(str(last), before.last) if before else str(last),
            )
    return sorted(found.values(), key=lambda run: (run.last, run.first, run.name))


def _choose(path: Path, runs: list[Run], wanted: str) -> Run:
    if wanted:
        named = [run for run in runs if run.name == wanted or run.id == wanted]
        if named:
            return named[-1]
    elif len(runs) == 1:
        return runs[0]
    if not runs:
        raise ReadError(f"{str(path)!r} is a trackio project without a logged value.")
    listed = ", ".join(f"{run.name!r} ({run.rows} rows, last {run.last[:19]})" for run in runs[-20:])
    if wanted:
        raise ReadError(f"{str(path)!r} has no run {wanted!r}; it has {listed}.")
    raise ReadError(
        f"{str(path)!r} holds {len(runs)} runs: {listed}. Type {f'{path}::{runs[-1].name}'!r} for the last."
    )


def _of_run(run: Run) -> tuple[str, tuple[str, ...]]:
    if run.id is None:
        return "run_name = ?", (run.name,)
    return "run_name = ? AND run_id = ?", (run.name, run.id)


def _open(path: Path, base: sqlite3.Connection, run: Run) -> OpenedRun:
    config = _config(base, run)
    damaged = 0
    own_word, remarks, before = OwnWordInFile(), deque(_remarks(base, run)), ""
    peeked = (call for *_, call in _calls(base, run, _PEEK_ROWS) if call is not None)
    history = History(step_key=step_key_of(peeked))
    for row, time, step, size, call in _calls(base, run, None):
        if call is None:
            damaged += 1
            continue
        numbers = {}
        for key, value in call.items():
            number = None if isinstance(value, bool) else number_of(value)
            if number is not None:
                numbers[key] = number
        history.add(numbers, step)
        while remarks and remarks[0][0] <= before:
            own_word.take_remark(remarks.popleft()[1])
        own_word.at(history.step)
        own_word.take_verdict(call.get("rlmon/verdict"))
        before = time
        for key, value in call.items():
            if isinstance(value, dict) and value.get("_type") == "trackio.table":
                cells = value.get("_value")
                rows = len(cells) if isinstance(cells, list) and cells else None
                # Of rlmon's own, each holds the rows of its step.
                history.add_table(key, f"{row}:{key}", size, rows, incremental=key == "rlmon/samples")
    for _, remark in remarks:
        own_word.take_remark(remark)
    tables = plan(history.tables, LoadCell(path), config, reward_functions(history))
    scalars, evals, went_back = history.series()
    traces = () if tables.shards else tuple(_trace_shards(path, base, run))
    lacks = beside_curves(tables.lacks, scalars, evals)
    notes = [*went_back, *tables.notes]
    if traces:
        lacks = {key: why for key, why in lacks.items() if key in ("entropy", "kl", "eval")}
        lacks["truncation"] = "traces do not say which completions were cut off"
        notes.append("completions are those of traces: TRL's asynchronous trainer logs at most 16 a step")
    if _has_log(path) and not path.with_name(path.name + "-shm").is_file():
        notes.append(
            f"the newest rows may lie in {path.name}-wal and were not read: its index {path.name}-shm is missing; copy "
            "both with the data base"
        )
    if damaged:
        notes.append(f"{damaged} damaged rows of the data base were passed over")
    if history.step_key is None and (scalars or evals):
        notes.append("no key of the trainer's step was logged (train/global_step, ...): trackio's own step was taken")
    return OpenedRun(
        reader=NAME,
        run_id=run.name,
        path=path,
        shards=traces or tables.shards,
        scalars=scalars,
        eval_scalars=evals,
        config=config,
        group_size=group_size(config),
        lacks=lacks,
        own_word=own_word.word(),
        notes=tuple(notes),
    )


def _config(base: sqlite3.Connection, run: Run) -> dict[str, Any]:
    """The run's settings, without trackio's own."""
    if not {"run_name", "config"} <= _columns(base, "configs"):
        return {}
    condition, parameters = _of_run(run)
    if "run_id" not in _columns(base, "configs"):
        condition, parameters = "run_name = ?", (run.name,)
    query = f"SELECT config FROM configs WHERE {condition} AND length(config) <= ? ORDER BY rowid DESC LIMIT 1"
    row = base.execute(query, (*parameters, MAX_TABLE_BYTES)).fetchone()
    if row is None:
        return {}
    try:
        config = parse_json(row[0])
    except (UnreadableTable, TypeError, AttributeError):
        return {}
    if not isinstance(config, dict):
        return {}
    return {key: value for key, value in config.items() if not key.startswith("_") or key == "_name_or_path"}


def _calls(
    base: sqlite3.Connection, run: Run, limit: int | None
) -> Iterator[tuple[int, str, int, int, Mapping[str, Any] | None]]:
    """Row, time, trackio's step, bytes and content of each log call, in order; ``None`` for a damaged one.

    A call with a large table is not parsed: it has an empty table under its key.
    """
    condition, parameters = _of_run(run)
    query = (
        f"SELECT rowid, {_time_of(base, 'metrics')}, step, length(metrics), substr(metrics, 1, {SMALL_BYTES}) "
        f"FROM metrics WHERE {condition} ORDER BY rowid LIMIT {-1 if limit is None else limit}"
    )
    for row, time, step, size, content in base.execute(query, parameters):
        start = content.encode("utf-8", "replace") if isinstance(content, str) else content
        if not isinstance(start, bytes) or not is_count(size) or size > MAX_TABLE_BYTES:
            yield row, str(time), 0, 0, None
            continue
        own = step if is_count(step) else 0
        table = _TABLE.match(start) if size > SMALL_BYTES else None
        try:
            if table is not None:
                key = parse_json(b'"' + table[1] + b'"')
                yield row, str(time), own, size, {key: {"_type": "trackio.table"}}
                continue
            call = parse_json(start if size <= SMALL_BYTES else _cell(base, row))
        except UnreadableTable:
            call = None
        yield row, str(time), own, size, call if isinstance(call, dict) else None


def _remarks(base: sqlite3.Connection, run: Run) -> Iterator[tuple[str, Remark]]:
    """Time and content of rlmon's own alerts."""
    names = _columns(base, "alerts")
    if not {"run_name", "title", "text"} <= names:
        return
    condition, parameters = _of_run(run)
    if "run_id" not in names:
        condition, parameters = "run_name = ?", (run.name,)
    query = (
        f"SELECT {_time_of(base, 'alerts')}, substr(title, 1, 200), substr(text, 1, 200) FROM alerts "
        f"WHERE {condition} AND title LIKE 'rlmon %' ORDER BY rowid LIMIT {MAX_REMARKS}"
    )
    for time, title, text in base.execute(query, parameters):
        remark = remark_of(str(title), str(text))
        if remark is not None:
            yield str(time), remark


def _cell(base: sqlite3.Connection, row: int) -> bytes | str:
    found = base.execute(
        "SELECT metrics FROM metrics WHERE rowid = ? AND length(metrics) <= ?", (row, MAX_TABLE_BYTES)
    ).fetchone()
    if found is None or not isinstance(found[0], (bytes, str)):
        raise UnreadableTable("gone, or too large")
    content: bytes | str = found[0]
    return content


@dataclass(frozen=True, slots=True)
class LoadCell:
    """Reads inline tables of a data base."""

    path: Path

    def __call__(self, table: Logged) -> Cells:
        row, _, key = table.place.partition(":")
        try:
            with contextlib.closing(_connect(self.path)) as base:
                call = parse_json(_cell(base, int(row)))
        except DAMAGE as error:
            raise UnreadableTable(f"damaged data base: {error}") from error
        value = call.get(key) if isinstance(call, dict) else None
        rows = value.get("_value") if isinstance(value, dict) else None
        if not isinstance(rows, list):
            raise UnreadableTable("no rows in the table")
        names: dict[str, None] = {}
        for cells in rows:
            if isinstance(cells, dict):
                names.update(dict.fromkeys(cells))
        return list(names), [
            [cells.get(name) for name in names] if isinstance(cells, dict) else cells for cells in rows
        ]


@dataclass(frozen=True, kw_only=True, slots=True)
class TraceShard:
    """Some traces of a run: conversations with rewards, advantages and groups."""

    path: Path
    run: Run
    first: int
    last: int
    """First and last step."""
    size: int

    @property
    def bytes(self) -> int:
        return self.size

    def read(self) -> Iterator[RowBatch]:
        condition, parameters = _of_run(self.run)
        query = (
            f"SELECT step, key, messages, metadata FROM traces WHERE {condition} AND step BETWEEN ? AND ? "
            f"AND length(messages) <= {MAX_TABLE_BYTES} AND length(metadata) <= {MAX_TABLE_BYTES} "
            "ORDER BY step, timestamp, trace_index, rowid"
        )
        try:
            with contextlib.closing(_connect(self.path)) as base:
                cursor = base.execute(query, (*parameters, self.first, self.last))
                while found := cursor.fetchmany(TRACES):
                    yield _traces(found)
        except DAMAGE as error:
            yield RowBatch(rows=ROWS.empty_table(), unreadable={self.path.name: f"damaged data base: {error}"})


def _trace_shards(path: Path, base: sqlite3.Connection, run: Run) -> Iterator[TraceShard]:
    needed = {"run_name", "step", "key", "messages", "metadata", "timestamp", "trace_index"}
    if not needed <= _columns(base, "traces"):
        return
    condition, parameters = _of_run(run)
    query = (
        "SELECT step, count(*), sum(length(messages) + length(metadata)) FROM traces "
        f"WHERE {condition} AND typeof(step) = 'integer' GROUP BY step ORDER BY step"
    )
    for steps in stretches(base.execute(query, parameters), lambda step: step[1], most=TRACES_OF_A_SHARD):
        size = sum(int(held or 0) for _, _, held in steps)
        yield TraceShard(path=path, run=run, first=steps[0][0], last=steps[-1][0], size=size)


def _traces(found: Sequence[tuple[Any, ...]]) -> RowBatch:
    """Rows of traces. The completion is what follows the last message of the user."""
    made: list[dict[str, Any]] = []
    for step, key, messages, metadata in found:
        try:
            spoken, about = parse_json(messages), parse_json(metadata)
        except (UnreadableTable, AttributeError, TypeError):
            continue
        if not isinstance(spoken, list) or not isinstance(about, dict):
            continue
        if not all(isinstance(message, dict) for message in spoken):
            continue
        asked = [i for i, message in enumerate(spoken) if message.get("role") in ("user", "system", "developer")]
        cut = asked[-1] + 1 if asked else 0
        rewards = {
            name.removeprefix("rewards/").removesuffix("/mean"): number_of(value)
            for name, value in about.items()
            if name.startswith("rewards/") and not name.endswith("/std")
        }
        tokens, group = about.get("completion_tokens"), about.get("group_id")
        made.append(
            {
                "step": step,
                "split": "eval" if str(key).startswith(("eval", "val", "test")) else "train",
                "prompt": rendered(spoken[:cut]) if cut else None,
                "completion": rendered(spoken[cut:], completion=True) if spoken[cut:] else "",
                "prompt_id": prompt_identity(spoken[:cut]) if cut else None,
                "group": columns.label(group),
                "reward": number_of(about.get("reward")),
                "rewards": list(rewards.items()) or None,
                "advantage": number_of(about.get("advantage")),
                "completion_tokens": tokens if is_count(tokens) else None,
            }
        )
    texts = ("prompt", "completion", "group")
    arrays = {
        field.name: columns.strings([row[field.name] for row in made])
        if field.name in texts
        else pa.array([row[field.name] for row in made], field.type)
        for field in ROWS
        if made and field.name in made[0]
    }
    return RowBatch(rows=columns.table(arrays) if made else ROWS.empty_table(), damaged=len(found) - len(made))
