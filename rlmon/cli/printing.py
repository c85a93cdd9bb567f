"""What every command says and writes: results to stdout, notes to stderr, files as a whole."""

from __future__ import annotations

import contextlib
import os
import secrets
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rlmon.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import RenderableType


USAGE_OR_UNREADABLE = 2


@contextlib.contextmanager
def reader_may_leave() -> Iterator[None]:
    """Whoever reads our output may have had enough (``| head``): what follows goes nowhere, and nothing is said."""
    try:
        yield
    except BrokenPipeError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def say(text: str = "", end: str = "\n") -> None:
    with reader_may_leave():
        sys.stdout.write(text + end)


def draw(drawing: RenderableType) -> None:
    from rich.console import Console

    with reader_may_leave():
        Console(highlight=False).print(drawing)


def note(text: str) -> None:
    from rlmon.printable import one_line

    print(one_line(text, 4_000), file=sys.stderr)


def aligned(rows: Sequence[Sequence[str]]) -> Iterable[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]) - 1)]
    for row in rows:
        yield "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]]).rstrip()


def write(file: Path, text: str) -> None:
    """Replace the file as a whole. A link there is replaced and not followed: a run's folder may come from anybody."""
    temporary = file.parent / f".{file.name}.{secrets.token_hex(4)}.tmp"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "x", encoding="utf-8", errors="backslashreplace") as stream:
            stream.write(text)
        os.replace(temporary, file)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise ConfigError(f"cannot write {file}: {error.strerror or error}. Choose another file.") from error
