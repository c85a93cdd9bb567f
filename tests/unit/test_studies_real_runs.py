"""Runs on a real model: the arithmetic of what is told of them, and a tiny one that is stopped and goes on."""

from __future__ import annotations

import itertools
import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from rlmon.errors import ConfigError
from rlmon.lab.bases import BASE_DIR
from rlmon.lab.task import split_questions
from studies import real_cell, real_figures, real_pilot, real_runs, real_tables
from studies.real_cell import TRAJECTORY, RealArm, RealCell, Sitting, reached, run_cell
from studies.real_measures import KINDS, Row, effective_ways, equal_pairs, measured, pass_at, scores, with_two_right
from studies.real_pilot import Timed, qualified, time_steps
from studies.real_tasks import Question, RealTask, is_right, split


def row(text: str, right: bool = True, **values: float) -> Row:
    return Row(text=text, right=right, tokens=4, cut_off=False, **values)


@pytest.mark.parametrize(("samples", "right"), [(6, 0), (6, 1), (6, 3), (6, 4), (6, 6), (5, 2)])
@pytest.mark.parametrize("k", [1, 2, 4])
def test_pass_at_k_is_the_share_of_all_choices_of_k_with_a_right_one(samples: int, right: int, k: int) -> None:
    choices = list(itertools.combinations([True] * right + [False] * (samples - right), k))
    assert pass_at(k, samples, right) == pytest.approx(sum(map(any, choices)) / len(choices))


def test_pass_at_k_is_unbiased_and_the_plug_in_is_not() -> None:
    # 4 samples of a prompt that is right with chance .3: the mean over all outcomes, weighed by their chances.
    chance, n, k = 0.3, 4, 2
    weights = [math.comb(n, c) * chance**c * (1 - chance) ** (n - c) for c in range(n + 1)]
    truth = 1 - (1 - chance) ** k
    assert sum(w * (pass_at(k, n, c) or 0.0) for c, w in enumerate(weights)) == pytest.approx(truth)
    plugged_in = sum(w * (1 - (1 - c / n) ** k) for c, w in enumerate(weights))
    assert abs(plugged_in - truth) > 0.02
    assert pass_at(8, 4, 4) is None


def test_ways_of_answering_are_counted_among_right_answers_only() -> None:
    said = ["7 + 9 = 16", "8 + 8 = 16", "It is 16.", "16 it is, of course"]
    wrong = [row("7 + 9 = 16", right=False)] * 5
    found = measured([[*map(row, said), *wrong], [row("2 is it"), row("3 is it")], [row("5")], [row("6", right=False)]])
    # Prompt 1: six pairs, of which "# + # = #" twice is one. Prompt 2: one pair, equal. Prompt 3 has no pair.
    assert found["by_prompt"]["right"] == [4, 2, 1, 0]
    assert found["by_prompt"]["template"] == [1, 1, 0, 0]
    assert found["templates_within"] == pytest.approx(1 / ((1 / 6 + 1) / 2))
    by_hand = [a == b for a, b in itertools.combinations(["#+#", "#+#", "it", "of course"], 2)]
    assert sum(by_hand) == equal_pairs(["#+#", "#+#", "it", "of course"]) == 1
    # 9 + 2 + 1 + 1 samples, 4 + 2 + 1 of them right
    assert found["accuracy"] == pytest.approx(7 / 13)
    assert found["pass_at_1"] == pytest.approx((4 / 9 + 1 + 1 + 0) / 4)
    # Only the first prompt has eight samples.
    assert found["pass_at_8"] == 1.0


def test_ways_are_none_where_no_pair_is_equal_or_there_is_none() -> None:
    assert effective_ways([0, 0], [3, 1]) is None
    assert effective_ways([0], [0]) is None
    assert effective_ways([3, 0], [3, 3]) == 2.0


def test_entropy_is_of_the_rows_in_which_it_was_measured_by_token() -> None:
    rows = [row("1", entropy_nats=2.0, kl_nats=0.4), row("2", right=False, entropy_nats=6.0, kl_nats=0.0), row("3")]
    found = measured([rows])
    # two completions of 4 tokens: (2 + 6) / 8, of the right one 2 / 4
    assert (found["entropy_nats"], found["entropy_nats_right"], found["kl_nats"]) == (1.0, 0.5, pytest.approx(0.05))
    assert measured([[row("3")]])["entropy_nats"] is None


def test_arms_are_compared_where_all_have_two_right_answers() -> None:
    ours = {"sampled": [4, 4, 4], "right": [3, 2, 1], **{kind: [0, 1, 0] for kind in ("template", "opening", "format")}}
    theirs = {**ours, "right": [1, 4, 4]}
    assert with_two_right([ours, theirs]) == [1]
    assert scores(ours, [1])["templates_within"] == 1.0
    assert scores(ours, [0])["templates_within"] is None


