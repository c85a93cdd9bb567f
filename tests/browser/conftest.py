"""A headless Chromium without a network. Without one the tests skip; with ``TEST_BROWSER=required`` they fail."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from rlmon.serve.app import build
from rlmon.serve.desk import Desk
from rlmon.serve.server import bound

ARGUMENTS = (
    # Chromium refuses to run as root with a sandbox; the pages are our own files and the network is blocked.
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-quic",
    # Belt and braces with the route below: no name is resolved. Served pages come from this machine by its number.
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)
NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
VIOLATIONS = (
    "window.violations = [];"
    "addEventListener('securitypolicyviolation', (e) => violations.push(`${e.violatedDirective} ${e.blockedURI}`));"
)


@dataclass
class Opened:
    """A page in the browser, and everything that it said or asked for."""

    page: Any
    errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def complaints(self) -> list[str]:
        """Console errors and warnings, uncaught exceptions, policy violations and requests to anywhere."""
        return [*self.errors, *self.requests, *self.page.evaluate("window.violations")]


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    def missing(what: str) -> None:
        if os.environ.get("TEST_BROWSER") == "required":
            pytest.fail(what)
        pytest.skip(what)

    path = next((found for name in NAMES if (found := shutil.which(name))), None)
    if path is None:
        missing("no Chromium: apt-get install chromium")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        missing("no playwright: pip install playwright")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(ARGUMENTS))
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium: Any) -> Iterator[Callable[..., Opened]]:
    """``visit(file, width=..., scheme=...)`` opens a file; with ``whole=False`` it need not come up completely."""
    contexts = []

    def open_file(file: Path, *, width: int = 1280, scheme: str = "light", whole: bool = True) -> Opened:
        context = chromium.new_context(color_scheme=scheme, viewport={"width": width, "height": 900})
        contexts.append(context)
        page = context.new_page()
        opened = Opened(page)

        def route(request: Any) -> None:
            if request.request.url.split("#")[0] == file.as_uri():
                request.continue_()
            else:
                opened.requests.append(request.request.url)
                request.abort()

        context.route("**/*", route)
        said = opened.errors
        page.on("console", lambda message: said.append(message.text) if message.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("dialog", lambda dialog: (said.append(f"dialog {dialog.message}"), dialog.dismiss()))
        page.add_init_script(VIOLATIONS)
        page.goto(file.as_uri())
        # The last thing that the page's script makes. (The policy of the page forbids polling with an expression.)
        if whole:
            page.locator("#nav a").last.wait_for()
        return opened

    yield open_file
    for context in contexts:
        context.close()


@pytest.fixture
def serving() -> Iterator[Callable[[Path], str]]:
    """``serving(folder)`` is the address of a server in a thread of this process."""
    ends: list[Callable[[], None]] = []

    def begin(root: Path) -> str:
        listening = bound(0)
        desk = Desk(root, least_seconds=0.2)
        config = uvicorn.Config(build(desk), log_level="error", lifespan="off", ws="none", timeout_graceful_shutdown=1)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()

        def end() -> None:
            server.should_exit = True
            thread.join(10)
            desk.close()
            listening.close()

        ends.append(end)
        return f"http://127.0.0.1:{listening.getsockname()[1]}/"

    yield begin
    for end in ends:
        end()


@pytest.fixture
def look(chromium: Any) -> Iterator[Callable[..., Any]]:
    """``look(address, width=..., scheme=...)``: a page whose complaints are in ``page.complaints``."""
    contexts = []

    def open_page(address: str, width: int = 1400, scheme: str = "light") -> Any:
        context = chromium.new_context(color_scheme=scheme, viewport={"width": width, "height": 900})
        contexts.append(context)
        page = context.new_page()
        page.complaints = []
        page.on(
            "console", lambda said: page.complaints.append(said.text) if said.type in ("error", "warning") else None
        )
        page.on("pageerror", lambda error: page.complaints.append(str(error)))
        page.goto(address)
        return page

    yield open_page
    for context in contexts:
        context.close()
