"""Rewards from which nothing, or not everything, can be learned: real runs of TRL, as their audit tells them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import tiny
from audit_rows import check

from rlmon.audit import engine
from rlmon.audit.result import Audit
from rlmon.trl import RLMon

pytestmark = pytest.mark.trl
STEPS = 40
NAN_FROM = 13


def always_three(completions: Sequence[Any], **_: Any) -> list[float]:
    return [3.0] * len(completions)


def never_any(completions: Sequence[Any], **_: Any) -> list[float]:
    return [0.0] * len(completions)


def nan_for_a_quarter(completions: Sequence[Any], trainer_state: Any, **_: Any) -> list[float]:
    late = trainer_state.global_step >= NAN_FROM - 1  # steps done before this one
    return [math.nan if late and at % 4 == 0 else value for at, value in enumerate(tiny.has_digit(completions))]


def run(out: Path, reward: Any) -> Audit:
    trained = tiny.trainer(
        out, reward=reward, num_generations=8, per_device_train_batch_size=16, max_steps=STEPS, learning_rate=1e-3
    )
    RLMon(trained)
    trained.train()
    return engine.audit(out / "rlmon")


def test_a_constant_reward_is_nothing_to_learn_from(tmp_path: Path) -> None:
    audit = run(tmp_path / "const", always_three)
    assert audit.verdict == "fail"
    found = check(audit, "reward-signal")
    assert found.status == "fail"
    assert found.message.startswith(
        f"the reward is 3 for every completion in all {STEPS} steps: nothing can be learned"
    )
    assert check(audit, "silent-groups-good").status == "skip"
    assert not [one.id for one in audit.checks if "harder prompts" in one.advice]


def test_rewards_that_turn_nan_for_a_quarter_are_told_with_their_step(tmp_path: Path) -> None:
    audit = run(tmp_path / "nanr", nan_for_a_quarter)
    assert audit.verdict in ("warn", "fail")
    found = check(audit, "reward-missing")
    assert (found.status, found.first_step, found.value) == ("warn", NAN_FROM, 0.25)


def test_a_reward_function_that_never_pays_is_named(tmp_path: Path) -> None:
    audit = run(tmp_path / "deadfmt", [tiny.has_digit, never_any])
    assert audit.verdict in ("warn", "fail")
    found = check(audit, "reward-functions")
    assert found.status == "warn"
    assert found.evidence["dead"] == ["never_any"]
    assert "'never_any'" in found.message
    assert "has_digit" not in found.message
