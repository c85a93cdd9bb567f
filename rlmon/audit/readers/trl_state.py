"""What TRL's trainer state says: settings, and the log call by call."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import rlmon.audit.readers.columns as columns
from rlmon.audit.readers.parsing import loads

CHECKPOINT = re.compile(r"checkpoint-(\d{1,15})", re.ASCII)
STATE_BYTES = 1 << 28


def state_paths(root: Path) -> list[Path]:
    """Where a trainer state may lie, the newest checkpoint first among the checkpoints."""
    checkpoints = []
    with contextlib.suppress(OSError):
        checkpoints = [(int(match[1]), p) for p in root.iterdir() if (match := CHECKPOINT.fullmatch(p.name))]
    places = [root, *(place for _, place in sorted(checkpoints, reverse=True))]
    states = [place / "trainer_state.json" for place in places]
    return [state for state in states if state.is_file() and columns.inside(root, state)]


def state_of(root: Path, notes: list[str]) -> dict[str, Any]:
    """The trainer state that went furthest: of the output folder or of the newest checkpoint that can be read."""
    best: dict[str, Any] = {}
    for place in state_paths(root):
        try:
            if place.stat().st_size > STATE_BYTES:
                raise ValueError(f"more than {STATE_BYTES >> 20} MiB")
            state = loads(place.read_text(encoding="utf-8", errors="replace"), parse_int=_integer)
            if not isinstance(state, dict):
                raise ValueError("no JSON object")
        except (OSError, ValueError, RecursionError, MemoryError) as problem:
            notes.append(f"{place.relative_to(root)} could not be read: {str(problem)[:200]}.")
            continue
        if not best or whole(state.get("global_step")) > whole(best.get("global_step")):
            best = state
        if place.parent != root:
            break
    return best


def _integer(digits: str) -> int | float:
    """A whole number of a hostile file: what no float holds is infinite, as it is for JSON's other numbers."""
    return int(digits) if len(digits) < 300 else float(digits)


def whole(value: Any) -> int:
    return int(value) if isinstance(value, (int, float)) and math.isfinite(value) else -1


def step_of(entry: Mapping[str, Any]) -> int | None:
    step = entry.get("step")
    return int(step) if isinstance(step, (int, float)) and math.isfinite(step) and abs(step) < 1 << 53 else None


def is_evaluation(entry: Mapping[str, Any]) -> bool:
    return any(isinstance(key, str) and key.startswith("eval_") for key in entry)


def series_of(history: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, int, float]]:
    """Key, step and value of what was logged; the summary at the end of training is left out."""
    for entry in history:
        step = step_of(entry)
        if step is None or "train_runtime" in entry:
            continue
        for key, value in entry.items():
            if key in ("step", "epoch") or isinstance(value, bool) or not isinstance(value, (int, float)):
                continue
            with contextlib.suppress(OverflowError):
                yield key, step, float(value)
