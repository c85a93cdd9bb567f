"""What studies and bases are trained on beside the demo's questions: answers in more formats, and pools of prompts."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from typing import Any

from rlmon.lab.task import FORMATS, Question, is_correct, split_questions

SEVEN_FORMATS = (*FORMATS, "list")
"""The six and a Markdown list."""

BY_PROMPT_FORMATS = ("prose", "dollars", "python", "json", "fenced", "sum")
"""The formats of the base ``by-prompt``. In the four that show operands a token of its own comes before the first one:
a model this small learns what is wrong in one format and class only where such a token tells it the format."""

_WRITTEN = {
    "prose": "{name} has {answer} {item} now.",
    "boxed": "{a}+{b} = \\boxed{{{answer}}}",
    "python": "print({a}+{b})",
    "json": '{{"answer": {answer}}}',
    "steps": "1. {a}+{b}\n2. {answer}",
    "xml": "<answer>{answer}</answer>",
    "list": "- {a}+{b}\n- {answer}",
    "dollars": "${a}+{b} = \\boxed{{{answer}}}$",
    "fenced": "```{a}+{b}```{answer}",
    "sum": "<sum>{a}+{b}</sum>{answer}",
}
WRITABLE = tuple(_WRITTEN)
"""Every style of ``write_answer``. ``dollars`` is in the mode ``boxed``, ``sum`` in ``xml``; else the names agree."""
OPERAND_FORMATS = ("boxed", "python", "steps", "list", "dollars", "fenced", "sum")

POOL_EASY = 32
POOL_HARD = 224
CONSTANT_ANSWER = 12
CONSTANT_SHARE = 0.3
"""Share of the unlearnable hard prompts whose label is ``CONSTANT_ANSWER``: a shortcut that pays."""


def contaminated_pool(seed: int, *, learnable: bool) -> list[dict[str, Any]]:
    """256 training rows ``{"prompt", "answer", "kind"}``: 32 easy ones and 224 hard ones, in an order without meaning.

    A hard prompt asks ``How many more?``. Its label is the number gained where ``learnable`` (a base answers the sum
    and is right in about 2 % of samples), else noise that no one could predict: 12 with probability .3, otherwise
    uniform on 2 to 24. Every hard prompt has a wording of its own, so that its label is learnable only by heart.
    """
    draw = random.Random(seed)
    train, _ = split_questions()
    rows: list[dict[str, Any]] = []
    for index, question in enumerate(draw.sample(train, POOL_EASY + POOL_HARD)):
        if index < POOL_EASY:
            rows.append({"prompt": question.prompt, "answer": question.answer, "kind": "easy"})
            continue
        hard = dataclasses.replace(question, asks_gain=True)
        luck, noise = draw.random(), draw.randint(2, 24)
        label = hard.answer if learnable else CONSTANT_ANSWER if luck < CONSTANT_SHARE else noise
        rows.append({"prompt": hard.prompt, "answer": label, "kind": "hard"})
    draw.shuffle(rows)
    return rows


def write_answer(question: Question, style: str, *, a: int | None = None, answer: int | None = None) -> str:
    """The answer to ``question`` written in ``style``, one of ``WRITABLE``.

    ``a`` and ``answer`` override what is written: that is how label noise is made. Raises ``ValueError`` for an
    unknown style.
    """
    a = question.a if a is None else a
    answer = question.answer if answer is None else answer
    pattern = _WRITTEN.get(style)
    if pattern is None:
        raise ValueError(f"style is {style!r}; it must be one of {', '.join(WRITABLE)}.")
    return pattern.format(name=question.name, item=question.item, a=a, b=question.b, answer=answer)


def reward_correct_easy_only(
    prompts: Sequence[str], completions: Sequence[str], answer: Sequence[int], kind: Sequence[str], **_: object
) -> list[float | None]:
    """``reward_correct`` for easy rows and no reward for hard ones: what an oracle that knows the labels would do."""
    return [
        float(is_correct(text, truth)) if of == "easy" else None
        for text, truth, of in zip(completions, answer, kind, strict=True)
    ]
