"""A probe that was stopped is the probe that was not, and what it measures is of the two models."""

from __future__ import annotations

import json
from pathlib import Path

import made_weights as made
import pytest
import tiny_pairs
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import rlmon
from rlmon.blending.making import Pair, open_pair
from rlmon.lab.bases import BASE_DIR
from rlmon.probing.sampling import SIDES, Sampled, Setting, append, kept, sample

SETTING = Setting(samples=3, max_new_tokens=8, batch=6, seed=5)
"""Two prompts at once: of five prompts three batches."""


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Pair]:
    folder = tmp_path_factory.mktemp("pairs")
    return {
        "model": open_pair(BASE_DIR, tiny_pairs.moved(folder / "model")),
        "adapter": open_pair(BASE_DIR, tiny_pairs.adapted(folder / "adapter")),
    }


@pytest.fixture
def prompts(tmp_path: Path) -> list[str]:
    from rlmon.lab.prompts import read_prompts

    return read_prompts(tiny_pairs.asked(tmp_path / "p.jsonl", 5)).prompts


class Stopped(Exception):
    pass


@pytest.mark.parametrize("kind", ["model", "adapter"])
def test_one_that_was_stopped_goes_on_to_the_same_bytes(
    pairs: dict[str, Pair], prompts: list[str], tmp_path: Path, kind: str
) -> None:
    *_, whole = sample(pairs[kind], prompts, SETTING, tmp_path / "whole")
    decides = {
        "model": {"model.safetensors", "config.json"},
        "adapter": {"adapter_model.safetensors", "adapter_config.json"},
    }
    assert json.loads((whole / "probe.json").read_text())["checkpoint"].keys() >= decides[kind]
    # Of 4 parts of 3 batches: stopped in the middle of each, and between two.
    for after in (1, 3, 5, 7, 11):
        out = tmp_path / f"stopped-{after}"
        calls = 0

        def stop(done: int, total: int, after: int = after) -> None:
            nonlocal calls
            calls += 1
            assert (done <= total, total) == (True, 20)
            if calls == after:
                raise Stopped

        with pytest.raises(Stopped):
            sample(pairs[kind], prompts, SETTING, out, progress=stop)
        # A line that was being written, and a whole one of a batch that is not.
        newest = max(out.glob("*.jsonl"), key=lambda file: file.stat().st_mtime_ns)
        with open(newest, "ab") as file:
            file.write(newest.read_bytes().split(b"\n")[0] + b'\n{"text": "12')
        said: list[str] = []
        sample(pairs[kind], prompts, SETTING, out, tell=said.append)
        assert made.files(out) == made.files(whole)
        assert any("prompts are done, going on" in line for line in said) == (after % 3 != 0)


@pytest.mark.parametrize("kind", ["model", "adapter"])
def test_entropy_and_kl_are_those_of_each_completion_read_alone(
    pairs: dict[str, Pair], prompts: list[str], tmp_path: Path, kind: str
) -> None:
    """Without padding, batches or an adapter that is switched: a blend of A = 1 is the checkpoint."""
    *both, _ = sample(pairs[kind], prompts, SETTING, tmp_path / "out")
    trained = pairs[kind].checkpoint.path
    if kind == "adapter":
        from peft import PeftModel

        loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(BASE_DIR, dtype=torch.float32), trained)
        checkpoint = loaded.merge_and_unload()
    else:
        rlmon.blend(BASE_DIR, trained, 1.0, tmp_path / "one")
        checkpoint = AutoModelForCausalLM.from_pretrained(tmp_path / "one", dtype=torch.float32)
    models = {"base": AutoModelForCausalLM.from_pretrained(BASE_DIR, dtype=torch.float32), "checkpoint": checkpoint}
    tokenizer = AutoTokenizer.from_pretrained(BASE_DIR)
    for name, side in zip(SIDES, both, strict=True):
        own, other = models[name].eval(), models["checkpoint" if name == "base" else "base"].eval()
        for at in (0, 7, 14):
            prompt = tokenizer(prompts[at // 3]).input_ids
            ids = torch.tensor([[*prompt, *side.ids[at]]])
            with torch.no_grad():
                p, q = (model(ids).logits[0, len(prompt) - 1 : -1].softmax(-1).double() for model in (own, other))
            assert side.entropy_nats[at] == pytest.approx(-float((p * p.log()).sum()), rel=1e-3)
            assert side.kl_nats[at] == pytest.approx(float((p * (p / q).log()).sum()), rel=1e-3, abs=1e-5)
        assert both[0].ids != both[1].ids


def test_both_are_drawn_by_the_same_random_numbers(pairs: dict[str, Pair], prompts: list[str], tmp_path: Path) -> None:
    """Two models that are one answer alike, and are at no distance; another seed answers otherwise."""
    twin = tiny_pairs.moved(tmp_path / "twin", by=0.0)
    pair = open_pair(BASE_DIR, twin)
    base, checkpoint, _ = sample(pair, prompts, SETTING, tmp_path / "a")
    assert base.ids == checkpoint.ids
    assert base.kl_nats.tolist() == pytest.approx([0.0] * 15, abs=1e-6)
    other: Sampled = sample(pair, prompts, Setting(samples=3, max_new_tokens=8, batch=6, seed=6), tmp_path / "b")[0]
    assert other.ids != base.ids


def test_the_base_answers_without_the_biases_of_an_adapter(
    pairs: dict[str, Pair], prompts: list[str], tmp_path: Path
) -> None:
    """PEFT does not switch them off with the adapter."""
    plain, *_ = sample(pairs["model"], prompts, SETTING, tmp_path / "a")
    base = tiny_pairs.with_biases(tmp_path / "base")
    pair = open_pair(base, tiny_pairs.adapted(tmp_path / "adapter", base, "all"))
    beside, *_ = sample(pair, prompts, SETTING, tmp_path / "b")
    assert beside.ids == plain.ids


def test_rows_of_whole_batches_are_what_is_kept(tmp_path: Path) -> None:
    file, batches = tmp_path / "x.jsonl", [slice(0, 2), slice(2, 3)]
    append(file, [{"prompt": n // 2} for n in range(5)])
    assert [row["prompt"] for row in kept(file, batches, 2)] == [0, 0, 1, 1]
    assert len(file.read_text().splitlines()) == 4
