"""Held-out evaluation of a policy on the arithmetic task: what it samples, and how far that is from the base."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from rlmon.lab.sampling import draws, entropy_and_kl
from rlmon.lab.task import PROMPT_CLASSES, Question, is_correct, read_answer
from rlmon.statistics import effective_number as effective_number_of_counts

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

EVALUATION_SEED = 20_260
"""One seed for every arm: the same prompts and the same random draws, so that arms differ by their weights only."""
PROMPTS = 128
SAMPLES_PER_PROMPT = 8
MAX_NEW_TOKENS = 12
"""The longest format needs 12 with its end token; every step of sampling costs the demo CPU time."""
SEQUENCES_PER_BATCH = 256
"""Part of what decides the draws: another size samples other completions."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """What completions at temperature 1 on held-out prompts show (128 x 8 in the demo)."""

    completions: int
    accuracy: float
    """Share of completions that state the right answer."""
    effective_formats: float
    """exp of the entropy of the pooled format shares; ``other`` counts as one format."""
    effective_formats_within: float | None
    """1 / (unbiased chance that two completions of one prompt have the same format), see ``effective_within``."""
    effective_formats_correct: float | None
    """``effective_formats`` over the correct completions."""
    other_share: float
    """Share of completions in none of the known formats."""
    top_format: str
    top_share: float
    entropy_nats: float
    """Mean entropy of the next-token distribution over all completion tokens, at temperature 1."""
    kl_nats: float
    """Exact KL(policy || base), mean over all completion tokens."""
    kl_seq_nats: float
    """The same, summed over a completion, mean over completions."""
    format_shares: dict[str, float]
    """Most frequent first."""
    samples: list[dict[str, Any]]
    """A few ``{"prompt", "completion", "format", "correct"}``: the first completion of each of the first prompts."""
    effective_formats_correct_within: float | None = None
    """``effective_formats_within`` over the correct completions of prompts that have at least two."""
    accuracy_by_format: dict[str, float] = field(default_factory=dict)
    """Share of right answers among the completions of each format, in the order of ``format_shares``."""
    answer_shares: dict[str, float] = field(default_factory=dict)
    """The 30 most frequent stated answers; ``none`` is no answer."""
    format_shares_by_class: dict[str, dict[str, float]] = field(default_factory=dict)
    """Format shares within each of ``PROMPT_CLASSES``, named by the first item."""


def held_out_sample(held_out: Sequence[Question], prompts: int = PROMPTS) -> list[Question]:
    """The questions of the evaluation: the same for every arm and every run."""
    return random.Random(EVALUATION_SEED).sample(list(held_out), prompts)


def states_answer(text: str, question: Question) -> bool:
    """Whether the completion states the answer: the verifier of every task whose reward is blind to the format."""
    return is_correct(text, question.answer)


def shares_of(modes: Sequence[str]) -> dict[str, float]:
    """Share of each of ``modes``, most frequent first."""
    return {mode: count / len(modes) for mode, count in Counter(modes).most_common()}


def effective_number(modes: Sequence[str]) -> float | None:
    """exp(-sum p ln p) of the shares of ``modes`` (Hill number of order 1); ``None`` for no modes."""
    if not modes:
        return None
    return float(effective_number_of_counts(list(Counter(modes).values())))


def effective_within(modes_PG: Sequence[Sequence[str]]) -> float | None:
    """Effective number of formats inside one prompt: 1 / mean over prompts of the pair collision share.

    Hill number of order 2. For each prompt the share of ordered pairs of *different* completions with equal
    format, sum n_m (n_m - 1) / (G (G - 1)), is an unbiased estimate of the chance that two draws collide,
    however small G is; entropy has no such estimate, and at G = 8 the plug-in reads far too low. Order 2 weighs
    rare formats less than order 1, so the number lies below ``effective_formats`` even where every prompt uses
    every format. ``None`` when no prompt has two completions or nothing ever collides.
    """
    collisions = [
        sum(n * (n - 1) for n in Counter(modes).values()) / (len(modes) * (len(modes) - 1))
        for modes in modes_PG
        if len(modes) > 1
    ]
    mean = sum(collisions) / len(collisions) if collisions else 0.0
    return 1.0 / mean if mean > 0 else None


def evaluate(
    model: PreTrainedModel,
    base: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Question],
    parse: Callable[[str], str],
    *,
    keep_samples: int = 12,
    samples_per_prompt: int = SAMPLES_PER_PROMPT,
    max_new_tokens: int = MAX_NEW_TOKENS,
    sequences_per_batch: int = SEQUENCES_PER_BATCH,
    correct: Callable[[str, Question], bool] = states_answer,
) -> Evaluation:
    """Samples ``samples_per_prompt`` completions of every question from ``model`` and measures them.

    Leaves the global random state and the model's mode as they were. ``parse`` names a completion's format and
    ``correct`` judges it. The draws depend on ``sequences_per_batch``.
    """
    was_training = model.training
    model.eval()
    base.eval()
    G = samples_per_prompt
    rows = [question for question in questions for _ in range(G)]
    texts: list[str] = []
    entropy_sum = kl_sum = 0.0
    tokens = 0
    for drawn in draws(
        model, tokenizer, [question.prompt for question in rows],
        max_new_tokens=max_new_tokens, sequences_per_batch=sequences_per_batch, seed=EVALUATION_SEED,
    ):  # fmt: skip
        entropy_B, kl_B = entropy_and_kl(model, base, drawn)
        entropy_sum += float(entropy_B.sum())
        kl_sum += float(kl_B.sum())
        tokens += int(drawn.own_BT.sum())
        texts += drawn.texts
    model.train(was_training)

    modes = [parse(text) for text in texts]
    right = [correct(text, question) for text, question in zip(texts, rows, strict=True)]
    counts = Counter(modes).most_common()
    starts = range(0, len(modes), G)
    classes = [PROMPT_CLASSES[question.prompt_class][0] for question in rows]
    answers = Counter(str(read_answer(text)).lower() for text in texts)
    pooled = effective_number(modes)
    assert pooled is not None
    return Evaluation(
        completions=len(texts),
        accuracy=float(np.mean(right)),
        effective_formats=pooled,
        effective_formats_within=effective_within([modes[i : i + G] for i in starts]),
        effective_formats_correct=effective_number([mode for mode, ok in zip(modes, right, strict=True) if ok]),
        other_share=modes.count("other") / len(modes),
        top_format=counts[0][0],
        top_share=counts[0][1] / len(modes),
        entropy_nats=entropy_sum / tokens,
        kl_nats=kl_sum / tokens,
        kl_seq_nats=kl_sum / len(texts),
        format_shares=shares_of(modes),
        samples=[
            {"prompt": rows[i].prompt, "completion": texts[i], "format": modes[i], "correct": right[i]}
            for i in range(0, min(keep_samples * G, len(rows)), G)
        ],
        effective_formats_correct_within=effective_within(
            [[mode for mode, ok in zip(modes[i : i + G], right[i : i + G], strict=True) if ok] for i in starts]
        ),
        accuracy_by_format={
            name: sum(ok for mode, ok in zip(modes, right, strict=True) if mode == name) / count
            for name, count in counts
        },
        answer_shares={answer: count / len(texts) for answer, count in answers.most_common(30)},
        format_shares_by_class={
            name: shares_of([mode for mode, of in zip(modes, classes, strict=True) if of == name])
            for name in sorted(set(classes))
        },
    )
