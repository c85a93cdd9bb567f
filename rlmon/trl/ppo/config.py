"""Settings of ``PPOTrainer``: those of ``GRPOConfig``, and what a critic and a KL penalty in the reward need."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import trl.trainer.utils
from trl import GRPOConfig

from rlmon.config import option
from rlmon.errors import ConfigError

CRITICS = ("shared_detached", "shared", "separate")
LOSS_TYPES = ("bnpo", "dapo", "grpo", "dr_grpo")
"""TRL's clipped token losses: they differ in what the sum over tokens is divided by."""


@dataclass
class PPOConfig(GRPOConfig):
    """``GRPOConfig`` with a critic. Where TRL's former ``PPOConfig`` had a setting, it has the same name here, but for
    ``num_ppo_epochs`` (``num_iterations``), ``num_mini_batches`` (``steps_per_generation``), ``cliprange``
    (``epsilon``) and ``response_length`` (``max_completion_length``).

    Raises ``ConfigError`` for settings of GRPO that PPO has no use for.
    """

    gamma: float = option(1.0, "Discount per token, in (0, 1].")
    lam: float = option(0.95, "Lambda of generalised advantage estimation, in [0, 1]; 1 is without a bias.")
    kl_coef: float = option(
        0.05,
        "Weight of the KL penalty in the reward: kl_coef * (log pi_old - log pi_base) is taken off at each "
        "token. 0 leaves it out, and with it the base model.",
    )
    kl_target: float | None = option(
        None,
        "KL per completion, in nats, that kl_coef is moved towards after each generation (Ziegler et al. "
        "2019). Not set: kl_coef stays.",
    )
    kl_horizon: int = option(10_000, "Completions in which kl_target moves kl_coef by 20 % at most.")
    base_model: str | None = option(
        None, "Folder or name of the base that the KL penalty is against. Not set: the model as it starts."
    )
    vf_coef: float = option(0.1, "Weight of the value loss.")
    cliprange_value: float | None = option(
        0.2, "Largest move of a value in one generation that the value loss rewards; or null."
    )
    critic: str = option(
        "shared_detached",
        "shared_detached: a value head on the policy's hidden states, which it does not train. shared: it "
        "trains them too. separate: a copy of the trunk of its own (its memory, and a forward more).",
        choices=list(CRITICS),
    )
    value_learning_rate: float = option(
        1e-3, "Learning rate of the value head, under the same schedule. A trunk of its own has the policy's."
    )
    value_head: str | None = option(None, "A saved value head, or a folder that holds one, to start from.")
    whiten_advantages: bool = option(
        True, "Bring advantages to mean 0 and variance 1 over each generation, on all ranks."
    )
    bootstrap_truncated: bool = option(
        False, "A completion cut off at max_completion_length ends with the value of its last state instead of 0."
    )

    # GRPO's, with the defaults of PPO.
    beta: float = option(0.0, "GRPO's KL penalty in the loss; PPO's is in the reward: see kl_coef. Stays 0.")
    loss_type: str = option(
        "bnpo", "What the clipped loss is divided by: " + ", ".join(LOSS_TYPES) + "; see GRPOConfig."
    )
    scale_rewards: str = option("none", "GRPO's scaling by groups; PPO has whiten_advantages instead. Stays none.")
    num_generations: int | None = option(
        2,
        "Completions per prompt. PPO needs no group, so 1 will do; with 2 or more the monitor sees what is "
        "left of the variety within a prompt.",
    )

    def __post_init__(self) -> None:
        alone = self.num_generations == 1
        if alone:
            # GRPO asks for two, which PPO has no need of: let it check all the rest with a number that divides as well.
            self.num_generations = max(2, self.per_device_train_batch_size)
            eval_size: int | None = self.num_generations_eval  # type: ignore[has-type]
            self.num_generations_eval = eval_size or 1
        super().__post_init__()
        if alone:
            self.num_generations = 1
        for name, holds, needed in self._demands():
            if not holds:
                raise ConfigError(f"{name}={getattr(self, name)!r} cannot work with PPO: {needed}")

    def _demands(self) -> list[tuple[str, bool, str]]:
        """Name of a setting, whether it will do, and what is needed."""
        liger = not getattr(self, "use_liger_kernel", False) or hasattr(trl.trainer.utils, "add_fused_lm_head")
        return [
            ("beta", self.beta == 0.0, "its KL penalty is part of the reward. Set kl_coef, and leave beta at 0."),
            ("gamma", 0.0 < self.gamma <= 1.0, "it must be over 0 and at most 1."),
            ("lam", 0.0 <= self.lam <= 1.0, "it must lie between 0 and 1."),
            ("kl_coef", self.kl_coef >= 0.0, "it must not be negative; 0 leaves the penalty out."),
            (
                "kl_target",
                self.kl_target is None or (self.kl_target > 0.0 and self.kl_coef > 0.0),
                "it must be over 0, and kl_coef too, from which it starts.",
            ),
            ("kl_horizon", self.kl_horizon > 0, "it must be over 0."),
            ("vf_coef", self.vf_coef >= 0.0, "it must not be negative."),
            (
                "cliprange_value",
                self.cliprange_value is None or self.cliprange_value > 0.0,
                "it must be over 0, or null for no clipping.",
            ),
            ("critic", self.critic in CRITICS, f"it is one of {', '.join(CRITICS)}."),
            ("value_learning_rate", self.value_learning_rate > 0.0, "it must be over 0."),
            ("loss_type", self.loss_type in LOSS_TYPES, f"it needs a clipped token loss: {', '.join(LOSS_TYPES)}."),
            (
                "scale_rewards",
                self.scale_rewards == "none",
                "there is no group to scale by. Leave it at none; whiten_advantages scales the advantages.",
            ),
            (
                "importance_sampling_level",
                self.importance_sampling_level == "token",
                "advantages are per token, and so are the ratios. Leave it at token.",
            ),
            (
                "multi_objective_aggregation",
                getattr(self, "multi_objective_aggregation", "sum_then_normalize") == "sum_then_normalize",
                "its reward is the weighted sum of the reward functions. Leave it at sum_then_normalize.",
            ),
            ("sync_ref_model", not self.sync_ref_model, "its KL penalty is against the initial base. Set it to false."),
            ("torch_compile", not self.torch_compile, "the critic reads the policy's hidden states. Set it to false."),
            ("fp16", not self.fp16, "a gradient scaler would see the critic's gradients on one rank only. Use bf16."),
            ("deepspeed", not self.deepspeed, _SHARDED),
            ("fsdp", not self.fsdp, _SHARDED),
            (
                "use_liger_kernel",
                liger,
                "before TRL 1.14 its kernel computes the loss. Type: pip install -U 'trl>=1.16'",
            ),
        ]


PPO_SETTINGS = tuple(sorted(set(PPOConfig.__dataclass_fields__) - set(GRPOConfig.__dataclass_fields__)))
"""Names of the settings that ``PPOConfig`` adds."""
_SHARDED = "the critic lies outside of the sharded engine. Train with DDP or on one device; LoRA makes that fit."


def config_of(args: Any) -> PPOConfig:
    """``args`` itself. Raises ``ConfigError`` where it is of another trainer."""
    if not isinstance(args, PPOConfig):
        raise ConfigError(f"PPOTrainer takes a PPOConfig, got {type(args).__name__}: from rlmon.trl import PPOConfig")
    return args
