"""Many small parts become few large segments, without a moment at which a row is absent or there twice.

A segment counts once ``manifest.json`` lists it; the same, atomic write of the manifest retires the files that it
replaces, and only then are those unlinked. A reader that finds the manifest unchanged after reading has seen every row
once (see ``reader.read_table``). A crash before the manifest leaves a segment that nobody counts; a crash after it
leaves parts that nobody counts; the next compaction removes either. Parts are immutable and their names are never
used again, so that other ranks may go on writing.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

import rlmon.runlog.files as files
import rlmon.runlog.layout as layout
import rlmon.runlog.lines as lines
import rlmon.runlog.schema as schema
from rlmon.errors import RunLogError, SchemaError
from rlmon.records import SCHEMA_VERSION

try:
    import fcntl
except ImportError:  # not on Windows; there two compactions must not run at once
    fcntl = None  # type: ignore[assignment]

SEGMENT_BYTES = 64 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Listing:
    """What ``manifest.json`` says about one folder."""

    segments: tuple[str, ...] = ()
    """Segments that count, oldest first."""
    retired: frozenset[str] = frozenset()
    """Files replaced by a segment that may still be there; they do not count."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """``manifest.json``."""

    generation: int = 0
    """Plus one at every write; names the next segment."""
    folders: dict[str, Listing] = field(default_factory=dict)

    def listing(self, folder: str) -> Listing:
        """What it says about ``folder``."""
        return self.folders.get(folder, Listing())


def read_manifest(path: Path) -> Manifest:
    """The manifest of a run directory; an empty one where there is none. Raises ``RunLogError``, ``SchemaError``."""
    file = path / layout.MANIFEST_FILE
    try:
        value = json.loads(files.read_bytes(file))
        schema.migrations_from(value["schema_version"], str(file))
        folders = {
            name: Listing(segments=tuple(entry["segments"]), retired=frozenset(entry["retired"]))
            for name, entry in value["folders"].items()
        }
        for listing in folders.values():
            # A name with a path in it would lead out of the run.
            if strange := [name for name in listing.segments if not (layout.is_segment(name) and _plain(name))]:
                raise ValueError(f"{strange[0]!r:.80} is no segment")
        return Manifest(generation=int(value["generation"]), folders=folders)
    except FileNotFoundError:
        return Manifest()
    except SchemaError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError, OSError) as error:
        raise RunLogError(
            f"cannot read {file} ({type(error).__name__}: {error}); it says which row files count. Restore it."
        ) from error


def _plain(name: str) -> bool:
    return name.isascii() and not {"/", "\\", "\0"} & set(name)


def write_manifest(path: Path, manifest: Manifest, *, fsync: bool) -> None:
    """Replace ``manifest.json``. Raises ``OSError``."""
    value = {
        "schema_version": SCHEMA_VERSION,
        "generation": manifest.generation,
        "folders": {
            name: {"segments": list(listing.segments), "retired": sorted(listing.retired)}
            for name, listing in manifest.folders.items()
        },
    }
    data = lines.dump(value, indent=1).encode("ascii") + b"\n"
    files.replace_file(path / layout.MANIFEST_FILE, data, fsync=fsync)


def live_files(folder: Path, listing: Listing) -> list[str]:
    """Names of the files in ``folder`` that count: listed segments, then parts that no segment replaced."""
    parts = (name for name in layout.list_names(folder) if layout.is_part(name) and name not in listing.retired)
    return [*listing.segments, *parts]


def compact(
    path: str | os.PathLike[str],
    *,
    fsync: bool = False,
    budget_seconds: float | None = None,
    segment_bytes: int = SEGMENT_BYTES,
) -> None:
    """Merge the parts of a run directory into segments of about 64 MB. Idempotent; the rows stay the same.

    May run beside readers and writers and be killed at any point; a second compaction at the same time returns at
    once. ``budget_seconds``: start no further segment after that time. Files that cannot be read are left as they
    are. Raises ``RunLogError`` (also ``OSError``) and ``SchemaError``.
    """
    root = Path(path)
    if not layout.read_attempts(root):
        raise RunLogError(f"{root} is not an rlmon run directory: it has no {layout.RUN_FILE}.")
    deadline = None if budget_seconds is None else time.monotonic() + budget_seconds
    try:
        with _locked(root) as locked:
            if locked:
                _compact_locked(root, deadline, segment_bytes, fsync=fsync)
    except RunLogError:
        raise
    except OSError as error:
        raise RunLogError(f"cannot compact {root}: {error}. The log is as readable as before.") from error


def _compact_locked(root: Path, deadline: float | None, segment_bytes: int, *, fsync: bool) -> None:
    manifest = _clean(root, read_manifest(root), fsync=fsync)
    for folder in schema.TABLES:
        # A live writer adds parts all the time: only those there now are taken, so that this ends.
        present = set(live_files(root / folder, manifest.listing(folder)))
        before = -1
        # Segments may come out small enough to take in more parts: go on until nothing changes.
        while before != manifest.generation:
            before = manifest.generation
            live = live_files(root / folder, manifest.listing(folder))
            names = [name for name in live if name in present or layout.is_segment(name)]
            for group in _groups(root / folder, names, segment_bytes):
                if deadline is not None and time.monotonic() > deadline:
                    return
                manifest = _merge(root, folder, group, manifest, fsync=fsync)
    _clean(root, manifest, fsync=fsync)


@contextlib.contextmanager
def _locked(root: Path) -> Iterator[bool]:
    """Whether this process is the only one compacting ``root``; the lock dies with the process."""
    fd = os.open(root / layout.LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        if fcntl is not None:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
        yield True
    finally:
        os.close(fd)


def _groups(folder: Path, names: list[str], segment_bytes: int) -> Iterator[list[str]]:
    """Neighbouring files that together make one segment; single files and large ones stay as they are."""
    group: list[str] = []
    size = 0
    for name in [*names, None]:
        if name is not None:
            try:
                bytes_ = os.stat(folder / name).st_size
            except FileNotFoundError:
                continue
            if bytes_ >= segment_bytes // 2:
                continue
        if name is None or (group and size + bytes_ > segment_bytes):
            # Segments among themselves stay: only new parts are worth writing old rows again.
            if len(group) > 1 and not all(map(layout.is_segment, group)):
                yield group
            group, size = [], 0
        if name is not None:
            group.append(name)
            size += bytes_


def _merge(root: Path, folder: str, names: list[str], manifest: Manifest, *, fsync: bool) -> Manifest:
    """One segment in place of ``names``: written, then listed, then they are unlinked."""
    tables, merged = [], []
    for name in names:
        try:
            with pq.ParquetFile(pa.BufferReader(files.read_bytes(root / folder / name))) as parquet:
                if schema.file_version(parquet.schema_arrow.metadata, name) != SCHEMA_VERSION:
                    continue
                table = parquet.read(use_threads=False)
        except (OSError, pa.ArrowException):
            continue
        tables.append(table)
        merged.append(name)
    if len(merged) < 2:
        return manifest
    # Columns of a newer minor version stay; rows that lack them are null there.
    table = pa.concat_tables(tables, promote_options="default")
    generation = manifest.generation + 1
    segment = f"segment-{generation:08d}.parquet"
    files.replace_file(root / folder / segment, schema.parquet_bytes(table, small_codec="zstd"), fsync=fsync)
    listing = manifest.listing(folder)
    updated = Manifest(
        generation=generation,
        folders={
            **manifest.folders,
            folder: Listing(
                segments=(*(name for name in listing.segments if name not in merged), segment),
                retired=listing.retired | set(merged),
            ),
        },
    )
    write_manifest(root, updated, fsync=fsync)
    for name in merged:
        with contextlib.suppress(OSError):
            os.unlink(root / folder / name)
    return updated


def _clean(root: Path, manifest: Manifest, *, fsync: bool) -> Manifest:
    """Remove what a crash left behind, and forget retired names that are gone."""
    folders = {}
    for folder in schema.TABLES:
        listing = manifest.listing(folder)
        present = layout.list_names(root / folder)
        for name in present:
            orphan = layout.is_segment(name) and name not in listing.segments
            half = name.startswith(".segment-") and name.endswith(files.TMP_SUFFIX)
            if orphan or half or name in listing.retired:
                with contextlib.suppress(OSError):
                    os.unlink(root / folder / name)
        left = listing.retired.intersection(layout.list_names(root / folder))
        folders[folder] = Listing(segments=listing.segments, retired=left)
    cleaned = Manifest(generation=manifest.generation + 1, folders=folders)
    if folders == {folder: manifest.listing(folder) for folder in schema.TABLES}:
        return manifest
    write_manifest(root, cleaned, fsync=fsync)
    return cleaned
