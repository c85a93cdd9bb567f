"""Cells: training runs of the lab's tasks, each run once, judged on held-out prompts and kept as one JSON file.

A cell is not run again while its settings stay the same, so that a stopped study goes on where it was.
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
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import rlmon
from rlmon.extensions import Extensions
from rlmon.lab.bases import WEIGHTS, base_dir, sha256
from rlmon.lab.evaluate import EVALUATION_SEED, Evaluation, evaluate, held_out_sample
from rlmon.lab.libraries import quiet_libraries, versions
from rlmon.lab.task import Question, split_questions
from rlmon.records import StepRecord
from rlmon.runlog import Run as RunLog
from rlmon.runlog import open_run
from studies.arms import WORTHLESS_MODE, Arm, Task
from studies.random_deferral import RandomDefer
from studies.rewards import accepted_answer, parse, states_answer_not_prose
from studies.texts import CONSTANT_ANSWER
from studies.tilted_marginal import TiltedMarginal
from studies.virtual_wrong import VirtualWrong

SCHEMA_VERSION = 1
SEEDS = (0, 1, 2, 3, 4)
PROMPTS = 512
SAMPLES_PER_PROMPT = 8
HARD_PROMPTS = 128
SEQUENCES_PER_BATCH = 1024
KL_EVERY_STEPS = 5
MAX_COMPLETION_TOKENS = 12
"""The longest format of every base needs 12 with its end token."""
OWN_ACTIONS = Extensions(actions=[RandomDefer, VirtualWrong, TiltedMarginal])

Result = dict[str, Any]


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
        return {
            "schema_version": SCHEMA_VERSION,
            "task": told(self.task, {"about"}),
            "arm": told(self.arm, {"about", "tasks"}),
            "seed": self.seed,
            "base_sha256": sha256(base_dir(self.task.base) / WEIGHTS),
        }

    def fingerprint(self) -> str:
        """SHA-256 of ``settings`` as canonical JSON."""
        return digest(self.settings())


AnyCell = TypeVar("AnyCell", bound=Cell)


# -- running ---------------------------------------------------------------------------------------------------------


def stored(cell: Cell, folder: Path) -> Result | None:
    """The result of ``cell`` under ``folder``; ``None`` where there is none with these settings."""
    return kept(folder / f"{cell.name}.json", cell.fingerprint())


def finished(wanted: Sequence[Cell], folder: Path) -> dict[str, Result]:
    """Name of a cell to its result: what is stored of ``wanted``."""
    return {cell.name: found for cell in wanted if (found := stored(cell, folder)) is not None}


def run_all(
    run: Callable[[AnyCell, Path], Result], wanted: Sequence[AnyCell], folder: Path, jobs: int
) -> dict[str, Result]:
    """Results of ``wanted`` by name: what is stored, and what ``run`` gives for the rest in ``jobs`` processes.

    Progress goes to stderr.
    """
    results = finished(wanted, folder)
    missing = [cell for cell in wanted if cell.name not in results]
    say(f"{len(wanted)} cells, {len(results)} done before, {len(missing)} to run in {jobs} process(es)")
    started = time.monotonic()
    for cell, result in _in_pool(run, missing, folder, jobs):
        results[cell.name] = result
        say(f"[{len(results)}/{len(wanted)}] {cell.name}: {_shown(result)}, {time.monotonic() - started:.0f} s so far")
    return {cell.name: results[cell.name] for cell in wanted}


def _in_pool(
    run: Callable[[AnyCell, Path], Result], cells: Sequence[AnyCell], folder: Path, jobs: int
) -> Iterator[tuple[AnyCell, Result]]:
    """Each of ``cells`` with what ``run`` gave for it, as soon as it is done."""
    if jobs <= 1:
        yield from ((cell, run(cell, folder)) for cell in cells)
    elif cells:
        # Spawned, not forked: torch's threads do not survive a fork.
        with ProcessPoolExecutor(min(jobs, len(cells)), mp_context=multiprocessing.get_context("spawn")) as pool:
            running = {pool.submit(run, cell, folder): cell for cell in cells}
            for future in as_completed(running):
                yield running[future], future.result()


def _shown(result: Result) -> str:
    found = result["evaluation"]
    alarms = f", WARN {result['warn_round']}, FAIL {result['fail_round']}" if "warn_round" in result else ""
    return (
        f"accuracy {found['accuracy']:.4f}, effective {found['effective_formats']:.2f}, KL/seq "
        f"{found['kl_seq_nats']:.2f}{alarms}, CPU {result['train_cpu_seconds']:.1f} + "
        f"{result['evaluate_cpu_seconds']:.1f} s"
    )


# -- one cell --------------------------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class Trained:
    """A run that was trained, watched and judged."""

    trainer: Any
    log: RunLog
    judged: Result
    records: list[StepRecord]
    result: Result
    """What every cell keeps."""


def trained(
    cell: Cell,
    folder: Path,
    *,
    trainer: type[Any],
    args: Any,
    rows: Sequence[Mapping[str, Any]],
    reward: Callable[..., Any],
    kl_every_steps: int = KL_EVERY_STEPS,
    prepare: Callable[[Any], None] = lambda trainer: None,
    away: Callable[[], float] = lambda: 0.0,
) -> Trained:
    """Train and judge one cell; its run log stays under ``<folder>/logs``.

    Args:
        args: a function of the output folder that gives the trainer's settings.
        prepare: called with the trainer before it trains.
        away: CPU seconds within the training that were spent on evaluations.
    """
    from datasets import Dataset
    from transformers import PrinterCallback

    from rlmon.trl import RLMon

    output = folder / "logs" / cell.name
    shutil.rmtree(output, ignore_errors=True)
    base_model, tokenizer = base(cell.task.base)
    started = time.process_time()
    built = trainer(
        model=load_model(base_dir(cell.task.base)),
        reward_funcs=reward,
        args=args(str(output)),
        train_dataset=Dataset.from_list(list(rows)),
        processing_class=tokenizer,
    )
    built.remove_callback(PrinterCallback)
    watched: dict[str, Any] = {"console": False, "base_kl_every": kl_every_steps, "policy": cell.arm.policy}
    RLMon(built, actions=OWN_ACTIONS.actions, **watched)
    prepare(built)
    built.train()
    ended = time.process_time()
    judged = judge(cell.task, built.model, base_model, tokenizer)
    log = open_run(output / "rlmon")
    records = log.step_records()
    result = {
        "schema_version": SCHEMA_VERSION,
        "fingerprint": cell.fingerprint(),
        "code_sha256": code_sha256(),
        "arm": cell.arm.name,
        "seed": cell.seed,
        "settings": cell.settings(),
        "findings": [[finding.step, finding.severity, finding.detector] for finding in log.findings],
        "faults": sum(sum(record.faults.values()) for record in records),
        "monitor_seconds": round(sum(record.overhead_seconds or 0.0 for record in records), 2),
        "train_cpu_seconds": round(ended - started - away(), 2),
        "evaluate_cpu_seconds": round(time.process_time() - ended + away(), 2),
        "packages": versions(),
        "machine": {"system": platform.platform(), "processor": platform.machine(), "threads": 1},
    }
    return Trained(trainer=built, log=log, judged=judged, records=records, result=result)


def keep(cell: Cell, folder: Path, train: Callable[[], Result]) -> Result:
    """The result of ``train()``, written to ``<folder>/<cell>.json``."""
    with quiet_libraries():
        result = train()
    write_json(folder / f"{cell.name}.json", result)
    return result


def base_evaluation(task: Task, folder: Path) -> Result:
    """What the untrained base does on this task; measured once and kept under ``folder``."""
    settings = {
        "schema_version": SCHEMA_VERSION,
        "base_sha256": sha256(base_dir(task.base) / WEIGHTS),
        "task": told(task, {"about", "name", "steps", "learning_rate", "prompts_per_round", "group_size"}),
        "evaluation": evaluation_settings(),
    }
    path = folder / f"base-{task.name}.json"
    if (found := kept(path, digest(settings))) is not None:
        return found
    with quiet_libraries():
        base_model, tokenizer = base(task.base)
        judged = judge(task, base_model, base_model, tokenizer)
    result = {"fingerprint": digest(settings), "task": task.name, **judged}
    write_json(path, result)
    return result


def evaluation_settings() -> list[int]:
    """What decides how a model is judged."""
    return [EVALUATION_SEED, PROMPTS, SAMPLES_PER_PROMPT, HARD_PROMPTS, SEQUENCES_PER_BATCH]


def judge(task: Task, model: Any, base_model: Any, tokenizer: Any) -> Result:
    """What ``model`` does on held-out prompts of ``task``."""
    _, held_out = split_questions()

    def of(questions: Sequence[Question], keep_samples: int) -> Evaluation:
        judgement: dict[str, Any] = {}
        if task.worthless or task.flaky:
            judgement["correct"] = states_answer_not_prose if task.worthless else accepted_answer
        return evaluate(
            model, base_model, tokenizer, questions, parse,
            keep_samples=keep_samples, samples_per_prompt=SAMPLES_PER_PROMPT, max_new_tokens=MAX_COMPLETION_TOKENS,
            sequences_per_batch=SEQUENCES_PER_BATCH, **judgement,
        )  # fmt: skip

    evaluation = of(held_out_sample(held_out, PROMPTS), 4)
    result: Result = {
        "evaluation": asdict(evaluation),
        "worthless_share": evaluation.format_shares.get(WORTHLESS_MODE, 0.0) if task.worthless else None,
        "constant_share": evaluation.answer_shares.get(str(CONSTANT_ANSWER), 0.0) if task.pool == "random" else None,
        "hard_accuracy": None,
    }
    if task.pool == "gain":
        hard = [replace(question, asks_gain=True) for question in held_out_sample(held_out, HARD_PROMPTS)]
        result["hard_accuracy"] = of(hard, 0).accuracy
    return result


def load_model(path: Path) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)


@lru_cache(maxsize=4)
def base(name: str) -> tuple[Any, Any]:
    """The lab's base of this name and its tokenizer."""
    from transformers import AutoTokenizer

    return load_model(base_dir(name)), AutoTokenizer.from_pretrained(base_dir(name))


