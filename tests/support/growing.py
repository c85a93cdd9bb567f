"""A run log that grows: steps with completions, one by one, as training writes them."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import make_runlog

from rlmon import detectors
from rlmon.runlog import RunLogWriter

DETECTORS: Mapping[str, Any] = detectors.describe(detectors.start(alpha=0.01, total_steps=100, group_size=4))


class GrowingLog:
    """``GrowingLog(folder).grow(8)``: a run of one attempt, eight steps longer than it was."""

    def __init__(self, folder: Path, **header: Any) -> None:
        header = {"run_id": folder.name, "trainer": "GRPOTrainer", "total_steps": 100, "detectors": DETECTORS} | header
        self.writer = RunLogWriter.open(folder / "rlmon", make_runlog.header(**header), resume=False)
        self.steps = 0

    def grow(self, steps: int) -> None:
        for _ in range(steps):
            self.writer.write_rollouts(make_runlog.rollouts(self.steps))
            self.steps += 1
            metrics = {"rlmon/entropy/mean": 1 - self.steps / 200, "rlmon/health/reward_mean": self.steps / 100}
            self.writer.append_step(
                make_runlog.step_record(self.steps, missing={}, metrics=metrics, time_unix_seconds=time.time())
            )

    def end(self) -> None:
        self.writer.append_event("ended", {})
        self.writer.close()
