"""One run on a real model: trained over as many sittings as it takes, judged on held-out prompts, kept small."""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlmon.controller import load_policy
from rlmon.errors import ConfigError
from rlmon.lab.evaluate import EVALUATION_SEED
from rlmon.lab.libraries import quiet_libraries, versions
from rlmon.lab.sampling import draws, entropy_and_kl
from rlmon.records import StepRecord
from rlmon.runlog import open_run
from studies.cells import Result, code_sha256, digest, kept, say, told, write_json
from studies.real_measures import Row, measured
from studies.real_tasks import Question, RealTask, is_right, last_said, reward_right
from studies.tables import compact

SCHEMA_VERSION = 1
LONGEST_STEPS = 120
"""What the trainer and the detectors are told, however far a sitting goes: a run that is continued is the same run."""
SAVE_EVERY_STEPS = 5
HELD_OUT_PROMPTS = 32
SAMPLES = 16
SCORED_SAMPLES = 4
"""Of each prompt's samples, those whose entropy and KL to the base are measured: two forward passes more."""
SEQUENCES_PER_BATCH = 64
KEPT_SAMPLES = 3
DTYPES = ("float32", "bfloat16")

TRAJECTORY: Mapping[str, str] = {
    "reward": "rlmon/health/reward_mean",
    "entropy_nats": "rlmon/entropy/mean",
    "templates": "rlmon/text/effective_templates_within",
    "templates_right": "rlmon/text/effective_templates_within_correct",
    "openings": "rlmon/collision/opening_across_effective",
    "top_format": "rlmon/format/top_share",
    "other": "rlmon/format/other_share",
    "kl_nats": "rlmon/kl/mean",
    "length_tokens": "rlmon/health/length_mean",
    "silent": "rlmon/group/silent",
}
"""What is kept of every step, by the catalogue's names: see ``rlmon metrics``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RealArm:
    """How it is trained."""

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Of ``GRPOConfig``, where they differ from the other arms'."""
    policy: Mapping[str, Any] | str | None = None
    """``rlmon_policy``: a preset, a file or a mapping of rules."""
    about: str


@dataclass(frozen=True, kw_only=True, slots=True)
class RealCell:
    """One training run."""

    task: RealTask
    arm: RealArm
    seed: int
    dtype: str = "float32"

    @property
    def name(self) -> str:
        return f"{self.task.name}-{self.arm.name}-seed{self.seed}"

    def settings(self) -> dict[str, Any]:
        """Everything that decides what is trained, apart from versions of software, rlmon's own code, and how far."""
        policy = self.arm.policy
        return {
            "schema_version": SCHEMA_VERSION,
            "task": task_settings(self.task),
            "arm": dict(self.arm.settings),
            "policy": None if policy is None else load_policy(policy).to_dict(),
            "seed": self.seed,
            "dtype": self.dtype,
            "longest_steps": LONGEST_STEPS,
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Sitting:
    """How far to go this time, and where things are kept."""

    steps: int
    work: Path
    """Checkpoints, adapters and run logs: needed to go on, too large for a repository."""
    results: Path
    """A small file for each run."""
    until: float | None = None
    """By ``time.monotonic()``; unset: until all is done."""

    @property
    def over(self) -> bool:
        return self.until is not None and time.monotonic() >= self.until


def task_settings(task: RealTask) -> dict[str, Any]:
    """What decides how a policy is trained on it, and judged."""
    settings = told(task, {"about"})
    return {name: str(value) if isinstance(value, Path) else value for name, value in settings.items()}


def run_cell(cell: RealCell, sitting: Sitting) -> Result:
    """What is known of ``cell`` when the sitting ends: trained to ``sitting.steps`` and judged there, or stopped.

    Raises ``ConfigError`` where the cell was begun with other settings.
    """
    if not 1 <= sitting.steps <= LONGEST_STEPS:
        raise ConfigError(f"A run has 1 to {LONGEST_STEPS} steps, got {sitting.steps}.")
    folder, path = sitting.work / cell.name, sitting.results / f"{cell.name}.json"
    fingerprint = digest(cell.settings())
    known = kept(path, fingerprint) or {}
    if (path.exists() and not known) or ((folder / "begun").exists() and (folder / "begun").read_text() != fingerprint):
        raise ConfigError(f"{cell.name} was begun with other settings. To begin anew: --redo, with the same choice.")
    evaluations = dict(known.get("evaluations", {}))
    if str(sitting.steps) in evaluations:
        return known
    with quiet_libraries():
        if reached(folder) < sitting.steps and not sitting.over:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "begun").write_text(fingerprint)
            known |= {"cpu_seconds": known.get("cpu_seconds", 0.0) + train(cell, folder, sitting)}
        adapter = kept_adapter(folder, sitting.steps)
        if adapter is not None and not sitting.over:
            say(f"{cell.name}: judging step {sitting.steps}")
            evaluations[str(sitting.steps)] = judge(cell.task, cell.dtype, adapter)
    if not (folder / "rlmon").exists():
        return known
    result = compact({**known, "fingerprint": fingerprint, "settings": cell.settings(), "evaluations": evaluations,
                      "task": cell.task.name, "arm": cell.arm.name, "seed": cell.seed, "about": cell.arm.about,
                      "code_sha256": code_sha256(), "versions": versions(), **told_by_the_log(folder)})  # fmt: skip
    write_json(path, result)
    return dict(result)


