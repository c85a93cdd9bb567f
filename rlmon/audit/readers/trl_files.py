"""TRL's files: rows of completions, each once though TRL writes them again and again (``readers.trl`` says how), and
the trainer's state."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

import rlmon.audit.readers.columns as columns
import rlmon.audit.readers.shapes as shapes
from rlmon.audit.readers.parsing import loads
from rlmon.audit.run import RowBatch
from rlmon.errors import ReadError

KNOWN_TEXTS = ("prompt", "completion")


@dataclass(frozen=True, kw_only=True, slots=True)
class File:
    """One file of completions and what the log says of its step."""

    path: str
    name: str
    step: int
    bytes: int
    fresh: bool | None
    """Whether a generation was scored since the log before; ``None``: not logged."""
    evaluated: bool
    """Whether an evaluation wrote this file last."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """What is the same for all files of a run."""

    weights: Mapping[str, float]
    """Reward function to its weight; the names are those of the reward columns."""
    source: str | None
    group_size: int | None
    eval_rows: int | None
    """Rows of one evaluation, at most those of a file; ``None``: the whole file is taken as the evaluation's."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TRLShard:
    """Some consecutive files, and the one before them, to pass over what it holds already."""

    files: tuple[File, ...]
    before: File | None
    layout: Layout

    @property
    def bytes(self) -> int:
        return sum(file.bytes for file in self.files)

    def read(self) -> Iterator[RowBatch]:
        previous = read_file(self.before, self.layout)[0] if self.before is not None else None
        pending: list[tuple[File, pa.Table, int]] = []
        unreadable: dict[str, str] = {}
        duplicates = 0
        for file in self.files:
            current, problem = read_file(file, self.layout)
            if current is None:
                unreadable[file.name] = problem
                previous = None
                continue
            repeated = _repeated(previous, current, file, self.layout)
            duplicates += repeated
            new = current.slice(repeated)
            of_eval = 0
            if file.evaluated:
                of_eval = len(new) if self.layout.eval_rows is None else min(len(new), self.layout.eval_rows)
            if len(new):
                if pending and pending[-1][1].schema != new.schema:
                    yield _batch(pending, self.layout)
                    pending = []
                pending.append((file, new, of_eval))
            previous = current
        if pending:
            yield _batch(pending, self.layout)
        if duplicates or unreadable:
            empty = columns.table({"step": pa.array([], pa.int64()), "split": pa.array([], pa.string())})
            yield RowBatch(rows=empty, duplicates=duplicates, damaged=0, unreadable=unreadable)


def read_file(file: File | None, layout: Layout) -> tuple[pa.Table | None, str]:
    """The file's columns that are used; else ``None`` and why not."""
    if file is None:
        return None, ""
    wanted = ["prompt", "completion", "advantage", *layout.weights]
    if layout.source is not None:
        wanted.append(layout.source)
    try:
        table = columns.read_parquet(Path(file.path), wanted)
        if len(set(table.column_names)) < max(1, len(table.column_names)):
            raise ReadError(f"needs each of {', '.join(wanted[:2])}, ... at most once, has {table.column_names!r}")
        return table, ""
    except columns.UNREADABLE as problem:
        return None, f"{type(problem).__name__}: {str(problem)[:200]}"


def _repeated(previous: pa.Table | None, current: pa.Table, file: File, layout: Layout) -> int:
    """How many rows at the beginning of the file the file before it ended with.

    A training step appends a whole generation or nothing; only an evaluation leaves a part of what was there. Where no
    log says what happened, equal rows tell only where sampling again would have shown (``shapes.could_differ``).
    """
    if previous is None or file.fresh or previous.schema != current.schema or not len(current):
        return 0
    known = file.fresh is not None
    if previous.equals(current):
        return len(current) if known or _could_differ(current) else 0
    if not file.evaluated and file.fresh is not None and len(previous) == len(current):
        return 0
    size = layout.group_size or 2
    codes = [_codes(previous, current, name) for name in current.column_names]
    if not codes:
        return 0
    old = np.stack([pair[0] for pair in codes], axis=1)
    new = np.stack([pair[1] for pair in codes], axis=1)
    for overlap in range(min(len(previous), len(current)), size - 1, -1):
        start = len(old) - overlap
        if (old[start] == new[0]).all() and (old[start:] == new[:overlap]).all():
            return overlap if known or _could_differ(current.slice(0, overlap)) else 0
    return 0


def _could_differ(rows: pa.Table) -> bool:
    texts = {name: columns.text_column(rows[name]).to_pylist() for name in rows.column_names if name in KNOWN_TEXTS}
    return shapes.could_differ({"completion": [], **texts})


def _codes(previous: pa.Table, current: pa.Table, name: str) -> tuple[Any, Any]:
    """Numbers of the values of a column, equal for equal values in both tables."""
    both = [previous[name], current[name]]
    if pa.types.is_nested(both[0].type):
        both = [columns.text_column(column) for column in both]
    else:
        both = [columns.flat(column) for column in both]
    joined = pa.concat_arrays(both).dictionary_encode("encode")
    numbers = joined.indices.to_numpy(zero_copy_only=False)
    return numbers[: len(previous)], numbers[len(previous) :]


