"""Runs a watched training and compares all global state before and after each of our hooks; prints JSON."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

import numpy as np
import tiny
import torch

from rlmon.trl import RLMon, RLMonConfig
from rlmon.trl.capture import Capture
from rlmon.trl.generation import Generation
from rlmon.trl.losses import Losses


def traces(trainer: Any) -> dict[str, Any]:
    model = trainer.model
    return {
        "python": random.getstate(),
        "numpy": repr(np.random.get_state()),
        "torch": torch.get_rng_state().numpy().tobytes(),
        "training": [module.training for module in model.modules()],
        "requires_grad": [p.requires_grad for p in model.parameters()],
        "grad": [None if p.grad is None else p.grad.numpy().tobytes() for p in model.parameters()],
        "hooks": [len(module._forward_hooks) for module in model.modules()],
        "grad_enabled": torch.is_grad_enabled(),
        "adapters_off": [getattr(module, "_disable_adapters", None) for module in model.modules()],
    }


def main(out: Path, lora: bool) -> None:
    trained = tiny.trainer(out / "run", lora=lora, policy=tiny.model(dropout=0.1), save_strategy="steps", save_steps=2)
    changed: list[str] = []
    calls: list[str] = []

    def photographed(owner: type, name: str) -> None:
        original = getattr(owner, name)

        def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
            before = traces(trained)
            result = original(self, *args, **kwargs)
            after = traces(trained)
            calls.append(name)
            changed.extend(f"{name}: {key}" for key in before if before[key] != after[key])
            return result

        setattr(owner, name, wrapper)

    for owner, name in ((Generation, "_observe_rollouts"), (Losses, "_observe_tokens"), (Capture, "step_begins")):
        photographed(owner, name)
    for name in ("attach", "on_train_begin", "on_step_begin", "on_step_end", "on_log", "on_save", "on_train_end"):
        photographed(RLMon, name)
    RLMon(trained, RLMonConfig(rlmon_base_kl_every=1, rlmon_strict=True))
    trained.train()

    # The photographs can see: disturb each thing on purpose.
    before = traces(trained)
    random.random()
    np.random.random()
    torch.rand(1)
    trained.model.train(not trained.model.training)
    next(p for p in trained.model.parameters() if p.requires_grad).requires_grad_(False)
    after = traces(trained)
    noticed = [key for key in before if before[key] != after[key]]
    print(json.dumps({"changed": changed, "calls": calls, "noticed": noticed}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), bool(int(sys.argv[2])))
