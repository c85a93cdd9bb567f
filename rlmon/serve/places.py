"""Where the runs below a folder are, and whether their files changed. Nothing is opened, and no link leads outside."""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rlmon import __version__
from rlmon.audit.readers import all_runs_at
from rlmon.audit.readers.columns import place_and_run
from rlmon.printable import one_line

KEY_CHARACTERS = 16
MAX_FILES = 20_000
"""Of a run of more files, those that are met first are looked at."""
DEPTH = 6
NOT_READ = re.compile(r"\.(html|safetensors|bin|pt|pth|ckpt|gguf|pkl|pickle|tmp|lock)$", re.IGNORECASE)
"""What no reader reads: it makes a run neither new nor large."""
OF_WANDB = re.compile(r"(^|/)logs/debug[\w.-]*\.log$")
"""W&B's own log, which it links to its cache and no reader reads."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """A run, and the key that stands for it in addresses: no path is ever part of one."""

    key: str
    path: Path
    name: str
    """Where it lies below the folder, printable."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Mark:
    """The files of a run as they are now. Two marks of one version: nothing changed."""

    version: str
    bytes: int
    changed_unix_seconds: float
    """The newest change of any of its files; 0 where it has none."""
    refused: str
    """Why none of its files may be opened; empty: they may."""


def places(root: Path) -> list[Place]:
    """The runs at and below ``root``, whose links are resolved."""
    found: dict[str, Place] = {}
    for path in all_runs_at(root):
        relative = os.path.relpath(path, root)
        key = hashlib.sha256(os.fsencode(relative)).hexdigest()[:KEY_CHARACTERS]
        name = root.name if relative == "." else Path(relative).as_posix()
        found[key] = Place(key=key, path=path, name=one_line(name, 200))
    return list(found.values())


def mark(root: Path, path: Path) -> Mark:
    """By names, sizes and times of change. A link that leads out of ``root`` refuses the run: what it names may be
    anybody's."""
    place = place_and_run(path)[0]
    digest = hashlib.sha256(__version__.encode())
    size, newest, refused = 0, 0, ""
    for name, entry in _files(place):
        try:
            if os.path.islink(entry) and not OF_WANDB.search(name) and not _inside(root, entry):
                refused = f"its {one_line(name, 100)!r} is a link that leads outside of the folder that is served"
            about = os.lstat(entry) if OF_WANDB.search(name) else os.stat(entry)
        except OSError:
            continue
        if not stat.S_ISREG(about.st_mode) or NOT_READ.search(name):
            continue
        digest.update(f"{name}\0{about.st_size}\0{about.st_mtime_ns}\n".encode("utf-8", "surrogateescape"))
        size += about.st_size
        newest = max(newest, about.st_mtime_ns)
    if not _inside(root, str(place)):
        refused = "it leads outside of the folder that is served"
    return Mark(
        version=digest.hexdigest()[:KEY_CHARACTERS], bytes=size, changed_unix_seconds=newest / 1e9, refused=refused
    )


def _inside(root: Path, path: str) -> bool:
    try:
        return Path(path).resolve().is_relative_to(root)
    except (OSError, RuntimeError, ValueError):
        return False


def _files(place: Path) -> Iterator[tuple[str, str]]:
    """Files and links of a run, hidden ones left out: name inside of it, and path. Links to folders are not entered."""
    if not place.is_dir():
        yield place.name, str(place)
        return
    left = MAX_FILES
    pending = [(str(place), "", 0)]
    while pending:
        folder, below, depth = pending.pop()
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError:
            continue
        for entry in entries:
            if entry.name.startswith("."):
                continue
            left -= 1
            if left < 0:
                return
            name = f"{below}{entry.name}"
            if entry.is_dir(follow_symlinks=False):
                if depth < DEPTH:
                    pending.append((entry.path, f"{name}/", depth + 1))
            else:
                yield name, entry.path
