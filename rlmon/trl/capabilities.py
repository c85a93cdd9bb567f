"""What will be captured with this trainer, this TRL and this configuration; what cannot be, and why.

Two answers: a *refusal* (an error before the first step, where watching would half-work) and a *plan*, a table of
signals with ``yes`` or ``skip`` and the reason, kept in the run's header and printed by ``rlmon check``.
"""

from __future__ import annotations

from typing import Any

import torch
import trl
from packaging.version import Version

from rlmon.config import RLMonConfig
from rlmon.errors import AttachError

OLDEST_TRL = Version("1.8.0")
BROKEN_ON_CPU = Version("1.15.0")
LIGER_WITHOUT_LOSS = Version("1.14.0")
"""Before this version ``use_liger_kernel`` computed the loss in a kernel that shows neither entropies nor logprobs."""

ASYNC_SKIPS = (
    ("rollouts", "AsyncGRPO samples and scores completions in a child process"),
    ("rewards and advantages", "they are computed in that child process"),
    ("formats, moves, text", "completions never reach the trainer as text"),
    ("groups, lone successes", "groups are packed before they reach the trainer"),
    ("entropy, kl", "its loss is computed inline, without a per-token hook"),
)


def refuse(trainer: Any) -> None:
    """Raise ``AttachError`` where this trainer cannot be watched; return ``None`` where it can."""
    version = Version(trl.__version__)
    name = type(trainer).__name__
    if version < OLDEST_TRL:
        raise AttachError(f"TRL {version} is installed; rlmon needs 1.8 or later. Type: pip install -U 'trl>=1.8'")
    if "Async" in name and any("async_grpo" in base.__module__ for base in type(trainer).__mro__):
        listing = "; ".join(f"{signal}: SKIP ({reason})" for signal, reason in ASYNC_SKIPS)
        raise AttachError(
            f"{name} cannot be watched from inside. {listing}. Use GRPOTrainer, or log with rlmon.Monitor."
        )
    if not isinstance(trainer, trl.GRPOTrainer | trl.RLOOTrainer):
        raise AttachError(
            f"RLMon watches TRL's GRPOTrainer and RLOOTrainer (and their subclasses), got {name}. For any other loop "
            "feed rlmon.Monitor yourself."
        )
    args = trainer.args
    if version < LIGER_WITHOUT_LOSS and getattr(args, "use_liger_kernel", False):
        raise AttachError(
            f"use_liger_kernel=True with TRL {version} computes the loss in a kernel that shows no entropies. Set "
            "use_liger_kernel: false, or type: pip install -U 'trl>=1.14'"
        )
    if version == BROKEN_ON_CPU and not torch.cuda.is_available():
        raise AttachError("TRL 1.15.0 cannot train on a CPU. Type: pip install -U 'trl>=1.16'")
    for other in trainer.callback_handler.callbacks:
        if type(other).__name__ == "RLMon" and getattr(other, "attached", False):
            raise AttachError(
                "This trainer already has a monitor. Attach RLMon once: RLMon(trainer) or callbacks=[RLMon()]."
            )


def plan(
    args: Any, config: RLMonConfig, *, trainer: str, base_kind: str | None = None, base_reason: str = ""
) -> list[dict[str, str]]:
    """Rows of ``{"signal", "status", "reason"}`` for a ``GRPOConfig`` or ``RLOOConfig`` and our own settings.

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
    if getattr(args, "torch_compile", False):
        yes("torch_compile", "entropies come from the compiled forward's outputs")
    if base_kind is None and config.rlmon_base_kl == "off":
        skip("kl", "rlmon_base_kl is off")
    elif base_kind == "off":
        skip("kl", base_reason)
    else:
        source = base_kind or f"base model: {config.rlmon_base_kl}, settled when training starts"
        yes("kl", f"{source}; every {config.rlmon_base_kl_every} steps, at most {config.rlmon_base_kl_tokens} tokens")
    if rloo:
        yes("advantages", "RLOO's contain its KL penalty; solve rates come from the raw rewards")
    if getattr(args, "use_vllm", False):
        yes("vLLM", "completions as sampled; entropies from the training forward of the same tokens")
    if reuse > args.gradient_accumulation_steps:
        yes("reused generations", f"each generation feeds {reuse} micro-batches; its rows are counted once")
    if config.rlmon_store_text != "full":
        skip("text in the log", f"rlmon_store_text is {config.rlmon_store_text}")
    return rows
