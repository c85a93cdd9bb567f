"""PPO on GRPO's engine: what it trains on, what it keeps, and that watching and steering it work."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import steered
import tiny
import torch
import trl
import two_processes
from packaging.version import Version
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import rlmon
from rlmon.errors import AttachError, ConfigError
from rlmon.interventions.row_effect import per_token
from rlmon.trl import MonitoredPPOTrainer, PPOConfig, PPOTrainer, RLMon, RLMonConfig
from rlmon.trl.ppo.critic import CRITIC_FILE
from rlmon.trl.ppo.trainer import reshuffled

pytestmark = pytest.mark.trl

WATCHED = RLMonConfig(rlmon_base_kl_every=1, rlmon_console=False, rlmon_strict=True)
EPOCHS = {"num_iterations": 2, "steps_per_generation": 2, "gradient_accumulation_steps": 1}


def generation(trainer: Any) -> list[dict[str, Any]]:
    """Every generation of a run, as it leaves the trainer."""
    seen: list[dict[str, Any]] = []
    original = trainer._generate_and_score_completions

    def keep(inputs: Any) -> Any:
        output = original(inputs)
        seen.append({name: v.clone() if isinstance(v, torch.Tensor) else v for name, v in output.items()})
        return output

    trainer._generate_and_score_completions = keep
    return seen


def critic_weights(trainer: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in trainer.critic.named_parameters()}


def changed(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> bool:
    return not tiny.same_weights(before, after)


# -- what it trains on -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("critic", ["shared_detached", "shared", "separate"])
def test_values_are_the_heads_on_the_states_before_each_token(tmp_path: Path, critic: str, lora: bool) -> None:
    trained = tiny.trainer(tmp_path / "run", ppo=True, critic=critic, lora=lora, max_steps=3)
    seen = generation(trained)
    start = critic_weights(trained)
    trained.train()
    after = critic_weights(trained)
    assert not torch.equal(start["head.0.weight"], after["head.0.weight"])
    trunk = [name for name in after if name.startswith("trunk.")]
    assert bool(trunk) == (critic == "separate")
    assert not trunk or any(not torch.equal(start[name], after[name]) for name in trunk)
    # One more generation by hand, under the weights as they are: plain forwards without any of the machinery.
    trained.model.train()
    trained._prepare_inputs(next(iter(trained.get_train_dataloader())))
    output = seen[-1]
    ids = torch.cat([output["prompt_ids"], output["completion_ids"]], dim=1)
    mask = torch.cat([output["prompt_mask"], output["completion_mask"]], dim=1)
    policy = trained.model.get_base_model() if lora else trained.model
    trunk = trained.critic.trunk if critic == "separate" else policy.base_model
    with torch.no_grad():
        states = trunk(input_ids=ids, attention_mask=mask).last_hidden_state
        values = trained.critic.head(states).squeeze(-1)
    T, P = output["completion_ids"].size(1), output["prompt_ids"].size(1)
    own = output["completion_mask"].bool()
    assert torch.allclose(output["values"][own], values[:, P - 1 : P + T - 1][own], atol=1e-5)
    assert output["values"][own].abs().max() > 0.0, "the head has left zero"


def test_the_kl_is_taken_off_the_reward_token_by_token(tmp_path: Path) -> None:
    """With lambda 1 and a critic that still says 0, advantages are the sums of what is to come."""
    kl_coef = 0.3
    trained = tiny.trainer(
        tmp_path / "run", ppo=True, kl_coef=kl_coef, lam=1.0, whiten_advantages=False, value_learning_rate=1e-12,
        max_steps=4, vf_coef=0.0,
    )  # fmt: skip
    trained.critic.begun = True  # and stays at 0
    base = tiny.saved_model(tmp_path)
    policies = []
    seen = generation(trained)
    original = trained._read_policy
    trained._read_policy = lambda output: (policies.append(tiny.weights(trained)), original(output))[1]
    rewards = []
    calculate = trained._calculate_rewards
    trained._calculate_rewards = lambda *a: (rewards.append(calculate(*a)), rewards[-1])[1]
    trained.train()

    def logps(model: Any, output: dict[str, Any]) -> torch.Tensor:
        ids = torch.cat([output["prompt_ids"], output["completion_ids"]], dim=1)
        mask = torch.cat([output["prompt_mask"], output["completion_mask"]], dim=1)
        with torch.no_grad():
            logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1][:, -output["completion_ids"].size(1) :]
        return logits.log_softmax(-1).gather(-1, output["completion_ids"].unsqueeze(-1)).squeeze(-1)

    policy = tiny.model()
    total_kl = 0.0
    for output, weights, reward in zip(seen, policies, rewards, strict=True):
        policy.load_state_dict({k: v for k, v in weights.items() if k in dict(policy.named_parameters())}, strict=False)
        mask = output["completion_mask"].double()
        kl = (logps(policy, output) - logps(base, output)).double() * mask
        total_kl += float(kl.abs().sum())
        to_come = -kl_coef * kl.flip(1).cumsum(1).flip(1) + reward.double().to(kl).sum(1, keepdim=True)
        assert torch.allclose(output["advantages"].double(), to_come * mask, atol=1e-4)
    assert total_kl > 1.0, "the policy has left its base"
    logged = [entry["objective/kl"] for entry in trained.state.log_history if "objective/kl" in entry]
    assert logged[0] == pytest.approx(0.0, abs=1e-5)
    assert max(logged) > 0.05


def test_values_begin_at_the_mean_of_the_first_returns(tmp_path: Path) -> None:
    def generous(completions: Any, **_: Any) -> list[float]:
        return [40.0 + 20.0 * found for found in tiny.has_digit(completions)]

    trained = tiny.trainer(tmp_path / "run", ppo=True, reward=generous, kl_coef=0.0, lam=1.0, max_steps=1)
    seen = generation(trained)
    trained.train()
    own = seen[0]["completion_mask"].bool()
    mean = seen[0]["rewards_to_go"][own].mean().item()
    assert 40.0 < mean < 60.0
    assert seen[0]["values"][own].tolist() == pytest.approx([mean] * int(own.sum()), rel=1e-5)
    # So the critic has the scale of the rewards before its first step, not after thousands.
    assert trained.critic.head[-1].bias.item() == pytest.approx(mean, abs=0.1)
    evaluated = tiny.trainer(tmp_path / "evaluated", ppo=True, reward=generous, extra={"eval_dataset": tiny.dataset(8)})
    evaluated.evaluate()
    assert not evaluated.critic.begun, "an evaluation teaches nothing"


def test_advantages_are_white_over_the_generation(tmp_path: Path) -> None:
    trained = tiny.trainer(tmp_path / "run", ppo=True, **EPOCHS)
    seen = generation(trained)
    trained.train()
    for output in seen:
        kept = output["advantages"][output["completion_mask"].bool()].double()
        assert kept.mean().item() == pytest.approx(0.0, abs=1e-5)
        assert kept.std().item() == pytest.approx(1.0, abs=1e-3)


def test_a_generation_with_one_return_teaches_the_policy_nothing(tmp_path: Path) -> None:
    """The critic's noise is all that is left of its advantages, and must not be whitened to full size."""

    def mostly(completions: Any, trainer_state: Any, **_: Any) -> list[float]:
        return [1.0 if trainer_state.global_step else float(i % 2) for i in range(len(completions))]

    trained = tiny.trainer(tmp_path / "run", ppo=True, reward=mostly, kl_coef=0.0, max_steps=3)
    seen = generation(trained)
    trained.train()
    assert seen[0]["advantages"].any()
    for output in seen[1:]:
        own = output["completion_mask"].bool()
        assert (output["returns"] - output["values"])[own].std() > 0.0, "there is noise"
        assert not output["advantages"].any()
    penalised = tiny.trainer(tmp_path / "penalised", ppo=True, reward=mostly, kl_coef=0.1, max_steps=3)
    seen = generation(penalised)
    penalised.train()
    assert all(output["advantages"].any() for output in seen), "a KL penalty tells them apart"


