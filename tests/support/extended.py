"""A tiny run that is watched by the very files of docs/extending; as a script, one rank of two of them.

``torchrun --nproc_per_node 2 extended.py OUT`` trains, resumes, and writes what each rank knew as JSON.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

DOCS = Path(__file__).parents[2] / "docs"
NAMES = ("metric", "family", "detector", "action", "sink", "reader", "check")
POLICY = {
    "rules": {
        # Of the tiny model's words none has a capital letter: this holds from the first step on.
        "keep-it-short": {
            "when": {"metric": "shouting/share", "below": 0.5, "smooth_steps": 1},
            "do": {"action": "halve_long", "tokens": 3},
            "measure_after_steps": 6,
        },
        "loud": {"when": {"finding": "shouting"}, "do": {"action": "winsorise", "limit": 1.0}},
    }
}


def load(name: str) -> ModuleType:
    """A file of docs/extending as a module: nothing of it is a part of the package."""
    spec = importlib.util.spec_from_file_location(f"extending_{name}", DOCS / "extending" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def everything(sink: Path) -> dict[str, Any]:
    """What ``RLMon`` takes."""
    return {
        "metrics": [load("metric").SHOUTING, load("family").UNANIMOUS],
        "detectors": [load("detector").TOO_LOUD],
        "actions": [load("action").HalveLong],
        "sinks": [load("sink").LinesOfJson(sink)],
    }


def watched(
    out: Path, steps: int, added: dict[str, Any], policy: Any = POLICY, model: Any = None, **settings: Any
) -> Any:
    """A trainer with its monitor attached."""
    import tiny

    from rlmon.trl import RLMon

    made = tiny.trainer(out, policy=model, max_steps=steps, save_strategy="steps", save_steps=4, **settings)
    made.rlmon_callback = RLMon(made, policy=policy, base_kl="off", console=False, wandb=False, strict=True, **added)
    return made


def known(trainer: Any) -> dict[str, Any]:
    """What the monitor of a trained trainer holds, as JSON types."""
    from rlmon.detectors import state_to_json

    monitor = trainer.rlmon_callback.monitor
    return {
        "detectors": state_to_json(monitor.detector_state),
        "rules": monitor.controller.state()["engine"],
        "faults": monitor.faults.totals,
        "weights": [float(p.detach().double().sum()) for p in trainer.model.parameters()],
    }


def main(out: Path) -> None:
    import tiny

    rank = int(os.environ["RANK"])
    seen = []
    for steps, resumed in ((4, None), (8, out / "run" / "checkpoint-4")):
        trainer = watched(
            out / "run", steps, everything(out / f"to-{steps}.jsonl"), model=tiny.model(),
            per_device_train_batch_size=4,
        )  # fmt: skip
        trainer.train(resume_from_checkpoint=None if resumed is None else str(resumed))
        seen.append(known(trainer))
    (out / f"rank-{rank}.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
