"""Folders of tiny models and adapters, as transformers and PEFT write them, from tensors that a test names."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

Tensors = Mapping[str, torch.Tensor]


def model(folder: Path, tensors: Tensors, *, shards: Sequence[Sequence[str]] = (), config: Any = None) -> Path:
    """A full model; ``shards``: which tensors lie in which file, with an index."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", **(config or {})}))
    if not shards:
        save_file(dict(tensors), folder / "model.safetensors", metadata={"format": "pt"})
        return folder
    placed = {}
    for at, names in enumerate(shards, start=1):
        name = f"model-{at:05}-of-{len(shards):05}.safetensors"
        save_file({tensor: tensors[tensor] for tensor in names}, folder / name, metadata={"format": "pt"})
        placed |= dict.fromkeys(names, name)
    index = {"metadata": {"total_size": 0}, "weight_map": placed}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def adapter(folder: Path, tensors: Tensors, **config: Any) -> Path:
    """A LoRA adapter of rank 2 and scale 4."""
    folder.mkdir(parents=True)
    plain = {
        "peft_type": "LORA", "r": 2, "lora_alpha": 4, "use_rslora": False, "use_dora": False, "alpha_pattern": {},
        "init_lora_weights": True, "base_model_name_or_path": "base", "task_type": "CAUSAL_LM", "bias": "none",
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps({**plain, **config}))
    save_file(dict(tensors), folder / "adapter_model.safetensors", metadata={"format": "pt"})
    return folder


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a folder."""
    found: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        found |= load_file(file)
    return found


def files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}
