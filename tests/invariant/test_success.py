"""What counts as a success in real runs of TRL, in their checkpoints and when they are audited."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import tiny

import rlmon
from rlmon.audit import engine
from rlmon.errors import ConfigError
from rlmon.trl import RLMon, RLMonConfig
from rlmon.trl.check import check_config

pytestmark = pytest.mark.trl


def accuracy_reward(completions: Sequence[Any], **_: Any) -> list[float]:
    return [0.0] * len(completions)


def format_reward(completions: Sequence[Any], **_: Any) -> list[float]:
    return [1.0] * len(completions)


def length_reward(completions: Sequence[Any], **_: Any) -> list[float]:
    return [0.01 * len(tiny.text(completion)) for completion in completions]


def said(log: Path) -> list[str]:
    return [event.payload["says"] for event in rlmon.open_run(log).events if event.kind == "success"]


def test_right_format_and_wrong_answers_are_not_solved_live_resumed_or_audited(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rewards = [accuracy_reward, format_reward]
    trained = tiny.trainer(tmp_path / "run", reward=rewards, save_strategy="steps", save_steps=2)
    RLMon(trained)
    trained.train()
    definition = "accuracy_reward above 0.5 and format_reward above 0.5"
    assert capsys.readouterr().err.count(f"rlmon: a success is {definition}\n") == 1
    log = tmp_path / "run" / "rlmon"
    for record in rlmon.open_run(log).step_records():
        assert record.metrics["rlmon/group/all_bad"] == 1.0
        assert record.metrics["rlmon/group/all_good"] == 0.0
    state = json.loads((tmp_path / "run" / "checkpoint-2" / "rlmon" / "state.json").read_text())
    assert state["success"]["definition"]["says"] == definition

    # Resumed with rewards that alone would be decided otherwise: what was decided stays.
    again = tiny.trainer(tmp_path / "run", reward=[accuracy_reward, format_reward, length_reward], max_steps=5)
    RLMon(again)
    again.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-4"))
    assert "a success is" not in capsys.readouterr().err
    assert set(said(log)) == {definition}

    audit = engine.audit(log)
    assert audit.run.success["says"] == definition
    assert {check.id: check.status for check in audit.checks}["replay"] == "pass"
    (pass_at_k,) = [check for check in audit.checks if check.id == "pass-at-k"]
    assert pass_at_k.value in (None, 0.0)
    # The same rows by another definition: all of them are in the right format.
    other = engine.audit(log, success="format_reward")
    assert other.run.success["says"] == "format_reward above 0.5"
    with pytest.raises(ConfigError, match=r"Did you mean format_reward\?"):
        engine.audit(log, success="fromat_reward")


def test_graded_rewards_put_the_rules_that_need_successes_at_rest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rules = {"rules": {
        "shortcuts": {"when": "always", "do": "quarantine"},
        "unsolvable": {"when": "always", "do": "defer"},
    }}  # fmt: skip
    trained = tiny.trainer(tmp_path / "run", reward=length_reward)
    RLMon(trained, RLMonConfig(rlmon_policy=rules))
    trained.train()
    run = rlmon.open_run(tmp_path / "run" / "rlmon")
    failed = [action for action in run.actions if action.phase == "failed"]
    assert {action.rule for action in failed} == {"shortcuts", "unsolvable"}
    assert len(failed) == 2, "said once each"
    assert all("rewards are graded without a plain top" in action.reason for action in failed)
    for record in run.step_records():
        assert record.metrics["rlmon/group/hard_share"] is None
        assert "rlmon_success" in record.missing["rlmon/group/hard_share"]
        assert not record.faults
    assert "rlmon: success is not known: rewards are graded" in capsys.readouterr().err


def test_a_name_that_the_trainer_does_not_have_is_refused_at_attach(tmp_path: Path) -> None:
    trained = tiny.trainer(tmp_path / "run", reward=[accuracy_reward, format_reward])
    with pytest.raises(ConfigError, match=r"'acuracy_reward', which this run does not have\. Did you mean accuracy"):
        RLMon(trained, RLMonConfig(rlmon_success="acuracy_reward>0.9"))
    assert "compute_loss" not in trained.__dict__
    monitor = RLMon(trained, RLMonConfig(rlmon_success="accuracy_reward>0.9"))
    assert monitor.attached


def test_check_refuses_the_same_name_before_anything_is_built(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("reward_funcs: [my.accuracy_reward, format_reward]\nrlmon_success: acuracy_reward>0.9\n")
    with pytest.raises(ConfigError, match="Did you mean accuracy_reward"):
        check_config(file, "grpo")
    file.write_text("reward_funcs: [my.accuracy_reward, format_reward]\nrlmon_success: accuracy_reward>0.9\n")
    assert check_config(file, "grpo").rows
