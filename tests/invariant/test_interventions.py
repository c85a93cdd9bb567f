"""Laws 1, 4 and 8 of interventions: dry runs change nothing, acts are on record, a resumed run goes on alike."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import steered
import tiny
import torch
from own_action import Ramp
from trl import GRPOTrainer

import rlmon
from rlmon.audit import engine as audit_engine
from rlmon.errors import AttachError
from rlmon.interventions.once import Stop
from rlmon.records import Action
from rlmon.trl import MonitoredGRPOTrainer, MonitoredRLOOTrainer, RLMon
from rlmon.trl.actuators import ROLLED_BACK, TrainerActuators
from rlmon.trl.anchor import AnchorStore
from rlmon.trl.draws import Draws

pytestmark = pytest.mark.trl

KINDS: dict[str, dict[str, Any]] = {
    "grpo": {},
    "rloo": {"rloo": True},
    "lora": {"lora": True, "learning_rate": 5e-2},
    "reuse": {"num_iterations": 2},
}
kinds = pytest.mark.parametrize("kind", KINDS)
EVERY_RULE = {**steered.CONTINUING, **steered.ENDING}


def weights_of(trained: Any) -> dict[str, torch.Tensor]:
    return tiny.weights(trained)


def sampled(out: Path) -> list[Any]:
    rows = rlmon.open_run(out / "rlmon").rollouts().to_pylist()
    return [(row["round"], row["global_row"], row["prompt"], row["completion"], row["advantage"]) for row in rows]


# -- dry runs and rules that do not fire -------------------------------------------------------------------------------


@kinds
def test_what_does_not_act_changes_no_weight(tmp_path: Path, kind: str) -> None:
    settings = KINDS[kind] | {"max_steps": 8, "save_strategy": "steps", "save_steps": 3}
    stock = tiny.trainer(tmp_path / "stock", reward=steered.some_unsolvable, **settings)
    stock.train()
    never = {"metric": "rlmon/health/length_mean", "above": 1e6}
    for name, policy in {
        **({"unset": None} if kind == "grpo" else {}),
        "observe": "observe",
        "dry": {"dry_run": True, "rules": {rule: {**given, "when": "always"} for rule, given in EVERY_RULE.items()}},
        "never": {"rules": {rule: {**given, "when": never} for rule, given in EVERY_RULE.items()}},
    }.items():
        run = steered.trained(tmp_path / name, policy, **settings)
        assert tiny.same_weights(weights_of(stock), weights_of(run)), name
        told = steered.actions(tmp_path / name)
        if name in ("unset", "never"):
            assert told == []
        assert all(action.dry_run and action.phase == "decided" for action in told), name
    assert {action.rule for action in steered.actions(tmp_path / "dry")} == set(EVERY_RULE)
    # Rules that are dry must not make a checkpoint wait; those that could act do, for the end of a round of two steps.
    assert steered.checkpoints(tmp_path / "dry") == steered.checkpoints(tmp_path / "stock") == [3, 6, 8]
    assert steered.checkpoints(tmp_path / "never") == ([4, 6, 8] if kind == "reuse" else [3, 6, 8])


# -- what acts is on record --------------------------------------------------------------------------------------------


@kinds
def test_every_act_is_decided_applied_and_measured(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    anchored: list[float] = []
    real = AnchorStore.loss

    def loss(self: AnchorStore, *args: Any) -> torch.Tensor | None:
        added = real(self, *args)
        anchored.extend([] if added is None else [float(added.detach())])
        return added

    monkeypatch.setattr(AnchorStore, "loss", loss)
    steps = 18
    run = steered.trained(tmp_path / "run", steered.rules(), **KINDS[kind], max_steps=steps)
    # With two steps in each round the eight rounds of the anchor's base are only just over.
    assert anchored or kind == "reuse", "the supervised loss was added"
    told = steered.actions(tmp_path / "run")
    assert {action.rule for action in told if action.phase == "applied"} == set(steered.CONTINUING)
    phases = Counter((action.phase, action.action_id) for action in told)
    decided = {action.action_id for action in told if action.phase == "decided"}
    assert phases == {(phase, one): 1 for phase in ("decided", "applied", "measured") for one in decided}
    order = {key: i for i, key in reversed(list(enumerate((a.phase, a.action_id) for a in told)))}
    assert all(order["decided", one] < order["applied", one] < order["measured", one] for one in decided)
    measured = [action for action in told if action.phase == "measured"]
    assert all(action.effect is not None and action.effect_reason for action in measured)
    # With two steps in each round most metrics have three values in six steps, and six are needed.
    assert kind == "reuse" or {action.effect for action in measured} > {"not_measured"}, "some effects were measured"
    late = [action for action in told if action.phase == "decided" and action.step > steps - 6]
    ended = {action.action_id: action.effect_reason for action in measured if action.effect == "not_measured"}
    assert late
    assert all(ended[action.action_id] == "the run ended first" for action in late)
    record = run.rlmon_callback.monitor.last_record
    newest = {action.knob: action.new for action in told if action.phase == "applied"}
    assert run.beta == newest["beta"] > 0.0
    assert record.metrics["rlmon/intervention/beta"] > 0.0
    assert record.metrics["rlmon/intervention/entropy_coef"] > 0.0


def test_an_audit_of_a_steered_run_shows_its_acts_and_replays_its_findings(tmp_path: Path) -> None:
    """Detectors judge the run as it is, whatever the rules do to it: what they said live is what a replay says."""
    run = steered.trained(tmp_path / "run", steered.rules("hold", "bound", "suspect"), max_steps=20, learning_rate=5e-2)
    audit = audit_engine.audit(tmp_path / "run")
    found = {check.id: check for check in audit.checks}
    assert found["replay"].status == "pass", found["replay"].message
    assert not [check.id for check in audit.checks if check.status == "error"]
    replayed = [json.loads(json.dumps(dict(finding)))["finding_id"] for finding in audit.findings]
    assert replayed == [finding.finding_id for finding in run.rlmon_callback.monitor.findings]
    assert [action["action_id"] for action in audit.to_json()["actions"]] == [
        action.action_id for action in steered.actions(tmp_path / "run")
    ]
    json.dumps(audit.to_json(), allow_nan=False)


@pytest.mark.parametrize("beta", [0.0, 0.125])
def test_an_action_of_ones_own_turns_what_a_trainer_has(tmp_path: Path, beta: float) -> None:
    """From where the trainer's own coefficient stands, with a reference where it has none; and back, at the end."""
    ramp = {"when": "always", "do": {"action": "ramp", "increment": 0.125}, **steered.QUICK}
    after = {"when": steered.above("rlmon/intervention/beta", beta + 0.2), "do": {"action": "winsorise", "limit": 1.0}}
    made = tiny.trainer(tmp_path, max_steps=6, reward=steered.some_unsolvable, beta=beta)
    RLMon(made, steered.config({"rules": {"ramp": ramp, "after": after}}), actions=[Ramp])
    made.train()
    told = [(act.rule, act.step, act.old, act.new) for act in steered.actions(tmp_path) if act.phase == "applied"]
    raised = [beta, beta + 0.125, beta + 0.25, beta + 0.375]
    assert [one for one in told if one[0] == "ramp"] == [
        ("ramp", 1, raised[0], raised[1]), ("ramp", 3, raised[1], raised[2]), ("ramp", 5, raised[2], raised[3]),
    ]  # fmt: skip
    assert ("after", 4, None, 1.0) in told
    assert made.beta == raised[3]


