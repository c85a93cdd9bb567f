"""What narrowing costs once the requirement changes: ``python -m studies.second_act`` (part of ``make experiments``).

An arm trains the lab's task, and training goes on from its end, with beta 0 and no policy, for answers that are right
*and* JSON. ``STARTS`` differ in what else could explain that a narrowed model does not learn it. Finished runs are kept
and not run again while their settings stay the same.

Seeds 10 to 17 were chosen before any of them was run; the number of steps and the lines of ``studies.second_act_page``
by looking at seeds 0 to 2.
"""

from __future__ import annotations

import argparse
import dataclasses
import platform
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rlmon.controller import load_policy
from rlmon.lab.bases import base_dir
from rlmon.lab.demo import TRAINING
from rlmon.lab.evaluate import EVALUATION_SEED, held_out_sample
from rlmon.lab.libraries import versions
from rlmon.lab.second_act import WANTED, WANTED_TOKENS, go_on, weights_of
from rlmon.lab.task import reward_correct, split_questions
from studies.arms import ARMS, TASKS, Arm, Task
from studies.cells import (
    PROMPTS,
    SAMPLES_PER_PROMPT,
    Cell,
    Result,
    add_study_options,
    base,
    base_evaluation,
    evaluation_settings,
    finished,
    judge,
    keep,
    load_model,
    places,
    run_all,
    trained,
)
from studies.control import held_out
from studies.experiments import training
from studies.rewards import parse
from studies.second_act_page import write_page
from studies.suppressed import chance_of_json, suppress

CELLS_DIR = Path(".cache/second-act")
REPORT_DIR = Path("docs/experiments")
KL_EVERY_STEPS = 20
SNAPSHOT_EVERY_STEPS = 10
ACCURACY_SAMPLES_PER_PROMPT = 2
"""With which the step is chosen at which ``stopped`` stops."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Start:
    """Where the second act starts, and how it differs."""

    name: str
    arm: str | None
    """Of whose training it is an end or a step; ``None``: the base."""
    temperature: float = 1.0
    """At which the second act samples."""
    wants_winner: bool = False
    """Asks for the most frequent format of the start rather than for JSON."""


STARTS: Mapping[str, Start] = {
    start.name: start
    for start in (
        Start(name="base", arm=None),
        Start(name="protect", arm="protect"),
        Start(name="unprotected", arm="unprotected"),
        Start(name="stopped", arm="unprotected"),
        Start(name="marginal", arm="marginal"),
        Start(name="suppressed", arm="protect"),
        Start(name="hot", arm="unprotected", temperature=1.5),
        Start(name="winner", arm="unprotected", wants_winner=True),
    )
}
"""In the order in which they are run. ``second_act_page.ABOUT`` says what each is for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class First(Cell):
    """The training of an arm, whose weights are kept."""

    @property
    def name(self) -> str:
        return f"first-{self.task.name}-{self.arm.name}-seed{self.seed}"

    def settings(self) -> dict[str, Any]:
        policy = self.arm.policy
        return {
            **Cell.settings(self),
            "policy": None if policy is None else load_policy(policy).to_dict(),
            "training": {**TRAINING, **training(self, None)},
            "evaluation": evaluation_settings(),
        }

    def weights(self, folder: Path, step: int) -> Path:
        """Where those after ``step`` are kept."""
        return folder / "weights" / f"{self.name}-{self.fingerprint()[:12]}-step{step}.safetensors"


@dataclass(frozen=True, kw_only=True, slots=True)
class Second(Cell):
    """How training went on from one start."""

    start: Start
    most_steps: int

    @property
    def name(self) -> str:
        return f"{self.task.name}-{self.start.name}-seed{self.seed}"

    def first(self, arm: str) -> First:
        return First(task=self.task, arm=ARMS[arm], seed=self.seed)

    def settings(self) -> dict[str, Any]:
        needed = [self.first(arm).fingerprint() for arm in _needs(self.start)]
        return {**Cell.settings(self), "start": asdict(self.start), "continued": self.training(), "first": needed}

    def training(self) -> dict[str, Any]:
        """Settings of ``GRPOConfig``."""
        changed = {
            "max_steps": self.most_steps, "max_completion_length": WANTED_TOKENS, "temperature": self.start.temperature
        }  # fmt: skip
        return {**TRAINING, **training(self, None), **changed}


