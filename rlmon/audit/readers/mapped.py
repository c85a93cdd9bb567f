"""JSON lines, JSON, Parquet and CSV files of other trainers, whose columns a mapping names.

A mapping comes from ``--map``, from a preset (a JSON file in ``presets/`` says how one tool writes its rollouts), or is
guessed from common names. Paths into nested values are dotted: ``rewards.total``, ``content.-1``; ``a|b`` takes the
first that is there.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rlmon.audit.readers import columns
from rlmon.audit.readers.files import (
    BLOCK_BYTES,
    CANONICAL,
    FORMATS,
    LINE_BYTES,
    MappedShard,
    Part,
    Spec,
    blocks,
    csv_batches,
    format_of,
    json_records,
    record_of,
    walk,
    whole,
)
from rlmon.audit.readers.messages import SPOKEN
from rlmon.audit.run import Lack, OpenedRun
from rlmon.errors import ReadError

NAME = "mapped"
GUESSES: Mapping[str, tuple[str, ...]] = {
    "prompt": ("prompt", "prompts", "input", "question", "query", "instruction", "problem", "input_prompt"),
    "completion": ("completion", "completions", "response", "output", "generation", "output_response", "answer"),
    "reward": ("reward", "score", "total_reward", "rewards"),
    "step": ("step", "global_step", "train_step", "iteration", "update"),
    "group": ("group", "group_id", "uid"),
    "advantage": ("advantage", "advantages"),
    "source": ("task", "data_source", "dataset", "source", "language"),
    "split": ("split",),
    "truncated": ("truncated", "finish_reason", "stop_reason"),
    "completion_tokens": ("completion_tokens", "completion_length", "response_length", "num_tokens"),
}
"""Canonical column to the names it often has, the likeliest first."""
SHARD_FILES = 256
PROBES = 32
PROBED_BYTES = 8 << 20
DEPTH = 5
ENTRIES = 200_000


def preset_names() -> list[str]:
    """Names of the layouts that are known, in the order in which they are tried."""
    return [spec.name for spec in presets()]


@functools.cache
def presets() -> tuple[Spec, ...]:
    """The layouts in ``presets/``, those that ask for most keys first."""
    folder = resources.files("rlmon.audit.readers") / "presets"
    found = []
    for entry in folder.iterdir():
        if entry.name.endswith(".json"):
            raw: dict[str, Any] = json.loads(entry.read_text(encoding="utf-8"))
            del raw["about"]
            settings: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in raw.items()}
            found.append(Spec(**settings))
    return tuple(sorted(found, key=lambda spec: (-len(spec.keys), spec.name)))


def recognises(path: Path) -> bool:
    """Whether a preset fits, or the first record has a completion beside a prompt or a reward by common names."""
    root, files = _files(path)
    return _recognised(root, files) is not None


def open_run(path: Path, mapping: Mapping[str, str] | None = None, preset: str | None = None) -> OpenedRun:
    """The rows of a file, or of the files in a folder, by ``mapping``, by the preset named, or as recognised.

    Raises ``ReadError`` where no file is readable, a column is not there, or nothing can be guessed.
    """
    root, files = _files(path)
    if not files:
        raise ReadError(f"{str(path)!r} holds no JSONL, JSON, CSV or Parquet file (also .gz and .zst).")
    notes: list[str] = []
    if mapping is not None:
        spec = _from_mapping(mapping, files)
    elif preset is not None:
        spec = next(spec for spec in presets() if spec.name == preset)
        if not (_matching(spec, files) or _scalars_file(spec, files)):
            raise ReadError(
                f"{str(path)!r} has no file as {preset} names them (wanted {spec.files or spec.scalars}, found "
                f"{_shown([file.name for file in files])})."
            )
    else:
        recognised = _recognised(root, files)
        if recognised is None:
            raise ReadError(
                f"No columns of {str(path)!r} could be recognised (there are {_shown(_columns_of(files))}). Name them "
                "with --map prompt=...,completion=...,reward=...,step=..."
            )
        spec = recognised
        if spec.name == NAME:
            shown = ", ".join(f"{name}={column}" for name, column in spec.columns.items())
            notes.append(f"Columns were guessed: {shown}. Name them with --map if that is wrong.")
    notes.extend(spec.notes)
    chosen = _matching(spec, files)
    spec = _probed(spec, chosen)
    scalar_file = _scalars_file(spec, files)
    scalars, eval_scalars = _scalars(scalar_file, notes) if scalar_file is not None else ({}, {})
    shards = _plan(spec, chosen, notes)
    return OpenedRun(
        reader=spec.name,
        run_id=path.resolve().name or spec.name,
        path=path,
        shards=shards,
        scalars=scalars,
        eval_scalars=eval_scalars,
        lacks=_lacks(spec, chosen, scalars, eval_scalars),
        notes=notes,
    )


# Which files, and what is in them


def _files(path: Path) -> tuple[Path, list[Part]]:
    """The folder of the run and its files of known formats, in order of name with numbers as numbers."""
    if path.is_file():
        if not FORMATS.search(path.name):
            return path.parent, []
        size = path.stat().st_size
        return path.parent, [Part(path=str(path), name=path.name, start=0, end=size, bytes=size)]
    found: list[Part] = []
    seen = 0
    pending = [(path, 0)]
    while pending:
        folder, depth = pending.pop()
        try:
            entries = list(os.scandir(folder))
        except OSError:
            continue
        for entry in entries:
            seen += 1
            if entry.is_symlink() and not columns.inside(path, Path(entry.path)):
                continue
            if entry.is_dir(follow_symlinks=False):
                if depth < DEPTH and seen < ENTRIES:
                    pending.append((Path(entry.path), depth + 1))
            elif FORMATS.search(entry.name) and entry.is_file():
                name = Path(entry.path).relative_to(path).as_posix()
                size = entry.stat().st_size
                found.append(Part(path=entry.path, name=name, start=0, end=size, bytes=size))
    return path, sorted(found, key=lambda part: _natural(part.name))


def _natural(name: str) -> list[tuple[int, int, str]]:
    """A key under which step_10 comes after step_9."""
    return [
        (0, int(piece), "") if piece.isascii() and piece.isdigit() and len(piece) < 19 else (1, 0, piece)
        for piece in re.split(r"(\d+)", name)
    ]


def _matching(spec: Spec, files: Sequence[Part]) -> list[Part]:
    """Files that the spec reads, with the step that their names give."""
    chosen = []
    for part in files:
        if spec.files and not re.fullmatch(spec.files, part.name):
            continue
        if spec.scalars and part.name.rpartition("/")[2] == spec.scalars:
            continue
        step = None
        if spec.step_from_name:
            match = re.search(spec.step_from_name, part.name)
            if match is None or len(match[1]) > 15:
                continue
            step = int(match[1])
        chosen.append(dataclasses.replace(part, step=step))
    return chosen


def _scalars_file(spec: Spec, files: Sequence[Part]) -> Part | None:
    if not spec.scalars:
        return None
    return next((part for part in files if part.name.rpartition("/")[2] == spec.scalars), None)


def _recognised(root: Path, files: Sequence[Part]) -> Spec | None:
    """The first preset that fits, else a guess from the names of columns."""
    for spec in presets():
        for part in _matching(spec, files)[:3] if spec.files else []:
            records = _probe(part, 1)
            if records and all(key in records[0] for key in spec.keys):
                return spec
        scalars = _scalars_file(spec, files)
        if scalars is not None and spec.scalar_prefixes:
            keys = [key for record in _probe(scalars, 4) for key in record]
            if any(key.startswith(spec.scalar_prefixes) for key in keys):
                return spec
    for part in files[:3]:
        guess = _guessed(_probe(part, 4), files)
        if guess is not None:
            return guess
    return None


def _guessed(records: Sequence[Mapping[str, Any]], files: Sequence[Part]) -> Spec | None:
    """A spec by the common names of columns; ``None`` where they do not say enough."""
    there = {key for record in records for key in record}
    found = {canonical: name for canonical, names in GUESSES.items() if (name := _first(names, there)) is not None}
    if "completion" not in found or not {"prompt", "reward"} & found.keys():
        return None
    return _with_step(Spec(name=NAME, columns=found), files)


def _first(names: Sequence[str], there: set[str]) -> str | None:
    return next((name for name in names if name in there), None)


def _with_step(spec: Spec, files: Sequence[Part]) -> Spec:
    """The spec with steps from the names of files where no column has them, or the note that all rows are step 0."""
    if "step" in spec.columns:
        return spec
    numbered = {match[1] for part in files if (match := re.search(r"(\d{1,15})\D*$", part.name))}
    if len(files) > 1 and len(numbered) == len(files):
        note = "No column has the step: it was taken from the names of the files."
        return dataclasses.replace(spec, step_from_name=r"(\d{1,15})\D*$", notes=(*spec.notes, note))
    note = (
        "No column has the step: all rows are taken as step 0, so nothing can be said about change. Add step= to --map."
    )
    return dataclasses.replace(spec, notes=(*spec.notes, note))


def _from_mapping(mapping: Mapping[str, str], files: Sequence[Part]) -> Spec:
    """The user's own columns, checked against those that are there."""
    unknown = sorted(set(mapping) - set(CANONICAL))
    if unknown:
        raise ReadError(f"--map knows no {', '.join(map(repr, unknown))}; it knows {', '.join(CANONICAL)}.")
    if not {"completion", "reward"} & mapping.keys():
        raise ReadError("--map needs completion=... or reward=..., else there is nothing to look at.")
    records = [record for part in files[:3] for record in _probe(part, PROBES)]
    if not records:
        raise ReadError(f"No record could be read in {_shown([part.name for part in files])}.")
    for canonical, path in mapping.items():
        if all(walk(record, path) is None for record in records) and not any(
            alternative.split(".")[0] in record for record in records for alternative in [path, *path.split("|")]
        ):
            raise ReadError(
                f"There is no column {path!r} for {canonical}; there are {_shown(_columns_of(files))}. Change --map."
            )
    return _with_step(Spec(name=NAME, columns=dict(mapping)), files)


