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
from rlmon.records import SEVERITIES, Action, Finding, Histogram, RunHeader, Severity, StepRecord, verdict
from rlmon.sinks import Sink

MAX_TABLE_ROWS = 32
MAX_CELL_CHARACTERS = 4_000
TABLE_COLUMNS = (
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
        self._about: dict[str, Any] = {}
        self._run: Any = None
        self._states: dict[str, Severity] = {}
        self._acts: dict[str, Act] = {}
        self._acts_unlogged = False
        self._last_acts_step: int | None = None
        self._step = 0

    def open(self, header: RunHeader) -> None:
        """Take what goes into W&B's config, under ``rlmon``."""
        self._about = {"config": dict(header.config), "run_id": header.run_id}

    def record(self, step: StepRecord, histograms: Mapping[str, Histogram]) -> None:
        """One log call with the step's measured metrics."""
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
        self._step = step.step
        if self._acts_unlogged and self._acts_due(step.step):
            row["rlmon/interventions"] = self._acts_table(wandb)
        run.log(row)

    def finding(self, finding: Finding) -> None:
        """An alert per change of state."""
        wandb = sys.modules.get("wandb")
        if wandb is not None and wandb.run is not None and wandb.run is self._run:
            self._alert(wandb, self._run, finding)

    def table(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """The rows as a table of their own."""
        wandb = sys.modules.get("wandb")
        if wandb is None or wandb.run is None or wandb.run is not self._run:
            return
        cells = [[_cell(sample.get(column)) for column in TABLE_COLUMNS] for sample in rows[:MAX_TABLE_ROWS]]
        samples = wandb.Table(columns=list(TABLE_COLUMNS), data=cells, allow_mixed_types=True)
        self._run.log({"train/global_step": step, "rlmon/samples": samples})

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
        self._last_acts_step = None
        self._states = {}

    def _acts_due(self, step: int) -> bool:
        return self._last_acts_step is None or step - self._last_acts_step >= ACTS_EVERY_STEPS

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
