"""Files of curves: what a trainer logged step by step and somebody kept, recognised by what is in them.

A bare ``log_history`` or a trainer state under any name, a line of metrics a step, a table of a tracker's history, a
console log. A folder is read by the file that says most; parts of one history are read together. Behind ``::`` stands
one run of a table that holds several.
"""

from __future__ import annotations

import bisect
import dataclasses
import itertools
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import rlmon.audit.aliases as aliases
import rlmon.audit.readers.columns as columns
import rlmon.audit.readers.log_files as log_files
from rlmon.audit.readers.columns import STEP_NAMED
from rlmon.audit.readers.console_log import BAR
from rlmon.audit.readers.history import STEP_KEYS, History, beside_curves
from rlmon.audit.readers.log_files import LogFile
from rlmon.audit.readers.table_layout import number_of
from rlmon.audit.readers.tables import no_completions
from rlmon.audit.run import OpenedRun
from rlmon.errors import ReadError
from rlmon.printable import several

NAME = "curves"
NO_TEXT = (
    "this file holds curves and no completions; with log_completions=True TRL keeps completions/*.parquet in its "
    "output folder, and RLMon(trainer) keeps its own log"
)
NO_TEXT_IN_HISTORY = (
    "a downloaded history holds numbers only; audit the offline run directory (wandb/offline-run-*), or download the "
    "run's artifacts of type run_table, or keep TRL's completions/*.parquet (log_completions=True)"
)
STEPS = (*STEP_KEYS, "global_step/max_steps", "current_steps", "Step", "iteration", "iter", "update", BAR, "_step")
"""What counts steps, by descending claim."""
MAX_FILES = 256
TEXT_CHARACTERS = 40
"""Mean length from which what a column holds is writing."""
_PEEKED = 400
_ROWS = "row"
_CHECKPOINT = re.compile(r"checkpoint-(\d{1,15})", re.ASCII)
_ASIDE = re.compile(r"(.+?)(?:\.(\d{1,4})|[.-](\d{4}-?\d{2}-?\d{2}(?:[_T-]?[\d-]{2,8})?))(?:\.(?:gz|zst))?", re.ASCII)
"""Name under which a log was set aside: by number or by date."""
_SHARE = re.compile(r"\s*(\d{1,15})\s*/\s*\d{1,15}\s*", re.ASCII)


def recognises(path: Path) -> bool:
    """Whether ``path`` is a file of curves (``FILE`` or ``FILE::RUN``), or a folder that has one."""
    return bool(files_in(columns.place_and_run(path)[0]))


def open_run(path: Path) -> OpenedRun:
    """The run in a file of curves, or in the file of a folder that says most.

    Raises ``ReadError`` where there is none, where a table holds several runs and none is named, and for rows that
    are no curves.
    """
    place, wanted = columns.place_and_run(path)
    found = files_in(place)
    if not found:
        raise ReadError(
            f"{str(place)!r} holds no curves: no JSON, JSON lines, CSV, Parquet or console log with a key that a "
            "trainer logs (reward, loss, entropy, completions/mean_length, actor/entropy, ...)."
        )
    chosen = _together(found)
    damage = log_files.Damage()
    runs, texts = _runs(chosen, damage, place)
    name = _wanted(runs, wanted, place)
    run = runs[name]
    encoded = next(filter(columns.TOKEN_IDS.search, texts), None)
    _refuse_rows(run.history, place, encoded)
    written = [key for key, length in texts.items() if length >= TEXT_CHARACTERS]
    if written and run.step_key == _ROWS:
        raise ReadError(
            f"{str(place)!r} has texts under {', '.join(map(repr, written[:4]))} and nothing that counts steps: these "
            f"look like rows of completions. Name their columns: --map completion={written[0]},reward=...,step=..."
        )
    scalars, evals, notes = run.history.series()
    why = NO_TEXT_IN_HISTORY if run.of_tracker else NO_TEXT if encoded is None else columns.decode_first(encoded)
    rest = [file.path.name for file in found if file not in chosen]
    return OpenedRun(
        reader=NAME,
        run_id=name or (place if len(chosen) > 1 or place.is_file() else chosen[0].path).resolve().stem,
        path=place,
        shards=(),
        scalars=scalars,
        eval_scalars=evals,
        lacks=beside_curves(no_completions(why), scalars, evals),
        notes=[*_notes(chosen, place, run.step_key, damage), *notes, *_others(rest), *_unread(written)],
        passed_over=sorted(texts),
    )