def _batch(pending: Sequence[tuple[File, pa.Table, int]], layout: Layout) -> RowBatch:
    """Rows of several files of one schema, made together."""
    raw = pa.concat_tables([rows for _, rows, _ in pending])
    count = len(raw)
    lengths = np.array([len(rows) for _, rows, _ in pending])
    step = np.repeat(np.array([file.step for file, _, _ in pending], np.int64), lengths)
    of_eval = np.concatenate([np.arange(len(rows)) >= len(rows) - held for _, rows, held in pending])
    have = set(raw.column_names)
    prompt_column = columns.flat(raw["prompt"]) if "prompt" in have else pa.nulls(count, pa.string())
    prompt = columns.text_column(prompt_column)
    rewards = {name: columns.number_column(raw[name]) for name in layout.weights if name in have}
    made = {
        "step": pa.array(step),
        "split": pc.if_else(pa.array(of_eval), "eval", "train"),
        "prompt": prompt,
        "completion": columns.text_column(raw["completion"], completion=True) if "completion" in have else None,
        "prompt_id": columns.conversation_ids(prompt_column, prompt),
        "source": columns.label_column(raw[layout.source]) if layout.source in have else None,
        "group": _groups(prompt, step, of_eval, layout.group_size),
        "reward": columns.weighted_sum(rewards, layout.weights, count) if rewards else None,
        "rewards": columns.rewards_map(rewards, count) if rewards else None,
        "advantage": columns.number_column(raw["advantage"]) if "advantage" in have else None,
    }
    return RowBatch(rows=columns.table(made))


def _groups(prompt: pa.Array, step: Any, of_eval: Any, group_size: int | None) -> pa.Array | None:
    """Number of each row's group in its step: runs of equal prompts, cut at ``group_size`` where a prompt recurs."""
    if group_size is None or not len(step):
        return None
    starts = np.zeros(len(step), bool)
    starts[columns.runs_of(prompt)] = True
    starts[1:] |= (step[1:] != step[:-1]) | (of_eval[1:] != of_eval[:-1])
    begin = np.maximum.accumulate(np.where(starts, np.arange(len(step)), 0))
    # An evaluation may draw another number of completions per prompt.
    starts |= ~of_eval & ((np.arange(len(step)) - begin) % group_size == 0)
    number = np.cumsum(starts)
    first = np.maximum.accumulate(np.where(np.concatenate([[True], step[1:] != step[:-1]]), number, 0))
    return pc.cast(pa.array(number - first), pa.string())


CHECKPOINT = re.compile(r"checkpoint-(\d{1,15})", re.ASCII)
STATE_BYTES = 1 << 28


def state_paths(root: Path) -> list[Path]:
    """Where a trainer state may lie, the newest checkpoint first among the checkpoints."""
    checkpoints = []
    with contextlib.suppress(OSError):
        checkpoints = [(int(match[1]), p) for p in root.iterdir() if (match := CHECKPOINT.fullmatch(p.name))]
    places = [root, *(place for _, place in sorted(checkpoints, reverse=True))]
    states = [place / "trainer_state.json" for place in places]
    return [state for state in states if state.is_file() and columns.inside(root, state)]


def state_of(root: Path, notes: list[str]) -> dict[str, Any]:
    """The trainer state that went furthest: of the output folder or of the newest checkpoint that can be read."""
    best: dict[str, Any] = {}
    for place in state_paths(root):
        try:
            if place.stat().st_size > STATE_BYTES:
                raise ValueError(f"more than {STATE_BYTES >> 20} MiB")
            state = loads(place.read_text(encoding="utf-8", errors="replace"), parse_int=_integer)
            if not isinstance(state, dict):
                raise ValueError("no JSON object")
        except (OSError, ValueError, RecursionError, MemoryError) as problem:
            notes.append(f"{place.relative_to(root)} could not be read: {str(problem)[:200]}.")
            continue
        if not best or whole(state.get("global_step")) > whole(best.get("global_step")):
            best = state
        if place.parent != root:
            break
    return best


def _integer(digits: str) -> int | float:
    """A whole number of a hostile file: what no float holds is infinite, as it is for JSON's other numbers."""
    return int(digits) if len(digits) < 300 else float(digits)


def whole(value: Any) -> int:
    return int(value) if isinstance(value, (int, float)) and math.isfinite(value) else -1


def step_of(entry: Mapping[str, Any]) -> int | None:
    step = entry.get("step")
    return int(step) if isinstance(step, (int, float)) and math.isfinite(step) and abs(step) < 1 << 53 else None


def is_evaluation(entry: Mapping[str, Any]) -> bool:
    return any(isinstance(key, str) and key.startswith("eval_") for key in entry)


def series_of(history: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, int, float]]:
    """Key, step and value of what was logged; the summary at the end of training is left out."""
    for entry in history:
        step = step_of(entry)
        if step is None or "train_runtime" in entry:
            continue
        for key, value in entry.items():
            if key in ("step", "epoch") or isinstance(value, bool) or not isinstance(value, (int, float)):
                continue
            with contextlib.suppress(OverflowError):
                yield key, step, float(value)
