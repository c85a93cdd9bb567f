"""Coefficients on real trainers: what TRL then computes is checked against full logits and against TRL's own runs."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny
import torch
import trl.trainer.utils
from transformers import TrainerCallback

import rlmon
from rlmon.errors import AttachError
from rlmon.extensions import Extensions
from rlmon.interventions.anchor import Anchor
from rlmon.interventions.entropy_bonus import EntropyBonus
from rlmon.interventions.kl_penalty import KLPenalty
from rlmon.interventions.once import ResetReference, RollBack
from rlmon.interventions.policy import Always, Policy, Rule
from rlmon.interventions.winsorise import Winsorise
from rlmon.trl import RLMon, RLMonConfig
from rlmon.trl.base import BaseModel
from rlmon.trl.coefficients import REFERENCE_KEY, Coefficients
from rlmon.trl.models import head_of
from rlmon.trl.references import AdapterReference, CopyReference
from rlmon.trl.setting import refuse, setting_of_trainer

pytestmark = pytest.mark.trl

TEMPERATURE = 0.8
FUSED = hasattr(trl.trainer.utils, "add_fused_lm_head")
REUSE = {
    "mu1": {},
    "mu2": {"num_iterations": 2},
    "S2": {"steps_per_generation": 2},
}
"""One generation feeds one step, two passes, or two steps."""


def trained_adapter(folder: Path) -> Any:
    """A policy whose adapter is not the identity when training begins; the same one at each call."""
    from peft import LoraConfig, get_peft_model

    with torch.random.fork_rng():
        torch.manual_seed(3)
        wrapped = get_peft_model(tiny.saved_model(folder), LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.3)
    return wrapped


def build(folder: Path, kind: str, **settings: Any) -> Any:
    """A trainer of the full model, of a fresh adapter, or of a trained one."""
    settings = {"temperature": TEMPERATURE, "learning_rate": 2e-2} | settings
    if not settings.get("rloo"):
        # The plain k3, without the importance ratio that newer versions of TRL multiply it by.
        settings |= {"loss_type": "bnpo", "use_bias_correction_kl": False}
    if kind == "trained":
        return tiny.trainer(folder / "run", policy=trained_adapter(folder), **settings)
    return tiny.trainer(folder / "run", lora=kind == "lora", **settings)


def initial_policy(folder: Path, kind: str) -> Any:
    return (trained_adapter(folder) if kind == "trained" else tiny.saved_model(folder)).eval()


def logps(model: Any, inputs: Mapping[str, Any]) -> torch.Tensor:
    """[B, T] from full logits: log softmax(logits / temperature) at the sampled token."""
    ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
    mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits / TEMPERATURE
    every = logits[:, :-1].log_softmax(-1).gather(2, ids[:, 1:, None]).squeeze(2)
    return every[:, -inputs["completion_ids"].size(1) :]


def mean(values: torch.Tensor, inputs: Mapping[str, Any]) -> torch.Tensor:
    mask = inputs["completion_mask"]
    return (values * mask).sum() / mask.sum()


def k3(policy: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    return (reference - policy).exp() - (reference - policy) - 1


def accepted(trainer: Any, base: BaseModel, *actions: Any) -> None:
    """Raises where attaching a policy that always does these would."""
    rules = [Rule(name=f"rule-{i}", when=Always(), action=action) for i, action in enumerate(actions)]
    setting = setting_of_trainer(trainer, base, RLMonConfig(), Extensions(), Coefficients(trainer, base).lacks())
    refuse(Policy(rules=tuple(rules)), setting)


class Drive(TrainerCallback):
    """The coefficients as the capture drives them, and a schedule {step: what to do after it}."""

    def __init__(
        self,
        trainer: Any,
        schedule: Mapping[int, Callable[[Coefficients], None]] | None = None,
        *,
        actions: Sequence[Any] = (KLPenalty(),),
        look: Callable[[Drive, Any, dict[str, Any], Callable[..., Any]], None] | None = None,
        base: BaseModel | None = None,
    ) -> None:
        self.base = base or BaseModel.choose(trainer, RLMonConfig(), initial_weights=True)
        self.coefficients = Coefficients(trainer, self.base)
        self.coefficients.prepare(actions)
        self.schedule = schedule or {}
        self.failures: list[str] = []
        self.betas: list[float] = []
        self.filled = 0
        forward, loss = trainer._get_per_token_logps_and_entropies, trainer._compute_loss
        seen: list[Any] = []

        def listen(*args: Any, **kwargs: Any) -> Any:
            result = forward(*args, **kwargs)
            if kwargs.get("compute_entropy"):
                seen.append(result)
            return result

        def compute(model: Any, inputs: dict[str, Any]) -> Any:
            seen.clear()
            before = REFERENCE_KEY in inputs
            failure = self.coefficients.before_loss(inputs)
            self.filled += not before and REFERENCE_KEY in inputs
            self.failures += [] if failure is None else [failure]
            self.betas.append(trainer.beta)
            try:
                if look is not None:
                    look(self, model, inputs, loss)
                    seen.clear()
                value = loss(model, inputs)
            finally:
                self.coefficients.after_loss()
            extra = self.coefficients.extra_loss(inputs, *seen[0][:2])
            return value if extra is None else value + extra

        trainer._get_per_token_logps_and_entropies, trainer._compute_loss = listen, compute
        trainer.add_callback(self)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.schedule.get(state.global_step, lambda coefficients: None)(self.coefficients)


def beta(value: float) -> Callable[[Coefficients], None]:
    return lambda made: made.set_beta(value)


def photograph(trainer: Any) -> Any:
    model = trainer.model
    return (
        random.getstate(),
        np.random.get_state()[1].tolist(),
        torch.get_rng_state().tolist(),
        [(name, module.training) for name, module in model.named_modules()],
        [(name, p.requires_grad, p.grad is None, p.detach().clone().tolist()) for name, p in model.named_parameters()],
        [getattr(module, "_disable_adapters", None) for module in model.modules()],
    )


def histories(trainer: Any, key: str) -> dict[int, float]:
    return {entry["step"]: entry[key] for entry in trainer.state.log_history if key in entry}


# -- the KL penalty ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reuse", REUSE)
@pytest.mark.parametrize("kind", ["full", "lora", "trained"])
def test_grpo_kl_and_its_gradient_are_those_of_full_logits(tmp_path: Path, kind: str, reuse: str) -> None:
    """beta 0 -> .5 -> 0 -> .3, each change in the middle of a buffer where there is one."""
    truth = initial_policy(tmp_path, kind)
    gaps: list[tuple[float, float]] = []

    def look(drive: Drive, model: Any, inputs: dict[str, Any], loss: Callable[..., Any]) -> None:
        if trainer.beta == 0.0:
            return
        parameters = [p for p in model.parameters() if p.requires_grad]
        with torch.no_grad():
            reference = logps(truth, inputs)
        hand = mean(k3(logps(model, inputs), reference), inputs)
        hand_gradient = torch.autograd.grad(trainer.beta * hand, parameters)
        with_penalty = torch.autograd.grad(loss(model, inputs), parameters)
        kl = trainer._metrics["train"]["kl"].pop()
        kept, trainer.beta = trainer.beta, 0.0
        without = torch.autograd.grad(loss(model, inputs), parameters)
        trainer.beta = kept
        for ours, with_it, without_it in zip(hand_gradient, with_penalty, without, strict=True):
            torch.testing.assert_close(with_it - without_it, ours, atol=2e-6, rtol=2e-3)
        gaps.append((kl, hand.item()))
        assert any(bool(gradient.abs().max() > 1e-5) for gradient in hand_gradient)

    trainer = build(tmp_path, kind, max_steps=7, **REUSE[reuse])
    drive = Drive(trainer, {1: beta(0.5), 3: beta(0.0), 5: beta(0.3)}, look=look)
    trainer.train()

    assert drive.betas == [0.0, 0.5, 0.5, 0.0, 0.0, 0.3, 0.3]
    # The batches that were generated while beta was 0: of steps 2 and 6 where a generation feeds two steps.
    assert drive.filled == {"mu1": 0, "mu2": 2, "S2": 2}[reuse]
    assert [kl for kl, _ in gaps] == pytest.approx([hand for _, hand in gaps], abs=2e-6)
    assert min(kl for kl, _ in gaps) > 1e-5
    assert drive.failures == []
    logged = histories(trainer, "kl")
    assert sorted(logged) == [2, 3, 6, 7]
    assert list(logged.values()) == pytest.approx([hand for _, hand in gaps], abs=2e-6)
    assert drive.base.kind == {"full": "copy", "lora": "adapter", "trained": "snapshot"}[kind]


@pytest.mark.parametrize("reuse", REUSE)
@pytest.mark.parametrize("kind", ["full", "lora", "trained"])
def test_rloo_pays_the_penalty_in_the_reward(tmp_path: Path, kind: str, reuse: str) -> None:
    """RLOO takes beta * sum of (old - reference) off each reward before the leave-one-out baseline."""
    truth = initial_policy(tmp_path, kind)
    trainer = build(tmp_path, kind, rloo=True, beta=0.0, max_steps=7, **REUSE[reuse])
    generate = trainer._generate_and_score_completions
    checked = []

    def check(inputs: Any) -> Any:
        output = generate(inputs)
        if trainer.beta != 0.0:
            with torch.no_grad():
                kl_BT = logps(trainer.model, output) - logps(truth, output)
            reward_B = torch.tensor(
                tiny.has_digit(
                    trainer.processing_class.batch_decode(output["completion_ids"], skip_special_tokens=True)
                )
            )
            paid_GG = (reward_B - trainer.beta * (kl_BT * output["completion_mask"]).sum(1)).view(-1, 4)
            advantage = paid_GG - (paid_GG.sum(1, keepdim=True) - paid_GG) / 3
            torch.testing.assert_close(output["advantages"], advantage.view(-1), atol=1e-5, rtol=1e-4)
            checked.append((trainer._metrics["train"]["kl"][-1], float(mean(kl_BT, output))))
        return output

    trainer._generate_and_score_completions = check
    drive = Drive(trainer, {1: beta(0.5), 3: beta(0.0), 5: beta(0.3)})
    trainer.train()

    # Generations at steps 2, 3, 6, 7; where each feeds two steps, those with a penalty begin at 3 and 7.
    assert len(checked) == (4 if reuse == "mu1" else 2)
    assert [kl for kl, _ in checked] == pytest.approx([hand for _, hand in checked], abs=2e-6)
    assert max(abs(kl) for kl, _ in checked) > 1e-4
    assert drive.failures == []


@pytest.mark.parametrize("reuse", REUSE)
@pytest.mark.parametrize("kind", ["full", "lora"])
@pytest.mark.parametrize("rloo", [False, True])
def test_beta_from_the_first_step_on_is_the_run_that_trl_makes_with_it(
    tmp_path: Path, rloo: bool, kind: str, reuse: str
) -> None:
    theirs = build(tmp_path / "theirs", kind, rloo=rloo, beta=0.5, **REUSE[reuse])
    theirs.train()
    ours = build(tmp_path / "ours", kind, rloo=rloo, beta=0.0, **REUSE[reuse])
    Drive(ours).coefficients.set_beta(0.5)
    ours.train()
    assert tiny.same_weights(tiny.weights(ours), tiny.weights(theirs))
    assert histories(ours, "kl") == histories(theirs, "kl")

    neither = build(tmp_path / "neither", kind, rloo=rloo, beta=0.0, **REUSE[reuse])
    neither.train()
    assert not tiny.same_weights(tiny.weights(ours), tiny.weights(neither))


@pytest.mark.parametrize("kind", ["full", "lora", "trained"])
def test_a_penalty_that_trl_began_with_goes_off_and_on_in_a_buffer(tmp_path: Path, kind: str) -> None:
    """TRL's reference stays as it is: its model, the adapter switched off, or the adapter called ref."""
    truth = initial_policy(tmp_path, kind)
    compared = []

    def look(drive: Drive, model: Any, inputs: dict[str, Any], loss: Callable[..., Any]) -> None:
        if trainer.beta != 0.0:
            with torch.no_grad():
                compared.append((inputs[REFERENCE_KEY], logps(truth, inputs), inputs["completion_mask"]))
            assert not inputs[REFERENCE_KEY].requires_grad

    trainer = build(tmp_path, kind, beta=0.3, num_iterations=2, max_steps=6)
    before = trainer.ref_model
    drive = Drive(trainer, {1: beta(0.0), 3: beta(0.3)}, look=look)
    trainer.train()
    assert drive.betas == [0.3, 0.0, 0.0, 0.3, 0.3, 0.3]
    assert drive.filled == 1
    assert trainer.ref_model is before
    assert sorted(histories(trainer, "kl")) == [1, 4, 5, 6]
    for theirs, hand, mask in compared:
        torch.testing.assert_close(theirs * mask, hand * mask, atol=1e-5, rtol=0)


