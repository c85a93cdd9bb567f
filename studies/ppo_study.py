"""PPO against GRPO at two completions a prompt, measured: ``python -m studies.ppo_study``.

Both train the lab's arithmetic task on the same number of completions. First each gets its learning rate, from one
grid and on seeds of its own; then both run on seeds that neither was tuned on, and are compared seed by seed. Finished
runs are kept and not run again while their settings stay the same.
"""

from __future__ import annotations

import argparse
import hashlib
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rlmon
from rlmon.lab.claims import TOP_SHARE_LINE
from rlmon.lab.demo import COLLAPSE_DETECTORS, first_sustained
from rlmon.lab.evaluate import evaluate
from rlmon.lab.task import reward_correct, split_questions
from studies.cells import (
    KL_EVERY_STEPS,
    MAX_COMPLETION_TOKENS,
    add_study_options,
    base,
    base_evaluation,
    finished,
    keep,
    places,
    run_all,
    say,
    sources_sha256,
    trained,
)
from studies.ppo_arms import (
    CLAIMED,
    CURVE_EVERY_ROUNDS,
    CURVE_SAMPLES,
    QUICK,
    ROUND_COMPLETIONS,
    Plan,
    Run,
    curve_questions,
    round_of,
    training,
)
from studies.ppo_report import write_report
from studies.ppo_results import Results, Study, by_seed, chosen_rate, tuned
from studies.rewards import parse

if TYPE_CHECKING:
    from rlmon.records import StepRecord

CELLS_DIR = Path(".cache/ppo-study")
REPORT_DIR = Path("docs/ppo")

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
    """Trains and judges one run and writes ``<folder>/<run>.json``."""
    return keep(run, folder, lambda: _train(run, folder))


def _train(run: Run, folder: Path) -> dict[str, Any]:
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    from rlmon.trl import PPOConfig, PPOTrainer

    arm, updates = run.arm, run.arm.updates_per_round
    trainer: type[Any] = GRPOTrainer if arm.ppo is None else PPOTrainer
    config: type[Any] = GRPOConfig if arm.ppo is None else PPOConfig
    base_model, tokenizer = base(run.task.base)
    questions = curve_questions()
    curve: list[dict[str, Any]] = []
    evaluating = 0.0

    def measure(model: Any, at: int) -> None:
        nonlocal evaluating
        began = time.process_time()
        found = evaluate(
            model, base_model, tokenizer, questions, parse,
            keep_samples=0, samples_per_prompt=CURVE_SAMPLES, max_new_tokens=MAX_COMPLETION_TOKENS,
        )  # fmt: skip
        curve.append({"round": at, "accuracy": found.accuracy, "effective_formats": found.effective_formats})
        evaluating += time.process_time() - began

    class Curve(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
            measure(model, 0)

        def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
            if state.global_step % (CURVE_EVERY_ROUNDS * updates) == 0:
                measure(model, state.global_step // updates)

    train, _ = split_questions()
    found = trained(
        run,
        folder,
        trainer=trainer,
        args=lambda output: config(output_dir=output, seed=run.seed, **training(run)),
        rows=[{"prompt": q.prompt, "answer": q.answer} for q in train],
        reward=reward_correct,
        kl_every_steps=KL_EVERY_STEPS * updates,
        prepare=lambda built: built.add_callback(Curve()) if run.curve else None,
        away=lambda: evaluating,
    )
    state, over = found.trainer.state, first_sustained(found.records, TOP_SHARE_LINE)

    def first(severities: Sequence[str], detectors: Sequence[str] = COLLAPSE_DETECTORS) -> int | None:
        steps = [f.step for f in found.log.findings if f.severity in severities and f.detector in detectors]
        return round_of(min(steps), updates) if steps else None

    return {
        **found.result,
        "ppo_sha256": sources_sha256(sorted((Path(rlmon.__file__).parent / "trl" / "ppo").glob("*.py"))),
        "weights_sha256": _weights_sha256(found.trainer.model),
        "learning_rate": run.task.learning_rate,
        "evaluation": found.judged["evaluation"],
        "curve": curve,
        "trajectory": trajectory(found.records, state.log_history, updates),
        "warn_round": first(("warn", "fail")),
        "fail_round": first(("fail",)),
        "format_warn_round": first(("warn", "fail"), ("format-collapse",)),
        "format_fail_round": first(("fail",), ("format-collapse",)),
        "top_share_over_0_9_round": None if over is None else round_of(over, updates),
        "completions": state.global_step // updates * ROUND_COMPLETIONS,
    }


def _weights_sha256(model: Any) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode() + tensor.detach().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m studies.ppo_study", description="Trains PPO and GRPO on equal samples and compares them."
    )
    parser.add_argument("--quick", action="store_true", help=f"{QUICK.rounds} rounds a run: whether all of it works")
    add_study_options(parser, CELLS_DIR, REPORT_DIR)
    options = parser.parse_args(argv)
    plan = QUICK if options.quick else Plan()
    cells, out = places(options, CELLS_DIR, REPORT_DIR)

    def results(runs: Sequence[Run]) -> Results:
        return finished(runs, cells) if options.only_report else run_all(run_cell, runs, cells, options.jobs)

    tuning_results = results(plan.tuning())
    tuning = tuned(plan.tuning(), tuning_results)
    if set(tuning) != set(CLAIMED):
        print("The learning rates are not tuned yet: run it without --only-report.", file=sys.stderr)
        return 2
    rates = {arm: chosen_rate(found) for arm, found in tuning.items()}
    say(f"learning rates: {', '.join(f'{arm} {rate:g}' for arm, rate in rates.items())}")
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
