"""A sample of the base before the first update (``rlmon_base_sample``), by the trainer's own sampling and scoring.

Rounds as large as those of training are generated in evaluation mode from prompts of the training dataset, and scored
by the trainer's reward functions. All random states are put back, and whatever TRL counts meanwhile: the run that
follows is, to the last bit, the one without a sample.

With several ranks each samples its part. What fails on one of them is told to all before anybody goes on, so that no
rank waits for another; then none has a sample, and the first rounds are the baseline.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from accelerate.utils import gather
from numpy.typing import NDArray
from trl import GRPOTrainer, RLOOTrainer

from rlmon.config import RLMonConfig
from rlmon.errors import ConfigError
from rlmon.printable import one_line
from rlmon.records import RolloutBatch
from rlmon.restored import describe
from rlmon.trl.batches import SeenRound, rollout_batch
from rlmon.trl.capabilities import unsampled
from rlmon.trl.facts import reward_names, sharding
from rlmon.trl.models import evaluation_mode
from rlmon.trl.ranks import first_of_any_rank
from rlmon.trl.sampling import Sampling
from rlmon.trl.wrapping import wrap

if TYPE_CHECKING:
    from rlmon.monitor import Monitor
    from rlmon.trl.generation import Generation
    from rlmon.trl.watched import Watched

T = TypeVar("T")
Inputs = Sequence[Mapping[str, Any]]
SEED = 0x62617365
"""Beside the trainer's own seed: the sample's draws are not those of the first round."""
COUNTED = ("_metrics", "_pending_metrics", "_pending_extra_logs")
"""What TRL adds to while it generates and scores, in all its versions together."""
LEAVE_OUT = "Leave rlmon_base_sample out: the first rounds are the baseline then"
TOO_LATE = (
    "rlmon_base_sample: rlmon was attached while the first round was being scored, too late to sample the base; the "
    "first rounds are the baseline"
)
NONE_IN_CHECKPOINT = (
    "rlmon_base_sample: the run goes on from a checkpoint that knows no sample of the base, and its base is gone; the "
    "first rounds are the baseline"
)


# -- before the run ----------------------------------------------------------------------------------------------------


def blocked(trainer: Any) -> str | None:
    """Why this trainer cannot be sampled before training; ``None`` where it can."""
    if (reason := unsampled(trainer.args)) is not None:
        return reason
    if getattr(trainer, "rollout_func", None) is not None:
        return "completions come from rollout_func, and what that remembers cannot be put back"
    environments = ("environments", "environment_factories", "environment_factory")
    if getattr(trainer, "tools", None) or any(getattr(trainer, name, None) for name in environments):
        return "tools and environments have states that cannot be put back"
    if (reason := unsampled_spread(sharding(trainer))) is not None:
        return reason
    dataset = getattr(trainer, "train_dataset", None)
    if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
        return "prompts are drawn by their number, and the training dataset is a stream"
    if {"image", "images"} & set(getattr(dataset, "column_names", None) or ()):
        return "prompts with images are not sampled"
    several = trainer.accelerator.num_processes > 1
    for name in ("_generate", "_calculate_rewards") if several else ():
        if not _of_trl(trainer, name):
            kind = type(trainer).__name__
            return f"{kind} has a {name} of its own, and what several ranks tell each other in it is not known"
    return None


def unsampled_spread(engine: str | None) -> str | None:
    """Why a model that ``engine`` spreads over processes is not sampled; ``None`` where there is no such engine."""
    return None if engine is None else f"it was not tried with a model that {engine} spreads over processes"


def cannot_sample(reason: str) -> str:
    """The refusal, in words."""
    return f"rlmon_base_sample cannot work here: {reason}. {LEAVE_OUT}."


def refuse(trainer: Any, config: RLMonConfig) -> None:
    """Raise ``ConfigError`` where a sample of the base was asked for and cannot be taken."""
    if config.rlmon_base_sample and (reason := blocked(trainer)) is not None:
        raise ConfigError(cannot_sample(reason))


def _of_trl(trainer: Any, name: str) -> bool:
    """Whether a method is TRL's, or that of our own trainer which adds no collective to it."""
    home: str = getattr(getattr(type(trainer), name), "__module__", "")
    return home.startswith(("trl.", "rlmon.")) and isinstance(trainer, GRPOTrainer | RLOOTrainer)


