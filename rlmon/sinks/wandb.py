"""Everything under ``rlmon/*`` in the W&B run that the trainer has open.

The trainer's own integration logs many times per step and never passes ``step=``, so W&B's counter is not the
optimizer step: the x axis is ``train/global_step``, as in the trainer's own charts. A run is never opened here, and
wandb is never imported before somebody else has.
"""

from __future__ import annotations

import dataclasses
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rlmon.acts import Act, act_of
from rlmon.records import SEVERITIES, Action, Finding, RunHeader, Severity, StepRecord, verdict
from rlmon.sinks import SampleRows, Sink

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
MAX_ACTS = 200
"""Newest acts of the policy that the table holds."""
ACTS_EVERY_STEPS = 25
"""Steps between two tables of acts, where nothing else is asked for; the last one comes at the end."""
ACT_COLUMNS = ("step", "rule", "change", "outcome", "effect", "reason", "effect_reason")
_LEVELS: Mapping[Severity, str] = {"note": "INFO", "warn": "WARN", "fail": "ERROR"}


class WandbSink(Sink):
    """Mirrors step records into the open W&B run; silent while there is none.

    Tables hold prompts and completions: there are none unless the run stores its text in full.
    """

    def __init__(self) -> None:
        self._table_every = 0
        self._about: dict[str, Any] = {}
        self._run: Any = None
        self._last_table_step: int | None = None
        self._states: dict[str, Severity] = {}
        self._acts: dict[str, Act] = {}
        self._acts_unlogged = False
        self._last_acts_step: int | None = None
        self._step = 0

    def open(self, header: RunHeader) -> None:
        """Take the run's settings: how often there is a table, and what goes into W&B's config, under ``rlmon``."""
        self._table_every = header.config["rlmon_table_every"] if header.config["rlmon_store_text"] == "full" else 0
        self._about = {"config": dict(header.config), "run_id": header.run_id}

    def record(self, step: StepRecord, findings: Sequence[Finding], sample_rows: SampleRows) -> None:
        """One log call with the step's measured metrics, a table when one is due, and an alert per change of state."""
        wandb = sys.modules.get("wandb")
        run = None if wandb is None else wandb.run
        if wandb is None or run is None:
            return
        if run is not self._run:
            self._meet(run)
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
        self._step = step.step
        if self._acts_unlogged and self._acts_due(step.step):
            row["rlmon/interventions"] = self._acts_table(wandb)
        run.log(row)
        for finding in findings:
            self._alert(wandb, run, finding)

    def action(self, action: Action) -> None:
        """Keep the act for the next table: all phases of one are one row, and the newest 200 acts are kept."""
        before = self._acts.get(action.action_id)
        if before is None and action.phase == "measured":
            return
        self._acts[action.action_id] = act_of(dataclasses.asdict(action), before)
        self._acts_unlogged = True
        if len(self._acts) > MAX_ACTS:
            del self._acts[next(iter(self._acts))]

    def close(self) -> None:
        """Write the last acts, and the verdict of a run that came to its end without a finding."""
        wandb = sys.modules.get("wandb")
        # The trainer's integration may have finished the run before us.
        if wandb is not None and wandb.run is not None and wandb.run is self._run:
            self._run.summary["rlmon/verdict"] = verdict(self._states.values())
            if self._acts_unlogged:
                table = self._acts_table(wandb)
                self._run.log({"train/global_step": self._step, "rlmon/interventions": table})

    def _meet(self, run: Any) -> None:
        # Here, not in __init__: the trainer's integration defines its own metrics when training begins, and the
        # definition made last wins.
        run.define_metric("rlmon/*", step_metric="train/global_step")
        run.config.update({"rlmon": self._about}, allow_val_change=True)
        self._run = run
        self._last_table_step = self._last_acts_step = None
        self._states = {}

    def _table_due(self, step: int) -> bool:
        if not self._table_every:
            return False
        return self._last_table_step is None or step - self._last_table_step >= self._table_every

    def _acts_due(self, step: int) -> bool:
        every = self._table_every or ACTS_EVERY_STEPS
        return self._last_acts_step is None or step - self._last_acts_step >= every

    def _acts_table(self, wandb: Any) -> Any:
        """Newest first. Reasons hold numbers and names, never text of the run."""
        self._acts_unlogged, self._last_acts_step = False, self._step
        cells = [[_cell(getattr(act, column)) for column in ACT_COLUMNS] for act in reversed(self._acts.values())]
        return wandb.Table(columns=list(ACT_COLUMNS), data=cells, allow_mixed_types=True)

    def _alert(self, wandb: Any, run: Any, finding: Finding) -> None:
        before = self._states.get(finding.detector)
        if before is not None and SEVERITIES.index(finding.severity) <= SEVERITIES.index(before):
            return
        self._states[finding.detector] = finding.severity
        run.summary["rlmon/verdict"] = verdict(self._states.values())
        message = finding.message.removeprefix(f"{finding.detector}: ")  # the title has the name
        run.alert(
            title=f"rlmon {finding.severity.upper()}: {finding.detector}",
            text=_cell(f"Step {finding.step}: {message}\n{finding.advice}"),
            level=getattr(wandb.AlertLevel, _LEVELS[finding.severity]),
            wait_duration=0,
        )


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