def test_unscored_completions_teach_nothing(tmp_path: Path) -> None:
    def sometimes(completions: Any, **_: Any) -> list[float | None]:
        return [None if i % 4 == 0 else float(i % 2) for i in range(len(completions))]

    trained = tiny.trainer(tmp_path / "run", ppo=True, reward=sometimes)
    seen = generation(trained)
    trained.train()
    for output in seen:
        empty = output["value_mask"].sum(1) == 0
        assert empty.sum() == 2
        assert not output["advantages"][empty].any()
        assert output["advantages"][~empty].any(1).all()


def test_a_truncated_completion_may_end_with_its_last_value(tmp_path: Path) -> None:
    """Lambda 0 and no KL: the last advantage of a row is r + V(after) - V(before), and V(after) is 0 by default."""

    def last(bootstrap: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        trained = tiny.trainer(
            tmp_path / f"run-{bootstrap}", ppo=True, kl_coef=0.0, lam=0.0, whiten_advantages=False,
            bootstrap_truncated=bootstrap, max_steps=1, per_device_train_batch_size=32, max_completion_length=20,
        )  # fmt: skip
        trained.critic.begin(0.5)  # V is .5 everywhere
        seen = generation(trained)
        trained.train()
        output = seen[0]
        at = output["completion_mask"].sum(1) - 1
        ended = output["completion_ids"].gather(1, at.unsqueeze(1)).squeeze(1) == 1
        final = output["advantages"].gather(1, at.unsqueeze(1)).squeeze(1)
        reward = output["returns"].gather(1, at.unsqueeze(1)).squeeze(1)
        return ended, final, reward

    ended, final, returns = last(False)
    assert 0 < ended.sum() < len(ended), "some are cut off, some are not"
    assert set(returns.tolist()) <= {0.0, 1.0}
    again, bootstrapped, returns = last(True)
    assert torch.equal(ended, again)
    assert torch.allclose(bootstrapped, final + 0.5 * (~ended))


def test_tool_results_are_no_steps_of_the_policy(tmp_path: Path) -> None:
    """Tokens that an environment put in have no value, no advantage and no part in the whitening."""
    trained = tiny.trainer(tmp_path / "run", ppo=True, max_steps=1)
    output = {
        "prompt_ids": torch.ones(2, 3, dtype=torch.long),
        "prompt_mask": torch.ones(2, 3, dtype=torch.long),
        "completion_ids": torch.ones(2, 4, dtype=torch.long),
        "completion_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]),
        "tool_mask": torch.tensor([[1, 0, 0, 1], [1, 1, 1, 1]]),
    }
    values = torch.tensor([[0.5, 9.0, 9.0, 0.25, 9.0], [0.5, 0.25, 9.0, 9.0, 9.0]])
    trained.args.whiten_advantages = False
    trained.kl_coef = 0.0
    trained._estimate(output, values, torch.zeros(2, 4), torch.tensor([[1.0], [2.0]]), [[3, 4, 5, 1], [3, 1]])
    # Two tokens of its own each, of values .5 and .25: delta = 1 - .25, then .25 - .5 + .95 * .75; with a reward of 2
    # 1.75 and .25 - .5 + .95 * 1.75.
    assert output["advantages"][0].tolist() == pytest.approx([0.4625, 0.0, 0.0, 0.75])
    assert output["advantages"][1].tolist() == pytest.approx([1.4125, 1.75, 0.0, 0.0])
    assert output["value_mask"].tolist() == [[1, 0, 0, 1], [1, 1, 0, 0]]


def test_a_rollout_with_an_environment_is_trained_on_its_own_tokens(tmp_path: Path) -> None:
    """Through TRL's own ``env_mask``: five tokens, of which the third and fourth are the environment's."""
    if Version(trl.__version__) < Version("1.16"):
        pytest.skip("rollout_func's env_mask is tested on the newest TRL")

    def rollout(prompts: list[Any], trainer: Any) -> dict[str, Any]:
        n = len(prompts)
        return {
            "prompt_ids": [[20, 21]] * n,
            "completion_ids": [[3 + i % 4, 4, 5, 6, 1] for i in range(n)],
            "logprobs": [[-1.0] * 5] * n,
            "env_mask": [[1, 1, 0, 0, 1]] * n,
        }

    def odd(completion_ids: Any, **_: Any) -> list[float]:
        return [float(ids[0] % 2) for ids in completion_ids]

    trained = tiny.trainer(
        tmp_path / "run", cls=MonitoredPPOTrainer, ppo=True, reward=odd, max_steps=2,
        extra={"rollout_func": rollout, "rlmon": WATCHED},
    )  # fmt: skip
    seen = generation(trained)
    trained.train()
    for output in seen:
        assert output["value_mask"].tolist() == [[1, 1, 0, 0, 1]] * 8
        assert not output["advantages"][:, 2:4].any()
        assert output["advantages"][:, [0, 1, 4]].all()
    assert trained.monitor.last_record.tokens == 3 * 8


def test_one_completion_a_prompt_will_do(tmp_path: Path) -> None:
    trained = tiny.trainer(
        tmp_path / "run", cls=MonitoredPPOTrainer, ppo=True, num_generations=1, extra={"rlmon": WATCHED}
    )
    before = tiny.weights(trained)
    trained.train()
    assert changed(before, tiny.weights(trained))
    assert trained.monitor.last_record.prompts == 8


def test_chat_prompts_and_evaluation(tmp_path: Path) -> None:
    trained = tiny.trainer(
        tmp_path / "run", ppo=True, train=tiny.dataset(conversational=True), eval_strategy="steps", eval_steps=2,
        per_device_eval_batch_size=4, extra={"eval_dataset": tiny.dataset(4, conversational=True)},
    )  # fmt: skip
    before = critic_weights(trained)
    trained.train()
    assert changed(before, critic_weights(trained))
    logged = [entry for entry in trained.state.log_history if "eval_loss/value_avg" in entry]
    assert len(logged) == 2


def test_the_table_of_completions_has_what_is_trained_on(tmp_path: Path) -> None:
    trained = tiny.trainer(tmp_path / "run", ppo=True, max_steps=2)
    seen = generation(trained)
    trained.train()
    output = seen[-1]
    mask = output["completion_mask"]
    means = (output["advantages"] * mask).sum(1) / mask.sum(1)
    assert list(trained._logs["advantages"]) == pytest.approx(means.tolist(), abs=1e-6)


def test_the_critics_gradient_is_clipped_apart(tmp_path: Path) -> None:
    """With plain gradient descent a step is no longer than rate times the bound."""

    def moved(bound: float) -> float:
        trained = tiny.trainer(
            tmp_path / f"run-{bound}", ppo=True, max_grad_norm=bound, optim="sgd", value_learning_rate=1.0, max_steps=1,
        )  # fmt: skip
        trained.critic.begin(10.0)  # far from every return
        before = critic_weights(trained)
        trained.train()
        after = critic_weights(trained)
        return float(torch.cat([(after[name] - before[name]).flatten() for name in after]).norm())

    assert moved(0.01) == pytest.approx(0.01, rel=1e-3)
    assert moved(100.0) > 0.1


def test_the_loss_is_of_the_same_states(tmp_path: Path) -> None:
    """One pass: the weights are those of the rollout, so the values in the loss are those of the rollout."""
    trained = tiny.trainer(tmp_path / "run", ppo=True, max_steps=4, value_learning_rate=0.01)
    compared: list[float] = []
    original = trained._compute_value_loss

    def compare(values: torch.Tensor, inputs: dict[str, Any]) -> Any:
        own = inputs["value_mask"].bool()
        assert torch.allclose(values[own], inputs["values"][own], atol=1e-5)
        compared.append(values[own].std().item())
        return original(values, inputs)

    trained._compute_value_loss = compare
    trained.train()
    assert len(compared) == 4
    assert compared[-1] > 1e-3, "values of different states differ by now"


@pytest.mark.parametrize("critic", ["shared", "separate"])
def test_gradient_checkpointing_trains_the_same(tmp_path: Path, critic: str) -> None:
    plain = tiny.trainer(tmp_path / "plain", ppo=True, critic=critic)
    plain.train()
    again = tiny.trainer(tmp_path / "again", ppo=True, critic=critic, gradient_checkpointing=True)
    again.train()
    for a, b in ((tiny.weights(plain), tiny.weights(again)), (critic_weights(plain), critic_weights(again))):
        assert a.keys() == b.keys()
        assert all(torch.allclose(a[name], b[name], atol=1e-6) for name in a)


def test_the_policys_trunk_learns_from_the_value_loss_only_where_it_is_shared(tmp_path: Path) -> None:
    """All rewards are 1 and there is no KL: the advantages are 0 once values are, so only the value loss can train."""

    def one(critic: str) -> bool:
        trained = tiny.trainer(
            tmp_path / critic, ppo=True, critic=critic, reward=lambda completions, **_: [1.0] * len(completions),
            kl_coef=0.0, vf_coef=1.0, max_steps=2, whiten_advantages=False, lam=0.0, gamma=1.0,
        )  # fmt: skip
        trained.critic.begin(0.5)  # and the head leads somewhere
        torch.nn.init.constant_(trained.critic.head[-1].weight, 0.1)
        seen = generation(trained)
        estimate = trained._estimate

        def without_advantages(output: dict[str, Any], *args: Any) -> None:
            estimate(output, *args)
            output["advantages"] = torch.zeros_like(output["advantages"])

        trained._estimate = without_advantages
        before = tiny.weights(trained)
        trained.train()
        assert not seen[0]["advantages"].any()
        return changed(before, tiny.weights(trained))

    assert one("shared")
    assert not one("shared_detached")
    assert not one("separate")


# -- epochs ------------------------------------------------------------------------------------------------------------


def test_each_epoch_has_batches_of_its_own(tmp_path: Path) -> None:
    trained = tiny.trainer(
        tmp_path / "run", ppo=True, num_iterations=3, steps_per_generation=4, gradient_accumulation_steps=1,
        per_device_train_batch_size=4, max_steps=12,
    )  # fmt: skip
    batches: list[list[tuple[int, ...]]] = []
    loss = trained._compute_loss

    def keep(model: Any, inputs: Any) -> Any:
        # Of a generation each row is known by its returns, values and ids, all of which are shuffled in unison.
        rows = torch.cat([inputs["prompt_ids"], inputs["completion_ids"], inputs["returns"], inputs["values"]], dim=1)
        batches.append([tuple(row) for row in rows.tolist()])
        return loss(model, inputs)

    trained._compute_loss = keep
    trained.train()
    epochs = [batches[i : i + 4] for i in (0, 4, 8)]
    whole = [sorted(row for batch in epoch for row in batch) for epoch in epochs]
    assert whole[0] == whole[1] == whole[2], "the same rows"
    cut = [[frozenset(batch) for batch in epoch] for epoch in epochs]
    assert cut[0] != cut[1]
    assert cut[1] != cut[2]


def test_reshuffling_keeps_what_belongs_together() -> None:
    batches = [
        {"x": torch.arange(i, i + 3), "y": [str(j) for j in range(i, i + 3)], "n": torch.tensor(9), "none": None}
        for i in (0, 3)
    ]
    torch.manual_seed(0)
    again = reshuffled(batches)
    assert [len(batch["x"]) for batch in again] == [3, 3]
    assert [[str(v) for v in batch["x"].tolist()] for batch in again] == [batch["y"] for batch in again]
    assert sorted(torch.cat([batch["x"] for batch in again]).tolist()) == list(range(6))
    assert all(batch["n"].item() == 9 and batch["none"] is None for batch in again)


# -- files -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lora", "overrides"),
    [
        (False, {}),
        (True, {"critic": "shared"}),
        (False, {"critic": "separate", "kl_target": 0.5}),
        (False, EPOCHS),
    ],
    ids=["plain", "lora-shared", "separate-adaptive", "epochs"],
)
@pytest.mark.parametrize("watched", [False, True], ids=["bare", "watched"])
def test_a_resumed_run_is_the_uninterrupted_one(
    tmp_path: Path, watched: bool, lora: bool, overrides: dict[str, Any]
) -> None:
    def one(name: str, steps: int, resume: str | None = None) -> Any:
        extra = {"cls": MonitoredPPOTrainer, "extra": {"rlmon": WATCHED}} if watched else {}
        trained = tiny.trainer(
            tmp_path / name, ppo=True, lora=lora, save_strategy="steps", save_steps=4, max_steps=steps,
            train=tiny.dataset(64), **overrides, **extra,
        )  # fmt: skip
        trained.train(resume_from_checkpoint=resume)
        return trained

    whole = one("run", 8)
    again = one("run", 8, resume=str(tmp_path / "run" / "checkpoint-4"))
    assert tiny.same_weights(tiny.weights(whole), tiny.weights(again))
    assert tiny.same_weights(critic_weights(whole), critic_weights(again))
    assert whole.kl_coef == again.kl_coef
    a, b = (t.optimizer.state_dict()["state"] for t in (whole, again))
    assert a.keys() == b.keys()
    assert len(a) > len(list(whole.critic.head.parameters()))
    for key in a:
        assert all(torch.equal(torch.as_tensor(a[key][name]), torch.as_tensor(b[key][name])) for name in a[key])
    if overrides.get("kl_target"):
        assert whole.kl_coef != whole.args.kl_coef
    other = one("other", 4)
    assert changed(critic_weights(whole), critic_weights(other)), "four steps more make a difference"


