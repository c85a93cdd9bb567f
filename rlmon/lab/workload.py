"""Where the programs in ``trainers/`` get prompts and rewards from: the lab's task, reasoning-gym, or your dataset."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import trl

from rlmon.config import option
from rlmon.errors import ConfigError, MissingExtraError
from rlmon.lab.rewards import reward_function
from rlmon.lab.task import reward_correct, split_questions
from rlmon.metrics.formats import final_answer

WORKLOADS = ("arithmetic", "reasoning-gym", "dataset")


@dataclass
class WorkloadArguments(trl.ScriptArguments):
    """What to train on. ``dataset_*`` are TRL's own and count only with ``workload: dataset``."""

    workload: str = option(
        "dataset",
        "arithmetic: the lab's word problems. reasoning-gym: generated tasks with their own verifiers. "
        "dataset: dataset_name with reward_funcs.",
        choices=list(WORKLOADS),
    )
    reasoning_gym_tasks: dict[str, Any] | str | None = option(
        None, 'Task name to its settings, mixed evenly: {"chain_sum": {"min_terms": 2, "max_terms": 2}}.'
    )
    workload_size: int = option(2_000, "Training prompts to generate (reasoning-gym).")
    eval_size: int = option(64, "Evaluation prompts, where eval_strategy is not no.")
    workload_seed: int = option(0, "Seed of the generated prompts (reasoning-gym).")
    conversational: bool = option(False, "Prompts as chat messages rather than as text.")
    instruction: str | None = option(None, "Put after every question, on its own line.")
    reward_funcs: list[str] | None = option(
        None, "With workload: dataset. Names of functions in trl.rewards, or dotted import paths."
    )

    def __post_init__(self) -> None:
        if isinstance(self.reasoning_gym_tasks, str):
            try:
                self.reasoning_gym_tasks = json.loads(self.reasoning_gym_tasks)
            except json.JSONDecodeError as error:
                raise ConfigError(f"reasoning_gym_tasks is not valid JSON: {error}") from error


@dataclass(frozen=True, kw_only=True)
class Workload:
    """Datasets with a ``prompt`` column, and the reward functions that read their other columns."""

    train: Any
    evaluation: Any | None
    reward_funcs: list[Callable[..., Any]]


def load_workload(arguments: WorkloadArguments, *, evaluate: bool) -> Workload:
    """What ``arguments`` describe. Raises ``ConfigError`` where they do not name enough, or name the unknown."""
    if arguments.workload == "arithmetic":
        return _arithmetic(arguments, evaluate)
    if arguments.workload == "reasoning-gym":
        return _reasoning_gym(arguments, evaluate)
    return _dataset(arguments, evaluate)


def _arithmetic(arguments: WorkloadArguments, evaluate: bool) -> Workload:
    from datasets import Dataset

    train, held_out = split_questions()

    def rows(questions: Sequence[Any]) -> Any:
        return Dataset.from_list(
            [{"prompt": _prompt(q.prompt, arguments), "answer": q.answer, "source": "arithmetic"} for q in questions]
        )

    return Workload(
        train=rows(train),
        evaluation=rows(held_out[: arguments.eval_size]) if evaluate else None,
        reward_funcs=[reward_correct],
    )


def _reasoning_gym(arguments: WorkloadArguments, evaluate: bool) -> Workload:
    from datasets import Dataset

    try:
        import reasoning_gym
    except ImportError as error:
        raise MissingExtraError(
            "workload: reasoning-gym needs the package of that name. Type: pip install reasoning-gym"
        ) from error

    tasks = arguments.reasoning_gym_tasks
    if not isinstance(tasks, Mapping) or not tasks:
        raise ConfigError(
            "workload: reasoning-gym needs reasoning_gym_tasks, a mapping of task name to settings, for example "
            f"{{chain_sum: {{min_terms: 2, max_terms: 2}}}}; got {tasks!r}."
        )

    def generate(size: int, seed: int) -> dict[str, Any]:
        made = {}
        for name, settings in tasks.items():
            try:
                made[name] = reasoning_gym.create_dataset(name, size=size, seed=seed, **(settings or {}))
            except (ValueError, TypeError, AssertionError) as error:
                raise ConfigError(f"reasoning_gym_tasks: {name} refuses {settings or {}}: {error}") from error
        return made

    def rows(made: Mapping[str, Any], part: str) -> list[dict[str, Any]]:
        # Task by task in turn, so that every stretch of the dataset has the same mixture.
        return [
            {"prompt": _prompt(entry["question"], arguments), "source": name, "entry": index, "part": part}
            for index, entries in enumerate(zip(*made.values(), strict=True))
            for name, entry in zip(made, entries, strict=True)
        ]

    # One seed apart is enough: every entry has a generator of its own, seeded by seed + index.
    each = -(-arguments.workload_size // len(tasks))
    parts = {"train": generate(each, arguments.workload_seed)}
    if evaluate:
        parts["eval"] = generate(-(-arguments.eval_size // len(tasks)), arguments.workload_seed + 1_000_003)

    def verified(
        prompts: Sequence[Any],
        completions: Sequence[Any],
        source: Sequence[str],
        entry: Sequence[int],
        part: Sequence[str],
        **_: object,
    ) -> list[float]:
        """The task's own verifier on the completion's final answer."""
        return [
            float(parts[of][name].score_answer(final_answer(_text(completion)), parts[of][name][index]))
            for completion, name, index, of in zip(completions, source, entry, part, strict=True)
        ]

    return Workload(
        train=Dataset.from_list(rows(parts["train"], "train")),
        evaluation=Dataset.from_list(rows(parts["eval"], "eval")) if evaluate else None,
        reward_funcs=[verified],
    )


def _dataset(arguments: WorkloadArguments, evaluate: bool) -> Workload:
    from datasets import load_dataset

    if not arguments.dataset_name:
        raise ConfigError(
            "Nothing to train on: set workload: arithmetic, workload: reasoning-gym, or dataset_name with reward_funcs."
        )
    if not arguments.reward_funcs:
        raise ConfigError(
            "workload: dataset needs reward_funcs, for example [accuracy_reward] or [my_module.my_reward]."
        )
    loaded = load_dataset(arguments.dataset_name, name=arguments.dataset_config, streaming=arguments.dataset_streaming)
    return Workload(
        train=loaded[arguments.dataset_train_split],
        evaluation=loaded[arguments.dataset_test_split] if evaluate else None,
        reward_funcs=[reward_function(name) for name in arguments.reward_funcs],
    )


def _prompt(question: str, arguments: WorkloadArguments) -> Any:
    text = question if arguments.instruction is None else f"{question}\n{arguments.instruction}"
    return [{"role": "user", "content": text}] if arguments.conversational else text


def _text(completion: Any) -> str:
    """The completion as text; a conversation's messages one after the other."""
    if isinstance(completion, str):
        return completion
    return "\n".join(message["content"] or "" for message in completion)
