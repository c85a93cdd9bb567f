"""A W&B server on loopback that knows views: it answers operations of the installed packages, and no others."""

from __future__ import annotations

import contextlib
import gzip
import json
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ENTITY, PROJECT = "team", "project"


def operations() -> dict[str, str]:
    """Every GraphQL operation in the sources of wandb-workspaces and wandb: its name, and where it stands."""
    found: dict[str, str] = {}
    for package in ("wandb_workspaces", "wandb"):
        spec = find_spec(package)
        assert spec is not None
        assert spec.origin is not None
        folder = Path(spec.origin).parent
        for file in [*sorted(folder.rglob("*.py")), *folder.glob("bin/wandb-core*")]:
            for name in re.findall(rb"\b(?:query|mutation) (\w+)\s*[({]", file.read_bytes()):
                found.setdefault(name.decode(), str(file))
    return found


@dataclass
class Server:
    """What the server holds, and what it was asked."""

    address: str = ""
    views: list[dict[str, Any]] = field(default_factory=list)
    """As the mutation stored them, with ``id``."""
    asked: list[str] = field(default_factory=list)
    status: int = 200
    stalls: threading.Event = field(default_factory=threading.Event)
    """While set, no request is answered."""

    def answer(self, name: str, variables: dict[str, Any]) -> dict[str, Any]:
        if name == "View":
            if (variables["entityName"], variables["name"]) != (ENTITY, PROJECT):
                return {"project": None}
            found = [view for view in self.views if view["name"] == variables["viewName"]]
            nodes = [{"node": {key: view[key] for key in ("id", "displayName", "spec")}} for view in found]
            return {"project": {"allViews": {"edges": nodes}}}
        if name == "UpsertView2":
            known = next((view for view in self.views if view["id"] == variables.get("id")), None)
            view = known if known is not None else {"id": f"view-{len(self.views)}"}
            view |= {key: value for key, value in variables.items() if key != "id"}
            if known is None:
                self.views.append(view)
            return {"upsertView": {"view": {"id": view["id"], "name": view["name"]}, "inserted": known is None}}
        if name == "Viewer":
            return {"viewer": {"id": "me", "entity": ENTITY, "username": "me", "flags": "{}", "teams": {"edges": []}}}
        if name == "ServerInfo":
            return {"serverInfo": {"features": []}}
        raise AssertionError(f"no answer to {name}")


@contextlib.contextmanager
def serving() -> Iterator[Server]:
    """A server while the block lasts."""
    server, known = Server(), operations()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            if self.path != "/graphql":  # what the client counts of its own use
                self.send_error(404)
                return
            sent = self.rfile.read(int(self.headers["content-length"]))
            body = json.loads(gzip.decompress(sent) if self.headers["content-encoding"] == "gzip" else sent)
            asked = re.search(r"\b(?:query|mutation) (\w+)", body["query"])
            name = asked.group(1) if asked else body["query"]
            server.asked.append(name)
            while server.stalls.is_set():
                time.sleep(0.05)
            status, data = server.status, {}
            if status == 200:
                try:
                    assert name in known, f"{name} is no operation of the installed packages"
                    data = {"data": server.answer(name, body.get("variables") or {})}
                except AssertionError as error:
                    status, data = 400, {"errors": [{"message": str(error)}]}
            text = json.dumps(data).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(text)))
            self.end_headers()
            with contextlib.suppress(OSError):  # who asked may have gone
                self.wfile.write(text)

        def log_message(self, *_: Any) -> None:
            """Nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        listening.daemon_threads = True
        server.address = f"http://127.0.0.1:{listening.server_address[1]}"
        thread = threading.Thread(target=listening.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.stalls.clear()
            listening.shutdown()
            thread.join()
