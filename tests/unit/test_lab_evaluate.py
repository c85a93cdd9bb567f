"""Effective numbers of formats, with the arithmetic shown."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import pytest

from rlmon.lab.bases import base_dir
from rlmon.lab.evaluate import (
    PROMPTS,
    SAMPLES_PER_PROMPT,
    effective_number,
    effective_within,
    evaluate,
    held_out_sample,
)
from rlmon.lab.task import is_correct, is_held_out, split_questions
from rlmon.metrics.formats import ModeSet
from studies.experiments import jensen_shannon_distance


def test_effective_number() -> None:
    assert effective_number([]) is None
    assert effective_number(["a"] * 5) == pytest.approx(1.0)
    assert effective_number(["a", "b", "c", "d"]) == pytest.approx(4.0)
    # shares 1/2, 1/4, 1/4: H = .5 ln 2 + .5 ln 4 = 1.5 ln 2, exp(H) = 2^1.5
    assert effective_number(["a", "a", "b", "c"]) == pytest.approx(2**1.5)


def test_effective_within() -> None:
    # prompt 1: counts 2, 2 -> (2 + 2) / (4 * 3) = 1/3; prompt 2: count 4 -> 12/12 = 1; mean 2/3 -> 1.5
    assert effective_within([["a", "a", "b", "b"], ["c", "c", "c", "c"]]) == pytest.approx(1.5)
    assert effective_within([["a"], ["b"]]) is None
    assert effective_within([["a", "b"]]) is None
    assert effective_within([]) is None


def test_collision_estimate_is_unbiased_at_any_group_size() -> None:
    # Every draw of 3 from shares (.5, .3, .2), weighted by its chance: the mean must be .25 + .09 + .04 = .38.
    shares = {"a": 0.5, "b": 0.3, "c": 0.2}
    mean = 0.0
    for draw in itertools.product(shares, repeat=3):
        number = effective_within([draw])
        mean += math.prod(shares[mode] for mode in draw) * (0.0 if number is None else 1 / number)
    assert mean == pytest.approx(0.38)
    plug_in = sum(
        math.prod(shares[mode] for mode in draw) * sum((n / 3) ** 2 for n in Counter(draw).values())
        for draw in itertools.product(shares, repeat=3)
    )
    assert plug_in > 0.5  # what the obvious estimator would have said


def test_evaluation_is_1024_completions_on_held_out_prompts() -> None:
    assert PROMPTS * SAMPLES_PER_PROMPT == 1024
    _, held_out = split_questions()
    sample = held_out_sample(held_out)
    assert len({q.prompt for q in sample}) == PROMPTS
    assert all(is_held_out(q.prompt) for q in sample)
    assert sample == held_out_sample(held_out)


def test_jensen_shannon_distance() -> None:
    assert jensen_shannon_distance({"a": 1.0}, {"a": 1.0}) == 0.0
    assert jensen_shannon_distance({"a": 1.0}, {"b": 1.0}) == pytest.approx(1.0)
    # m = (.75, .25): [log2(1/.75) + .5 log2(.5/.75) + .5 log2(.5/.25)] / 2 = (.4150 - .2925 + .5) / 2 = .3113
    assert jensen_shannon_distance({"a": 1.0}, {"a": 0.5, "b": 0.5}) == pytest.approx(math.sqrt(0.3113), abs=1e-4)


def test_evaluation_of_the_base_adds_up_and_leaves_the_random_state() -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    folder = base_dir("seven")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    questions = held_out_sample(split_questions()[1], 24)
    before = torch.get_rng_state()
    parse = ModeSet.build(None).parse
    found = evaluate(model, model, tokenizer, questions, parse, samples_per_prompt=4, keep_samples=24)
    assert torch.equal(torch.get_rng_state(), before)
    assert found.completions == 96
    assert len(found.samples) == 24
    assert found.kl_nats == 0.0
    # Accuracy is the mean over formats of their accuracies, weighted by their shares.
    assert sum(share * found.accuracy_by_format[name] for name, share in found.format_shares.items()) == pytest.approx(
        found.accuracy
    )
    assert sum(found.answer_shares.values()) == pytest.approx(1.0)
    assert found.effective_formats_correct_within is not None
    assert found.effective_formats_correct_within > 2.0
    # Another judge, other verdicts on the same completions.
    strict = evaluate(
        model, model, tokenizer, questions, parse, samples_per_prompt=4, keep_samples=24,
        correct=lambda text, question: is_correct(text, question.answer) and parse(text) == "python",
    )  # fmt: skip
    assert strict.format_shares == found.format_shares
    assert strict.accuracy < found.accuracy
    assert strict.effective_formats_correct == pytest.approx(1.0)
