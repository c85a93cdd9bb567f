"""Law 2 of interventions: a part that fails stops its own rule, is on record, and training goes on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import steered
import tiny

import rlmon
from rlmon.interventions import fold
from rlmon.interventions.once import RollBack
from rlmon.interventions.rows import RoundTable
from rlmon.records import Action
from rlmon.runlog import RunLogWriter
from rlmon.trl import RLMon, actuators
from rlmon.trl.actuators import ROLLED_BACK, TrainerActuators
from rlmon.trl.anchor import AnchorStore
from rlmon.trl.checkpoint import write_json
from rlmon.trl.coefficients import Coefficients
from rlmon.trl.draws import Draws
from rlmon.trl.generation import Generation

pytestmark = pytest.mark.trl

STEPS = 9


def breaks(original: Any, when: Callable[..., bool]) -> Any:
    def maybe(*args: Any, **kwargs: Any) -> Any:
        if when(*args, **kwargs):
            raise ValueError("broken on purpose")
        return original(*args, **kwargs)

    return maybe


def on_call(number: int) -> Callable[..., bool]:
    calls: list[int] = []

    def is_it(*_: Any, **__: Any) -> bool:
        calls.append(1)
        return len(calls) == number

    return is_it


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    def train(owner: Any, name: str, when: Callable[..., bool], *rules: str, **settings: Any) -> Any:
        """Trains with ``owner.name`` broken; the trainer, the actions in the log, and the faults by place."""
        monkeypatch.setattr(owner, name, breaks(getattr(owner, name), when))
        policy = steered.rules(*rules) if rules else steered.rules()
        steered.skip_a_bonus_without_gradient(policy, settings.get("rloo"))
        trained = tiny.trainer(tmp_path / "run", max_steps=STEPS, reward=steered.some_unsolvable, **settings)
        callback = RLMon(trained, steered.config(policy, rlmon_strict=False))
        trained.train()
        monkeypatch.undo()
        assert trained.state.global_step == STEPS
        assert callback.monitor is not None
        trained.controller = callback.monitor.controller
        return trained, steered.actions(tmp_path / "run"), callback.monitor.faults.totals

    return train


def failed(actions: list[Action]) -> dict[str, int]:
    """By rule, the step at which it failed."""
    return {action.rule: action.step for action in actions if action.phase == "failed"}


def at_work(actions: list[Action]) -> set[str]:
    return {action.rule for action in actions if action.phase == "applied"} - set(failed(actions))


@pytest.mark.parametrize(
    ("owner", "name", "when", "known"),
    [
        (fold, "on_round", on_call(5), 5),
        (fold, "on_step", on_call(5), 6),
        (RoundTable, "of", on_call(5), 5),
    ],
    ids=["a round's fold", "a step's fold", "a table"],
)
def test_a_broken_fold_switches_everything_off(run: Any, owner: Any, name: str, when: Any, known: int) -> None:
    trained, actions, faults = run(owner, name, when)
    assert faults == {"interventions": 1}
    assert failed(actions) == dict.fromkeys(steered.CONTINUING, known)
    assert max(action.step for action in actions) == known
    assert "broken on purpose" in trained.controller.off
    assert trained.beta == trained.entropy_coef == 0.0
    assert not trained._entropy_bonus_enabled
    ended = {action.action_id for action in actions if action.phase in ("applied", "failed")}
    assert {action.action_id for action in actions if action.phase == "decided"} <= ended


@pytest.mark.parametrize(
    ("owner", "name", "when", "rule", "settings"),
    [
        (Coefficients, "set_beta", lambda self, value: value > 0.0, "budget", {}),
        # RLOO's own beta is .05.
        (Coefficients, "set_beta", lambda self, value: value > 0.05, "budget", {"rloo": True}),
        (Coefficients, "set_entropy_coef", lambda self, value: value > 0.0, "spread", {}),
        (Coefficients, "reset_reference", lambda self: True, "renew", {}),
        (Coefficients, "extra_loss", on_call(4), "spread", {"rloo": True}),
        (Draws, "swap", lambda self, inputs, blocked, number: bool(blocked), "unsolvable", {}),
        (AnchorStore, "collect", on_call(4), "keep", {}),
        (AnchorStore, "loss", on_call(4), "keep", {"lora": True}),
    ],
    ids=["beta", "beta-rloo", "bonus", "reset", "bonus-rloo", "draws", "collect", "anchor"],
)
def test_what_breaks_puts_its_own_rule_at_rest(
    run: Any, owner: Any, name: str, when: Any, rule: str, settings: dict[str, Any]
) -> None:
    trained, actions, _ = run(
        owner, name, when, "hold", "bound", *({"budget", rule} if rule == "renew" else {rule}), **settings
    )
    assert set(failed(actions)) == {rule}
    (reason,) = {action.reason for action in actions if action.phase == "failed"}
    assert "broken on purpose" in reason
    assert {"hold", "bound"} <= at_work(actions)
    assert trained.controller.off is None
    after = [a for a in actions if a.rule == rule and a.step > failed(actions)[rule] and a.phase == "decided"]
    # What was deferred is given back, which is an act of its own.
    assert [action.reason for action in after if "the rule is at rest" not in action.reason] == []
    assert failed(actions)[rule] < STEPS
    if rule == "budget":
        assert trained.beta == trained.args.beta
    if rule == "spread":
        assert trained.controller._actuators.values()["entropy_coef"] == 0.0


def test_an_anchor_that_cannot_collect_does_not_take_the_advantages_with_it(run: Any, monkeypatch: Any) -> None:
    changed: list[int] = []
    real = actuators.advantages_after
    monkeypatch.setattr(actuators, "advantages_after", lambda *given: (changed.append(1), real(*given))[1])
    run(AnchorStore, "collect", on_call(4), "bound", "keep")
    assert len(changed) == STEPS - 1, "every round after the first"


def test_advantages_that_cannot_be_changed_stop_the_rules_that_would(run: Any) -> None:
    _, actions, faults = run(actuators, "advantages_after", on_call(3), "hold", "bound", "suspect", "spread")
    assert faults == {"interventions": 1}
    assert set(failed(actions)) == {"hold", "bound", "suspect"}
    assert at_work(actions) == {"spread"}


def test_completions_that_cannot_be_read_leave_their_round_alone(run: Any) -> None:
    trained, actions, faults = run(Generation, "_take", on_call(4), "hold", "bound", "suspect")
    # Nor can its tokens be told to rows, and its rows are counted as shed.
    assert faults == {"capture.rollouts": 1, "interventions": 1, "capture.tokens": 1, "runlog.rollouts": 1}
    assert failed(actions) == {}
    assert trained.controller.off is None
    assert max(action.step for action in actions if action.phase == "applied") > 5


def test_a_log_that_cannot_be_written_does_not_stop_the_rules(run: Any) -> None:
    """Deciding needs no log, and ranks other than the first have none."""
    trained, actions, _ = run(RunLogWriter, "append_event", lambda self, kind, payload: kind == "action")
    assert actions == []
    assert trained.controller.off is None
    assert trained.beta > 0.0


def _mark_cannot_be_written(path: Path, data: Any) -> None:
    if path.name == ROLLED_BACK:
        raise OSError("no space left on device")
    write_json(path, data)


@pytest.mark.parametrize(
    ("name", "broken"),
    [("_checkpoint_before", lambda self, step: None), ("write_json", _mark_cannot_be_written)],
    ids=["rotated away", "disk full"],
)
def test_a_checkpoint_that_cannot_be_returned_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, broken: Any
) -> None:
    """It was there when the rule acted, and is not any more (or cannot be marked) when all ranks are to go back."""
    found, apply = TrainerActuators._checkpoint_before, TrainerActuators.apply

    def apply_and_break(self: TrainerActuators, action: Action, settings: Any) -> None:
        apply(self, action, settings)
        if isinstance(settings, RollBack):
            monkeypatch.setattr(TrainerActuators if hasattr(TrainerActuators, name) else actuators, name, broken)

    monkeypatch.setattr(TrainerActuators, "apply", apply_and_break)
    policy = {"rules": {"back": {"when": steered.above("rlmon/intervention/entropy_coef", 0.03), "do": "roll_back"}}}
    policy["rules"]["clock"] = steered.CONTINUING["spread"]
    trained = tiny.trainer(tmp_path / "run", max_steps=STEPS + 3, save_strategy="steps", save_steps=2)
    callback = RLMon(trained, steered.config(policy))
    trained.train()
    assert found(callback._capture.actuators, STEPS + 3) is not None
    assert trained.state.global_step == STEPS + 3
    assert callback.roll_back_to is None
    told = [action for action in steered.actions(tmp_path / "run") if action.rule == "back"]
    assert [action.phase for action in told] == ["decided", "applied", "failed"]
    assert told[-1].reason.endswith("the checkpoint to return to is gone or cannot be written to")


def test_the_user_s_own_error_passes_through(tmp_path: Path) -> None:
    calls: list[int] = []

    def reward(completions: Any, **_: Any) -> list[float]:
        calls.append(1)
        if len(calls) == 3:
            raise ZeroDivisionError("the user's own")
        return tiny.has_digit(completions)

    trained = tiny.trainer(tmp_path / "run", reward=reward)
    RLMon(trained, steered.config(steered.rules()))
    with pytest.raises(ZeroDivisionError, match="the user's own"):
        trained.train()
    assert rlmon.open_run(tmp_path / "run" / "rlmon").actions