def _columns_of(files: Sequence[Part]) -> list[str]:
    names: dict[str, None] = {}
    for part in files[:3]:
        for record in _probe(part, 4):
            names.update(dict.fromkeys(record))
    return list(names)


def _shown(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name[:60]) for name in names[:12])
    return (shown + (f" and {len(names) - 12} more" if len(names) > 12 else "")) or "none"


def _probe(part: Part, count: int) -> list[dict[str, Any]]:
    """The first records of a file; empty where none can be read."""
    try:
        kind, packed = format_of(part.name)
        if kind == "parquet":
            with pq.ParquetFile(part.path) as file:
                if columns.may_expand(file, list(range(min(1, file.num_row_groups))), set(file.schema_arrow.names)):
                    return [dict.fromkeys(file.schema_arrow.names)]
                first = next(file.iter_batches(count, use_threads=False), None)
                names = dict.fromkeys(file.schema_arrow.names)
                return [names] if first is None else [dict(row) for row in first.slice(0, count).to_pylist()]
        if kind == "csv":
            raw, _ = next(csv_batches(part, None))
            return [dict(row) for row in raw.slice(0, count).to_pylist()]
        if kind == "json":
            return json_records(part, packed)[:count]
        records: list[dict[str, Any]] = []
        with contextlib.suppress(*columns.UNREADABLE):
            looked_at = 0
            for block, lost in blocks(part, packed, 1 << 16):
                for line in block.split(b"\n"):
                    record = record_of(line)
                    if record is not None:
                        records.append(record)
                        if len(records) == count:
                            return records
                looked_at += len(block)
                if lost or looked_at > PROBED_BYTES:
                    break
        return records
    except columns.UNREADABLE:
        return []


