"""The address, and the end: binds this machine's own address only, and leaves at Ctrl-C or SIGTERM."""

from __future__ import annotations

import importlib.util
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from rlmon.errors import ConfigError, MissingExtraError

ADDRESS = "127.0.0.1"
PORT = 8384


def serve(root: Path, port: int = PORT, *, say: Callable[[str], None] = print) -> None:
    """Serve the pages of the runs below ``root`` until Ctrl-C; ``port`` 0: one that is free. ``say`` is told the
    address.

    Raises ``ConfigError`` where there is no such folder or the port is taken, ``MissingExtraError`` without the extra.
    """
    missing = [name for name in ("starlette", "uvicorn") if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingExtraError(
            f"`rlmon serve` needs {' and '.join(missing)}, not installed here. Type: pip install 'rlmon[serve]'"
        )
    if not root.is_dir():
        what = "a file" if root.is_file() else "not there"
        raise ConfigError(f"{str(root)!r} is {what}. Give the folder that holds the runs, as in `rlmon serve outputs`.")
    import uvicorn

    from rlmon.serve.app import build
    from rlmon.serve.desk import Desk

    with bound(port) as listening:
        desk = Desk(root)
        try:
            server = uvicorn.Server(
                uvicorn.Config(
                    build(desk), log_level="warning", access_log=False, server_header=False, ws="none", lifespan="off",
                    timeout_graceful_shutdown=1, limit_concurrency=64,
                )
            )  # fmt: skip
            say(f"rlmon: runs below {root} at http://{ADDRESS}:{listening.getsockname()[1]}/ (Ctrl-C ends it)")
            # uvicorn hands the signal that ended it to whoever had it before: here nobody is left to be ended by it.
            # A background job of a script ignores Ctrl-C; there this one is ended by it all the same.
            for one in (signal.SIGINT, signal.SIGTERM):
                signal.signal(one, _nothing)
            server.run(sockets=[listening])
        finally:
            desk.close()


def _nothing(number: int, frame: FrameType | None) -> None:
    """What is left to do about a signal after it ended the server."""


def bound(port: int) -> socket.socket:
    """What listens on the port of this machine. Raises ``ConfigError`` where the port is taken."""
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        if sys.platform != "win32":  # where this would let two servers share a port
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((ADDRESS, port))
        listening.listen(64)
    except OSError as error:
        listening.close()
        why = error.strerror or str(error)
        raise ConfigError(
            f"port {port} cannot be used: {why}. Take a free one with --port 0, or name another."
        ) from error
    return listening
