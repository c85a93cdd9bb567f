"""What the W&B sink shows: the metrics of which W&B keeps the worst value, and its tables, all of them bounded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

SUMMARIES: Mapping[str, str] = {
    "rlmon/entropy/mean": "min",
    "rlmon/entropy/ratio_to_base": "min",
    "rlmon/format/effective": "min",
    "rlmon/format/effective_ratio_to_base": "min",
    "rlmon/format/effective_correct": "min",
    "rlmon/format/top_share": "max",
    "rlmon/format/js_to_base": "max",
    "rlmon/kl/mean": "max",
    "rlmon/group/silent": "max",
    "rlmon/text/near_duplicate_across": "max",
    "rlmon/health/truncated": "max",
}
"""Metrics whose worst value W&B's summary keeps beside the last one, so that runs can be sorted by it."""

MAX_CELL_CHARACTERS = 4_000
MAX_TABLE_ROWS = 32
SAMPLE_ROUNDS = 32
"""Tables of samples that are shown as one; then it begins anew."""
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


class SampleTable:
    """Rows of sampled completions: each time only the new ones are sent, and W&B shows them as one table.

    An older W&B, which has no such tables, gets one of its own each time.
    """

    def __init__(self) -> None:
        self._table: Any = None
        self._rounds = 0

    def of(self, wandb: Any, rows: Sequence[Mapping[str, Any]]) -> Any:
        """The table to log, with at most ``MAX_TABLE_ROWS`` more rows."""
        if self._table is None or self._rounds == SAMPLE_ROUNDS:
            # What was sent stays in memory with the table.
            self._table, self._rounds = _incremental(wandb), 0
        table = (
            wandb.Table(columns=list(SAMPLE_COLUMNS), allow_mixed_types=True) if self._table is None else self._table
        )
        for row in rows[:MAX_TABLE_ROWS]:
            table.add_data(*(cell(row.get(column)) for column in SAMPLE_COLUMNS))
        self._rounds += 1
        return table


def _incremental(wandb: Any) -> Any:
    try:
        return wandb.Table(columns=list(SAMPLE_COLUMNS), allow_mixed_types=True, log_mode="INCREMENTAL")
    except (TypeError, ValueError, AssertionError):
        return None


class NewestRows:
    """A table that is sent as a whole when rows came: the newest ``most`` of them, newest first."""

    def __init__(self, columns: Sequence[str], most: int) -> None:
        self._columns, self._most = columns, most
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

    def of(self, wandb: Any, step: int) -> Any:
        """The table to log."""
        self.unsent, self._last_step = False, step
        cells = [[cell(getattr(row, column)) for column in self._columns] for row in reversed(self.rows.values())]
        return wandb.Table(columns=list(self._columns), data=cells, allow_mixed_types=True)

    def begin_anew(self) -> None:
        """Another W&B run is open, which has none of it."""
        self.unsent, self._last_step = bool(self.rows), None


def cell(value: Any) -> Any:
    """Text without control characters and lone surrogates, cut; anything else as it is."""
    if not isinstance(value, str):
        return value
    text = value[:MAX_CELL_CHARACTERS] + ("…" if len(value) > MAX_CELL_CHARACTERS else "")
    return "".join(
        character
        if character.isprintable() or character in "\n\t"
        else character.encode("unicode_escape", "backslashreplace").decode("ascii")
        for character in text
    )
