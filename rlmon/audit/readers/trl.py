"""What TRL leaves in its output folder: ``completions/*.parquet`` and ``trainer_state.json``.

TRL keeps the last generation batch (N rows) in queues that training and evaluation share and never clear, and writes
them at every log to a file named by the step alone. So a file is ``(previous file + appended)[-N:]``, where training
appends all N rows of a new generation or nothing, and an evaluation its own rows; an evaluation at a step overwrites
the file of that step, and steps that reuse a generation write it, or what an evaluation left, once more. Which of it
happened is known from ``log_history``: the entry of a step has ``reward`` only where a generation was scored.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

import rlmon.audit.aliases as aliases
import rlmon.audit.readers.columns as columns
import rlmon.audit.readers.shapes as shapes
from rlmon.audit.aliases import LARGEST
from rlmon.audit.run import Lack, OpenedRun, RowBatch
from rlmon.errors import ReadError
from rlmon.metrics.prompts import SOURCE_COLUMNS

NAME = "trl"
FILE = re.compile(r"completions_(\d{1,15})\.parquet", re.ASCII)
CHECKPOINT = re.compile(r"checkpoint-(\d{1,15})", re.ASCII)
REWARD = re.compile(r"(?:eval_)?rewards/(.+)/mean", re.DOTALL)
SHARD_BYTES = 8_000_000
SHARD_FILES = 64
STATE_BYTES = 1 << 28
EVAL_FILES = 4
"""Files of evaluations that are compared to find out how many of their rows are an evaluation's."""
TOLERANCE = 2e-5
"""TRL's means are of float32 values."""
KNOWN_TEXTS = ("prompt", "completion")
KNOWN = {"step", "prompt", "completion", "advantage", "image", "images"}
SETTINGS = ("max_steps", "num_train_epochs", "logging_steps", "eval_steps", "save_steps", "train_batch_size")


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
        previous = _read(self.before, self.layout)[0] if self.before is not None else None
        pending: list[tuple[File, pa.Table, int]] = []
        unreadable: dict[str, str] = {}
        duplicates = 0
        for file in self.files:
            current, problem = _read(file, self.layout)
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


def recognises(path: Path) -> bool:
    """Whether ``path`` is an output folder of TRL's trainer, or the completions or a checkpoint in one."""
    root = _root(path)
    return bool(root.is_dir() and (_files(root) or _state_paths(root)))


def open_run(path: Path, config: Mapping[str, Any] | None = None) -> OpenedRun:
    """The run in an output folder. ``config``: TRL's settings, where a logger beside it kept them.

    Raises ``ReadError`` where neither completions nor a readable trainer state are there.
    """
    root = _root(path)
    notes: list[str] = []
    state = _state(root, notes)
    raw = state.get("log_history")
    history = [entry for entry in raw if isinstance(entry, dict)] if isinstance(raw, list) else []
    scalars, eval_scalars = _scalars(history)
    found = _files(root)
    if not found and not history:
        raise ReadError(
            f"{str(path)!r} has neither completions/completions_*.parquet nor a trainer_state.json with a log_history "
            "that can be read. Give TRL's output_dir."
        )
    settings = {key: state[key] for key in SETTINGS if isinstance(state.get(key), (int, float))} | dict(config or {})
    files = _described(found, history, state)
    names, extra = _reward_names(files, scalars, eval_scalars)
    weights = _weights(names, scalars, settings, notes)
    source = next((name for name in SOURCE_COLUMNS if name in extra), None)
    layout = Layout(weights=weights, source=source, group_size=None, eval_rows=None)
    layout = replace(layout, group_size=_group_size(files, layout, settings))
    layout = replace(layout, eval_rows=_eval_rows(files, layout, history, notes))
    _note_coverage(files, history, settings, state, notes)
    return OpenedRun(
        reader=NAME,
        run_id=root.resolve().name or NAME,
        path=root,
        shards=_shards(files, layout),
        scalars=scalars,
        eval_scalars=eval_scalars,
        config=settings,
        group_size=layout.group_size,
        reward_weights=weights,
        lacks=_lacks(files, scalars, eval_scalars, names, layout, bool(history)),
        notes=notes,
    )


