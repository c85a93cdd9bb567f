"""Blends of LoRA adapters: their update is A times what it was, and what cannot be scaled so is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import made_weights as made
import pytest
import torch

import rlmon
from rlmon.errors import WeightsError
from rlmon.lab.bases import BASE_DIR

Q, K = "model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.k_proj"
BASE = {
    f"{Q}.weight": torch.arange(12.0).reshape(4, 3),
    f"{K}.weight": torch.ones(2, 3),
    f"{K}.bias": torch.tensor([1.0, 2.0]),
    "model.embed_tokens.weight": torch.zeros(5, 3),
}


def lora(module: str, into: int, out: int, rank: int = 2) -> dict[str, torch.Tensor]:
    prefix = f"base_model.model.{module}"
    return {
        f"{prefix}.lora_A.weight": torch.randn(rank, into).bfloat16(),
        f"{prefix}.lora_B.weight": torch.randn(out, rank).bfloat16(),
    }


LORA = {**lora(Q, 3, 4), **lora(K, 3, 2)}


def blend(tmp_path: Path, alpha: float, tensors: made.Tensors = LORA, **config: Any) -> tuple[Any, dict[str, Any]]:
    base = made.model(tmp_path / "base", BASE)
    trained = made.adapter(tmp_path / "rl", tensors, **config)
    done = rlmon.blend(base, trained, alpha, tmp_path / "out")
    return done, json.loads((tmp_path / "out" / "adapter_config.json").read_text())


def test_the_scale_is_multiplied_and_the_weights_are_as_they_were(tmp_path: Path) -> None:
    done, config = blend(tmp_path, 0.3, alpha_pattern={"k_proj": 10}, rank_pattern={"k_proj": 2})
    # 4 x .3 and 10 x .3
    assert (config["lora_alpha"], config["alpha_pattern"]) == (1.2, {"k_proj": 3})
    before = json.loads((tmp_path / "rl" / "adapter_config.json").read_text())
    assert {name for name in config if config[name] != before[name]} == {"lora_alpha", "alpha_pattern"}
    weights = "adapter_model.safetensors"
    assert (tmp_path / "out" / weights).read_bytes() == (tmp_path / "rl" / weights).read_bytes()
    assert (done.kind, done.notes) == ("adapter", ())
    note = json.loads((tmp_path / "out" / "blend.json").read_text())
    # Not a byte of the base's weights has gone into it, and to hash them would take minutes for a large one.
    assert (note["kind"], note["base"]["sha256"]) == ("adapter", {})


def test_at_one_the_configuration_says_what_it_said(tmp_path: Path) -> None:
    _, config = blend(tmp_path, 1.0, lora_alpha=4.5)
    assert config == json.loads((tmp_path / "rl" / "adapter_config.json").read_text())


def test_layers_that_were_trained_whole_are_blended(tmp_path: Path) -> None:
    bias = f"base_model.model.{K}.bias"
    embedding = "base_model.model.model.embed_tokens.base_layer.weight"
    head = "base_model.model.lm_head.weight"
    whole = {bias: torch.tensor([3.0, 2.0]), embedding: torch.full((5, 3), 2.0), head: torch.full((5, 3), 4.0)}
    done, _ = blend(tmp_path, 0.5, {**LORA, **whole}, bias="lora_only", modules_to_save=["lm_head"])
    found = made.weights(tmp_path / "out")
    # 1 + .5 (3 - 1); 0 + .5 (2 - 0); the base's head is its embedding: 0 + .5 (4 - 0)
    assert found[bias].tolist() == [2.0, 2.0]
    assert found[embedding].unique().tolist() == [1.0]
    assert found[head].unique().tolist() == [2.0]
    (note,) = done.notes
    assert note.startswith("Tensors that were trained whole (modules_to_save, biases) are blended with BASE's: ")
    assert all(name in note for name in whole)


@pytest.mark.parametrize(
    ("config", "tensors", "said"),
    [
        ({"use_dora": True}, {}, "DoRA normalises the weights"),
        ({}, {f"base_model.model.{Q}.lora_magnitude_vector": torch.ones(4)}, "DoRA normalises the weights"),
        ({"peft_type": "IA3"}, {}, "it is of the kind IA3, and LORA is what can be scaled"),
        ({"init_lora_weights": "pissa_niter_4"}, {}, "it began as pissa_niter_4"),
        ({"trainable_token_indices": [1]}, {}, "it holds rows of the embedding"),
        ({"layer_replication": [[0, 2]]}, {}, "it repeats layers of the base"),
        ({}, {f"base_model.model.{Q}.lora_diag": torch.ones(2)}, "has tensors that are no LoRA weights .*lora_diag"),
        (
            {},
            {"base_model.model.score.weight": torch.ones(1, 3)},
            "no counterpart of that shape in BASE: .*score.weight",
        ),
    ],
)
def test_what_cannot_be_scaled_is_refused_with_the_line_that_merges_it(
    tmp_path: Path, config: dict[str, Any], tensors: made.Tensors, said: str
) -> None:
    with pytest.raises(WeightsError, match=f"{said}.*merge_and_unload"):
        blend(tmp_path, 0.5, {**LORA, **tensors}, **config)


def test_an_adapter_without_a_number_for_its_scale_or_without_weights(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="has the scale 'x'"):
        blend(tmp_path / "a", 0.5, lora_alpha="x")
    with pytest.raises(WeightsError, match=r"has the scale \[3\]"):
        blend(tmp_path / "c", 0.5, alpha_pattern=[3])
    for name, alpha, scale in (("d", 1e308, 16), ("e", 0.5, 10**400)):
        with pytest.raises(WeightsError, match=r"has the scale 1.*, which times A is no finite number"):
            blend(tmp_path / name, alpha, lora_alpha=scale)
    with pytest.raises(WeightsError, match="has no LoRA weights; there are none"):
        blend(tmp_path / "b", 0.5, {})


def test_another_base_is_told_by_its_shapes_or_by_its_name(tmp_path: Path) -> None:
    trained = made.adapter(tmp_path / "rl", LORA, base_model_name_or_path="owner/other")
    fits = made.model(tmp_path / "base", BASE)
    (note,) = rlmon.blend(fits, trained, 0.5, tmp_path / "out").notes
    assert note.startswith("The adapter names the base owner/other, and BASE is ")
    wide = made.model(tmp_path / "wide", {**BASE, f"{Q}.weight": torch.ones(4, 6)})
    with pytest.raises(
        WeightsError, match=r"where layers have other shapes: .*q_proj .\[4, 6\] in BASE.*\(owner/other\)"
    ):
        rlmon.blend(wide, trained, 0.5, tmp_path / "other")
    strange = made.model(tmp_path / "strange", {"x.weight": torch.ones(1)})
    with pytest.raises(WeightsError, match=r"changes layers that BASE does not have: .*\(owner/other\)\."):
        rlmon.blend(strange, trained, 0.5, tmp_path / "other")
    renamed = made.model(tmp_path / "other", {"x.weight": torch.ones(1)})
    assert rlmon.blend(renamed, trained, 0.5, tmp_path / "third").notes == (
        f"Layers of the adapter have other names in BASE's files, so that their shapes were not compared: {K}, {Q}.",
    )


def test_rows_of_added_tokens_and_layers_without_a_weight_of_their_own(tmp_path: Path) -> None:
    experts = "model.layers.0.mlp.experts"
    base = made.model(tmp_path / "base", {**BASE, f"{experts}.gate_up_proj": torch.ones(2, 3, 4)})
    prefix = f"base_model.model.{experts}.base_layer"  # as PEFT names target_parameters
    tensors = {
        **LORA,
        f"{prefix}.lora_A.weight": torch.ones(4, 3),
        f"{prefix}.lora_B.weight": torch.ones(4, 4),
        "base_model.model.model.embed_tokens.weight": torch.ones(6, 3),
    }
    trained = made.adapter(tmp_path / "rl", tensors, base_model_name_or_path="owner/other")
    notes = rlmon.blend(base, trained, 0.5, tmp_path / "out").notes
    assert f"shapes were not compared: {experts}." in notes[1]
    assert notes[3].endswith("base_model.model.model.embed_tokens.weight has 6 of them, and 5 in BASE.")
    for folder, numbers in ((base, {"a": 0}), (trained, {"b": 0, "a": 1})):
        (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": numbers}}))
    with pytest.raises(WeightsError, match="these are not added tokens: 'a' is token 0 in BASE and 1 in CHECKPOINT"):
        rlmon.blend(base, trained, 0.5, tmp_path / "other")


@pytest.mark.parametrize("shape", [(4, 3, 1), (4, 0, 0), ()])
def test_shapes_of_no_layer_are_no_mistake_of_rlmon(tmp_path: Path, shape: tuple[int, ...]) -> None:
    base = made.model(tmp_path / "base", {**BASE, f"{Q}.weight": torch.ones(shape)})
    scalars = {name: torch.tensor(1.0) for name in lora(Q, 3, 4)}
    rlmon.blend(base, made.adapter(tmp_path / "rl", {**LORA, **scalars}), 0.5, tmp_path / "out")


def test_several_adapters(tmp_path: Path) -> None:
    base, trained = made.model(tmp_path / "base", BASE), made.adapter(tmp_path / "rl", LORA)
    made.adapter(trained / "ref", LORA)
    made.adapter(trained / "checkpoint-20", LORA)
    assert rlmon.blend(base, trained, 0.5, tmp_path / "out").notes == ()
    made.adapter(trained / "math", LORA)
    with pytest.raises(WeightsError, match="holds several adapters: one of its own and math\\."):
        rlmon.blend(base, trained, 0.5, tmp_path / "other")
    (trained / "adapter_config.json").unlink()
    with pytest.raises(WeightsError, match=r"holds adapters in folders of their own: .*math\. Give one"):
        rlmon.blend(base, trained, 0.5, tmp_path / "other")
    (trained / "math" / "adapter_model.safetensors").rename(trained / "math" / "adapter_model.bin")
    with pytest.raises(WeightsError, match=r"pickled .adapter_model\.bin.*from peft import AutoPeftModelForCausalLM"):
        rlmon.blend(base, trained / "math", 0.5, tmp_path / "other")
    made.model(trained / "both", BASE)
    (trained / "both" / "adapter_config.json").write_text("{}")
    with pytest.raises(WeightsError, match="holds a full model and an adapter"):
        rlmon.blend(base, trained / "both", 0.5, tmp_path / "other")


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"use_rslora": True, "alpha_pattern": {"q_proj": 3}, "rank_pattern": {"q_proj": 8}},
        {"target_modules": ["q_proj", "embed_tokens"], "modules_to_save": ["norm", "up_proj"]},
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore::UserWarning")  # of the embedding, which is the head too
def test_peft_merges_the_blend_to_what_lies_between(tmp_path: Path, settings: dict[str, Any]) -> None:
    """Merged by PEFT, the blend is base + A (merged checkpoint - base), whatever the kind of LoRA."""
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import AutoModelForCausalLM

    def load() -> Any:
        return AutoModelForCausalLM.from_pretrained(BASE_DIR, dtype=torch.float32)

    torch.manual_seed(1)
    settings = {"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "down_proj"], **settings}
    trained = get_peft_model(load(), LoraConfig(**settings))
    with torch.no_grad():
        for parameter in trained.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    trained.save_pretrained(tmp_path / "rl")
    for alpha in (0.3, 0.0, -0.5):
        rlmon.blend(BASE_DIR, tmp_path / "rl", alpha, tmp_path / f"at{alpha}")

    def merged(folder: Path) -> dict[str, torch.Tensor]:
        found: dict[str, torch.Tensor] = PeftModel.from_pretrained(load(), folder).merge_and_unload().state_dict()
        return found

    base, whole = load().state_dict(), merged(tmp_path / "rl")
    moved = [name for name, tensor in whole.items() if not torch.equal(tensor, base[name])]
    assert len(moved) >= 2
    for alpha in (0.3, 0.0, -0.5):
        for name, tensor in merged(tmp_path / f"at{alpha}").items():
            expected = base[name] + alpha * (whole[name] - base[name])
            torch.testing.assert_close(tensor, expected, atol=2e-6, rtol=1e-5)
