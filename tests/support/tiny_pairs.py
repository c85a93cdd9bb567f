"""The tiny base of the lab and checkpoints of it that a test makes in a moment."""

from __future__ import annotations

import json
from pathlib import Path

import made_weights as made
import torch
from safetensors.torch import load_file, save_file

from rlmon.lab.bases import BASE_DIR, WEIGHTS
from rlmon.lab.task import split_questions

NOT_WEIGHTS = ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "config.json")


def moved(folder: Path, by: float = 0.02) -> Path:
    """A full model: the base with its weights moved."""
    noise = torch.Generator().manual_seed(4)
    tensors = {name: tensor.float() for name, tensor in load_file(BASE_DIR / WEIGHTS).items()}
    made.model(folder, {n: t + by * torch.randn(t.shape, generator=noise) for n, t in tensors.items()})
    for name in NOT_WEIGHTS:
        (folder / name).write_bytes((BASE_DIR / name).read_bytes())
    return folder


def with_biases(folder: Path) -> Path:
    """A full model that says what the base says, and has biases, all of them 0."""
    moved(folder, by=0.0)
    told = json.loads((BASE_DIR / "config.json").read_text())
    names = [f"model.layers.{at}.self_attn.{of}_proj.bias" for at in range(told["num_hidden_layers"]) for of in "qkvo"]
    zeros = {name: torch.zeros(told["hidden_size"]) for name in names}
    file = folder / "model.safetensors"
    save_file(load_file(file) | zeros, file, metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(told | {"attention_bias": True}))
    return folder


def adapted(folder: Path, base: Path = BASE_DIR, bias: str = "none") -> Path:
    """A LoRA adapter of the base that changes what it says."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32),
        LoraConfig(r=2, target_modules=["q_proj"], bias=bias),
    )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3)
    model.save_pretrained(folder)
    return folder


def asked(file: Path, prompts: int) -> Path:
    """A file of held-out prompts with their answers."""
    rows = [{"prompt": question.prompt, "answer": question.answer} for question in split_questions()[1][:prompts]]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file