def test_the_policy_stays_an_ordinary_model_with_the_head_beside_it(tmp_path: Path, monkeypatch: Any) -> None:
    trained = tiny.trainer(tmp_path / "run", ppo=True, save_strategy="steps", save_steps=2, critic="shared")
    trained.train()
    trained.save_model()
    for folder in (tmp_path / "run", tmp_path / "run" / "checkpoint-4"):
        loaded, told = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
        assert not told["unexpected_keys"]
        assert not told["missing_keys"]
        assert tiny.same_weights(dict(loaded.named_parameters()), tiny.weights(trained))
        head = load_file(folder / CRITIC_FILE)
        assert tiny.same_weights(head, critic_weights(trained))
    fresh = tiny.trainer(tmp_path / "next", ppo=True, value_head=str(tmp_path / "run"))
    assert tiny.same_weights(critic_weights(fresh), critic_weights(trained))


@pytest.mark.parametrize("strategy", ["every_save", "end"])
def test_a_hub_push_carries_the_head(tmp_path: Path, monkeypatch: Any, strategy: str) -> None:
    """The hub's own calls are stood in for: what is looked at is the folder at the moment of each upload."""
    import transformers.trainer as module

    uploads: list[tuple[str, set[str]]] = []

    class Hub:
        def upload_folder(self, *, folder_path: Any, **_: Any) -> Any:
            uploads.append((Path(folder_path).name, {p.name for p in Path(folder_path).iterdir()}))

            class Done:
                def done(self) -> bool:
                    return True

                is_done = result = done

            return Done()

    if not hasattr(module, "hf_api"):
        pytest.skip("this Transformers uploads by another name")
    monkeypatch.setattr(module, "hf_api", Hub)

    def init_hf_repo(self: Any, **_: Any) -> None:
        self.hub_model_id, self.push_in_progress = "me/model", None

    monkeypatch.setattr(PPOTrainer, "init_hf_repo", init_hf_repo)
    trained = tiny.trainer(
        tmp_path / "run", ppo=True, save_strategy="steps", save_steps=2, push_to_hub=True, hub_strategy=strategy,
        hub_model_id="me/model", hub_always_push=True,
    )  # fmt: skip
    trained.train()
    if strategy == "end":
        trained.push_to_hub()
    assert len(uploads) == (2 if strategy == "every_save" else 1)
    for _, files in uploads:
        assert {CRITIC_FILE, "model.safetensors", "config.json", "README.md"} <= files


