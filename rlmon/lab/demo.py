"""``rlmon demo``: real TRL GRPO collapses a tiny model onto one answer format, and two ways to hold it.

Nothing in the task asks for a format. Three arms train the same base on the same prompts: *unprotected* (``beta=0``),
*kl* (``beta=0.1``) and *protect* (``beta=0`` and rlmon's policy of that name). The monitor watches all of them;
held-out samples judge them at the end. Then the requirement changes, and training goes on from each end
(``rlmon.lab.second_act``).

Settings were chosen by looking at seeds 0, 1 and 2: see docs/demo.md.
"""

from __future__ import annotations

import itertools
import json
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from rlmon.errors import ConfigError
from rlmon.lab.bases import BASE_DIR, WEIGHTS, sha256
from rlmon.lab.claims import (
    DEFINITIONS,
    TOP_SHARE_LINE,
    ArmResult,
    claims,
    evaluated,
    final_table,
    run_row,
    second_act_claims,
    unprotected_of,
)
from rlmon.lab.evaluate import (
    EVALUATION_SEED,
    MAX_NEW_TOKENS,
    PROMPTS,
    SAMPLES_PER_PROMPT,
    Evaluation,
    evaluate,
    held_out_sample,
)
from rlmon.lab.libraries import quiet_libraries, versions
from rlmon.lab.screen import Screen, second_act_block
from rlmon.lab.second_act import PROMPTS as SECOND_ACT_PROMPTS
from rlmon.lab.second_act import SecondAct, second_acts, weights_of
from rlmon.lab.task import Question, reward_correct, split_questions
from rlmon.records import StepRecord
from rlmon.runlog import open_run

if TYPE_CHECKING:
    import torch
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True, kw_only=True, slots=True)
class Arm:
    """How one arm is trained."""

    beta: float
    """TRL's weight of the KL penalty on every token."""
    policy: str | None = None
    """Name of the policy that acts (``rlmon_policy``); ``None`` only watches."""


ARMS: Mapping[str, Arm] = {
    "unprotected": Arm(beta=0.0),
    "kl": Arm(beta=0.1),
    "protect": Arm(beta=0.0, policy="protect"),
}
"""Arms by name, in the order in which they train on a seed."""
STEPS = 180
PROMPTS_PER_ROUND = 8
GROUP_SIZE = 8
COLLAPSE_DETECTORS = ("format-collapse", "entropy-collapse")
"""The alarm steps of ``demo.json`` count only these."""
TRAINING: Mapping[str, Any] = {
    "max_steps": STEPS,
    "per_device_train_batch_size": PROMPTS_PER_ROUND * GROUP_SIZE,
    "num_generations": GROUP_SIZE,
    "max_completion_length": MAX_NEW_TOKENS,
    "temperature": 1.0,
    "learning_rate": 6.5e-4,
    "lr_scheduler_type": "constant",
    "loss_type": "dapo",
    "scale_rewards": "group",
    "max_grad_norm": 1.0,
    # TRL's defaults are made for a GPU.
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "dataloader_pin_memory": False,
    "report_to": [],
    "save_strategy": "no",
    "logging_steps": 10,
    "disable_tqdm": True,
}
"""Settings of ``GRPOConfig`` shared by all arms."""