def runs_at(path: Path) -> list[str]:
    """Names of the runs that a table of W&B's web page or a file with a column of runs holds, where they are several;
    else none."""
    found = files_in(path) if path.is_file() else []
    several = bool(found) and (_exported(found[0]) or bool(found[0].run_column))
    runs = _runs(found, log_files.Damage(), path)[0] if several else {}
    return list(runs) if len(runs) > 1 else []


def logs_at(folder: Path) -> list[Path]:
    """Files of a folder that are runs of their own, in order of name: logs of one kind; none where it has one run."""
    found = files_in(folder)
    mine = [file.path for file in found if file.kind == found[0].kind]
    return [] if len(mine) < 2 or len(_together(found)) > 1 else sorted(mine)


def files_in(place: Path) -> list[LogFile]:
    """The files of curves at ``place``, those that say most first; of checkpoints the newest only."""
    if place.is_file():
        paths = [place]
    elif place.is_dir():
        paths = [Path(entry.path) for entry in columns.files_of(place, place)[:MAX_FILES]]
        steps = [(int(match[1]), path) for path in _folders(place) if (match := _CHECKPOINT.fullmatch(path.name))]
        if steps:
            paths += [Path(entry.path) for entry in columns.files_of(place, max(steps)[1])[:MAX_FILES]]
    else:
        return []
    found = [file for path in paths if (file := log_files.recognised(path)) is not None]
    return sorted(found, key=lambda file: (-_says(file), -file.path.stat().st_size, file.path.name))


def _folders(place: Path) -> list[Path]:
    try:
        return [path for path in place.iterdir() if path.is_dir()]
    except OSError:
        return []


def _says(file: LogFile) -> int:
    return len(set(aliases.taken({log_files.run_and_key(key)[1]: ((0, 0.0),) for key in file.known}).values()))


def _together(found: Sequence[LogFile]) -> list[LogFile]:
    """The file that says most, with the other parts of the same history: a tracker saves one curve a table, and a long
    history in several files of Parquet, and a log that grew is set aside under a number."""
    best = found[0]
    if best.kind == "parquet" or _exported(best):
        mine = [file for file in found if file.kind == best.kind and _exported(file) == _exported(best)]
        return sorted(mine, key=lambda file: (len(file.path.name), file.path.name))
    return _rotated(found) or [best]


def _rotated(found: Sequence[LogFile]) -> list[LogFile]:
    """The parts of a log that was rotated while the run went on (``train.log.2.gz``, ``train.log.1``, ``train.log``),
    the oldest first; none where there are no such names, or where each begins a run of its own."""
    aside = {file.path: match for file in found if (match := _ASIDE.fullmatch(file.path.name)) is not None}
    name = found[0].path.name
    name = aside[found[0].path][1] if found[0].path in aside else name
    last = [file for file in found if file.path.name == name and file.kind == found[0].kind]
    before = [
        file for file in found if file.path in aside and aside[file.path][1] == name and file.kind == found[0].kind
    ]
    if not (last and before):
        return []
    # The number grows with age, the date with time.
    before.sort(key=lambda file: (-int(aside[file.path][2] or 0), aside[file.path][3] or ""))
    parts = [*before, *last]
    begins: list[tuple[float, float]] = []
    for part in parts:
        try:
            runs, _ = _runs([part], log_files.Damage(), part.path)
        except ReadError:
            return []
        begins += [run.began() for run in runs.values()]
    counted = all(step > 0 for step, _ in begins)
    firsts = [step if counted else epoch for step, epoch in begins]
    return parts if all(a < b or not (a or b) for a, b in itertools.pairwise(firsts)) else []


def _exported(file: LogFile) -> bool:
    return file.kind == "csv" and any(log_files.run_and_key(key)[0] for key in file.columns)