def test_the_pilot_asks_for_reward_and_three_ways() -> None:
    ways = ["7 + 9 = 16", '{"answer": 16}', "The answer is 16.", "No idea at all"]
    good = qualified([[row(text, right=at < 3) for at, text in enumerate(ways) for _ in range(2)]] * 4)
    assert (good.reward, good.silent, good.reasons_against) == (0.75, 0.0, ["reward 0.75 is not within 0.2 to 0.7"])
    assert (
        qualified([[row(text, right=at < 3) for at, text in enumerate([*ways, "So many"])]] * 4).reasons_against == []
    )
    signs = qualified([[row("7 + 9 = 16"), row("9 - 8 = 1"), row("2 * 3 = 6"), row("so", right=False)]])
    assert signs.openings_right == {"# + # = #": 1.0}
    one_way = qualified([[row("16"), row("17", right=False)]] * 4)
    assert one_way.reasons_against == ["1 of 3 formats or openings have over 5% of the right answers"]


def test_held_out_questions_are_in_no_training() -> None:
    training, held_out = split([Question(prompt=f"{n % 40} + 1?", answer=str(n)) for n in range(200)])
    assert {question.prompt for question in training}.isdisjoint(question.prompt for question in held_out)
    assert len({question.prompt for question in held_out}) == len(held_out) > 1
    assert len(training) > 100


def test_what_is_right_is_blind_to_the_form() -> None:
    for text in ("7 + 9 = 16", '{"answer": 16}', "The answer is 16.", "16", "\\boxed{16}"):
        assert is_right(text, "16")
    assert not is_right("7 + 9 = 17", "16")
    assert not is_right("no number", "16")
    for text in ("Ann.", "The person who likes cats is Ann!", "ANN likes cats"):
        assert is_right(text, "Ann", ["Ben", "Anna"])
    for text in ("Ann or Ben", "Anna", "Somebody"):
        assert not is_right(text, "Ann", ["Ben", "Anna"])


def test_a_question_is_asked_as_the_task_says() -> None:
    task = RealTask(name="t", generator="g", system="Any form.", part="problem: (.*) =", asked="{question}?",
                    shown=(("2 + 3?", "5"),))  # fmt: skip
    assert task.prompt("State the final answer to the following arithmetic problem: 4 - 3 =") == [
        {"role": "system", "content": "Any form."},
        {"role": "user", "content": "2 + 3?"},
        {"role": "assistant", "content": "5"},
        {"role": "user", "content": "4 - 3?"},
    ]
    turned = replace(task, shown=(("1?", "one"), ("2?", "two"), ("3?", "three")), rotated=True)
    last = [turned.prompt(f"problem: {n} + 1 =")[-2]["content"] for n in range(30)]
    assert set(last) == {"one", "two", "three"}
    with pytest.raises(ValueError, match="is not in the question"):
        task.prompt("Something else")


# -- a run that is stopped -------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class TinyTask(RealTask):
    def questions(self) -> tuple[list[Question], list[Question]]:
        training, held_out = split_questions()
        asked = [Question(prompt=q.prompt, answer=str(q.answer)) for q in (*training[:64], *held_out[:4])]
        return asked[:64], asked[64:]


TINY = TinyTask(
    name="tiny", generator="none", model=BASE_DIR, prompts_per_step=2, group_size=4, most_tokens=12, lora_rank=2
)
PLAIN = RealArm(name="unprotected", about="as it is")


def rewards(results: Path) -> Sequence[float]:
    return list(json.loads((results / "tiny-unprotected-seed0.json").read_text())["trajectory"]["reward"])