def begin_anew(cell: RealCell, sitting: Sitting) -> None:
    """Delete what there is of ``cell``."""
    shutil.rmtree(sitting.work / cell.name, ignore_errors=True)
    (sitting.results / f"{cell.name}.json").unlink(missing_ok=True)


def told_by_the_log(folder: Path) -> Result:
    """Steps, findings and what every step measured; of a step that was trained twice, the later one."""
    log = open_run(folder / "rlmon")
    records = log.step_records()
    return {
        "steps": max((record.step for record in records), default=0),
        "trajectory": {name: [record.metrics.get(metric) for record in records] for name, metric in TRAJECTORY.items()},
        "findings": [[finding.step, finding.severity, finding.detector] for finding in log.findings],
        "faults": sum(sum(record.faults.values()) for record in records),
    }


# -- training --------------------------------------------------------------------------------------------------------


def newest_checkpoint(folder: Path) -> Path | None:
    """The last whole one; ``None`` where there is none."""
    whole = [path for path in folder.glob("checkpoint-*") if (path / "trainer_state.json").exists()]
    return max(whole, key=_step, default=None)


def reached(folder: Path) -> int:
    """The step from which the run can go on."""
    found = newest_checkpoint(folder)
    return 0 if found is None else _step(found)


def kept_adapter(folder: Path, steps: int) -> Path | None:
    """The adapter as it was after ``steps``, copied out of the newest checkpoint where that is the one; or ``None``."""
    kept_in, newest = folder / f"adapter-{steps}", newest_checkpoint(folder)
    if not kept_in.exists() and newest is not None and _step(newest) == steps:
        partial = folder / "adapter.partial"
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(newest, partial, ignore=lambda _, names: [n for n in names if not n.startswith("adapter_")])
        partial.rename(kept_in)
    return kept_in if kept_in.exists() else None


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rsplit("-", 1)[1])


def train(
    cell: RealCell, folder: Path, sitting: Sitting, after_step: Callable[[], object] = lambda: None
) -> float:  # fmt: skip
    """Train until ``sitting`` ends, leave a checkpoint there; CPU seconds."""
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoTokenizer, PrinterCallback, set_seed
    from trl import GRPOConfig, GRPOTrainer

    from rlmon.trl import RLMon

    task = cell.task
    training, _ = task.questions()
    started = time.process_time()
    # The adapter's first weights are drawn before the trainer sets its seed.
    set_seed(cell.seed)
    trainer = GRPOTrainer(
        model=load_model(task, cell.dtype),
        reward_funcs=reward_right,
        args=GRPOConfig(output_dir=str(folder), seed=cell.seed, **{**training_settings(task), **cell.arm.settings}),
        train_dataset=Dataset.from_list(
            [{"prompt": each.prompt, "answer": each.answer, "rivals": list(each.rivals)} for each in training]
        ),
        processing_class=AutoTokenizer.from_pretrained(task.model),
        peft_config=LoraConfig(
            r=task.lora_rank, lora_alpha=2 * task.lora_rank, lora_dropout=0.0, target_modules="all-linear",
            task_type="CAUSAL_LM",
        ),
    )  # fmt: skip
    trainer.remove_callback(PrinterCallback)
    watch = RLMon(trainer, console=False, policy=cell.arm.policy)
    trainer.add_callback(_stops(cell, sitting, watch, after_step))
    newest = newest_checkpoint(folder)
    trainer.train(resume_from_checkpoint=None if newest is None else str(newest))
    return time.process_time() - started


def training_settings(task: RealTask) -> dict[str, Any]:
    """Of ``GRPOConfig``, the same for every arm."""
    return {
        "max_steps": LONGEST_STEPS,
        # A prompt at a time: a step at once holds 12 GB of activations.
        "per_device_train_batch_size": task.group_size,
        "gradient_accumulation_steps": task.prompts_per_step,
        "num_generations": task.group_size,
        "max_completion_length": task.most_tokens,
        "temperature": task.temperature,
        "entropy_target": task.entropy_target_nats,
        "beta": 0.0,
        "learning_rate": task.learning_rate,
        "lr_scheduler_type": "constant",
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "dataloader_pin_memory": False,
        "report_to": [],
        "logging_steps": 1,
        "disable_tqdm": True,
        "save_strategy": "steps",
        "save_steps": SAVE_EVERY_STEPS,
        "save_total_limit": 1,
    }


