"""JSON lines, JSON, Parquet and CSV files of other trainers, whose columns a mapping names.

A mapping comes from ``--map``, from a preset (a JSON file in ``presets/`` says how one tool writes its rollouts), or is
guessed from common names. Paths into nested values are dotted: ``rewards.total``, ``content.-1``; ``a|b`` takes the
first that is there.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

import rlmon.audit.readers.columns as columns
import rlmon.audit.readers.folder as folder
import rlmon.audit.readers.parsing as parsing
import rlmon.audit.readers.shapes as shapes
from rlmon.audit.readers.files import (
    BLOCK_BYTES,
    CANONICAL,
    LINE_BYTES,
    PART,
    MappedShard,
    Part,
    Spec,
    blocks,
    format_of,
    record_of,
    whole,
)
from rlmon.audit.readers.guessing import Guess, guessed, summed
from rlmon.audit.readers.messages import SPOKEN
from rlmon.audit.readers.parsing import walk
from rlmon.audit.readers.tables import group_size
from rlmon.audit.run import Lack, OpenedRun
from rlmon.errors import ReadError

NAME = "mapped"
SHARD_FILES = 256
PROBES = 32
KINDS = 256
"""Kinds of files in a folder that are looked into."""
EVAL_FILE = r"(?:^|[/_.-])(?:eval|evals|evaluation|val|valid|validation|test)(?:[/_.-]|$)"
"""In names of files of held-out rows, where other files of the same columns are named otherwise."""
_NUMBERED = re.compile(r"[0-9a-f]{8}(?:-?[0-9a-f]{4,})*|\d+", re.ASCII | re.IGNORECASE)
_STEP_IN_NAME = (r"(?:step|iteration|iter)[_-]?(\d{1,15})", r"(\d{1,15})\D*$")
"""The step in the name of a file: said, or its last number."""


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
    _, files = folder.files_below(path)
    return _recognised(files, {}) is not None


def runs_at(path: Path) -> list[Path]:
    """The folders below ``path`` that hold a run each, where they are several; else none."""
    _, files = folder.files_below(path)
    recognised = _recognised(files, {}) if path.is_dir() else None
    places = [] if recognised is None else _separate(*recognised)
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
        spec, chosen = _from_mapping(mapping, files)
    elif preset is not None:
        spec = next(spec for spec in presets() if spec.name == preset)
        chosen = _matching(spec, files)
        if not (chosen or _scalars_file(spec, files)):
            raise ReadError(
                f"{str(path)!r} has no file as {preset} names them (wanted {spec.files or spec.scalars}, found "
                f"{folder.shown([file.name for file in files])})."
            )
    else:
        recognised = _recognised(files, settings)
        if recognised is None:
            raise ReadError(
                f"No columns of {str(path)!r} could be recognised (there are "
                f"{folder.shown(folder.columns_of(files))}). Name them with "
                "--map prompt=...,completion=...,reward=...,step=..."
            )
        spec, chosen = recognised
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
    spec = _probed(spec, chosen, notes)
    _refuse_steps(spec, chosen, path)
    scalar_file = _scalars_file(spec, files)
    scalars, eval_scalars = _scalars(scalar_file, spec, notes) if scalar_file is not None else ({}, {})
    return OpenedRun(
        reader=spec.name,
        run_id=path.resolve().name or spec.name,
        path=path,
        shards=_plan(spec, chosen, notes),
        scalars=scalars,
        eval_scalars=eval_scalars,
        config=settings,
        group_size=group_size(settings),
        reward_weights={shapes.short(path): weight for path, weight in spec.rewards.items()},
        lacks=_lacks(spec, chosen, scalars, eval_scalars),
        notes=notes,
    )


# Which files, and what is in them


def _matching(spec: Spec, files: Sequence[Part]) -> list[Part]:
    """Files that the spec reads, with the step that their names give."""
    chosen = []
    for part in files:
        if spec.files and not re.fullmatch(spec.files, part.name):
            continue
        if spec.scalars and re.fullmatch(spec.scalars, part.name.rpartition("/")[2]):
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
    return next((part for part in files if re.fullmatch(spec.scalars, part.name.rpartition("/")[2])), None)


def _recognised(files: Sequence[Part], settings: Mapping[str, Any]) -> tuple[Spec, list[Part]] | None:
    """The first preset that fits, else a guess from the names of columns, and the files that it reads."""
    for spec in presets():
        for part in _matching(spec, files)[:3] if spec.files else []:
            records = folder.probe(part, 1)
            if records and all(key in records[0] for key in spec.keys):
                return spec, _matching(spec, files)
        scalars = _scalars_file(spec, files)
        if scalars is not None and spec.scalar_prefixes:
            keys = [key for record in folder.probe(scalars, 4) for key in record]
            if any(key.startswith(spec.scalar_prefixes) for key in keys):
                return spec, _matching(spec, files)
    return _chosen(files, lambda records: guessed(records, settings))


def _chosen(
    files: Sequence[Part], judge: Callable[[list[dict[str, Any]]], Guess | None]
) -> tuple[Spec, list[Part]] | None:
    """What the rows are and the files that hold them; ``None`` where no file is judged to hold any.

    Files whose names differ in numbers only are of one kind. The kind that says most is read, and every other kind
    with the same columns; settings, metrics and tables of other columns stay aside.
    """
    kinds: dict[str, list[Part]] = {}
    for part in files:
        kinds.setdefault(_NUMBERED.sub("#", part.name), []).append(part)
    found: list[tuple[Guess, list[Part]]] = []
    for parts in list(kinds.values())[:KINDS]:
        records = next((records for part in parts[:3] if (records := folder.probe(part, 4))), [])
        guess = judge(records) if records else None
        if guess is not None:
            found.append((guess, parts))
    if not found:
        return None
    best, _ = max(found, key=lambda one: _worth(*one))
    same = [part for guess, parts in found for part in parts if guess == best]
    # Names without a pattern: those beyond the ones that were looked into are taken for what their neighbours are.
    places = {_place(part) for part in same}
    same += [
        part
        for parts in list(kinds.values())[KINDS:]
        for part in parts
        if _place(part) in places and not folder.is_settings(part)
    ]
    chosen = sorted(same, key=lambda part: folder.natural(part.name))
    other = [parts[0].name for guess, parts in found if guess != best]
    notes = list(best.notes)
    if other:
        notes.append(
            f"Set aside since their columns are others: {folder.shown(other)}. Give one of them to look at it alone."
        )
    lacks: Mapping[Lack, str] = {}
    if best.question:
        notes.append(f"No reward was read: {best.question}")
        lacks = {"rewards": best.question}
    held_out = [bool(re.search(EVAL_FILE, part.name)) for part in chosen]
    spec = Spec(
        name=NAME, columns=best.columns, rewards=best.rewards, within=best.within, written=best.written,
        notes=tuple(notes), lacks=lacks,
        eval_from_name=EVAL_FILE if any(held_out) and not all(held_out) else "",
    )  # fmt: skip
    spec = _with_step(spec, chosen)
    return spec, _matching(spec, chosen)


def _place(part: Part) -> tuple[str, str]:
    """The folder of a file and its kind."""
    return part.name.rpartition("/")[0], format_of(part.name)[0]


def _worth(guess: Guess, parts: Sequence[Part]) -> tuple[bool, bool, bool, int]:
    """How much a kind of files says: steps, rewards, prompts, then its size."""
    stepped = "step" in guess.columns or len(parts) > 1
    scored = "reward" in guess.columns or bool(guess.rewards) or bool(guess.question)
    return stepped, scored, "prompt" in guess.columns, sum(part.bytes for part in parts)


def _with_step(spec: Spec, files: Sequence[Part]) -> Spec:
    """The spec with steps from the names of files where no column has them, or the note that all rows are step 0."""
    if "step" in spec.columns:
        return spec
    for pattern in _STEP_IN_NAME:
        numbers = [match[1] for part in files if (match := re.search(pattern, part.name))]
        said = pattern is _STEP_IN_NAME[0]
        if len(files) > 1 and len(numbers) == len(files) and len(set(numbers)) > (1 if said else len(files) - 1):
            note = "No column has the step: it was taken from the names of the files."
            return dataclasses.replace(spec, step_from_name=pattern, notes=(*spec.notes, note))
    note = (
        "No column has the step: all rows are taken as step 0, so nothing can be said about change. Add step= to --map."
    )
    return dataclasses.replace(spec, notes=(*spec.notes, note))


def _from_mapping(mapping: Mapping[str, str], files: Sequence[Part]) -> tuple[Spec, list[Part]]:
    """The user's own columns, checked against those that are there, and the files that have them."""
    unknown = sorted(set(mapping) - set(CANONICAL))
    if unknown:
        raise ReadError(f"--map knows no {', '.join(map(repr, unknown))}; it knows {', '.join(CANONICAL)}.")
    if not {"completion", "reward"} & mapping.keys():
        raise ReadError("--map needs completion=... or reward=..., else there is nothing to look at.")
    if not any(folder.probe(part, 1) for part in files[:KINDS]):
        raise ReadError(f"No record could be read in {folder.shown([part.name for part in files])}.")
    found = _chosen(files, lambda records: _by_mapping(mapping, records))
    if found is None:
        ours, theirs = next((ours, mapping[ours]) for ours in ("completion", "reward") if ours in mapping)
        raise ReadError(_no_column(ours, theirs, files))
    spec, chosen = found
    probed = [record for part in chosen[:3] for record in folder.probe(part, PROBES)]
    records = [row for record in probed for _, row in shapes.flattened(record, spec.within)]
    for ours, path in spec.paths.items():
        if not any(_has(record, path) for record in records):
            raise ReadError(_no_column("reward" if ours.startswith(PART) else ours, path, files))
    return spec, chosen


