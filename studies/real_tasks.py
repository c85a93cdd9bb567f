"""The tasks of the runs on a real model: questions of reasoning-gym, how they are asked, what is right.

What is right does not look at the form: the answer that a text states (``final_answer``) is the task's. One question
in six is held out of training, chosen by a hash of the prompt.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlmon.errors import MissingExtraError
from rlmon.metrics.formats import final_answer, normalise_answer

SMOLLM2 = Path(".cache/smollm2-135m-instruct")
HELD_OUT_BUCKETS = 6
ONE_DIGIT: Mapping[str, Any] = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}

_WORD = re.compile(r"[^\W\d_]+(?:-[^\W\d_]+)*")
Messages = list[dict[str, str]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    prompt: Messages | str
    answer: str
    rivals: tuple[str, ...] = ()
    """Wrong answers that the question names: a text that says one of them is wrong. Empty: answers are numbers."""

    @property
    def held_out(self) -> bool:
        return _bucket(repr(self.prompt), HELD_OUT_BUCKETS) == 0


@dataclass(frozen=True, kw_only=True, slots=True)
class RealTask:
    """Questions, how they are asked, and how a policy is trained on them."""

    name: str
    generator: str
    """A task of reasoning-gym."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    size: int = 512
    seed: int = 0
    system: str | None = None
    """Unset: the system prompt of the model's chat template."""
    part: str = "(.*)"
    """The part of the generator's question that is asked: the first group of this regular expression."""
    asked: str = "{question}"
    shown: tuple[tuple[str, str], ...] = ()
    """Earlier turns of the conversation, a question and its answer: they show ways of answering."""
    rotated: bool = False
    """Each question has another of these turns last, which weighs most; by a hash of the question."""
    model: Path = SMOLLM2
    prompts_per_step: int = 4
    group_size: int = 8
    most_tokens: int = 32
    temperature: float = 1.0
    """Of sampling, in training and where it is judged."""
    entropy_target_nats: float = 1.0
    """Half of the base's, or so: what TRL's adaptive entropy is told to hold."""
    learning_rate: float = 3e-4
    lora_rank: int = 16
    about: str = ""

    def questions(self) -> tuple[list[Question], list[Question]]:
        """(training, held out). Training has the generator's repetitions, held-out ones are distinct."""
        try:
            import reasoning_gym
        except ImportError as error:
            raise MissingExtraError(
                "The tasks need the package reasoning-gym. Type: pip install reasoning-gym"
            ) from error
        made = reasoning_gym.create_dataset(self.generator, size=self.size, seed=self.seed, **self.settings)
        return split([Question(prompt=self.prompt(entry["question"]), answer=str(entry["answer"])) for entry in made])

    def prompt(self, question: str) -> Messages:
        messages = [] if self.system is None else [{"role": "system", "content": self.system}]
        first = _bucket(question, len(self.shown)) if self.rotated else 0
        for asked, answered in (*self.shown[first:], *self.shown[:first]):
            messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
        found = re.search(self.part, question, re.DOTALL)
        if found is None:
            raise ValueError(f"{self.part!r} is not in the question {question!r}.")
        return [*messages, {"role": "user", "content": self.asked.format(question=found[1].strip())}]


def _bucket(text: str, buckets: int) -> int:
    return hashlib.sha256(text.encode()).digest()[0] % buckets


def split(questions: Sequence[Question]) -> tuple[list[Question], list[Question]]:
    """(training, held out): no question is in both, and none is held out twice."""
    training = [question for question in questions if not question.held_out]
    held_out = {repr(question.prompt): question for question in questions if question.held_out}
    return training, list(held_out.values())


def is_right(text: str, answer: str, rivals: Sequence[str] = ()) -> bool:
    """Whether the answer that ``text`` states is ``answer``, whatever the form: the number that it gives as its answer
    or ends on; with ``rivals``, the one of these words that it says."""
    if not rivals:
        return final_answer(text) == normalise_answer(answer)
    words = {word.lower() for word in _WORD.findall(text)}
    return answer.lower() in words and words.isdisjoint(rival.lower() for rival in rivals)


def reward_right(
    prompts: Sequence[Any],
    completions: Sequence[Any],
    answer: Sequence[str],
    rivals: Sequence[Sequence[str]],
    **_: object,
) -> list[float]:
    """TRL reward function: 1.0 where ``is_right``."""
    rows = zip(completions, answer, rivals, strict=True)
    return [float(is_right(last_said(text), truth, others)) for text, truth, others in rows]


def last_said(turns: Messages | str) -> str:
    """A text, or the last message of a conversation."""
    return turns if isinstance(turns, str) else turns[-1]["content"]


ARITHMETIC = RealTask(
    name="arithmetic", generator="chain_sum", settings=ONE_DIGIT,
    about="sums and differences of two digits, as configs/smollm2.yaml asks them",
)  # fmt: skip

SHORT: Mapping[str, Any] = {"system": "Any form will do.", "asked": "{question}?", "most_tokens": 16}
SUM_PART = "problem: (.*) ="

FORMS = RealTask(
    name="forms", generator="chain_sum", settings=ONE_DIGIT, part=SUM_PART, **SHORT, rotated=True,
    shown=(("4 + 2?", '{"answer": 6}'), ("2 + 3?", "2 + 3 = 5"), ("9 - 1?", "The answer is 8.")),
    entropy_target_nats=0.67, about="the same sums after three turns of conversation that show three forms",
)  # fmt: skip

TASKS: Mapping[str, RealTask] = {task.name: task for task in (ARITHMETIC, FORMS)}
"""What is trained on."""

CANDIDATES: Mapping[str, RealTask] = {
    task.name: task
    for task in (
        RealTask(
            name="two-forms", generator="chain_sum", settings=ONE_DIGIT, part=SUM_PART, **SHORT,
            shown=(("4 + 2?", '{"answer": 6}'), ("9 - 1?", "The answer is 8.")),
            about="the same sums after two turns that show two forms",
        ),
        RealTask(
            name="products", generator="products", settings=ONE_DIGIT, part=r"multiplication: (.*?)\.", **SHORT,
            shown=(("2 * 3?", "2 * 3 = 6"), ("4 * 2?", "The answer is 8."), ("5 * 1?", '{"answer": 5}')),
            about="products of two digits after three turns that show three forms",
        ),
        RealTask(
            name="legs", generator="leg_counting", part="you have (.*)\\?",
            settings={"min_animals": 1, "max_animals": 1, "min_instances": 1, "max_instances": 1},
            **{**SHORT, "system": "How many legs? Any form will do."},
            shown=(("1 horse?", '{"legs": 4}'), ("1 human?", "1 human has 2 legs."), ("1 ant?", "The answer is 6.")),
            about="legs of one animal after three turns that show three forms",
        ),
    )
}  # fmt: skip
"""What the pilot tried beside them."""