@dataclass(slots=True)
class _Run:
    """The log calls of one run, folded as they come; the first are kept until it is known what counts the steps."""

    history: History = field(default_factory=lambda: History(step_key=None))
    step_key: str = ""
    of_tracker: bool = False
    first: list[dict[str, float]] = field(default_factory=list)
    epochs: list[float] = field(default_factory=list)

    def add(self, call: dict[str, float]) -> None:
        if self.step_key:
            self._fold(call)
            return
        self.first.append(call)
        if len(self.first) == _PEEKED:
            self.decide()

    def decide(self) -> None:
        """Takes the first calls by what counts their steps."""
        if self.step_key:
            return
        self.step_key = _step_key(self.first)
        self.of_tracker = any(key.startswith(("_timestamp", "_runtime")) for call in self.first for key in call)
        self.history.step_key = None if self.step_key == _ROWS else self.step_key
        for call in self.first:
            self._fold(call)
        self.first = []

    def began(self) -> tuple[float, float]:
        """First step (0: nothing counts steps) and first epoch (0: none was logged)."""
        steps = [points[0][0] for points in self.history.scalars.values()] if self.step_key != _ROWS else []
        return float(min(steps, default=0)), self.epochs[0] if self.epochs else 0.0

    def _fold(self, call: dict[str, float]) -> None:
        numbers = {key: value for key, value in call.items() if key not in STEPS or key == self.step_key}
        epochs = self.epochs
        if any(aliases.says_something(key) and not key.startswith("eval") for key in numbers):
            epoch = call.get("epoch", epochs[-1] if epochs else 0.0)
            if epochs and epoch < epochs[-1]:
                # A restart: where nothing counts the steps, the epoch says from where.
                del epochs[bisect.bisect_left(epochs, epoch) :]
            epochs.append(epoch)
        self.history.add(numbers, max(len(epochs), 1))


def _runs(files: Sequence[LogFile], damage: log_files.Damage, place: Path) -> tuple[dict[str, _Run], dict[str, float]]:
    """The runs by name (empty: the file names none), and the mean length of what keys hold that are no numbers."""
    runs: dict[str, _Run] = {}
    texts: dict[str, tuple[int, int]] = {}
    numeric: set[str] = set()
    for file in files:
        last = ""
        for call in log_files.log_calls(file, damage):
            shared: dict[str, float] = {}
            own: dict[str, dict[str, float]] = {}
            told = call.get(file.run_column)
            # A call that names no run goes on with the one before it.
            last = last if told in (None, "") or isinstance(told, (dict, list)) else str(told)
            for column, value in call.items():
                run, key = log_files.run_and_key(column)
                number = _step(value) if key in STEPS else _number(value)
                if column == file.run_column:
                    continue
                if number is None:
                    if value not in (None, "", []):
                        count, length = texts.get(key, (0, 0))
                        texts[key] = count + 1, length + (len(value) if isinstance(value, str) else 0)
                elif key:
                    numeric.add(key)
                    (own.setdefault(run, {}) if run else shared)[key] = number
            for run, numbers in (own or {last: {}}).items():
                runs.setdefault(run, _Run()).add({**shared, **numbers})
    if not runs:
        raise ReadError(f"{str(place)!r} cannot be read: {damage.torn or 'it has no log call'}.")
    for found in runs.values():
        found.decide()
    if len(runs) > 1 and "" in runs and not any(map(aliases.says_something, runs[""].history.scalars)):
        del runs[""]  # settings and the like before the first run is named
    if _go_on(runs) and any(file.run_column for file in files):
        # Attempts under names of their own, or names of rows: what never shares a step with another is one run.
        damage.lines = 0
        return _runs([dataclasses.replace(file, run_column="") for file in files], damage, place)
    return runs, {key: length / count for key, (count, length) in texts.items() if key not in numeric}


def _go_on(runs: Mapping[str, _Run]) -> bool:
    """Whether there are several runs, each of which begins behind the end of the one before."""
    steps = [[step for points in run.history.scalars.values() for step, _ in points] for run in runs.values()]
    ends = [(min(run), max(run)) for run in steps if run]
    return len(ends) > 1 and all(a[1] < b[0] for a, b in itertools.pairwise(ends))


def _step(value: Any) -> float | None:
    """A step, also as the last number of ``step_7``."""
    named = STEP_NAMED.fullmatch(value) if isinstance(value, str) else None
    return float(named[1]) if named is not None else _number(value)