def _by_mapping(mapping: Mapping[str, str], records: Sequence[Mapping[str, Any]]) -> Guess | None:
    """The user's columns as they lie in these records; ``None`` where they have neither completion nor reward."""
    content = [mapping[name] for name in ("completion", "reward") if name in mapping]
    within: tuple[str, ...] = ()
    if not any(_has(record, path) for record in records for path in content):
        tops = [option.split(".")[0] for path in content for option in path.split("|")]
        within = next((path for record in records if (path := shapes.nested_in(record, tops))), ())
    rows = [row for record in records for _, row in shapes.flattened(record, within)]
    columns = dict(mapping)
    rewards = summed(columns.get("reward", ""), {key for row in rows for key in row})
    if rewards:
        del columns["reward"]
    if not any(
        _has(row, path) for row in rows for path in [*columns.values(), *rewards] if path in content or path in rewards
    ):
        return None
    return Guess(columns=columns, rewards=rewards, within=within)


def _has(record: Mapping[str, Any], path: str) -> bool:
    """Whether a path leads to something in a record, or at least begins in it."""
    return walk(record, path) is not None or any(
        alternative.split(".")[0] in record for alternative in [path, *path.split("|")]
    )


def _no_column(ours: str, theirs: str, files: Sequence[Part]) -> str:
    return (
        f"There is no column {theirs!r} for {ours}; there are {folder.shown(folder.columns_of(files))}. Change --map."
    )


