"""What interventions do, measured: ``python -m studies.experiments`` (``make experiments``).

A *cell* is one training run (``studies.cells``): a task, an arm and a seed. Afterwards ``studies.frontier`` compares
the arms over the same seeds and writes the tables and figures.

Learning rates and numbers of steps were chosen on seeds from 100 on; the seeds of the comparison are 0 to 4.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlmon.controller import load_policy
from rlmon.errors import ConfigError
from rlmon.lab.demo import TRAINING
from rlmon.lab.task import reward_correct, split_questions
from rlmon.statistics import js_distance
from studies.arms import ARMS, TASKS, Arm
from studies.cells import (
    KL_EVERY_STEPS,
    MAX_COMPLETION_TOKENS,
    OWN_ACTIONS,
    SEEDS,
    Cell,
    base_evaluation,
    evaluation_settings,
    finished,
    keep,
    run_all,
    say,
    trained,
)
from studies.frontier import write_report
from studies.rewards import reward_accepted, reward_correct_not_prose
from studies.texts import contaminated_pool, reward_correct_easy_only

QUICK_SEEDS = (0, 1)
QUICK_TASKS = ("seven", "by-prompt", "contamination")
QUICK_ARMS = ("unprotected", "kl-0.1", "protect")
CELLS_DIR = Path(".cache/experiments")
REPORT_DIR = Path("docs/experiments")
QUICK_REPORT_DIR = CELLS_DIR / "quick"


@dataclass(frozen=True, kw_only=True, slots=True)
class Experiment(Cell):
    """One training run of an arm on a task."""

    def settings(self) -> dict[str, Any]:
        policy = self.arm.policy
        return {
            **Cell.settings(self),
            "training": {**TRAINING, **training(self, None)},
            "evaluation": evaluation_settings(),
            "kl_every_steps": KL_EVERY_STEPS,
            "policy": None if policy is None else load_policy(policy, OWN_ACTIONS).to_dict(),
        }


def jensen_shannon_distance(shares: Mapping[str, float], base_shares: Mapping[str, float]) -> float | None:
    """Distance of two distributions over names, in [0, 1]; see ``rlmon.statistics.js_distance``."""
    names = sorted({*shares, *base_shares})
    distance = float(js_distance(*([of.get(name, 0.0) for name in names] for of in (shares, base_shares))))
    return None if math.isnan(distance) else distance


def cells(tasks: Iterable[str], arms: Iterable[Arm], seeds: Iterable[int]) -> list[Experiment]:
    """The cells that make sense, seed by seed, so that a stopped run leaves whole comparisons."""
    arms, tasks = list(arms), list(tasks)
    return [
        Experiment(task=TASKS[task], arm=arm, seed=seed)
        for seed in seeds
        for task in tasks
        for arm in arms
        if arm.tasks is None or task in arm.tasks
    ]


def run_cell(cell: Experiment, folder: Path) -> dict[str, Any]:
    """Trains and judges one cell and writes ``<folder>/<cell>.json``."""
    return keep(cell, folder, lambda: _train(cell, folder))


def _train(cell: Experiment, folder: Path) -> dict[str, Any]:
    from trl import GRPOConfig, GRPOTrainer

    task, arm = cell.task, cell.arm
    before = base_evaluation(task, folder)["evaluation"]
    if task.pool is None:
        train, _ = split_questions()
        rows: list[dict[str, Any]] = [{"prompt": q.prompt, "answer": q.answer, "item": q.item} for q in train]
    else:
        rows = contaminated_pool(cell.seed, learnable=task.pool == "gain")
    reward: Callable[..., Any] = reward_correct
    if task.worthless:
        reward = reward_correct_not_prose
    elif task.flaky:
        reward = reward_accepted
    elif arm.oracle:
        reward = reward_correct_easy_only
    trainer: type[Any] = GRPOTrainer
    if arm.rarity_weighted:
        from studies.reweighted import RarityWeightedGRPOTrainer

        trainer = RarityWeightedGRPOTrainer

    def args(output: str) -> Any:
        settings = {**TRAINING, **training(cell, before["entropy_nats"])}
        return GRPOConfig(output_dir=output, seed=cell.seed, **settings)

    run = trained(cell, folder, trainer=trainer, args=args, rows=rows, reward=reward)
    actions = [action for action in run.log.actions if not action.dry_run]
    after = run.judged["evaluation"]
    return {
        **run.result,
        "task": task.name,
        **run.judged,
        "entropy_ratio": after["entropy_nats"] / before["entropy_nats"],
        "js_distance": jensen_shannon_distance(after["format_shares"], before["format_shares"]),
        "trajectory": [
            {"step": record.step, **{name: record.metrics.get(metric) for name, metric in TRAJECTORY.items()}}
            for record in run.records
        ],
        "actions": [
            [action.step, action.phase, action.rule, action.knob, action.old, action.new]
            for action in actions
            if action.phase in ("applied", "failed")
        ][:200],
        "actions_applied": sum(action.phase == "applied" for action in actions),
        "actions_failed": sum(action.phase == "failed" for action in actions),
        "steps": len(run.records),
    }


TRAJECTORY: Mapping[str, str] = {
    "reward": "rlmon/health/reward_mean",
    "kl_seq_nats": "rlmon/kl/seq",
    "effective_formats": "rlmon/format/effective",
    "top_share": "rlmon/format/top_share",
}
"""What a cell keeps of every step, by the catalogue's names: see ``rlmon metrics``."""


