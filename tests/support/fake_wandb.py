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
from urllib.parse import quote, unquote

ENTITY, PROJECT = "team", "project"
LAST_PAGE = {"__typename": "PageInfo", "endCursor": None, "hasNextPage": False}
RUN: dict[str, Any] = {
    "id": "UnVu", "projectId": "7", "tags": [], "displayName": "a run", "sweepName": None, "state": "finished",
    "config": "{}", "group": None, "jobType": None, "commit": None, "readOnly": False,
    "createdAt": "2026-01-01T00:00:00Z", "heartbeatAt": "2026-01-01T01:00:00Z", "description": None, "notes": None,
    "user": {"name": "Me", "username": "me"},
    "systemMetrics": "{}", "summaryMetrics": "{}", "historyLineCount": 0, "historyKeys": None,
}  # fmt: skip


def operations() -> dict[str, set[str]]:
    """Every GraphQL operation in wandb-workspaces and wandb: its name, and the words of the sources that have it."""
    found: dict[str, set[str]] = {}
    for package in ("wandb_workspaces", "wandb"):
        spec = find_spec(package)
        assert spec is not None
        assert spec.origin is not None
        folder = Path(spec.origin).parent
        for file in [*sorted(folder.rglob("*.py")), *folder.glob("bin/wandb-core*")]:
            source = file.read_bytes()
            for at in re.finditer(rb"\b(?:query|mutation) (\w+)\s*[({]", source):
                # Fragments stand anywhere in a file of Python, and behind the operation in the program.
                near = source if file.suffix == ".py" else source[at.start() : at.start() + 20_000]
                words = found.setdefault(at[1].decode(), set())
                words.update(word.decode() for word in re.findall(rb"\w+", near))
    return found


def generated(name: str) -> Any:
    """The type that wandb generated for the answer to an operation, where it has one."""
    import wandb.apis._generated as api
    import wandb.automations._generated as automations

    return getattr(api, name, None) or getattr(automations, name, None)


