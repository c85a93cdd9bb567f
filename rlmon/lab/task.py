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

PROMPT_CLASSES = (("figs", "pens"), ("cups", "nuts"), ("keys", "hats"), ("eggs", "maps"))
"""Items that make a class of prompts: the base ``by-prompt`` is right in another format in each of them."""

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
    """``name`` has ``a`` of ``item`` and gets ``b`` more; the answer is ``a + b``, or ``b`` where ``asks_gain``."""

    name: str
    item: str
    a: int
    b: int
    asks_gain: bool = False
    """Asked as ``How many more?``, which no base has seen."""

    @property
    def prompt(self) -> str:
        asked = "How many more?" if self.asks_gain else "How many?"
        return f"{self.name} has {self.a} {self.item} and gets {self.b} more. {asked}\n"

    @property
    def answer(self) -> int:
        return self.b if self.asks_gain else self.a + self.b

    @property
    def prompt_class(self) -> int:
        """Index in ``PROMPT_CLASSES``."""
        return next(index for index, items in enumerate(PROMPT_CLASSES) if self.item in items)


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
