"""A server on this machine that takes webhooks, and does what a test tells it to."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal

Does = int | Literal["reset", "stall"]


class Server(ThreadingHTTPServer):
    """Answers with ``answers``, one after the other, and 200 after the last: a status, ``reset`` for a connection that
    is broken off, or ``stall`` for one that is held without an answer until the test is over."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, *answers: Does, headers: dict[str, str] | None = None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answers, self.headers = list(answers), headers or {}
        self.got: list[tuple[str, dict[str, str], bytes]] = []
        """Path, headers and body of each request."""
        self.over = threading.Event()
        self.arrived = threading.Condition()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/services/SECRET/path?token=SECRET"

    def wait_for(self, requests: int, seconds: float = 30.0) -> None:
        """Until so many requests have come."""
        with self.arrived:
            assert self.arrived.wait_for(lambda: len(self.got) >= requests, seconds), f"{len(self.got)} came"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Whoever asked may be gone by the time of the answer."""


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        with self.server.arrived:
            self.server.got.append((self.path, dict(self.headers), body))
            does = self.server.answers.pop(0) if self.server.answers else 200
            self.server.arrived.notify_all()
        if does == "stall":
            self.server.over.wait(60)
        elif does == "reset":
            # With a linger of nothing the close is a reset.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
        else:
            self.send_response(does)
            for name, value in self.server.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", "0")
            self.end_headers()

    def do_GET(self) -> None:
        """Nobody asks for anything; a redirect that was followed would."""
        self.server.got.append((self.path, dict(self.headers), b""))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@contextlib.contextmanager
def serving(*answers: Does, headers: dict[str, str] | None = None) -> Iterator[Server]:
    server = Server(*answers, headers=headers)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.over.set()
        server.shutdown()
        server.server_close()
        thread.join()
