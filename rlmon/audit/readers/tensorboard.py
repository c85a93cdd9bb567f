"""TensorBoard event files: scalars by tag and step. No dependency: TFRecord frames and four protobuf messages.

An event file holds numbers only. Text summaries are passed over but for the trainer's settings, which transformers
writes as the text ``args``, and the verdict and findings of rlmon's own sink.
"""

from __future__ import annotations

import functools
import itertools
import json
import math
import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from rlmon.audit.aliases import Points
from rlmon.audit.readers.history import NOT_MEASURED, all_series, beside_curves, is_evaluation, went_back
from rlmon.audit.readers.own_word import MAX_REMARKS, OwnWordInFile, is_own_text
from rlmon.audit.readers.table_layout import group_size
from rlmon.audit.readers.tables import no_completions
from rlmon.audit.run import OpenedRun
from rlmon.errors import ReadError
from rlmon.printable import several

NAME = "tensorboard"
MAX_RECORD_BYTES = 64 << 20
MAX_SETTINGS_BYTES = 1 << 20
NO_TEXT = (
    "TensorBoard files hold no completions; with log_completions=True TRL keeps completions/*.parquet in its output "
    "folder, and RLMon(trainer) keeps its own log"
)

_FILE = "events.out.tfevents."
_ATTEMPT = re.compile(r"[A-Z][a-z]{2}\d{2}_\d{2}-\d{2}-\d{2}_")
"""How transformers names the folder of one start: month, day, time, host."""
_FLOATS: dict[int, tuple[str, int]] = {1: ("f", 5), 2: ("d", 6)}
"""TensorFlow's type of a tensor to its format and the field of its values."""
_SETTINGS_TAGS = ("args/text_summary", "args")


class _Damaged(Exception):
    """A message whose lengths do not fit."""


@dataclass(kw_only=True, slots=True)
class Damage:
    """What could not be read."""

    torn_files: int = 0
    records: int = 0


def recognises(path: Path) -> bool:
    """Whether ``path`` is an event file, a folder of them, or one with ``tensorboard/`` or ``runs/*/``."""
    return bool(_folders(path))


def open_run(path: Path) -> OpenedRun:
    """The run at ``path``: the newest of a folder, or the one that an event file belongs to.

    Raises ``ReadError`` where there is no event file, or folders of several runs.
    """
    folders = _folders(path)
    if not folders:
        raise ReadError(
            f"{str(path)!r} holds no TensorBoard files ({_FILE}*), nor do tensorboard/ and runs/*/ in it. Give the "
            "folder of one run."
        )
    if _of_runs(folders):
        names = ", ".join(repr(str(folder.relative_to(path))) for folder in folders[:20])
        raise ReadError(
            f"{str(path)!r} holds {len(folders)} TensorBoard runs: {names}. Give the folder of one, for example "
            f"{str(folders[-1])!r}."
        )
    logs = [_log(file) for file in _by_time(folders)]
    settings = {log.attempt.name: log.settings for log in logs}
    texts = {log.attempt.name: log.own_texts for log in logs}
    runs = runs_of([log.attempt for log in logs])
    run = next((run for run in runs if any(attempt.name == str(path) for attempt in run)), runs[-1])
    damage = Damage()
    for log in logs:
        damage.torn_files += log.damage.torn_files
        damage.records += log.damage.records
    scalars, evals = joined(run)
    if not scalars and not evals and damage.torn_files + damage.records:
        raise ReadError(f"{str(path)!r} has no scalar that can be read: {_words(damage)}. Was the copy complete?")
    config = {key: value for attempt in run for key, value in settings[attempt.name].items()}
    by_key, evals_by_key = all_series(scalars), all_series(evals)
    own_word = OwnWordInFile()
    for attempt in run:
        steps = steps_of([attempt])
        for step in steps[:1]:
            own_word.at(step)
        for text in texts[attempt.name]:
            own_word.take_text(*text)
        for step in steps[-1:]:
            own_word.at(step)
    notes = ["TensorBoard keeps numbers with 7 digits (float32)"]
    if len(run) > 1:
        notes.append(f"{len(run)} event files are attempts of one run and were read in order of time")
    notes.extend(went_back(scalars))
    if len(runs) > 1:
        notes.append(_set_aside(runs, run))
    if damage.torn_files or damage.records:
        notes.append(_words(damage))
    return OpenedRun(
        reader=NAME,
        run_id=(path.parent if path.is_file() else path).resolve().name,
        path=path,
        shards=(),
        scalars=by_key,
        eval_scalars=evals_by_key,
        config=config,
        group_size=group_size(config),
        lacks=beside_curves(no_completions(NO_TEXT), by_key, evals_by_key),
        own_word=own_word.word(),
        notes=tuple(notes),
    )


