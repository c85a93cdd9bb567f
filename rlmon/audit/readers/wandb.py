"""W&B: an offline run directory, or a downloaded history.

The ``.wandb`` file is LevelDB's log format with protobuf records (``wandb.proto``, of the extra ``wandb``); tables lie
beside it in ``files/media/table``. The x axis is the trainer's own step, never W&B's ``_step``: the trainer's
integration logs many times per step.
"""

from __future__ import annotations

import functools
import glob
import importlib
import json
import os
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

from rlmon.audit.readers.history import (
    STEP_KEYS,
    History,
    beside_curves,
    reward_functions,
    step_key_of,
)
from rlmon.audit.readers.own_word import OwnWordInFile
from rlmon.audit.readers.table_layout import (
    MAX_TABLE_BYTES,
    Cells,
    Logged,
    UnreadableTable,
    group_size,
    is_count,
    number_of,
    parse_cells,
)
from rlmon.audit.readers.tables import path_inside, plan
from rlmon.audit.run import OpenedRun
from rlmon.errors import MissingExtraError, ReadError

NAME = "wandb"

BLOCK_BYTES = 32_768
FILE_HEADER_BYTES = 7
MAX_RECORD_BYTES = 64 << 20
_PEEK_ROWS = 400


def recognises(path: Path) -> bool:
    """Whether ``path`` is a W&B run, a ``wandb`` folder, or a folder with one in it."""
    return path.suffix == ".wandb" if path.is_file() else bool(_run_files(path))


def open_run(path: Path) -> OpenedRun:
    """The run at ``path``. Raises ``ReadError`` where there is none or more than one, ``MissingExtraError`` without
    wandb."""
    files = [path] if path.is_file() else _run_files(path)
    if not files:
        raise ReadError(
            f"{path} holds no W&B run: no run-*.wandb in it, in offline-run-*/ or in wandb/. Give the run directory "
            "(wandb/offline-run-DATE-ID) or a history downloaded with Run.download_history_exports."
        )
    runs = _by_id(files)
    latest = _latest(files)
    if len(runs) > 1 and latest is None:
        names = ", ".join(repr(other.parent.name) for other in files[:20])
        raise ReadError(
            f"{path} holds {len(runs)} W&B runs: {names}{', ...' if len(files) > 20 else ''}. Give the directory of "
            f"one, for example {str(files[-1].parent)!r}."
        )
    mine = next(run for run in runs if len(runs) == 1 or latest in run)
    opened = _open_offline(mine)
    notes = [*opened.notes]
    if len(runs) > 1:
        read = f"the one that latest-run names was read, {mine[-1].parent.name!r}"
        notes.insert(0, f"{len(runs)} W&B runs in {path.name!r}: {read}")
    if others := _elsewhere(mine):
        notes.append(
            f"other attempts of this run lie beside it, in {', '.join(map(repr, others))}: give "
            f"{str(mine[0].parent.parent)!r} to read them together"
        )
    return replace(opened, notes=notes)


def runs_at(path: Path) -> list[Path]:
    """Directories of the runs, in order of time, where ``path`` holds several; else none."""
    runs = _by_id(_run_files(path)) if path.is_dir() else []
    return [run[-1].parent for run in runs] if len(runs) > 1 else []


def _date(file: Path) -> tuple[str, str]:
    """What orders run directories by time, offline or synced: ``offline-run-DATE-ID``, ``run-DATE-ID``."""
    return file.parent.name.rpartition("run-")[2], file.name


def _by_id(files: Sequence[Path]) -> list[list[Path]]:
    """The files of each run, in order of time: a run that was resumed has a directory an attempt, of the same id."""
    runs: dict[str, list[Path]] = {}
    for file in files:
        runs.setdefault(file.stem, []).append(file)
    return list(runs.values())


def _elsewhere(mine: Sequence[Path]) -> list[str]:
    """Other directories of the same run beside those that were read."""
    beside = sorted(mine[0].parent.parent.glob(f"*run-*/{glob.escape(mine[0].name)}"))
    read = {file.resolve() for file in mine}
    return [file.parent.name for file in beside if file.resolve() not in read]