@lru_cache(maxsize=1)
def code_sha256() -> str:
    """SHA-256 over the sources of what decides and acts: written into each cell, not part of its fingerprint."""
    package = Path(rlmon.__file__).parent
    return sources_sha256([package / "controller.py", *package.glob("interventions/*.py"), *package.glob("trl/*.py")])


def sources_sha256(paths: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for path in sorted(paths):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def told(described: Any, left_out: set[str]) -> dict[str, Any]:
    """The fields of a dataclass that are not at their default: a field that is added later changes no fingerprint."""
    return {
        f.name: value
        for f in fields(described)
        if f.name not in left_out and (value := getattr(described, f.name)) != f.default
    }


def add_study_options(parser: argparse.ArgumentParser, cells: Path, report: Path) -> None:
    """What every study beside a ``--quick`` of its own takes; ``places`` reads it."""
    parser.add_argument("--jobs", type=int, default=1, help="processes (default 1), one thread each")
    parser.add_argument("--cells", type=Path, help=f"results of runs (default {cells}; quick: its folder quick)")
    parser.add_argument("--out", type=Path, help=f"page, numbers, figures (default {report}; quick: beside its runs)")
    parser.add_argument("--only-report", action="store_true", help="compare what is done, train nothing")


def places(options: argparse.Namespace, cells: Path, report: Path) -> tuple[Path, Path]:
    """Where results are kept, and where the report goes."""
    kept_in = options.cells or (cells / "quick" if options.quick else cells)
    return kept_in, options.out or (kept_in / "report" if options.quick else report)


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.write_text(json.dumps(value, allow_nan=False) + "\n", encoding="utf-8")
    partial.replace(path)


def kept(path: Path, fingerprint: str) -> Result | None:
    try:
        result: Result = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    return result if result.get("fingerprint") == fingerprint else None


def digest(settings: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()
