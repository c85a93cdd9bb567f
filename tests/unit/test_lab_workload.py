"""Prompts and rewards of the programs in ``trainers/``: each kind of workload, from its own generator or from files."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from rlmon.errors import ConfigError
from rlmon.lab.rewards import reward_function
from rlmon.lab.task import is_held_out
from rlmon.lab.workload import WorkloadArguments, load_workload

pytestmark = pytest.mark.trl

CHAIN_SUM = {"chain_sum": {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}}


def rewards(workload: Any, completions: list[Any], rows: list[dict[str, Any]]) -> list[float]:
    """What TRL would get from the only reward function for these completions of these rows."""
    (function,) = workload.reward_funcs
    columns = {name: [row[name] for row in rows] for name in rows[0] if name != "prompt"}
    scored: list[float] = function(prompts=[row["prompt"] for row in rows], completions=completions, **columns)
    return scored


def test_arithmetic_keeps_the_held_out_prompts_out() -> None:
    workload = load_workload(WorkloadArguments(workload="arithmetic", eval_size=16), evaluate=True)
    assert not any(is_held_out(prompt) for prompt in workload.train["prompt"])
    assert len(workload.evaluation) == 16
    assert all(is_held_out(prompt) for prompt in workload.evaluation["prompt"])
    row = workload.train[0]
    assert rewards(workload, [str(row["answer"]), "no idea"], [row, row]) == [1.0, 0.0]
    assert load_workload(WorkloadArguments(workload="arithmetic"), evaluate=False).evaluation is None


def test_reasoning_gym_scores_with_the_tasks_own_verifier() -> None:
    arguments = WorkloadArguments(
        workload="reasoning-gym", reasoning_gym_tasks=CHAIN_SUM, workload_size=8, eval_size=4, conversational=True
    )
    workload = load_workload(arguments, evaluate=True)
    assert (len(workload.train), len(workload.evaluation)) == (8, 4)
    ((message,),) = workload.train[:1]["prompt"]
    assert message["role"] == "user"
    # "...problem: 0 - 4 =": the answer from the question itself, not from the verifier
    rows = [workload.train[i] for i in range(3)] + [workload.evaluation[0]]
    answers = []
    for row in rows:
        left, sign, right = row["prompt"][0]["content"].split(":")[1].strip(" =").split()
        answers.append(int(left) + (int(right) if sign == "+" else -int(right)))
    right = [[{"role": "assistant", "content": f"The answer is {answer}."}] for answer in answers]
    wrong = [[{"role": "assistant", "content": f"The answer is {answer + 1000}."}] for answer in answers]
    silent = [[{"role": "assistant", "content": "I do not know"}]] * 4
    assert rewards(workload, right, rows) == [1.0] * 4
    # reasoning-gym gives part credit for the right digits inside a longer answer: "4" in "1004" is 1/4
    assert max(rewards(workload, wrong, rows)) <= 0.25
    assert rewards(workload, silent, rows) == [0.0] * 4


def test_reasoning_gym_mixes_tasks_evenly_and_in_turn() -> None:
    tasks = {**CHAIN_SUM, "letter_counting": None}
    arguments = WorkloadArguments(
        workload="reasoning-gym", reasoning_gym_tasks=tasks, workload_size=10, instruction="Say only the answer."
    )
    train = load_workload(arguments, evaluate=False).train
    assert train["source"][:4] == ["chain_sum", "letter_counting"] * 2
    assert len(train) == 10
    assert all(prompt.endswith("\nSay only the answer.") for prompt in train["prompt"])


def test_a_dataset_from_files_with_a_reward_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    rows = [{"prompt": f"say {i}", "target": str(i)} for i in range(4)]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "my_rewards_for_this_test.py").write_text(
        "def matches(completions, target, **_):\n    return [float(c == t) for c, t in zip(completions, target)]\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    arguments = WorkloadArguments(dataset_name=str(folder), reward_funcs=["my_rewards_for_this_test.matches"])
    workload = load_workload(arguments, evaluate=False)
    assert workload.train["prompt"][:] == [row["prompt"] for row in rows]
    assert rewards(workload, ["0", "7"], rows[:2]) == [1.0, 0.0]


def test_reward_functions_by_name() -> None:
    import trl.rewards

    assert reward_function("think_format_reward") is trl.rewards.think_format_reward
    for name in ("no_such_reward", "no_such_module.reward", "json.no_such_function"):
        with pytest.raises(ConfigError, match=f"no reward function '{name}'"):
            reward_function(name)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "Nothing to train on"),
        ({"dataset_name": "x"}, "needs reward_funcs"),
        ({"workload": "reasoning-gym"}, "needs reasoning_gym_tasks"),
        ({"workload": "reasoning-gym", "reasoning_gym_tasks": {"no_such_task": {}}}, "no_such_task refuses"),
        ({"workload": "reasoning-gym", "reasoning_gym_tasks": {"chain_sum": {"min_terms": 0}}}, "chain_sum refuses"),
        ({"workload": "reasoning-gym", "reasoning_gym_tasks": {"chain_sum": {"terms": 2}}}, "chain_sum refuses"),
    ],
)
def test_refusals_say_what_to_set(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_workload(WorkloadArguments(**changes), evaluate=False)


def test_json_on_the_command_line() -> None:
    assert WorkloadArguments(reasoning_gym_tasks='{"chain_sum": {}}').reasoning_gym_tasks == {"chain_sum": {}}
    with pytest.raises(ConfigError, match="not valid JSON"):
        WorkloadArguments(reasoning_gym_tasks="{chain_sum")
