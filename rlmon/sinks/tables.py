"""Tables that trackers are given: their columns, and rows that are printable and bounded."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from rlmon.acts import Act, act_of
from rlmon.console import first, what_happened
from rlmon.records import Action, Finding

MAX_CELL_CHARACTERS = 4_000
MAX_TABLE_ROWS = 32
SAMPLE_COLUMNS = (
    "step",
    "round",
    "source",
    "mode",
    "mode_change",
    "reasoning_mode",
    "reward",
    "advantage",
    "completion_tokens",
    "truncated",
    "prompt",
    "completion",
)
REWRITE_EVERY_STEPS = 25
"""Steps between two tables of acts, or of findings, where rows came; the last one comes at the end."""
MAX_ACTS = 200
"""Newest acts of the policy that their table holds."""
ACT_COLUMNS = ("step", "rule", "change", "outcome", "effect", "reason", "effect_reason")
MAX_FINDINGS = 200
"""Newest findings that their table holds."""
FINDING_COLUMNS = ("step", "severity", "detector", "what_happened", "what_to_change", "value", "baseline", "line")


class Told:
    """A finding in the columns of its table: sentences are one line each, printable and short."""

    def __init__(self, finding: Finding) -> None:
        self.step, self.severity, self.detector = finding.step, finding.severity, finding.detector
        self.what_happened = what_happened(finding)
        self.what_to_change = first(finding.advice)
        self.value, self.baseline, self.line = finding.value, finding.baseline, finding.threshold


class NewestRows:
    """A table that is sent as a whole when rows came: the newest ``most`` of them, newest first."""

    def __init__(self, columns: Sequence[str], most: int) -> None:
        self.columns, self._most = columns, most
        self.rows: dict[str, Any] = {}
        """Objects with the columns as attributes, by a key of their own; the oldest first."""
        self.unsent = False
        self._last_step: int | None = None

    def put(self, key: str, row: Any) -> None:
        """Add a row, or replace the one of that key."""
        self.rows[key] = row
        self.unsent = True
        if len(self.rows) > self._most:
            del self.rows[next(iter(self.rows))]

    def due(self, step: int) -> bool:
        """Whether there is something to send, and the last time is long enough ago."""
        return self.unsent and (self._last_step is None or step - self._last_step >= REWRITE_EVERY_STEPS)

    def take(self, step: int) -> list[list[Any]]:
        """The cells of the table, which is sent now."""
        self.unsent, self._last_step = False, step
        return [[cell(getattr(row, column)) for column in self.columns] for row in reversed(self.rows.values())]

    def begin_anew(self) -> None:
        """Another run is open, which has none of it."""
        self.unsent, self._last_step = bool(self.rows), None


def put_act(kept: NewestRows, action: Action) -> None:
    """Add a phase of an act: all phases of one are one row. An effect whose act is no longer kept is passed over."""
    before: Act | None = kept.rows.get(action.action_id)
    if before is not None or action.phase != "measured":
        kept.put(action.action_id, act_of(dataclasses.asdict(action), before))


def cell(value: Any) -> Any:
    """Text without control characters and lone surrogates, cut; anything else as it is."""
    if not isinstance(value, str):
        return value
    text = value[:MAX_CELL_CHARACTERS] + ("…" if len(value) > MAX_CELL_CHARACTERS else "")
    if text.replace("\n", "").replace("\t", "").isprintable():
        return text
    return "".join(
        character
        if character.isprintable() or character in "\n\t"
        else character.encode("unicode_escape", "backslashreplace").decode("ascii")
        for character in text
    )
