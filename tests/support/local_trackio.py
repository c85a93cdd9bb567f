"""trackio in a folder of a test's own, and what it wrote there."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest


def keep_in(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """trackio writes to ``folder`` from here on: it reads ``TRACKIO_DIR`` once, when it is imported."""
    import trackio

    assert trackio.context_vars.current_run.get() is None
    for name, module in tuple(sys.modules.items()):
        if name.split(".")[0] == "trackio" and hasattr(module, "TRACKIO_DIR"):
            patch.setattr(module, "TRACKIO_DIR", folder)


@dataclass
class Read:
    rows: list[dict[str, Any]] = field(default_factory=list)
    """Log calls in their order: what was logged, and ``_step``, trackio's own."""
    alerts: list[tuple[str, str, str, int]] = field(default_factory=list)
    """(level, title, text, step)."""
    config: dict[str, Any] = field(default_factory=dict)

    def of(self, key: str) -> list[tuple[int, Any]]:
        """(step, value) of one key; of an object that trackio made, what is in it."""
        found = [(row["_step"], row[key]) for row in self.rows if key in row]
        return [(step, value.get("_value", value) if isinstance(value, dict) else value) for step, value in found]


def read(base: Path, run: str | None = None) -> Read:
    """The run of that name, or all of a project, from its data base."""
    found = Read()
    where, names = ("", ()) if run is None else (" WHERE run_name = ?", (run,))
    with contextlib.closing(sqlite3.connect(base)) as opened:
        for step, row in opened.execute(f"SELECT step, metrics FROM metrics{where} ORDER BY id", names):
            found.rows.append({"_step": step, **json.loads(row)})
        found.alerts = opened.execute(
            f"SELECT level, title, text, step FROM alerts{where} ORDER BY id", names
        ).fetchall()
        for (config,) in opened.execute(f"SELECT config FROM configs{where} ORDER BY id", names):
            found.config |= json.loads(config)
    return found


def newest(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The calls without those that a restart made again: it goes back behind them."""
    kept: list[dict[str, Any]] = []
    for row in rows:
        step = row.get("train/global_step")
        if step is not None and any(before.get("train/global_step", 0) > step for before in kept):
            kept = [before for before in kept if before.get("train/global_step", step) < step]
        kept.append(row)
    return kept
