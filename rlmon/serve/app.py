"""Requests and answers. What is not the list or the page of a run that was found is not there."""

from __future__ import annotations

import gzip
from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from rlmon.report.page import json_for_html, policy_of
from rlmon.serve.desk import Desk
from rlmon.serve.index import list_page, waiting_page

NAMES_OF_THIS_MACHINE = frozenset({"127.0.0.1", "localhost", "::1"})
PATIENCE_SECONDS = 1.5
"""A page waits so long for its first audit before it says that it waits."""
HEADERS = {
    "cache-control": "no-cache",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}
NOT_IN_A_FILE = "; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
"""Beside the policy that the page itself states."""
NOTHING_ALLOWED = "default-src 'none'; frame-ancestors 'none'"


def build(desk: Desk) -> ASGIApp:
    """The application over the runs of a desk, for requests to this machine by its own names only."""

    def runs(request: Request) -> Response:
        listing, version = desk.listing()
        if _knows(request, version):
            return _same(version)
        return _page(request, list_page(listing, version), version)

    def runs_json(request: Request) -> Response:
        listing, version = desk.listing()
        if _knows(request, version):
            return _same(version)
        headers = {**HEADERS, "etag": f'"{version}"', "content-security-policy": NOTHING_ALLOWED}
        return Response(json_for_html(listing), media_type="application/json", headers=headers)

    def run(request: Request) -> Response:
        key = request.path_params["key"]
        version = desk.version(key)
        if version is not None and _knows(request, version):
            return _same(version)
        found = desk.page(key, 0.0 if request.method == "HEAD" else PATIENCE_SECONDS)
        if found is None:
            return _refusal(404, "There is no such run. The list of all runs is at /")
        version, page, row = found
        return _page(request, waiting_page(row, version) if page is None else page, version)

    def nothing(request: Request, error: Exception) -> Response:
        return _refusal(404, "There is nothing here. The list of all runs is at /")

    app = Starlette(
        routes=[Route("/", runs), Route("/runs.json", runs_json), Route("/run/{key}", run)],
        exception_handlers={404: nothing},
    )
    app.router.redirect_slashes = False
    return _only_this_machine(app)


def _only_this_machine(app: ASGIApp) -> ASGIApp:
    """Refuses requests under another name (a name of somebody else's may resolve to this machine), and those that a
    page of another origin sends."""

    async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
        answer = app
        if scope["type"] == "http" and (why := _stranger(Request(scope))):
            answer = _refusal(403, why)
        await answer(scope, receive, send)

    return guarded


def _stranger(request: Request) -> str:
    hosts, origins = request.headers.getlist("host"), request.headers.getlist("origin")
    if len(hosts) != 1 or _name(f"//{hosts[0]}") not in NAMES_OF_THIS_MACHINE:
        return "Open this page as http://127.0.0.1 or http://localhost, with the port that `rlmon serve` printed."
    if origins and origins != [f"http://{hosts[0]}"]:
        return "Pages of other origins are not answered."
    embedded = request.headers.get("sec-fetch-dest", "document") != "document"
    if embedded and request.headers.get("sec-fetch-site") == "cross-site":
        return "Pages of other origins are not answered."
    return ""


def _name(address: str) -> str | None:
    try:
        parts = urlsplit(address)
        sound = parts.port != 0  # raises for what is no port
    except ValueError:
        return None
    return parts.hostname if sound and parts.username is None and not parts.path else None


def _knows(request: Request, version: str) -> bool:
    return f'"{version}"' in request.headers.get("if-none-match", "").split(", ")


def _same(version: str) -> Response:
    return Response(status_code=304, headers={**HEADERS, "etag": f'"{version}"'})


def _page(request: Request, text: str, version: str) -> Response:
    headers = {
        **HEADERS,
        "etag": f'"{version}"',
        "content-security-policy": policy_of(text) + NOT_IN_A_FILE,
        "vary": "accept-encoding",
    }
    body = text.encode("utf-8")
    if "gzip" in request.headers.get("accept-encoding", ""):
        body, headers["content-encoding"] = gzip.compress(body, 1), "gzip"
    return Response(body, media_type="text/html", headers=headers)


def _refusal(status: int, said: str) -> Response:
    headers = {**HEADERS, "content-security-policy": NOTHING_ALLOWED}
    return PlainTextResponse(f"{said}\n", status_code=status, headers=headers)