@pytest.mark.parametrize("rloo", [False, True])
@pytest.mark.parametrize("kind", ["full", "lora", "trained"])
def test_knobs_that_nobody_turns_change_nothing(tmp_path: Path, kind: str, rloo: bool) -> None:
    plain = build(tmp_path, kind, rloo=rloo, num_iterations=2)
    plain.train()
    held = build(tmp_path, kind, rloo=rloo, num_iterations=2)
    drive = Drive(held, actions=[KLPenalty(), *([EntropyBonus()] if FUSED else []), ResetReference()])
    drive.coefficients.load(drive.coefficients.state())
    held.train()
    assert tiny.same_weights(tiny.weights(held), tiny.weights(plain))


@pytest.mark.parametrize("kind", ["full", "lora", "trained"])
def test_turning_and_filling_leave_no_trace(tmp_path: Path, kind: str) -> None:
    """Random states, module modes, requires_grad, gradients, adapter flags and weights are what they were."""
    # Attention dropout in training: a reference that were not in evaluation mode would draw random numbers.
    noisy = {} if kind == "trained" else {"policy": tiny.model(dropout=0.3)}
    trainer = build(tmp_path, kind, num_iterations=2, max_steps=3, **noisy)
    pictures = []

    def turn(coefficients: Coefficients) -> None:
        before = photograph(trainer)
        coefficients.set_beta(0.4)
        coefficients.set_entropy_coef(0.1)
        coefficients.reset_reference()
        for inputs in trainer._buffered_inputs:
            assert coefficients.before_loss(inputs) is None
            assert inputs[REFERENCE_KEY].shape == inputs["completion_ids"].shape
            assert not inputs[REFERENCE_KEY].requires_grad
        pictures.append(before == photograph(trainer))

    Drive(trainer, {1: turn}, actions=[KLPenalty(), ResetReference()])
    trainer.train()
    assert pictures == [True]