def training(cell: Cell, base_entropy_nats: float | None) -> dict[str, Any]:
    """Settings of ``GRPOConfig`` in which this cell differs from the demo's."""
    task, arm = cell.task, cell.arm
    settings: dict[str, Any] = {
        "max_steps": task.steps,
        "per_device_train_batch_size": task.prompts_per_round * task.group_size,
        "num_generations": task.group_size,
        "max_completion_length": MAX_COMPLETION_TOKENS,
        "learning_rate": task.learning_rate,
        "beta": arm.beta,
        "logging_steps": 50,
    }
    if arm.entropy_target is not None:
        settings |= {"use_adaptive_entropy": True, "entropy_coef_delta": 0.01}
        if base_entropy_nats is not None:
            settings["entropy_target"] = arm.entropy_target * base_entropy_nats
    return settings


def _chosen(names: str | None, known: Iterable[str], what: str) -> list[str]:
    known = list(known)
    if names is None:
        return known
    chosen = [name.strip() for name in names.split(",") if name.strip()]
    if unknown := [name for name in chosen if name not in known]:
        raise ConfigError(f"Unknown {what} {', '.join(unknown)}; there are {', '.join(known)}.")
    return chosen


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m studies.experiments", description="Trains every arm on every task and compares them."
    )
    parser.add_argument("--quick", action="store_true", help="three tasks, three arms, two seeds: under 10 CPU-minutes")
    parser.add_argument("--jobs", type=int, default=1, help="processes (default 1), one thread each")
    parser.add_argument("--tasks", help=f"comma-separated, of {', '.join(TASKS)}")
    parser.add_argument("--arms", help=f"comma-separated, of {', '.join(ARMS)} and every --policy")
    parser.add_argument("--seeds", help=f"comma-separated (default {','.join(map(str, SEEDS))})")
    parser.add_argument(
        "--policy", action="append", default=[], metavar="NAME=FILE", help="one more arm: rlmon's policy in this file"
    )
    parser.add_argument("--cells", type=Path, default=CELLS_DIR, help=f"results of cells (default {CELLS_DIR})")
    parser.add_argument("--out", type=Path, help=f"tables and figures (default {REPORT_DIR}; quick {QUICK_REPORT_DIR})")
    parser.add_argument("--redo", action="store_true", help="run the chosen cells again even where they are done")
    parser.add_argument("--only-report", action="store_true", help="compare what is done, train nothing")
    parser.add_argument("--no-report", action="store_true", help="train only")
    options = parser.parse_args(argv)
    try:
        wanted = _wanted(options)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2

    if options.redo:
        for cell in wanted:
            (options.cells / f"{cell.name}.json").unlink(missing_ok=True)
    if options.only_report:
        by_name = finished(wanted, options.cells)
    else:
        by_name = run_all(run_cell, wanted, options.cells, options.jobs)
    results = [by_name[cell.name] for cell in wanted if cell.name in by_name]
    if options.no_report:
        return 0
    if not results:
        print("There is no finished cell to report on.", file=sys.stderr)
        return 2
    if len({result["code_sha256"] for result in results if "policy" in result["settings"]["arm"]}) > 1:
        say("note: cells with a policy were run with different versions of rlmon's code; --redo runs them again")

    used = [task for task in TASKS.values() if any(result["task"] == task.name for result in results)]
    bases = {task.name: base_evaluation(task, options.cells) for task in used}
    about = {cell.arm.name: cell.arm.about for cell in wanted}
    command = " ".join(["python -m studies.experiments", *(argv if argv is not None else sys.argv[1:])])
    out = options.out or (QUICK_REPORT_DIR if options.quick else REPORT_DIR)
    table = write_report(out, used, about, bases, results, command)
    print(table)
    return 0


def _wanted(options: argparse.Namespace) -> list[Experiment]:
    arms = dict(ARMS)
    for given in options.policy:
        name, _, path = given.partition("=")
        if not name or not Path(path).is_file():
            raise ConfigError(f"--policy takes NAME=FILE, got {given!r}.")
        import yaml

        rules = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        arms[name] = Arm(name=name, policy=rules, about=f"policy {Path(path).name}")
    default_arms = ",".join([*QUICK_ARMS, *(given.partition("=")[0] for given in options.policy)])
    chosen = [arms[name] for name in _chosen(options.arms or (default_arms if options.quick else None), arms, "arm")]
    tasks = _chosen(options.tasks or (",".join(QUICK_TASKS) if options.quick else None), TASKS, "task")
    try:
        seeds = [int(seed) for seed in options.seeds.split(",")] if options.seeds else None
    except ValueError as error:
        raise ConfigError(f"--seeds takes integers, got {options.seeds!r}.") from error
    return cells(tasks, chosen, seeds or (QUICK_SEEDS if options.quick else SEEDS))


if __name__ == "__main__":
    raise SystemExit(main())
