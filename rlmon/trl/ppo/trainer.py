"""``PPOTrainer``: GRPO's trainer with a critic in the place of the group's mean."""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState
from trl import GRPOTrainer
from trl.models.utils import disable_gradient_checkpointing
from trl.trainer.utils import shuffle_sequence_dict, split_tensor_dict

from rlmon.config import RLMonConfig
from rlmon.errors import ConfigError
from rlmon.trl.base import BaseModel
from rlmon.trl.facts import sharding, terminal_ids
from rlmon.trl.ppo.config import PPOConfig, config_of
from rlmon.trl.ppo.critic import CRITIC_FILE, Critic, CriticKind
from rlmon.trl.ppo.estimates import KLControl, at_last_token, clipped_value_loss, explained_variance, gae, whiten
from rlmon.trl.references import Reference, initial_reference, reference_logps

STATE_FOLDER = "ppo"
STATE_FILE = "state.json"
IMAGES = ("pixel_values", "image_grid_thw", "num_images")


class PPOTrainer(GRPOTrainer):
    """PPO (Schulman et al. 2017; Ziegler et al. 2019) on TRL's maintained GRPO engine.

    Takes what ``trl.GRPOTrainer`` takes, with a ``PPOConfig``. Each token has an advantage of its own, by generalised
    advantage estimation from the critic's values; the KL penalty against the initial base is part of the reward. Runs
    on one device or under DDP, with full models and adapters, text only.

    Raises ``ConfigError``, before the first step, for what it cannot train.
    """

    _tag_names: ClassVar = ["trl", "ppo"]
    _name = "PPO"
    _paper: ClassVar = {
        "title": "Fine-Tuning Language Models from Human Preferences",
        "id": "1909.08593",
        "citation": textwrap.dedent("""\
            @article{ziegler2019finetuning,
                title        = {{Fine-Tuning Language Models from Human Preferences}},
                author       = {Daniel M. Ziegler and Nisan Stiennon and Jeffrey Wu and Tom B. Brown and Alec Radford and Dario Amodei and Paul Christiano and Geoffrey Irving},
                year         = 2019,
                eprint       = {arXiv:1909.08593}
            }"""),  # noqa: E501
    }

    args: PPOConfig

    def __init__(
        self, model: Any, reward_funcs: Any = None, args: PPOConfig | None = None, *positional: Any, **kwargs: Any
    ) -> None:
        if args is None:
            name = model if isinstance(model, str) else model.config._name_or_path
            args = PPOConfig(f"{Path(name).name or 'model'}-PPO")
        args = config_of(args)
        if kwargs.get("optimizers", (None, None))[1] is not None:
            raise ConfigError(
                "PPOTrainer adds the critic to your optimizer, which a scheduler that was built before does not know. "
                "Pass optimizers=(optimizer, None) and lr_scheduler_type."
            )
        self.kl = KLControl(coef=args.kl_coef, target_nats=args.kl_target, horizon_completions=args.kl_horizon)
        self._values: list[Tensor] | None = None
        """Where the values of the policy's forwards are collected; ``None`` where none are asked for."""
        self._scored: tuple[Tensor, Sequence[Sequence[int]]] | None = None
        super().__init__(model, reward_funcs, args, *positional, **kwargs)
        _refuse(self)
        self.critic = Critic(self._policy, cast(CriticKind, args.critic), seed=args.seed)
        if args.value_head is not None:
            self.critic.load(Path(args.value_head))
        self.base: BaseModel | None = None
        """The initial base; ``None`` where ``kl_coef`` is 0."""
        self._own_reference: Reference | None = None
        if args.kl_coef:
            self.base = BaseModel.choose(
                self, RLMonConfig(rlmon_base_model=args.base_model), initial_weights=self.state.global_step == 0
            )
            self._take_reference()
        self.add_callback(_CriticStep(self))

    @property
    def kl_coef(self) -> float:
        """Weight of the KL penalty in the reward, from the next generation on."""
        return self.kl.coef

    @kl_coef.setter
    def kl_coef(self, value: float) -> None:
        self.kl = KLControl(
            coef=float(value), target_nats=self.kl.target_nats, horizon_completions=self.kl.horizon_completions
        )

    @property
    def _policy(self) -> nn.Module:
        policy: nn.Module = self.accelerator.unwrap_model(self.model)
        return policy

    @property
    def _mode(self) -> str:
        return "train" if self.model.training else "eval"

    def _take_reference(self) -> None:
        assert self.base is not None
        if not self.base.active:
            raise ConfigError(
                f"kl_coef={self.args.kl_coef} needs the base model: {self.base.reason}. Set kl_coef: 0 to train "
                "without a KL penalty, or base_model to the folder or name of the base."
            )
        self.ref_model = self._own_reference = initial_reference(self, self._policy, self.base)

    # -- values ----------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _listening(self) -> Iterator[list[Tensor]]:
        """Collect values [b, T + 1] of the policy's forwards inside."""
        self._values = []
        try:
            yield self._values
        finally:
            self._values = None

    def _get_per_token_logps_and_entropies(
        self, model: Any, input_ids: Tensor, attention_mask: Tensor, logits_to_keep: int, *args: Any, **kwargs: Any
    ) -> Any:
        values = self._values
        if values is None or self.accelerator.unwrap_model(model) is not self._policy:
            return super()._get_per_token_logps_and_entropies(
                model, input_ids, attention_mask, logits_to_keep, *args, **kwargs
            )
        with self.critic.listening(logits_to_keep) as heard:
            result = super()._get_per_token_logps_and_entropies(
                model, input_ids, attention_mask, logits_to_keep, *args, **kwargs
            )
        values += heard
        if self.critic.trunk is not None:
            batch_size = args[0] if args else kwargs.get("batch_size")  # by place before TRL 1.14
            with self.accelerator.autocast():
                values.append(self.critic.read(input_ids, attention_mask, logits_to_keep, batch_size))
        return result

    # -- rounds ----------------------------------------------------------------------------------------------------

    def _calculate_rewards(
        self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any, *args: Any, **kwargs: Any
    ) -> Any:
        rewards_NF = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list, *args, **kwargs)
        self._scored = (rewards_NF, completion_ids_list)
        return rewards_NF

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        with self._listening() as values:
            output = super()._generate_and_score_completions(inputs)
        assert self._scored is not None
        (rewards_NF, completion_ids), self._scored = self._scored, None
        if any(output.get(name) is not None for name in IMAGES):
            raise ConfigError("PPOTrainer reads text only, and these prompts have images. Use GRPOTrainer for them.")
        # In the parent's result already, where it needed them for ratios.
        old_logps_BT = output.get("old_per_token_logps")
        if not values:
            old_logps_BT, values = self._read_policy(output)
        with torch.no_grad():
            self._estimate(output, torch.cat(values), old_logps_BT, rewards_NF, completion_ids)
        return output

    def _read_policy(self, output: Mapping[str, Any]) -> tuple[Tensor, list[Tensor]]:
        """Logprobs [B, T] and values of the completions under the policy that sampled them."""
        input_ids = torch.cat([output["prompt_ids"], output["completion_ids"]], dim=1)
        attention_mask = torch.cat([output["prompt_mask"], output["completion_mask"]], dim=1)
        training = self._mode == "train"
        rows = self.args.per_device_train_batch_size if training else self.args.per_device_eval_batch_size
        with (
            torch.no_grad(),
            disable_gradient_checkpointing(self.model, self.args.gradient_checkpointing_kwargs),
            self._listening() as values,
        ):
            result = self._get_per_token_logps_and_entropies(
                self.model, input_ids, attention_mask, output["completion_ids"].size(1), batch_size=rows
            )
        return result[0], values

    def _estimate(
        self,
        output: dict[str, Any],
        values_BS: Tensor,
        old_logps_BT: Tensor,
        rewards_NF: Tensor,
        completion_ids: Sequence[Sequence[int]],
    ) -> None:
        """Put advantages, returns and values of each token [B, T] into ``output``; ``values_BS`` is [B, T + 1]."""
        args, device = self.args, old_logps_BT.device
        mask_BT = output["completion_mask"]
        if output.get("tool_mask") is not None:
            mask_BT = mask_BT * output["tool_mask"]
        rows, first = len(mask_BT), self.accelerator.process_index * len(mask_BT)
        local_BF = rewards_NF[first : first + rows].to(device)
        scored_B = ~torch.isnan(local_BF).all(dim=1)
        score_B = (local_BF * self.reward_weights.to(device)).nansum(dim=1)
        # Unscored rows teach neither the policy nor the critic anything.
        learnt_BT = (mask_BT.bool() & scored_B.unsqueeze(1)).to(mask_BT.dtype)

        kl_BT = torch.zeros_like(old_logps_BT)
        if self.kl.coef and self.ref_model is not None:
            ref_logps_BT = self._reference_logps(output)
            output["ref_per_token_logps"] = ref_logps_BT
            kl_BT = (old_logps_BT - ref_logps_BT) * mask_BT
        rewards_BT = at_last_token(score_B.to(old_logps_BT.dtype), mask_BT) - self.kl.coef * kl_BT

        values_BT, bootstrap_B = values_BS[:, :-1], None
        if args.bootstrap_truncated:
            ends = terminal_ids(self)
            cut_B = torch.tensor([not len(ids) or int(ids[-1]) not in ends for ids in completion_ids], device=device)
            after_BT = at_last_token(torch.ones_like(score_B), mask_BT)
            bootstrap_B = (values_BS[:, 1:] * after_BT).sum(1) * cut_B
        if not self.critic.begun and self._mode == "train":
            _, to_go_BT = gae(rewards_BT, values_BT, mask_BT, gamma=args.gamma, lam=1.0)
            sums = torch.stack([(to_go_BT.to(device, torch.float32) * learnt_BT).sum(), learnt_BT.sum().float()])
            total, count = self._sum_over_ranks(sums).tolist()
            if count:
                self.critic.begin(total / count)
                values_BT = values_BT + total / count
                bootstrap_B = None if bootstrap_B is None else cut_B * (total / count)
        estimate = partial(gae, rewards_BT, values_BT, mask_BT, gamma=args.gamma, bootstrap_B=bootstrap_B)
        advantages_BT, returns_BT = estimate(lam=args.lam)
        # What came, without a share of what the critic had expected: the critic is judged by these.
        _, to_go_BT = estimate(lam=1.0)
        # Estimates come back in float64 from the CPU.
        advantages_BT, returns_BT, to_go_BT = (
            x.to(device, torch.float32) for x in (advantages_BT, returns_BT, to_go_BT)
        )
        explained = explained_variance(to_go_BT, values_BT, learnt_BT, self._sum_over_ranks)
        advantages_BT = advantages_BT * learnt_BT
        if math.isnan(explained):
            # All returns are the same: what is left is the critic's noise, and whitening would bring it to full size.
            advantages_BT = torch.zeros_like(advantages_BT)
        elif args.whiten_advantages:
            advantages_BT = whiten(advantages_BT, learnt_BT, self._sum_over_ranks)
        output |= {
            "advantages": advantages_BT,
            "returns": returns_BT,
            "rewards_to_go": to_go_BT,
            "values": values_BT,
            "value_mask": learnt_BT,
        }
        self._log_round(kl_BT, score_B, scored_B, to_go_BT, values_BT, learnt_BT, explained)
        self._log_advantages(advantages_BT, mask_BT)

    def _reference_logps(self, output: Mapping[str, Any]) -> Tensor:
        logps_BT = reference_logps(self, self.ref_model, output, batch_size=self.args.per_device_train_batch_size)
        own = self._own_reference
        if own is not None and own is self.ref_model and own.failure is not None:
            raise RuntimeError(own.failure)
        return logps_BT

    def _sum_over_ranks(self, x: Tensor) -> Tensor:
        total: Tensor = self.accelerator.reduce(x, reduction="sum")
        return total

    # -- the loss --------------------------------------------------------------------------------------------------

    def _prepare_inputs(self, generation_batch: Any) -> Any:
        slices = self.args.steps_per_generation
        at = self._step % (slices * self.num_iterations)
        buffered: list[dict[str, Any]] | None = self._buffered_inputs  # type: ignore[has-type]
        if self._mode == "train" and buffered is not None and slices > 1 and at and at % slices == 0:
            self._buffered_inputs = reshuffled(buffered)
        return super()._prepare_inputs(generation_batch)

    def _compute_loss(self, model: Any, inputs: Any) -> Any:
        with self._listening() as values:
            loss = super()._compute_loss(model, inputs)
        value_loss = self._compute_value_loss(torch.cat(values)[:, :-1], inputs)[0]
        # The parent's loss is divided like this, too; Trainer divides neither.
        parts = self.current_gradient_accumulation_steps if self._mode == "train" else 1.0
        return loss + self.args.vf_coef * value_loss / parts

    def _compute_value_loss(self, values_BT: Tensor, inputs: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """Mean clipped value loss per token of this batch, and the share of tokens on the clipped branch."""
        mask_BT = inputs["value_mask"]
        loss_BT, clipped_BT = clipped_value_loss(
            values_BT, inputs["values"], inputs["returns"], self.args.cliprange_value
        )
        count = mask_BT.sum()
        loss_sum, clipped_sum = (loss_BT * mask_BT).sum(), (clipped_BT * mask_BT).sum()
        totals = self._sum_over_ranks(torch.stack([loss_sum.detach(), clipped_sum.float(), count.float()]))
        metrics = self._metrics[self._mode]
        metrics["loss/value_avg"].append((totals[0] / totals[2].clamp(min=1.0)).item())
        metrics["val/clipfrac_avg"].append((totals[1] / totals[2].clamp(min=1.0)).item())
        return loss_sum / count.clamp(min=1.0), clipped_sum / count.clamp(min=1.0)

    # -- metrics ---------------------------------------------------------------------------------------------------

    def _log_round(
        self,
        kl_BT: Tensor,
        score_B: Tensor,
        scored_B: Tensor,
        to_go_BT: Tensor,
        values_BT: Tensor,
        learnt_BT: Tensor,
        explained: float,
    ) -> None:
        """Under the names of TRL's former ``PPOTrainer``, where it had one; and a step of the KL's control."""
        sums = torch.stack(
            [
                torch.tensor(float(len(kl_BT)), device=kl_BT.device),
                kl_BT.sum().float(),
                (score_B * scored_B).sum().float(),
                scored_B.sum().float(),
                (to_go_BT * learnt_BT).sum().float(),
                (values_BT * learnt_BT).sum().float(),
                learnt_BT.sum().float(),
            ]
        )
        rows, kl, score, scored, returns, values, tokens = self._sum_over_ranks(sums).tolist()
        metrics = self._metrics[self._mode]
        kl_nats = kl / max(1.0, rows)
        if self.ref_model is not None:
            metrics["objective/kl"].append(kl_nats)
            metrics["objective/non_score_reward"].append(-self.kl.coef * kl_nats)
            metrics["objective/rlhf_reward"].append(score / max(1.0, scored) - self.kl.coef * kl_nats)
            metrics["kl_coef"].append(self.kl.coef)
        metrics["value/mean"].append(values / max(1.0, tokens))
        metrics["value/return_mean"].append(returns / max(1.0, tokens))
        if not math.isnan(explained):
            metrics["value/explained_variance"].append(explained)
        if self._mode == "train" and self.ref_model is not None:
            self.kl = self.kl.after(kl_nats, int(rows))

    def _log_advantages(self, advantages_BT: Tensor, mask_BT: Tensor) -> None:
        """In the table of completions: what is trained on, as a row's mean, instead of the group's advantage."""
        mean_B = (advantages_BT * mask_BT).sum(1) / mask_BT.sum(1).clamp(min=1)
        mean_N = self.accelerator.gather(mean_B).tolist()
        logged = self._logs["advantages"]
        for _ in range(min(len(mean_N), len(logged))):
            logged.pop()
        logged.extend(mean_N)

    # -- optimizer and files ---------------------------------------------------------------------------------------

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        optimizer = super().create_optimizer(*args, **kwargs)
        known = {id(p) for group in optimizer.param_groups for p in group["params"]}
        for group in self.critic.parameter_groups(self.args.learning_rate, self.args.value_learning_rate):
            if id(group["params"][0]) not in known:
                optimizer.add_param_group(group)
        return optimizer

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        super().save_model(output_dir, _internal_call)
        if self.args.should_save:
            self.critic.save(Path(output_dir if output_dir is not None else self.args.output_dir))

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        # Before super(): what a hub push uploads is what the folder holds at that moment.
        if self.args.should_save:
            folder = Path(self._get_output_dir(trial=trial)) / f"checkpoint-{self.state.global_step}" / STATE_FOLDER
            folder.mkdir(parents=True, exist_ok=True)
            fingerprint = None if self.base is None else self.base.fingerprint
            (folder / STATE_FILE).write_text(json.dumps({"kl_coef": self.kl.coef, "base_fingerprint": fingerprint}))
            if self.base is not None:
                self.base.save(folder)
        super()._save_checkpoint(model, trial)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        head = Path(checkpoint_folder) / CRITIC_FILE
        if self.is_world_process_zero() and head.exists():
            shutil.copy(head, os.path.join(self.args.output_dir, CRITIC_FILE))
        super()._push_from_checkpoint(checkpoint_folder)

    def _load_optimizer_and_scheduler(self, checkpoint: Any) -> None:
        if checkpoint is not None:
            # First, since its absence says more than an optimizer of another shape would.
            self.critic.load(Path(checkpoint))
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        folder = Path(checkpoint) / STATE_FOLDER
        state = json.loads((folder / STATE_FILE).read_text())
        if self.base is not None:
            self.base.resume(folder, state["base_fingerprint"])
            self._take_reference()
        self.kl_coef = state["kl_coef"] if self.kl.target_nats is not None else self.kl.coef

    def _load_best_model(self) -> None:
        super()._load_best_model()
        if self.state.best_model_checkpoint is not None:
            self.critic.load(Path(self.state.best_model_checkpoint))


def reshuffled(batches: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of ``batches`` in another order, and cut again into as many: each epoch of PPO has batches of its own.

    Draws from torch's global random state, as TRL does when it shuffles a generation for the first time.
    """
    joined: dict[str, Any] = {}
    for name, first in batches[0].items():
        if isinstance(first, Tensor) and first.dim() > 0:
            joined[name] = torch.cat([batch[name] for batch in batches])
        elif isinstance(first, list):
            joined[name] = [value for batch in batches for value in batch[name]]
        else:
            joined[name] = first
    return list(split_tensor_dict(shuffle_sequence_dict(joined), len(batches)))


class _CriticStep(TrainerCallback):
    """What the optimizer step does for the policy's gradients, for the critic's."""

    def __init__(self, trainer: PPOTrainer) -> None:
        self._trainer = trainer

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._trainer.critic.zero_grad(set_to_none=True)

    def on_pre_optimizer_step(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        trainer = self._trainer
        if trainer.accelerator.num_processes > 1:
            trainer.critic.share_gradients(trainer.accelerator)
        if args.max_grad_norm:
            torch.nn.utils.clip_grad_norm_(trainer.critic.parameters(), args.max_grad_norm)

    def on_optimizer_step(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._trainer.critic.zero_grad(set_to_none=True)


def _refuse(trainer: PPOTrainer) -> None:
    """Raise ``ConfigError`` where the engine or the data are not what PPO can train."""
    engine = sharding(trainer)
    if engine is not None:
        raise ConfigError(
            f"PPOTrainer cannot train under {engine}: the critic lies outside of the sharded engine. Train with DDP "
            "(torchrun, or accelerate without a plugin) or on one device; LoRA makes that fit. GRPOTrainer shards."
        )
    columns = set(getattr(trainer.train_dataset, "column_names", None) or ())
    if columns & {"image", "images"}:
        raise ConfigError("PPOTrainer reads text only, and this dataset has images. Use GRPOTrainer for it.")
