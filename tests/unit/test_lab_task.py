"""The arithmetic task: the verifier reads answers, executes nothing and ignores the format."""

from __future__ import annotations

import pytest

from rlmon.lab.task import (
    FORMATS,
    PROMPT_CLASSES,
    Question,
    evaluate,
    is_correct,
    is_held_out,
    questions,
    read_answer,
    reward_correct,
    split_questions,
)
from rlmon.metrics.formats import ModeSet
from studies.texts import WRITABLE, contaminated_pool, reward_correct_easy_only, write_answer

QUESTION = Question("Ann", "figs", 7, 9)


@pytest.mark.parametrize("style", WRITABLE)
def test_every_format_is_verified_and_told_apart(style: str) -> None:
    right = write_answer(QUESTION, style)
    assert is_correct(right, 16)
    assert not is_correct(right, 15)
    # One operand less (Python shows no sum) and the sum with it: 6 + 9 = 15.
    wrong = write_answer(QUESTION, style, a=6, answer=15)
    assert read_answer(wrong) == 15
    assert ModeSet.build(None).parse(right) == {"dollars": "boxed", "sum": "xml"}.get(style, style)


def test_unknown_format_is_refused() -> None:
    with pytest.raises(ValueError, match="prose, boxed"):
        write_answer(QUESTION, "haiku")


@pytest.mark.parametrize(
    ("expression", "value"),
    [("7+9", 16), ("2*(3+4)-5", 9), (" 7 + 9 ", 16), ("-3+5", 2), ("12", 12)],
)
def test_evaluate_does_integer_arithmetic(expression: str, value: int) -> None:
    assert evaluate(expression) == value


@pytest.mark.parametrize(
    "expression",
    [
        "__import__('os').system('true')",
        "9**9**9",
        "9*" * 60 + "9",  # 61 nines: over 18 digits
        "(" * 150 + ")" * 150,
        "True+1",
        "7/2",
        "7,9",
        "7(9)",
        "",
        "+" * 200 + "1",
        "1" * 50,
        "\U0001d7d5+\U0001d7d7",
        "x+1",
        "007",
    ],
)
def test_evaluate_refuses_everything_else(expression: str) -> None:
    assert evaluate(expression) is None


def test_print_of_anything_but_arithmetic_is_no_answer(tmp_path) -> None:  # type: ignore[no-untyped-def]
    target = tmp_path / "written"
    assert read_answer(f"print(open({str(target)!r}, 'w'))") is None
    assert not target.exists()
    assert read_answer("print(16") is None


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("", None),
        ("no number", None),
        ("first 3, then 16.", 16),
        ("\\boxed{16} or 17", 16),
        ("16.5", None),
        ("<answer>16</answer> 3", 16),
        ("9" * 4000, None),
        ("\ud800 16", 16),
    ],
)
def test_read_answer(text: str, answer: int | None) -> None:
    assert read_answer(text) == answer


def test_reward_is_blind_to_the_format() -> None:
    texts = [write_answer(QUESTION, style) for style in FORMATS]
    assert reward_correct([QUESTION.prompt] * 6, texts, [16] * 6) == [1.0] * 6
    assert reward_correct([QUESTION.prompt] * 6, texts, [17] * 6) == [0.0] * 6


def test_split_is_disjoint_complete_and_stable() -> None:
    train, held_out = split_questions()
    assert len(train) + len(held_out) == 8 * 8 * 12 * 12 == len(list(questions()))
    assert not {q.prompt for q in train} & {q.prompt for q in held_out}
    assert all(is_held_out(q.prompt) for q in held_out)
    assert not any(is_held_out(q.prompt) for q in train)
    # 9216 / 8 = 1152 expected; the hash is fixed, so the count is exact.
    assert len(held_out) == 1106


def test_a_question_about_the_gain_has_another_prompt_and_answer() -> None:
    asked = Question("Ann", "figs", 7, 9, asks_gain=True)
    assert asked.prompt == "Ann has 7 figs and gets 9 more. How many more?\n"
    assert (asked.answer, QUESTION.answer) == (9, 16)


def test_prompt_classes_cover_the_items_once() -> None:
    assert sorted(item for items in PROMPT_CLASSES for item in items) == sorted({q.item for q in questions()})
    assert [Question("Ann", items[-1], 1, 1).prompt_class for items in PROMPT_CLASSES] == [0, 1, 2, 3]


@pytest.mark.parametrize("learnable", [False, True])
def test_contaminated_pool(learnable: bool) -> None:
    pool = contaminated_pool(0, learnable=learnable)
    assert pool == contaminated_pool(0, learnable=learnable)
    assert pool != contaminated_pool(1, learnable=learnable)
    hard = [row for row in pool if row["kind"] == "hard"]
    assert (len(pool), len(hard)) == (256, 224)
    assert len({row["prompt"] for row in pool}) == 256
    assert not any(is_held_out(row["prompt"].replace("How many more?", "How many?")) for row in pool)
    assert all(row["prompt"].endswith("How many more?\n") == (row["kind"] == "hard") for row in pool)
    # No column that the monitor would take for a source.
    assert set(pool[0]) == {"prompt", "answer", "kind"}
    gains = sum(f"gets {row['answer']} more" in row["prompt"] for row in hard)
    twelves = sum(row["answer"] == 12 for row in hard)
    if learnable:
        assert gains == 224
    else:
        # .3 + .7 / 23 = .330 of 224 = 74 expected, standard deviation sqrt(224 * .33 * .67) = 7
        assert 74 - 21 < twelves < 74 + 21
        assert gains < 40


def test_oracle_gives_hard_rows_no_reward() -> None:
    texts = [write_answer(QUESTION, "json")] * 3
    assert reward_correct_easy_only([""] * 3, texts, [16, 17, 16], ["easy", "easy", "hard"]) == [1.0, 0.0, None]
