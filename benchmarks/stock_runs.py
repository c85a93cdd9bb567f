"""Stock TRL runs for the audit to be judged on: the demo's task, every logger on, no monitor attached.

    python benchmarks/stock_runs.py --out DIR [--seeds 0,1,2] [--arms unprotected,kl,still]
                                    [--report-to wandb,tensorboard,trackio] [--steps 180]

Each run is a folder DIR/<arm>-seed<seed>/ as TRL leaves it (``completions/``, ``trainer_state.json``), with
``wandb/``, ``tensorboard/`` and ``trackio/`` in it. ``truth.jsonl`` is for the judge alone: every completion at the
moment when it was scored. A folder with ``done`` is not run again.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import gc
import json
import logging
import multiprocessing
import os
import shutil
import sys
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlmon.lab.demo import ARMS, STEPS, TRAINING
from rlmon.lab.task import reward_correct, split_questions

CHANGES: Mapping[str, Mapping[str, float]] = {
    "unprotected": {"beta": ARMS["unprotected"].beta},
    "kl": {"beta": ARMS["kl"].beta},
    "still": {"beta": 0.0, "learning_rate": 0.0},
}
"""Arm name to the settings that make it."""
REPORTERS = ("wandb", "tensorboard", "trackio")
LOGGED: Mapping[str, Any] = {"logging_steps": 1, "log_completions": True, "num_completions_to_print": 0}
QUIET = {
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "WANDB_SILENT": "true",
}


def train(folder: Path, seed: int, settings: Mapping[str, Any], reporters: list[str], held_out: int = 0) -> None:
    """Trains one run into ``folder``; ``settings`` go over the demo's, ``held_out`` questions make an eval set.

    For a process of its own: trackio reads its folder once, when TRL imports it.
    """
    os.environ |= {"WANDB_DIR": str(folder), "WANDB_MODE": "offline"}
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(folder / "tensorboard")
    os.environ["TRACKIO_DIR"] = str(folder / "trackio")
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer

    from rlmon.lab.bases import BASE_DIR

    torch.set_num_threads(1)

    def rows(questions: list[Any]) -> Dataset:
        return Dataset.from_list([{"prompt": q.prompt, "answer": q.answer, "task": "arithmetic"} for q in questions])

    with (folder / "truth.jsonl").open("w", encoding="utf-8") as truth:

        @functools.wraps(reward_correct)
        def scored(prompts: list[str], completions: list[str], trainer_state: Any, **columns: Any) -> list[float]:
            rewards = reward_correct(prompts, completions, **columns)
            split = "train" if trainer.model.training else "eval"
            for prompt, completion, reward in zip(prompts, completions, rewards, strict=True):
                row = {"step": trainer_state.global_step + 1, "split": split, "prompt": prompt}
                truth.write(json.dumps({**row, "completion": completion, "reward": reward}) + "\n")
            return rewards

        asked, kept = split_questions()
        changed = {"output_dir": str(folder), "run_name": folder.name, "seed": seed, "report_to": reporters}
        trainer = GRPOTrainer(
            model=AutoModelForCausalLM.from_pretrained(BASE_DIR, dtype=torch.float32),
            reward_funcs=scored,
            args=GRPOConfig(**{**TRAINING, **LOGGED, **changed, **settings}),
            train_dataset=rows(asked),
            eval_dataset=rows(kept[:held_out]) if held_out else None,
            processing_class=AutoTokenizer.from_pretrained(BASE_DIR),
        )
        trainer.train()
        trainer.save_state()
    if "wandb" in reporters:
        import wandb

        wandb.finish()
        wandb.teardown()


def apart(folder: Path, *arguments: Any) -> float:
    """CPU-seconds of ``train(folder, *arguments)`` in a forked process, for which nothing is imported twice.

    What the run prints goes to ``stdout.log``. Raises ``RuntimeError`` when the run fails.
    """
    if (folder / "truth.jsonl").exists():  # left by a run that did not finish
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    process = multiprocessing.get_context("fork").Process(target=_quietly, args=(folder, *arguments))
    process.start()
    process.join()
    if process.exitcode:
        raise RuntimeError(f"The run in {folder} ended with exit code {process.exitcode}; see stderr.")
    return float((folder / "done").read_text())


def _quietly(folder: Path, *arguments: Any) -> None:
    started = time.process_time()
    with (folder / "stdout.log").open("w", encoding="utf-8") as log, contextlib.redirect_stdout(log):
        train(folder, *arguments)
    (folder / "done").write_text(f"{time.process_time() - started:.1f}\n")


def load() -> None:
    """Imports what every run needs, before the first fork, and makes it quiet."""
    os.environ.update(QUIET)
    warnings.filterwarnings("ignore")
    import datasets
    import transformers.trainer

    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    for name in ("trl", "transformers", "accelerate"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # What the imports made is never garbage: walking it in every run costs a tenth of the CPU time.
    gc.collect()
    gc.freeze()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--arms", default=",".join(CHANGES))
    parser.add_argument("--report-to", default=",".join(REPORTERS), help="loggers, or nothing for none")
    parser.add_argument("--steps", type=int, default=STEPS)
    options = parser.parse_args(arguments)
    arms, reporters = options.arms.split(","), [name for name in options.report_to.split(",") if name]
    if unknown := [*(set(arms) - set(CHANGES)), *(set(reporters) - set(REPORTERS))]:
        parser.error(f"unknown: {', '.join(unknown)}; arms are {', '.join(CHANGES)}, loggers {', '.join(REPORTERS)}")
    load()
    for seed in (int(text) for text in options.seeds.split(",")):
        for arm in arms:
            folder = options.out.resolve() / f"{arm}-seed{seed}"
            if (folder / "done").exists():
                print(f"{folder.name}: done before", file=sys.stderr)
                continue
            started = time.perf_counter()
            cpu = apart(folder, seed, {**CHANGES[arm], "max_steps": options.steps}, reporters)
            print(f"{folder.name}: {cpu} CPU s, {time.perf_counter() - started:.0f} s", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
