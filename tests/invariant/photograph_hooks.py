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


class Photographs:
    """Of all global state before and after each call of what is ``taken``, while ``trained`` trains."""

    def __init__(self, trained: Any) -> None:
        self.trained = trained
        self.changed: list[str] = []
        self.calls: list[str] = []

    def take(self, owner: type, *names: str) -> None:
        for name in names:
            self._wrap(owner, name)

    def _wrap(self, owner: type, name: str) -> None:
        original = getattr(owner, name)

        def wrapper(own: Any, *args: Any, **kwargs: Any) -> Any:
            before = traces(self.trained)
            result = original(own, *args, **kwargs)
            after = traces(self.trained)
            self.calls.append(args[0] if name == "saw" else name)
            self.changed.extend(f"{name}: {key}" for key in before if before[key] != after[key])
            return result

        setattr(owner, name, wrapper)

    def told(self) -> str:
        """As JSON: what changed, what was called, and what the photographs see of a disturbance on purpose."""
        before, model = traces(self.trained), self.trained.model
        random.random()
        np.random.random()
        torch.rand(1)
        model.train(not model.training)
        next(p for p in model.parameters() if p.requires_grad).requires_grad_(False)
        after = traces(self.trained)
        noticed = [key for key in before if before[key] != after[key]]
        return json.dumps({"changed": self.changed, "calls": self.calls, "noticed": noticed})


def main(out: Path, lora: bool) -> None:
    trained = tiny.trainer(out / "run", lora=lora, policy=tiny.model(dropout=0.1), save_strategy="steps", save_steps=2)
    photographs = Photographs(trained)
    photographs.take(Generation, "_observe_rollouts")
    photographs.take(Losses, "_observe_tokens")
    photographs.take(Capture, "step_begins", "sample_base")
    photographs.take(
        RLMon, "attach", "on_train_begin", "on_step_begin", "on_step_end", "on_log", "on_save", "on_train_end"
    )
    RLMon(trained, RLMonConfig(rlmon_base_kl_every=1, rlmon_base_sample=16, rlmon_strict=True))
    trained.train()
    print(photographs.told())


if __name__ == "__main__":
    main(Path(sys.argv[1]), bool(int(sys.argv[2])))
