"""What rlmon does around a trainer's ``train()`` and evaluations: attach before, go on after a roll back, end well.

A run that a rule rolled back goes on by ``train()`` once more, from the checkpoint before the alarm.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from rlmon.trl.binding import bound_arguments


class Returning(Protocol):
    """Who knows where training is to go on from."""

    roll_back_to: Path | None


def go_on_once(trainer: Any, returning: Returning) -> Callable[[], None]:
    """Wrap ``trainer.train``: where a call ends with ``returning.roll_back_to`` set, training goes on from there, and
    what is returned is what that last leg returned. Gives back what takes the wrapper off again.
    """
    original, given = trainer.train, trainer.__dict__.get("train")

    @functools.wraps(original)
    def train(*args: Any, **kwargs: Any) -> Any:
        output = original(*args, **kwargs)
        if returning.roll_back_to is not None:
            checkpoint, returning.roll_back_to = returning.roll_back_to, None
            output = _resumed(original, args, kwargs, str(checkpoint))
        return output

    trainer.train = train
    return functools.partial(_restore, trainer, given)


def on_failure(trainer: Any, end: Callable[[], None]) -> Callable[[], None]:
    """Wrap ``trainer.train``: where it ends by an exception, Ctrl-C included, ``end()`` is called before that goes on
    its way; TRL calls no callback then. Gives back what takes the wrapper off again."""
    original, given = trainer.train, trainer.__dict__.get("train")

    @functools.wraps(original)
    def train(*args: Any, **kwargs: Any) -> Any:
        try:
            return original(*args, **kwargs)
        except BaseException:
            end()
            raise

    trainer.train = train
    return functools.partial(_restore, trainer, given)


def around_evaluation(trainer: Any, begin: Callable[[], bool], end: Callable[[str, bool], None]) -> Callable[[], None]:
    """Wrap ``trainer.evaluation_loop``, which ``evaluate()`` and ``predict()`` run once for each data set: ``begin()``
    before it, and ``end(metric_key_prefix, what begin gave back)`` after it. Neither may raise. Where the loop raises
    there is no ``end``, since it adds up the ranks. Gives back what takes the wrapper off again."""
    original, given = trainer.evaluation_loop, trainer.__dict__.get("evaluation_loop")
    names = ("dataloader", "description", "prediction_loss_only", "ignore_keys", "metric_key_prefix")

    @functools.wraps(original)
    def evaluation_loop(*args: Any, **kwargs: Any) -> Any:
        begun = begin()
        output = original(*args, **kwargs)
        name = "eval"
        with contextlib.suppress(Exception):
            name = str(bound_arguments(original, args, kwargs, names).get("metric_key_prefix", name))
        end(name, begun)
        return output

    trainer.evaluation_loop = evaluation_loop
    return functools.partial(_restore, trainer, given, "evaluation_loop")


def before_use(trainer: Any, begin: Callable[[Any], None]) -> Callable[[], None]:
    """Call ``begin(trainer)`` once, when it is to train or to evaluate for the first time: what a trainer still under
    construction lacks (its reference, its ``beta``) is there by then. Gives back what takes the wrappers off again."""
    given = {name: trainer.__dict__.get(name) for name in ("train", "evaluation_loop")}

    def undo() -> None:
        for name, value in given.items():
            _restore(trainer, value, name)

    def wrapped(name: str) -> Callable[..., Any]:
        @functools.wraps(getattr(trainer, name))
        def use(*args: Any, **kwargs: Any) -> Any:
            undo()
            begin(trainer)
            return getattr(trainer, name)(*args, **kwargs)

        return use

    for name in given:
        setattr(trainer, name, wrapped(name))
    return undo


def _restore(trainer: Any, given: Any, name: str = "train") -> None:
    if given is None:
        trainer.__dict__.pop(name, None)
    else:
        setattr(trainer, name, given)


def is_training(trainer: Any) -> bool:
    """Whether a ``train()`` of this trainer is running in this thread: too late to wrap it."""
    frame: Any = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_name in ("train", "_inner_training_loop") and frame.f_locals.get("self") is trainer:
            return True
        frame = frame.f_back
    return False


def resumed_from(trainer: Any) -> Path | None:
    """The checkpoint from which the ``train()`` of this trainer that is running in this thread goes on."""
    frame: Any = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_name == "_inner_training_loop" and frame.f_locals.get("self") is trainer:
            checkpoint = frame.f_locals.get("resume_from_checkpoint")
            return Path(checkpoint) if isinstance(checkpoint, str | Path) else None
        frame = frame.f_back
    return None


def _resumed(original: Any, args: tuple[Any, ...], kwargs: dict[str, Any], checkpoint: str) -> Any:
    """``original`` with the arguments of the first call, but for the checkpoint."""
    signature = inspect.signature(original)
    if "resume_from_checkpoint" not in signature.parameters:  # a subclass that hands everything on
        return original(*args[1:], **{**kwargs, "resume_from_checkpoint": checkpoint})
    bound = signature.bind(*args, **kwargs)
    bound.arguments["resume_from_checkpoint"] = checkpoint
    return original(*bound.args, **bound.kwargs)