@dataclass
class Server:
    """What the server holds, and what it was asked."""

    address: str = ""
    views: list[dict[str, Any]] = field(default_factory=list)
    """As the mutation stored them, with ``id``."""
    asked: list[str] = field(default_factory=list)
    runs: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By id: what ``Run`` has, less its name."""
    histories: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """By id: the log calls, each with its ``_step``."""
    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    """By id: the run's files, by name."""
    integrations: list[dict[str, Any]] = field(default_factory=list)
    rules: list[dict[str, Any]] = field(default_factory=list)
    status: int = 200
    failing: set[str] = field(default_factory=set)
    """Operations that are answered with 500."""
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
        if name == "UpsertBucket":
            of = {"id": "UHJvamVjdA==", "name": PROJECT, "entity": {"id": "RW50aXR5", "name": ENTITY}}
            run = {**RUN, "name": variables["name"], "historyLineCount": 0, "project": of}
            return {"upsertBucket": {"bucket": run, "inserted": True}}
        if name == "CreateRunFiles":
            files = [{"name": one, "uploadUrl": f"{self.address}/{quote(one)}"} for one in variables["files"]]
            return {"createRunFiles": {"runID": "UnVu", "uploadHeaders": [], "files": files}}
        if name == "ArtifactType":
            return {"project": {"artifact": None}}
        if name == "CreateArtifact":
            made = {"id": "QXJ0", "state": "COMMITTED", "artifactSequence": {"id": "c2Vx", "latestArtifact": None}}
            return {"createArtifact": {"artifact": made}}
        if name == "NotifyScriptableRunAlert":
            return {"notifyScriptableRunAlert": {"success": True}}
        if name == "OrganizationCoreWeaveOrganizationID":
            return {"entity": {"organization": {"coreWeaveOrganizationId": None}}}
        if name == "Viewer":
            return {"viewer": {"id": "me", "entity": ENTITY, "username": "me", "flags": "{}", "teams": {"edges": []}}}
        if name == "GetDefaultEntity":
            return {"viewer": {"id": "VXNlcg==", "entity": ENTITY}}
        if name in ("ServerInfo", "ServerFeaturesQuery"):
            return {"serverInfo": {"features": []}}
        if name == "upsertView":
            view = {**variables, "id": f"view-{len(self.views)}", "project": self.project(), "updatedAt": None}
            self.views.append(view)
            return {"upsertView": {"view": view, "inserted": True}}
        if name == "ProjectInternalId":
            return {"project": {"id": "project-id", "internalId": "7"}}
        if name == "GetProjects":
            return {"models": {"pageInfo": LAST_PAGE, "edges": [{"node": self.project()}]}}
        if name == "GetProject":
            return {"project": self.project() if variables["name"] == PROJECT else None}
        if name == "Run":
            known = variables["project"] == PROJECT and self.runs.get(variables["name"])
            return {"project": {"run": {**RUN, "name": variables["name"], **known} if known else None}}
        if name == "Runs":
            nodes = [{"node": {**RUN, "name": one, **run}, "cursor": one} for one, run in self.runs.items()]
            page = {"edges": nodes, "pageInfo": LAST_PAGE}
            return {"project": {"internalId": "7", "runCount": len(nodes), "readOnly": False, "runs": page}}
        if name == "RunHistoryKeys":
            last = max((row["_step"] for row in self.histories.get(variables["name"], ())), default=-1)
            return {"project": {"run": {"historyKeys": {"lastStep": last}}}}
        if name == "RunParquetHistory":
            return {"project": {"run": {"parquetHistory": {"parquetUrls": [], "liveData": []}}}}
        if name == "HistoryPage":
            asked = range(variables["minStep"], variables["maxStep"])
            lines = [json.dumps(row) for row in self.histories[variables["run"]] if row["_step"] in asked]
            return {"project": {"run": {"history": lines}}}
        if name == "RunFiles":
            return {"project": {"internalId": "7", "run": self.page_of_files(variables)}}
        if name == "IntegrationsByEntity":
            edges = [{"node": one} for one in self.integrations]
            return {"entity": {"integrations": {"pageInfo": LAST_PAGE, "edges": edges}}}
        if name == "GetEntityAutomationsLegacy":
            edges = [{"node": {"__typename": "Project", "triggers": self.rules}}]
            return {"scope": {"projects": {"pageInfo": LAST_PAGE, "edges": edges}}}
        if name == "CreateAutomation":
            return {"result": {"trigger": self.rule(variables["input"])}}
        raise AssertionError(f"no answer to {name}")

    def page_of_files(self, variables: dict[str, Any]) -> dict[str, Any]:
        run = variables["name"]
        beginning = (variables["pattern"] or "%").removesuffix("%")
        names = sorted(name for name in self.files.get(run, {}) if name.startswith(beginning))
        begins = names.index(variables["fileCursor"]) + 1 if variables["fileCursor"] else 0
        shown = names[begins : begins + variables["fileLimit"]]
        nodes = [
            {
                "id": name, "name": name, "url": f"{self.address}/files/{run}/{quote(name)}", "directUrl": "",
                "sizeBytes": len(self.files[run][name]), "mimetype": "", "updatedAt": None, "md5": "",
            }
            for name in shown
        ]  # fmt: skip
        more = begins + len(shown) < len(names)
        page = {"endCursor": shown[-1] if shown else None, "hasNextPage": more}
        edges = [{"node": node, "cursor": node["name"]} for node in nodes]
        return {"fileCount": len(names), "files": {"edges": edges, "pageInfo": page}}

    def project(self) -> dict[str, Any]:
        return {
            "__typename": "Project", "id": "UHJvamVjdA==", "name": PROJECT, "entityName": ENTITY,
            "createdAt": "2026-01-01T00:00:00Z", "isBenchmark": False, "user": None,
        }  # fmt: skip

    def rule(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """Keep a rule as the server would give it back."""
        (kind,) = [key for key, value in wanted["triggeredActionConfig"].items() if value]
        config = dict(wanted["triggeredActionConfig"][kind])
        to = next(one for one in self.integrations if one["id"] == config.pop("integrationID"))
        of = {"notificationActionInput": "Notification", "genericWebhookActionInput": "GenericWebhook"}[kind]
        stored = {
            "__typename": "Trigger", "id": f"rule-{len(self.rules)}", "createdAt": "2026-01-01T00:00:00Z",
            "updatedAt": None, "name": wanted["name"], "description": wanted["description"], "enabled": True,
            "scope": {"__typename": "Project", "id": wanted["scopeID"], "name": PROJECT},
            "event": {
                "__typename": "FilterEventTriggeringCondition", "eventType": wanted["triggeringEventType"],
                "filter": wanted["eventFilter"],
            },
            "action": {"__typename": f"{of}TriggeredAction", "integration": to, **config},
        }  # fmt: skip
        self.rules.append(stored)
        return stored


@contextlib.contextmanager
def serving() -> Iterator[Server]:
    """A server while the block lasts."""
    server, known = Server(), operations()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            if self.path.endswith("/file_stream"):
                self.rfile.read(int(self.headers["content-length"]))
                server.asked.append("file_stream")
                self.reply(server.status, b"{}")
                return
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
            status, data = 500 if name in server.failing else server.status, {}
            if status == 200:
                try:
                    assert name in known, f"{name} is no operation of the installed packages"
                    strange = set(re.findall(r"\w+", body["query"])) - known[name]
                    assert not strange, f"{name} asks for {strange}, which no installed source does"
                    answer = server.answer(name, body.get("variables") or {})
                    if (checked := generated(name)) is not None:
                        checked.model_validate(answer)
                    data = {"data": answer}
                except AssertionError as error:
                    status, data = 400, {"errors": [{"message": str(error)}]}
            self.reply(status, json.dumps(data).encode())

        def do_PUT(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self.reply(server.status, b"")

        def reply(self, status: int, text: bytes) -> None:
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(text)))
            self.end_headers()
            with contextlib.suppress(OSError):  # who asked may have gone
                self.wfile.write(text)

        def do_GET(self) -> None:
            _, _, run, name = self.path.split("/", 3)
            server.asked.append("GET")
            content = server.files.get(run, {}).get(unquote(name))
            while server.stalls.is_set():
                time.sleep(0.05)
            if content is None or b"GONE" in content:
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            with contextlib.suppress(OSError):
                self.wfile.write(content)

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