def _probed(spec: Spec, files: Sequence[Part]) -> Spec:
    """The spec with the types of the top-level keys it uses, so that whole blocks can be parsed at once."""
    if spec.rows != "line":
        return spec
    records = [record for part in [*files[:2], *files[-1:]] for record in _probe(part, PROBES)]
    tops: dict[str, None] = {}
    for path in spec.columns.values():
        plain = any(path in record for record in records)
        for option in [path] if plain else path.split("|"):
            tops[option if plain else option.split(".")[0]] = None
    if spec.eval_key:
        tops[spec.eval_key] = None
    nested = [path for path in spec.columns.values() if path not in tops]
    if any(all(walk(record, path) is None for record in records) for path in nested):
        return spec
    kinds = []
    for name in tops:
        values = [record[name] for record in records if record.get(name) is not None]
        if not values:
            # Never seen: numbers are the likeliest, and another kind sends the block to the slow path.
            kinds.append((name, pa.float64()))
            continue
        if all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values):
            kinds.append((name, pa.float64()))
            continue
        try:
            kind = pa.array(values).type
        except columns.UNREADABLE:
            return spec
        if "null" in str(kind) or (pa.types.is_struct(kind) and name in spec.columns.values()):
            return spec
        full = _with_all_that_is_said(kind)
        if full is None:
            return spec
        kinds.append((name, full))
    return dataclasses.replace(spec, kinds=tuple(kinds))


