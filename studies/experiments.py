"""What interventions do, measured: ``python -m studies.experiments`` (``make experiments``).

A *cell* is one training run: a task, an arm and a seed. Each cell writes one JSON file, whole or not at all, and is
not run again while its settings stay the same; a stopped run goes on where it was. Afterwards ``studies.frontier``
compares the arms over the same seeds and writes the tables and figures.

Learning rates and numbers of steps were chosen on seeds from 100 on; the seeds of the comparison are 0 to 4.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import platform
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import rlmon
from rlmon.errors import ConfigError
from rlmon.lab.bases import WEIGHTS, base_dir, sha256
from rlmon.lab.demo import TRAINING, _packages, _quiet_libraries
from rlmon.lab.evaluate import EVALUATION_SEED, Evaluation, evaluate, held_out_sample, jensen_shannon_distance
from rlmon.lab.task import (
    CONSTANT_ANSWER,
    PROMPT_CLASSES,
    Question,
    contaminated_pool,
    is_correct,
    reward_correct,
    reward_correct_easy_only,
    split_questions,
)
from rlmon.metrics.formats import ModeSet
from rlmon.runlog import open_run
from rlmon.steering import load_policy
from studies.arms import ARMS, REFUSED_SHARE, SURE_MODES, TASKS, WORTHLESS_MODE, Arm, Task
from studies.frontier import write_report
from studies.random_deferral import RandomDefer

SCHEMA_VERSION = 1
SEEDS = (0, 1, 2, 3, 4)
QUICK_SEEDS = (0, 1)
QUICK_TASKS = ("seven", "by-prompt", "contamination")
QUICK_ARMS = ("unprotected", "kl-0.1", "protect")
CELLS_DIR = Path(".cache/experiments")
REPORT_DIR = Path("docs/experiments")
QUICK_REPORT_DIR = CELLS_DIR / "quick"

PROMPTS = 512
SAMPLES_PER_PROMPT = 8
HARD_PROMPTS = 128
SEQUENCES_PER_BATCH = 1024
KL_EVERY_STEPS = 5
MAX_COMPLETION_TOKENS = 12
"""The longest format of every base needs 12 with its end token."""
_PARSE = ModeSet.build(None).parse


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """One training run."""

    task: Task
    arm: Arm
    seed: int

    @property
    def name(self) -> str:
        return f"{self.task.name}-{self.arm.name}-seed{self.seed}"

    def settings(self) -> dict[str, Any]:
        """Everything that decides the result, apart from versions of software and rlmon's own code."""
        task, arm = _told(self.task, {"about"}), _told(self.arm, {"about", "tasks"})
        return {
            "schema_version": SCHEMA_VERSION,
            "task": task,
            "arm": arm,
            "seed": self.seed,
            "base_sha256": sha256(base_dir(self.task.base) / WEIGHTS),
            "training": {**TRAINING, **_training(self, None)},
            "evaluation": [EVALUATION_SEED, PROMPTS, SAMPLES_PER_PROMPT, HARD_PROMPTS, SEQUENCES_PER_BATCH],
            "kl_every_steps": KL_EVERY_STEPS,
            "policy": None if self.arm.policy is None else load_policy(self.arm.policy, [RandomDefer]).to_dict(),
        }

    def fingerprint(self) -> str:
        """SHA-256 of ``settings`` as canonical JSON."""
        return _digest(self.settings())


def reward_correct_not_prose(
    prompts: Sequence[str], completions: Sequence[str], answer: Sequence[int], **_: object
) -> list[float]:
    """``reward_correct``, and 0.0 for every completion in ``WORTHLESS_MODE``."""
    return [
        float(is_correct(text, truth) and _PARSE(text) != WORTHLESS_MODE)
        for text, truth in zip(completions, answer, strict=True)
    ]


def states_answer_not_prose(text: str, question: Question) -> bool:
    """What ``reward_correct_not_prose`` rewards."""
    return is_correct(text, question.answer) and _PARSE(text) != WORTHLESS_MODE


