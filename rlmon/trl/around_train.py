"""What rlmon does around a trainer's ``train()`` and evaluations: attach before, go on after a roll back, end well.

A run that a rule rolled back goes on by ``train()`` once more, from the checkpoint before the alarm. Each function
gives back what takes its wrappers off again.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from rlmon.trl.wrapping import Original, bound_arguments, wrap

LOOP = ("dataloader", "description", "prediction_loss_only", "ignore_keys", "metric_key_prefix")
"""TRL's names of the parameters of ``evaluation_loop``."""


class Returning(Protocol):
    """Who knows where training is to go on from."""

    roll_back_to: Path | None


def go_on_once(trainer: Any, returning: Returning) -> Callable[[], None]:
    """Where a ``train()`` ends with ``returning.roll_back_to`` set, training goes on from there, and what is returned
    is what that last leg returned."""

    def train(original: Original, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        output = original(*args, **kwargs)
        if returning.roll_back_to is not None:
            checkpoint, returning.roll_back_to = returning.roll_back_to, None
            output = _resumed(original, args, kwargs, str(checkpoint))
        return output

    return wrap(trainer, "train", train)


def on_failure(trainer: Any, end: Callable[[], None]) -> Callable[[], None]:
    """Where ``train()`` ends by an exception, Ctrl-C included, ``end()`` is called before that goes on its way; TRL
    calls no callback then."""

    def train(original: Original, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        try:
            return original(*args, **kwargs)
        except BaseException:
            end()
            raise

    return wrap(trainer, "train", train)


def around_evaluation(trainer: Any, begin: Callable[[], bool], end: Callable[[str, bool], None]) -> Callable[[], None]:
    """Around ``evaluation_loop``, which ``evaluate()`` and ``predict()`` run once for each data set: ``begin()`` before
    it, and ``end(metric_key_prefix, what begin gave back)`` after it. Neither may raise. Where the loop raises there is
    no ``end``, since it adds up the ranks."""

    def evaluation_loop(original: Original, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        begun = begin()
        output = original(*args, **kwargs)
        name = "eval"
        with contextlib.suppress(Exception):
            name = str(bound_arguments(original, args, kwargs, LOOP).get("metric_key_prefix", name))
        end(name, begun)
        return output

    return wrap(trainer, "evaluation_loop", evaluation_loop)


def before_use(trainer: Any, begin: Callable[[Any], None]) -> Callable[[], None]:
    """Call ``begin(trainer)`` once, when it is to train or to evaluate for the first time: what a trainer still under
    construction lacks (its reference, its ``beta``) is there by then."""

    def undo() -> None:
        for each in undone:
            each()

    def first_use(name: str) -> Callable[[], None]:
        def use(original: Original, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            undo()
            begin(trainer)
            return getattr(trainer, name)(*args, **kwargs)

        return wrap(trainer, name, use)

    undone = [first_use("train"), first_use("evaluation_loop")]
    return undo


def _resumed(original: Original, args: tuple[Any, ...], kwargs: dict[str, Any], checkpoint: str) -> Any:
    """``original`` with the arguments of the first call, but for the checkpoint."""
    signature = inspect.signature(original)
    if "resume_from_checkpoint" not in signature.parameters:  # a subclass that hands everything on
        return original(*args[1:], **{**kwargs, "resume_from_checkpoint": checkpoint})
    bound = signature.bind(*args, **kwargs)
    bound.arguments["resume_from_checkpoint"] = checkpoint
    return original(*bound.args, **bound.kwargs)
