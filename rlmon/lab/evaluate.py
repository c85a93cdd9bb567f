"""Held-out evaluation of a policy on the arithmetic task: what it samples, and how far that is from the base."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from rlmon.lab.task import Question, is_correct

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

EVALUATION_SEED = 20_260
"""One seed for every arm: the same prompts and the same random draws, so that arms differ by their weights only."""
PROMPTS = 128
SAMPLES_PER_PROMPT = 8
MAX_NEW_TOKENS = 12
"""The longest format needs 12 with its end token; every step of sampling costs the demo CPU time."""
_SEQUENCES_PER_BATCH = 256


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """What 128 x 8 completions at temperature 1 on held-out prompts show."""

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


def held_out_sample(held_out: Sequence[Question], prompts: int = PROMPTS) -> list[Question]:
    """The questions of the evaluation: the same for every arm and every run."""
    return random.Random(EVALUATION_SEED).sample(list(held_out), prompts)


def effective_number(modes: Sequence[str]) -> float | None:
    """exp(-sum p ln p) of the shares of ``modes`` (Hill number of order 1); ``None`` for no modes."""
    if not modes:
        return None
    shares = [count / len(modes) for count in Counter(modes).values()]
    return math.exp(-sum(p * math.log(p) for p in shares))


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
) -> Evaluation:
    """Samples ``SAMPLES_PER_PROMPT`` completions of every question from ``model`` and measures them.

    Leaves the global random state and the model's mode as they were. ``parse`` names a completion's format.
    """
    import torch

    was_training = model.training
    model.eval()
    base.eval()
    rows = [question for question in questions for _ in range(SAMPLES_PER_PROMPT)]
    texts: list[str] = []
    entropy_sum = kl_sum = 0.0
    tokens = 0
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(EVALUATION_SEED)
        for start in range(0, len(rows), _SEQUENCES_PER_BATCH):
            batch = rows[start : start + _SEQUENCES_PER_BATCH]
            inputs = tokenizer([q.prompt for q in batch], return_tensors="pt", padding=True, padding_side="left")
            output_BS = model.generate(
                input_ids=inputs["input_ids"],
                attention_mask=inputs["attention_mask"],
                max_new_tokens=MAX_NEW_TOKENS,
                do_sample=True,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
                pad_token_id=tokenizer.pad_token_id,
                eos_token_id=tokenizer.eos_token_id,
            )
            assert isinstance(output_BS, torch.Tensor)
            prompt_tokens = inputs["input_ids"].shape[1]
            completion_BT = output_BS[:, prompt_tokens:]
            # A token is the model's own up to and including the first end token.
            ended_before_BT = (completion_BT == tokenizer.eos_token_id).cumsum(1).roll(1, dims=1)
            ended_before_BT[:, 0] = 0
            own_BT = ended_before_BT == 0
            mask_BS = torch.cat([inputs["attention_mask"], own_BT.long()], dim=1)
            logp_pi = _log_probabilities(model, output_BS, mask_BS, prompt_tokens)
            logp_base = _log_probabilities(base, output_BS, mask_BS, prompt_tokens)
            p_pi = logp_pi.exp()
            entropy_sum += float(-(p_pi * logp_pi).sum(-1)[own_BT].sum())
            kl_sum += float((p_pi * (logp_pi - logp_base)).sum(-1)[own_BT].sum())
            tokens += int(own_BT.sum())
            texts += tokenizer.batch_decode(completion_BT, skip_special_tokens=True)
    model.train(was_training)

    modes = [parse(text) for text in texts]
    correct = [is_correct(text, question.answer) for text, question in zip(texts, rows, strict=True)]
    counts = Counter(modes).most_common()
    G = SAMPLES_PER_PROMPT
    pooled = effective_number(modes)
    assert pooled is not None
    return Evaluation(
        completions=len(texts),
        accuracy=float(np.mean(correct)),
        effective_formats=pooled,
        effective_formats_within=effective_within([modes[i : i + G] for i in range(0, len(modes), G)]),
        effective_formats_correct=effective_number([mode for mode, ok in zip(modes, correct, strict=True) if ok]),
        other_share=modes.count("other") / len(modes),
        top_format=counts[0][0],
        top_share=counts[0][1] / len(modes),
        entropy_nats=entropy_sum / tokens,
        kl_nats=kl_sum / tokens,
        kl_seq_nats=kl_sum / len(texts),
        format_shares={mode: count / len(modes) for mode, count in counts},
        samples=[
            {"prompt": rows[i].prompt, "completion": texts[i], "format": modes[i], "correct": correct[i]}
            for i in range(0, min(keep_samples * G, len(rows)), G)
        ],
    )


def _log_probabilities(
    model: PreTrainedModel, ids_BS: torch.Tensor, mask_BS: torch.Tensor, prompt_tokens: int
) -> torch.Tensor:
    """Log-probabilities [B, T, V] that predict each completion token, in float32."""
    position_BS = (mask_BS.cumsum(1) - 1).clamp(min=0)
    logits = model(input_ids=ids_BS, attention_mask=mask_BS, position_ids=position_BS).logits
    result: torch.Tensor = logits[:, prompt_tokens - 1 : -1].float().log_softmax(-1)
    return result
