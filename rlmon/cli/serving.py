"""``rlmon serve``: the pages of runs, on this machine."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from rlmon.cli.printing import say


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
