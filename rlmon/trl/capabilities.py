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
from rlmon.trl.capture import unique_names
from rlmon.trl.ppo.config import PPOConfig

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


TRL_PPO_SKIPS = (
    ("group", "one completion a prompt: a group of one has no spread"),
    ("within prompt", "one completion a prompt: what is compared lies across prompts"),
    ("passes", "a round is seen once, at generation, not in each of num_ppo_epochs"),
    ("critic", "values and their loss stay in local variables of TRL's loop"),
    ("interventions", "the loop calls nothing before a step and ignores should_training_stop"),
    ("resume", "train() of this trainer takes no checkpoint; each checkpoint holds rlmon's state all the same"),
    ("mirror", "TRL logs a step before it says that it ended: use rlmon_wandb for rlmon's own scalars"),
    ("source column", "the loop shows token ids, not dataset rows: sources are templates of the decoded prompts"),
    ("eval", "generate_completions samples at temperature 0.01 for the eye, and is left out"),
)


def is_trl_ppo_class(kind: type) -> bool:
    """Whether this is the class of TRL's own PPO (1.8 to 1.12): its trainer or its config."""
    return kind.__module__.startswith("trl.experimental.ppo.") and kind.__name__ in ("PPOTrainer", "PPOConfig")


def is_trl_ppo(thing: Any) -> bool:
    """Whether this is a trainer or a config of TRL's own PPO, or of a subclass."""
    return any(is_trl_ppo_class(kind) for kind in type(thing).__mro__)


def trl_ppo_notice() -> str:
    """One line for a person: what cannot be seen of TRL's own PPOTrainer."""
    signals = ", ".join(signal for signal, _ in TRL_PPO_SKIPS)
    return f"rlmon: TRL's PPOTrainer is watched without {signals} (reasons: run.json). rlmon.trl.PPOTrainer has them."


def refuse(trainer: Any, config: RLMonConfig | None = None) -> None:
    """Raise ``AttachError`` where this trainer cannot be watched, ``ConfigError`` where ``rlmon_success`` names a
    reward function that it does not have."""
    version = Version(trl.__version__)
    name = type(trainer).__name__
    if version < OLDEST_TRL:
        raise AttachError(f"TRL {version} is installed; rlmon needs 1.8 or later. Type: pip install -U 'trl>=1.8'")
    if "Async" in name and any("async_grpo" in base.__module__ for base in type(trainer).__mro__):
        listing = "; ".join(f"{signal}: SKIP ({reason})" for signal, reason in ASYNC_SKIPS)
        raise AttachError(
            f"{name} cannot be watched from inside. {listing}. Use GRPOTrainer, or log with rlmon.Monitor."
        )
    if is_trl_ppo(trainer):
        if config is not None and config.rlmon_policy is not None:
            raise AttachError(
                "rlmon_policy cannot work with TRL's own PPOTrainer: its loop has nothing that a rule could turn, and "
                "ignores should_training_stop. Use rlmon.trl.PPOTrainer or MonitoredPPOTrainer, or leave it out."
            )
    elif not isinstance(trainer, trl.GRPOTrainer | trl.RLOOTrainer):
        hint = " TRL's own PPOTrainer is in 1.8 to 1.12 only: use rlmon.trl.PPOTrainer." if "PPO" in name else ""
        raise AttachError(
            f"RLMon watches TRL's GRPOTrainer and RLOOTrainer (and their subclasses), got {name}.{hint} For any other "
            "loop feed rlmon.Monitor yourself."
        )
    args = trainer.args
    if version < LIGER_WITHOUT_LOSS and getattr(args, "use_liger_kernel", False):
        raise AttachError(
            f"use_liger_kernel=True with TRL {version} computes the loss in a kernel that shows no entropies. Set "
            "use_liger_kernel: false, or type: pip install -U 'trl>=1.14'"
        )
    if version == BROKEN_ON_CPU and not torch.cuda.is_available():
        raise AttachError("TRL 1.15.0 cannot train on a CPU. Type: pip install -U 'trl>=1.16'")
    criterion = None if config is None else config.success
    if criterion is not None:
        criterion.refuse_unknown(reward_functions(trainer))
    for other in trainer.callback_handler.callbacks:
        if type(other).__name__ == "RLMon" and getattr(other, "attached", False):
            raise AttachError(
                "This trainer already has a monitor. Attach RLMon once: RLMon(trainer) or callbacks=[RLMon()]."
            )


def reward_functions(trainer: Any) -> list[str]:
    """Names of the trainer's reward functions, as rows of the log have them."""
    return ["reward_model"] if is_trl_ppo(trainer) else unique_names(trainer.reward_func_names)


def plan(
    args: Any, config: RLMonConfig, *, trainer: str, base_kind: str | None = None, base_reason: str = ""
) -> list[dict[str, str]]:
    """Rows of ``{"signal", "status", "reason"}`` for a ``GRPOConfig``, ``RLOOConfig`` or TRL's own ``PPOConfig``, and
    our own settings.

    ``base_kind`` is known once a trainer exists; before that the row says what will be tried.
    """
    if is_trl_ppo(args):
        return _trl_ppo_plan(args, config, base_kind=base_kind, base_reason=base_reason)
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


def _trl_ppo_plan(args: Any, config: RLMonConfig, *, base_kind: str | None, base_reason: str) -> list[dict[str, str]]:
    seen = [
        ("rollouts", "every sampled completion once, when its advantages are known"),
        ("format, text, moves", "from the completions of each update, one a prompt"),
        ("reward", "score of the reward model, less missing_eos_penalty where that is set"),
        ("entropy", "exact, full vocabulary, of the distribution that each token was drawn from"),
        ("advantages", "row means of the whitened token advantages"),
        ("several processes", "rows are local to a rank and added like those of other trainers"),
    ]
    skipped = list(TRL_PPO_SKIPS)
    if args.stop_token is None and args.stop_token_id is None:
        skipped.insert(0, ("truncated", "no stop_token: every completion has response_length tokens"))
    else:
        seen.append(("truncated", "completions without the stop token"))
    if config.rlmon_base_kl == "off" or base_kind == "off":
        skipped.insert(0, ("kl", base_reason or "rlmon_base_kl is off"))
    else:
        source = base_kind or "TRL's reference, where it is the policy as it starts"
        bound = f"every {config.rlmon_base_kl_every} steps, at most {config.rlmon_base_kl_tokens} tokens"
        seen.append(("kl", f"{source}, from the forward that TRL runs anyway; {bound}"))
    if config.rlmon_store_text != "full":
        skipped.append(("text in the log", f"rlmon_store_text is {config.rlmon_store_text}"))
    return [
        {"signal": signal, "status": status, "reason": reason}
        for status, rows in (("yes", seen), ("skip", skipped))
        for signal, reason in rows
    ]
