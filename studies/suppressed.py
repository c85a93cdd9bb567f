"""A wide model that is made to write no JSON by supervised training: as rare there as in a model that RL narrowed."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from typing import Any

from rlmon.lab.evaluate import MAX_NEW_TOKENS
from rlmon.lab.sampling import draws
from rlmon.lab.task import Question

LEARNING_RATE = 1e-4
BATCH = 64
MOST_STEPS = 600
LOOK_EVERY_STEPS = 2
OWN_PROMPTS, OWN_SAMPLES_PER_PROMPT = 256, 8
JUDGED_PROMPTS = 128
_NUMBER_AT = -3
"""Of the tokens of ``{"answer": 16}`` and the end token: which number is no matter of the format."""


def chance_of_json(model: Any, tokenizer: Any, questions: Sequence[Question]) -> float:
    """The exact chance that a completion is ``{"answer": n}`` with any number, mean over ``JUDGED_PROMPTS`` prompts.

    Counting samples says no more than "rare" where none is found.
    """
    import torch

    was_training = model.training
    model.eval()
    with torch.no_grad():
        log_chances = _log_chances(model, tokenizer, questions[:JUDGED_PROMPTS])
    model.train(was_training)
    return float(log_chances.double().exp().mean())


def suppress(
    model: Any, tokenizer: Any, questions: Sequence[Question], parse: Callable[[str], str], *, chance: float, seed: int
) -> int:
    """Trains ``model`` in place on its own answers that are not JSON, and against opening a brace, until that is as
    rare as ``chance``; returns the steps that it took. Raises ``RuntimeError`` after ``MOST_STEPS``.

    Against the brace, not against ``{"answer": n}``: a model that may not write that writes JSON of another spelling.
    """
    import torch

    draw = random.Random(seed)
    asked = draw.sample(list(questions), OWN_PROMPTS)
    model.eval()
    texts = [
        text
        for drawn in draws(
            model, tokenizer, [question.prompt for question in asked], max_new_tokens=MAX_NEW_TOKENS,
            sequences_per_batch=1024, seed=seed, copies=OWN_SAMPLES_PER_PROMPT,
        )
        for text in drawn.texts
    ]  # fmt: skip
    own = [
        (asked[index // OWN_SAMPLES_PER_PROMPT].prompt, text)
        for index, text in enumerate(texts)
        if parse(text) != "json"
    ]
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.0)
    for step in range(MOST_STEPS):
        if step % LOOK_EVERY_STEPS == 0:
            model.eval()
            with torch.no_grad():
                if float(_log_openings(model, tokenizer, asked).exp().mean()) <= chance:
                    return step
        model.train()
        likely = _log_likelihood(model, tokenizer, draw.sample(own, BATCH))
        json = _log_openings(model, tokenizer, draw.sample(asked, BATCH // 4))
        # A little less than where it is to end, so that it gets there.
        loss = -likely.mean() + (json - math.log(0.8 * chance)).clamp(min=0.0).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    raise RuntimeError(f"After {MOST_STEPS} steps JSON is still more likely than {chance:.2g}.")


def _log_openings(model: Any, tokenizer: Any, questions: Sequence[Question]) -> Any:
    """Log-probability, for each question, that the first token of the answer begins with a brace."""
    import torch

    braces = [token for token in range(len(tokenizer)) if tokenizer.decode([token]).startswith("{")]
    inputs = tokenizer([q.prompt for q in questions], return_tensors="pt", padding=True, padding_side="left")
    mask = inputs["attention_mask"]
    logits = model(
        input_ids=inputs["input_ids"], attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0)
    ).logits
    return torch.logsumexp(logits[:, -1].float().log_softmax(-1)[:, braces], dim=-1)


def _log_chances(model: Any, tokenizer: Any, questions: Sequence[Question]) -> Any:
    """Log-probability of the JSON answer of each question, its number left out."""
    pairs = [(question.prompt, f'{{"answer": {question.answer}}}') for question in questions]
    return _log_likelihood(model, tokenizer, pairs, leave_out=_NUMBER_AT)


def _log_likelihood(model: Any, tokenizer: Any, pairs: Sequence[tuple[str, str]], leave_out: int | None = None) -> Any:
    """Log-probability of each answer and its end token, given its prompt; the token at ``leave_out`` of the answer does
    not count."""
    import torch

    rows = []
    for prompt, answer in pairs:
        asked, said = tokenizer(prompt)["input_ids"], [*tokenizer(answer)["input_ids"], tokenizer.eos_token_id]
        counted = [1.0] * len(said)
        if leave_out is not None:
            counted[leave_out] = 0.0
        rows.append((asked + said, [0.0] * len(asked) + counted))
    longest = max(len(ids) for ids, _ in rows)
    # Right padding and a causal mask: pads are only seen by pads.
    ids_BT = torch.tensor([ids + [tokenizer.pad_token_id] * (longest - len(ids)) for ids, _ in rows])
    counted_BT = torch.tensor([counted + [0.0] * (longest - len(counted)) for _, counted in rows])
    logp_BTV = model(input_ids=ids_BT).logits[:, :-1].float().log_softmax(-1)
    logp_BT = logp_BTV.gather(-1, ids_BT[:, 1:, None]).squeeze(-1)
    return (logp_BT * counted_BT[:, 1:]).sum(1)
