"""Markdown for comments on pull requests and summaries of CI jobs, in which every text of a run is neutralised.

Markdown and HTML are escaped; mentions, issue numbers and addresses are broken up by an invisible space so that nobody
is notified and nothing is linked.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from rlmon.printable import one_line

STATUS_SIGNS: Mapping[str, str] = {
    "fail": "🔴 FAIL",
    "warn": "🟡 WARN",
    "error": "🟣 ERROR",
    "unsure": "🟠 UNSURE",
    "note": "🔵 NOTE",
    "pass": "🟢 PASS",
    "skip": "⚪ SKIP",
}
MAX_CHARACTERS = 60_000
"""A comment on GitHub may hold 65,536; a longer one is refused as a whole."""
_INVISIBLE = "\u200b"
_SPECIAL = re.compile(r"([\\`*_\[\]|~$!])")
_BLOCK = re.compile(r"^(\d{0,9})([-+#=.)])")
"""What would begin a list, a heading or a rule at the start of a line."""
_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
_LINKING = re.compile(r"([@#:]|www|GH-)(?=[\w./-])", re.IGNORECASE)


def cut(summary: str, command: str) -> str:
    """The lines of a summary that fit, and what shows the rest."""
    lines: list[str] = []
    size = 0
    for line in summary.split("\n"):
        size += len(line) + 1
        if size > MAX_CHARACTERS:
            break
        lines.append(line)
    return "\n".join([*lines, "", f"The details are left out: too long for a comment. `{command}` has them.", ""])


def escape(text: str, limit: int = 600) -> str:
    """``text`` as one line of Markdown that shows it literally, also inside a table cell."""
    shown = _SPECIAL.sub(r"\\\1", one_line(text, limit).strip())
    shown = _BLOCK.sub(r"\1\\\2", shown)
    shown = re.sub(r"[&<>]", lambda match: _ENTITIES[match[0]], shown)
    return _LINKING.sub(rf"\1{_INVISIBLE}", shown)


def escape_html(text: str, limit: int = 600) -> str:
    """``text`` as one line inside an HTML block, where Markdown's own escapes would be shown."""
    shown = re.sub(r"[&<>]", lambda match: _ENTITIES[match[0]], one_line(text, limit))
    return _LINKING.sub(rf"\1{_INVISIBLE}", shown)


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], right: frozenset[int] = frozenset()) -> list[str]:
    """The lines of a table of cells that are Markdown already, and an empty one; ``right``: columns of numbers."""
    rules = ["---:" if at in right else "---" for at in range(len(heads))]
    return [f"| {' | '.join(row)} |" for row in (heads, rules, *rows)] + [""]


def details(summary: str, lines: Iterable[str]) -> list[str]:
    """Lines behind a summary (HTML) that is unfolded by a click; the last of them is empty."""
    return [f"<details><summary>{summary}</summary>", "", *lines, "</details>", ""]
