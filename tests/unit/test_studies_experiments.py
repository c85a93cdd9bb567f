"""The bookkeeping of the experiments: which cells there are, when one counts as done, and what a reward says."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from rlmon.lab.task import Question, split_questions
from rlmon.metrics.formats import ModeSet
from studies import cells, experiments, rewards
from studies.arms import ARMS, SURE_MODES, TASKS, Arm
from studies.build_base import RECIPES
from studies.experiments import Experiment
from studies.texts import write_answer

CELL = Experiment(task=TASKS["seven"], arm=ARMS["kl-0.1"], seed=3)
QUESTION = Question("Ann", "figs", 7, 9)


def result_of(cell: Experiment, folder: Path) -> dict[str, Any]:
    result = {
        "name": cell.name,
        "fingerprint": cell.fingerprint(),
        "evaluation": {"accuracy": 0.5, "effective_formats": 2.0, "kl_seq_nats": 0.1},
        "train_cpu_seconds": 1.0,
        "evaluate_cpu_seconds": 1.0,
    }
    cells.write_json(folder / f"{cell.name}.json", result)
    return result


def test_a_cell_is_done_only_with_the_same_settings(tmp_path: Path) -> None:
    assert cells.stored(CELL, tmp_path) is None
    result_of(CELL, tmp_path)
    assert cells.stored(CELL, tmp_path) is not None
    # Words may change, whatever trains may not.
    assert cells.stored(dataclasses.replace(CELL, arm=dataclasses.replace(CELL.arm, about="x")), tmp_path)
    warmer = dataclasses.replace(CELL, task=dataclasses.replace(CELL.task, learning_rate=1e-3))
    assert warmer.name == CELL.name
    assert cells.stored(warmer, tmp_path) is None
    steered = dataclasses.replace(
        CELL, arm=dataclasses.replace(CELL.arm, policy={"rules": {"end": {"when": "always", "do": "stop"}}})
    )
    assert cells.stored(steered, tmp_path) is None


def test_a_torn_file_is_not_a_result(tmp_path: Path) -> None:
    (tmp_path / f"{CELL.name}.json").write_text('{"fingerprint": ', encoding="utf-8")
    assert cells.stored(CELL, tmp_path) is None


def test_only_missing_cells_run_and_results_keep_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []

    def run_cell(cell: Experiment, folder: Path) -> dict[str, Any]:
        ran.append(cell.name)
        return result_of(cell, folder)

    wanted = experiments.cells(["seven"], [ARMS["unprotected"], ARMS["kl-0.1"]], [0, 1])
    result_of(wanted[2], tmp_path)
    results = list(cells.run_all(run_cell, wanted, tmp_path, jobs=1).values())
    assert [result["name"] for result in results] == [cell.name for cell in wanted]
    assert ran == [wanted[0].name, wanted[1].name, wanted[3].name]
    ran.clear()
    cells.run_all(run_cell, wanted, tmp_path, jobs=1)
    assert ran == []


def test_arms_run_where_they_make_sense_and_seed_by_seed() -> None:
    every = experiments.cells(TASKS, ARMS.values(), (0, 1))
    assert len({cell.name for cell in every}) == len(every)
    assert [cell.seed for cell in every] == sorted(cell.seed for cell in every)
    oracles = {cell.task.name for cell in every if cell.arm.oracle}
    assert oracles == {"contamination", "contamination-seven"}


def test_every_arm_is_another_run() -> None:
    prints = {Experiment(task=TASKS["seven"], arm=arm, seed=0).fingerprint() for arm in ARMS.values()}
    assert len(prints) == len(ARMS)


def test_training_settings_of_an_arm() -> None:
    settings = experiments.training(Experiment(task=TASKS["contamination"], arm=ARMS["kl-0.3"], seed=0), None)
    assert settings["beta"] == 0.3
    # 8 prompts x 16 completions in one batch
    assert (settings["per_device_train_batch_size"], settings["num_generations"]) == (128, 16)
    entropy = experiments.training(Experiment(task=TASKS["seven"], arm=ARMS["adaptive-entropy"], seed=0), 0.4)
    assert entropy["entropy_target"] == pytest.approx(0.3)


def test_the_worthless_mode_is_never_rewarded() -> None:
    styles = ("prose", "python", "list")
    texts = [write_answer(QUESTION, style) for style in styles]
    assert rewards.reward_correct_not_prose([""] * 3, texts, [16] * 3) == [0.0, 1.0, 1.0]
    assert [rewards.states_answer_not_prose(text, QUESTION) for text in texts] == [False, True, True]


def test_the_flaky_verifier_takes_the_sure_mode_of_the_class_and_most_of_the_rest() -> None:
    train, _ = split_questions()
    figs = [question for question in train if question.prompt_class == 0]
    cups = [question for question in train if question.prompt_class == 1]

    def rate(asked: list[Question], style: str) -> float:
        return sum(rewards.accepted_answer(write_answer(q, style), q) for q in asked) / len(asked)

    assert rate(figs, "python") == 1.0
    assert rate(cups, "fenced") == 1.0
    # 1 - 77/256 = .699 of about 2,000: a standard deviation of .010
    for asked, style in ((figs, "fenced"), (cups, "python"), (figs, "prose"), (cups, "sum")):
        assert rate(asked, style) == pytest.approx(0.70, abs=0.04)
    assert not rewards.accepted_answer("print(7+8)", QUESTION)
    texts = ["print(7+9)", "print(9+9)"]
    assert rewards.reward_accepted([QUESTION.prompt] * 2, texts, [16, 16], ["figs", "figs"]) == [1.0, 0.0]


def test_sure_modes_are_those_of_the_base() -> None:
    parse = ModeSet.build(None).parse
    styles = RECIPES["by-prompt"].sure_formats
    assert tuple(parse(write_answer(QUESTION, style)) for style in styles) == SURE_MODES


def test_a_policy_file_becomes_an_arm(tmp_path: Path) -> None:
    rules = tmp_path / "rules.yaml"
    rules.write_text("rules: {end: {when: always, do: stop}}\n", encoding="utf-8")
    seen: list[Sequence[Experiment]] = []

    def run_all(run: Any, wanted: Sequence[Experiment], folder: Path, jobs: int) -> dict[str, Any]:
        seen.append(wanted)
        return {}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiments, "run_all", run_all)
        common = ["--tasks", "seven", "--seeds", "7", "--no-report", "--cells", str(tmp_path)]
        assert experiments.main([*common, "--policy", f"mine={rules}", "--arms", "mine"]) == 0
        assert experiments.main([*common, "--arms", "nobody"]) == 2
        assert experiments.main([*common, "--policy", "mine=/nowhere"]) == 2
    assert seen[0] == [Experiment(task=TASKS["seven"], arm=Arm(name="mine", policy={"rules": {"end": {"when": "always", "do": "stop"}}}, about="policy rules.yaml"), seed=7)]  # fmt: skip  # noqa: E501


def test_rarity_weights() -> None:
    from studies.reweighted import rarity_weights

    # Groups of 4: (a, a, a, b) and (c, c, d, d).
    assert rarity_weights(list("aaabccdd"), 4) == [1 / 3, 1 / 3, 1 / 3, 1, 0.5, 0.5, 0.5, 0.5]


@pytest.mark.slow
def test_a_cell_is_the_same_twice_in_one_process(tmp_path: Path) -> None:
    short = dataclasses.replace(TASKS["seven"], steps=4)
    cell = Experiment(task=short, arm=ARMS["rarity"], seed=0)
    first = experiments.run_cell(cell, tmp_path / "first")
    second = experiments.run_cell(cell, tmp_path / "second")
    for result in (first, second):
        for clock in ("train_cpu_seconds", "evaluate_cpu_seconds", "monitor_seconds"):
            result.pop(clock)
    assert json.dumps(first) == json.dumps(second)
    assert first["steps"] == 4
    assert first["faults"] == 0
    assert [at["kl_seq_nats"] is None for at in first["trajectory"]].count(False) >= 1
    plain = experiments.run_cell(Experiment(task=short, arm=ARMS["unprotected"], seed=0), tmp_path / "first")
    assert plain["evaluation"]["format_shares"] != first["evaluation"]["format_shares"]