def _number(value: Any) -> float | None:
    """A number, also as text, and of ``3/100`` the first."""
    if isinstance(value, bool):
        return None
    if not isinstance(value, str):
        return number_of(value)
    if len(value) > 64:
        return None
    try:
        return float(value)
    except ValueError:
        share = _SHARE.fullmatch(value)
        return float(share[1]) if share else None


def _wanted(runs: Mapping[str, _Run], wanted: str, place: Path) -> str:
    if wanted in runs:
        return wanted
    listed = ", ".join(repr(name) for name in list(runs)[:20])
    if wanted:
        raise ReadError(f"{str(place)!r} has no run {wanted!r}; it has {listed}.")
    if len(runs) > 1:
        raise ReadError(f"{str(place)!r} holds {len(runs)} runs: {listed}. Type {f'{place}::{list(runs)[-1]}'!r}.")
    return next(iter(runs))


def _step_key(calls: Sequence[Mapping[str, float]]) -> str:
    """What counts the steps in most of the calls that have a curve; where nothing does, the rows."""
    told = [call for call in calls if any(map(aliases.says_something, call))] or calls
    for key in STEPS:
        values = [call[key] for call in told if key in call]
        if 2 * len(values) < max(1, len(told)) or (len(values) > 1 and len(set(values)) == 1):
            continue
        # A bar is drawn when there is time to; one that lags would put several calls into one step.
        lags = sum(a == b for a, b in itertools.pairwise(values)) > 0.2 * len(values)
        if key == BAR and (len(values) < len(told) or lags):
            continue
        return key
    return _ROWS


def _refuse_rows(history: History, place: Path, encoded: str | None) -> None:
    """Raises ``ReadError`` where most steps have several values of every curve: those are rows of completions, or of
    several runs. ``encoded``: column of token ids."""
    known = [points for key, points in history.scalars.items() if aliases.says_something(key) and len(points) >= 4]
    if not known:
        if not (history.scalars or history.eval_scalars):
            raise ReadError(f"{str(place)!r} has no number under a key that a trainer logs.")
        return
    points = max(known, key=len)
    again = sum(a[0] == b[0] for a, b in itertools.pairwise(points))
    # Two runs that take turns give every step two values; ranks that say the same give it the same.
    turns = max(
        sum(a[0] == b[0] and a[1] != b[1] for a, b in itertools.pairwise(curve)) / len(curve) for curve in known
    )
    if again > 0.5 * len(points) or turns > 0.4:
        if encoded is not None:
            raise ReadError(f"{str(place)!r} has rows without text: {columns.decode_first(encoded)}.")
        most = Counter(step for step, _ in points).most_common(1)[0][1]
        raise ReadError(
            f"{str(place)!r} has up to {most} values of a curve in one step, as rows of completions do, or several "
            "runs in one file. For rows, name their columns: --map completion=...,reward=...,step=...; for runs, add a "
            "key run_name to each line, or give each a file of its own."
        )


def _notes(chosen: Sequence[LogFile], place: Path, step_key: str, damage: log_files.Damage) -> Iterator[str]:
    names = [file.path.name for file in chosen]
    what = {"json": "JSON", "lines": "JSON lines", "csv": "CSV", "parquet": "Parquet", "console": "a console log"}
    if place.is_dir():
        more = f" and {len(names) - 1} more parts" if len(names) > 1 else ""
        yield f"curves were read from {names[0]!r}{more} ({what[chosen[0].kind]})"
    if step_key == _ROWS:
        yield "nothing counts the steps: a row is taken as a step, from 1 on"
    elif step_key == BAR:
        yield "no key counts the steps: the progress bar's are taken"
    else:
        yield f"steps are those of {step_key!r}"
    if damage.lines:
        yield f"{damage.lines} damaged lines were passed over"
    if damage.torn:
        yield f"not read to the end: {damage.torn}"


def _unread(texts: Sequence[str]) -> Iterator[str]:
    if texts:
        yield f"texts under {', '.join(map(repr, texts[:4]))} were not read; --map completion={texts[0]},... reads them"


def _others(names: Sequence[str]) -> Iterator[str]:
    if names:
        yield f"not read, though they hold curves too: {several([*map(repr, names)], 8)}; name the file to read it"
