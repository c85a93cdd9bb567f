"""Answers that are not there: the marks of an answer with nothing between them."""

from __future__ import annotations

import re

from rlmon.metrics.formats import split_reasoning

_TAIL_CHARACTERS = 2_000
_NOTHING = re.compile(
    r"<(answer|final_answer|final|solution|output|response|result)>\s*</\1>"
    r"|\\boxed\{\s*\}"
    r'|"(?:answer|final_answer|solution|result)"\s*:\s*(?:"\s*"|null)',
    re.IGNORECASE,
)


def empty_answer(completion: str) -> bool:
    """Whether a completion in which no final answer was found (``formats.final_answer``) says that there is none.

    True for a blank completion, for nothing after reasoning that was closed, and for an answer's marks with nothing
    between them. A text that was cut off inside its reasoning answers nothing either, but is no empty answer.
    """
    if not completion.strip():
        return True
    reasoning, rest = split_reasoning(completion)
    if reasoning and not rest.strip():
        return not completion.endswith(reasoning)
    return _NOTHING.search(rest[-_TAIL_CHARACTERS:]) is not None
