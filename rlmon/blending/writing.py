"""Blends as files: a stretch of values at a time, in a folder that takes its name when it is whole."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO

from rlmon.blending.folders import read_json
from rlmon.blending.matching import Piece
from rlmon.blending.tensors import BYTES, Shard, Tensor, blended, names, unreadable
from rlmon.errors import ConfigError, WeightsError
from rlmon.printable import one_line

NOTE = "blend.json"
TOOL = "rlmon blend"
VALUES_AT_ONCE = 2**20
"""Values that are held of a tensor: some 30 MB with all that is made of them on the way."""


class Reader(contextlib.ExitStack):
    """Reads stretches of tensors from files that stay open until it is left."""

    def __init__(self) -> None:
        super().__init__()
        self._streams: dict[Path, IO[bytes]] = {}

    def read(self, tensor: Tensor, start: int, count: int) -> bytes:
        """``count`` values from the ``start``-th on."""
        size = BYTES[tensor.dtype]
        try:
            if tensor.file not in self._streams:
                self._streams[tensor.file] = self.enter_context(open(tensor.file, "rb"))  # noqa: SIM115
            stream = self._streams[tensor.file]
            stream.seek(tensor.begin + start * size)
            data = stream.read(count * size)
        except OSError as error:
            raise unreadable(tensor.file, error) from error
        if len(data) < count * size:
            raise WeightsError(
                f"{one_line(str(tensor.file))} became shorter while it was read: let what writes it end first."
            )
        return data


def stretches(piece: Piece, alpha: float, reader: Reader, differ: set[str]) -> Iterator[tuple[bytes, bytes]]:
    """The values of a checkpoint's tensor and those of the blend, a stretch at a time. A tensor that is no float is
    copied, and named in ``differ`` where it is another in the base."""
    tensor, base = piece.tensor, piece.base
    shared = 0 if base is None else base.count
    for start in range(0, tensor.count, VALUES_AT_ONCE):
        count = min(VALUES_AT_ONCE, tensor.count - start)
        ours = reader.read(tensor, start, count)
        both = max(0, min(count, shared - start))
        if base is None or not both:
            yield ours, ours
            continue
        theirs = reader.read(base, start, both)
        if not tensor.is_float:
            if theirs != ours:
                differ.add(tensor.name)
            yield ours, ours
            continue
        cut = both * BYTES[tensor.dtype]
        try:
            made = blended(theirs, ours[:cut], alpha, base.dtype, tensor.dtype)
        except ValueError as error:
            raise WeightsError(f"{tensor} {error}.") from error
        yield ours, made if both == count else made + ours[cut:]


def write_shard(
    shard: Shard,
    file: Path,
    pieces: Mapping[str, Piece],
    alpha: float,
    reader: Reader,
    tell: Callable[[int], None],
    differ: set[str],
) -> tuple[str, str]:
    """The blend of a shard, with its header; the SHA-256 of the checkpoint's file and of what was written come back.
    ``tell`` is called with the bytes that were written."""
    read, written = hashlib.sha256(shard.head), hashlib.sha256(shard.head)
    with open(file, "xb") as stream:
        stream.write(shard.head)
        for tensor in shard.tensors:
            for ours, made in stretches(pieces[tensor.name], alpha, reader, differ):
                read.update(ours)
                written.update(made)
                stream.write(made)
                tell(len(made))
        stream.flush()
        os.fsync(stream.fileno())
    return read.hexdigest(), written.hexdigest()


def sha256(file: Path) -> str:
    digest = hashlib.sha256()
    try:
        with open(file, "rb") as stream:
            while part := stream.read(2**22):
                digest.update(part)
    except OSError as error:
        raise unreadable(file, error) from error
    return digest.hexdigest()


def refuse_occupied(out: Path) -> None:
    """Raise ``ConfigError`` where something lies that a blend must not replace: only an earlier blend, whole and with
    nothing added to it, is replaced."""
    shown = one_line(str(out))
    if not os.path.lexists(out):
        return
    if not out.is_dir():
        raise ConfigError(f"--out has to be a folder that is new or empty, and {shown} is a file. Type another --out.")
    there = sorted(file.name for file in out.iterdir())
    if there and NOTE not in there:
        raise ConfigError(
            f"--out has to be a folder that is new or empty, and {shown} has {names(there)}. Type another --out."
        )
    own: set[str] = set()
    if there:
        with contextlib.suppress(WeightsError, TypeError):
            note = read_json(out / NOTE)
            own = {NOTE, *note.get("files", ())} if note.get("tool") == TOOL else set()
    strange = [name for name in there if name not in own]
    # The note is what a blend is finished with: training that goes on from a blend may leave the names that it had.
    changed = [name for name in there if (out / name).stat().st_ctime_ns > (out / NOTE).stat().st_ctime_ns]
    if strange or changed:
        what = f"{names(strange)} beside a blend" if strange else f"{names(changed)} that is no longer the blend's"
        raise ConfigError(f"{shown} has {what}, which would be lost. Type another --out, or move it away first.")


def refuse_full(out: Path, needed: int) -> None:
    """Raise ``WeightsError`` where the disk has too little room."""
    near = next(folder for folder in (out, *out.parents) if folder.exists())
    free = shutil.disk_usage(near).free
    if free < needed:
        raise WeightsError(
            f"A blend of {needed / 1e9:.2f} GB does not fit on the disk of {one_line(str(out))}, which has "
            f"{free / 1e9:.2f} GB free. Type an --out on another disk, or make room."
        )


@contextlib.contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder beside ``out`` to write to, which becomes ``out`` when the block ends; where it fails, or is stopped,
    the folder is removed and ``out`` stays what it was."""
    made = out.parent / f".{out.name}.{secrets.token_hex(4)}.unfinished"
    try:
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            made.mkdir()
            yield made
            _take_the_place(made, out)
        except OSError as error:
            if isinstance(error, WeightsError):
                raise
            why = "the disk is full" if error.errno == errno.ENOSPC else error.strerror or str(error)
            raise WeightsError(
                f"cannot write {one_line(str(out))}: {why}. Nothing of the blend is left; type an --out elsewhere, "
                "or make room."
            ) from error
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _take_the_place(made: Path, out: Path) -> None:
    if not out.exists():
        os.rename(made, out)
        return
    refuse_occupied(out)  # once more: it may have been filled meanwhile
    before = out.parent / f".{out.name}.{secrets.token_hex(4)}.replaced"
    os.rename(out, before)
    try:
        os.rename(made, out)
    except BaseException:
        os.rename(before, out)
        raise
    shutil.rmtree(before, ignore_errors=True)


def unfinished(out: Path) -> list[Path]:
    """What blends to ``out`` have left that were killed, or are under way."""
    beside = out.parent.glob(f".{out.name.replace('[', '[[]')}.*")
    return sorted(folder for folder in beside if folder.suffix in (".unfinished", ".replaced"))


def write_text(file: Path, text: str) -> str:
    """Write a file; its SHA-256 comes back."""
    data = text.encode("utf-8")
    file.write_bytes(data)
    return hashlib.sha256(data).hexdigest()


def copy(source: Path, folder: Path) -> str:
    """Copy a file; its SHA-256 comes back."""
    digest = sha256(source)
    shutil.copyfile(source, folder / source.name)
    return digest
