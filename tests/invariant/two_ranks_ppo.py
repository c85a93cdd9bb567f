"""One rank of two-process PPO runs: ``two_ranks_ppo.py OUT``; writes JSON per rank."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import steered
import tiny
import torch

from rlmon.trl import MonitoredPPOTrainer

CELLS: dict[str, dict[str, Any]] = {
    "shared": {"critic": "shared"},
    "shared_detached": {"save_strategy": "steps", "save_steps": 3, "kl_target": 0.5},
    "separate": {"critic": "separate"},
    "epochs": {"num_iterations": 2, "steps_per_generation": 2, "gradient_accumulation_steps": 1},
    "steered": {"kl_coef": 0.0, "max_steps": 12},
    "resumed": {"save_strategy": "steps", "save_steps": 3, "kl_target": 0.5},
}


def digest(tensors: Any) -> str:
    return hashlib.blake2b(b"".join(t.detach().numpy().tobytes() for t in tensors)).hexdigest()


def one_run(out: Path, cell: str) -> dict[str, Any]:
    policy = steered.rules() if cell == "steered" else None
    folder = out / ("shared_detached" if cell == "resumed" else cell)
    trained = tiny.trainer(
        folder, cls=MonitoredPPOTrainer, ppo=True, reward=steered.some_unsolvable, train=tiny.dataset(48),
        # Three groups of four on two ranks of six rows: the middle one straddles them.
        extra={"rlmon": steered.config(policy)}, **({"per_device_train_batch_size": 6, "max_steps": 6} | CELLS[cell]),
    )  # fmt: skip
    found: dict[str, Any] = {"critic_before": digest(trained.critic.parameters())}
    share = trained.critic.share_gradients

    def shared(accelerator: Any) -> None:
        found["own_gradients"] = digest(p.grad for p in trained.critic.head.parameters())
        share(accelerator)
        found["gradients"] = digest(p.grad for p in trained.critic.head.parameters())

    trained.critic.share_gradients = shared
    estimate = trained._estimate

    def estimated(output: Any, *args: Any) -> None:
        estimate(output, *args)
        kept = output["advantages"][output["value_mask"].bool()].double()
        found["whitened"] = [len(kept), float(kept.sum()), float(kept.square().sum())]

    trained._estimate = estimated
    resume = str(folder / "checkpoint-3") if cell == "resumed" else None
    trained.train(resume_from_checkpoint=resume)
    names = ("loss/value_avg", "val/clipfrac_avg", "value/explained_variance", "objective/kl", "value/return_mean")
    logged = [[entry.get(name) for name in names] for entry in trained.state.log_history]
    return found | {
        "policy": digest(trained.model.parameters()),
        "critic": digest(trained.critic.parameters()),
        "kl_coef": trained.kl_coef,
        "logged": [row for row in logged if any(value is not None for value in row)],
    }


def main(out: Path) -> None:
    torch.set_num_threads(1)
    rank = os.environ["RANK"]
    found = {cell: one_run(out, cell) for cell in CELLS}
    (out / f"rank-{rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
