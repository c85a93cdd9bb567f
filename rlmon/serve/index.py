"""The pages beside those of runs: the list of all of them, and what is shown of a run while there is nothing else."""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import Any

from rlmon.report.audit import FOLLOW, HOME, SERVED_SCRIPTS, SERVED_STYLES
from rlmon.report.page import HERE, fill, render

STYLES = ("assets/page.css", "assets/audit.css", *SERVED_STYLES)


def list_page(listing: Mapping[str, Any], version: str) -> str:
    """The page of all runs; it asks for ``/runs.json`` by itself."""
    folder = str(listing["folder"])
    return render(
        title=f"rlmon: runs below {folder}",
        body=fill((HERE / "assets" / "runs.html").read_text(encoding="utf-8"), {"folder": html.escape(folder)}),
        data={**listing, "version": version},
        styles=STYLES,
        scripts=("assets/page.js", "assets/runs.js"),
        asks_its_server=True,
    )


def waiting_page(row: Mapping[str, Any], version: str) -> str:
    """The page of a run that is being audited for the first time, or that cannot be read."""
    unread = row["verdict"] == "unread"
    word, said = (
        ("NOT READ", row["said"]) if unread else ("READING", "The run is being audited. It shows here by itself.")
    )
    body = fill(
        (HERE / "assets" / "waiting.html").read_text(encoding="utf-8"),
        {"home": HOME, "follow": FOLLOW, "name": html.escape(row["name"]), "word": word, "said": html.escape(said)},
    )
    return render(
        title=f"rlmon: {row['name']}",
        body=body,
        data={"waiting": not unread, "served": {"version": version, "changed_unix_seconds": row["changed"]}},
        styles=STYLES,
        scripts=("assets/page.js", "assets/waiting.js", *SERVED_SCRIPTS),
        asks_its_server=True,
    )