def test_what_rlmon_measures_is_not_patched(tmp_path: Path) -> None:
    """The handle that TRL asks shares the frozen weights; rlmon's own copy answers as before."""
    trainer = build(tmp_path, "full")
    base = BaseModel.choose(trainer, RLMonConfig(), initial_weights=True)
    frozen = base.own.model
    ids = torch.tensor([[3, 4, 5]])
    before = vars(frozen).get("forward"), frozen.base_model(input_ids=ids).last_hidden_state
    drive = Drive(trainer, base=base)
    drive.coefficients.set_beta(0.1)
    assert vars(frozen).get("forward") is before[0]
    assert torch.equal(frozen.base_model(input_ids=ids).last_hidden_state, before[1])
    torch.testing.assert_close(trainer.ref_model(ids).logits, frozen(ids).logits)
    assert trainer.ref_model.failure is None, "asked by place as well as by name"
    handle = trainer.ref_model._handle[0]
    ours = dict(handle.named_parameters())
    assert all(ours[name] is parameter for name, parameter in frozen.named_parameters())
    with torch.no_grad():
        head_of(trainer.model).weight.mul_(2.0)
    inputs = {"prompt_ids": ids[:, :1], "completion_ids": ids[:, 1:]}
    inputs |= {"prompt_mask": torch.ones(1, 1), "completion_mask": torch.ones(1, 2)}
    assert drive.coefficients.before_loss(inputs) is None
    truth = logps(tiny.saved_model(tmp_path), inputs)
    torch.testing.assert_close(inputs[REFERENCE_KEY], truth)
    # Asked for plain logits, as TRL did before 1.15: no patch leads back to the policy.
    torch.testing.assert_close(logps(handle, inputs), truth)