def settings(path: Path) -> Mapping[str, Any]:
    """The trainer's settings that the one run at ``path`` was begun with, without reading what it logged; empty where
    there is no such run, or none to choose from."""
    files = _run_files(path)
    file = files[-1] if len(_by_id(files)) == 1 else _latest(files) if files else None
    config: dict[str, Any] = {}
    for record in _messages(file, Damage()) if file is not None else ():
        kind = record.WhichOneof("record_type")
        if kind == "history":
            break
        _take_settings(config, record, kind)
    config.pop("_wandb", None)
    return config


def _run_files(folder: Path) -> list[Path]:
    """The ``.wandb`` files of a run directory, of a ``wandb`` folder, or of a folder that has one; by date."""
    for pattern in ("*.wandb", "*run-*/*.wandb", "wandb/*run-*/*.wandb"):
        # latest-run is a link to one of the others.
        found = [
            file
            for file in sorted(folder.glob(pattern), key=_date)
            if file.is_file() and not file.is_symlink() and (file.parent == folder or not file.parent.is_symlink())
        ]
        if found:
            return found
    return []


def _latest(files: list[Path]) -> Path | None:
    """The file whose directory ``latest-run`` names."""
    link = files[0].parent.parent / "latest-run"
    if not link.is_symlink():
        return None
    target = link.parent / os.readlink(link)
    named = [file for file in files if file.parent == target or file.parent.name == target.name]
    return named[0] if len(named) == 1 else None


@dataclass(kw_only=True, slots=True)
class Damage:
    """What could not be read of a ``.wandb`` file."""

    torn_bytes: int = 0
    """Bytes of an unfinished record at the end."""
    records: int = 0


def log_records(file: BinaryIO, damage: Damage) -> Iterator[bytes]:
    """The records of a file in LevelDB's log format, after W&B's header of 7 bytes.

    Damaged records are counted and passed over. Raises ``ReadError`` where the header is another.
    """
    header = file.read(FILE_HEADER_BYTES)
    if len(header) < FILE_HEADER_BYTES or header[:4] != b":W&B" or header[4:6] != b"\xe1\xbe":
        raise ReadError(
            f"{file.name} does not begin like a W&B file (:W&B); it begins with {header!r}. Was the copy complete?"
        )
    block = header + file.read(BLOCK_BYTES - FILE_HEADER_BYTES)
    position, start = FILE_HEADER_BYTES, 0
    parts: list[bytes] = []
    size = 0
    checked: bool | None = None
    while True:
        if len(block) - position < 7:
            torn = len(block) - position if len(block) < BLOCK_BYTES else 0
            start += len(block)
            block, position = file.read(BLOCK_BYTES), 0
            if not block:
                damage.torn_bytes += torn + size
                return
            continue
        crc, length, kind = struct.unpack_from("<IHB", block, position)
        data = block[position + 7 : position + 7 + length]
        if kind == 0 and length == 0:  # the rest of a block that was set aside
            position = len(block)
            continue
        if len(data) < length and len(block) < BLOCK_BYTES:
            damage.torn_bytes += len(block) - position + size
            return
        right = kind in (1, 2, 3, 4) and len(data) == length
        matches = right and zlib.crc32(data, zlib.crc32(bytes([kind]))) == crc
        if checked is None:
            # Files of a version with another checksum are read without.
            checked = matches
        if not right or (checked and not matches):
            damage.records += 1
            parts, size = [], 0
            # Where the length is wrong too, records are found again in the next block at the latest.
            position += 7 + length
            continue
        position += 7 + length
        if kind in (1, 2):
            damage.records += bool(parts)
            parts, size = [data], length
        elif not parts:
            continue  # the rest of a record whose beginning was damaged
        elif size + length > MAX_RECORD_BYTES:
            damage.records += 1
            parts, size = [], 0
            continue
        else:
            parts.append(data)
            size += length
        if kind in (1, 4):
            yield b"".join(parts)
            parts, size = [], 0