def test_the_best_checkpoint_brings_its_own_head(tmp_path: Path) -> None:
    def later_is_more(completions: Any, trainer_state: Any, **_: Any) -> list[float]:
        return [trainer_state.global_step + 0.1 * found for found in tiny.has_digit(completions)]

    trained = tiny.trainer(
        tmp_path / "run", ppo=True, reward=later_is_more, eval_strategy="steps", eval_steps=2, save_strategy="steps",
        save_steps=2, load_best_model_at_end=True, metric_for_best_model="eval_reward", greater_is_better=False,
        per_device_eval_batch_size=4,
    )  # fmt: skip
    trained.train()
    best = trained.state.best_model_checkpoint
    assert Path(best).name == "checkpoint-2"
    assert changed(load_file(tmp_path / "run" / "checkpoint-4" / CRITIC_FILE), critic_weights(trained))
    assert tiny.same_weights(critic_weights(trained), load_file(Path(best) / CRITIC_FILE))


def test_a_checkpoint_without_a_head_is_refused(tmp_path: Path) -> None:
    tiny.trainer(tmp_path / "run", save_strategy="steps", save_steps=2).train()
    trained = tiny.trainer(tmp_path / "run", ppo=True)
    with pytest.raises(ConfigError, match=r"no value_head.safetensors .* not saved by PPOTrainer"):
        trained.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))