def _needs(start: Start) -> tuple[str, ...]:
    """The arms that must have been trained."""
    if start.arm is None:
        return ()
    return ("protect", "unprotected") if start.name in ("stopped", "suppressed") else (start.arm,)


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What is run: the study, or a small part of it."""

    tasks: tuple[Task, ...] = (TASKS["arithmetic"], TASKS["seven"])
    seeds: tuple[int, ...] = tuple(range(10, 18))
    most_steps: int = 240

    def seconds(self, task: Task, seed: int) -> list[Second]:
        return [
            Second(task=task, arm=Arm(name=name, about=name), seed=seed, start=start, most_steps=self.most_steps)
            for name, start in STARTS.items()
        ]


PLAN = Plan()
QUICK = Plan(tasks=(dataclasses.replace(TASKS["arithmetic"], steps=20),), seeds=(0,), most_steps=10)


def train_first(cell: First, folder: Path) -> Result:
    """Trains and judges an arm; writes ``<folder>/<cell>.json`` and the weights every ``SNAPSHOT_EVERY_STEPS``."""
    return keep(cell, folder, lambda: _train_first(cell, folder))


def _train_first(cell: First, folder: Path) -> Result:
    from safetensors.torch import save_file
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    class Snapshots(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
            if state.global_step % SNAPSHOT_EVERY_STEPS == 0:
                path = cell.weights(folder, state.global_step)
                path.parent.mkdir(parents=True, exist_ok=True)
                save_file(weights_of(model), path)

    run = trained(
        cell,
        folder,
        trainer=GRPOTrainer,
        args=lambda output: GRPOConfig(output_dir=output, seed=cell.seed, **{**TRAINING, **training(cell, None)}),
        rows=[{"prompt": q.prompt, "answer": q.answer} for q in split_questions()[0]],
        reward=reward_correct,
        kl_every_steps=KL_EVERY_STEPS,
        prepare=lambda built: built.add_callback(Snapshots()),
    )
    return {**run.result, "evaluation": run.judged["evaluation"]}


def train_second(cell: Second, folder: Path) -> Result:
    """Trains on from one start and writes ``<folder>/<cell>.json``; its arms must have been trained."""
    return keep(cell, folder, lambda: _train_second(cell, folder))


def _train_second(cell: Second, folder: Path) -> Result:
    from datasets import Dataset

    began = time.process_time()
    _, tokenizer = base(cell.task.base)
    train, held = split_questions()
    model, evaluation, step = _started(cell, folder)
    chance = chance_of_json(model, tokenizer, held_out_sample(held, PROMPTS))
    wanted = evaluation["top_format"] if cell.start.wants_winner else WANTED
    started = time.process_time()
    continued = go_on(
        model, tokenizer, Dataset.from_list([{"prompt": q.prompt, "answer": q.answer} for q in train]), parse, wanted,
        out=folder / "logs" / cell.name, seed=cell.seed, settings=cell.training(),
    )  # fmt: skip
    return {
        "fingerprint": cell.fingerprint(),
        "settings": cell.settings(),
        "task": cell.task.name,
        "start": cell.start.name,
        "seed": cell.seed,
        "first_step": step,
        "evaluation": evaluation,
        "wanted": wanted,
        "wanted_in_4096": round(evaluation["format_shares"].get(wanted, 0.0) * PROMPTS * SAMPLES_PER_PROMPT),
        "chance_of_json": chance,
        **asdict(continued),
        "train_cpu_seconds": round(time.process_time() - started, 2),
        "evaluate_cpu_seconds": round(started - began, 2),
        "packages": versions(),
        "machine": {"system": platform.platform(), "processor": platform.machine(), "threads": 1},
    }


def _started(cell: Second, folder: Path) -> tuple[Any, Result, int | None]:
    """A fresh model with the weights of the start, what it does on held-out prompts, and the step of the first act."""
    base_model, tokenizer = base(cell.task.base)
    if cell.start.arm is None:
        return load_model(base_dir(cell.task.base)), base_evaluation(cell.task, folder)["evaluation"], None
    steps = cell.task.steps
    if cell.start.name == "stopped":
        model, step = _stopped(cell, folder)
        return model, judge(cell.task, model, base_model, tokenizer)["evaluation"], step
    model = _with_weights(cell.first(cell.start.arm), folder, steps)
    if cell.start.name == "suppressed":
        lost = _with_weights(cell.first("unprotected"), folder, steps)
        train, held = split_questions()
        # Where none was sampled, the exact chance says how rare it is.
        chance = max(
            _result(cell.first("unprotected"), folder)["evaluation"]["format_shares"].get(WANTED, 0.0),
            chance_of_json(lost, tokenizer, held_out_sample(held, PROMPTS)),
        )
        suppress(model, tokenizer, train, parse, chance=chance, seed=cell.seed)
        return model, judge(cell.task, model, base_model, tokenizer)["evaluation"], steps
    return model, _result(cell.first(cell.start.arm), folder)["evaluation"], steps


def _stopped(cell: Second, folder: Path) -> tuple[Any, int]:
    """The unprotected arm at the first kept step at which it is as right as the protected one is at its end."""
    _, tokenizer = base(cell.task.base)
    accuracy = _result(cell.first("protect"), folder)["evaluation"]["accuracy"]
    for step in range(SNAPSHOT_EVERY_STEPS, cell.task.steps + 1, SNAPSHOT_EVERY_STEPS):
        model = _with_weights(cell.first("unprotected"), folder, step)
        if held_out(model, tokenizer, PROMPTS, ACCURACY_SAMPLES_PER_PROMPT, EVALUATION_SEED)["accuracy"] >= accuracy:
            break
    return model, step


def _with_weights(first: First, folder: Path, step: int) -> Any:
    from safetensors.torch import load_file

    # A fresh model: a copy of a trained one still computes with the weights of the original.
    model = load_model(base_dir(first.task.base))
    model.load_state_dict(load_file(first.weights(folder, step)))
    return model


def _result(first: First, folder: Path) -> Result:
    return finished([first], folder)[first.name]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m studies.second_act",
        description="Measures what narrowing costs once the requirement changes.",
    )
    parser.add_argument("--tasks", help=f"of {', '.join(task.name for task in PLAN.tasks)} (default: all)")
    parser.add_argument("--seeds", help=f"comma-separated (default {','.join(map(str, PLAN.seeds))})")
    parser.add_argument("--quick", action="store_true", help="a few steps from each start: whether all of it works")
    add_study_options(parser, CELLS_DIR, REPORT_DIR)
    options = parser.parse_args(argv)
    plan = QUICK if options.quick else PLAN
    cells, out = places(options, CELLS_DIR, REPORT_DIR)
    tasks = [task for task in plan.tasks if not options.tasks or task.name in options.tasks.split(",")]
    seeds = [int(seed) for seed in options.seeds.split(",")] if options.seeds else list(plan.seeds)

    firsts: list[Result] = []
    seconds: list[Result] = []
    # Seed by seed, so that a stopped study leaves whole comparisons.
    for seed, task in ((seed, task) for seed in seeds for task in tasks):
        wanted = plan.seconds(task, seed)
        arms = [First(task=task, arm=ARMS[arm], seed=seed) for arm in ("protect", "unprotected", "marginal")]
        if options.only_report:
            firsts += finished(arms, cells).values()
            seconds += finished(wanted, cells).values()
            continue
        firsts += run_all(train_first, arms, cells, options.jobs).values()
        seconds += run_all(train_second, wanted, cells, options.jobs).values()
    if not seconds:
        print("There is no finished run to report on.", file=sys.stderr)
        return 2
    print(write_page(out, firsts, seconds))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
