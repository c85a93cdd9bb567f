"""``hold`` in real runs of every kind: what it adds to whom, and that a resumed run goes on alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import steered
import tiny

import rlmon
from rlmon.controller import Controller
from rlmon.records import RolloutBatch

pytestmark = pytest.mark.trl

APART = {"action": "hold", "format": 1.0, "moves": 1.0, "sketch": 1.0, "bounds": [0.5, 2.0]}
POLICY = {"rules": {"apart": {"when": "always", "do": APART, "cool_off_steps": 1, "measure_after_steps": 4}}}
LONG: dict[str, Any] = {
    # So long that most completions end by themselves: what is cut is not looked at.
    "max_completion_length": 48,
    "num_generations": 8,
    "per_device_train_batch_size": 16,
    "reward": tiny.has_digit,
}
KINDS: dict[str, dict[str, Any]] = {
    "grpo": {},
    "rloo": {"rloo": True},
    "ppo": {"ppo": True},
    "ppo-alone": {"ppo": True, "num_generations": 1},
}


@pytest.mark.parametrize("kind", KINDS)
def test_right_answers_alone_are_pushed_apart(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rounds: list[tuple[RolloutBatch, np.ndarray]] = []
    real = Controller.round

    def seen(self: Controller, batch: Any, *args: Any, **kwargs: Any) -> Any:
        effect = real(self, batch, *args, **kwargs)
        rounds.append((batch, np.zeros(len(batch)) if effect is None else effect.addition_n))
        return effect

    monkeypatch.setattr(Controller, "round", seen)
    settings = LONG | KINDS[kind] | {"max_steps": 8, "train": tiny.dataset(48)}
    run = steered.trained(tmp_path / "held", POLICY, **settings)
    free = steered.trained(tmp_path / "dry", {"dry_run": True, **POLICY}, **settings)
    assert not tiny.same_weights(tiny.weights(run), tiny.weights(free))
    held, dry = rounds[:8], rounds[8:]
    assert not any(added.any() for _, added in dry)
    assert not held[0][1].any(), "a rule acts from the round after"
    assert sum(added.any() for _, added in held) >= 3
    for batch, added in held:
        right = (np.array(batch.reward) == 1.0) & ~np.array(batch.truncated)
        assert not added[~right].any()
        assert abs(added.sum()) < 1e-9
        if batch.group_size > 1:
            assert np.abs(added.reshape(-1, batch.group_size).sum(1)).max() < 1e-9
    record = run.rlmon_callback.monitor.last_record
    assert record.metrics["rlmon/intervention/hold_kappa"] >= 0.5
    told = [action for action in steered.actions(tmp_path / "held") if action.phase == "applied"]
    assert (told[0].knob, told[0].old, told[0].new) == ("hold (format+moves+sketch)", 0.0, 0.5)


def test_a_killed_run_goes_on_with_what_it_remembers(tmp_path: Path) -> None:
    settings = LONG | {"max_steps": 14, "save_strategy": "steps", "save_steps": 5}
    # A rule that draws other prompts keeps their order over a resume, which TRL alone does not.
    policy = steered.rules("unsolvable", **POLICY["rules"])
    whole = steered.trained(tmp_path / "whole", policy, **settings)
    steered.trained(tmp_path / "torn", policy, dies_after=12, **settings)
    again = steered.trained(tmp_path / "torn", policy, resume=tmp_path / "torn" / "checkpoint-10", **settings)
    assert tiny.same_weights(tiny.weights(whole), tiny.weights(again))
    acts = [[steered.told(act) for act in steered.actions(tmp_path / name)] for name in ("whole", "torn")]
    assert acts[0] == acts[1]
    log = rlmon.open_run(tmp_path / "torn" / "rlmon")
    assert [record.metrics["rlmon/intervention/hold_ratio"] for record in log.step_records()][-1] is not None


def test_where_there_is_nothing_to_hold_it_rests_and_the_run_is_as_without_it(tmp_path: Path) -> None:
    """With a line of 1,000 ways no base has enough; with the one that every base has, it acts."""
    settings = LONG | {"max_steps": 8, "train": tiny.dataset(48)}

    def weights(name: str, wordings: float | None) -> Any:
        do = APART | {"wordings": wordings}
        policy = None if wordings is None else {"rules": {"words": {"when": "always", "do": do}}}
        return tiny.weights(steered.trained(tmp_path / name, policy, **settings))

    assert tiny.same_weights(weights("rests", 1000.0), weights("without", None))
    assert not tiny.same_weights(weights("acts", 1.0), weights("again", None))
    acts = [action for action in steered.actions(tmp_path / "rests") if action.phase == "decided"]
    assert [(act.old, act.new) for act in acts] == [(0.0, 0.5), (0.5, 0.0)]
    assert "fewer than 1000" in acts[1].reason
    kappa = [
        record.metrics["rlmon/intervention/hold_kappa"]
        for record in rlmon.open_run(tmp_path / "rests" / "rlmon").step_records()
    ]
    assert kappa[2:] == [0.0] * 6, "what is spent, not what would be"