# -- watching and steering ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize(
    "overrides", [{}, EPOCHS, {"critic": "separate", "kl_coef": 0.0}], ids=["plain", "epochs", "separate"]
)
def test_watching_changes_nothing(tmp_path: Path, lora: bool, overrides: dict[str, Any]) -> None:
    stock = tiny.trainer(tmp_path / "stock", ppo=True, lora=lora, **overrides)
    stock.train()
    watched = tiny.trainer(tmp_path / "watched", ppo=True, lora=lora, **overrides)
    monitor = RLMon(watched, WATCHED)
    watched.train()
    assert tiny.same_weights(tiny.weights(stock), tiny.weights(watched))
    assert tiny.same_weights(critic_weights(stock), critic_weights(watched))
    assert monitor.monitor is not None
    record = monitor.monitor.last_record
    assert record is not None
    assert record.metrics["rlmon/kl/mean"] is not None
    assert record.metrics["rlmon/value/loss"] is not None
    within = tiny.trainer(
        tmp_path / "within", cls=MonitoredPPOTrainer, ppo=True, lora=lora, extra={"rlmon": WATCHED}, **overrides
    )
    within.train()
    assert tiny.same_weights(critic_weights(stock), critic_weights(within))


def test_the_monitor_sees_the_critic(tmp_path: Path) -> None:
    trained = tiny.trainer(tmp_path / "run", cls=MonitoredPPOTrainer, ppo=True, extra={"rlmon": WATCHED}, max_steps=3)
    seen = generation(trained)
    trained.train()
    steps = rlmon.open_run(tmp_path / "run" / "rlmon").step_records()
    logged = [entry for entry in trained.state.log_history if "loss/value_avg" in entry]
    assert len(steps) == len(seen) == len(logged) == 3
    for step, output, entry in zip(steps, seen, logged, strict=True):
        own = output["completion_mask"].bool()
        advantages, returns = output["advantages"][own].double(), output["rewards_to_go"][own].double()
        metrics = step.metrics
        assert metrics["rlmon/value/loss"] == pytest.approx(entry["loss/value_avg"], rel=1e-5)
        assert metrics["rlmon/value/explained_variance"] == pytest.approx(entry["value/explained_variance"], abs=1e-5)
        assert metrics["rlmon/value/return_mean"] == pytest.approx(returns.mean().item(), rel=1e-5)
        for percent in (5, 50, 95):
            near = np.quantile(advantages.numpy(), percent / 100)
            assert metrics[f"rlmon/value/advantage_p{percent:02d}"] == pytest.approx(near, abs=0.3)


