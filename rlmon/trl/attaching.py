"""What goes wrong while a monitor is attached: said in words, with nothing left behind."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from rlmon.errors import AttachError, RLMonError


@contextlib.contextmanager
def in_words(what: str, instead: str) -> Iterator[None]:
    """Raise what fails inside as an ``AttachError``: what could not be done, what came, and what to type."""
    try:
        yield
    except RLMonError:
        raise
    except Exception as error:
        raise AttachError(
            f"RLMon could not {what}: {type(error).__name__}: {str(error)[:300]}. {instead}, or train without RLMon; "
            "nothing was changed in the trainer."
        ) from error


@contextlib.contextmanager
def untouched_by_failure(trainer: Any) -> Iterator[None]:
    """Whatever is raised inside leaves the trainer's attributes and callbacks as they were."""
    attributes, callbacks = dict(vars(trainer)), list(trainer.callback_handler.callbacks)
    try:
        yield
    except BaseException:
        vars(trainer).clear()
        vars(trainer).update(attributes)
        trainer.callback_handler.callbacks[:] = callbacks
        raise
