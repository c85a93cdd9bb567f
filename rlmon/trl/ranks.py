"""What a trainer's processes tell one another. Every rank calls each of these functions: they hold collectives."""

from __future__ import annotations

import functools
from typing import Any, TypeVar

import numpy as np
import torch
from accelerate.utils import broadcast_object_list, gather_object

from rlmon.monitor.setting import Ranks
from rlmon.restored import Restored

T = TypeVar("T")


def ranks_of(trainer: Any) -> Ranks:
    """This process among those that train together, as a monitor is told of it."""
    accelerator = trainer.accelerator
    if accelerator.num_processes == 1:
        return Ranks()
    # Apple's backend has no float64; it has no collectives of several processes either, so this is a precaution.
    dtype = torch.float32 if accelerator.device.type == "mps" else torch.float64

    def reduce(vector: np.ndarray) -> np.ndarray:
        total = accelerator.reduce(torch.from_numpy(vector).to(accelerator.device, dtype), reduction="sum")
        summed: np.ndarray = total.to("cpu", torch.float64).numpy()
        return summed

    def gather(matrix_nK: np.ndarray) -> np.ndarray:
        every = accelerator.gather(torch.from_numpy(matrix_nK).to(accelerator.device))
        stacked: np.ndarray = every.cpu().numpy()
        return stacked

    return Ranks(
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
        reduce=reduce,
        share=functools.partial(of_rank_0, trainer=trainer),
        gather=gather,
    )


def of_rank_0(value: T, trainer: Any) -> T:
    """Rank 0's value on every rank."""
    if trainer.accelerator.num_processes == 1:
        return value
    shared: T = broadcast_object_list([value], from_process=0)[0]
    return shared


def first_of_any_rank(reason: str | None, trainer: Any) -> str | None:
    """The first rank's reason that has one, on every rank."""
    if trainer.accelerator.num_processes == 1:
        return reason
    return next((each for each in gather_object([reason]) if each is not None), None)


def agree(restored: Restored, trainer: Any) -> None:
    """Let every rank know what any of them could not read."""
    if trainer.accelerator.num_processes > 1:
        restored.lost = {name: reason for lost in gather_object([restored.lost]) for name, reason in lost.items()}