def test_silent_groups_are_no_damage_under_a_critic(tmp_path: Path) -> None:
    """The metric is kept; the detectors, which mean the loss of a group-relative gradient, do not look at it."""

    def one(ppo: bool) -> tuple[set[str], float | None]:
        trained = tiny.trainer(tmp_path / f"run-{ppo}", ppo=ppo, num_generations=2, max_steps=2)
        RLMon(trained, WATCHED)
        trained.train()
        record = rlmon.open_run(tmp_path / f"run-{ppo}" / "rlmon").step_records()[-1]
        return {name for block in record.blocks for name in block.stats}, record.metrics["rlmon/group/all_bad"]

    group, critic = one(False), one(True)
    assert group[0] - critic[0] >= {"all_bad", "all_good"}
    assert "mode_collision" in critic[0]
    assert critic[1] is not None


def test_the_base_is_kept_once(tmp_path: Path) -> None:
    trained = tiny.trainer(tmp_path / "run", cls=MonitoredPPOTrainer, ppo=True, extra={"rlmon": WATCHED})
    assert trained.rlmon._capture.base.own is trained.base.own
    assert trained.base.kind == "copy"
    trained.train()
    assert trained.monitor.last_record.metrics["rlmon/kl/mean"] > 0.0


def test_every_intervention_works(tmp_path: Path) -> None:
    made = steered.trained(tmp_path / "run", steered.rules(), ppo=True, kl_coef=0.0, lam=0.9)
    applied = {action.rule for action in steered.actions(tmp_path / "run") if action.phase == "applied"}
    assert applied == set(steered.CONTINUING)
    assert made.beta == 0.0, "the penalty of PPO is in the reward"
    assert made.kl_coef > 0.0
    kl = [entry["objective/kl"] for entry in made.state.log_history if "objective/kl" in entry]
    assert kl, "from then on it is measured"