def run(out: Path, seeds: tuple[int, ...], arms: tuple[str, ...], quick: bool) -> int:
    """Trains ``arms`` on ``seeds`` one after the other, writes ``demo.json``, ``demo.html`` and run logs under ``out``.

    ``quick`` keeps only the first seed. Progress goes to stderr, the table to stdout. Returns 0 when every claim
    that these arms and seeds can decide holds, else 1. Raises ``ConfigError`` for an unknown arm.
    """
    unknown = [arm for arm in arms if arm not in ARMS]
    if unknown or not arms or not seeds:
        came = ", ".join(unknown) or "none"
        raise ConfigError(f"The demo has the arms {', '.join(ARMS)}; got {came}. At least one seed is needed.")
    if quick:
        seeds = seeds[:1]
    out.mkdir(parents=True, exist_ok=True)
    runs = [(arm, seed) for seed in dict.fromkeys(seeds) for arm in dict.fromkeys(arms)]
    screen = Screen([f"{arm}-seed{seed}" for arm, seed in runs], STEPS)
    with screen:
        screen.note("loading torch and TRL")
        with quiet_libraries():
            demo, table, acts = _run_arms(out, runs, screen)
    path = out / "demo.json"
    partial = path.with_suffix(".json.partial")
    partial.write_text(json.dumps(demo, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    partial.replace(path)

    from rlmon.report.demo import write_page

    page = write_page(out)
    print(table)
    Console(highlight=False).print(second_act_block(acts))
    print(f"\npage {page}\ndata {path}")
    return 0 if all(claim["holds"] is not False for claim in demo["claims"]) else 1


def _run_arms(
    out: Path, runs: Sequence[tuple[str, int]], screen: Screen
) -> tuple[dict[str, Any], str, list[SecondAct]]:
    from datasets import Dataset
    from transformers import AutoTokenizer

    from rlmon.metrics.formats import ModeSet

    tokenizer = AutoTokenizer.from_pretrained(BASE_DIR)
    parse = ModeSet.build(None).parse
    train, held_out = split_questions()
    questions = held_out_sample(held_out)
    dataset = Dataset.from_dict(
        {
            "prompt": [question.prompt for question in train],
            "answer": [question.answer for question in train],
            "task": ["arithmetic"] * len(train),
        }
    )
    base_model = load_base()
    base = evaluate(base_model, base_model, tokenizer, questions, parse)
    screen.note(
        f"base: accuracy {base.accuracy:.3f}, {base.effective_formats:.2f} formats in use, "
        f"top {base.top_format} {base.top_share:.2f}, entropy {base.entropy_nats:.3f} nats"
    )
    results, ends = [], {}
    for arm, seed in runs:
        result, ends[arm, seed] = _train_arm(
            out, arm, seed, tokenizer, dataset, base_model, base, questions, parse, screen
        )
        results.append(result)
    prompts = [question.prompt for question in held_out_sample(held_out, SECOND_ACT_PROMPTS)]
    acts = []
    for act in second_acts(ends, load_base, tokenizer, dataset, prompts, parse, out, TRAINING):
        acts.append(act)
        screen.second_act(act)
    demo: dict[str, Any] = {
        "schema_version": 1,
        "tool": "rlmon demo",
        "created_unix_seconds": time.time(),
        "packages": versions(),
        "machine": {"system": platform.platform(), "processor": platform.machine(), "threads": 1},
        "seeds": list(dict.fromkeys(seed for _, seed in runs)),
        "arms": {arm: asdict(ARMS[arm]) for arm in dict.fromkeys(arm for arm, _ in runs)},
        "training": {**TRAINING, "prompts_per_round": PROMPTS_PER_ROUND},
        "evaluation": {
            "seed": EVALUATION_SEED,
            "prompts": PROMPTS,
            "samples_per_prompt": SAMPLES_PER_PROMPT,
            "completions": base.completions,
            "temperature": 1.0,
            "held_out": "one prompt in 8 by SHA-256 of its text; neither the base nor RL trained on it",
        },
        "definitions": DEFINITIONS,
        "base": {
            **evaluated(base),
            "weights_sha256": sha256(BASE_DIR / WEIGHTS),
            "format_shares": base.format_shares,
            "samples": base.samples,
        },
        "runs": [run_row(result, base, unprotected_of(results, result.seed)) for result in results],
        "second_act": [act.row() for act in acts],
        "claims": claims(results, base) + second_act_claims(acts),
        # Of the whole process so far: imports, the base's evaluation, every arm, what came after.
        "cpu_seconds": round(time.process_time(), 2),
    }
    return demo, final_table(results, base, demo["claims"]), acts


def load_base() -> PreTrainedModel:
    import torch
    from transformers import AutoModelForCausalLM

    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(BASE_DIR, dtype=torch.float32)
    return model


def _train_arm(
    out: Path,
    arm: str,
    seed: int,
    tokenizer: PreTrainedTokenizerBase,
    dataset: Dataset,
    base_model: PreTrainedModel,
    base: Evaluation,
    questions: Sequence[Question],
    parse: Any,
    screen: Screen,
) -> tuple[ArmResult, dict[str, torch.Tensor]]:
    """What the arm did, and the weights at its end."""
    from transformers import PrinterCallback, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    from rlmon.trl import RLMon, RLMonConfig

    name, spec = f"{arm}-seed{seed}", ARMS[arm]
    folder = out / name
    started = time.process_time()
    trainer = GRPOTrainer(
        model=load_base(),
        reward_funcs=reward_correct,
        args=GRPOConfig(output_dir=str(folder), seed=seed, beta=spec.beta, **TRAINING),
        train_dataset=dataset,
        processing_class=tokenizer,
    )
    # Its lines would break the screen.
    trainer.remove_callback(PrinterCallback)
    monitor = RLMon(trainer, RLMonConfig(rlmon_console=False, rlmon_base_kl_every=5, rlmon_policy=spec.policy))

    class Subscribe(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            assert monitor.monitor is not None
            monitor.monitor.on_record.append(partial(screen.step, name))

    trainer.add_callback(Subscribe())
    trainer.train()
    evaluation = evaluate(trainer.model, base_model, tokenizer, questions, parse)
    screen.done(name, evaluation)
    log = open_run(folder / "rlmon")
    records, findings = log.step_records(), log.findings
    collapse = [finding for finding in findings if finding.detector in COLLAPSE_DETECTORS]
    overheads = [record.overhead_seconds for record in records if record.overhead_seconds is not None]
    result = ArmResult(
        arm=arm,
        policy=spec.policy,
        seed=seed,
        evaluation=evaluation,
        first_warn_step=min((finding.step for finding in collapse), default=None),
        first_fail_step=min((finding.step for finding in collapse if finding.severity == "fail"), default=None),
        top_share_over_0_9_step=first_sustained(records, TOP_SHARE_LINE),
        narrowed_step=first_narrowed(records, 0.9 * base.effective_formats),
        cpu_seconds=time.process_time() - started,
        monitor_seconds=sum(overheads) if overheads else None,
        faults=sum(sum(record.faults.values()) for record in records),
        findings=[asdict(finding) for finding in findings],
        log=f"{name}/rlmon",
        actions=log.actions,
        levels=levels_of(records) if spec.policy is not None else {},
    )
    return result, weights_of(trainer.model)


def levels_of(records: Sequence[StepRecord]) -> dict[str, list[float]]:
    """``{"kappa": [...], "beta": [...]}`` at the end of each step at which it was measured."""
    return {
        name: [value for r in records if (value := r.metrics.get(f"rlmon/intervention/{name}")) is not None]
        for name in ("kappa", "beta")
    }


def first_sustained(records: Sequence[StepRecord], line: float) -> int | None:
    """Step of the first of two consecutive rounds whose top share is at least ``line``; ``None`` if there is none."""
    shares = [(r.step, share) for r in records if (share := r.metrics.get("rlmon/format/top_share")) is not None]
    for (step, now), (_, after) in itertools.pairwise(shares):
        if now >= line and after >= line:
            return step
    return None


def first_narrowed(records: Sequence[StepRecord], line: float, window: int = 5) -> int | None:
    """First step at which the mean formats in use of the last ``window`` rounds are below ``line``."""
    numbers = [(r.step, number) for r in records if (number := r.metrics.get("rlmon/format/effective")) is not None]
    for end in range(window, len(numbers) + 1):
        if sum(number for _, number in numbers[end - window : end]) / window < line:
            return numbers[end - 1][0]
    return None