@pytest.mark.trl
def test_a_run_that_is_stopped_goes_on_as_if_it_had_not_been(tmp_path: Path) -> None:
    cell = RealCell(task=TINY, arm=PLAIN, seed=0)

    def sitting(name: str, steps: int, until: float | None = None) -> Sitting:
        return Sitting(steps=steps, work=tmp_path / name / "work", results=tmp_path / name, until=until)

    # It has no time left: nothing is begun.
    assert run_cell(cell, sitting("stopped", 6, time.monotonic() - 1.0)) == {}
    half = run_cell(cell, sitting("stopped", 3))
    assert (half["steps"], list(half["evaluations"])) == (3, ["3"])
    whole = run_cell(cell, sitting("stopped", 6))
    assert (whole["steps"], list(whole["evaluations"]), whole["faults"]) == (6, ["3", "6"], 0)
    assert reached(tmp_path / "stopped" / "work" / cell.name) == 6
    # No step was trained twice.
    log = tmp_path / "stopped" / "work" / cell.name / "rlmon" / "steps.jsonl"
    assert len(log.read_text(encoding="utf-8").splitlines()) == 6
    # Asked again, nothing is trained.
    assert run_cell(cell, sitting("stopped", 6))["cpu_seconds"] == whole["cpu_seconds"]

    run_cell(cell, sitting("at-once", 6))
    assert rewards(tmp_path / "stopped") == rewards(tmp_path / "at-once")
    assert len(rewards(tmp_path / "stopped")) == 6

    # The tables are made from the file alone.
    kept = json.loads((tmp_path / "stopped" / f"{cell.name}.json").read_text())
    text = "\n".join(real_tables.sections([kept], [0]))
    assert "| unprotected | 6 | 0 | " in text
    found = kept["evaluations"]["6"]
    assert (found["prompts"], found["completions"]) == (4, 64)
    assert found["kl_nats"] > 0.0
    with pytest.raises(ConfigError, match="begun with other settings"):
        run_cell(
            RealCell(task=TINY, arm=RealArm(name="unprotected", settings={"beta": 0.1}, about=""), seed=0),
            sitting("stopped", 6),
        )


# -- the command line and the page -----------------------------------------------------------------------------------


def test_cells_come_seed_by_seed_and_a_policy_file_is_an_arm(tmp_path: Path) -> None:
    rules = tmp_path / "hold.yaml"
    rules.write_text("rules: {end: {when: always, do: stop}}\n", encoding="utf-8")
    asked: list[RealCell] = []

    def run_cell(cell: RealCell, sitting: Sitting) -> dict[str, Any]:
        asked.append(cell)
        return {}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(real_runs, "run_cell", run_cell)
        common = ["--tasks", "arithmetic", "--seeds", "100,101", "--results", str(tmp_path), "--work", str(tmp_path)]
        assert real_runs.main([*common, "--policy", f"mine={rules}", "--arms", "mine,unprotected"]) == 0
        assert real_runs.main([*common, "--arms", "nobody"]) == 2
        assert real_runs.main([*common, "--policy", "protect=x"]) == 2
        assert real_runs.main([*common, "--hours", "-1"]) == 0
    assert [cell.name for cell in asked] == [
        f"arithmetic-{arm}-seed{seed}" for seed in (100, 101) for arm in ("mine", "unprotected")
    ]
    assert asked[0].settings()["policy"]["rules"]
    assert asked[0].settings() != asked[1].settings()


def judged(right: list[int], equal: list[int], entropy: float) -> dict[str, Any]:
    """An evaluation of prompts with 8 samples each, in which every kind has the same equal pairs."""
    by_prompt = {"sampled": [8] * len(right), "right": right, **dict.fromkeys(KINDS, equal)}
    told = dict.fromkeys(real_tables.JUDGED, 0.5)
    return {**told, **scores(by_prompt, range(len(right))), "by_prompt": by_prompt, "entropy_nats_right": entropy,
            "examples": [{"prompt": "3 + 4 =", "answers": ["It is | 7", "<b>7</b>"]}]}  # fmt: skip


def test_tables_compare_seed_by_seed_on_the_same_prompts_and_leave_out_seeds_for_trying() -> None:
    def cell(arm: str, seed: int, evaluation: dict[str, Any]) -> dict[str, Any]:
        return {"task": "t", "arm": arm, "seed": seed, "steps": 6, "findings": [[5, "fail", "entropy-collapse"]],
                "trajectory": {name: [0.0, 1.0, 2.0, 3.0, 4.0, 100.0] for name in TRAJECTORY},
                "evaluations": {"60": evaluation}}  # fmt: skip

    # Pairs of four right answers: 6. Prompt 1 is left out: the plain arm has one right answer there.
    plain = judged([4, 1], [6, 0], 0.1)
    wide = judged([4, 4], [3, 0], 0.4)
    read = [cell("unprotected", 0, plain), cell("hold", 0, wide), cell("hold", 100, judged([8, 8], [28, 28], 9.0))]
    text = "\n".join(real_tables.sections(read, [0]))
    # accuracy .5 against .3125; ways 2 against 1; entropy .4 against .1
    assert "| hold | 60 | 60 | 0 | +0.188 | +0.000 | 2.00 | 2.00 | 2.00 | 4.00 |" in text
    longer = cell("hold", 0, wide) | {"evaluations": {"90": wide, "120": wide}}
    text = "\n".join(
        real_tables.sections([*read[:1], longer, *(one | {"seed": 1} for one in (read[0], longer))], [0, 1])
    )
    # 90 is one and a half times 60, and 120 is not
    assert "| hold | 90 | 60 | 0, 1 | +0.188 (+0.188, +0.188) | +0.000 (+0.000, +0.000) | 2.00 (2.00, 2.00) |" in text
    assert "| hold | 120 | 60 |" not in text
    text = "\n".join(real_tables.sections(read, [0]))
    assert "| hold | 100 (tuning) | 6 | 2.00 / 2.00 / 2.00 / 2.00 | 5, entropy-collapse |" in text
    assert "9.000" not in text
    # What a model says is no markup.
    assert "<b>7" not in text
    assert "It is \\| 7" in text