def runs_at(path: Path) -> list[Path]:
    """Where the runs lie, in order of time, where ``path`` is a folder of several; else none. Each can be opened."""
    folders = _folders(path) if path.is_dir() else []
    if _of_runs(folders):
        return folders
    runs = runs_of([_log(file).attempt for file in _by_time(folders)])
    return [Path(run[-1].name) for run in runs] if len(runs) > 1 else []


def only_below(path: Path) -> bool:
    """Whether event files lie only in folders of ``path`` that are runs of their own by their names."""
    folders = _folders(path)
    return all(folder.parent == path and folder.name not in ("tensorboard", "runs") for folder in folders) and (
        not any(_ATTEMPT.match(folder.name) for folder in folders)
    )


def _of_runs(folders: Sequence[Path]) -> bool:
    """Whether the folders are of several runs by their names: those of one output folder are named by the time."""
    return len(folders) > 1 and not all(_ATTEMPT.match(folder.name) for folder in folders)


def _set_aside(runs: Sequence[Sequence[Attempt]], read: Sequence[Attempt]) -> str:
    """Which runs of a folder were not read, and how to name them."""

    def shown(run: Sequence[Attempt]) -> str:
        steps = steps_of(run)
        span = f", {steps[0]} to {steps[-1]}" if steps else ""
        return f"{len(steps)} steps{span} in {Path(run[-1].name).name!r}"

    others = [shown(run) for run in runs if run is not read]
    return (
        f"{len(runs)} separate runs lie here: the one of {shown(read)} was read; set aside: "
        f"{several(others, 5, '; ')}. Name an event file to read its run"
    )


def _words(damage: Damage) -> str:
    return f"{damage.torn_files} event files end in a torn or damaged record, {damage.records} records were passed over"


def _folders(path: Path) -> list[Path]:
    if path.is_file():
        return [path.parent] if path.name.startswith(_FILE) else []
    if not path.is_dir():
        return []
    for pattern in (".", "tensorboard", "runs/*", "tensorboard/*", "*"):
        places = [path] if pattern == "." else sorted(path.glob(pattern))
        # Links may lead out of the run.
        found = [
            place
            for place in places
            if place.is_dir() and (place == path or not place.is_symlink()) and _event_files(place)
        ]
        if found:
            return found
    return []


def _by_time(folders: Sequence[Path]) -> list[Path]:
    return sorted((file for folder in folders for file in _event_files(folder)), key=_begun)


def _event_files(folder: Path) -> list[Path]:
    return [file for file in folder.glob(f"{_FILE}*") if file.is_file() and not file.is_symlink()]


def _begun(file: Path) -> tuple[int, str]:
    """When a file was begun, by its name: ``events.out.tfevents.SECONDS.host.process.number``."""
    seconds = file.name[len(_FILE) :].split(".")[0]
    return (int(seconds) if seconds.isascii() and seconds.isdecimal() and len(seconds) < 16 else 0, file.name)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Log:
    """One event file as it was read."""

    attempt: Attempt
    settings: Mapping[str, Any]
    own_texts: Sequence[tuple[str, int, bytes]]
    """Tag, step and text of what rlmon's sink said."""
    damage: Damage


def _log(file: Path) -> _Log:
    try:
        about = file.stat()
    except OSError as error:
        raise ReadError(f"{str(file)!r} cannot be read: {error.strerror or error}.") from error
    return _read(file, about.st_size, about.st_mtime_ns)