def _root(path: Path) -> Path:
    """The output folder that ``path`` is, or lies in."""
    if path.name == "trainer_state.json" or FILE.fullmatch(path.name):
        path = path.parent
    inner = path.resolve()
    if inner.name == "completions" or (CHECKPOINT.fullmatch(inner.name) and (inner.parent / "completions").is_dir()):
        return inner.parent
    return path


def _files(root: Path) -> list[tuple[int, str, str, int]]:
    """Step, path, name and bytes of each file of completions, by step."""
    found: dict[int, tuple[int, str, str, int]] = {}
    for entry in columns.files_of(root, root / "completions"):
        match = FILE.fullmatch(entry.name)
        if match:
            step = int(match[1])
            found[step] = (step, entry.path, f"completions/{entry.name}", entry.stat().st_size)
    return [found[step] for step in sorted(found)]


def _state_paths(root: Path) -> list[Path]:
    """Where a trainer state may lie, the newest checkpoint first among the checkpoints."""
    checkpoints = []
    with contextlib.suppress(OSError):
        checkpoints = [(int(match[1]), p) for p in root.iterdir() if (match := CHECKPOINT.fullmatch(p.name))]
    places = [root, *(place for _, place in sorted(checkpoints, reverse=True))]
    states = [place / "trainer_state.json" for place in places]
    return [state for state in states if state.is_file() and columns.inside(root, state)]


def _state(root: Path, notes: list[str]) -> dict[str, Any]:
    """The trainer state that went furthest: of the output folder or of the newest checkpoint that can be read."""
    best: dict[str, Any] = {}
    for place in _state_paths(root):
        try:
            if place.stat().st_size > STATE_BYTES:
                raise ValueError(f"more than {STATE_BYTES >> 20} MiB")
            state = columns.loads(place.read_text(encoding="utf-8", errors="replace"), parse_int=_integer)
            if not isinstance(state, dict):
                raise ValueError("no JSON object")
        except (OSError, ValueError, RecursionError, MemoryError) as problem:
            notes.append(f"{place.relative_to(root)} could not be read: {str(problem)[:200]}.")
            continue
        if not best or _whole(state.get("global_step")) > _whole(best.get("global_step")):
            best = state
        if place.parent != root:
            break
    return best


def _integer(digits: str) -> int | float:
    """A whole number of a hostile file: what no float holds is infinite, as it is for JSON's other numbers."""
    return int(digits) if len(digits) < 300 else float(digits)


def _whole(value: Any) -> int:
    return int(value) if isinstance(value, (int, float)) and math.isfinite(value) else -1


def _step(entry: Mapping[str, Any]) -> int | None:
    step = entry.get("step")
    return int(step) if isinstance(step, (int, float)) and math.isfinite(step) and abs(step) < 1 << 53 else None


def _is_eval(entry: Mapping[str, Any]) -> bool:
    return any(isinstance(key, str) and key.startswith("eval_") for key in entry)


def _scalars(
    history: Sequence[Mapping[str, Any]],
) -> tuple[dict[str, list[tuple[int, float]]], dict[str, list[tuple[int, float]]]]:
    """What was logged while training, and of evaluations; the summary at the end of training is left out."""
    train: dict[str, dict[int, float]] = {}
    evaluation: dict[str, dict[int, float]] = {}
    for entry in history:
        step = _step(entry)
        if step is None or "train_runtime" in entry:
            continue
        for key, value in entry.items():
            if key in ("step", "epoch") or isinstance(value, bool) or not isinstance(value, (int, float)):
                continue
            try:
                number = float(value)
            except OverflowError:
                continue
            if key.startswith("eval_"):
                evaluation.setdefault(key[5:], {})[step] = number
            else:
                train.setdefault(key, {})[step] = number
    return (
        {key: sorted(values.items()) for key, values in train.items()},
        {key: sorted(values.items()) for key, values in evaluation.items()},
    )


