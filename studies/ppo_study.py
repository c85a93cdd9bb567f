"""PPO against GRPO at two completions a prompt, measured: ``python -m studies.ppo_study``.

Both train the lab's arithmetic task on the same number of completions. First each gets its learning rate, from one
grid and on seeds of its own; then both run on seeds that neither was tuned on, and are compared seed by seed. Finished
runs are kept and not run again while their settings stay the same.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import math
import platform
import random
import shutil
import statistics
import sys
import textwrap
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlmon.lab.bases import WEIGHTS, base_dir, sha256
from rlmon.lab.demo import (
    COLLAPSE_DETECTORS,
    TOP_SHARE_LINE,
    TRAINING,
    _packages,
    _quiet_libraries,
    first_sustained,
)
from rlmon.lab.evaluate import EVALUATION_SEED, evaluate
from rlmon.lab.task import Question, reward_correct, split_questions
from rlmon.metrics.formats import ModeSet
from rlmon.runlog import open_run
from studies import experiments
from studies.arms import Arm, Task
from studies.experiments import (
    KL_EVERY_STEPS,
    MAX_COMPLETION_TOKENS,
    Cell,
    _base,
    _judge,
    _load_model,
    _say,
    _told,
    _write_json,
    base_evaluation,
    code_sha256,
    each_in_pool,
    stored,
)
from studies.frontier import Interval, _compact, _markdown, interval

if TYPE_CHECKING:
    from rlmon.records import StepRecord

SCHEMA_VERSION = 1
SEEDS = (0, 1, 2, 3, 4)
TUNING_SEEDS = (100, 101)
LEARNING_RATES = (2.5e-4, 4e-4, 6.5e-4, 1e-3, 1.6e-3, 2.5e-3, 4e-3)
CELLS_DIR = Path(".cache/ppo-study")
REPORT_DIR = Path("docs/ppo")
NOTES = "## What it says"
"""From this heading on the page is written by hand, and stays when the rest is written again."""

MARGIN = 0.01
"""Most accuracy by which PPO may lie under GRPO at the lower end of the 95 % interval."""
ROUND_COMPLETIONS = 64
CURVE_EVERY_ROUNDS = 20
CURVE_SEED = 20_261
CURVE_PROMPTS = 256
CURVE_SAMPLES = 2

_PARSE = ModeSet.build(None).parse


@dataclass(frozen=True, kw_only=True, slots=True)
class PairArm(Arm):
    """How it is trained on rounds of 32 prompts x 2 completions."""

    ppo: Mapping[str, Any] | None = field(default_factory=dict)
    """What differs from ``PPOConfig``'s defaults and the study's; ``None``: TRL's ``GRPOTrainer`` as it is."""
    updates_per_round: int = 1
    """Optimizer steps on each round; its batches are as many times smaller as there are in one pass."""
    rate_factor: float = 1.0
    """Its learning rate over the one that was chosen for ``ppo``."""


ARMS: Mapping[str, PairArm] = {
    arm.name: arm
    for arm in (
        PairArm(name="grpo", ppo=None, about="TRL's GRPO: advantages by groups of two, beta 0"),
        PairArm(name="ppo", about="PPO: the value head reads the policy's hidden states and does not train them"),
        PairArm(name="ppo-shared", ppo={"critic": "shared"}, about="the value loss trains the policy's trunk too"),
        PairArm(name="ppo-separate", ppo={"critic": "separate"}, about="the critic has a trunk of its own"),
        PairArm(name="ppo-kl", ppo={"kl_coef": 0.05}, about="kl_coef 0.05: a KL penalty to the base in the reward"),
        PairArm(
            name="ppo-epochs",
            ppo={"num_iterations": 4, "steps_per_generation": 4, "gradient_accumulation_steps": 1},
            updates_per_round=16,
            rate_factor=0.1,
            about="four passes over each round in four batches: 16 updates a round, at a tenth of the rate",
        ),
        PairArm(
            name="ppo-protect",
            policy="protect",
            about="the policy `protect`: mode-marginal KL by token, KL in the reward, quarantine, deferral",
        ),
    )
}
"""Arms of the comparison by name; the claim is about the first two."""
CLAIMED = ("grpo", "ppo")

