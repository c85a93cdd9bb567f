"""Everything under ``rlmon/*`` in the W&B run that the trainer has open.

The trainer's own integration logs many times per step and never passes ``step=``, so W&B's counter is not the
optimizer step: the x axis is ``train/global_step``, as in the trainer's own charts. A run is never opened here, and
wandb is never imported before somebody else has.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rlmon.records import Finding, StepRecord
from rlmon.sinks import SampleRows

MAX_TABLE_ROWS = 32
MAX_CELL_CHARACTERS = 4_000
TABLE_COLUMNS = (
    "step",
    "round",
    "source",
    "mode",
    "reasoning_mode",
    "reward",
    "advantage",
    "completion_tokens",
    "truncated",
    "prompt",
    "completion",
)
_RANK = {"pass": 0, "warn": 1, "fail": 2}


class WandbSink:
    """Mirrors step records into the open W&B run; silent while there is none.

    ``table_every``: optimizer steps between two sample tables, 0 for none. ``store_text``: tables hold prompts and
    completions, so there are none unless it is ``full``. ``about``: settings for the run's config, under ``rlmon``.
    """

    def __init__(self, *, table_every: int, store_text: str, about: Mapping[str, Any]) -> None:
        self._table_every = table_every if store_text == "full" else 0
        self._about = dict(about)
        self._run: Any = None
        self._last_table_step: int | None = None
        self._states: dict[str, str] = {}

    def record(self, step: StepRecord, findings: Sequence[Finding], sample_rows: SampleRows) -> None:
        """One log call with the step's measured metrics, a table when one is due, and an alert per change of state."""
        wandb = sys.modules.get("wandb")
        run = None if wandb is None else wandb.run
        if wandb is None or run is None:
            return
        if run is not self._run:
            self._open(run)
        row: dict[str, Any] = {"train/global_step": step.step}
        for name, value in step.metrics.items():
            if value is not None:
                row[_metric_name(name)] = value
        row["rlmon/faults"] = sum(step.faults.values())
        row["rlmon/shed_rows"] = step.shed_rows
        for name in ("overhead_seconds", "base_forward_seconds"):
            seconds = getattr(step, name)
            if seconds is not None:
                row[f"rlmon/{name}"] = seconds
        if self._table_due(step.step):
            samples = sample_rows(MAX_TABLE_ROWS)[:MAX_TABLE_ROWS]
            if samples:
                self._last_table_step = step.step
                cells = [[_cell(sample.get(column)) for column in TABLE_COLUMNS] for sample in samples]
                row["rlmon/samples"] = wandb.Table(columns=list(TABLE_COLUMNS), data=cells, allow_mixed_types=True)
        run.log(row)
        for finding in findings:
            self._alert(wandb, run, finding)

    def close(self) -> None:
        """Write the verdict of a run that came to its end without a finding."""
        wandb = sys.modules.get("wandb")
        # The trainer's integration may have finished the run before us.
        if wandb is not None and wandb.run is not None and wandb.run is self._run:
            self._run.summary["rlmon/verdict"] = self._verdict()

    def _open(self, run: Any) -> None:
        # Here, not in __init__: the trainer's integration defines its own metrics when training begins, and the
        # definition made last wins.
        run.define_metric("rlmon/*", step_metric="train/global_step")
        run.config.update({"rlmon": self._about}, allow_val_change=True)
        self._run = run
        self._last_table_step = None
        self._states = {}

    def _table_due(self, step: int) -> bool:
        if not self._table_every:
            return False
        return self._last_table_step is None or step - self._last_table_step >= self._table_every

    def _alert(self, wandb: Any, run: Any, finding: Finding) -> None:
        if _RANK[finding.severity] <= _RANK[self._states.get(finding.detector, "pass")]:
            return
        self._states[finding.detector] = finding.severity
        run.summary["rlmon/verdict"] = self._verdict()
        run.alert(
            title=f"rlmon {finding.severity.upper()}: {finding.detector}",
            text=_cell(f"Step {finding.step}: {finding.message}\n{finding.advice}"),
            level=wandb.AlertLevel.ERROR if finding.severity == "fail" else wandb.AlertLevel.WARN,
            wait_duration=0,
        )

    def _verdict(self) -> str:
        return max(self._states.values(), key=_RANK.__getitem__, default="pass")


def _metric_name(name: str) -> str:
    """W&B's interface cannot sort or filter names with other characters; users name their own format modes."""
    return re.sub(r"[^A-Za-z0-9_/.]", "_", name)


def _cell(value: Any) -> Any:
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
