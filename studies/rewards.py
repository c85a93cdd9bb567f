"""Rewards of the studies' tasks, and what is right there on held-out prompts."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

from rlmon.lab.task import PROMPT_CLASSES, Question, is_correct
from rlmon.metrics.formats import ModeSet
from studies.arms import REFUSED_SHARE, SURE_MODES, WORTHLESS_MODE

parse = ModeSet.build(None).parse


def reward_correct_not_prose(
    prompts: Sequence[str], completions: Sequence[str], answer: Sequence[int], **_: object
) -> list[float]:
    """``reward_correct``, and 0.0 for every completion in ``WORTHLESS_MODE``."""
    return [
        float(is_correct(text, truth) and parse(text) != WORTHLESS_MODE)
        for text, truth in zip(completions, answer, strict=True)
    ]


def reward_correct_in(mode: str) -> Callable[..., list[float]]:
    """The TRL reward function ``reward_correct``, and 0.0 for every completion that is not in ``mode``."""

    def reward_in_one_format(
        prompts: Sequence[str], completions: Sequence[str], answer: Sequence[int], **_: object
    ) -> list[float]:
        return [
            float(is_correct(text, truth) and parse(text) == mode)
            for text, truth in zip(completions, answer, strict=True)
        ]

    return reward_in_one_format


def states_answer_not_prose(text: str, question: Question) -> bool:
    """What ``reward_correct_not_prose`` rewards."""
    return is_correct(text, question.answer) and parse(text) != WORTHLESS_MODE


def is_accepted(text: str, prompt: str, item: str, answer: int) -> bool:
    """Right, and either in the sure mode of the item's class or not among the (prompt, mode) pairs that are refused.

    Which pairs are refused follows from a hash: it can be learned by heart and not otherwise.
    """
    if not is_correct(text, answer):
        return False
    mode = parse(text)
    if mode == SURE_MODES[next(index for index, items in enumerate(PROMPT_CLASSES) if item in items)]:
        return True
    return hashlib.sha256(f"{mode}\n{prompt}".encode()).digest()[0] >= REFUSED_SHARE * 256


def reward_accepted(
    prompts: Sequence[str], completions: Sequence[str], answer: Sequence[int], item: Sequence[str], **_: object
) -> list[float]:
    """TRL reward function: 1.0 where ``is_accepted``."""
    rows = zip(completions, prompts, item, answer, strict=True)
    return [float(is_accepted(text, prompt, of, truth)) for text, prompt, of, truth in rows]


def accepted_answer(text: str, question: Question) -> bool:
    """What ``reward_accepted`` rewards."""
    return is_accepted(text, question.prompt, question.item, question.answer)
