"""What is seen of TRL's own ``PPOTrainer``, and what is not."""

from __future__ import annotations

from typing import Any

from rlmon.config import RLMonConfig
from rlmon.trl.base import BaseModel

SKIPS = (
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


def notice() -> str:
    """One line for a person: what cannot be seen."""
    signals = ", ".join(signal for signal, _ in SKIPS)
    return f"rlmon: TRL's PPOTrainer is watched without {signals} (reasons: run.json). rlmon.trl.PPOTrainer has them."


def plan(args: Any, config: RLMonConfig, base: BaseModel) -> list[dict[str, str]]:
    """Rows of ``{"signal", "status", "reason"}`` for its ``PPOConfig`` and our own settings."""
    seen = [
        ("rollouts", "every sampled completion once, when its advantages are known"),
        ("format, text, moves", "from the completions of each update, one a prompt"),
        ("reward", "score of the reward model, less missing_eos_penalty where that is set"),
        ("entropy", "exact, full vocabulary, of the distribution that each token was drawn from"),
        ("advantages", "row means of the whitened token advantages"),
        ("several processes", "rows are local to a rank and added like those of other trainers"),
    ]
    skipped = list(SKIPS)
    if args.stop_token is None and args.stop_token_id is None:
        skipped.insert(0, ("truncated", "no stop_token: every completion has response_length tokens"))
    else:
        seen.append(("truncated", "completions without the stop token"))
    if not base.active:
        skipped.insert(0, ("kl", base.reason))
    else:
        bound = f"every {config.rlmon_base_kl_every} steps, at most {config.rlmon_base_kl_tokens} tokens"
        seen.append(("kl", f"{base.kind}, from the forward that TRL runs anyway; {bound}"))
    if config.rlmon_store_text != "full":
        skipped.append(("text in the log", f"rlmon_store_text is {config.rlmon_store_text}"))
    return [
        {"signal": signal, "status": status, "reason": reason}
        for status, rows in (("yes", seen), ("skip", skipped))
        for signal, reason in rows
    ]