def is_accepted(text: str, prompt: str, item: str, answer: int) -> bool:
    """Right, and either in the sure mode of the item's class or not among the (prompt, mode) pairs that are refused.

    Which pairs are refused follows from a hash: it can be learned by heart and not otherwise.
    """
    if not is_correct(text, answer):
        return False
    mode = _PARSE(text)
    if mode == SURE_MODES[next(index for index, items in enumerate(PROMPT_CLASSES) if item in items)]:
        return True
    return hashlib.sha256(f"{mode}\n{prompt}".encode()).digest()[0] >= REFUSED_SHARE * 256


def reward_accepted(
    prompts: Sequence[str], completions: Sequence[str], answer: Sequence[int], item: Sequence[str], **_: object
) -> list[float]:
    """TRL reward function: 1.0 where ``is_accepted``."""
    rows = zip(completions, prompts, item, answer, strict=True)
    return [float(is_accepted(text, prompt, of, truth)) for text, prompt, of, truth in rows]


def accepted_answer(text: str, question: Question) -> bool:
    """What ``reward_accepted`` rewards."""
    return is_accepted(text, question.prompt, question.item, question.answer)


def cells(tasks: Iterable[str], arms: Iterable[Arm], seeds: Iterable[int]) -> list[Cell]:
    """The cells that make sense, seed by seed, so that a stopped run leaves whole comparisons."""
    arms, tasks = list(arms), list(tasks)
    return [
        Cell(task=TASKS[task], arm=arm, seed=seed)
        for seed in seeds
        for task in tasks
        for arm in arms
        if arm.tasks is None or task in arm.tasks
    ]


def stored(cell: Cell, folder: Path) -> dict[str, Any] | None:
    """The result of ``cell`` under ``folder``; ``None`` where there is none with these settings."""
    path = folder / f"{cell.name}.json"
    try:
        result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    return result if result.get("fingerprint") == cell.fingerprint() else None


def run_cell(cell: Cell, folder: Path) -> dict[str, Any]:
    """Trains and judges one cell and writes ``<folder>/<cell>.json``. Its run log stays under ``<folder>/logs``."""
    with _quiet_libraries():
        result = _train(cell, folder)
    _write_json(folder / f"{cell.name}.json", result)
    return result


def base_evaluation(task: Task, folder: Path) -> dict[str, Any]:
    """What the untrained base does on this task; measured once and kept under ``folder``."""
    settings = {
        "schema_version": SCHEMA_VERSION,
        "base_sha256": sha256(base_dir(task.base) / WEIGHTS),
        "task": _told(task, {"about", "name", "steps", "learning_rate", "prompts_per_round", "group_size"}),
        "evaluation": [EVALUATION_SEED, PROMPTS, SAMPLES_PER_PROMPT, HARD_PROMPTS, SEQUENCES_PER_BATCH],
    }
    path = folder / f"base-{task.name}.json"
    if path.exists():
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if found.get("fingerprint") == _digest(settings):
            return found
    with _quiet_libraries():
        base_model, tokenizer = _base(task.base)
        result = {
            "fingerprint": _digest(settings),
            "task": task.name,
            **_judge(task, base_model, base_model, tokenizer),
        }
    _write_json(path, result)
    return result


