"""What a page holds, by a parser that is not ours."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from typing import Any

import pytest

DATA = re.compile(r'<script type="application/json" id="data">(.*?)</script>', re.DOTALL)


def data_of(page: str) -> dict[str, Any]:
    """The data of the page; it is ASCII, whatever the run wrote."""
    found = DATA.search(page)
    assert found is not None
    assert found.group(1).isascii()
    data: dict[str, Any] = json.loads(found.group(1))
    return data


class Tags(HTMLParser):
    """The elements of a page and all of their attributes, in order."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=False)
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs


in_windows = pytest.mark.parametrize(
    ("width", "scheme"),
    [
        (1280, "light"),
        (360, "dark"),
        pytest.param(1280, "dark", marks=pytest.mark.slow),
        pytest.param(360, "light", marks=pytest.mark.slow),
    ],
)


def assert_sound(opened: Any) -> None:
    """Opened in a browser, with all its details: nothing complains, nothing was executed, all is in the window."""
    opened.page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    opened.page.wait_for_timeout(150)
    assert opened.complaints() == []
    assert opened.page.evaluate("window.pwned") is None
    assert opened.page.evaluate("({}).polluted") is None
    assert opened.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
