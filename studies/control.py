"""What holding formats costs in accuracy, against what those formats can reach: ``python -m studies.control`` (``make
control``).

Two arms train the lab's arithmetic task, and runs that are rewarded in one format only say what each format can reach
(``studies.control_results``). Finished runs are kept and not run again while their settings stay the same.

The compared seeds are 200 to 209, on which nothing was chosen: the settings are those of ``studies.experiments``. On
some of them two arms more are compared with ``protect`` (``studies.control_arms``).
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlmon.controller import load_policy
from rlmon.lab.demo import TRAINING
from rlmon.lab.evaluate import EVALUATION_SEED, held_out_sample
from rlmon.lab.libraries import quiet_libraries
from rlmon.lab.sampling import draws
from rlmon.lab.task import FORMATS, is_correct, reward_correct, split_questions
from studies.arms import ARMS, TASKS, Arm
from studies.cells import (
    MAX_COMPLETION_TOKENS,
    OWN_ACTIONS,
    SEQUENCES_PER_BATCH,
    Cell,
    Result,
    add_study_options,
    base,
    base_evaluation,
    digest,
    evaluation_settings,
    finished,
    keep,
    kept,
    places,
    run_all,
    trained,
    write_json,
)
from studies.control_arms import TRIED
from studies.control_page import write_page
from studies.control_results import in_format, plateaued
from studies.experiments import training
from studies.rewards import parse, reward_correct_in

CELLS_DIR = Path(".cache/control")
REPORT_DIR = Path("docs/experiments")
COMPARED = ("unprotected", "protect")
ALONG_THE_WAY_SEED = EVALUATION_SEED + 1
KL_EVERY_STEPS = 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Run(Cell):
    """One training run."""

    only: str | None = None
    """The only format that is rewarded; the run ends at its plateau. Unset: the task's own reward, to the end."""
    prompts: int
    along_the_way: int
    """Held-out samples of each prompt while it trains."""
    at_the_end: int
    every: int
    """Steps between two evaluations."""

    @property
    def name(self) -> str:
        return f"{self.arm.name}-seed{self.seed}"

    def settings(self) -> dict[str, Any]:
        policy = self.arm.policy
        return {
            **Cell.settings(self),
            "policy": None if policy is None else load_policy(policy, OWN_ACTIONS).to_dict(),
            "only": self.only,
            "training": {**TRAINING, **training(self, None)},
            "evaluation": [*evaluation_settings(), self.prompts, self.along_the_way, self.at_the_end, self.every],
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What is run: the study, or a small part of it."""

    steps: int = 360
    single_steps: int = 720
    """Where a single-format run ends that has no plateau before."""
    seeds: tuple[int, ...] = tuple(range(200, 210))
    tried_seeds: tuple[int, ...] = tuple(range(200, 204))
    single_seeds: tuple[int, ...] = (300,)
    formats: tuple[str, ...] = FORMATS
    prompts: int = 1024
    along_the_way: int = 2
    at_the_end: int = 16
    every: int = 20
    single_every: int = 40

    def singles(self) -> list[Run]:
        """Runs that are rewarded in one format only."""
        return [
            self._run(Arm(name=f"only-{mode}", about=f"rewarded in {mode} only"), seed, only=mode)
            for seed in self.single_seeds
            for mode in self.formats
        ]

    def compared(self) -> list[Run]:
        """Seed by seed, so that a stopped study leaves whole comparisons."""
        return [self._run(ARMS[arm], seed) for seed in self.seeds for arm in COMPARED]

    def tried(self) -> list[Run]:
        """What is compared with ``protect`` beside it, on fewer seeds."""
        return [self._run(arm, seed) for seed in self.tried_seeds for arm in TRIED.values()]

    def _run(self, arm: Arm, seed: int, only: str | None = None) -> Run:
        steps, every = (self.steps, self.every) if only is None else (self.single_steps, self.single_every)
        task = dataclasses.replace(TASKS["arithmetic"], steps=steps)
        return Run(
            task=task, arm=arm, seed=seed, only=only, prompts=self.prompts, along_the_way=self.along_the_way,
            at_the_end=self.at_the_end, every=every,
        )  # fmt: skip


PLAN = Plan()
QUICK = Plan(
    steps=20, single_steps=40, seeds=(0, 1), tried_seeds=(0, 1), formats=("prose", "python"), prompts=64,
    along_the_way=1, at_the_end=2, every=5, single_every=10,
)  # fmt: skip


def held_out(model: Any, tokenizer: Any, prompts: int, samples: int, seed: int) -> Result:
    """Accuracy, format shares and accuracy in each format of ``samples`` completions of each held-out prompt."""
    questions = held_out_sample(split_questions()[1], prompts)
    was_training = model.training
    model.eval()
    texts = [
        text
        for drawn in draws(
            model, tokenizer, [question.prompt for question in questions], max_new_tokens=MAX_COMPLETION_TOKENS,
            sequences_per_batch=SEQUENCES_PER_BATCH, seed=seed, copies=samples,
        )
        for text in drawn.texts
    ]  # fmt: skip
    model.train(was_training)
    written: dict[str, int] = {}
    right: dict[str, int] = {}
    for index, text in enumerate(texts):
        mode = parse(text)
        written[mode] = written.get(mode, 0) + 1
        right[mode] = right.get(mode, 0) + is_correct(text, questions[index // samples].answer)
    modes = sorted(written, key=lambda mode: -written[mode])
    return {
        "completions": len(texts),
        "accuracy": sum(right.values()) / len(texts),
        "format_shares": {mode: written[mode] / len(texts) for mode in modes},
        "accuracy_by_format": {mode: right[mode] / written[mode] for mode in modes},
    }


def run_cell(run: Run, folder: Path) -> Result:
    """Trains and judges one run and writes ``<folder>/<run>.json``."""
    return keep(run, folder, lambda: _train(run, folder))


def _train(run: Run, folder: Path) -> Result:
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    _, tokenizer = base(run.task.base)
    curve: list[Result] = []
    best: dict[str, Any] = {}
    best_step = 0
    evaluating = 0.0

    class Along(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
            nonlocal evaluating, best, best_step
            if state.global_step % run.every:
                return
            began = time.process_time()
            found = held_out(model, tokenizer, run.prompts, run.along_the_way, ALONG_THE_WAY_SEED)
            curve.append({"step": state.global_step, **found})
            evaluating += time.process_time() - began
            if run.only is None:
                return
            judged = in_format(curve, run.only)
            if not best or (judged and max(judged, key=lambda at: at[1])[0] == state.global_step):
                best = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
                best_step = state.global_step
            if plateaued(curve, run.only):
                control.should_training_stop = True

    found = trained(
        run,
        folder,
        trainer=GRPOTrainer,
        args=lambda output: GRPOConfig(output_dir=output, seed=run.seed, **{**TRAINING, **training(run, None)}),
        rows=[{"prompt": q.prompt, "answer": q.answer} for q in split_questions()[0]],
        reward=reward_correct if run.only is None else reward_correct_in(run.only),
        kl_every_steps=KL_EVERY_STEPS,
        prepare=lambda built: built.add_callback(Along()),
        away=lambda: evaluating,
    )
    began = time.process_time()
    model = found.trainer.model
    result = {
        **found.result,
        "only": run.only,
        "steps": len(found.records),
        "plateaued": run.only is not None and plateaued(curve, run.only),
        "evaluation": found.judged["evaluation"],
        "held_out": held_out(model, tokenizer, run.prompts, run.at_the_end, EVALUATION_SEED),
        "curve": curve,
        "best": None,
    }
    if best:
        model.load_state_dict(best)
        again = held_out(model, tokenizer, run.prompts, run.at_the_end, EVALUATION_SEED)
        result["best"] = {"step": best_step, **again}
    result["evaluate_cpu_seconds"] = round(result["evaluate_cpu_seconds"] + time.process_time() - began, 2)
    return result


def of_base(run: Run, folder: Path) -> Result:
    """What the untrained base does; measured once and kept under ``folder``."""
    settings = {"base_sha256": run.settings()["base_sha256"], "samples": [run.prompts, run.at_the_end]}
    path = folder / "base.json"
    if (found := kept(path, digest(settings))) is None:
        with quiet_libraries():
            model, tokenizer = base(run.task.base)
            measured = held_out(model, tokenizer, run.prompts, run.at_the_end, EVALUATION_SEED)
        found = {"fingerprint": digest(settings), **measured}
        write_json(path, found)
    return {**found, "evaluation": base_evaluation(run.task, folder)["evaluation"]}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m studies.control", description="Measures what holding formats costs within those formats."
    )
    parser.add_argument("--quick", action="store_true", help="a few steps of each kind of run: whether all of it works")
    add_study_options(parser, CELLS_DIR, REPORT_DIR)
    options = parser.parse_args(argv)
    plan = QUICK if options.quick else PLAN
    cells, out = places(options, CELLS_DIR, REPORT_DIR)

    def results(runs: Sequence[Run]) -> list[Result]:
        found = finished(runs, cells) if options.only_report else run_all(run_cell, runs, cells, options.jobs)
        return list(found.values())

    singles, compared = results(plan.singles()), results([*plan.compared(), *plan.tried()])
    if not singles or not compared:
        missing = "compared" if singles else "single-format"
        print(f"There is no {missing} run yet: run it without --only-report.", file=sys.stderr)
        return 2
    command = "python -m studies.control" + (" --quick" if options.quick else "")
    print(write_page(out, command, of_base(plan.compared()[0], cells), singles, compared))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
