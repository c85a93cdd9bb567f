"""The study of PPO against GRPO: how a rate is chosen, what is compared, when a run counts as done, and a tiny one."""

from __future__ import annotations

import dataclasses
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlmon.records import StepRecord
from studies import cells, ppo_arms, ppo_results, ppo_study
from studies.ppo_arms import ARMS, LEARNING_RATES, QUICK, VARIATIONS, Plan, Run
from studies.ppo_report import NOTES
from studies.tables import Interval

PLAN = Plan()
RUN = Run(task=PLAN.task(4e-4), arm=ARMS["ppo"], seed=0)


def test_the_rate_with_the_highest_mean_is_chosen_and_of_equals_the_smallest() -> None:
    # Means .90, .95, .95: the middle one is the smaller of the two best, in whatever order they come.
    found = {1e-3: [0.97, 0.93], 2.5e-4: [0.9, 0.9], 4e-4: [0.94, 0.96]}
    assert ppo_results.chosen_rate(found) == 4e-4
    assert ppo_results.chosen_rate(dict(reversed(found.items()))) == 4e-4
    assert ppo_results.chosen_rate({1e-3: [0.9], 4e-4: [0.8]}) == 1e-3
    with pytest.raises(ValueError, match="empty"):
        ppo_results.chosen_rate({})


def test_the_difference_is_paired_over_the_seeds_that_both_have() -> None:
    ppo = {0: 0.97, 1: 0.98, 2: 0.96, 7: 0.1}
    grpo = {2: 0.96, 1: 0.96, 0: 0.96, 8: 0.2}
    # Differences .01, .02, 0: mean .01, standard deviation .01; half: t(.975, 2) .01 / sqrt(3) = 4.30265 * .0057735.
    found = ppo_results.difference(ppo, grpo)
    assert (found.mean, found.half, found.n) == (pytest.approx(0.01), pytest.approx(0.024841, abs=1e-6), 3)
    assert ppo_results.lower_end(found) == pytest.approx(-0.014841, abs=1e-6)
    assert ppo_results.lower_end(Interval(mean=0.3, half=None, n=1)) is None


def test_rounds_of_optimizer_steps() -> None:
    # 16 updates a round: steps 1 to 16 train on round 1.
    assert [ppo_arms.round_of(step, 16) for step in (1, 16, 17, 32, 33)] == [1, 1, 2, 2, 3]
    assert [ppo_arms.round_of(step, 1) for step in (1, 2)] == [1, 2]


def test_a_row_of_the_trajectory_is_a_round() -> None:
    def record(step: int, reward: float | None) -> StepRecord:
        return StepRecord(
            attempt=0, step=step, time_unix_seconds=0.0, rounds=(), completions=0, prompts=0, tokens=0,
            metrics={"rlmon/health/reward_mean": reward},
        )  # fmt: skip

    records = [record(1, 0.5), record(2, None), record(3, None), record(4, None)]
    logged: list[dict[str, Any]] = [
        {"step": 2, "loss/value_avg": 0.25, "value/explained_variance": -1.0},
        {"step": 4, "loss/value_avg": 0.125},
        {"step": 4, "train_runtime": 1.0},
    ]
    first, second = ppo_study.trajectory(records, logged, updates_per_round=2)
    assert (first["round"], first["reward"], first["value_loss"], first["explained_variance"]) == (1, 0.5, 0.25, -1.0)
    # Not measured is not 0.
    assert (second["round"], second["reward"], second["value_loss"], second["explained_variance"]) == (
        2, None, 0.125, None,
    )  # fmt: skip


def test_a_run_is_done_only_with_the_same_settings(tmp_path: Path) -> None:
    cells.write_json(tmp_path / f"{RUN.name}.json", {"fingerprint": RUN.fingerprint()})
    assert cells.finished([RUN], tmp_path).keys() == {RUN.name}
    reworded = dataclasses.replace(RUN, arm=dataclasses.replace(RUN.arm, about="in other words"))
    assert reworded.fingerprint() == RUN.fingerprint()
    others = [
        dataclasses.replace(RUN, seed=1),
        dataclasses.replace(RUN, curve=False),
        dataclasses.replace(RUN, task=PLAN.task(1e-3)),
        dataclasses.replace(RUN, task=dataclasses.replace(RUN.task, steps=3)),
        *(dataclasses.replace(RUN, arm=arm) for arm in (*ARMS.values(), *VARIATIONS.values()) if arm is not RUN.arm),
    ]
    assert len({RUN.fingerprint(), *(other.fingerprint() for other in others)}) == 1 + len(others)


def test_both_train_on_the_same_completions_and_differ_in_nothing_else() -> None:
    grpo, ppo = (ppo_arms.training(dataclasses.replace(RUN, arm=ARMS[arm])) for arm in ("grpo", "ppo"))
    both = {name: (grpo.get(name), ppo.get(name)) for name in grpo.keys() | ppo.keys()}
    assert {name: values for name, values in both.items() if values[0] != values[1]} == {
        "beta": (0.0, None), "scale_rewards": ("group", None), "kl_coef": (None, 0.0),
        "critic": (None, "shared_detached"),
    }  # fmt: skip
    assert (grpo["loss_type"], grpo["per_device_train_batch_size"], grpo["num_generations"]) == ("bnpo", 64, 2)
    epochs = ppo_arms.training(dataclasses.replace(RUN, arm=ARMS["ppo-epochs"]))
    # Four batches of 16 are a round of 64; four passes over four batches are 16 updates on each of 180 rounds.
    assert (epochs["per_device_train_batch_size"], epochs["max_steps"]) == (16, 180 * 16)
    for arm in (*ARMS.values(), *VARIATIONS.values()):
        settings = ppo_arms.training(dataclasses.replace(RUN, arm=arm))
        per_round = settings["per_device_train_batch_size"] * settings.get("steps_per_generation", 1)
        updates = settings.get("steps_per_generation", 1) * settings.get("num_iterations", 1)
        assert (per_round, settings["max_steps"]) == (64, 180 * updates), arm.name


