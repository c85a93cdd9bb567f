"""Completions drawn from a model: read once or many times, the same ones; and what is measured of their tokens."""

from __future__ import annotations

import pytest
import torch

from rlmon.lab.bases import BASE_DIR
from rlmon.lab.sampling import Drawn, draws, entropy_and_kl

PROMPTS = [
    "Ann has 7 figs and gets 9 more. How many?\n",
    "Ben has 12 maps and gets 11 more. How many?\n",
    "Eva has 1\n",
]


@pytest.fixture(scope="module")
def base() -> tuple[object, object]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    return AutoModelForCausalLM.from_pretrained(BASE_DIR, dtype=torch.float32).eval(), AutoTokenizer.from_pretrained(
        BASE_DIR
    )


def drawn(base: tuple[object, object], prompts: list[str], copies: int, batch: int = 12) -> list[Drawn]:
    model, tokenizer = base
    settings = {"max_new_tokens": 12, "sequences_per_batch": batch, "seed": 5}
    return list(draws(model, tokenizer, prompts, copies=copies, **settings))


def test_a_prompt_that_is_read_once_for_all_its_copies_gives_the_same_completions(base: tuple[object, object]) -> None:
    before = torch.get_rng_state()
    once = drawn(base, PROMPTS, copies=4)
    each = drawn(base, [prompt for prompt in PROMPTS for _ in range(4)], copies=1)
    assert torch.equal(before, torch.get_rng_state())
    assert [found.texts for found in once] == [found.texts for found in each]
    assert torch.equal(once[0].mask_BS, each[0].mask_BS)
    assert len(set(once[0].texts)) > 4
    # Two prompts fit into a batch of eight.
    assert [len(found.texts) for found in drawn(base, PROMPTS, copies=4, batch=8)] == [8, 4]


def test_entropy_and_kl_are_sums_over_a_completions_own_tokens(base: tuple[object, object]) -> None:
    model, _ = base
    (found,) = drawn(base, PROMPTS, copies=4)
    entropy_B, kl_B = entropy_and_kl(model, model, found)
    assert kl_B.abs().max() < 1e-6
    row = 5
    ids = found.ids_BS[row, found.mask_BS[row].bool()][None]
    length = int(found.own_BT[row].sum())
    with torch.no_grad():
        p = model(input_ids=ids).logits[0, -length - 1 : -1].softmax(-1)
    assert float(entropy_B[row]) == pytest.approx(float(-(p * p.log()).sum()), rel=1e-4)
    assert bool(found.ended_B[row]) == (int(ids[0, -1]) == base[1].eos_token_id)


def test_a_token_that_cannot_come_adds_nothing(base: tuple[object, object]) -> None:
    """Its p is 0 and its log p minus infinity, in both: their product is no number."""
    model, _ = base
    (found,) = drawn(base, PROMPTS, copies=2)
    (never, *_) = set(range(model.config.vocab_size)) - set(found.ids_BS.flatten().tolist())

    def without(**inputs: object) -> object:
        out = model(**inputs)
        out.logits[..., never] = -torch.inf
        return out

    entropy_B, kl_B = entropy_and_kl(without, without, found)
    assert kl_B.abs().max() < 1e-6
    assert torch.isfinite(entropy_B).all()
