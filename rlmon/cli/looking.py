"""``rlmon watch``, ``rlmon serve`` and ``rlmon show``: runs as they train, and their completions."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from rlmon.cli.auditing import Mapped, ReaderName, columns_of, log_in
from rlmon.cli.printing import note, reader_may_leave, say
from rlmon.errors import RunLogError


def watch(
    path: Annotated[Path, typer.Argument(help="A run directory (<output_dir>/rlmon), or the folder it will be in.")],
    every: Annotated[float, typer.Option(metavar="SECONDS", min=0.1, help="How often to look.")] = 2.0,
    once: Annotated[bool, typer.Option("--once", help="Print one screen and leave.")] = False,
) -> None:
    """A run as it trains, on one screen: progress, metrics against the base, detectors, findings, faults.

    Reads the log only, from another terminal or another machine that sees the folder; it can be started before the
    run is. Ctrl-C leaves.

    \b
    rlmon watch out/grpo
    rlmon watch out/grpo --once          one screen, for a script or a mail
    """
    from rlmon.report.watch import watch as run_watch

    with reader_may_leave():
        run_watch(path, every_seconds=every, once=once)


def show(
    path: Annotated[Path, typer.Argument(help="A run directory (<output_dir>/rlmon), or any run that can be audited.")],
    step: Annotated[int | None, typer.Option(help="Only completions of this step (first trained at it).")] = None,
    prompt: Annotated[str | None, typer.Option(help="Only this prompt_id, or the beginning of one.")] = None,
    mode: Annotated[str | None, typer.Option(help="Only this format mode.")] = None,
    template: Annotated[str | None, typer.Option(help="Only this template (the short name that is shown).")] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most this many completions.")] = 20,
    all_attempts: Annotated[bool, typer.Option(help="Also rows that a resumed run has superseded.")] = False,
    reader: ReaderName = None,
    mapping: Mapped = None,
) -> None:
    """Look at completions: those of the newest step unless a filter says otherwise.

    \b
    rlmon show out/grpo/rlmon --step 120 --mode json
    rlmon show out/grpo --prompt 3f2a --limit 50        any run that can be audited
    """
    import rlmon.report.show as shown

    filters = shown.Filters(step=step, prompt=prompt, mode=mode, template=template, limit=limit)
    if reader is None and mapping is None and (log := log_in(path)) is not None:
        from rlmon.runlog import open_run

        found = shown.of_log(open_run(log), filters, all_attempts=all_attempts)
    else:
        from rlmon.audit.readers import open_source

        found = shown.of_run(open_source(path, reader=reader, mapping=columns_of(mapping)), filters)
    modes = found.modes.most_common()
    if not found.rows:
        had = ", ".join(f"{name} {count}" for name, count in modes) or "none for this step and prompt"
        raise RunLogError(f"No completion in {path} fits these filters. Modes there: {had}.")
    for row in found.rows:
        say(shown.render(row))
    shares = ", ".join(f"{name} {count / found.modes.total():.2f}" for name, count in modes)
    note(f"{len(found.rows)} of {found.fitting} completions; modes: {shares}")


def serve(
    path: Annotated[Path, typer.Argument(metavar="DIR", help="A folder with runs in it, or in folders below it.")],
    port: Annotated[int, typer.Option(min=0, max=65_535, help="0 takes one that is free.")] = 8384,
) -> None:
    """All runs below a folder in the browser, newest first, and a page for each that follows it as it trains.

    The pages are those of `rlmon report`; they look for news by themselves and keep your place. This machine only
    (127.0.0.1), and nothing is written. From elsewhere: ssh -L 8384:127.0.0.1:8384 HOST. Ctrl-C ends it. Needs
    pip install 'rlmon[serve]'.

    \b
    rlmon serve outputs
    rlmon serve . --port 0
    """
    from rlmon.serve.server import serve as run_server

    def tell(text: str) -> None:
        say(text)
        sys.stdout.flush()  # whoever started it in a pipe waits for the address

    run_server(path, port, say=tell)
