"""Sums that a monitor is shown by hand, a step at a time, without a trainer."""

from __future__ import annotations

from collections.abc import Sequence

import torch

import rlmon
from rlmon.records import RolloutBatch


def observe(
    monitor: rlmon.Monitor,
    step: int,
    rows: Sequence[tuple[int, int]],
    completions: list[str],
    rewards: list[float],
    noise: torch.Generator,
) -> None:
    """One round: a completion of each row ``(a, b)``, whose tokens have an entropy of about .55 nats."""
    number = monitor.next_round("train")
    monitor.observe(
        RolloutBatch(
            round=number,
            split="train",
            step=step,
            group_size=monitor.group_size,
            global_row=range(len(rows)),
            prompt_id=[f"{a}+{b}" for a, b in rows],
            source=["sums"] * len(rows),
            prompts=[f"What is {a} + {b}?" for a, b in rows],
            completions=completions,
            reward=rewards,
        )
    )
    monitor.observe_tokens(
        split="train",
        rows_B2=[(number, row) for row in range(len(rows))],
        logps_BT=None,
        entropies_BT=torch.full((len(rows), 2), 0.5) + 0.1 * torch.rand(len(rows), 2, generator=noise),
        mask_BT=torch.ones(len(rows), 2),
    )