def _stops(cell: RealCell, sitting: Sitting, watch: Any, after_step: Callable[[], object]) -> Any:
    """A callback that says each step to stderr, and ends training with a checkpoint when the sitting ends."""
    from transformers import TrainerCallback

    def say_step(record: StepRecord, findings: Sequence[Any]) -> None:
        shown = {
            name: record.metrics.get(TRAJECTORY[name]) for name in ("reward", "entropy_nats", "templates", "top_format")
        }
        numbers = ", ".join(f"{name} {'-' if value is None else f'{value:.2f}'}" for name, value in shown.items())
        alarms = "".join(f", {finding.severity.upper()} {finding.detector}" for finding in findings)
        took = time.monotonic() - began
        say(f"{cell.name}: step {record.step}/{sitting.steps}, {numbers}, {took:.0f} s{alarms}")

    began = time.monotonic()

    class Stops(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            watch.monitor.on_record.append(say_step)

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            after_step()
            if state.global_step >= sitting.steps or sitting.over:
                control.should_save = control.should_training_stop = True

    return Stops()


def load_model(task: RealTask, dtype: str) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    if not task.model.exists():
        raise ConfigError(f"There is no model at {task.model}. Type: python scripts/fetch_smollm2.py")
    return AutoModelForCausalLM.from_pretrained(task.model, dtype=getattr(torch, dtype))


# -- judging ---------------------------------------------------------------------------------------------------------


def judge(task: RealTask, dtype: str, adapter: Path | None) -> Result:
    """What the base with ``adapter`` (``None``: alone) does on held-out prompts, the same ones and the same random
    draws for every arm."""
    from peft import PeftModel
    from transformers import AutoTokenizer

    began = time.process_time()
    model = load_model(task, dtype)
    forward_base: Callable[..., Any] = model
    if adapter is not None:
        model = PeftModel.from_pretrained(model, adapter)

        def forward_base(**inputs: Any) -> Any:
            with model.disable_adapter():
                return model(**inputs)

    model.eval()
    _, held_out = task.questions()
    asked = random.Random(EVALUATION_SEED).sample(held_out, min(HELD_OUT_PROMPTS, len(held_out)))
    rows_PG = sampled(model, forward_base, AutoTokenizer.from_pretrained(task.model), task, asked)
    return {
        **measured(rows_PG),
        "samples_per_prompt": SAMPLES,
        "scored_per_prompt": SCORED_SAMPLES,
        "seed": EVALUATION_SEED,
        "examples": [
            {"prompt": last_said(question.prompt), "answers": [row.text for row in rows[:KEPT_SAMPLES]]}
            for question, rows in list(zip(asked, rows_PG, strict=True))[:4]
        ],
        "cpu_seconds": time.process_time() - began,
    }


def sampled(
    model: Any, base: Callable[..., Any], tokenizer: Any, task: RealTask, asked: Sequence[Question],
    samples: int = SAMPLES, scored: int = SCORED_SAMPLES,
) -> list[list[Row]]:  # fmt: skip
    """``samples`` completions of each question; of the first ``scored``, entropy and KL to ``base`` too."""
    texts = [_text(tokenizer, question.prompt) for question in asked]
    rows_PG: list[list[Row]] = [[] for _ in asked]
    for seed, each in ((EVALUATION_SEED, scored), (EVALUATION_SEED + 1, samples - scored)):
        of_row = iter([at for at in range(len(asked)) for _ in range(each)])
        for drawn in draws(
            model,
            tokenizer,
            texts if each else [],
            max_new_tokens=task.most_tokens,
            temperature=task.temperature,
            sequences_per_batch=SEQUENCES_PER_BATCH,
            seed=seed,
            copies=each,
        ):
            sums: list[Sequence[Any]] = [[None] * len(drawn.texts)] * 2
            if seed == EVALUATION_SEED:
                sums = [found.tolist() for found in entropy_and_kl(model, base, drawn)]
            tokens, ended = drawn.own_BT.sum(1).tolist(), drawn.ended_B.tolist()
            for text, length, whole, entropy, kl in zip(drawn.texts, tokens, ended, *sums, strict=True):
                at = next(of_row)
                rows_PG[at].append(
                    Row(
                        text=text,
                        right=is_right(text, asked[at].answer, asked[at].rivals),
                        tokens=length,
                        cut_off=not whole,
                        entropy_nats=entropy,
                        kl_nats=kl,
                    )
                )
    return rows_PG


def _text(tokenizer: Any, prompt: Any) -> str:
    if isinstance(prompt, str):
        return prompt
    return str(tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True))