def _proto() -> Any:
    try:
        from wandb.proto import wandb_internal_pb2
    except ImportError as error:
        raise MissingExtraError(
            f"Reading a .wandb file needs wandb's protobuf definitions ({error}). Type: pip install 'rlmon[wandb]'"
        ) from error
    return wandb_internal_pb2


def _messages(path: Path, damage: Damage) -> Iterator[Any]:
    kind = _proto().Record
    # Came with wandb; its own module does not name it.
    damaged: type[Exception] = importlib.import_module("google.protobuf.message").DecodeError
    try:
        with path.open("rb") as file:
            for data in log_records(file, damage):
                try:
                    yield kind.FromString(data)
                except damaged:
                    damage.records += 1
    except OSError as error:
        if isinstance(error, ReadError):
            raise
        raise ReadError(f"{path} cannot be read: {error.strerror or error}.") from error


def history_row(items: Iterable[Any]) -> tuple[dict[str, float], dict[str, dict[str, Any]]]:
    """Numbers and objects (tables, pictures) of one history record."""
    numbers: dict[str, float] = {}
    objects: dict[str, dict[str, Any]] = {}
    for item in items:
        nested = list(item.nested_key)
        key = item.key or (nested[0] if nested else "")
        if len(item.value_json) > 65_536:  # bins of a histogram and the like
            continue
        try:
            value = json.loads(item.value_json)
        except (ValueError, RecursionError):
            continue
        if not item.key and len(nested) > 1:
            objects.setdefault(key, {})["/".join(nested[1:])] = value
        else:
            take_value(key, value, numbers, objects)
    return numbers | numbers_inside(objects), objects


def take_value(key: str, value: Any, numbers: dict[str, float], objects: dict[str, dict[str, Any]]) -> None:
    """One value of a log call, where it is a number or an object; words and flags are passed over."""
    if isinstance(value, dict):
        objects.setdefault(key, {}).update(value)
    elif not isinstance(value, bool):
        number = number_of(value)
        if number is not None:
            numbers[key] = number


