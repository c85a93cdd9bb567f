"""Format modes, templates and final answers, on what models write and on what an attacker would."""

from __future__ import annotations

import sys
import time
import warnings

import pytest

from rlmon.errors import ConfigError
from rlmon.metrics.formats import (
    BUILT_IN_MODES,
    ModeSet,
    final_answer,
    mask_template,
    normalise_answer,
    opening_tokens,
    split_reasoning,
)

MODES = ModeSet.build(None)


@pytest.mark.parametrize(
    ("text", "mode"),
    [
        # The six formats of the tiny base.
        ("Ann has 16 figs now.", "prose"),
        ("Ann has 16 figs.", "prose"),
        ("7 + 9 = \\boxed{16}", "boxed"),
        ("print(7 + 9)", "python"),
        ('{"answer": 16}', "json"),
        ("1. Add 7 and 9\n2. Get 16", "steps"),
        ("<answer>16</answer>", "xml"),
        # Neighbours that are easily taken for one another.
        ("```python\nprint(1)\n```", "fenced"),
        ("Here is code:\n```\nx\n```", "fenced"),
        ('[1, 2, {"a": 3}]', "json"),
        ("12", "bare"),
        ("hello", "bare"),
        ("7+9=16", "bare"),
        ("7 + 9", "bare"),
        ("-3/4", "bare"),
        ("(1, 2)", "bare"),
        ("not sure", "bare"),
        ("Step 1: add 7 and 9. Step 2: it is 16.", "steps"),
        ("7+9=16\n16+4=20", "steps"),
        ("- one\n- two", "list"),
        ("* a\n* b\n* c", "list"),
        ("x = 7 + 9\nprint(x)", "python"),
        ("total = 16", "python"),
        ("def f(a):\n    return a", "python"),
        ("import os", "python"),
        ("# add\nprint(7)", "python"),
        ("print(\n    7\n)", "python"),
        ("Therefore: 7 + 9 = 16", "prose"),
        ("Answer: 16", "bare"),
        ("Yes (probably) we should go there", "prose"),
        ("Sure (really)", "bare"),
        ("we define x as undefined by default, so it returns", "prose"),
        ("The value of $x^2$ is 4 here", "boxed"),
        ("It costs $5 and then $6 more for them", "prose"),
        ("We know that a < b and c > d always holds", "prose"),
        ("Сколько будет семь плюс девять? Шестнадцать яблок.", "prose"),
        ("安有十六个无花果因为七加九等于十六。", "prose"),
        # Other: empty, white space, garbage.
        ("", "other"),
        (" \n\t ", "other"),
        ("]]}{{;;((", "other"),
        ("\x00\x01\x02", "other"),
        ("a" * 5_000, "other"),
        ("\ufffd" * 30 + " ok then", "other"),
    ],
)
def test_mode(text: str, mode: str) -> None:
    assert MODES.parse(text) == mode


def test_python_that_was_cut_off_is_still_python() -> None:
    body = "\n".join(f"value_{i} = {i} + 1" for i in range(60))
    assert MODES.parse(body + "\nprint((1 + ") == "python"


def test_modes_are_tried_in_the_stated_order() -> None:
    assert BUILT_IN_MODES == (
        "fenced", "xml", "json", "python", "boxed", "list", "steps", "bare", "prose", "other",
    )  # fmt: skip


def test_user_modes_come_first_and_their_errors_mean_not_this_mode() -> None:
    def broken(text: str) -> bool:
        raise RuntimeError("user code")

    modes = ModeSet.build({"broken": broken, "shouting": r"^[A-Z !]+$"})
    assert modes.names == ("broken", "shouting", *BUILT_IN_MODES)
    assert modes.parse("STOP NOW!") == "shouting"
    assert modes.parse("Ann has 16 figs now.") == "prose"


@pytest.mark.parametrize(
    ("user", "part"),
    [
        ({"bad": "("}, "does not compile"),
        ({"json": "x"}, "built-in"),
        ({"Has Space": "x"}, "not usable"),
        ({"number": 3}, "regular expression or a callable"),
    ],
)
def test_a_bad_user_mode_is_refused(user: dict, part: str) -> None:
    with pytest.raises(ConfigError, match=part):
        ModeSet.build(user)


def test_an_unknown_mode_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="Did you mean python"):
        MODES.index("pyton")


@pytest.mark.parametrize(
    ("text", "reasoning", "answer"),
    [
        ("<think>a</think>b", "a", "b"),
        ("\n<think>\na</think> b", "\na", " b"),
        ("<reasoning>a</reasoning>b", "a", "b"),
        ("[THINK]a[/THINK]b", "a", "b"),
        ("<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>final<|message|>b", "a", "b"),
        ("<think>never closed", "never closed", ""),
        ("opened by the template</think>b", "opened by the template", "b"),
        ("no block", None, "no block"),
        ("say <think> in the middle", None, "say <think> in the middle"),
        ("", None, ""),
    ],
)
def test_split_reasoning(text: str, reasoning: str | None, answer: str) -> None:
    assert split_reasoning(text) == (reasoning, answer)