# -- what is drawn -----------------------------------------------------------------------------------------------------


def rounds_of(completions: int, per_round: int) -> int:
    """Whole rounds of ``per_round`` completions that hold so many."""
    return -(-completions // max(1, per_round))


def drawn(rows: int, prompts: int, seed: int) -> NDArray[np.int64]:
    """Numbers of the dataset's ``rows`` that are sampled from [prompts], the same on all ranks: none comes again before
    all have come. Raises ``ValueError`` for a dataset without rows."""
    if rows < 1:
        raise ValueError("the training dataset has no rows")
    generator = np.random.default_rng([SEED, seed])
    turns = [generator.permutation(rows) for _ in range(-(-prompts // rows))]
    return np.concatenate(turns)[:prompts].astype(np.int64) if turns else np.zeros(0, dtype=np.int64)


def places(number: int, rank: int, rows: int, world_size: int, group_size: int) -> NDArray[np.int64]:
    """Of which of the drawn prompts each of this rank's ``rows`` rows of a round is [rows]: groups of ``group_size``
    behind one another, shared out over the ranks in their order, as TRL's sampler does."""
    first = number * rows * world_size + rank * rows
    return (first + np.arange(rows)) // max(1, group_size)


# -- nothing is left behind --------------------------------------------------------------------------------------------


@contextlib.contextmanager
def forked_randomness(seed: int, device_type: str) -> Iterator[None]:
    """Python's, numpy's and torch's random states, of the CPU and of every accelerator, begin at ``seed`` inside and
    are what they were after it."""
    python, numpy = random.getstate(), np.random.get_state()
    apple = torch.mps.get_rng_state() if torch.backends.mps.is_available() else None
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=[]))
        for kind in dict.fromkeys(("cuda", "xpu", device_type)):
            module = getattr(torch, kind, None)
            if kind not in ("cpu", "mps") and module is not None and module.is_available():
                devices = range(module.device_count())
                stack.enter_context(torch.random.fork_rng(devices=devices, device_type=kind))
        try:
            random.seed(seed)
            np.random.seed(seed % 2**32)
            torch.manual_seed(seed)
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
            if apple is not None:
                torch.mps.set_rng_state(apple)


@contextlib.contextmanager
def uncounted(trainer: Any) -> Iterator[None]:
    """What TRL counts inside is what it was after it, and no tracker is told of anything."""
    kept = {name: copy.deepcopy(dict(getattr(trainer, name))) for name in COUNTED if hasattr(trainer, name)}
    tokens, told = trainer.state.num_input_tokens_seen, trainer.args.report_to
    trainer.args.report_to = []  # TRL logs there how long it generated
    try:
        yield
    finally:
        trainer.args.report_to = told
        trainer.state.num_input_tokens_seen = tokens
        for name, values in kept.items():
            counter = getattr(trainer, name)
            counter.clear()
            counter.update(values)
        if hasattr(trainer, "_scored"):
            trainer._scored = None


@contextlib.contextmanager
def alone(trainer: Any) -> Iterator[None]:
    """TRL counts lengths over ranks while it generates: inside, each rank counts its own."""

    def own(original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return args[0] if args else kwargs["tensor"]

    undo = wrap(trainer.accelerator, "gather", own)
    try:
        yield
    finally:
        undo()


# -- sampling ----------------------------------------------------------------------------------------------------------


class _Failed(Exception):
    """What failed on some rank, in the same words on all of them."""


def take(watched: Watched, generation: Generation, monitor: Monitor) -> None:
    """Sample and score the base, and hand it to the monitor. All ranks come here before the first update. Never raises:
    what fails is a fault, and the first rounds are the baseline."""
    trainer, began = watched.trainer, time.perf_counter()
    sample, why = None, "see the faults of this run"
    try:
        rows = int(trainer._train_batch_size) * int(trainer.args.steps_per_generation)
        rounds = rounds_of(watched.config.rlmon_base_sample, rows * trainer.accelerator.num_processes)
        seed = (SEED + int(trainer.args.seed)) * 1_000_003 + trainer.accelerator.process_index
        with (
            forked_randomness(seed, trainer.accelerator.device.type),
            uncounted(trainer),
            evaluation_mode(trainer.model),
        ):
            batches = _sampled(watched, generation, monitor, rounds=rounds, rows=rows)
        sample = monitor.observe_base(batches, rounds=rounds, rows=rows)
    except _Failed as failed:
        why = str(failed)
    except Exception as error:
        why = one_line(describe(error))
        monitor.fault("base.sample", error)
    if sample is None:
        monitor.journal.remark(f"the base was not sampled, and the first rounds are the baseline: {why}")
        return
    seconds = time.perf_counter() - began
    monitor.journal.event(
        "base_sample",
        {"step": 0, "completions": sample.completions, "prompts": sample.prompts, "seconds": seconds},
    )
    monitor.journal.say(
        f"sampled the base before the first update: {sample.completions} completions of {sample.prompts} prompts in "
        f"{seconds:.1f} s"
    )


def _sampled(
    watched: Watched, generation: Generation, monitor: Monitor, *, rounds: int, rows: int
) -> list[RolloutBatch]:
    """This rank's rows of every round. Raises ``_Failed`` on all ranks where one of them failed."""
    trainer, agreed = watched.trainer, functools.partial(_agreed, watched.trainer, monitor)
    inputs = agreed(lambda: _inputs(watched, rounds=rounds, rows=rows))
    generation.learn_sources(monitor, inputs[0])
    batches = []
    for number, of_round in enumerate(inputs):
        with generation.sampling_base() as sampling:
            agreed(functools.partial(_generate, trainer, of_round))
            agreed(functools.partial(_score, trainer, of_round, sampling))
        batches.append(agreed(functools.partial(_batch, watched, monitor, sampling, of_round, number)))
    return batches


def _agreed(trainer: Any, monitor: Monitor, do: Callable[[], T]) -> T:
    """What ``do`` gives, where no rank fails in it; else raises ``_Failed`` on all of them. Holds a collective."""
    failure, done = None, []
    try:
        done.append(do())
    except Exception as error:
        failure = one_line(describe(error))
        monitor.fault("base.sample", error)
    told = first_of_any_rank(failure, trainer)
    if told is not None:
        raise _Failed(told)
    return done[0]


def _generate(trainer: Any, inputs: Inputs) -> None:
    with alone(trainer):
        trainer._generate([row["prompt"] for row in inputs])


def _score(trainer: Any, inputs: Inputs, sampling: Sampling) -> None:
    made = sampling.generated[-1]
    try:
        trainer._calculate_rewards(inputs, made.prompts, made.completions, made.completion_ids)
    except Exception:
        # TRL gathers the rewards at the end of it, where the other ranks wait for those of this one.
        shape = len(inputs), len(reward_names(trainer))
        gather(torch.full(shape, torch.nan, device=trainer.accelerator.device))
        raise


def _inputs(watched: Watched, *, rounds: int, rows: int) -> list[Inputs]:
    """The dataset's rows that this rank samples from, by round."""
    trainer = watched.trainer
    rank, world_size = trainer.accelerator.process_index, trainer.accelerator.num_processes
    dataset, group_size = trainer.train_dataset, watched.group_size
    if trainer.args.remove_unused_columns and hasattr(dataset, "column_names"):
        dataset = trainer._remove_unused_columns(dataset, description="base sample")
    prompts = rounds_of(rounds * rows * world_size, group_size)
    chosen = drawn(len(dataset), prompts, int(trainer.args.seed))
    of_rounds = [chosen[places(number, rank, rows, world_size, group_size)] for number in range(rounds)]
    return [[dict(dataset[int(row)]) for row in of_round] for of_round in of_rounds]


def _batch(watched: Watched, monitor: Monitor, sampling: Sampling, inputs: Inputs, number: int) -> RolloutBatch:
    """The rows of one round as the monitor takes them."""
    calls = sampling.calls(inputs)
    rows = [row for call in calls for row in sampling.rows(call)]
    seen = SeenRound(number=number, split="base", calls=calls, rows=rows, drawn=None, output={})

    def complain(what: str) -> None:
        monitor.fault("base.sample", what)

    batch = rollout_batch(watched.trainer, watched.sources, seen, complain)
    if len(batch) != len(inputs):
        raise RuntimeError(f"{len(batch)} completions were scored of {len(inputs)} that were sampled")
    return batch