def test_the_page_keeps_what_stands_around_its_tables(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{real_tables.BEGIN}\nold\n{real_tables.END}\nafter\n", encoding="utf-8")
    real_tables.write_tables(page, tmp_path, [0])
    first = page.read_text(encoding="utf-8")
    assert first.startswith("before\n") and first.endswith("\nafter\n") and "old" not in first  # noqa: PT018
    real_tables.write_tables(page, tmp_path, [0])
    assert page.read_text(encoding="utf-8") == first
    page.write_text("no marks\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="once each"):
        real_tables.write_tables(page, tmp_path, [0])


def test_the_picture_shows_trailing_means_of_what_was_measured_and_is_on_the_page(tmp_path: Path) -> None:
    # Steps 1, 3 and 7 were measured; of the five up to step 7 only 3 and 7: (1 + 4) / 2.
    assert real_figures.smoothed([3.0, None, 1.0, None, None, None, 4.0]) == ([1.0, 3.0, 7.0], [3.0, 2.0, 2.5])
    page, results = tmp_path / "page.md", tmp_path / "of runs"
    page.write_text(f"{real_tables.BEGIN}\n{real_tables.END}\n", encoding="utf-8")
    trajectory = {name: [1.0, 2.0, None if name == "kl_nats" else 3.0] for name in TRAJECTORY}
    results.mkdir()
    for seed in (0, 1, 100):
        cell = {"task": "t", "arm": "hold", "seed": seed, "steps": 3, "findings": [[2, "fail", "move-collapse"]],
                "trajectory": trajectory, "evaluations": {}}  # fmt: skip
        (results / f"{seed}.json").write_text(json.dumps(cell), encoding="utf-8")
    real_tables.write_tables(page, results, [0, 1])
    assert "](of%20runs/t.png)" in page.read_text(encoding="utf-8")
    first = (results / "t.png").read_bytes()
    real_tables.write_tables(page, results, [0, 1])
    assert (results / "t.png").read_bytes() == first
    real_tables.write_tables(page, results, [1])
    first = (results / "t.png").read_bytes()
    (results / "1.json").write_text(json.dumps(cell | {"seed": 1, "findings": []}), encoding="utf-8")
    real_tables.write_tables(page, results, [1])
    assert (results / "t.png").read_bytes() != first  # no cross


@pytest.mark.trl
@pytest.mark.parametrize(
    "arm", [arm for arm in real_runs.ARMS.values() if arm.name != "unprotected"], ids=lambda a: a.name
)
def test_every_arm_can_begin(arm: RealArm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parents[2])
    monkeypatch.setattr(real_cell, "judge", lambda task, dtype, adapter: {"accuracy": 1.0})
    cell = RealCell(task=TINY, arm=arm, seed=0)
    found = run_cell(cell, Sitting(steps=2, work=tmp_path / "work", results=tmp_path))
    assert (found["steps"], found["faults"]) == (2, 0)
    # What is asked of TRL or of rlmon is part of what decides the run.
    assert (arm.policy is None) == (found["settings"]["policy"] is None)
    assert cell.settings() != RealCell(task=TINY, arm=PLAIN, seed=0).settings()


@pytest.mark.trl
def test_the_pilot_times_a_step_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    timed = time_steps(TINY, "float32")
    assert 0.0 < timed.cpu_seconds < 60.0
    assert timed.wall_seconds > 0.0
    # Six formats and their words: between none and ln 155, the size of the vocabulary.
    assert 0.1 < timed.first_entropy_nats < 5.05
    assert list(tmp_path.iterdir()) == []


@pytest.mark.trl
def test_the_pilot_says_what_it_found_before_it_times_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    timed = Timed(wall_seconds=2.0, cpu_seconds=1.5, first_entropy_nats=0.7)
    monkeypatch.setattr(real_pilot, "time_steps", lambda task, dtype: timed)
    lines = list(real_pilot.pilot(TINY, "float32"))
    assert lines[0].startswith("tiny:")
    # The tiny base of the demo is right in about nine of ten samples, in six formats.
    assert "16 training prompts x 8 samples" in lines[1]
    assert any("qualifies: no, reward 0." in line for line in lines)
    assert lines[-1] == "  a step of 2 x 4: 2.0 s, 1.5 s of CPU; entropy in the first step 0.70 nats a token"
