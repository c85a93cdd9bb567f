"""What will be captured with this trainer, this TRL and this configuration; what cannot be, and why.

Two answers: a *refusal* (an error before the first step, where watching would half-work) and a *plan*, a table of
signals with ``yes`` or ``skip`` and the reason, kept in the run's header and printed by ``rlmon check``.
"""

from __future__ import annotations

from typing import Any

import trl
from packaging.version import Version

from rlmon.config import RLMonConfig
from rlmon.errors import AttachError
from rlmon.trl.base import BaseModel
from rlmon.trl.ppo.config import PPOConfig

LIGER_WITHOUT_LOSS = Version("1.14.0")
"""Before this version ``use_liger_kernel`` computed the loss in a kernel that shows neither entropies nor logprobs."""


def refuse(trainer: Any) -> None:
    """Raise ``AttachError`` where this trainer's loss cannot be watched."""
    version = Version(trl.__version__)
    if version < LIGER_WITHOUT_LOSS and getattr(trainer.args, "use_liger_kernel", False):
        raise AttachError(
            f"use_liger_kernel=True with TRL {version} computes the loss in a kernel that shows no entropies. Set "
            "use_liger_kernel: false, or type: pip install -U 'trl>=1.14'"
        )


def unsampled(args: Any) -> str | None:
    """Why a trainer with these settings cannot sample its base before training (``rlmon_base_sample``); ``None`` where
    it can."""
    if getattr(args, "use_vllm", False):
        return "what vLLM draws depends on all that it drew before, so that the run would be another one"
    if getattr(args, "use_transformers_continuous_batching", False) or getattr(args, "use_transformers_paged", False):
        return "continuous batching of Transformers leaves the model and its random state in another state"
    return None


def plan_of_trainer(trainer: Any, base: BaseModel, config: RLMonConfig) -> list[dict[str, str]]:
    """``plan`` for a trainer that is built, whose base is chosen."""
    kind = type(trainer).__name__
    return plan(trainer.args, config, trainer=kind, base_kind=base.kind, base_reason=base.reason)


def plan(
    args: Any, config: RLMonConfig, *, trainer: str, base_kind: str | None = None, base_reason: str = ""
) -> list[dict[str, str]]:
    """Rows of ``{"signal", "status", "reason"}`` for a ``GRPOConfig``, ``RLOOConfig`` or ``PPOConfig``, and our own
    settings.

    ``base_kind`` is known once a trainer exists; before that the row says what will be tried.
    """
    rloo = "RLOO" in trainer or type(args).__name__ == "RLOOConfig"
    rows: list[dict[str, str]] = []

    def yes(signal: str, reason: str = "") -> None:
        rows.append({"signal": signal, "status": "yes", "reason": reason})

    def skip(signal: str, reason: str) -> None:
        rows.append({"signal": signal, "status": "skip", "reason": reason})

    reuse = args.num_iterations * (args.steps_per_generation or args.gradient_accumulation_steps)
    yes("rollouts", "every sampled completion once, at generation")
    yes("format, text, moves", "from the completions of each generation")
    group_size = args.num_generations
    if group_size < 2:
        skip("group", "num_generations is 1: a group of one has no spread")
    else:
        yes("group", f"from raw rewards, {group_size} completions a prompt")
    if getattr(args, "scale_rewards", None) == "batch":
        yes(
            "group/all_good, all_bad",
            "TRL's own frac_reward_zero_std reads the batch std here and says nothing of groups",
        )
    yes("entropy", "exact, full vocabulary, from TRL's own forward")
    if getattr(args, "mask_truncated_completions", False):
        if getattr(args, "torch_compile", False) or getattr(args, "fsdp", None) or getattr(args, "deepspeed", None):
            skip(
                "entropy, kl of masked completions", "TRL's forward leaves them out, and another one cannot be run here"
            )
        else:
            yes("entropy, kl of masked completions", "TRL's forward leaves them out: one without gradients reads them")
    if getattr(args, "torch_compile", False):
        yes("torch_compile", "entropies come from the compiled forward's outputs")
    if base_kind is None and config.rlmon_base_kl == "off":
        skip("kl", "rlmon_base_kl is off")
    elif base_kind == "off":
        skip("kl", base_reason)
    else:
        source = base_kind or f"base model: {config.rlmon_base_kl}, settled when training starts"
        yes("kl", f"{source}; every {config.rlmon_base_kl_every} steps, at most {config.rlmon_base_kl_tokens} tokens")
    if config.rlmon_base_sample and (reason := unsampled(args)) is not None:
        skip("base sample", reason)
    elif config.rlmon_base_sample:
        yes(
            "base sample",
            f"{config.rlmon_base_sample} completions or a few more before the first update, scored by the reward "
            "functions; token entropies and KL keep the first rounds as their baseline",
        )
    if rloo:
        yes("advantages", "RLOO's contain its KL penalty; solve rates come from the raw rewards")
    if isinstance(args, PPOConfig):
        yes("advantages", "per token; a row of the log has the mean over its own tokens")
        yes(
            "value",
            f"of the critic ({args.critic}): loss, explained variance, returns; no forward of the monitor's own",
        )
    else:
        skip("value", "no critic: the group's mean is the baseline (rlmon.trl.PPOTrainer has one)")
    if getattr(args, "use_vllm", False):
        yes("vLLM", "completions as sampled; entropies from the training forward of the same tokens")
    if reuse > args.gradient_accumulation_steps:
        yes("reused generations", f"each generation feeds {reuse} micro-batches; its rows are counted once")
    if config.rlmon_store_text != "full":
        skip("text in the log", f"rlmon_store_text is {config.rlmon_store_text}")
    return rows