def _described(
    found: Sequence[tuple[int, str, str, int]], history: Sequence[Mapping[str, Any]], state: Mapping[str, Any]
) -> list[File]:
    """The files with what the log says of their steps."""
    fresh: dict[int, bool] = {}
    evaluated = set()
    for entry in history:
        step = _step(entry)
        if step is None:
            continue
        if _is_eval(entry):
            evaluated.add(step)
        elif "train_runtime" not in entry and ("loss" in entry or "reward" in entry):
            fresh[step] = fresh.get(step, False) or "reward" in entry
    every = state.get("eval_steps")
    last = max(fresh, default=-1)
    regular = isinstance(every, int) and every > 0 and bool(evaluated) and all(step % every == 0 for step in evaluated)
    return [
        File(
            path=path,
            name=name,
            step=step,
            bytes=size,
            fresh=fresh.get(step),
            # A run that was killed logged less than it wrote.
            evaluated=step in evaluated or (regular and step > last and step % int(every or 1) == 0),
        )
        for step, path, name, size in found
    ]


def _reward_names(
    files: Sequence[File], scalars: Mapping[str, Any], eval_scalars: Mapping[str, Any]
) -> tuple[list[str], list[str]]:
    """Columns that are rewards, and the others beside TRL's own, of the first file that can be read."""
    schema = None
    for file in files[:8]:
        try:
            schema = columns.read_parquet_schema(Path(file.path))
            break
        except columns.UNREADABLE:
            continue
    logged = {match[1] for key in [*scalars, *eval_scalars] if (match := REWARD.fullmatch(key))}
    if schema is None:
        return sorted(logged), []
    present = [name for name in schema.names if name not in KNOWN]
    rewards = [name for name in present if name in logged]
    if not rewards:
        rewards = [name for name in present if pa.types.is_floating(schema.field(name).type)]
    return rewards, [name for name in present if name not in rewards]


def _weights(
    names: Sequence[str],
    scalars: Mapping[str, Sequence[tuple[int, float]]],
    settings: Mapping[str, Any],
    notes: list[str],
) -> dict[str, float]:
    """The weight of each reward function: as configured, or such that the logged ``reward`` comes out."""
    ones = dict.fromkeys(names, 1.0)
    given = settings.get("reward_weights")
    logged = dict(scalars.get("reward", ()))
    means = [dict(scalars.get(f"rewards/{name}/mean", ())) for name in names]
    steps = [step for step in logged if all(step in mean for mean in means)]
    matrix = np.array([[mean[step] for mean in means] for step in steps], np.float64).reshape(len(steps), len(names))
    target = np.array([logged[step] for step in steps], np.float64)
    finite = (np.abs(target) <= LARGEST) & (np.abs(matrix) <= LARGEST).all(axis=1)
    matrix, target = matrix[finite], target[finite]

    def agrees(weights: Sequence[float]) -> bool:
        error = np.abs(matrix @ np.array(weights) - target)
        return bool((error <= TOLERANCE * np.maximum(1.0, np.abs(target))).all())

    if isinstance(given, list) and len(given) == len(names) and all(isinstance(w, (int, float)) for w in given):
        weights = dict(zip(names, map(float, given), strict=True))
        if len(target) and not agrees(list(weights.values())):
            notes.append("The weighted sum of the rewards does not give the logged reward; reward_weights are used.")
        return weights
    if not names:
        return {}
    if not len(target):
        if len(names) > 1:
            notes.append(
                f"reward is taken as the sum of {', '.join(names)} with weights of 1: no reward was logged to check it."
            )
        return ones
    if agrees([1.0] * len(names)):
        return ones
    solved, _, rank, _ = np.linalg.lstsq(matrix, target, rcond=None)
    rounded = [round(float(weight), 4) for weight in solved.tolist()]
    if rank == len(names) and len(target) > len(names) and agrees(rounded):
        shown = ", ".join(f"{name} {weight:g}" for name, weight in zip(names, rounded, strict=True))
        notes.append(f"Weights of the rewards, solved from the logged means: {shown}.")
        return dict(zip(names, rounded, strict=True))
    notes.append(
        f"reward is taken as the sum of {', '.join(names)} with weights of 1, and that is not the logged reward: "
        "reward_weights are not in TRL's files (they are in a W&B run), or a function gave None for some rows."
    )
    return ones


