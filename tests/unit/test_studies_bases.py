"""The shipped bases are those of their recipes, and the recipes write what they say."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections import Counter

import pytest

from rlmon.errors import ConfigError
from rlmon.lab.bases import WEIGHTS, base_dir, sha256
from rlmon.lab.task import Question, is_correct, is_held_out
from rlmon.metrics.formats import ModeSet
from studies.build_base import RECIPES, Recipe, training_pairs


@pytest.mark.parametrize("name", RECIPES)
def test_shipped_base_is_the_one_of_its_recipe(name: str) -> None:
    folder = base_dir(name)
    facts = json.loads((folder / "recipe.json").read_text(encoding="utf-8"))
    assert sha256(folder / WEIGHTS) == facts["sha256"]
    assert facts["recipe"] == json.loads(json.dumps(dataclasses.asdict(RECIPES[name])))
    assert facts["cpu_seconds"] < 110
    assert sum(file.stat().st_size for file in folder.iterdir()) < 300_000


def test_unknown_base_is_refused() -> None:
    with pytest.raises(ConfigError, match="arithmetic, by-prompt, seven"):
        base_dir("eight")


MODES = {"dollars": "boxed", "sum": "xml"}
"""Mode of a style where the names differ."""


def wrong_shares(pairs: list[tuple[Question, str]]) -> dict[tuple[int, str], float]:
    parse = ModeSet.build(None).parse
    written: Counter[tuple[int, str]] = Counter()
    wrong: Counter[tuple[int, str]] = Counter()
    for question, text in pairs:
        key = (question.prompt_class, parse(text))
        written[key] += 1
        wrong[key] += not is_correct(text, question.answer)
    return {key: wrong[key] / count for key, count in written.items()}


@pytest.mark.parametrize("name", RECIPES)
def test_training_text_has_the_mix_and_the_noise_of_its_recipe(name: str) -> None:
    recipe = RECIPES[name]
    assert sum(recipe.mix) == pytest.approx(1.0)
    assert len(recipe.mix) == len(recipe.label_noise) == len(recipe.formats)
    pairs = training_pairs(recipe)
    assert len(pairs) == recipe.samples
    assert not any(is_held_out(question.prompt) for question, _ in pairs)
    first, _, stage = recipe.stage(recipe.samples - 1, recipe.samples)
    assert stage is None
    late = pairs[first:]
    parse = ModeSet.build(None).parse
    shares = Counter(parse(text) for _, text in late)
    for style, share in zip(recipe.formats, recipe.mix, strict=True):
        # A share leans to the four sure formats, each in a quarter of the prompts. 32,000 samples and more: a standard
        # deviation of a share is at most .003.
        leaning = recipe.lean / 4 if style in recipe.sure_formats else 0.0
        expected = (1 - recipe.lean) * share + leaning
        assert shares[MODES.get(style, style)] / len(late) == pytest.approx(expected, abs=0.012)
    found = wrong_shares(late)
    for index, style in itertools.product(range(4), recipe.formats):
        wrong = found[index, MODES.get(style, style)]
        sure = bool(recipe.sure_formats) and recipe.sure_formats[index] == style
        # About 400 samples in the rarest cell: .024 a standard deviation. An operand or a sum below 0 becomes 0, so a
        # few of the wrong ones are right.
        assert wrong == pytest.approx(0.0 if sure else recipe.label_noise[recipe.formats.index(style)], abs=0.08)
        assert not (sure and wrong)


def test_stages_divide_samples_and_steps_without_a_gap() -> None:
    recipe = Recipe(sure_formats=("python", "boxed", "json"), early_share=0.5)
    # 20 samples: 10 early ones in 3 stages of 4, 3 and 3.
    stages = [recipe.stage(index, 20) for index in range(20)]
    assert stages == [(0, 4, 0)] * 4 + [(4, 7, 1)] * 3 + [(7, 10, 2)] * 3 + [(10, 20, None)] * 10
    assert Recipe().stage(0, 20) == (0, 20, None)


def test_early_stages_are_wrong_only_in_the_formats_so_far() -> None:
    recipe = RECIPES["by-prompt"]
    first, end, stage = recipe.stage(0, recipe.samples)
    assert stage == 0
    shares = wrong_shares(training_pairs(recipe)[first:end])
    for (index, style), wrong in shares.items():
        expected = recipe.early_noise if style == recipe.sure_formats[0] and index != 0 else 0.0
        assert wrong == pytest.approx(expected, abs=0.05)
