"""The arithmetic task of the demo: word problems with one integer answer, writable in six formats.

A prompt reads ``Ann has 7 figs and gets 9 more. How many?`` followed by a newline. The verifier looks only at
the answer, never at the format: whatever happens to the formats during training, no reward asked for it.
"""

from __future__ import annotations

import ast
import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

NAMES = ("Ann", "Ben", "Cleo", "Dan", "Eva", "Finn", "Gia", "Hugo")
ITEMS = ("figs", "pens", "cups", "nuts", "keys", "hats", "eggs", "maps")
LARGEST_OPERAND = 12

FORMATS = ("prose", "boxed", "python", "json", "steps", "xml")
"""The six ways in which the base writes an answer."""

HELD_OUT_BUCKETS = 8
"""One prompt in this many is kept out of all training, chosen by the hash of its text."""

_MAX_EXPRESSION_CHARACTERS = 200
_BOXED = re.compile(r"\\boxed\{\s*(-?\d{1,9})\s*\}")
_TAGGED = re.compile(r"<answer>\s*(-?\d{1,9})\s*</answer>")
_JSON = re.compile(r'\{\s*"answer"\s*:\s*(-?\d{1,9})\s*\}')
_PRINT = re.compile(r"print\((.*)\)\s*\Z", re.DOTALL)
_ARITHMETIC = re.compile(r"[0-9+\-*() ]+")
_INTEGER = re.compile(r"(?<![\d.])-?\d{1,9}(?![\d]|\.\d)")


@dataclass(frozen=True, slots=True)
class Question:
    """``name`` has ``a`` of ``item`` and gets ``b`` more; the answer is ``a + b``."""

    name: str
    item: str
    a: int
    b: int

    @property
    def prompt(self) -> str:
        return f"{self.name} has {self.a} {self.item} and gets {self.b} more. How many?\n"

    @property
    def answer(self) -> int:
        return self.a + self.b


def questions() -> Iterator[Question]:
    """All 8 x 8 x 12 x 12 = 9,216 questions, in a fixed order."""
    operands = range(1, LARGEST_OPERAND + 1)
    return (Question(name, item, a, b) for name in NAMES for item in ITEMS for a in operands for b in operands)


def is_held_out(prompt: str) -> bool:
    """True for the eighth of all prompts that neither the base nor RL ever trains on.

    The split is by SHA-256 of the text, so it is the same on every machine and in every process. It holds out
    wordings, not sums: every pair of operands also occurs in training under other names and items.
    """
    return hashlib.sha256(prompt.encode()).digest()[0] % HELD_OUT_BUCKETS == 0


def split_questions() -> tuple[list[Question], list[Question]]:
    """(train, held out), disjoint by ``is_held_out``."""
    train: list[Question] = []
    held_out: list[Question] = []
    for question in questions():
        (held_out if is_held_out(question.prompt) else train).append(question)
    return train, held_out


def write_answer(question: Question, style: str, *, a: int | None = None, answer: int | None = None) -> str:
    """The answer to ``question`` written in ``style``, one of ``FORMATS``.

    ``a`` and ``answer`` override what is written: that is how label noise is made. Raises ``ValueError`` for an
    unknown style.
    """
    a = question.a if a is None else a
    answer = question.answer if answer is None else answer
    b = question.b
    if style == "prose":
        return f"{question.name} has {answer} {question.item} now."
    if style == "boxed":
        return f"{a}+{b} = \\boxed{{{answer}}}"
    if style == "python":
        return f"print({a}+{b})"
    if style == "json":
        return f'{{"answer": {answer}}}'
    if style == "steps":
        return f"1. {a}+{b}\n2. {answer}"
    if style == "xml":
        return f"<answer>{answer}</answer>"
    raise ValueError(f"style is {style!r}; it must be one of {', '.join(FORMATS)}.")


def read_answer(completion: str) -> int | None:
    """The integer that a completion ends on, or ``None`` when it states none.

    Looked for in this order: ``\\boxed{n}``, ``<answer>n</answer>``, ``{"answer": n}``, a whole completion
    ``print(expression)``, the last integer of the text. Nothing is executed: see ``evaluate``.
    """
    text = completion.strip()
    for pattern in (_BOXED, _TAGGED, _JSON):
        if found := pattern.findall(text):
            return int(found[-1])
    if text.startswith("print"):
        call = _PRINT.fullmatch(text)
        return evaluate(call.group(1)) if call else None
    numbers = _INTEGER.findall(text)
    return int(numbers[-1]) if numbers else None


def evaluate(expression: str) -> int | None:
    """The value of an integer expression of ``+``, ``-`` and ``*``, or ``None`` for anything else.

    The syntax tree is walked; no code runs. Text over 200 characters, any character but digits, ``+-*()`` and the
    space, and numbers over 9 digits are refused, so that hostile input costs nothing.
    """
    if len(expression) > _MAX_EXPRESSION_CHARACTERS or not _ARITHMETIC.fullmatch(expression):
        return None
    try:
        return _value(ast.parse(expression.strip(), mode="eval").body)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _value(node: ast.expr) -> int:
    match node:
        case ast.Constant(value=bool()):
            raise ValueError("a truth value is not a number")
        case ast.Constant(value=int(number)) if abs(number) < 10**9:
            return number
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value(operand)
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return _bounded(_value(left) + _value(right))
        case ast.BinOp(left=left, op=ast.Sub(), right=right):
            return _bounded(_value(left) - _value(right))
        case ast.BinOp(left=left, op=ast.Mult(), right=right):
            return _bounded(_value(left) * _value(right))
    raise ValueError("not integer arithmetic")


def _bounded(number: int) -> int:
    if abs(number) >= 10**18:
        raise ValueError("too large")
    return number


def is_correct(completion: str, answer: int) -> bool:
    """Whether the completion states ``answer``."""
    return read_answer(completion) == answer


def reward_correct(
    prompts: Sequence[str], completions: Sequence[str], answer: Sequence[int], **_: object
) -> list[float]:
    """TRL reward function: 1.0 where the completion states the answer, else 0.0. Blind to the format."""
    return [float(is_correct(text, truth)) for text, truth in zip(completions, answer, strict=True)]
