"""What rlmon reads off a TRL trainer, whatever its version calls it."""

from __future__ import annotations

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