@functools.lru_cache(maxsize=64)
def _read(file: Path, _size: int, _changed: int) -> _Log:
    """A file's scalars; kept, since every run of a folder asks for the others."""
    damage = Damage()
    scalars: dict[str, list[tuple[int, float]]] = {}
    evals: dict[str, list[tuple[int, float]]] = {}
    config: dict[str, Any] = {}
    texts: list[tuple[str, int, bytes]] = []
    times: list[float] = []
    for tag, step, seconds, value in _values(file, damage):
        if isinstance(value, bytes):
            if tag in _SETTINGS_TAGS:
                config.update(_settings(value))
            elif len(texts) < MAX_REMARKS:
                texts.append((tag, step, value))
            continue
        name = tag.removeprefix("train/")
        if name in NOT_MEASURED:
            continue
        times = [min(times[0], seconds), max(times[1], seconds)] if times else [seconds, seconds]
        if is_evaluation(tag):
            evals.setdefault(tag.removeprefix("eval/").removeprefix("eval_"), []).append((step, value))
        else:
            scalars.setdefault(name, []).append((step, value))
    began, ended = times or (0.0, 0.0)
    attempt = Attempt(name=str(file), scalars=scalars, evals=evals, began_seconds=began, ended_seconds=ended)
    return _Log(attempt=attempt, settings=config, own_texts=texts, damage=damage)


def _values(path: Path, damage: Damage) -> Iterator[tuple[str, int, float, float | bytes]]:
    """(tag, step, time in seconds, number) of every scalar in a file; bytes of the texts that are read."""
    try:
        with path.open("rb") as file:
            for record in _records(file, damage):
                try:
                    yield from _event(record)
                except (_Damaged, IndexError, struct.error):
                    damage.records += 1
    except OSError as error:
        raise ReadError(f"{str(path)!r} cannot be read: {error.strerror or error}.") from error


def _records(file: BinaryIO, damage: Damage) -> Iterator[bytes]:
    """TFRecord frames: length (8), its checksum (4), data, checksum (4). Ends at the first that is not whole."""
    while head := file.read(12):
        length = int.from_bytes(head[:8], "little")
        if len(head) < 12 or length > MAX_RECORD_BYTES:
            damage.torn_files += 1
            return
        data = file.read(length + 4)
        if len(data) < length + 4:
            damage.torn_files += 1
            return
        yield data[:length]


def _event(data: bytes) -> Iterator[tuple[str, int, float, float | bytes]]:
    """What one Event says: time (1), step (2), and summary (5) with its values (1)."""
    seconds, step, summaries = 0.0, 0, []
    for number, value in _fields(data):
        if number == 1 and isinstance(value, bytes) and len(value) == 8:
            seconds = struct.unpack("<d", value)[0]
            seconds = seconds if math.isfinite(seconds) else 0.0
        elif number == 2 and isinstance(value, int):
            step = value - (1 << 64) if value >> 63 else value
        elif number == 5 and isinstance(value, bytes):
            summaries.append(value)
    for summary in summaries:
        for number, value in _fields(summary):
            if number == 1 and isinstance(value, bytes):
                found = _value(value)
                if found is not None:
                    yield found[0], step, seconds, found[1]


def _value(data: bytes) -> tuple[str, float | bytes] | None:
    """Tag (1) with simple_value (2) or tensor (8); ``None`` for pictures, histograms and text."""
    tag, found = "", None
    for number, value in _fields(data):
        if number == 1 and isinstance(value, bytes):
            tag = value.decode("utf-8", "replace")
        elif number == 2 and isinstance(value, bytes) and len(value) == 4:
            found = struct.unpack("<f", value)[0]
        elif number == 8 and isinstance(value, bytes):
            found = _tensor(value, text=tag in _SETTINGS_TAGS or is_own_text(tag))
    return None if found is None else (tag, found)


