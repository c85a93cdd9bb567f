"""What W&B has and other trackers have not: worst values in a summary, and tables that are sent a part at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rlmon.sinks.tables import MAX_TABLE_ROWS, SAMPLE_COLUMNS, cell

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

SAMPLE_ROUNDS = 32
"""Tables of samples that are shown as one; then it begins anew."""


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