def numbers_inside(objects: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Those of objects that are only numbers under one name."""
    numbers = {}
    for key, value in objects.items():
        if "_type" not in value:
            for name, part in value.items():
                number = None if isinstance(part, bool) else number_of(part)
                if number is not None:
                    numbers[f"{key}.{name}"] = number
    return numbers


def take_call(
    history: History,
    numbers: Mapping[str, float],
    objects: Mapping[str, Mapping[str, Any]],
    counted: int,
    where: Callable[[str], tuple[str, int]],
) -> None:
    """One log call into the history: its numbers, and its tables, of whose path ``where`` says the place and the size
    in bytes. ``counted``: W&B's own step, where the numbers have none."""
    own = number_of(numbers.get("_step"))
    history.add(numbers, counted if own is None or not abs(own) < 2**53 else int(own))
    for key, value in objects.items():
        path = value.get("path")
        if value.get("_type") in ("table-file", "incremental-table-file") and isinstance(path, str):
            place, size = where(path)
            rows = value.get("nrows")
            incremental = value["_type"] == "incremental-table-file"
            history.add_table(key, place, size, rows if is_count(rows) else None, incremental=incremental)


@dataclass(frozen=True, slots=True)
class LoadFile:
    """Reads tables below a run's ``files`` directory."""

    files: Path

    def __call__(self, table: Logged) -> Cells:
        path = path_inside(self.files, table.place)
        if path is None:
            raise UnreadableTable("not in the run directory, or a link")
        if table.bytes > MAX_TABLE_BYTES:
            raise UnreadableTable(f"larger than {MAX_TABLE_BYTES >> 20} MiB")
        try:
            return parse_cells(path.read_bytes())
        except OSError as error:
            raise UnreadableTable(error.strerror or type(error).__name__) from error


def _peek(path: Path) -> Iterator[list[str]]:
    rows = 0
    for record in _messages(path, Damage()):
        if record.WhichOneof("record_type") == "history":
            yield [item.key or "/".join(item.nested_key) for item in record.history.item]
            rows += 1
            if rows == _PEEK_ROWS:
                return


def _in_order(files: Sequence[Path], damage: Damage) -> Iterator[tuple[Path, Any]]:
    for file in files:
        for record in _messages(file, damage):
            yield file, record


def _open_offline(files: Sequence[Path]) -> OpenedRun:
    """The run of one ``.wandb`` file, or of those of its attempts."""
    folder = files[0].parent
    load = LoadFile(folder / "files" if len(files) == 1 else folder.parent)
    history = History(step_key=step_key_of(keys for file in files for keys in _peek(file)))
    config: dict[str, Any] = {}
    run_id = files[0].stem.removeprefix("run-")
    damage = Damage()
    own_word = OwnWordInFile()
    for file, record in _in_order(files, damage):
        kind = record.WhichOneof("record_type")
        own_word.take(record, kind)
        if kind == "history":
            numbers, objects = history_row(record.history.item)
            take_call(history, numbers, objects, record.history.step.num, functools.partial(_stored, file, files, load))
            # Tables of an online run are logged by a thread, so that they can come after rows of later steps.
            if any(key != history.step_key and not key.startswith("_") for key in numbers):
                own_word.at(history.step)
        elif kind == "run":
            run_id = record.run.run_id or run_id
        _take_settings(config, record, kind)
    config.pop("_wandb", None)
    tables = plan(history.tables, load, config, reward_functions(history))
    scalars, evals, notes = history.series()
    if len(files) > 1:
        notes.insert(0, f"{len(files)} directories are attempts of the run {run_id!r} and were read in order of time")
    return OpenedRun(
        reader=NAME,
        run_id=run_id,
        path=folder if len(files) == 1 else folder.parent,
        shards=tables.shards,
        scalars=scalars,
        eval_scalars=evals,
        config=config,
        group_size=group_size(config),
        lacks=beside_curves(tables.lacks, scalars, evals),
        own_word=own_word.word(),
        notes=(*notes, *_notes(history, damage), *tables.notes),
    )


def _stored(file: Path, files: Sequence[Path], load: LoadFile, path: str) -> tuple[str, int]:
    """Where a table of an attempt is below all of them, and how large."""
    place = path if len(files) == 1 else f"{file.parent.name}/files/{path}"
    stored = path_inside(load.files, place)
    return place, 0 if stored is None else stored.stat().st_size


def _notes(history: History, damage: Damage) -> Iterator[str]:
    yield from note_of_steps(history)
    if damage.torn_bytes:
        yield f"the run's file ends in an unfinished record ({damage.torn_bytes} bytes): the run was killed or goes on"
    if damage.records:
        yield f"{damage.records} damaged records of the run's file were passed over"


def note_of_steps(history: History) -> Iterator[str]:
    """What to say where the trainer's own step was not logged."""
    if history.step_key is None:
        yield f"no key of the trainer's step was logged ({', '.join(STEP_KEYS[:4])}, ...): W&B's own _step was taken"


def _take_settings(config: dict[str, Any], record: Any, kind: str) -> None:
    if kind in ("config", "run"):
        _update(config, record.config if kind == "config" else record.run.config)


def _update(config: dict[str, Any], record: Any) -> None:
    """Takes a config record: whole values, or one value deep inside."""
    for item in record.update:
        path = [item.key] if item.key else list(item.nested_key)
        try:
            value = json.loads(item.value_json)
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict) and "value" in value and value.keys() <= {"value", "desc"}:
            value = value["value"]
        inner = config
        for name in path[:-1]:
            below = inner.setdefault(name, {})
            inner = below if isinstance(below, dict) else {}
        inner[path[-1]] = value
    for item in record.remove:
        config.pop(item.key or "/".join(item.nested_key), None)