def test_tuning_and_comparison_share_no_seed_and_the_claim_comes_first() -> None:
    tuning = PLAN.tuning()
    assert {(run.arm.name, run.task.learning_rate) for run in tuning} == {
        (arm, rate) for arm in ("grpo", "ppo") for rate in LEARNING_RATES
    }
    compared = PLAN.compared({"grpo": 1e-3, "ppo": 4e-4})
    assert not {run.seed for run in tuning} & {run.seed for run in compared}
    varied = PLAN.varied({"ppo": 1.6e-3})
    assert {run.seed for run in varied} == {run.seed for run in tuning}
    assert {run.task.learning_rate for run in varied if run.arm.name == "lam-1"} == {1.6e-3}
    assert {run.task.learning_rate for run in varied if run.arm.name == "not-whitened"} == {1.6e-3, 2.5e-3, 4e-3}
    assert [run.arm.name for run in compared[:10]] == ["grpo", "ppo"] * 5
    assert {run.arm.name: run.task.learning_rate for run in compared} == {
        # 16 updates a round, at a tenth of the rate.
        arm: {"grpo": 1e-3, "ppo-epochs": 4e-5}.get(arm, 4e-4)
        for arm in ARMS
    }
    assert {run.seed for run in compared if run.arm.name == "ppo"} == set(PLAN.seeds)
    assert {run.seed for run in compared if run.arm.name == "ppo-kl"} == set(PLAN.more_seeds)


def test_only_missing_runs_are_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []

    def run_cell(run: Run, folder: Path) -> dict[str, Any]:
        ran.append(run.name)
        result = {
            "fingerprint": run.fingerprint(),
            "evaluation": {"accuracy": 0.5, "effective_formats": 2.0, "kl_seq_nats": 0.1},
            "warn_round": None,
            "fail_round": 3,
            "train_cpu_seconds": 1.0,
            "evaluate_cpu_seconds": 1.0,
        }
        cells.write_json(folder / f"{run.name}.json", result)
        return result

    runs = PLAN.tuning()[:3]
    assert cells.run_all(run_cell, runs[:2], tmp_path, jobs=1).keys() == {run.name for run in runs[:2]}
    found = cells.run_all(run_cell, runs, tmp_path, jobs=1)
    assert ran == [run.name for run in runs]
    assert ppo_results.tuned(runs, found) == {"grpo": {2.5e-4: [0.5], 4e-4: [0.5]}, "ppo": {2.5e-4: [0.5]}}


def test_without_results_there_is_no_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ppo_study.main(["--only-report", "--cells", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert "not tuned yet" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_quick_study_runs_reports_and_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cells, "PROMPTS", 16)
    monkeypatch.setattr(ppo_arms, "CURVE_PROMPTS", 16)
    for module in (ppo_arms, ppo_study):
        monkeypatch.setattr(module, "CURVE_EVERY_ROUNDS", 2)
    monkeypatch.setattr(ppo_study, "QUICK", dataclasses.replace(QUICK, rates=(1e-3,), variations=("lam-1",)))
    out = tmp_path / "out"
    options = ["--quick", "--cells", str(tmp_path), "--out", str(out)]
    assert ppo_study.main(options) == 0
    results = json.loads((out / "results.json").read_text())
    assert results["claim"]["lower"] is not None
    assert {run["arm"] for run in results["runs"]} == {"grpo", "ppo", "ppo-epochs", "ppo-protect"}
    for run in results["runs"]:
        assert [point["round"] for point in run["curve"]] == [0, 2], run["arm"]
        assert run["completions"] == 3 * 64
        assert (run["trajectory"][-1]["value_loss"] is None) == (run["arm"] == "grpo")
        assert run["faults"] == 0
    assert all((out / name).stat().st_size > 10_000 for name in ("curves.png", "collapse.png"))

    page = out / "study.md"
    page.write_text(page.read_text() + f"\n{NOTES}\n\nKept.\n")
    monkeypatch.setattr(ppo_study, "run_cell", lambda run, folder: pytest.fail(f"{run.name} ran twice"))
    assert ppo_study.main(options) == 0
    assert page.read_text().endswith(f"{NOTES}\n\nKept.\n")


@pytest.mark.slow
@pytest.mark.parametrize("arm", ["grpo", "ppo"])
def test_looking_at_the_curve_does_not_change_training(
    arm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setattr(cells, "PROMPTS", 8)
    monkeypatch.setattr(ppo_arms, "CURVE_PROMPTS", 16)
    for module in (ppo_arms, ppo_study):
        monkeypatch.setattr(module, "CURVE_EVERY_ROUNDS", 1)
    watched = Run(task=Plan(rounds=4).task(1e-3), arm=ARMS[arm], seed=5)
    ppo_study.base_evaluation(watched.task, tmp_path)
    looked = ppo_study.run_cell(watched, tmp_path / "looked")
    after = (random.random(), float(np.random.rand()), float(torch.rand(())))
    not_looked = ppo_study.run_cell(dataclasses.replace(watched, curve=False), tmp_path / "not")
    assert (random.random(), float(np.random.rand()), float(torch.rand(()))) == after
    assert (len(looked["curve"]), len(not_looked["curve"])) == (5, 0)
    assert looked["weights_sha256"] == not_looked["weights_sha256"]
    assert looked["trajectory"] == not_looked["trajectory"]
