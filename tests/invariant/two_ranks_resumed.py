"""One rank of resumed runs: ``two_ranks_resumed.py OUT DAMAGE...``; JSON per rank.

The run is made once, on prompts that only a transform shows, with an evaluation after training; each damage
is done to a copy of its checkpoint, by rank 0, before both ranks resume from it.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from datasets import Dataset

from rlmon.detectors import state_to_json
from rlmon.errors import RunLogError
from rlmon.runlog import RunLogWriter
from rlmon.trl import RLMon, actuators

POLICY = {
    "rules": {
        "penalty": {"when": "always", "do": {"action": "kl_penalty", "start": 0.01}},
        "anchor": {"when": {"finding": "format-collapse"}, "do": {"action": "anchor"}},
    }
}
PROMPTS = [f"{i} + {i} = how many" if i % 2 else f"get {i} apples and print" for i in range(16)]


def watched(out: Path, steps: int) -> tuple[Any, RLMon]:
    made = tiny.trainer(
        out, lora=True, policy=tiny.model(), train=Dataset.from_dict({"prompt": PROMPTS}).with_transform(dict),
        per_device_train_batch_size=24, max_steps=steps, save_strategy="steps", save_steps=2, num_generations_eval=2,
        per_device_eval_batch_size=4, extra={"eval_dataset": tiny.dataset(4)},
    )  # fmt: skip
    return made, RLMon(made, base_kl="snapshot", policy=POLICY, wandb=False, strict=True)


def damage(folder: Path, kind: str) -> None:
    if kind == "torn-rank1":
        (folder / "rank1.json").write_bytes((folder / "rank1.json").read_bytes()[:20])
    elif kind == "no-rank1":
        (folder / "rank1.json").unlink()
    elif kind == "torn-state":
        (folder / "state.json").write_bytes((folder / "state.json").read_bytes()[:200])
    elif kind == "mark-unseen-by-rank1":
        (folder / actuators.ROLLED_BACK).write_text(json.dumps({"rule": "penalty", "reason": "a test", "beta": 0.5}))


def told(made: Any, monitor: RLMon) -> dict[str, Any]:
    inside = monitor.monitor
    assert inside is not None
    return {
        "detectors": state_to_json(inside.detector_state),
        "sources": monitor._capture.sources.state() if monitor._capture is not None else None,
        "off": None if inside.controller is None else inside.controller.off,
        "beta": made.beta,
        "returned": monitor._capture.actuators.state()["returned"] if monitor._capture is not None else None,
        "faults": inside.faults.totals,
        "weights": [float(p.detach().double().sum()) for p in made.model.parameters()],
    }


def unlogged_on_rank_1(out: Path, rank: int) -> dict[str, Any]:
    """An evaluation before training, where one rank cannot open its log: it goes on, and no rank logs it."""

    def refused(*_: Any, **__: Any) -> Any:
        raise RunLogError("rank 1 cannot write here.")

    made, monitor = watched(out, 2)
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(io.StringIO()) as said:
        if rank == 1:
            patch.setattr(RunLogWriter, "open", refused)
        made.evaluate()
    if rank == 0:
        assert "rlmon: this evaluation is not logged: rank 1 cannot write here\n" in said.getvalue()
    return {"monitor": monitor.monitor}


def main(out: Path, kinds: list[str]) -> None:
    rank = int(os.environ["RANK"])
    made, monitor = watched(out / "whole", 2)
    # Not before train(): Trainer then trains the model without DDP, with rlmon and without.
    made.train()
    made.evaluate()
    seen = {"whole": told(made, monitor)}
    for kind in kinds:
        if rank == 0:
            shutil.copytree(out / "whole", out / kind)
            damage(out / kind / "checkpoint-2" / "rlmon", kind)
        torch.distributed.barrier()
        again, resumed = watched(out / kind, 4)
        with pytest.MonkeyPatch.context() as patch:
            if rank == 1 and kind == "mark-unseen-by-rank1":
                patch.setattr(actuators, "ROLLED_BACK", "not-here-yet.json")
            again.train(resume_from_checkpoint=str(out / kind / "checkpoint-2"))
        seen[kind] = told(again, resumed)
    seen["unlogged"] = unlogged_on_rank_1(out / "unlogged", rank)
    (out / f"rank-{rank}.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
