"""A reward function that attaches the monitor: for those who can only edit the YAML file of ``trl grpo``.

::

    reward_funcs: [accuracy_reward, rlmon.trl.probe]
    env: {RLMON_DIR: runs/x}

It returns ``None`` for every completion, which TRL leaves out of rewards and advantages; where ``reward_weights`` is
set, give it the weight 0.0. TRL logs ``rewards/probe/mean`` as ``None`` for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rlmon.config import RLMonConfig
from rlmon.errors import AttachError
from rlmon.trl.callback import RLMon
from rlmon.trl.facts import callers


def probe(
    prompts: Sequence[Any], completions: Sequence[Any], completion_ids: Sequence[Sequence[int]], **kwargs: Any
) -> list[None]:
    """``None`` for every completion; attaches ``RLMon`` to the calling trainer at the first call.

    Settings come from ``RLMON_*`` environment variables. The first round is taken from this call's own arguments,
    since it was sampled before any hook was in place.
    """
    log_metric = kwargs.get("log_metric")
    trainer = getattr(log_metric, "__self__", None)
    if trainer is None:
        raise AttachError(
            "rlmon.trl.probe must be called by TRL's GRPOTrainer or RLOOTrainer (1.8 or later) as one of its "
            "reward_funcs; elsewhere use RLMon(trainer)."
        )
    if not any(type(callback) is RLMon for callback in trainer.callback_handler.callbacks) and trainer.model.training:
        monitor = RLMon(trainer, RLMonConfig.from_env())
        monitor.join_mid_round(prompts, completions, completion_ids, _dataset_rows(len(prompts)))
    return [None] * len(prompts)


def _dataset_rows(count: int) -> list[dict[str, Any]]:
    """The raw dataset rows of this round, from the frame of the method that scores them."""
    for frame in callers():
        if frame.f_code.co_name == "_calculate_rewards":
            rows = frame.f_locals.get("inputs")
            if isinstance(rows, list) and len(rows) == count:
                return rows
    raise AttachError("rlmon.trl.probe was not called from a trainer's _calculate_rewards; use RLMon(trainer) instead.")
