"""How the commands that read a run open it, and the options that they share."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rlmon.errors import ConfigError

if TYPE_CHECKING:
    from rlmon.audit.result import Audit


ReaderName = Annotated[
    str | None,
    typer.Option(
        "--reader",
        metavar="NAME",
        help="The reader to use, for example trl, wandb or tensorboard. Default: what the files look like.",
    ),
]
Mapped = Annotated[
    str | None,
    typer.Option(
        "--map",
        metavar="OUR=THEIRS,...",
        help="Which of the file's columns are prompt, completion, reward, step, ... (implies the mapped reader).",
    ),
]
Baseline = Annotated[
    Path | None,
    typer.Option("--baseline", metavar="RUN", help="A run whose first steps are the base, instead of its own."),
]
SuccessRule = Annotated[
    str | None,
    typer.Option(
        "--success",
        metavar="WHAT",
        help="What a success is: 0.5, accuracy_reward or accuracy_reward>0.9. Default: the log's own, else its "
        "rewards.",
    ),
]
Processes = Annotated[int | None, typer.Option("--processes", min=1, help="Worker processes. Default: what pays.")]
PROGRESS_AFTER_SECONDS = 1.0


def audited(path: Path, **how: Any) -> Audit:
    """The audit of a run, with a bar where it takes a while; ``how``: settings of ``rlmon.audit``."""
    import rlmon.audit.engine as engine
    from rlmon.audit.counting import spare_pandas

    if _is_the_command():
        spare_pandas()
    with progress_bar(str(path)) as progress:
        return engine.audit(path, progress=progress, **how)


def _is_the_command() -> bool:
    """Whether this process was started as ``rlmon`` (or ``python -m rlmon.cli``) and is nobody else's."""
    started = getattr(sys.modules.get("__main__"), "__file__", None)
    return started is not None and (Path(started).stem == "rlmon" or Path(started).parent == Path(__file__).parent)


def columns_of(text: str | None) -> dict[str, str] | None:
    """``prompt=question,completion=text`` as a mapping."""
    if text is None:
        return None
    pairs = [pair.partition("=") for pair in text.split(",") if pair.strip()]
    wrong = [ours + equals + theirs for ours, equals, theirs in pairs if not (ours.strip() and theirs.strip())]
    if wrong or not pairs:
        raise ConfigError(f"--map takes pairs like prompt=question,completion=text (rlmon's name first), got {text!r}.")
    return {ours.strip(): theirs.strip() for ours, _, theirs in pairs}


@contextlib.contextmanager
def progress_bar(name: str, *, of_bytes: bool = True) -> Iterator[Callable[[int, int], None] | None]:
    """Something to call with bytes (or pieces) done and in all: a bar on stderr, where that is a terminal and it takes
    a while."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    from rich.text import Text

    from rlmon.printable import one_line

    bar = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn() if of_bytes else MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    task = bar.add_task(Text(one_line(name, 60)).plain)
    began = time.monotonic()
    started = False

    def tell(done: int, total: int) -> None:
        nonlocal started
        bar.update(task, completed=done, total=total)
        if not started and time.monotonic() - began > PROGRESS_AFTER_SECONDS:
            bar.start()
            started = True

    try:
        yield tell
    finally:
        if started:
            bar.stop()


def log_in(path: Path) -> Path | None:
    """The rlmon log that ``path`` is or holds."""
    return next((folder for folder in (path, path / "rlmon") if (folder / "run.json").is_file()), None)
