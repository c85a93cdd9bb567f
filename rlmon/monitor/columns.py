"""A batch of one rank as columns of the log."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from rlmon.metrics.features import RowFeatures
from rlmon.records import RolloutBatch


def rollout_columns(
    batch: RolloutBatch, features: RowFeatures | None, *, attempt: int, secret: bytes | None
) -> dict[str, Sequence[Any] | None]:
    """Columns of ``records.Rollout``, without features where they could not be made.

    ``secret``: keys the identities of prompts, where texts are not stored (the hash of a short prompt can be inverted);
    ``None`` leaves them as they are.
    """
    rows = len(batch)
    columns: dict[str, Sequence[Any] | None] = {
        "attempt": [attempt] * rows,
        "round": [batch.round] * rows,
        "split": [batch.split] * rows,
        "global_row": list(batch.global_row),
        "group": [row // max(1, batch.group_size) for row in batch.global_row],
        "step": [batch.step] * rows,
        "prompt_id": list(batch.prompt_id)
        if secret is None
        else [hashlib.blake2b(name.encode(), digest_size=12, key=secret).hexdigest() for name in batch.prompt_id],
        "source": list(batch.source),
        "prompt": list(batch.prompts),
        "completion": list(batch.completions),
        "prompt_tokens": None
        if batch.prompt_ids is None
        else [None if ids is None else len(ids) for ids in batch.prompt_ids],
        "completion_tokens": [len(ids) for ids in batch.completion_ids]
        if batch.completion_ids is not None
        else [len(text.split()) for text in batch.completions],
        "truncated": batch.truncated,
        "reward": batch.reward,
        "rewards": [{name: column[i] for name, column in batch.rewards.items()} for i in range(rows)],
        "advantage": batch.advantages,
        "turn": batch.turn,
        "policy_version": batch.policy_version,
        "staleness": batch.staleness,
        "trained": [True] * rows if batch.trained is None else list(batch.trained),
    }
    if features is not None:
        openers, weights = features.openers, features.opener_weights
        columns |= {
            "mode": features.mode,
            "reasoning_mode": features.reasoning_mode,
            "template_key": features.template_key.tolist(),
            "answer_key": features.answer_key,
            "opening_key": features.opening_key.tolist(),
            "openers": None if openers is None else [row.tolist() for row in openers],
            "opener_weights": None if weights is None else [row.tolist() for row in weights],
        }
    return columns
