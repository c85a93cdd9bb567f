"""What only the frames that called us show of a trainer at work."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any


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