VARIATIONS: Mapping[str, PairArm] = {
    arm.name: arm
    for arm in (
        PairArm(name="value-rate-3e-3", ppo={"value_learning_rate": 3e-3}, about="`value_learning_rate` 3e-3"),
        PairArm(name="value-rate-1e-2", ppo={"value_learning_rate": 1e-2}, about="`value_learning_rate` 1e-2"),
        PairArm(name="lam-1", ppo={"lam": 1.0}, about="`lam` 1"),
        PairArm(name="not-whitened", ppo={"whiten_advantages": False}, about="`whiten_advantages` false"),
    )
}
"""Other settings of PPO, tried on the tuning seeds at PPO's learning rate."""
TRIED_FASTER = ("not-whitened",)
"""Those tried at the higher learning rates, too."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Run(Cell):
    """One training run."""

    arm: PairArm
    curve: bool = True
    """Whether held-out accuracy is measured along the way; it changes nothing else."""

    @property
    def name(self) -> str:
        return f"{self.arm.name}-{self.task.learning_rate:g}-seed{self.seed}"

    def settings(self) -> dict[str, Any]:
        """Everything that decides the result, apart from versions of software and rlmon's own code."""
        return {
            "schema_version": SCHEMA_VERSION,
            "task": _told(self.task, {"about"}),
            "arm": _told(self.arm, {"about", "tasks"}),
            "seed": self.seed,
            "base_sha256": sha256(base_dir(self.task.base) / WEIGHTS),
            "training": training(self),
            "evaluation": [EVALUATION_SEED, experiments.PROMPTS, experiments.SAMPLES_PER_PROMPT],
            "curve": [CURVE_SEED, CURVE_PROMPTS, CURVE_SAMPLES, CURVE_EVERY_ROUNDS] if self.curve else None,
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What is run: the study, or a small part of it."""

    rounds: int = 180
    rates: tuple[float, ...] = LEARNING_RATES
    tuning_seeds: tuple[int, ...] = TUNING_SEEDS
    seeds: tuple[int, ...] = SEEDS
    more_seeds: tuple[int, ...] = SEEDS[:3]
    """Of the arms that the claim is not about."""
    arms: tuple[str, ...] = tuple(ARMS)
    variations: tuple[str, ...] = tuple(VARIATIONS)

    def task(self, rate: float) -> Task:
        return Task(
            name="pairs", base="arithmetic", steps=self.rounds, learning_rate=rate,
            prompts_per_round=ROUND_COMPLETIONS // 2, group_size=2, about="the demo's task, two completions a prompt",
        )  # fmt: skip

    def tuning(self) -> list[Run]:
        return [
            Run(task=self.task(rate), arm=ARMS[arm], seed=seed)
            for seed in self.tuning_seeds
            for rate in self.rates
            for arm in CLAIMED
        ]

    def varied(self, rates: Mapping[str, float]) -> list[Run]:
        return [
            Run(task=self.task(rate), arm=VARIATIONS[name], seed=seed)
            for seed in self.tuning_seeds
            for name in self.variations
            for rate in self.rates
            if rate == rates["ppo"] or (name in TRIED_FASTER and rate > rates["ppo"])
        ]

    def compared(self, rates: Mapping[str, float]) -> list[Run]:
        """Seed by seed, so that a stopped study leaves whole comparisons; the arms of the claim first."""
        more = tuple(arm for arm in self.arms if arm not in CLAIMED)
        return [
            Run(
                task=self.task(rates["grpo" if arm == "grpo" else "ppo"] * ARMS[arm].rate_factor),
                arm=ARMS[arm],
                seed=seed,
            )
            for arms, seeds in ((CLAIMED, self.seeds), (more, self.more_seeds))
            for seed in seeds
            for arm in arms
        ]


QUICK = Plan(
    rounds=3,
    rates=(4e-4, 1e-3),
    tuning_seeds=(100,),
    seeds=(0, 1),
    more_seeds=(0,),
    arms=("grpo", "ppo", "ppo-epochs", "ppo-protect"),
    variations=(),
)


def training(run: Run) -> dict[str, Any]:
    """Settings of ``GRPOConfig`` or ``PPOConfig``: those of the demo, but for what the study is about."""
    task, arm = run.task, run.arm
    shared = {
        **TRAINING,
        "max_steps": task.steps * arm.updates_per_round,
        "per_device_train_batch_size": task.prompts_per_round * task.group_size,
        "num_generations": task.group_size,
        "max_completion_length": MAX_COMPLETION_TOKENS,
        "learning_rate": task.learning_rate,
        "loss_type": "bnpo",
        "logging_steps": arm.updates_per_round,
    }
    if arm.ppo is None:
        return {**shared, "beta": 0.0}
    # TRAINING's scaling by groups is GRPO's.
    del shared["scale_rewards"]
    shared["per_device_train_batch_size"] //= arm.ppo.get("steps_per_generation", 1)
    return {**shared, "kl_coef": 0.0, "critic": "shared_detached", **arm.ppo}


def chosen_rate(accuracies: Mapping[float, Sequence[float]]) -> float:
    """The learning rate with the highest mean of ``accuracies`` (learning rate to one per seed); of equals the
    smallest. Raises ``ValueError`` for none."""
    return min(accuracies, key=lambda rate: (-statistics.fmean(accuracies[rate]), rate))


def difference(arm: Mapping[int, float], reference: Mapping[int, float]) -> Interval:
    """``arm`` less ``reference`` (seed to value), paired over the seeds that both have: mean and 95 % interval."""
    return interval([arm[seed] - reference[seed] for seed in sorted(arm.keys() & reference.keys())])


def lower_end(found: Interval) -> float | None:
    """Of the two-sided 95 % interval; ``None`` for a single seed."""
    return None if found.half is None else found.mean - found.half


def curve_questions() -> list[Question]:
    """Held-out questions of the curve; the final evaluation draws its own."""
    return random.Random(CURVE_SEED).sample(split_questions()[1], CURVE_PROMPTS)


def round_of(step: int, updates_per_round: int) -> int:
    """The round, from 1 on, that optimizer step ``step`` trains on."""
    return (step - 1) // updates_per_round + 1


TRAJECTORY: Mapping[str, str] = {
    "reward": "rlmon/health/reward_mean",
    "effective_formats": "rlmon/format/effective",
    "top_share": "rlmon/format/top_share",
    "entropy_nats": "rlmon/entropy/mean",
    "kl_seq_nats": "rlmon/kl/seq",
    "silent_share": "rlmon/group/silent",
}
"""What a run keeps of every round, by the catalogue's names: see ``rlmon metrics``."""
CRITIC: Mapping[str, str] = {"explained_variance": "value/explained_variance", "value_loss": "loss/value_avg"}
"""The same of the critic, by the trainer's own names."""


def trajectory(
    records: Sequence[StepRecord], logged: Sequence[Mapping[str, Any]], updates_per_round: int
) -> list[dict[str, Any]]:
    """A row a round: the mean over its steps of what was measured, ``None`` where nothing was.

    ``logged`` is the trainer's ``state.log_history``.
    """
    measured: dict[int, dict[str, list[float]]] = {}
    sources: list[tuple[int, Mapping[str, Any], Mapping[str, str]]] = [
        *((record.step, record.metrics, TRAJECTORY) for record in records),
        *((line["step"], line, CRITIC) for line in logged),
    ]
    for step, found, names in sources:
        row = measured.setdefault(round_of(step, updates_per_round), {})
        for name, metric in names.items():
            if (value := found.get(metric)) is not None:
                row.setdefault(name, []).append(value)
    return [
        {"round": at, **{name: statistics.fmean(row[name]) if name in row else None for name in (*TRAJECTORY, *CRITIC)}}
        for at, row in sorted(measured.items())
    ]


def run_cell(run: Run, folder: Path) -> dict[str, Any]:
    """Trains and judges one run and writes ``<folder>/<run>.json``. Its run log stays under ``<folder>/logs``."""
    with _quiet_libraries():
        result = _train(run, folder)
    _write_json(folder / f"{run.name}.json", result)
    return result


def _train(run: Run, folder: Path) -> dict[str, Any]:
    from datasets import Dataset
    from transformers import PrinterCallback, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    from rlmon.trl import PPOConfig, PPOTrainer, RLMon, RLMonConfig

    task, arm = run.task, run.arm
    base_model, tokenizer = _base(task.base)
    output = folder / "logs" / run.name
    shutil.rmtree(output, ignore_errors=True)
    trainer_class: type[Any] = GRPOTrainer if arm.ppo is None else PPOTrainer
    config_class: type[Any] = GRPOConfig if arm.ppo is None else PPOConfig
    train, _ = split_questions()
    started = time.process_time()
    trainer = trainer_class(
        model=_load_model(base_dir(task.base)),
        reward_funcs=reward_correct,
        args=config_class(output_dir=str(output), seed=run.seed, **training(run)),
        train_dataset=Dataset.from_list([{"prompt": q.prompt, "answer": q.answer} for q in train]),
        processing_class=tokenizer,
    )
    trainer.remove_callback(PrinterCallback)
    kl_every = KL_EVERY_STEPS * arm.updates_per_round
    watched: dict[str, Any] = {"rlmon_console": False, "rlmon_base_kl_every": kl_every, "rlmon_policy": arm.policy}
    RLMon(trainer, RLMonConfig(**watched))

    questions = curve_questions()
    curve: list[dict[str, Any]] = []
    evaluating = 0.0

    def measure(at: int) -> None:
        nonlocal evaluating
        began = time.process_time()
        found = evaluate(
            trainer.model, base_model, tokenizer, questions, _PARSE,
            keep_samples=0, samples_per_prompt=CURVE_SAMPLES, max_new_tokens=MAX_COMPLETION_TOKENS,
        )  # fmt: skip
        curve.append({"round": at, "accuracy": found.accuracy, "effective_formats": found.effective_formats})
        evaluating += time.process_time() - began

    class Curve(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            measure(0)

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step % (CURVE_EVERY_ROUNDS * arm.updates_per_round) == 0:
                measure(state.global_step // arm.updates_per_round)

    if run.curve:
        trainer.add_callback(Curve())
    trainer.train()
    trained = time.process_time()
    judged = _judge(task, trainer.model, base_model, tokenizer)

    log = open_run(output / "rlmon")
    records = log.step_records()
    over = first_sustained(records, TOP_SHARE_LINE)

    def first(severities: Sequence[str], detectors: Sequence[str] = COLLAPSE_DETECTORS) -> int | None:
        steps = [f.step for f in log.findings if f.severity in severities and f.detector in detectors]
        return round_of(min(steps), arm.updates_per_round) if steps else None

    return {
        "schema_version": SCHEMA_VERSION,
        "fingerprint": run.fingerprint(),
        "code_sha256": code_sha256(),
        "ppo_sha256": ppo_sha256(),
        "weights_sha256": _weights_sha256(trainer.model),
        "arm": arm.name,
        "seed": run.seed,
        "learning_rate": task.learning_rate,
        "settings": run.settings(),
        "evaluation": judged["evaluation"],
        "curve": curve,
        "trajectory": trajectory(records, trainer.state.log_history, arm.updates_per_round),
        "warn_round": first(("warn", "fail")),
        "fail_round": first(("fail",)),
        "format_warn_round": first(("warn", "fail"), ("format-collapse",)),
        "format_fail_round": first(("fail",), ("format-collapse",)),
        "top_share_over_0_9_round": None if over is None else round_of(over, arm.updates_per_round),
        "findings": [[finding.step, finding.severity, finding.detector] for finding in log.findings],
        "completions": trainer.state.global_step // arm.updates_per_round * ROUND_COMPLETIONS,
        "faults": sum(sum(record.faults.values()) for record in records),
        "monitor_seconds": round(sum(record.overhead_seconds or 0.0 for record in records), 2),
        "train_cpu_seconds": round(trained - started - evaluating, 2),
        "evaluate_cpu_seconds": round(time.process_time() - trained + evaluating, 2),
        "packages": _packages(),
        "machine": {"system": platform.platform(), "processor": platform.machine(), "threads": 1},
    }


def _weights_sha256(model: Any) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode() + tensor.detach().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


@lru_cache(maxsize=1)
def ppo_sha256() -> str:
    """SHA-256 over the sources of ``PPOTrainer``: written into each run, not part of its fingerprint."""
    digest = hashlib.sha256()
    for path in sorted((Path(__file__).parents[1] / "trl" / "ppo").glob("*.py")):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:16]


Results = dict[str, dict[str, Any]]
"""Name of a run to its result."""


def run_all(wanted: Sequence[Run], folder: Path, jobs: int) -> Results:
    """Results of ``wanted``, running what is missing in ``jobs`` processes. Progress goes to stderr."""
    results = finished(wanted, folder)
    missing = [run for run in wanted if run.name not in results]
    _say(f"{len(wanted)} runs, {len(results)} done before, {len(missing)} to do in {jobs} process(es)")
    if not missing:
        return results
    base_evaluation(missing[0].task, folder)
    started = time.monotonic()

    def done(run: Run, result: dict[str, Any]) -> None:
        results[run.name] = result
        found = result["evaluation"]
        _say(
            f"[{len(results)}/{len(wanted)}] {run.name}: accuracy {found['accuracy']:.4f}, "
            f"effective {found['effective_formats']:.2f}, WARN {result['warn_round']}, FAIL {result['fail_round']}, "
            f"CPU {result['train_cpu_seconds']:.1f} + {result['evaluate_cpu_seconds']:.1f} s, "
            f"{time.monotonic() - started:.0f} s so far"
        )

    for run, result in each_in_pool(run_cell, missing, folder, jobs):
        done(run, result)
    return results


def finished(wanted: Sequence[Run], folder: Path) -> Results:
    """What is stored of ``wanted`` with the same settings."""
    return {run.name: found for run in wanted if (found := stored(run, folder)) is not None}


def tuned(runs: Sequence[Run], results: Mapping[str, Any]) -> dict[str, dict[float, list[float]]]:
    """Arm to learning rate to final held-out accuracies, one per seed that is done."""
    found: dict[str, dict[float, list[float]]] = {}
    for run in runs:
        if run.name in results:
            rates = found.setdefault(run.arm.name, {})
            rates.setdefault(run.task.learning_rate, []).append(results[run.name]["evaluation"]["accuracy"])
    return found


def by_seed(results: Mapping[str, Any], arm: str, name: str = "accuracy") -> dict[int, float]:
    """Seed to a number of the final evaluation of ``arm``."""
    return {r["seed"]: float(r["evaluation"][name]) for r in results.values() if r["arm"] == arm}


def along_the_way(result: Mapping[str, Any]) -> float:
    """Mean held-out accuracy over the points of the curve after the start: higher is faster."""
    return statistics.fmean(point["accuracy"] for point in result["curve"] if point["round"] > 0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Study:
    """What was run and what came of it."""

    plan: Plan
    rates: Mapping[str, float]
    tuned: Results
    varied: Results
    compared: Results
    base: Mapping[str, Any]

    def of(self, arm: str) -> list[dict[str, Any]]:
        return [result for result in self.compared.values() if result["arm"] == arm]

    @property
    def arms(self) -> list[str]:
        return [arm for arm in ARMS if self.of(arm)]

    @property
    def tuning(self) -> dict[str, dict[float, list[float]]]:
        return tuned(self.plan.tuning(), self.tuned)

    @property
    def claim(self) -> Interval:
        """Held-out accuracy of PPO less GRPO, over seeds."""
        return difference(by_seed(self.compared, "ppo"), by_seed(self.compared, "grpo"))


def write_report(study: Study, out: Path, command: str) -> str:
    """Writes ``study.md``, ``results.json`` and the figures under ``out``; returns the text of the page.

    What the page says from ``NOTES`` on stays as it was.
    """
    out.mkdir(parents=True, exist_ok=True)
    page = out / "study.md"
    old = page.read_text(encoding="utf-8") if page.exists() else ""
    notes = old[old.index(NOTES) :] if NOTES in old else ""
    figures = _figures(study, out)
    shown = {name: f"![{text}]({name})" for name, text in figures.items()}
    parts = [
        _head(study, command),
        _claim_text(study),
        shown.get("curves.png", ""),
        "## Arms\n\n" + _arms_text(study),
        "## The collapse, as the monitor sees it\n\n" + _alarm_text(study),
        shown.get("collapse.png", ""),
        "## Learning rates\n\n" + _tuning_text(study),
        "## PPO's settings, on the tuning seeds\n\n" + _varied_text(study) if study.varied else "",
        shown.get("critic.png", ""),
        _made_with(study),
    ]
    text = "\n\n".join(_wrapped(part) for part in parts if part) + "\n"
    page.write_text(text + (f"\n{notes}" if notes else ""), encoding="utf-8")
    (out / "results.json").write_text(json.dumps(_kept(study), allow_nan=False) + "\n", encoding="utf-8")
    return text


def _wrapped(part: str) -> str:
    """Paragraphs filled to 120 columns; tables, lists, headings and figures as they are."""
    blocks = part.split("\n\n")
    return "\n\n".join(
        block if block[:1] in "|#-!" else textwrap.fill(block, 120, break_on_hyphens=False, break_long_words=False)
        for block in blocks
    )


def _head(study: Study, command: str) -> str:
    plan, base = study.plan, study.base["evaluation"]
    return f"""# PPO against GRPO at two completions a prompt

Written by `{command}`.

The lab's arithmetic task: a word problem, one integer, six formats to write it in, and a reward that looks at the
number only. A round is {ROUND_COMPLETIONS // 2} prompts x 2 completions; every arm trains on {plan.rounds} rounds,
{plan.rounds * ROUND_COMPLETIONS:,} completions, from the same base, which is right in {base["accuracy"]:.1%} of
held-out samples. `loss_type="bnpo"` and a constant learning rate for all; `beta` and `kl_coef` begin at 0 but in
`ppo-kl`. What is not named is the demo's setting, and for PPO the default of `PPOConfig`. The monitor watches all runs.

Held out, after training: {experiments.PROMPTS} prompts x {experiments.SAMPLES_PER_PROMPT} completions at temperature 1,
with one seed for all. Along the way: {CURVE_PROMPTS} prompts x {CURVE_SAMPLES} every {CURVE_EVERY_ROUNDS} rounds, drawn
from a random state of their own, so that training goes on as if no one had looked. Learning rates were chosen on seeds
{_list(plan.tuning_seeds)}, the comparison is over seeds {_list(plan.seeds)}. Differences are paired over seeds: mean
and 95 % interval (Student's t)."""


def _claim_text(study: Study) -> str:
    found, low = study.claim, lower_end(study.claim)
    ppo, grpo = by_seed(study.compared, "ppo"), by_seed(study.compared, "grpo")
    seeds = sorted(ppo.keys() & grpo.keys())
    rows = [["held-out accuracy", *(f"seed {seed}" for seed in seeds), "mean"]]
    for name, values in (("GRPO", grpo), ("PPO", ppo)):
        rows.append([name, *(f"{values[seed]:.4f}" for seed in seeds), f"{statistics.fmean(values.values()):.4f}"])
    rows.append(
        ["PPO - GRPO", *(f"{100 * (ppo[seed] - grpo[seed]):+.2f}" for seed in seeds), f"**{_points(found)} points**"]
    )
    if low is None:
        verdict = "One seed has no interval."
    else:
        holds = "holds" if low >= -MARGIN else "**does not hold**"
        verdict = (
            f"Lower end of the 95 % interval: {100 * low:+.2f} points. That it is at least {-100 * MARGIN:.0f} {holds}."
        )
    ways = {arm: {r["seed"]: along_the_way(r) for r in study.of(arm) if r["curve"][1:]} for arm in CLAIMED}
    way = difference(ways["ppo"], ways["grpo"]) if ways["ppo"].keys() & ways["grpo"].keys() else None
    speed = "" if way is None else f" Mean of the curve along the way, PPO less GRPO: {_points(way)} points."
    return f"## The claim\n\n{_markdown(rows)}\n\n{verdict}{speed}"


def _points(found: Interval) -> str:
    return f"{100 * found.mean:+.2f}" + ("" if found.half is None else f" ± {100 * found.half:.2f}")


def _arms_text(study: Study) -> str:
    columns: tuple[tuple[str, Callable[[Mapping[str, Any]], float | None]], ...] = (
        ("accuracy", lambda r: r["evaluation"]["accuracy"]),
        ("along the way", lambda r: along_the_way(r) if r["curve"][1:] else None),
        ("effective", lambda r: r["evaluation"]["effective_formats"]),
        ("correct, within", lambda r: r["evaluation"]["effective_formats_correct_within"]),
        ("other", lambda r: r["evaluation"]["other_share"]),
        ("top share", lambda r: r["evaluation"]["top_share"]),
        ("entropy", lambda r: r["evaluation"]["entropy_nats"]),
        ("KL/seq", lambda r: r["evaluation"]["kl_seq_nats"]),
        ("silent groups", lambda r: _tail(r, "silent_share")),
        ("explained variance", lambda r: _tail(r, "explained_variance")),
        ("value loss", lambda r: _tail(r, "value_loss")),
        ("CPU s", lambda r: r["train_cpu_seconds"]),
    )

    def number(value: float | None, name: str) -> str:
        if value is None:
            return "-"
        return (
            f"{value:.4f}" if name in ("accuracy", "value loss") else f"{value:.3f}" if value < 10 else f"{value:.1f}"
        )

    rows = [["arm", "rate", "seeds", *(name for name, _ in columns), "accuracy - GRPO"]]
    base = {"evaluation": study.base["evaluation"], "curve": [], "trajectory": [], "train_cpu_seconds": None}
    rows.append(["*base*", "", "", *(number(read(base), name) for name, read in columns), ""])
    grpo = by_seed(study.compared, "grpo")
    for arm in study.arms:
        results = study.of(arm)
        row = [f"`{arm}`", f"{results[0]['learning_rate']:g}", str(len(results))]
        for name, read in columns:
            values = [value for result in results if (value := read(result)) is not None]
            row.append(number(statistics.fmean(values) if values else None, name))
        against = by_seed(study.compared, arm)
        row.append("" if arm == "grpo" or not grpo.keys() & against.keys() else _points(difference(against, grpo)))
        rows.append(row)
    about = "\n".join(f"- `{arm}`: {ARMS[arm].about}." for arm in study.arms)
    return (
        f"{about}\n\n{_markdown(rows)}\n\n"
        "Means over seeds, held out after training; *silent groups*, *explained variance* and *value loss*: median of "
        f"the last {LAST_ROUNDS} rounds of training; *along the way*: mean of the curve; the last column in points. "
        "Arms of PPO have the learning rate that was chosen for `ppo`, unless another is named."
    )


LAST_ROUNDS = 20


def _tail(result: Mapping[str, Any], name: str) -> float | None:
    """Median: where hardly an answer is wrong, explained variance may be any negative number."""
    values = [row[name] for row in result["trajectory"][-LAST_ROUNDS:] if row[name] is not None]
    return statistics.median(values) if values else None


def _alarm_text(study: Study) -> str:
    rows = [["arm", "seed", "WARN", "FAIL", "format WARN", "format FAIL", "top share >= .9", "top share at the end"]]
    for arm in study.arms:
        for r in sorted(study.of(arm), key=lambda result: result["seed"]):
            rows.append(
                [
                    f"`{arm}`",
                    str(r["seed"]),
                    *(
                        _or_never(r[f"{name}_round"])
                        for name in ("warn", "fail", "format_warn", "format_fail", "top_share_over_0_9")
                    ),
                    f"{r['evaluation']['top_share']:.3f}",
                ]
            )
    return (
        f"{_seen_text(study)}\n\n{_markdown(rows)}\n\n"
        "Rounds. *WARN* and *FAIL*: the first `format-collapse` or `entropy-collapse` finding; the next two of "
        "`format-collapse` alone; *>= .9*: the first of two rounds in a row in which one format has nine of ten "
        "completions."
    )


def _seen_text(study: Study) -> str:
    lines = []
    for arm in study.arms:
        collapsed = [r for r in study.of(arm) if r["top_share_over_0_9_round"] is not None]
        rest = [r for r in study.of(arm) if r["top_share_over_0_9_round"] is None]
        warned = [r for r in collapsed if r["warn_round"] is not None]
        leads = [r["top_share_over_0_9_round"] - r["warn_round"] for r in warned]
        lead = f", median lead {statistics.median(leads):.0f} rounds" if leads else ""
        lines.append(
            f"- `{arm}`: {len(collapsed)} of {len(study.of(arm))} seeds passed .9; the monitor warned in {len(warned)} "
            f"of them{lead}, failed {sum(r['fail_round'] is not None for r in collapsed)}. Of the others it warned in "
            f"{sum(r['warn_round'] is not None for r in rest)} of {len(rest)}."
        )
    return "\n".join(lines)


def _or_never(step: int | None) -> str:
    return "never" if step is None else str(step)


def _tuning_text(study: Study) -> str:
    rates = sorted({rate for found in study.tuning.values() for rate in found})
    rows = [["arm", *(f"{rate:g}" for rate in rates)]]
    for arm, found in study.tuning.items():
        cells = [arm]
        for rate in rates:
            if rate not in found:
                cells.append("-")
                continue
            text = f"{statistics.fmean(found[rate]):.4f} ({', '.join(f'{each:.3f}' for each in found[rate])})"
            cells.append(f"**{text}**" if rate == study.rates[arm] else text)
        rows.append(cells)
    return (
        f"{_markdown(rows)}\n\nHeld-out accuracy after training, mean (and each) of seeds "
        f"{_list(study.plan.tuning_seeds)}; chosen: the highest mean. PPO's `value_learning_rate` stayed at its "
        "default."
    )


def _varied_text(study: Study) -> str:
    rows = [["setting", "rate", "seeds", "accuracy", "each", "along the way", "effective", "explained variance"]]
    plain = [result for result in study.tuned.values() if result["learning_rate"] >= study.rates["ppo"]]
    about = {"ppo": "as it is"} | {name: arm.about for name, arm in VARIATIONS.items()}
    groups: dict[tuple[str, float], list[Mapping[str, Any]]] = {}
    for result in [*plain, *study.varied.values()]:
        if result["arm"] in about:
            groups.setdefault((result["arm"], result["learning_rate"]), []).append(result)
    for (name, rate), results in sorted(
        groups.items(), key=lambda group: (list(about).index(group[0][0]), group[0][1])
    ):
        explained = [value for r in results if (value := _tail(r, "explained_variance")) is not None]
        rows.append(
            [
                about[name],
                f"{rate:g}",
                str(len(results)),
                f"{statistics.fmean(r['evaluation']['accuracy'] for r in results):.4f}",
                ", ".join(f"{r['evaluation']['accuracy']:.4f}" for r in results),
                f"{statistics.fmean(along_the_way(r) for r in results):.3f}" if results[0]["curve"][1:] else "-",
                f"{statistics.fmean(r['evaluation']['effective_formats'] for r in results):.2f}",
                f"{statistics.fmean(explained):.2f}" if explained else "-",
            ]
        )
    return (
        f"Critic `shared_detached`, seeds {_list(study.plan.tuning_seeds)}; the comparison above runs the "
        f"first row.\n\n{_markdown(rows)}"
    )


def _made_with(study: Study) -> str:
    results = [*study.compared.values(), *study.tuned.values(), *study.varied.values()]
    packages = results[0]["packages"]
    versions = ", ".join(f"{name} {version}" for name, version in packages.items() if version is not None)
    cpu = sum(r["train_cpu_seconds"] + r["evaluate_cpu_seconds"] for r in results)
    faults = sum(r["faults"] for r in study.compared.values())
    sources = {r["ppo_sha256"] for r in results if r["arm"] != "grpo"}
    mixed = "" if len(sources) == 1 else f" The runs were made with {len(sources)} states of PPOTrainer's sources."
    return (
        f"## Made with\n\n{versions}; {results[0]['machine']['system']}, one thread a run. {len(results)} runs, "
        f"{cpu / 60:.0f} CPU-minutes; {faults} faults inside the monitor in the comparison.{mixed}"
    )


def _list(values: Sequence[object]) -> str:
    return ", ".join(map(str, values))


def _kept(study: Study) -> dict[str, Any]:
    def thinned(result: Mapping[str, Any]) -> dict[str, Any]:
        rows = result["trajectory"]
        kept = [row for row in rows[:-1] if row["round"] % 5 == 0] + rows[-1:]
        return {**result, "trajectory": kept, "settings": result["settings"]["training"]}

    whole: dict[str, Any] = _compact(
        {
            "rates": dict(study.rates),
            "tuning": {
                arm: {f"{rate:g}": list(each) for rate, each in rates.items()} for arm, rates in study.tuning.items()
            },
            "claim": {"mean": study.claim.mean, "half": study.claim.half, "lower": lower_end(study.claim)},
            "base": study.base["evaluation"],
            "runs": [thinned(result) for result in study.compared.values()],
            "varied": [thinned(result) for result in study.varied.values()],
        }
    )
    return whole


COLOURS: Mapping[str, str] = {
    "grpo": "#4f83cc",
    "ppo": "#e4572e",
    "ppo-shared": "#e6a532",
    "ppo-separate": "#3fa796",
    "ppo-kl": "#8e7cc3",
    "ppo-epochs": "#c76da2",
    "ppo-protect": "#7a8b3c",
}
LABELS: Mapping[str, str] = {"grpo": "GRPO", "ppo": "PPO"}
INK, DIM, GRID, WARN, FAIL = "#1b1f24", "#5b6470", "#dfe3e8", "#9a6a00", "#c0271a"
SMOOTH_ROUNDS = 10

Lines = list[tuple[list[float], list[float]]]
"""(rounds, values) of each seed."""


def _figures(study: Study, out: Path) -> dict[str, str]:
    """Draws what there is matplotlib and data for; file name to what it shows."""
    try:
        import matplotlib
    except ImportError:
        return {}
    if not all(study.of(arm) for arm in CLAIMED):
        return {}
    style: dict[Any, Any] = {
        "font.size": 10.5, "text.color": INK, "axes.edgecolor": GRID, "axes.labelcolor": DIM, "axes.titlecolor": INK,
        "axes.titlesize": 12, "axes.titleweight": "bold", "axes.titlelocation": "left", "axes.titlepad": 12.0,
        "axes.spines.top": False, "axes.spines.right": False, "axes.spines.left": False, "axes.grid": True,
        "axes.grid.axis": "y", "axes.axisbelow": True, "grid.color": GRID, "xtick.color": DIM, "ytick.color": DIM,
        "xtick.labelcolor": DIM, "ytick.labelcolor": DIM, "ytick.major.size": 0, "legend.frameon": False,
        "figure.facecolor": "white", "savefig.dpi": 160, "lines.solid_capstyle": "round",
    }  # fmt: skip
    matplotlib.use("agg")
    with matplotlib.rc_context(style):
        _draw_curves(study, out / "curves.png")
        _draw_collapse(study, out / "collapse.png")
        critic = _draw_critic(study, out / "critic.png")
    rounds = f"trailing mean over {SMOOTH_ROUNDS} rounds"
    return {
        "curves.png": f"Training reward ({rounds}), held-out accuracy along the way, and the final difference by seed. "
        "Lines: mean over seeds; bands: lowest to highest seed",
        "collapse.png": "Effective formats and top share of every seed, with the monitor's first WARN and FAIL",
        **(
            {"critic.png": "The critic: explained variance (trailing median) and value loss (trailing mean)"}
            if critic
            else {}
        ),
    }


def _series(
    results: Sequence[Mapping[str, Any]], name: str, middle: Callable[[Sequence[float]], float] = statistics.fmean
) -> Lines:
    """``middle`` of what was measured of ``name`` in the ``SMOOTH_ROUNDS`` up to each round, for each run."""
    lines: Lines = []
    for result in results:
        measured = {row["round"]: row[name] for row in result["trajectory"] if row[name] is not None}
        recent = {
            row["round"]: [value for at, value in measured.items() if 0 <= row["round"] - at < SMOOTH_ROUNDS]
            for row in result["trajectory"]
        }
        smooth = {at: middle(values) for at, values in recent.items() if values}
        if smooth:
            lines.append((list(smooth), list(smooth.values())))
    return lines


def _band(
    axis: Any,
    lines: Lines,
    colour: str,
    label: str,
    middle: Callable[[Sequence[float]], float] = statistics.fmean,
    **line: Any,
) -> None:
    """``middle`` over the seeds that were measured at a round, and the band from the lowest to the highest of them."""
    found: dict[float, list[float]] = {}
    for rounds, values in lines:
        for x, value in zip(rounds, values, strict=True):
            found.setdefault(x, []).append(value)
    at = sorted(found)
    # No line across rounds without a measurement.
    breaks = [before + 0.5 for before, after in itertools.pairwise(at) if after - before > CURVE_EVERY_ROUNDS]
    at = sorted([*at, *breaks])
    columns = [found.get(x, [math.nan]) for x in at]
    axis.fill_between(at, [min(c) for c in columns], [max(c) for c in columns], color=colour, alpha=0.16, linewidth=0)
    axis.plot(at, [middle(c) for c in columns], color=colour, linewidth=2.2, label=label, **line)


def _percent(axis: Any, decimals: int = 0) -> None:
    from matplotlib.ticker import PercentFormatter

    axis.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=decimals))


def _draw_curves(study: Study, path: Path) -> None:
    from matplotlib import pyplot

    figure, (reward, held_out, paired) = pyplot.subplots(
        1, 3, figsize=(13.2, 4.1), width_ratios=(1, 1, 0.62), layout="constrained"
    )
    base = study.base["evaluation"]["accuracy"]
    for arm in CLAIMED:
        _band(reward, _series(study.of(arm), "reward"), COLOURS[arm], LABELS[arm])
        points: Lines = [
            ([p["round"] for p in r["curve"]], [p["accuracy"] for p in r["curve"]]) for r in study.of(arm) if r["curve"]
        ]
        _band(held_out, points, COLOURS[arm], LABELS[arm], marker="o", markersize=4.2)
    for axis, title in ((reward, "Training reward"), (held_out, "Held-out accuracy")):
        axis.set(title=title, xlabel="round of 64 completions", xlim=(0, study.plan.rounds))
        axis.margins(x=0)
        _percent(axis)
    held_out.legend(loc="lower right", bbox_to_anchor=(1.0, 0.04))
    reward.axhline(base, color=DIM, linewidth=1, linestyle=(0, (4, 3)))
    reward.annotate("base, held out", (1.0, base), (0, -4), xycoords=("axes fraction", "data"), ha="right", va="top",
                    textcoords="offset points", color=DIM, fontsize=9.5)  # fmt: skip
    low = min(held_out.get_ylim()[0], reward.get_ylim()[0])
    for axis in (reward, held_out):
        axis.set_ylim(low, 1.003)

    ppo, grpo = by_seed(study.compared, "ppo"), by_seed(study.compared, "grpo")
    seeds = sorted(ppo.keys() & grpo.keys())
    found = study.claim
    paired.axhline(0.0, color=DIM, linewidth=1)
    paired.axhline(-100 * MARGIN, color=FAIL, linewidth=1.2, linestyle=(0, (4, 3)))
    paired.annotate(f"{-100 * MARGIN:.0f} point", (0.02, -100 * MARGIN), (0, 4), textcoords="offset points",
                    xycoords=("axes fraction", "data"), color=FAIL, fontsize=9.5)  # fmt: skip
    paired.scatter(range(len(seeds)), [100 * (ppo[s] - grpo[s]) for s in seeds], s=46, color=COLOURS["ppo"],
                   edgecolor="white", linewidth=1, zorder=3)  # fmt: skip
    paired.errorbar([len(seeds) + 0.4], [100 * found.mean], yerr=None if found.half is None else [100 * found.half],
                    fmt="D", markersize=7, color=INK, elinewidth=2, capsize=5, capthick=2, zorder=4)  # fmt: skip
    paired.set(title="PPO - GRPO, at the end", ylabel="points of held-out accuracy", xlim=(-0.6, len(seeds) + 1.0))
    paired.set_xticks([*range(len(seeds)), len(seeds) + 0.4], [*map(str, seeds), "mean,\n95 %"])
    paired.set_xlabel("seed", x=0.4)
    bottom, top = paired.get_ylim()
    paired.set_ylim(min(bottom, -100 * MARGIN - 0.4), max(top, 0.4))
    _save(figure, path)


def _draw_collapse(study: Study, path: Path) -> None:
    from matplotlib import pyplot
    from matplotlib.lines import Line2D

    from rlmon.report.figure import SMOOTHING_ROUNDS
    from rlmon.statistics import trailing_mean

    figure, axes = pyplot.subplots(2, 2, figsize=(11.4, 6.6), sharex=True, sharey="row")
    figure.set_layout_engine("constrained", wspace=0.05)
    marks = (("warn_round", WARN, "o", 11.5, "first WARN"), ("fail_round", FAIL, "X", 8.5, "first FAIL"))
    for column, arm in enumerate(CLAIMED):
        for row, (name, label) in enumerate((("effective_formats", "effective formats"), ("top_share", "top share"))):
            axis = axes[row][column]
            for result in study.of(arm):
                rows = [each for each in result["trajectory"] if each[name] is not None]
                rounds = [each["round"] for each in rows]
                values = trailing_mean([each[name] for each in rows], SMOOTHING_ROUNDS).tolist()
                axis.plot(rounds, values, color=COLOURS[arm], alpha=0.75, linewidth=1.5)
                for mark, colour, shape, size, _ in marks:
                    if result[mark] in rounds:
                        at = rounds.index(result[mark])
                        above = 4 if mark == "warn_round" else 5
                        axis.plot(rounds[at], values[at], shape, color=colour, markersize=size, zorder=above,
                                  markeredgecolor="white", markeredgewidth=1.1)  # fmt: skip
            axis.margins(x=0)
            if column == 0:
                axis.set_ylabel(label)
            if row == 0:
                axis.set_title(f"{LABELS[arm]}, one line a seed")
                axis.axhline(study.base["evaluation"][name], color=DIM, linewidth=1, linestyle=(0, (4, 3)))
                axis.annotate("base", (1.0, study.base["evaluation"][name]), (0, 3), textcoords="offset points",
                              xycoords=("axes fraction", "data"), ha="right", color=DIM, fontsize=9.5)  # fmt: skip
                axis.set_ylim(0.9, 6.0)
            else:
                axis.axhline(TOP_SHARE_LINE, color=DIM, linewidth=1, linestyle=(0, (4, 3)))
                axis.set(xlabel="round of 64 completions", ylim=(0.2, 1.03), xlim=(0, study.plan.rounds))
                _percent(axis)
    handles = [
        Line2D([], [], marker=shape, color=colour, linestyle="", markersize=size, markeredgecolor="white", label=label)
        for _, colour, shape, size, label in marks
    ]
    axes[0][1].legend(handles=handles, loc="lower right", bbox_to_anchor=(1.02, 1.0), ncols=2)
    _save(figure, path)


def _draw_critic(study: Study, path: Path) -> bool:
    from matplotlib import pyplot

    arms = [arm for arm in study.arms if _series(study.of(arm), "explained_variance")]
    if not arms:
        return False
    figure, (explained, loss) = pyplot.subplots(1, 2, figsize=(11.4, 4.2), layout="constrained")
    for arm in arms:
        label = LABELS.get(arm, arm)
        lines = _series(study.of(arm), "explained_variance", statistics.median)
        _band(explained, lines, COLOURS[arm], label, statistics.median)
        _band(loss, _series(study.of(arm), "value_loss"), COLOURS[arm], label)
    explained.axhline(0.0, color=DIM, linewidth=1)
    explained.set(title="Explained variance of the returns", ylim=(-0.2, 0.4))
    loss.set(title="Value loss, half a squared error")
    loss.set_yscale("log")
    loss.set_yticks([0.3, 0.1, 0.03, 0.01, 0.003], ["0.3", "0.1", "0.03", "0.01", "0.003"])
    for axis in (explained, loss):
        axis.minorticks_off()
        axis.set(xlabel="round of 64 completions", xlim=(0, study.plan.rounds))
    loss.legend(loc="lower left", fontsize=9.5)
    _save(figure, path)
    return True


def _save(figure: Any, path: Path) -> None:
    from matplotlib import pyplot

    figure.savefig(path, metadata={"Software": None})
    pyplot.close(figure)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m studies.ppo_study", description="Trains PPO and GRPO on equal samples and compares them."
    )
    parser.add_argument("--jobs", type=int, default=1, help="processes (default 1), one thread each")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK.rounds} rounds a run: whether all of it works")
    parser.add_argument("--cells", type=Path, help=f"results of runs (default {CELLS_DIR}; quick: its folder quick)")
    parser.add_argument("--out", type=Path, help=f"page and figures (default {REPORT_DIR}; quick: beside its runs)")
    parser.add_argument("--only-report", action="store_true", help="compare what is done, train nothing")
    options = parser.parse_args(argv)
    plan = QUICK if options.quick else Plan()
    cells = options.cells or (CELLS_DIR / "quick" if options.quick else CELLS_DIR)
    out = options.out or (cells / "report" if options.quick else REPORT_DIR)

    def results(runs: Sequence[Run]) -> Results:
        return finished(runs, cells) if options.only_report else run_all(runs, cells, options.jobs)

    tuning_results = results(plan.tuning())
    tuning = tuned(plan.tuning(), tuning_results)
    if set(tuning) != set(CLAIMED):
        print("The learning rates are not tuned yet: run it without --only-report.", file=sys.stderr)
        return 2
    rates = {arm: chosen_rate(found) for arm, found in tuning.items()}
    _say(f"learning rates: {', '.join(f'{arm} {rate:g}' for arm, rate in rates.items())}")
    study = Study(
        plan=plan,
        rates=rates,
        tuned=tuning_results,
        compared=results(plan.compared(rates)),
        varied=results(plan.varied(rates)),
        base=base_evaluation(plan.task(plan.rates[0]), cells),
    )
    if not by_seed(study.compared, "ppo").keys() & by_seed(study.compared, "grpo").keys():
        print("There is no seed yet that both arms have run: run it without --only-report.", file=sys.stderr)
        return 2
    command = "python -m studies.ppo_study" + (" --quick" if options.quick else "")
    print(write_report(study, out, command))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
