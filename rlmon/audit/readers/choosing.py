"""Which files of a folder hold rows, and by which columns: a preset says it, the user does, or their names do.

A preset is a JSON file in ``presets/`` that says how one tool writes its rollouts.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from typing import Any

import rlmon.audit.readers.folder as folder
import rlmon.audit.readers.shapes as shapes
from rlmon.audit.readers.guessing import Guess, guessed, summed
from rlmon.audit.readers.layout import CANONICAL, PART, Part, Spec, format_of
from rlmon.audit.readers.parsing import walk
from rlmon.audit.run import Lack
from rlmon.errors import ReadError

UNNAMED = "mapped"
"""Name of a layout that is no preset."""
PROBES = 32
"""Records of a file that are looked into."""
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


def matching(spec: Spec, files: Sequence[Part]) -> list[Part]:
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


def scalars_file(spec: Spec, files: Sequence[Part]) -> Part | None:
    if not spec.scalars:
        return None
    return next((part for part in files if re.fullmatch(spec.scalars, part.name.rpartition("/")[2])), None)


def recognised(files: Sequence[Part], settings: Mapping[str, Any]) -> tuple[Spec, list[Part]] | None:
    """The first preset that fits, else a guess from the names of columns, and the files that it reads."""
    for spec in presets():
        for part in matching(spec, files)[:3] if spec.files else []:
            records = folder.probe(part, 1)
            if records and all(key in records[0] for key in spec.keys):
                return spec, matching(spec, files)
        scalars = scalars_file(spec, files)
        if scalars is not None and spec.scalar_prefixes:
            keys = [key for record in folder.probe(scalars, 4) for key in record]
            if any(key.startswith(spec.scalar_prefixes) for key in keys):
                return spec, matching(spec, files)
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
        name=UNNAMED, columns=best.columns, rewards=best.rewards, within=best.within, written=best.written,
        notes=tuple(notes), lacks=lacks,
        eval_from_name=EVAL_FILE if any(held_out) and not all(held_out) else "",
    )  # fmt: skip
    spec = _with_step(spec, chosen)
    return spec, matching(spec, chosen)


def _place(part: Part) -> tuple[str, str]:
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


def from_mapping(mapping: Mapping[str, str], files: Sequence[Part]) -> tuple[Spec, list[Part]]:
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
    looked_at = [record for part in chosen[:3] for record in folder.probe(part, PROBES)]
    records = [row for record in looked_at for _, row in shapes.flattened(record, spec.within)]
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