# -- resuming ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "resumed", "dies"),
    [
        # Twelve prompts, two in a round: an epoch ends after round 6, which is step 6, or 12 with two iterations.
        ({}, 9, 11),
        ({"rloo": True}, 12, 14),
        ({"lora": True, "learning_rate": 5e-2}, 9, 10),
        ({"num_iterations": 2}, 10, 11),
        pytest.param({"num_iterations": 2, "rloo": True}, 10, 11, marks=pytest.mark.slow),
        pytest.param({"num_iterations": 2, "lora": True, "learning_rate": 5e-2}, 10, 11, marks=pytest.mark.slow),
        # Four micro-batches of four rows make a round of two steps; a round is four prompts, an epoch six steps.
        ({"gradient_accumulation_steps": 2, "steps_per_generation": 4, "per_device_train_batch_size": 4}, 10, 11),
    ],
    ids=["grpo", "rloo", "lora", "grpo-reuse", "rloo-reuse", "lora-reuse", "accumulation"],
)
def test_a_killed_run_goes_on_as_if_it_had_not_been(
    tmp_path: Path, settings: dict[str, Any], resumed: int, dies: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    replaced: list[int] = []
    swap = Draws.swap

    def counted(self: Draws, inputs: Any, blocked: Any, number: int) -> Any:
        drawn = swap(self, inputs, blocked, number)
        replaced.extend([] if drawn is inputs else [number])
        return drawn

    monkeypatch.setattr(Draws, "swap", counted)
    settings = settings | {"max_steps": 16, "save_strategy": "steps", "save_steps": 3}
    whole = steered.trained(tmp_path / "whole", steered.rules(), **settings)
    swapped, replaced = replaced, []
    assert swapped or "num_iterations" in settings, "deferred prompts were drawn, and others put in their place"
    steered.trained(tmp_path / "torn", steered.rules(), dies_after=dies, **settings)
    saved = steered.checkpoints(tmp_path / "torn")
    assert saved[-1] == resumed, saved
    before = [steered.told(action) for action in steered.actions(tmp_path / "torn") if action.step <= resumed]
    assert {knob for _, _, _, knob, *_ in before} >= {
        "beta",
        "kappa (format)",
        "anchor_weight",
        "reference",
        "deferral",
    }
    again = steered.trained(
        tmp_path / "torn", steered.rules(), resume=tmp_path / "torn" / f"checkpoint-{resumed}", **settings
    )
    told = [steered.told(action) for action in steered.actions(tmp_path / "whole")]
    assert [steered.told(action) for action in steered.actions(tmp_path / "torn")] == told
    later = {knob for phase, _, step, knob, *_ in told if phase == "decided" and step > resumed}
    assert later >= ({"beta"} if "steps_per_generation" in settings else {"beta", "kappa (format)"})
    assert sampled(tmp_path / "torn") == sampled(tmp_path / "whole")
    assert tiny.same_weights(weights_of(whole), weights_of(again))
    assert steered.checkpoints(tmp_path / "whole") == steered.checkpoints(tmp_path / "torn")


def test_a_checkpoint_waits_for_the_end_of_its_round(tmp_path: Path) -> None:
    """Two steps per round: what is due at 3 and 9 is written at 4 and 10; with three, 4 waits for 6."""
    steered.trained(
        tmp_path / "two", steered.rules("hold"), num_iterations=2, max_steps=11, save_strategy="steps", save_steps=3
    )
    assert steered.checkpoints(tmp_path / "two") == [4, 6, 10, 11]
    settings = {"num_iterations": 3, "max_steps": 9, "save_strategy": "steps", "save_steps": 4}
    steered.trained(tmp_path / "three", steered.rules("hold"), **settings)
    assert steered.checkpoints(tmp_path / "three") == [6, 9]
    # What was due when a training died is not owed by the next one of the same trainer.
    torn = steered.trained(tmp_path / "torn", steered.rules("hold"), dies_after=4, **settings)
    torn.remove_callback(steered.DiesAfter)
    torn._step, torn._buffered_inputs = 0, None  # TRL itself would go on with the rest of the old round
    torn.args.save_steps = torn.state.save_steps = 100
    torn.train()
    assert steered.checkpoints(tmp_path / "torn") == [9]


# -- ends --------------------------------------------------------------------------------------------------------------


def at_step(step: int) -> dict[str, Any]:
    """A condition that is met from ``step`` on: the clock adds .001 after each step, and a step's metric is what it
    began with, so that step s reads .001 * (s - 1)."""
    return {"metric": "rlmon/intervention/entropy_coef", "above": 0.001 * (step - 1) - 0.0005, "smooth_steps": 1}


CLOCK = {
    "when": "always",
    "do": {"action": "entropy_bonus", "increment": 0.001, "bounds": [0.0, 1.0]},
    "cool_off_steps": 1,
}


@pytest.mark.parametrize(("settings", "last"), [({}, 7), ({"rloo": True}, 7), ({"num_iterations": 2}, 8)])
def test_stop_ends_training_with_a_checkpoint(tmp_path: Path, settings: dict[str, Any], last: int) -> None:
    policy = {"rules": {"clock": CLOCK, "enough": {"when": at_step(7), "do": "stop"}}}
    run = steered.trained(tmp_path / "run", policy, save_strategy="steps", save_steps=100, **settings)
    assert run.state.global_step == last
    assert steered.checkpoints(tmp_path / "run") == [last]
    assert (tmp_path / "run" / f"checkpoint-{last}" / "rlmon" / "state.json").exists()
    told = [action for action in steered.actions(tmp_path / "run") if action.rule == "enough"]
    assert [(a.phase, a.step, a.new) for a in told] == [("decided", 7, "stop"), ("applied", 7, "stop")]


@dataclass(frozen=True, kw_only=True, slots=True)
class Finish(Stop):
    """End training, and say so in words of its own."""

    name = "finish"
    does = "finish"


@dataclass(frozen=True, kw_only=True, slots=True)
class Wheel(Ramp):
    """Raise the KL penalty to what is no number."""

    name = "wheel"

    def change(self, old: float, new: float) -> Any:
        return "low", "high"


def test_what_is_derived_from_stop_stops_and_a_beta_that_is_no_number_is_not_set(tmp_path: Path) -> None:
    rules = {"clock": CLOCK, "enough": {"when": at_step(5), "do": "finish"}, "odd": {"when": "always", "do": "wheel"}}
    run = tiny.trainer(tmp_path / "run", max_steps=8, save_strategy="steps", save_steps=2)
    callback = RLMon(run, steered.config({"rules": rules}, rlmon_strict=False), actions=[Finish, Wheel])
    run.train()
    assert run.state.global_step == 5
    assert steered.checkpoints(tmp_path / "run") == [2, 4, 5]
    assert not list((tmp_path / "run").glob(f"checkpoint-*/rlmon/{ROLLED_BACK}"))
    told = [(act.rule, act.phase, act.new) for act in steered.actions(tmp_path / "run") if act.rule != "clock"]
    assert told == [("odd", "failed", None), ("enough", "decided", "finish"), ("enough", "applied", "finish")]
    assert run.beta == 0.0
    assert callback.monitor is not None
    assert callback.monitor.faults.totals == {}


def returning(beta: float | None = 0.2, **more: Any) -> dict[str, Any]:
    rule = {"when": at_step(7), "do": {"action": "roll_back", "beta": beta}, "cool_off_steps": 0}
    return {"rules": {"clock": CLOCK, "back": rule, **more}}


def monitored(out: Path, policy: Any, cls: Any = MonitoredGRPOTrainer, **settings: Any) -> Any:
    settings = {"max_steps": 10, "save_strategy": "steps", "save_steps": 2} | settings
    steered.skip_a_bonus_without_gradient(policy, cls is MonitoredRLOOTrainer)
    return tiny.trainer(
        out, cls=cls, rloo=cls is MonitoredRLOOTrainer, extra={"rlmon": steered.config(policy)}, **settings
    )


@pytest.mark.parametrize("cls", [MonitoredGRPOTrainer, MonitoredRLOOTrainer])
@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_a_run_is_rolled_back_once(tmp_path: Path, cls: Any, lora: bool) -> None:
    run = monitored(tmp_path / "run", returning(), cls, lora=lora)
    run.train()
    assert run.state.global_step == 10
    log = rlmon.open_run(tmp_path / "run" / "rlmon")
    assert [(attempt.header.attempt_kind, attempt.from_step) for attempt in log.attempts] == [
        ("fresh", None),
        ("resumed", 6),
    ]
    told = [
        a for e in log.iter_events(all_attempts=True) if e.kind == "action" for a in [e.payload] if a["rule"] == "back"
    ]
    # The first alarm is at step 7, when checkpoint-6 is the last one before it. The run comes back to step 6, where the
    # clock was not yet at its line, and the alarm is raised again.
    assert [(a["phase"], a["step"]) for a in told] == [("decided", 7), ("applied", 7), ("decided", 7), ("failed", 7)]
    assert "rolled back before" in told[-1]["reason"]
    assert run.beta == 0.2
    betas = {record.step: record.metrics["rlmon/intervention/beta"] for record in log.step_records()}
    assert betas == {step: run.args.beta if step <= 6 else 0.2 for step in range(1, 11)}
    assert run.rlmon.roll_back_to is None


def test_a_run_that_returned_remembers_so_in_later_checkpoints(tmp_path: Path) -> None:
    """Killed after the return, and resumed from a checkpoint of after it: it does not return a second time."""
    run = monitored(tmp_path / "run", returning())
    run.add_callback(steered.DiesAfter(8))
    with pytest.raises(steered.Killed):
        run.train()
    assert not (tmp_path / "run" / "checkpoint-8" / "rlmon" / ROLLED_BACK).exists()
    again = monitored(tmp_path / "run", returning(beta=None, again={"when": at_step(9), "do": "stop"}))
    assert again.rlmon._capture is not None
    again.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-8"))
    assert again.beta == 0.2, "the checkpoint's value, not the config's"
    assert again.rlmon._capture.actuators._returned


def test_a_return_takes_back_what_was_turned_since(tmp_path: Path) -> None:
    """The reference was reset, and beta raised, after the checkpoint to which the run comes back."""
    early = {"when": at_step(4), "do": {"action": "kl_penalty", "start": 0.05, "factor": 1.0}}
    late = {"when": {"all": [at_step(6), {"metric": "rlmon/intervention/beta", "below": 0.1}]}, "do": "reset_reference"}
    policy = returning(beta=0.3, early=early, late=late)
    run = monitored(tmp_path / "run", policy, save_steps=4)
    run.train()
    assert run.state.global_step == 10
    told = [action for action in steered.actions(tmp_path / "run") if action.rule == "late"]
    assert told == [], "the reset belongs to the abandoned attempt"
    fresh = tiny.saved_model(tmp_path)
    handle = run.ref_model._handle[0]
    assert all(torch.equal(a, b) for a, b in zip(handle.parameters(), fresh.parameters(), strict=True))
    state = json.loads((tmp_path / "run" / "checkpoint-10" / "rlmon" / "state.json").read_text())
    assert state["steering"]["levers"]["reset_step"] is None


def test_a_roll_back_without_a_checkpoint_fails_and_training_goes_on(tmp_path: Path) -> None:
    run = monitored(tmp_path / "run", returning(), save_steps=8)
    run.train()
    assert run.state.global_step == 10
    told = [action for action in steered.actions(tmp_path / "run") if action.rule == "back"]
    assert [action.phase for action in told] == ["decided", "failed"]
    assert "no checkpoint from before step 7" in told[-1].reason
    assert run.beta == 0.0
    assert len(rlmon.open_run(tmp_path / "run" / "rlmon").attempts) == 1


def test_a_roll_back_is_refused_where_nothing_is_saved(tmp_path: Path) -> None:
    trained = tiny.trainer(tmp_path / "run")
    with pytest.raises(AttachError, match="save_strategy"):
        RLMon(trained, steered.config(returning()))


class TakesTime(GRPOTrainer):
    """Overrides ``train`` with a signature of its own."""

    def train(self, *args: Any, **kwargs: Any) -> Any:
        return super().train(*args, **kwargs)


@pytest.mark.parametrize("how", ["after", "callback", "subclass"])
def test_a_drop_in_rolls_back_as_the_subclasses_do(tmp_path: Path, how: str) -> None:
    """The alarm is at step 7, the return to 6; it used to end there, at 7 of 10 steps, and to return normally."""
    settings = {"max_steps": 10, "save_strategy": "steps", "save_steps": 2}
    monitor = RLMon(config=steered.config(returning()))
    made = tiny.trainer(
        tmp_path / "run",
        callbacks=[monitor] if how == "callback" else None,
        cls=TakesTime if how == "subclass" else GRPOTrainer,
        **settings,
    )
    if how != "callback":
        monitor.attach(made)
    output = made.train()
    assert made.state.global_step == output.global_step == 10
    attempts = rlmon.open_run(tmp_path / "run" / "rlmon").attempts
    assert [(attempt.header.attempt_kind, attempt.from_step) for attempt in attempts] == [
        ("fresh", None),
        ("resumed", 6),
    ]
    assert monitor.roll_back_to is None
    alike = monitored(tmp_path / "alike", returning())
    alike.train()
    assert tiny.same_weights(weights_of(alike), weights_of(made))
    monitor.detach()
    assert "train" not in vars(made)


def test_a_roll_back_that_comes_too_late_is_refused(tmp_path: Path) -> None:
    """A monitor that attaches while ``train()`` runs can start no second one."""
    made = tiny.trainer(tmp_path / "run", max_steps=10, save_strategy="steps", save_steps=2)
    made.add_callback(RLMon(config=steered.config(returning())))
    with pytest.raises(AttachError, match=r"attached while the first one runs.*RLMon\(trainer"):
        made.train()
    assert made.state.global_step == 0


def test_a_second_training_begins_with_the_knobs_as_given(tmp_path: Path) -> None:
    """One trainer, two fresh train() calls: what the first one's rules left is no resting value of the second's."""
    policy = steered.rules("budget", "spread", "renew")
    run = steered.trained(tmp_path / "run", policy, max_steps=16)
    assert run.beta > 0.055
    first: list[Action] = steered.actions(tmp_path / "run")
    run.train()
    second = steered.actions(tmp_path / "run")
    assert first != second
    raised = [(action.old, action.new) for action in second if action.knob == "beta" and action.phase == "decided"]
    assert raised[0][0] == 0.0
    actuators = run.rlmon_callback._capture.actuators
    assert isinstance(actuators, TrainerActuators)
