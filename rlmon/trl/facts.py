"""What rlmon reads off a TRL trainer, whatever its version calls it, and off the frames of its running methods."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any


def reward_names(trainer: Any) -> list[str]:
    """Names of the reward functions, as rows of the log have them: numbered where two functions share one."""
    seen: dict[str, int] = {}
    unique = []
    for name in trainer.reward_func_names:
        seen[name] = seen.get(name, 0) + 1
        unique.append(name if seen[name] == 1 else f"{name}#{seen[name]}")
    return unique


def terminal_ids(trainer: Any) -> frozenset[int]:
    """Token ids after which TRL counts a completion as finished; TRL 1.15 made a list of the single end."""
    ends = getattr(trainer, "eos_token_ids", None)
    if ends is None:
        ends = [getattr(trainer, "eos_token_id", trainer._tokenizer.eos_token_id)]
    return frozenset(end for end in [*ends, trainer._tokenizer.pad_token_id] if end is not None)


def sharding(trainer: Any) -> str | None:
    """The engine that spreads the model over processes, under which a forward of ours would be a collective of its own;
    ``None`` for a trainer that has the whole model."""
    engine = str(getattr(trainer.accelerator, "distributed_type", "NO")).rsplit(".", 1)[-1]
    return engine if engine in ("FSDP", "DEEPSPEED", "MEGATRON_LM") else None


def callers() -> Iterator[FrameType]:
    """The frames that called us, the innermost first."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        yield frame
        frame = frame.f_back


def _of(trainer: Any, *names: str) -> Iterator[Mapping[str, Any]]:
    """Local variables of the running methods of ``trainer`` with one of these names."""
    return (f.f_locals for f in callers() if f.f_code.co_name in names and f.f_locals.get("self") is trainer)


def is_training(trainer: Any) -> bool:
    """Whether a ``train()`` of this trainer is running in this thread: too late to wrap it."""
    return next(_of(trainer, "train", "_inner_training_loop"), None) is not None


def resumed_from(trainer: Any) -> Path | None:
    """The checkpoint from which the ``train()`` of this trainer that is running in this thread goes on."""
    for names in _of(trainer, "_inner_training_loop"):
        checkpoint = names.get("resume_from_checkpoint")
        return Path(checkpoint) if isinstance(checkpoint, str | Path) else None
    return None
