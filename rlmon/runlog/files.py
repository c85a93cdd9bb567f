"""The few ways in which a run directory touches the file system.

Every write goes through ``os.open``, ``os.write`` and ``os.replace``: there is no buffer of ours that a killed
process could lose, and a test can make any of them fail.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

_CREATE = os.O_WRONLY | os.O_CREAT | getattr(os, "O_BINARY", 0)
TMP_SUFFIX = ".tmp"


def write_all(fd: int, data: bytes | memoryview) -> None:
    """Write every byte; a disk that takes none is an error."""
    view = memoryview(data)
    while view:
        written = os.write(fd, view)
        if written == 0:
            raise OSError("the file system accepted no bytes")
        view = view[written:]


def replace_file(path: Path, data: bytes | memoryview, *, fsync: bool = False, mode: int = 0o666) -> None:
    """Make ``path`` hold exactly ``data``, or leave it as it was: a temporary file beside it, then a rename.

    The temporary name starts with a dot and does not end like a data file, so that no glob of a reader takes it.
    """
    tmp = path.parent / f".{path.name}{TMP_SUFFIX}"
    try:
        fd = os.open(tmp, _CREATE | os.O_TRUNC, mode)
        try:
            write_all(fd, data)
            if fsync:
                os.fsync(fd)
        finally:
            os.close(fd)
        os.replace(tmp, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(tmp)
        raise
    if fsync:
        fsync_directory(path.parent)


def fsync_directory(path: Path) -> None:
    """Make renames in ``path`` durable where the file system can; the data itself is already synced."""
    with contextlib.suppress(OSError):
        fd = os.open(path, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def append_bytes(path: Path, line: bytes, *, fsync: bool = False) -> None:
    """Append ``line`` with one ``os.write``; after a failure the file is as long as it was before.

    Raises ``OSError``; ``TornLineError`` where a fragment could not be taken back.
    """
    fd = os.open(path, _CREATE | os.O_APPEND, 0o666)
    try:
        size = os.fstat(fd).st_size
        try:
            write_all(fd, line)
        except OSError as error:
            try:
                if os.fstat(fd).st_size != size:
                    os.ftruncate(fd, size)
            except OSError:
                raise TornLineError(*error.args) from error
            raise
        if fsync:
            # The line is in the file: calling it lost would write it twice.
            with contextlib.suppress(OSError):
                os.fsync(fd)
    finally:
        with contextlib.suppress(OSError):
            os.close(fd)


class TornLineError(OSError):
    """A fragment of a line stayed in the file."""


def read_bytes(path: Path) -> bytes:
    """The whole file. Raises ``OSError``."""
    fd = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
    try:
        pieces = []
        while piece := os.read(fd, 1 << 20):
            pieces.append(piece)
        return b"".join(pieces)
    finally:
        os.close(fd)


def ends_torn(path: Path) -> bool:
    """Whether ``path`` has bytes and the last one is not a newline. False where there is no file."""
    try:
        fd = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
    except FileNotFoundError:
        return False
    try:
        size = os.fstat(fd).st_size
        if size == 0:
            return False
        os.lseek(fd, size - 1, os.SEEK_SET)
        return os.read(fd, 1) != b"\n"
    finally:
        os.close(fd)