def _tensor(data: bytes, text: bool) -> float | bytes | None:
    """The number in a tensor of one: type (1), raw content (4), or values (5 to 10)."""
    kind, raw = 0, b""
    values: dict[int, int | bytes] = {}
    for number, value in _fields(data):
        if number == 1 and isinstance(value, int):
            kind = value
        elif number == 4 and isinstance(value, bytes):
            raw = value
        elif 5 <= number <= 10:
            values.setdefault(number, value)
    if text and kind == 7:
        settings = values.get(8)
        return settings if isinstance(settings, bytes) else None
    if kind in _FLOATS:
        form, place = _FLOATS[kind]
        packed = raw or values.get(place, b"")
        size = struct.calcsize(form)
        if isinstance(packed, bytes) and len(packed) == size:
            number_found: float = struct.unpack(f"<{form}", packed)[0]
            return number_found
        return None
    if kind in (3, 9):  # int32, int64
        size = 4 if kind == 3 else 8
        if len(raw) == size:
            return float(int.from_bytes(raw, "little", signed=True))
        whole = values.get(7 if kind == 3 else 10)
        if isinstance(whole, bytes) and whole:
            whole = _varint(whole, 0)[0]
        if isinstance(whole, int):
            return float(whole - (1 << 64) if whole >> 63 else whole)
    return None


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Field numbers and values of a message: integers of varints, bytes of everything else."""
    position, end = 0, len(data)
    while position < end:
        key, position = _varint(data, position)
        kind = key & 7
        if kind == 0:
            value, position = _varint(data, position)
            yield key >> 3, value
            continue
        if kind == 2:
            length, position = _varint(data, position)
        elif kind == 1:
            length = 8
        elif kind == 5:
            length = 4
        else:
            raise _Damaged
        if length > end - position:
            raise _Damaged
        yield key >> 3, data[position : position + length]
        position += length


def _varint(data: bytes, position: int) -> tuple[int, int]:
    """A variable-length integer and the position behind it."""
    value = data[position]
    position += 1
    if value < 128:
        return value, position
    value &= 127
    for shift in range(7, 70, 7):
        byte = data[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value & ((1 << 64) - 1), position
    raise _Damaged


def _settings(text: bytes) -> dict[str, Any]:
    """The trainer's settings out of the text that transformers writes."""
    if len(text) > MAX_SETTINGS_BYTES:
        return {}
    try:
        settings = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return settings if isinstance(settings, dict) else {}


TOLERANCE_SECONDS = 1.0
"""Clocks of two processes on one machine, and what was written while one gave way to the other."""


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One log as it was written."""

    name: str
    scalars: Mapping[str, Points]
    """Curves of training."""
    evals: Mapping[str, Points]
    began_seconds: float
    """Time of the first and of the last entry; 0 where it was not written."""
    ended_seconds: float


def runs_of(attempts: Sequence[Attempt]) -> list[list[Attempt]]:
    """The attempts of each run, in the order in which they came; the runs in order of their first attempt.

    A run that was resumed writes a second log beside the first, and so does the next experiment with the same settings:
    their steps and their clocks tell them apart.
    """
    runs: list[list[Attempt]] = []
    for attempt in attempts:
        run = next((run for run in reversed(runs) if _goes_on(run, attempt)), None)
        if run is None:
            runs.append([attempt])
        else:
            run.append(attempt)
    return runs


def joined(run: Sequence[Attempt]) -> tuple[dict[str, list[tuple[int, float]]], dict[str, list[tuple[int, float]]]]:
    """All points of a run by key, in the order in which they were logged: of training and of evaluations."""
    train: dict[str, list[tuple[int, float]]] = {}
    held_out: dict[str, list[tuple[int, float]]] = {}
    for attempt in run:
        for points, into in ((attempt.scalars, train), (attempt.evals, held_out)):
            for key, values in points.items():
                into.setdefault(key, []).extend(values)
    return train, held_out


def steps_of(run: Sequence[Attempt]) -> list[int]:
    """Steps that a run logged, in order."""
    logged = [attempt.scalars or attempt.evals for attempt in run]
    return sorted({step for scalars in logged for points in scalars.values() for step, _ in points})


def _goes_on(run: Sequence[Attempt], attempt: Attempt) -> bool:
    """Whether an attempt continues a run: it logs something else, or the same from a later step on once the run had
    ended. One that begins anew, or while the run went on, is a run of its own."""
    here, there = joined(run)
    shared = [key for key in attempt.scalars if key in here] or [key for key in attempt.evals if key in there]
    if not shared:
        return True
    if attempt.began_seconds < max(before.ended_seconds for before in run) - TOLERANCE_SECONDS:
        return False
    first = min(step for key in shared for step, _ in {**here, **there}[key])
    mine = sorted({step for key in shared for step, _ in {**attempt.evals, **attempt.scalars}[key]})
    stride = min((b - a for a, b in itertools.pairwise(mine)), default=1)
    return mine[0] > max(first, stride)
