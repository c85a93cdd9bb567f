"""What the header of a run's log says of its trainer and of the machine."""

from __future__ import annotations

import importlib.metadata
import math
import os
import platform
import shutil
import subprocess
import sys
from typing import Any

from rlmon.monitor.setting import About

RECORDED_SETTINGS = (
    "beta", "temperature", "num_generations", "num_iterations", "steps_per_generation", "generation_batch_size",
    "per_device_train_batch_size", "gradient_accumulation_steps", "max_completion_length", "loss_type",
    "scale_rewards", "learning_rate", "lr_scheduler_type", "max_steps", "num_train_epochs", "seed", "epsilon",
    "epsilon_high", "mask_truncated_completions", "entropy_coef", "use_adaptive_entropy", "top_entropy_quantile",
    "sync_ref_model", "use_vllm", "logging_steps", "output_dir",
)  # fmt: skip


def about(
    trainer: Any,
    *,
    recorded: tuple[str, ...],
    critic: bool,
    total_steps: int | None,
    capabilities: list[dict[str, str]],
) -> About:
    """What a monitor is told of ``trainer``; ``recorded`` are settings of its kind, beside those of all."""
    return About(
        trainer=type(trainer).__name__,
        trainer_config={name: _plain(getattr(trainer.args, name, None)) for name in (*RECORDED_SETTINGS, *recorded)},
        total_steps=total_steps,
        capabilities=capabilities,
        packages=_packages(),
        git_commit=_git_commit(),
        critic=critic,
        **_generations(trainer.args),
    )


def _generations(args: Any) -> dict[str, Any]:
    """How many completions a generation has over all ranks, and how many generations one step can train on."""
    size, steps = getattr(args, "generation_batch_size", None), getattr(args, "steps_per_generation", None)
    if not size or not steps:
        return {}
    batches = args.gradient_accumulation_steps
    uneven = batches % steps != 0 and steps % batches != 0
    return {"rows_per_round": int(size), "rounds_per_step": -(-batches // steps) + int(uneven)}


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    return str(value)


def _packages() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for name in ("rlmon", "trl", "transformers", "torch", "peft", "accelerate", "numpy", "pyarrow"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "unknown"
    module = sys.modules.get("trl")
    if module is not None:
        versions["trl"] = str(module.__version__)
    return versions


def _git_commit() -> str | None:
    git = shutil.which("git")
    if git is None:
        return None
    try:
        # By its path: looking for a bare name in os.environ makes Python forget which warnings it has shown.
        done = subprocess.run(
            [git, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=False, cwd=os.getcwd()
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
