"""The headline scalars among the trainer's own metrics, and so in every tracker without code for it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rlmon.monitor import Monitor
from rlmon.records import StepRecord
from rlmon.sinks import Sink
from rlmon.sinks.trackio import TrackioSink
from rlmon.trl.wrapping import Original, wrap

FAULTS = "rlmon/faults"
HEADLINE = (
    "rlmon/entropy/mean",
    "rlmon/format/effective",
    "rlmon/collision/mode_across_effective",
    "rlmon/format/effective_within",
    "rlmon/format/effective_correct",
    "rlmon/format/top_share",
    "rlmon/format/other_share",
    "rlmon/kl/mean",
    "rlmon/group/all_good",
    "rlmon/group/all_bad",
    "rlmon/group/lone_success_weight",
    FAULTS,
)


def headline(record: StepRecord) -> dict[str, float]:
    """The headline scalars of one step, as far as they were measured."""
    values = {name: record.metrics.get(name) for name in HEADLINE} | {FAULTS: float(sum(record.faults.values()))}
    return {name: float(value) for name, value in values.items() if value is not None}


def add(metrics: Any, values: Mapping[str, float]) -> None:
    """Put them into TRL's lists, which it averages over ``logging_steps`` and empties at each log.

    Faults are a count: one number that grows until it is logged, since the mean of counts is none.
    """
    for name, value in values.items():
        if name == FAULTS:
            metrics[name] = [sum(metrics[name]) + value]
        else:
            metrics[name].append(value)


def tensorboard_sinks(trainer: Any, log: Path) -> list[Sink]:
    """A sink for each TensorBoard integration of the trainer, which writes through the writer that it has open."""
    from transformers.integrations import TensorBoardCallback

    from rlmon.sinks.tensorboard import TensorBoardSink

    loggers = [callback for callback in trainer.callback_handler.callbacks if isinstance(callback, TensorBoardCallback)]
    return [TensorBoardSink(functools.partial(getattr, logger, "tb_writer", None), log) for logger in loggers]


def around_trackers(trainer: Any, monitor: Monitor) -> Callable[[], None]:
    """Wrap the trainer's own integrations on the instance, so that what rlmon's sinks log themselves, each step and
    exact, is not sent a second time among the trainer's metrics. Gives back what takes this off again.

    trackio's integration also ends its run when training ends, and hears of that before we do: the sink of that run is
    closed first.
    """
    from transformers.integrations import TensorBoardCallback, TrackioCallback, WandbCallback

    config = monitor.config
    kinds: tuple[type, ...] = (WandbCallback,) * config.rlmon_wandb + (TensorBoardCallback,) * config.rlmon_tensorboard
    kinds += (TrackioCallback,) * config.rlmon_trackio
    loggers = [callback for callback in trainer.callback_handler.callbacks if isinstance(callback, kinds)]
    undone = [wrap(callback, "on_log", _without_ours) for callback in loggers if "on_log" not in vars(callback)]

    def end(original: Original, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        monitor.journal.close_sinks(TrackioSink)
        return original(*args, **kwargs)

    undone += [wrap(callback, "on_train_end", end) for callback in loggers if isinstance(callback, TrackioCallback)]

    def undo() -> None:
        for each in undone:
            each()

    return undo


def _without_ours(original: Original, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    logs = kwargs.get("logs")
    if isinstance(logs, Mapping):
        kwargs = {**kwargs, "logs": {name: value for name, value in logs.items() if not name.startswith("rlmon/")}}
    return original(*args, **kwargs)