def test_rlmons_copy_has_a_head_of_its_own_under_cast_lm_head_to_fp32(tmp_path: Path) -> None:
    trainer = build(tmp_path, "full", cast_lm_head_to_fp32=True)
    base = BaseModel.choose(trainer, RLMonConfig(), initial_weights=True)
    hidden = torch.ones(2, 32)
    before = head_of(base.own.model)(hidden)
    with torch.no_grad():
        head_of(trainer.model).weight.mul_(2.0)
    assert torch.equal(head_of(base.own.model)(hidden), before)
    torch.testing.assert_close(head_of(trainer.model)(hidden), 2 * before)


# -- a reference that fails --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rloo", [False, True])
@pytest.mark.parametrize("kind", ["full", "lora"])
def test_a_reference_that_fails_is_a_penalty_of_zero(
    tmp_path: Path, kind: str, rloo: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At generation and in the buffer: the run ends as one without a penalty, and each failure is reported."""

    def broken(self: Any, *args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("out of luck")

    monkeypatch.setattr(CopyReference, "answer", broken)
    monkeypatch.setattr(AdapterReference, "answer", broken)
    settings = {"rloo": rloo, "beta": 0.0, "num_iterations": 2, "max_steps": 3, "optim": "sgd", "learning_rate": 1.0}
    trainer = build(tmp_path, kind, **settings)
    drive = Drive(trainer, {1: beta(0.5)})
    trainer.train()
    plain = build(tmp_path, kind, **settings)
    plain.train()
    for name, weight in tiny.weights(plain).items():
        # k3 has its minimum 0 where policy and reference agree, so its gradient is 0 too.
        torch.testing.assert_close(tiny.weights(trainer)[name], weight, atol=1e-6, rtol=0)
    # GRPO fails in the buffer at step 2 and at the generation of step 3; RLOO at that generation alone.
    assert len(drive.failures) == (1 if rloo else 2)
    assert all("RuntimeError: out of luck" in failure for failure in drive.failures)
    logged = histories(trainer, "kl")
    assert logged[3] == pytest.approx(0.0, abs=1e-6)
    if not rloo:
        assert logged[2] == pytest.approx(0.0, abs=1e-6)
    assert trainer.beta == 0.5


def test_what_stood_in_is_taken_back_after_the_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where even the policy's own forward fails: old logprobs if there are any, else beta 0 for this one loss."""
    trainer = build(tmp_path, "full", num_iterations=2, max_steps=1)
    drive = Drive(trainer)
    trainer.train()
    drive.coefficients.set_beta(0.5)
    inputs = trainer._buffered_inputs[0]

    def broken(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("no memory")

    monkeypatch.setattr(trainer, "_get_per_token_logps_and_entropies", broken)
    assert "no memory" in (drive.coefficients.before_loss(inputs) or "")
    assert inputs[REFERENCE_KEY] is inputs["old_per_token_logps"]
    drive.coefficients.after_loss()
    assert REFERENCE_KEY not in inputs
    assert trainer.beta == 0.5

    del inputs["old_per_token_logps"]
    assert "no memory" in (drive.coefficients.before_loss(inputs) or "")
    assert trainer.beta == 0.0
    assert REFERENCE_KEY not in inputs
    drive.coefficients.after_loss()
    assert trainer.beta == 0.5

    monkeypatch.undo()
    assert drive.coefficients.before_loss(inputs) is None
    assert REFERENCE_KEY in inputs


# -- reset -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["full", "lora", "trained"])
@pytest.mark.parametrize("given", [0.0, 0.2])
def test_a_reset_makes_the_present_policy_the_reference(tmp_path: Path, kind: str, given: float) -> None:
    """In the middle of a buffer: KL is 0 at the next loss, and grows from the policy of that step on."""
    snapshots: list[Any] = []
    compared = []

    def turn(coefficients: Coefficients) -> None:
        coefficients.set_beta(0.2)
        coefficients.reset_reference()
        snapshots.append({name: p.detach().clone() for name, p in trainer.model.named_parameters()})

    def look(drive: Drive, model: Any, inputs: dict[str, Any], loss: Callable[..., Any]) -> None:
        if snapshots:
            later = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
            with torch.no_grad():
                for name, p in trainer.model.named_parameters():
                    p.copy_(snapshots[-1][name])
                hand = logps(trainer.model, inputs)
                for name, p in trainer.model.named_parameters():
                    p.copy_(later[name])
            compared.append((inputs[REFERENCE_KEY], hand, inputs["completion_mask"]))

    trainer = build(tmp_path, kind, beta=given, num_iterations=2, max_steps=7)
    Drive(trainer, {1: turn, 5: turn}, actions=[KLPenalty(), ResetReference()], look=look)
    trainer.train()
    assert len(compared) == 6
    for theirs, hand, mask in compared:
        torch.testing.assert_close(theirs * mask, hand * mask, atol=1e-5, rtol=0)
    logged = histories(trainer, "kl")
    assert logged[2] == pytest.approx(0.0, abs=1e-6)
    assert logged[6] == pytest.approx(0.0, abs=1e-6)
    assert logged[4] > 1e-5


@pytest.mark.parametrize("kind", ["full", "lora", "trained"])
@pytest.mark.parametrize("given", [0.0, 0.2])
def test_a_reset_does_not_move_the_base_that_rlmon_measures_against(tmp_path: Path, kind: str, given: float) -> None:
    """Two runs on the same path, one with a reset while beta is 0: every KL to the base is equal."""
    values = []
    for reset in (False, True):
        trainer = build(tmp_path / str(reset), kind, beta=given, max_steps=5)
        config = RLMonConfig(rlmon_console=False, rlmon_strict=True, rlmon_base_kl_every=1)
        monitor = RLMon(trainer, config)
        assert monitor._capture is not None

        def turn(coefficients: Coefficients, reset: bool = reset) -> None:
            coefficients.set_beta(0.0)
            if reset:
                coefficients.reset_reference()

        Drive(trainer, {2: turn}, actions=[KLPenalty(), ResetReference()], base=monitor._capture.base)
        trainer.train()
        values.append([step.metrics["rlmon/kl/mean"] for step in rlmon.open_run(monitor.log_dir).step_records()])
    assert values[0] == values[1]
    assert values[0][-1] is not None
    assert values[0][-1] > 1e-4


# -- the entropy bonus -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rloo", [False, True])
def test_the_bonus_raises_entropy(tmp_path: Path, rloo: bool) -> None:
    if rloo and not FUSED:
        pytest.skip("RLOO's entropies carry no gradient before TRL 1.15; refused, see below")
    ends = []
    for value in (0.0, 0.5):
        trainer = build(tmp_path, "full", rloo=rloo, beta=0.0, max_steps=8)
        drive = Drive(
            trainer,
            {2: lambda made, value=value: made.set_entropy_coef(value)},
            actions=[EntropyBonus()],
        )
        trainer.train()
        assert drive.coefficients.values()["entropy_coef"] == value
        logged = histories(trainer, "entropy")
        ends.append((logged[2], logged[8]))
    assert ends[0][0] == ends[1][0]
    assert ends[1][1] > ends[0][1] + 0.1


@pytest.mark.skipif(not FUSED, reason="RLOO's entropies carry no gradient before TRL 1.15")
def test_rloos_bonus_is_minus_coef_times_mean_entropy_over_the_accumulation_steps(tmp_path: Path) -> None:
    """Two micro-batches a step: what is differentiated is (policy loss - .5 * mean entropy) / 2 for each."""
    trainer = build(tmp_path, "full", rloo=True, beta=0.0, max_steps=1, gradient_accumulation_steps=2)
    hand, differentiated = [], []

    def look(drive: Drive, model: Any, inputs: dict[str, Any], loss: Callable[..., Any]) -> None:
        ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
        mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
        with torch.no_grad():
            logp = (model(input_ids=ids, attention_mask=mask, use_cache=False).logits / TEMPERATURE).log_softmax(-1)
            entropy = -(logp.exp() * logp).sum(-1)[:, :-1][:, -inputs["completion_ids"].size(1) :]
            hand.append((float(loss(model, inputs)) - 0.5 * float(mean(entropy, inputs))) / 2)

    drive = Drive(trainer, actions=[EntropyBonus()], look=look)
    drive.coefficients.set_entropy_coef(0.5)
    backward = trainer.accelerator.backward
    trainer.accelerator.backward = lambda value, **kw: (differentiated.append(value.item()), backward(value, **kw))
    trainer.train()
    assert len(hand) == 2
    assert differentiated == pytest.approx(hand, abs=1e-5)


def test_grpos_bonus_is_trls_own_and_goes_off_again(tmp_path: Path) -> None:
    trainer = build(tmp_path, "full", max_steps=6)
    off = {
        2: lambda made: made.set_entropy_coef(0.1),
        4: lambda made: made.set_entropy_coef(0.0),
    }
    Drive(trainer, off, actions=[EntropyBonus()])
    trainer.train()
    assert histories(trainer, "entropy_coef") == {3: 0.1, 4: 0.1}


def test_trls_own_controller_is_given_a_target(tmp_path: Path) -> None:
    """A target above every entropy makes TRL raise its coefficient by its own .005 a step."""
    trainer = build(tmp_path, "full", use_adaptive_entropy=True, entropy_target=0.0, max_steps=5)
    drive = Drive(trainer, {2: lambda made: made.set_entropy_target(100.0)}, actions=[EntropyBonus()])
    assert drive.coefficients.adaptive_entropy
    with pytest.raises(RuntimeError, match="set its target instead"):
        drive.coefficients.set_entropy_coef(0.1)
    trainer.train()
    coefficients = histories(trainer, "entropy_coef")
    assert coefficients[2] == 0.0
    assert coefficients[5] == pytest.approx(3 * 0.005)
    assert drive.coefficients.state()["entropy_target"] == 100.0


# -- checkpoints -------------------------------------------------------------------------------------------------------


class Keep(TrainerCallback):
    """Writes the coefficients beside a checkpoint."""

    def __init__(self, coefficients: Coefficients, folder: Path) -> None:
        self.coefficients, self.folder, self.state = coefficients, folder, {}

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if not self.state:
            self.folder.mkdir()
            self.state = self.coefficients.state()
            self.coefficients.save(self.folder)


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("kind", ["full", "lora"])
@pytest.mark.parametrize("rloo", [False, True])
def test_a_resumed_run_goes_on_as_the_uninterrupted_one(tmp_path: Path, rloo: bool, kind: str, reset: bool) -> None:
    """beta, coefficient and reference of the checkpoint win over a config that says beta 0."""

    def turn(coefficients: Coefficients) -> None:
        coefficients.set_beta(0.7)
        if not rloo or FUSED:
            coefficients.set_entropy_coef(0.05)
        if reset:
            coefficients.reset_reference()

    settings = {"rloo": rloo, "beta": 0.0, "max_steps": 6, "save_strategy": "steps", "save_steps": 3}
    actions = [KLPenalty(), ResetReference()]
    whole = build(tmp_path, kind, **settings)
    drive = Drive(whole, {2: turn}, actions=actions)
    keep = Keep(drive.coefficients, tmp_path / "kept")
    whole.add_callback(keep)
    whole.train()
    assert keep.state["beta"] == 0.7
    assert keep.state["reset_step"] == (2 if reset else None)
    assert (tmp_path / "kept" / "reference.safetensors").exists() == reset

    again = build(tmp_path, kind, **settings)
    resumed = Drive(again, actions=actions)
    checkpoint = str(tmp_path / "run" / "checkpoint-3")

    class Begin(TrainerCallback):
        def on_train_begin(self, *args: Any, **_: Any) -> None:
            resumed.coefficients.load(keep.state, tmp_path / "kept")

    again.add_callback(Begin())
    again.train(resume_from_checkpoint=checkpoint)
    assert tiny.same_weights(tiny.weights(again), tiny.weights(whole))
    assert resumed.coefficients.state() == drive.coefficients.state()


def test_a_checkpoint_that_cannot_be_taken_up_is_refused(tmp_path: Path) -> None:
    trainer = build(tmp_path, "full")
    off = BaseModel.choose(trainer, RLMonConfig(rlmon_base_kl="off"), initial_weights=True)
    coefficients = Coefficients(trainer, off)
    with pytest.raises(AttachError, match="no reference to go on with: rlmon_base_kl is off"):
        coefficients.load({"beta": 0.1, "entropy_coef": 0.0, "reset_step": None})
    with pytest.raises(AttachError, match=r"reference\.safetensors is missing"):
        coefficients.load({"beta": 0.1, "entropy_coef": 0.0, "reset_step": 4}, tmp_path)
    with pytest.raises(RuntimeError, match="there is no reference for a KL penalty: rlmon_base_kl is off"):
        coefficients.set_beta(0.1)
    assert trainer.beta == 0.0
    coefficients.load({"beta": 0.0, "entropy_coef": 0.2, "reset_step": None})
    assert coefficients.values() == {"beta": 0.0, "entropy_coef": 0.2}


@pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf")])
def test_values_that_are_no_weights_are_refused(tmp_path: Path, value: float) -> None:
    coefficients = Drive(build(tmp_path, "lora")).coefficients
    for setter in (coefficients.set_beta, coefficients.set_entropy_coef, coefficients.set_entropy_target):
        with pytest.raises(ValueError, match="must be a number from 0 on"):
            setter(value)
    assert coefficients.values() == {"beta": 0.0, "entropy_coef": 0.0}


# -- refusals ----------------------------------------------------------------------------------------------------------


def refusal(trainer: Any, *actions: Any, base: str = "auto") -> str:
    chosen = BaseModel.choose(trainer, RLMonConfig(rlmon_base_kl=base), initial_weights=True)
    with pytest.raises(AttachError) as caught:
        accepted(trainer, chosen, *actions)
    return str(caught.value)


def test_no_base_no_penalty_from_zero(tmp_path: Path) -> None:
    trainer = build(tmp_path, "full", save_strategy="steps", save_steps=1)
    for action in (KLPenalty(), RollBack(beta=0.1)):
        text = refusal(trainer, action, base="off")
        assert "rlmon_base_kl is off" in text
        assert "rlmon_base_kl: auto" in text
    base = BaseModel.choose(trainer, RLMonConfig(rlmon_base_kl="off"), initial_weights=True)
    accepted(trainer, base, RollBack(), Winsorise(limit=1.0))
    with_penalty = build(tmp_path / "penalty", "full", beta=0.1)
    off = BaseModel.choose(with_penalty, RLMonConfig(rlmon_base_kl="off"), initial_weights=True)
    accepted(with_penalty, off, KLPenalty())


def test_two_hands_on_one_reference(tmp_path: Path) -> None:
    trainer = build(tmp_path, "full", beta=0.1, sync_ref_model=True)
    assert "sync_ref_model: false" in refusal(trainer, KLPenalty())
    assert "sync_ref_model: false" in refusal(trainer, ResetReference())


def test_nothing_to_reset(tmp_path: Path) -> None:
    trainer = build(tmp_path, "full")
    assert "do: kl_penalty" in refusal(trainer, ResetReference())
    base = BaseModel.choose(trainer, RLMonConfig(), initial_weights=True)
    accepted(trainer, base, ResetReference(), KLPenalty())


@pytest.mark.parametrize("kind", ["FSDP", "DEEPSPEED", "MEGATRON_LM"])
def test_sharded_models(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    full, given = build(tmp_path, "full"), build(tmp_path / "given", "full", beta=0.1)
    lora = build(tmp_path / "lora", "lora", beta=0.1)
    monkeypatch.setattr(type(full.accelerator), "distributed_type", SimpleNamespace(__str__=None), raising=False)
    monkeypatch.setattr(type(full.accelerator), "distributed_type", f"DistributedType.{kind}")
    assert f"under {kind}" in refusal(full, KLPenalty())
    assert "1e-4" in refusal(lora, KLPenalty())
    for action in (Anchor(), ResetReference()):
        assert f"cannot work under {kind}" in refusal(given, action)
    base = BaseModel.choose(given, RLMonConfig(), initial_weights=True)
    accepted(given, base, KLPenalty())


def test_adapters_that_cannot_be_switched_off(tmp_path: Path) -> None:
    from peft import PromptTuningConfig, get_peft_model

    wrapped = get_peft_model(
        tiny.saved_model(tmp_path), PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM")
    )
    trainer = build(tmp_path, "full")
    trainer.model = wrapped
    base = BaseModel.choose(build(tmp_path / "other", "full"), RLMonConfig(), initial_weights=True)
    with pytest.raises(AttachError, match="no adapter layers"):
        accepted(trainer, base, KLPenalty())


def test_models_spread_over_devices(tmp_path: Path) -> None:
    trainer = build(tmp_path, "full")
    trainer.model.hf_device_map = {"model.layers.0": 0, "model.layers.1": 1}
    assert "device_map" in refusal(trainer, KLPenalty())


def test_before_the_fusedhead_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """TRL before 1.15: Liger's kernel has beta in it, and RLOO's entropies carry no gradient."""
    monkeypatch.setattr("rlmon.trl.coefficients.add_fused_lm_head", None)
    rloo = build(tmp_path / "rloo", "full", rloo=True, beta=0.0)
    assert "no gradient before 1.15" in refusal(rloo, EntropyBonus())
    trainer = build(tmp_path, "full")
    accepted(trainer, BaseModel.choose(trainer, RLMonConfig(), initial_weights=True), EntropyBonus())
    trainer.args.use_liger_kernel = True
    for action in (KLPenalty(), EntropyBonus(), ResetReference()):
        assert "use_liger_kernel: false" in refusal(trainer, action)


def test_a_bonus_without_gradient_is_an_error_of_the_rule(tmp_path: Path) -> None:
    trainer = build(tmp_path, "full", rloo=True, beta=0.0)
    base = BaseModel.choose(trainer, RLMonConfig(), initial_weights=True)
    coefficients = Coefficients(trainer, base)
    inputs = {"completion_mask": torch.tensor([[1, 1, 0]])}
    entropies = torch.tensor([[1.0, 2.0, 50.0]])
    assert coefficients.extra_loss(inputs, entropies, entropies) is None
    coefficients.set_entropy_coef(0.1)
    with pytest.raises(RuntimeError, match="carry no gradient"):
        coefficients.extra_loss(inputs, entropies, entropies)
    # -.1 * (1 + 2) / 2 tokens; the third is padding.
    extra = coefficients.extra_loss(inputs, entropies, entropies.requires_grad_())
    assert extra is not None
    assert float(extra.detach()) == pytest.approx(-0.15)


def test_the_trainer_can_be_freed(tmp_path: Path) -> None:
    """The coefficients hold no trainer."""
    trainer = build(tmp_path, "full")
    coefficients = Coefficients(trainer, SimpleNamespace(active=False))  # type: ignore[arg-type]
    kept = copy.copy(vars(coefficients))
    assert not any(value is trainer for value in kept.values())