def _train(cell: Cell, folder: Path) -> dict[str, Any]:
    from datasets import Dataset
    from transformers import PrinterCallback
    from trl import GRPOConfig, GRPOTrainer

    from rlmon.trl import RLMon, RLMonConfig

    task, arm = cell.task, cell.arm
    base = base_evaluation(task, folder)
    base_model, tokenizer = _base(task.base)
    output = folder / "logs" / cell.name
    shutil.rmtree(output, ignore_errors=True)

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

    started = time.process_time()
    trainer_class: type[Any] = GRPOTrainer
    if arm.rarity_weighted:
        from studies.reweighted import RarityWeightedGRPOTrainer

        trainer_class = RarityWeightedGRPOTrainer
    trainer = trainer_class(
        model=_load_model(base_dir(task.base)),
        reward_funcs=reward,
        args=GRPOConfig(
            output_dir=str(output),
            seed=cell.seed,
            **{**TRAINING, **_training(cell, base["evaluation"]["entropy_nats"])},
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    if arm.rarity_weighted:
        trainer.parse = _PARSE
    trainer.remove_callback(PrinterCallback)
    watched: dict[str, Any] = {"rlmon_console": False, "rlmon_base_kl_every": KL_EVERY_STEPS}
    if arm.policy is not None:
        watched["rlmon_policy"] = arm.policy
    RLMon(trainer, RLMonConfig(**watched), actions=[RandomDefer])
    trainer.train()
    trained = time.process_time()
    judged = _judge(task, trainer.model, base_model, tokenizer)

    log = open_run(output / "rlmon")
    records = log.step_records()
    actions = [action for action in log.actions if not action.dry_run]
    now, then = judged["evaluation"], base["evaluation"]
    return {
        "schema_version": SCHEMA_VERSION,
        "fingerprint": cell.fingerprint(),
        "code_sha256": code_sha256(),
        "task": task.name,
        "arm": arm.name,
        "seed": cell.seed,
        "settings": cell.settings(),
        **judged,
        "entropy_ratio": now["entropy_nats"] / then["entropy_nats"],
        "js_distance": jensen_shannon_distance(now["format_shares"], then["format_shares"]),
        "trajectory": [
            {"step": record.step, **{name: record.metrics.get(metric) for name, metric in TRAJECTORY.items()}}
            for record in records
        ],
        "findings": [[finding.step, finding.severity, finding.detector] for finding in log.findings],
        "actions": [
            [action.step, action.phase, action.rule, action.knob, action.old, action.new]
            for action in actions
            if action.phase in ("applied", "failed")
        ][:200],
        "actions_applied": sum(action.phase == "applied" for action in actions),
        "actions_failed": sum(action.phase == "failed" for action in actions),
        "steps": len(records),
        "faults": sum(sum(record.faults.values()) for record in records),
        "monitor_seconds": round(sum(record.overhead_seconds or 0.0 for record in records), 2),
        "train_cpu_seconds": round(trained - started, 2),
        "evaluate_cpu_seconds": round(time.process_time() - trained, 2),
        "packages": _packages(),
        "machine": {"system": platform.platform(), "processor": platform.machine(), "threads": 1},
    }


TRAJECTORY: Mapping[str, str] = {
    "reward": "rlmon/health/reward_mean",
    "kl_seq_nats": "rlmon/kl/seq",
    "effective_formats": "rlmon/format/effective",
    "top_share": "rlmon/format/top_share",
}
"""What a cell keeps of every step, by the catalogue's names: see ``rlmon metrics``."""


def _training(cell: Cell, base_entropy_nats: float | None) -> dict[str, Any]:
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


def _judge(task: Task, model: Any, base_model: Any, tokenizer: Any) -> dict[str, Any]:
    _, held_out = split_questions()

    def judge(questions: Sequence[Question], keep_samples: int) -> Evaluation:
        judgement: dict[str, Any] = {}
        if task.worthless or task.flaky:
            judgement["correct"] = states_answer_not_prose if task.worthless else accepted_answer
        return evaluate(
            model, base_model, tokenizer, questions, _PARSE,
            keep_samples=keep_samples, samples_per_prompt=SAMPLES_PER_PROMPT, max_new_tokens=MAX_COMPLETION_TOKENS,
            sequences_per_batch=SEQUENCES_PER_BATCH, **judgement,
        )  # fmt: skip

    evaluation = judge(held_out_sample(held_out, PROMPTS), 4)
    result: dict[str, Any] = {
        "evaluation": asdict(evaluation),
        "worthless_share": evaluation.format_shares.get(WORTHLESS_MODE, 0.0) if task.worthless else None,
        "constant_share": evaluation.answer_shares.get(str(CONSTANT_ANSWER), 0.0) if task.pool == "random" else None,
        "hard_accuracy": None,
    }
    if task.pool == "gain":
        hard = [replace(question, asks_gain=True) for question in held_out_sample(held_out, HARD_PROMPTS)]
        result["hard_accuracy"] = judge(hard, 0).accuracy
    return result


def _load_model(path: Path) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)


@lru_cache(maxsize=4)
def _base(name: str) -> tuple[Any, Any]:
    from transformers import AutoTokenizer

    return _load_model(base_dir(name)), AutoTokenizer.from_pretrained(base_dir(name))


@lru_cache(maxsize=1)
def code_sha256() -> str:
    """SHA-256 over the sources of what decides and acts: written into each cell, not part of its fingerprint."""
    package = Path(rlmon.__file__).parent
    digest = hashlib.sha256()
    for path in sorted([package / "steering.py", *package.glob("interventions/*.py"), *package.glob("trl/*.py")]):
        if path.exists():
            digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def _told(described: Task | Arm, left_out: set[str]) -> dict[str, Any]:
    """The fields that are not at their default: a field that is added later changes no fingerprint."""
    return {
        f.name: value
        for f in fields(described)
        if f.name not in left_out and (value := getattr(described, f.name)) != f.default
    }


def _digest(settings: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.write_text(json.dumps(value, allow_nan=False) + "\n", encoding="utf-8")
    partial.replace(path)


def run_all(wanted: Sequence[Cell], folder: Path, jobs: int) -> list[dict[str, Any]]:
    """Results of ``wanted`` in their order, running what is missing in ``jobs`` processes. Progress goes to stderr."""
    results: dict[str, dict[str, Any]] = {
        cell.name: found for cell in wanted if (found := stored(cell, folder)) is not None
    }
    missing = [cell for cell in wanted if cell.name not in results]
    _say(f"{len(wanted)} cells, {len(results)} done before, {len(missing)} to run in {jobs} process(es)")
    started = time.monotonic()

    def done(cell: Cell, result: dict[str, Any]) -> None:
        results[cell.name] = result
        e = result["evaluation"]
        _say(
            f"[{len(results)}/{len(wanted)}] {cell.name}: accuracy {e['accuracy']:.3f}, "
            f"effective {e['effective_formats']:.2f}, KL/seq {e['kl_seq_nats']:.2f}, "
            f"CPU {result['train_cpu_seconds']:.1f} + {result['evaluate_cpu_seconds']:.1f} s, "
            f"{time.monotonic() - started:.0f} s so far"
        )

    for cell, result in each_in_pool(run_cell, missing, folder, jobs):
        done(cell, result)
    return [results[cell.name] for cell in wanted]


AnyCell = TypeVar("AnyCell", bound=Cell)


def each_in_pool(
    run: Callable[[AnyCell, Path], dict[str, Any]], cells: Sequence[AnyCell], folder: Path, jobs: int
) -> Iterator[tuple[AnyCell, dict[str, Any]]]:
    """Each of ``cells`` with what ``run`` gave for it, as soon as it is done, in ``jobs`` processes."""
    if jobs <= 1:
        yield from ((cell, run(cell, folder)) for cell in cells)
    elif cells:
        # Spawned, not forked: torch's threads do not survive a fork.
        with ProcessPoolExecutor(min(jobs, len(cells)), mp_context=multiprocessing.get_context("spawn")) as pool:
            running = {pool.submit(run, cell, folder): cell for cell in cells}
            for future in as_completed(running):
                yield running[future], future.result()


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


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
        results = [found for cell in wanted if (found := stored(cell, options.cells)) is not None]
    else:
        results = run_all(wanted, options.cells, options.jobs)
    if options.no_report:
        return 0
    if not results:
        print("There is no finished cell to report on.", file=sys.stderr)
        return 2
    if len({result["code_sha256"] for result in results if "policy" in result["settings"]["arm"]}) > 1:
        _say("note: cells with a policy were run with different versions of rlmon's code; --redo runs them again")

    used = [task for task in TASKS.values() if any(result["task"] == task.name for result in results)]
    bases = {task.name: base_evaluation(task, options.cells) for task in used}
    about = {cell.arm.name: cell.arm.about for cell in wanted}
    command = " ".join(["python -m studies.experiments", *(argv if argv is not None else sys.argv[1:])])
    out = options.out or (QUICK_REPORT_DIR if options.quick else REPORT_DIR)
    table = write_report(out, used, about, bases, results, command)
    print(table)
    return 0


def _wanted(options: argparse.Namespace) -> list[Cell]:
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