def _read(file: File | None, layout: Layout) -> tuple[pa.Table | None, str]:
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


def _group_size(files: Sequence[File], layout: Layout, settings: Mapping[str, Any]) -> int | None:
    """Completions per prompt: as configured, else what the runs of equal prompts have in common."""
    given = settings.get("num_generations")
    if isinstance(given, int) and not isinstance(given, bool) and given > 1:
        return given
    common = 0
    for file in [file for file in files if not file.evaluated][:16] or files[:4]:
        read, _ = _read(file, replace(layout, weights={}, source=None))
        if read is None or "prompt" not in read.column_names or not len(read):
            continue
        starts = columns.runs_of(columns.text_column(read["prompt"]))
        common = math.gcd(common, *np.diff(np.append(starts, len(read))).tolist())
    return common if common > 1 else None


def _eval_rows(
    files: Sequence[File], layout: Layout, history: Sequence[Mapping[str, Any]], notes: list[str]
) -> int | None:
    """How many rows an evaluation adds; ``None`` where that could not be found out and whole files are taken.

    An evaluation asks the same prompts each time, so its rows are at most the common end of its files; among the
    lengths up to that the longest is taken whose rewards have the logged means.
    """
    held = [file for file in files if file.evaluated]
    if not held:
        return None
    logged: dict[int, dict[str, float]] = {}
    for entry in history:
        step = _step(entry)
        if step is not None and _is_eval(entry):
            logged.setdefault(step, {}).update(
                {n: v for n in layout.weights if isinstance(v := entry.get(f"eval_rewards/{n}/mean"), (int, float))}
            )
    chosen = held[:: max(1, len(held) // EVAL_FILES)][:EVAL_FILES]
    read = [(file, table) for file in chosen if (table := _read(file, layout)[0]) is not None and len(table)]
    read = [(file, table) for file, table in read if "prompt" in table.column_names]
    if not read:
        return None
    prompts = [columns.text_column(table["prompt"]).to_pylist()[::-1] for _, table in read]
    shortest = min(map(len, prompts))
    common = shortest
    for other in prompts[1:]:
        same = (index for index in range(common) if prompts[0][index] != other[index])
        common = next(same, common)
    if len(read) > 1 and common == shortest:
        return None
    ends = sorted({len(table) - int(start) for _, table in read[:1] for start in _ends(table)} | {common})
    matching = [end for end in ends if 0 < end <= common and _means_match(read, end, logged)]
    if matching:
        return matching[-1]
    if len(read) > 1 and common:
        return common
    notes.append(
        "How many rows of an evaluation's file are the evaluation's could not be told: all are taken as held out."
    )
    return None


def _ends(table: pa.Table) -> Any:
    return columns.runs_of(columns.text_column(table["prompt"]))


def _means_match(read: Sequence[tuple[File, pa.Table]], end: int, logged: Mapping[int, Mapping[str, float]]) -> bool:
    """Whether the last ``end`` rows of each file have the rewards that its evaluation logged."""
    compared = False
    for file, table in read:
        for name, expected in logged.get(file.step, {}).items():
            if name not in table.column_names or end > len(table):
                continue
            values = columns.number_column(table[name])[len(table) - end :]
            mean = pc.mean(values).as_py()
            if mean is None or not math.isfinite(expected):
                continue
            compared = True
            if not abs(mean - expected) <= TOLERANCE * max(1.0, abs(expected)):
                return False
    return compared


def _shards(files: Sequence[File], layout: Layout) -> list[TRLShard]:
    """Consecutive files, about ``SHARD_BYTES`` or ``SHARD_FILES`` each."""
    shards: list[TRLShard] = []
    group: list[File] = []
    before: File | None = None
    held = 0
    for file in files:
        if group and (held + file.bytes > SHARD_BYTES or len(group) == SHARD_FILES):
            shards.append(TRLShard(files=tuple(group), before=before, layout=layout))
            before, group, held = group[-1], [], 0
        group.append(file)
        held += file.bytes
    if group:
        shards.append(TRLShard(files=tuple(group), before=before, layout=layout))
    return shards


def _note_coverage(
    files: Sequence[File],
    history: Sequence[Mapping[str, Any]],
    settings: Mapping[str, Any],
    state: Mapping[str, Any],
    notes: list[str],
) -> None:
    """What of the run the files hold."""
    if not files:
        return
    if not history:
        notes.append(
            "Without a log_history (trainer_state.json: trainer.save_state(), or save_steps) rows of evaluations "
            "cannot be told from rows of training, and re-written ones are known by their content alone."
        )
        return
    every = settings.get("logging_steps")
    if isinstance(every, (int, float)) and every > 1:
        notes.append(
            f"logging_steps={every:g}: TRL kept only the last generation batch before each log. Set logging_steps=1 to "
            "keep all of them."
        )
    last = _whole(state.get("global_step"))
    beyond = [file.step for file in files if file.step > last]
    if beyond:
        notes.append(
            f"{len(beyond)} files are of steps after {last}, the last that the trainer state knows: they were written "
            "after the last checkpoint, or by an earlier run into the same folder."
        )
    have = {file.step for file in files}
    logged = {step for entry in history if "reward" in entry and (step := _step(entry)) is not None}
    if missing := len(logged - have):
        notes.append(f"{missing} of {len(logged)} logged generations have no file of completions.")
    overwritten = sum(1 for file in files if file.evaluated and file.fresh)
    if overwritten:
        notes.append(
            f"At {overwritten} steps an evaluation overwrote the completions that were trained on in that step, in "
            "whole or in part: TRL names both files by the step. An rlmon log keeps both."
        )


def _lacks(
    files: Sequence[File],
    scalars: Mapping[str, Any],
    eval_scalars: Mapping[str, Any],
    rewards: Sequence[str],
    layout: Layout,
    has_history: bool,
) -> dict[Lack, str]:
    """What TRL's files do not hold, and how to have it next time."""
    lacks: dict[Lack, str] = {
        "tokens": "TRL's files hold neither token ids nor lengths of completions, only mean lengths per step. "
        "RLMon(trainer) logs them.",
    }
    logged = aliases.chosen(scalars)
    if "rlmon/health/truncated" not in logged:
        lacks["truncation"] = (
            "TRL's files do not say which completions were cut, and this TRL did not log the share of them "
            "(completions/clipped_ratio). RLMon(trainer) logs it."
        )
    if not files:
        why = "there are no completions: set log_completions=True (and logging_steps=1) in GRPOConfig or RLOOConfig."
        lacks |= dict.fromkeys(("completions", "prompts", "rewards", "advantages", "groups"), why)
    else:
        if not rewards:
            lacks["rewards"] = "no column of the files of completions is a reward."
        if layout.group_size is None:
            lacks["groups"] = "TRL's files name no groups, and runs of equal prompts have no common length here."
    unlogged = "trainer_state.json is missing: call trainer.save_state() after training, or set save_steps."
    if not logged.keys() & {"rlmon/kl/mean", "rlmon/kl/seq"}:
        lacks["kl"] = (
            "no kl was logged: with beta=0 TRL loads no reference model. RLMon(trainer) measures KL to the initial "
            "base then too, or set beta above 0."
            if has_history
            else unlogged
        )
    if "rlmon/entropy/mean" not in logged:
        lacks["entropy"] = "this TRL logged no entropy; RLMon(trainer) measures it." if has_history else unlogged
    if not eval_scalars and not any(file.evaluated for file in files):
        lacks["eval"] = (
            "no evaluation was logged: set eval_strategy='steps' with an eval_dataset." if has_history else unlogged
        )
    return lacks
