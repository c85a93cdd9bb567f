"""What lies in a folder, and the first records of its files."""

from __future__ import annotations

import contextlib
import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

import rlmon.audit.readers.columns as columns
from rlmon.audit.readers.layout import FORMATS, Part, format_of
from rlmon.audit.readers.raw import blocks, csv_batches, json_records, record_of
from rlmon.printable import several

PROBED_BYTES = 8 << 20
DEPTH = 5
ENTRIES = 200_000
OF_ONE_RUN = re.compile(
    r"(?:^|[_.-])(?:rank|worker|shard|gpu|node|proc|process|part|replica|device|host|step|steps|iter|iteration|epoch|round|"
    r"version|checkpoint|ckpt|train|eval|evals|val|validation|test|rollouts|samples|group|prompt|problem)(?:$|[_.-]|\d)",
    re.IGNORECASE,
)
"""In names of folders that are parts of one run."""
SETTINGS_FILES = frozenset({"config.json", "args.json", "training_args.json", "grpo_config.json", "metadata.json"})
SETTINGS_BYTES = 1 << 20


def files_below(path: Path) -> tuple[Path, list[Part]]:
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
    return path, sorted(found, key=lambda part: natural(part.name))


def natural(name: str) -> list[tuple[int, int, str]]:
    """A key under which step_10 comes after step_9."""
    return [
        (0, int(piece), "") if piece.isascii() and piece.isdigit() and len(piece) < 19 else (1, 0, piece)
        for piece in re.split(r"(\d+)", name)
    ]


def is_settings(part: Part) -> bool:
    """Whether the name of a file is one that trainers give to their settings."""
    return part.name.rpartition("/")[2] in SETTINGS_FILES


def settings_of(files: Sequence[Part]) -> dict[str, Any]:
    """The trainer's settings, where a file beside the rows has them; later files win."""
    found: dict[str, Any] = {}
    for part in files:
        if is_settings(part) and part.bytes <= SETTINGS_BYTES:
            for record in probe(part, 1):
                found |= {key: value for key, value in record.items() if isinstance(value, (int, float, str, list))}
    return found


def columns_of(files: Sequence[Part]) -> list[str]:
    names: dict[str, None] = {}
    for part in files[:3]:
        for record in probe(part, 4):
            names.update(dict.fromkeys(record))
    return list(names)


def shown(names: Sequence[str]) -> str:
    """Names of files or columns for a message."""
    return several([repr(name[:60]) for name in names], 12) or "none"


def probe(part: Part, count: int) -> list[dict[str, Any]]:
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


def runs_in(parts: Sequence[Part]) -> list[str]:
    """Folders that hold a run each: files of the same name and step lie in several of them. Empty: all is one run.

    Ranks, steps and sides of one run lie beside each other too: their folders say so.
    """
    places: dict[str, set[tuple[str, int | None]]] = {}
    for part in parts:
        place, _, name = part.name.rpartition("/")
        if format_of(name)[0] != "json":  # which may be a file a row
            places.setdefault(place, set()).add((name, part.step))
    found = Counter(key for keys in places.values() for key in keys)
    if len(places) < 2 or max(found.values()) < 2:
        return []
    paths = [place.split("/") for place in places]
    while len({path[-1] for path in paths}) == 1 and min(map(len, paths)) > 1:
        paths = [path[:-1] for path in paths]
    common = next(
        (at for at, names in enumerate(zip(*paths, strict=False)) if len(set(names)) > 1), min(map(len, paths))
    )
    if any(OF_ONE_RUN.search(name) for path in paths for name in path[common:]):
        return []
    return list(dict.fromkeys("/".join(path) for path in paths))
