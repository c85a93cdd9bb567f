"""The kinds of trainers that can be watched: the one place that knows them all."""

from __future__ import annotations

from typing import Any

import torch
import trl
from packaging.version import Version

from rlmon.config import RLMonConfig
from rlmon.errors import AttachError
from rlmon.trl.capture import Capture
from rlmon.trl.legacy_ppo import LegacyPPOCapture
from rlmon.trl.watched import Watched

KINDS: tuple[type[Watched], ...] = (LegacyPPOCapture, Capture)
OLDEST_TRL = Version("1.8.0")
BROKEN_ON_CPU = Version("1.15.0")

ASYNC_SKIPS = (
    ("rollouts", "AsyncGRPO samples and scores completions in a child process"),
    ("rewards and advantages", "they are computed in that child process"),
    ("formats, moves, text", "completions never reach the trainer as text"),
    ("groups, lone successes", "groups are packed before they reach the trainer"),
    ("entropy, kl", "its loss is computed inline, without a per-token hook"),
)


def kind_of(trainer: Any, config: RLMonConfig) -> type[Watched]:
    """How this trainer is watched. Raises ``AttachError`` where it cannot be, ``ConfigError`` where ``rlmon_success``
    names a reward function that it does not have."""
    version = Version(trl.__version__)
    name = type(trainer).__name__
    if version < OLDEST_TRL:
        raise AttachError(f"TRL {version} is installed; rlmon needs 1.8 or later. Type: pip install -U 'trl>=1.8'")
    if "Async" in name and any("async_grpo" in base.__module__ for base in type(trainer).__mro__):
        listing = "; ".join(f"{signal}: SKIP ({reason})" for signal, reason in ASYNC_SKIPS)
        raise AttachError(
            f"{name} cannot be watched from inside. {listing}. Use GRPOTrainer, or log with rlmon.Monitor."
        )
    kind = next((kind for kind in KINDS if kind.takes(trainer)), None)
    if kind is None:
        hint = " TRL's own PPOTrainer is in 1.8 to 1.12 only: use rlmon.trl.PPOTrainer." if "PPO" in name else ""
        raise AttachError(
            f"RLMon watches TRL's GRPOTrainer and RLOOTrainer (and their subclasses), got {name}.{hint} For any other "
            "loop feed rlmon.Monitor yourself."
        )
    if version == BROKEN_ON_CPU and not torch.cuda.is_available():
        raise AttachError("TRL 1.15.0 cannot train on a CPU. Type: pip install -U 'trl>=1.16'")
    kind.refuse(trainer, config)
    for other in trainer.callback_handler.callbacks:
        if type(other).__name__ == "RLMon" and getattr(other, "attached", False):
            raise AttachError(
                "This trainer already has a monitor. Attach RLMon once: RLMon(trainer) or callbacks=[RLMon()]."
            )
    return kind