def test_the_penalty_acts_on_the_reward_of_the_next_round(tmp_path: Path) -> None:
    policy = steered.rules("budget")
    seen: list[tuple[float, bool]] = []
    made = tiny.trainer(tmp_path / "run", ppo=True, kl_coef=0.0, max_steps=12, reward=steered.some_unsolvable)
    RLMon(made, steered.config(policy))
    original = made._generate_and_score_completions

    def keep(inputs: Any) -> Any:
        output = original(inputs)
        seen.append((made.kl_coef, "ref_per_token_logps" in output))
        return output

    made._generate_and_score_completions = keep
    made.train()
    assert seen[0] == (0.0, False)
    assert seen[-1][0] > 0.0
    assert all((coefficient > 0.0) == referred for coefficient, referred in seen)


def test_the_mode_marginal_pressure_is_spread_over_tokens(tmp_path: Path) -> None:
    """Of two runs that are one until the rule first acts, the advantages differ by a reward at the last token."""
    settings = {"ppo": True, "gamma": 0.9, "lam": 0.8, "max_steps": 24, "reward": steered.some_unsolvable}

    def one(name: str, policy: Any) -> list[dict[str, Any]]:
        made = tiny.trainer(tmp_path / name, **settings)
        made.rlmon_callback = RLMon(made, steered.config(policy))
        seen = generation(made)
        made.train()
        return seen

    held, free = one("held", steered.rules("hold")), one("free", None)
    first = next(i for i, (a, b) in enumerate(zip(held, free, strict=True)) if changed_advantages(a, b))
    a, b = held[first], free[first]
    assert torch.equal(a["completion_ids"], b["completion_ids"])
    difference = (a["advantages"] - b["advantages"]).double()
    mask = a["completion_mask"].bool()
    end = mask.sum(1, keepdim=True) - 1
    addition = difference.gather(1, end).squeeze(1)
    assert addition.abs().max() > 0.005
    expected = per_token(addition.numpy(), mask.numpy(), 0.9, 0.8)
    assert np.allclose(difference.numpy(), expected, atol=1e-5)
    assert torch.equal(a["returns"], b["returns"]), "the critic learns the task's reward alone"