def _probed(spec: Spec, files: Sequence[Part], notes: list[str]) -> Spec:
    """The spec with the shape of its records, and the types of the top-level keys it uses where whole blocks can be
    parsed at once."""
    if spec.rows != "line":
        return spec
    records = [record for part in [*files[:2], *files[-1:]] for record in folder.probe(part, PROBES)]
    spec = _folded(spec, records, notes)
    if spec.folded or "tool_calls" in spec.columns:
        return spec
    tops: dict[str, None] = {}
    for path in spec.paths.values():
        plain = any(path in record for record in records)
        for option in [path] if plain else path.split("|"):
            tops[option if plain else option.split(".")[0]] = None
    if spec.eval_key:
        tops[spec.eval_key] = None
    nested = [path for path in spec.paths.values() if path not in tops]
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
        if "null" in str(kind) or (pa.types.is_struct(kind) and name in spec.paths.values()):
            return spec
        full = _with_all_that_is_said(kind)
        if full is None:
            return spec
        kinds.append((name, full))
    return dataclasses.replace(spec, kinds=tuple(kinds))


class NoStepsError(ReadError):
    """There are rows of completions, and nothing says of which step they are."""


def _refuse_steps(spec: Spec, files: Sequence[Part], path: Path) -> None:
    """Raises ``NoStepsError`` where none of the rows that are looked into has a step that can be read."""
    if spec.rows != "line" or "step" not in spec.columns:
        return
    probed = [record for part in [*files[:2], *files[-1:]] for record in folder.probe(part, PROBES)]
    flat = [row for record in probed for _, row in shapes.flattened(record, spec.within)]
    steps = [walk(row, spec.columns["step"]) for row in flat]
    given = [step for step in steps if step is not None]
    if given and all(whole(parsing.single(step)) is None for step in given):
        raise NoStepsError(
            f"None of the first {len(steps)} rows of {str(path)!r} has a whole number as its step, under "
            f"{spec.columns['step']!r} (the first has {str(given[0])[:60]!r}). Name the column that counts steps: "
            "--map step=..., with completion=... and reward=..."
        )