def _with_all_that_is_said(kind: pa.DataType) -> pa.DataType | None:
    """The type of messages, with the fields that are rendered and that the first of them may be without.

    ``None`` where messages hold more than text: arguments of tool calls have no type in common.
    """
    if not pa.types.is_list(kind) or not pa.types.is_struct(kind.value_type):
        return kind
    fields = {field.name: field for field in kind.value_type}
    if "content" not in fields:
        return kind
    if any(name in fields and pa.types.is_nested(fields[name].type) for name in SPOKEN):
        return None
    # A list of tool calls is no string: the block that has one takes the slow path.
    missing = [pa.field(name, pa.string()) for name in SPOKEN if name not in fields]
    return pa.list_(pa.struct([*fields.values(), *missing]))


# Shards


def _plan(spec: Spec, files: Sequence[Part], notes: list[str]) -> list[MappedShard]:
    """Shards of about ``BLOCK_BYTES``, cut between steps."""
    if not files:
        return []
    if spec.step_from_name:
        return _grouped(spec, sorted(files, key=lambda part: part.step or 0), lambda a, b: a.step != b.step)
    if "step" not in spec.columns:
        # All rows are step 0, which lies in one shard.
        return [MappedShard(parts=tuple(files), spec=spec)]
    if len(files) > 1:
        firsts = [_first_step(part, spec) for part in files]
        known = [first for first in firsts if first is not None]
        if len(set(known)) == len(known):
            order = sorted(range(len(files)), key=lambda i: (firsts[i] is not None, firsts[i] or 0))
            return _grouped(spec, [files[i] for i in order], lambda _a, _b: True)
        notes.append("Several files begin with the same step and are read together, in order of name.")
        return [MappedShard(parts=tuple(files), spec=spec)]
    kind, packed = format_of(files[0].name)
    if kind == "jsonl" and not packed:
        return _grouped(spec, _cut_lines(files[0], spec, notes), lambda _a, _b: True)
    if kind == "parquet":
        return _grouped(spec, _cut_row_groups(files[0], spec), lambda _a, _b: True)
    return [MappedShard(parts=tuple(files), spec=spec)]


def _grouped(spec: Spec, parts: Sequence[Part], may_cut: Callable[[Part, Part], bool]) -> list[MappedShard]:
    shards: list[MappedShard] = []
    group: list[Part] = []
    for part in parts:
        full = sum(held.bytes for held in group) + part.bytes > BLOCK_BYTES * 1.25 or len(group) >= SHARD_FILES
        if group and full and may_cut(group[-1], part):
            shards.append(MappedShard(parts=tuple(group), spec=spec))
            group = []
        group.append(part)
    return [*shards, MappedShard(parts=tuple(group), spec=spec)] if group else shards


def _first_step(part: Part, spec: Spec) -> int | None:
    records = _probe(part, 1)
    return whole(walk(records[0], spec.columns["step"])) if records else None


