"""One rank of a steered run on four sources: ``ranks_with_sources.py OUT``; writes JSON per rank.

Each rank holds one prompt of a round (or two, on two ranks): none sees all sources at once, and the ranks meet their
names at different steps.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import sys
from pathlib import Path

import steered
import tiny
import torch

from rlmon import detectors
from rlmon.trl import RLMon

NAMES = ("Äpfel", "pears", "plums", "figs")
"""As in the test."""


def main(out: Path) -> None:
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    data = tiny.dataset(16)
    trained = tiny.trainer(
        out / "run",
        reward=steered.some_unsolvable,
        train=data.add_column("task", [NAMES[i % 4] for i in range(16)]),
        max_steps=12,
        per_device_train_batch_size=16 // world,
        save_strategy="steps",
        save_steps=12,
    )
    rules = steered.rules("hold", "budget", "spread", "suspect", "bound", "unsolvable")
    monitor = RLMon(trained, steered.config(rules, rlmon_strict=False, rlmon_base_kl_every=1))
    records = []
    begin = trained.callback_handler.on_step_end

    def kept(*args: object, **kwargs: object) -> object:
        control = begin(*args, **kwargs)
        records.append(dataclasses.asdict(monitor.monitor.last_record))
        return control

    trained.callback_handler.on_step_end = kept
    trained.train()
    for record in records:
        for own in ("time_unix_seconds", "overhead_seconds", "base_forward_seconds"):
            record.pop(own)
    digest = hashlib.blake2b()
    for name, tensor in sorted(tiny.weights(trained).items()):
        digest.update(name.encode() + tensor.numpy().tobytes())
    shared = monitor.monitor.shared_state()
    (out / f"rank-{rank}.json").write_text(
        json.dumps(
            {
                "weights": digest.hexdigest(),
                "records": records,
                "shared": shared,
                "folded": detectors.state_to_json(monitor.monitor.detector_state),
                "digest": monitor.monitor.controller._rules.digest,
                "off": monitor.monitor.controller.off,
                "faults": monitor.monitor.faults.totals,
            }
        )
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