def _folded(spec: Spec, records: Sequence[Mapping[str, Any]], notes: list[str]) -> Spec:
    """The spec with what its records hold: one row, or several, nested or as lists."""
    rows = [
        {name: shapes.listed(walk(flat, path)) for name, path in spec.paths.items()}
        for record in records
        for _, flat in shapes.flattened(record, spec.within)
    ]
    many = spec.columns.get("completion", "").rpartition(".")[2] in shapes.MANY
    several = [row for row in rows if shapes.holds_several(row, many)]
    together = [row for row in several if shapes.scored_together(row)]
    if together:
        why = (
            f"records have one reward for several completions ({len(together[0]['completion'])} in the first of them), "
            "so it is not known which of them earned it: their rewards are missing here. Write a list of rewards."
        )
        notes.append(why[0].upper() + why[1:])
        if len(together) == len(rows):
            spec = dataclasses.replace(spec, lacks={**spec.lacks, "rewards": why})
    prompt = spec.columns.get("prompt", "").split(".")[0]
    inner = [item for record in records for item in shapes.innermost(record, spec.within)]
    whole = spec.columns.get("prompt") is not None and spec.columns["prompt"] == spec.columns.get("completion")
    return dataclasses.replace(
        spec,
        folded=bool(spec.within or spec.written or several or whole),
        grouped=bool(spec.within) and bool(prompt) and not any(prompt in item for item in inner),
    )


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
    records = folder.probe(part, 1)
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
    part: Part, spec: Spec, notes: list[str]
) -> tuple[dict[str, list[tuple[int, float]]], dict[str, list[tuple[int, float]]]]:
    """What was logged, by key; those of evaluations apart."""
    train: dict[str, dict[int, float]] = {}
    held_out: dict[str, dict[int, float]] = {}
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
    for record in records:
        step = whole(walk(record, spec.scalar_step))
        if step is None:
            damaged += 1
            continue
        values = next((values for name in ("data", "metrics") if isinstance(values := record.get(name), dict)), record)
        for key, value in values.items():
            if key in ("step", "time", spec.scalar_step) or isinstance(value, (bool, str)):
                continue
            number = columns.number(value)
            if number is None:
                continue
            prefix = next((prefix for prefix in ("eval/", "eval_") if key.startswith(prefix)), "")
            (held_out if prefix else train).setdefault(key[len(prefix) :], {})[step] = number
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
    probed = [record for part in files[:2] for record in folder.probe(part, PROBES)]
    optional = {name for name, path in spec.columns.items() if "|" in path}
    have -= {name for name in optional if all(walk(record, spec.columns[name]) is None for record in probed)}
    lacks: dict[Lack, str] = {}
    encoded = next((name for record in probed[:4] for name in record if columns.TOKEN_IDS.search(name)), None)
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