def _cut_lines(part: Part, spec: Spec, notes: list[str]) -> list[Part]:
    """The file cut about every ``BLOCK_BYTES`` where the next line has another step than the one before.

    Steps that fall from one cut to the next mean that steps recur; then the file stays whole.
    """
    cuts = [0]
    last = -1
    with open(part.path, "rb") as file:
        while cuts[-1] + BLOCK_BYTES < part.end:
            file.seek(cuts[-1] + BLOCK_BYTES)
            file.readline(LINE_BYTES)
            step = None
            cut = None
            while file.tell() < part.end:
                at = file.tell()
                line = file.readline(LINE_BYTES)
                record = record_of(line)
                here = None if record is None else whole(walk(record, spec.columns["step"]))
                if here is None:
                    continue
                if step is not None and here != step:
                    cut, step = at, here
                    break
                step = here
                if at > cuts[-1] + 16 * BLOCK_BYTES:
                    break
            if cut is None:
                if file.tell() >= part.end:
                    break
                # One step of more than this is read in one shard, in blocks.
                return [part]
            if step is None or step <= last:
                notes.append("Steps are not in order in the file, so it is read by one process.")
                return [part]
            last = step
            cuts.append(cut)
    ends = [*cuts[1:], part.end]
    return [
        dataclasses.replace(part, start=start, end=end, bytes=end - start)
        for start, end in zip(cuts, ends, strict=True)
    ]


def _cut_row_groups(part: Part, spec: Spec) -> list[Part]:
    """Row groups of a Parquet file, kept together where their statistics do not tell their steps apart."""
    whole_file = [dataclasses.replace(part, start=0, end=-1)]
    try:
        with pq.ParquetFile(part.path) as file:
            groups = [file.metadata.row_group(index) for index in range(file.num_row_groups)]
            paths = [groups[0].column(index).path_in_schema for index in range(groups[0].num_columns)] if groups else []
            if spec.columns["step"] not in paths:
                return whole_file
            at = paths.index(spec.columns["step"])
            ranges = []
            for group in groups:
                statistics = group.column(at).statistics
                if statistics is None or not statistics.has_min_max or not isinstance(statistics.min, (int, float)):
                    return whole_file
                ranges.append((statistics.min, statistics.max))
    except columns.UNREADABLE:
        return whole_file
    parts: list[Part] = []
    begin, top = 0, ranges[0][1]
    for index, (low, high) in enumerate(ranges):
        if index and low > top:
            parts.append(dataclasses.replace(part, start=begin, end=index))
            begin = index
        top = max(top, high)
    parts.append(dataclasses.replace(part, start=begin, end=len(groups)))
    return [
        dataclasses.replace(cut, bytes=sum(group.total_byte_size for group in groups[cut.start : cut.end]))
        for cut in parts
    ]


# Scalars


def _scalars(
    part: Part, notes: list[str]
) -> tuple[dict[str, list[tuple[int, float]]], dict[str, list[tuple[int, float]]]]:
    """What was logged, by key; those of evaluations apart."""
    train: dict[str, dict[int, float]] = {}
    held_out: dict[str, dict[int, float]] = {}
    damaged = 0
    try:
        for block, lost in blocks(part, format_of(part.name)[1], BLOCK_BYTES):
            damaged += lost
            for line in block.split(b"\n"):
                if not line.strip():
                    continue
                record = record_of(line)
                step = None if record is None else whole(record.get("step"))
                if record is None or step is None:
                    damaged += 1
                    continue
                values = record.get("data")
                for key, value in (values if isinstance(values, dict) else record).items():
                    if key in ("step", "time") or isinstance(value, (bool, str)):
                        continue
                    number = columns.number(value)
                    if number is None:
                        continue
                    prefix = next((prefix for prefix in ("eval/", "eval_") if key.startswith(prefix)), "")
                    (held_out if prefix else train).setdefault(key[len(prefix) :], {})[step] = number
    except columns.UNREADABLE as problem:
        notes.append(f"{part.name} could not be read to its end: {str(problem)[:200]}.")
    if damaged:
        notes.append(f"{damaged} lines of {part.name} could not be read.")
    return (
        {key: sorted(values.items()) for key, values in train.items()},
        {key: sorted(values.items()) for key, values in held_out.items()},
    )


def _lacks(
    spec: Spec, files: Sequence[Part], scalars: Mapping[str, Any], eval_scalars: Mapping[str, Any]
) -> dict[Lack, str]:
    """What these files do not hold."""
    have = set(spec.columns) if files else set()
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
    lacks: dict[Lack, str] = {}
    for lack, column, example in needs:
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
