"""JSON lines, JSON, Parquet and CSV files of other trainers, whose columns a mapping names.

A mapping comes from ``--map``, from a preset, or is guessed from common names. Paths into nested values are dotted:
``rewards.total``, ``content.-1``; ``a|b`` takes the first that is there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import rlmon.audit.readers.columns as columns
import rlmon.audit.readers.folder as folder
import rlmon.audit.readers.shapes as shapes
from rlmon.audit.readers.choosing import PROBES, UNNAMED, from_mapping, matching, presets, recognised, scalars_file
from rlmon.audit.readers.cutting import plan
from rlmon.audit.readers.files import MappedShard
from rlmon.audit.readers.history import Series, by_key
from rlmon.audit.readers.layout import Part, Spec, format_of, whole
from rlmon.audit.readers.parsing import walk
from rlmon.audit.readers.probing import probed, refuse_steps
from rlmon.audit.readers.raw import BLOCK_BYTES, blocks, record_of
from rlmon.audit.readers.table_layout import group_size
from rlmon.audit.run import Lack, OpenedRun
from rlmon.errors import ReadError

NAME = UNNAMED


def recognises(path: Path) -> bool:
    """Whether a preset fits, or the first record has a completion beside a prompt or a reward by common names."""
    _, files = folder.files_below(path)
    return recognised(files, {}) is not None


def runs_at(path: Path) -> list[Path]:
    """The folders below ``path`` that hold a run each, where they are several; else none."""
    _, files = folder.files_below(path)
    found = recognised(files, {}) if path.is_dir() else None
    places = [] if found is None else _separate(*found)
    return [] if "" in places else [path / place for place in places]


def has_steps(run: OpenedRun) -> bool:
    """Whether the rows of a run say their steps, in a column or in the names of their files."""
    specs = [shard.spec for shard in run.shards if isinstance(shard, MappedShard)]
    return any("step" in spec.columns or spec.step_from_name for spec in specs)


def _separate(spec: Spec, chosen: Sequence[Part]) -> list[str]:
    held_out = re.compile(spec.eval_from_name) if spec.eval_from_name else None
    return folder.runs_in([part for part in chosen if held_out is None or not held_out.search(part.name)])


def open_run(path: Path, mapping: Mapping[str, str] | None = None, preset: str | None = None) -> OpenedRun:
    """The rows of a file, or of the files in a folder, by ``mapping``, by the preset named, or as recognised.

    Raises ``ReadError`` where no file is readable, a column is not there, or nothing can be guessed.
    """
    _, files = folder.files_below(path)
    if not files:
        raise ReadError(f"{str(path)!r} holds no JSONL, JSON, CSV or Parquet file (also .gz and .zst).")
    notes: list[str] = []
    settings = folder.settings_of(files)
    if mapping is not None:
        spec, chosen = from_mapping(mapping, files)
    elif preset is not None:
        spec = next(spec for spec in presets() if spec.name == preset)
        chosen = matching(spec, files)
        if not (chosen or scalars_file(spec, files)):
            raise ReadError(
                f"{str(path)!r} has no file as {preset} names them (wanted {spec.files or spec.scalars}, found "
                f"{folder.shown([file.name for file in files])})."
            )
    else:
        found = recognised(files, settings)
        if found is None:
            raise ReadError(
                f"No columns of {str(path)!r} could be recognised (there are "
                f"{folder.shown(folder.columns_of(files))}). Name them with "
                "--map prompt=...,completion=...,reward=...,step=..."
            )
        spec, chosen = found
        if spec.name == NAME:
            shown = ", ".join(f"{name}={column}" for name, column in spec.columns.items())
            notes.append(f"Columns were guessed: {shown}. Name them with --map if that is wrong.")
    several = _separate(spec, chosen)
    if "" in several:
        chosen = [part for part in chosen if "/" not in part.name]
        below = folder.shown([name for name in several if name])
        notes.append(
            f"Set aside: files of the same names and steps in {below}. Give one of these folders to look at it."
        )
    elif several:
        raise ReadError(
            f"{str(path)!r} holds {len(several)} runs, in the folders {folder.shown(several)}: their files have the "
            "same names and steps. Give one of them."
        )
    notes.extend(spec.notes)
    spec = probed(spec, chosen, notes)
    refuse_steps(spec, chosen, path)
    curves = scalars_file(spec, files)
    scalars, eval_scalars = _scalars(curves, spec, notes) if curves is not None else ({}, {})
    return OpenedRun(
        reader=spec.name,
        run_id=path.resolve().name or spec.name,
        path=path,
        shards=plan(spec, chosen, notes),
        scalars=scalars,
        eval_scalars=eval_scalars,
        config=settings,
        group_size=group_size(settings),
        reward_weights={shapes.short(path): weight for path, weight in spec.rewards.items()},
        lacks=_lacks(spec, chosen, scalars, eval_scalars),
        notes=notes,
    )


def _scalars(part: Part, spec: Spec, notes: list[str]) -> tuple[Series, Series]:
    """What was logged, by key; those of evaluations apart."""
    damaged = 0
    records: list[dict[str, Any]] = []
    try:
        for block, lost in blocks(part, format_of(part.name)[1], BLOCK_BYTES):
            found = [record_of(line) for line in block.split(b"\n") if line.strip()]
            records += [record for record in found if record is not None]
            damaged += lost + found.count(None)
    except columns.UNREADABLE as problem:
        notes.append(f"{part.name} could not be read to its end: {str(problem)[:200]}.")
    if spec.scalars_in_order and records and all(walk(record, spec.scalar_step) is None for record in records):
        notes.append(f"No line of {part.name} names its step: they were numbered from 1.")
        records = [{**record, spec.scalar_step: at} for at, record in enumerate(records, start=1)]
    values: list[tuple[str, int, float]] = []
    for record in records:
        step = whole(walk(record, spec.scalar_step))
        if step is None:
            damaged += 1
            continue
        logged = next((inner for name in ("data", "metrics") if isinstance(inner := record.get(name), dict)), record)
        for key, value in logged.items():
            if key in ("step", "time", spec.scalar_step) or isinstance(value, (bool, str)):
                continue
            if (number := columns.number(value)) is not None:
                values.append((key, step, number))
    if damaged:
        notes.append(f"{damaged} lines of {part.name} could not be read.")
    return by_key(values)


def _lacks(
    spec: Spec, files: Sequence[Part], scalars: Mapping[str, Any], eval_scalars: Mapping[str, Any]
) -> dict[Lack, str]:
    have = set(spec.columns) | ({"reward"} if spec.rewards else set()) | ({"group"} if spec.grouped else set())
    have = have if files else set()
    if files and spec.rows == "episode":
        have = {"prompt", "completion", "reward", "group", "advantage", "completion_tokens", "truncated"}
    needs: Sequence[tuple[Lack, str, str]] = (
        ("completions", "completion", "completion=..."),
        ("prompts", "prompt", "prompt=..."),
        ("rewards", "reward", "reward=..."),
        ("advantages", "advantage", "advantage=..."),
        ("groups", "group", "group=..."),
        ("tokens", "completion_tokens", "completion_tokens=..."),
        ("truncation", "truncated", "truncated=..."),
    )
    # A layout may name where a column lies if there is one.
    looked_at = [record for part in files[:2] for record in folder.probe(part, PROBES)]
    optional = {name for name, path in spec.columns.items() if "|" in path}
    have -= {name for name in optional if all(walk(record, spec.columns[name]) is None for record in looked_at)}
    lacks: dict[Lack, str] = {}
    encoded = next((name for record in looked_at[:4] for name in record if columns.TOKEN_IDS.search(name)), None)
    for lack, column, example in needs:
        if lack == "completions" and column not in have and encoded is not None:
            lacks[lack] = columns.decode_first(encoded)
            continue
        if column not in have and not (lack == "groups" and "prompt" in have):
            lacks[lack] = f"no column of this source has it; where there is one, add {example} to --map."
    unlogged: tuple[Lack, Lack] = ("entropy", "kl")
    for lack in unlogged:
        if not any(lack in key for key in scalars):
            lacks[lack] = f"this source has no {lack}; read the trainer's W&B or TensorBoard log for it."
    if spec.eval_from_name:
        held_out = any(re.search(spec.eval_from_name, part.name) for part in files)
        if not (held_out or eval_scalars or spec.eval_key):
            lacks["eval"] = "there are no files of evaluations."
    elif not (eval_scalars or "split" in have):
        lacks["eval"] = "nothing here says which rows are held out; add split=... to --map."
    return lacks | dict(spec.lacks)