def test_the_mode_is_that_of_the_part_after_the_reasoning() -> None:
    assert MODES.parse("<think>1. a b\n2. c d</think>print(7 + 9)") == "python"
    assert MODES.parse("<think>cut off in the middle of a thought") == "other"


def test_mask_template_hides_numbers_names_and_quotes() -> None:
    assert mask_template("Ann has 16 figs now.") == mask_template("Hugo has 9 figs now.") == "N has # figs now."
    assert mask_template('say "x y" to 1,200.5') == "say Q to #"
    assert mask_template("don't mask 'this one'") == "don't mask Q"
    assert mask_template("Ann has 16 figs") != mask_template("Ann has 16 pens")


def test_opening_is_eight_masked_tokens() -> None:
    # N has # figs , so she has = 8 tokens; the ninth is dropped.
    assert opening_tokens("Ann has 16 figs, so she has plenty") == ("N", "has", "#", "figs", ",", "so", "she", "has")


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("so \\boxed{16}.", "16"),
        ("\\boxed{\\frac{1}{2}}", "1/2"),
        ("<answer> 16 </answer>", "16"),
        ("work\n#### 1,200", "1200"),
        ('{"answer": 16}', "16"),
        ('{"answer": "Paris"}', "paris"),
        ("print(7 + 9)", "16"),
        ("print(2 * (3 + 4) - 1)", "13"),
        ("print(9 // 0)", "0"),
        ("The answer is 16.", "16"),
        ("**Final answer:** Paris. It is big.", "paris"),
        ("Ann has 16 figs now.", "16"),
        ("first 7, then 9.0", "9"),
        ("1. Add 7 and 9\n2. Get 16", "16"),
        ("Yes", "yes"),
        ("nothing to see in this long sentence", None),
        ("", None),
    ],
)
def test_final_answer(text: str, answer: str | None) -> None:
    assert final_answer(text) == answer


def test_printed_powers_are_not_computed() -> None:
    begin = time.process_time()
    final_answer("print(9**9**9**9)")
    assert time.process_time() - begin < 0.5


def test_normalise_answer() -> None:
    # One value, six spellings.
    assert {normalise_answer(text) for text in ("1200", "1,200", "1200.0", " $1200. ", "+1200", "01200")} == {"1200"}
    assert normalise_answer("-0.50") == "-0.5"
    assert normalise_answer("  ") is None


HOSTILE = {
    "surrogate": "\ud800 Ann has \udfff figs",
    "nul": "a\x00b\x00 c",
    "controls": "".join(map(chr, range(32))) * 50,
    "ansi": "\x1b[31mred\x1b[0m text for the terminal",
    "markup": "<script>alert(1)</script>" * 400,
    "open tags": "<a" * 50_000,
    "closing tags": "</a" * 50_000,
    "brackets": "[" * 100_000,
    "braces": '{"a":' * 20_000,
    "parentheses": "print(" + "(" * 5_000 + ")" * 5_000 + ")",
    "minus": "x = " + "-" * 50_000 + "1",
    "not": "if " + "not " * 20_000 + "x: pass",
    "escape": "x = '\\d\\w'\nprint(x)",
    "megabyte": "the quick brown fox. " * 50_000,
    "megabyte of one letter": "a" * 1_000_000,
    "megabyte of dollars": "$" * 1_000_000,
    "megabyte of newlines": "\n" * 1_000_000 + "x",
    "megabyte of spaces": "x" + " " * 1_000_000 + "x",
    "digits": "9" * 200_000,
    "digits and commas": "9," * 100_000,
    "json integer": "[" + "9" * 6_000 + "]",
    "quotes": '"' * 100_001,
    "steps": "step " * 50_000,
    "stars": "\n" + "*" * 100_000,
    "boxed": "\\boxed{" * 10_000,
    "think": "<think>" * 50_000,
}


@pytest.mark.parametrize("name", list(HOSTILE))
def test_hostile_text_never_raises_and_takes_bounded_time(name: str) -> None:
    text = HOSTILE[name]
    begin = time.process_time()
    mode = MODES.parse(text)
    mask_template(text)
    final_answer(text)
    assert mode in MODES.names
    assert time.process_time() - begin < 0.5


def test_parsing_near_the_recursion_limit_never_raises() -> None:
    def descend(depth: int) -> str:
        return MODES.parse("x = ((((1))))\nprint([[[[x]]]])") if depth == 0 else descend(depth - 1)

    limit = sys.getrecursionlimit()
    frame, used = sys._getframe(), 0
    while frame is not None:
        frame, used = frame.f_back, used + 1
    assert descend(limit - used - 60) in MODES.names


def test_parsing_is_silent_and_leaves_the_filters_alone() -> None:
    before = list(warnings.filters)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert MODES.parse("x = '\\d'\nprint(1 is 1)") == "python"
    assert caught == []
    assert warnings.filters == before