def changed_advantages(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return not torch.equal(a["advantages"], b["advantages"])


def test_kl_target_and_a_rule_on_the_same_knob_contradict(tmp_path: Path) -> None:
    made = tiny.trainer(tmp_path / "run", ppo=True, kl_target=1.0)
    with pytest.raises(AttachError, match="both turn kl_coef"):
        RLMon(made, steered.config(steered.rules("budget")))


# -- two processes -----------------------------------------------------------------------------------------------------


def test_two_ranks_train_one_model(tmp_path: Path) -> None:
    tiny.saved_model(tmp_path)
    script = Path(__file__).with_name("two_ranks_ppo.py")
    two_processes.run(script, str(tmp_path))
    first, second = (json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in (0, 1))
    assert first.keys() == second.keys() == {"shared", "shared_detached", "separate", "epochs", "steered", "resumed"}
    for cell in first:
        a, b = first[cell], second[cell]
        assert a["policy"] == b["policy"], cell
        assert a["critic"] == b["critic"], cell
        assert a["critic"] != a["critic_before"], cell
        assert a["kl_coef"] == b["kl_coef"], cell
        assert a["logged"] == b["logged"], cell
        assert a["gradients"] == b["gradients"], "the head's gradient is the mean of both"
        assert a["own_gradients"] != b["own_gradients"], "each had one of its own before"
        # White over both ranks, and not over each.
        tokens, total, squares = np.add(a["whitened"], b["whitened"])
        assert total / tokens == pytest.approx(0.0, abs=1e-5)
        assert squares / (tokens - 1) == pytest.approx(1.0, abs=1e-3)
        assert abs(a["whitened"][1] / a["whitened"][0]) > 1e-3
    assert first["resumed"]["policy"] == first["shared_detached"]["policy"]
    assert first["resumed"]["critic"] == first["shared_detached"]["critic"]
    assert first["steered"]["kl_coef"] > 0.0


# -- refusals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ({"beta": 0.1}, r"beta=0.1 cannot work with PPO: its KL penalty is part of the reward. Set kl_coef"),
        ({"loss_type": "cispo"}, "clipped token loss: bnpo"),
        ({"scale_rewards": "group"}, "no group to scale by"),
        ({"importance_sampling_level": "sequence"}, "advantages are per token"),
        ({"critic": "shraed"}, "it is one of shared_detached, shared, separate"),
        ({"gamma": 0.0}, "gamma=0.0 .* over 0 and at most 1"),
        ({"lam": 1.5}, "lam=1.5 .* between 0 and 1"),
        ({"kl_coef": -1.0}, "must not be negative"),
        ({"kl_coef": 0.0, "kl_target": 1.0}, "and kl_coef too"),
        ({"cliprange_value": 0.0}, "null for no clipping"),
        ({"torch_compile": True}, "reads the policy's hidden states"),
        ({"fsdp": "full_shard"}, "Train with DDP or on one device"),
    ],
)
def test_what_cannot_be_trained_is_refused(tmp_path: Path, overrides: dict[str, Any], says: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ConfigError, match=says):
            tiny.settings(tmp_path, ppo=True, **overrides)


@pytest.mark.parametrize("engine", ["DEEPSPEED", "FSDP"])
def test_a_sharded_engine_is_refused(tmp_path: Path, monkeypatch: Any, engine: str) -> None:
    from accelerate import Accelerator
    from accelerate.utils import DistributedType

    real = Accelerator.distributed_type
    asked = {"on": False}
    monkeypatch.setattr(
        Accelerator, "distributed_type",
        property(lambda self: DistributedType[engine] if asked["on"] else real.fget(self)),
    )  # fmt: skip
    made = tiny.trainer(tmp_path / "run", ppo=True)
    asked["on"] = True
    from rlmon.trl.ppo import trainer as module

    with pytest.raises(ConfigError, match=f"cannot train under {engine}.* Train with DDP"):
        module._refuse(made)


def test_other_settings_and_other_data_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="takes a PPOConfig, got GRPOConfig"):
        tiny.trainer(tmp_path / "run", cls=PPOTrainer)
    with pytest.raises(ConfigError, match="this dataset has images"):
        tiny.trainer(tmp_path / "run", ppo=True, train=tiny.dataset().add_column("image", [None] * 12))
    made = tiny.trainer(tmp_path / "run", ppo=True)
    made.base.give_up("it is gone")
    with pytest.raises(ConfigError, match=r"needs the base model: .*Set kl_coef: 0"):
        made._take_reference()
    optimizer = torch.optim.SGD(tiny.model().parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.ConstantLR(optimizer)
    with pytest.raises(ConfigError, match=r"optimizers=\(optimizer, None\)"):
        tiny.trainer(tmp_path / "run", ppo=True, extra={"optimizers": (optimizer, schedule)})


def test_defaults_are_those_of_ppo(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = PPOConfig(str(tmp_path), use_cpu=True, bf16=False, per_device_train_batch_size=4)
    assert (made.beta, made.loss_type, made.scale_rewards) == (0.0, "bnpo", "none")
    assert (made.gamma, made.lam, made.kl_coef, made.cliprange_value) == (1.0, 0.95, 0.05, 0.2)
