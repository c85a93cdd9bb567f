"""A log whose run had a detector of its own: the audit judges it by what the header holds."""

from __future__ import annotations

from pathlib import Path

import pytest
import sums_shown
import torch

import rlmon
from rlmon.detectors import DetectorSpec
from rlmon.extensions import Extensions
from rlmon.monitor import Monitor

SUDDEN = DetectorSpec(
    id="too-good",
    statistics=("reward",),
    metrics=("rlmon/health/reward_mean",),
    unit="reward",
    direction="up",
    rule="ratio",
    warn=1.5,
    fail=2.0,
    told=("completions earned {base}, now {now}",),
    meaning="The reward is too good to be true.",
    advice="Read the completions that earn it.",
    question="Is the reward believable?",
)


@pytest.mark.parametrize("rises", [True, False])
def test_a_detector_of_the_run_is_judged_by_an_audit_that_never_heard_of_it(tmp_path: Path, rises: bool) -> None:
    monitor = Monitor(
        rlmon.RLMonConfig(rlmon_console=False, rlmon_wandb=False),
        directory=tmp_path / "log",
        group_size=4,
        extensions=Extensions(detectors=[SUDDEN]),
    )
    noise = torch.Generator().manual_seed(0)
    for step in range(1, 41):
        rows = [(a, a + step % 7) for a in range(8) for _ in range(4)]
        answers = [f"{a} plus {b} makes {a + b}." for a, b in rows]
        rewards = [1.0 if rises and step > 15 else float(i % 3 == 0) for i in range(len(rows))]
        sums_shown.observe(monitor, step, rows, answers, rewards, noise)
        monitor.end_step(step)
    monitor.close()

    audit = rlmon.audit(tmp_path / "log")
    check = next(check for check in audit.checks if check.id == "too-good")
    assert check.title == "Is the reward believable?"
    assert check.status == ("fail" if rises else "pass")
    if rises:
        assert "completions earned 0.344, now 1 (line 0.688). Confirmed" in check.message
        assert check.advice == SUDDEN.advice
    assert next(check for check in audit.checks if check.id == "replay").status == "pass"


def test_a_log_whose_own_detector_cannot_be_read_is_judged_anew(tmp_path: Path) -> None:
    monitor = Monitor(
        rlmon.RLMonConfig(rlmon_console=False),
        directory=tmp_path,
        group_size=4,
        extensions=Extensions(detectors=[SUDDEN]),
    )
    rows = [(a, a) for a in range(4) for _ in range(4)]
    for step in range(1, 4):
        sums_shown.observe(monitor, step, rows, ["It is 3."] * 16, [0.0, 1.0] * 8, torch.Generator())
        monitor.end_step(step)
    monitor.close()
    (path,) = tmp_path.glob("**/run.json*")
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace("{base}, now", "{nwo}, now"), encoding="utf-8")
    check = next(check for check in rlmon.audit(tmp_path).checks if check.id == "replay")
    assert "told has {base} and {now}" in (check.reason or "")
