"""What TRL leaves in its output folder: ``completions/*.parquet`` and ``trainer_state.json``.

TRL keeps the last generation batch (N rows) in queues that training and evaluation share and never clear, and writes
them at every log to a file named by the step alone. So a file is ``(previous file + appended)[-N:]``, where training
appends all N rows of a new generation or nothing, and an evaluation its own rows; an evaluation at a step overwrites
the file of that step, and steps that reuse a generation write it, or what an evaluation left, once more. Which of it
happened is known from ``log_history``: the entry of a step has ``reward`` only where a generation was scored.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

import rlmon.audit.aliases as aliases
import rlmon.audit.readers.columns as columns
from rlmon.audit.aliases import LARGEST
from rlmon.audit.readers.history import by_key
from rlmon.audit.readers.trl_files import (
    CHECKPOINT,
    File,
    Layout,
    TRLShard,
    is_evaluation,
    read_file,
    series_of,
    state_of,
    state_paths,
    step_of,
    whole,
)
from rlmon.audit.run import Lack, OpenedRun, stretches
from rlmon.errors import ReadError
from rlmon.metrics.prompts import SOURCE_COLUMNS

NAME = "trl"
FILE = re.compile(r"completions_(\d{1,15})\.parquet", re.ASCII)
REWARD = re.compile(r"(?:eval_)?rewards/(.+)/mean", re.DOTALL)
SHARD_BYTES = 8_000_000
SHARD_FILES = 64
EVAL_FILES = 4
"""Files of evaluations that are compared to find out how many of their rows are an evaluation's."""
TOLERANCE = 2e-5
"""TRL's means are of float32 values."""
KNOWN = {"step", "prompt", "completion", "advantage", "image", "images"}
SETTINGS = ("max_steps", "num_train_epochs", "logging_steps", "eval_steps", "save_steps", "train_batch_size")


def recognises(path: Path) -> bool:
    """Whether ``path`` is an output folder of TRL's trainer, or the completions or a checkpoint in one."""
    root = _root(path)
    return bool(root.is_dir() and (_files(root) or state_paths(root)))


def open_run(path: Path, config: Mapping[str, Any] | None = None) -> OpenedRun:
    """The run in an output folder. ``config``: TRL's settings, where a logger beside it kept them.

    Raises ``ReadError`` where neither completions nor a readable trainer state are there.
    """
    root = _root(path)
    notes: list[str] = []
    state = state_of(root, notes)
    raw = state.get("log_history")
    history = [entry for entry in raw if isinstance(entry, dict)] if isinstance(raw, list) else []
    scalars, eval_scalars = by_key(series_of(history))
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


def _described(
    found: Sequence[tuple[int, str, str, int]], history: Sequence[Mapping[str, Any]], state: Mapping[str, Any]
) -> list[File]:
    """The files with what the log says of their steps."""
    fresh: dict[int, bool] = {}
    evaluated = set()
    for entry in history:
        step = step_of(entry)
        if step is None:
            continue
        if is_evaluation(entry):
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
            schema = pq.read_schema(file.path)
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


def _group_size(files: Sequence[File], layout: Layout, settings: Mapping[str, Any]) -> int | None:
    """Completions per prompt: as configured, else what the runs of equal prompts have in common."""
    given = settings.get("num_generations")
    if isinstance(given, int) and not isinstance(given, bool) and given > 1:
        return given
    common = 0
    for file in [file for file in files if not file.evaluated][:16] or files[:4]:
        read, _ = read_file(file, replace(layout, weights={}, source=None))
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
        step = step_of(entry)
        if step is not None and is_evaluation(entry):
            logged.setdefault(step, {}).update(
                {n: v for n in layout.weights if isinstance(v := entry.get(f"eval_rewards/{n}/mean"), (int, float))}
            )
    chosen = held[:: max(1, len(held) // EVAL_FILES)][:EVAL_FILES]
    read = [(file, table) for file in chosen if (table := read_file(file, layout)[0]) is not None and len(table)]
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
    groups = list(stretches(files, lambda file: file.bytes, most=SHARD_BYTES, most_pieces=SHARD_FILES))
    before = [None, *(group[-1] for group in groups)]
    return [TRLShard(files=group, before=last, layout=layout) for group, last in zip(groups, before, strict=False)]


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
    last = whole(state.get("global_step"))
    beyond = [file.step for file in files if file.step > last]
    if beyond:
        notes.append(
            f"{len(beyond)} files are of steps after {last}, the last that the trainer state knows: they were written "
            "after the last checkpoint, or by an earlier run into the same folder."
        )
    have = {file.step for file in files}
    logged = {step for entry in history if "reward" in entry and (step := step_of(entry)) is not None}
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
