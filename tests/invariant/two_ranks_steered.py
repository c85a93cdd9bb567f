"""One rank of steered two-process runs: ``two_ranks_steered.py OUT CELL...``; writes JSON per rank.

Cells: ``all`` (every action that lets training go on, groups across ranks), ``long`` (the same, for 200 steps),
``apart`` (right answers are pushed apart: enough of them end by themselves to be looked at), ``stop``, ``return``
(rolled back once); and with a fault on rank 1 alone: ``round`` (the fold of step 7 raises), ``lever`` (beta cannot be
raised), ``bonus`` (nor the entropy bonus), ``batch`` (the completions of one round cannot be read), ``nowhere`` (it
sees no checkpoint to return to), ``gone`` (the rows to draw cannot be replaced).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import steered
import tiny
import torch

from rlmon.controller import Controller
from rlmon.interventions import fold
from rlmon.interventions.rows import RoundTable
from rlmon.trl import MonitoredGRPOTrainer, RLMon
from rlmon.trl.actuators import TrainerActuators
from rlmon.trl.coefficients import Coefficients
from rlmon.trl.draws import Draws
from rlmon.trl.generation import Generation

STEPS = {"all": 60, "long": 200}
SHORT = 14
CLOCK = {
    "when": "always",
    "do": {"action": "entropy_bonus", "increment": 0.001, "bounds": [0.0, 1.0]},
    "cool_off_steps": 1,
}
AT_SEVEN = {"metric": "rlmon/intervention/entropy_coef", "above": 0.0045, "smooth_steps": 1}
"""With two ranks a step's metric is .001 * (s - 2): what was decided after step s - 2. So .005 at step 7."""
POLICIES: dict[str, Any] = {
    "all": steered.rules(),
    "long": steered.rules(),
    "apart": steered.rules("apart"),
    "stop": {"rules": {"clock": CLOCK, "enough": {"when": AT_SEVEN, "do": "stop"}}},
    "return": {"rules": {"clock": CLOCK, "back": {"when": AT_SEVEN, "do": {"action": "roll_back", "beta": 0.2}}}},
    "round": steered.rules(),
    "lever": steered.rules("hold", "budget"),
    "bonus": steered.rules("hold", "spread"),
    "batch": steered.rules("hold", "bound"),
    "gone": steered.rules("hold", "unsolvable"),
}
POLICIES["nowhere"] = POLICIES["return"]


def broken(*args: Any, **kwargs: Any) -> Any:
    raise ValueError("broken on purpose")


def breaks(original: Any, when: Any) -> Any:
    def maybe(*args: Any, **kwargs: Any) -> Any:
        return broken() if when(*args) else original(*args, **kwargs)

    return maybe


def is_step_seven(policy: Any, state: Any, table: RoundTable, views: Any) -> bool:
    return table.step == 7


def raises_a_knob(self: Any, value: float) -> bool:
    return value > 0.0


def is_fifth_round(self: Any, monitor: Any, seen: Any) -> bool:
    return bool(seen.number == 4)


def blocks(self: Any, inputs: Any, blocked: Any, number: int) -> bool:
    return bool(blocked)


FAULTS: dict[str, tuple[Any, str, Any]] = {
    "round": (fold, "on_round", breaks(fold.on_round, is_step_seven)),
    "lever": (Coefficients, "set_beta", breaks(Coefficients.set_beta, raises_a_knob)),
    "bonus": (Coefficients, "set_entropy_coef", breaks(Coefficients.set_entropy_coef, raises_a_knob)),
    "batch": (Generation, "_take", breaks(Generation._take, is_fifth_round)),
    "nowhere": (TrainerActuators, "_checkpoint_before", lambda self, step: None),
    "gone": (Draws, "swap", breaks(Draws.swap, blocks)),
}


def one_run(out: Path, cell: str) -> None:
    rank = int(os.environ["RANK"])
    written: list[dict[str, Any]] = []
    pushed: list[bool] = []
    begin, look = Controller.__init__, Controller.round

    def looked(self: Controller, *args: Any, **kwargs: Any) -> Any:
        effect = look(self, *args, **kwargs)
        pushed.append(effect is not None and bool(effect.addition_n.any()))
        return effect

    def recorded(self: Controller, *args: Any, write: Any, **kwargs: Any) -> None:
        def both(action: Any) -> None:
            written.append(dataclasses.asdict(action))
            write(action)

        begin(self, *args, write=both, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Controller, "__init__", recorded)
        patch.setattr(Controller, "round", looked)
        if rank == 1 and cell in FAULTS:
            patch.setattr(*FAULTS[cell])
        config = steered.config(POLICIES[cell], rlmon_strict=False, rlmon_base_kl_every=5 if cell in STEPS else 1)
        returns = cell in ("return", "nowhere")
        trained = tiny.trainer(
            out / "run",
            max_steps=STEPS.get(cell, SHORT),
            # Three groups of four on two ranks of six rows: the middle one straddles them.
            per_device_train_batch_size=6,
            save_strategy="steps" if returns or cell == "stop" else "no",
            save_steps=3 if returns else 100,
            logging_steps=50,
            **(
                {"max_completion_length": 48, "reward": tiny.has_digit}
                if cell == "apart"
                else {"reward": steered.some_unsolvable}
            ),
            cls=MonitoredGRPOTrainer if returns else None,
            extra={"rlmon": config} if returns else None,
        )
        monitor = trained.rlmon if returns else RLMon(trained, config)
        trained.train()
    digest = hashlib.blake2b()
    for name, tensor in sorted(tiny.weights(trained).items()):
        digest.update(name.encode() + tensor.numpy().tobytes())
    assert monitor.monitor.controller is not None
    (out / f"rank-{rank}.json").write_text(
        json.dumps(
            {
                "weights": digest.hexdigest(),
                "pushed": sum(pushed),
                "step": trained.state.global_step,
                "beta": trained.beta,
                "entropy_coef": trained.entropy_coef,
                "actions": written,
                "faults": monitor.monitor.faults.totals,
                "off": monitor.monitor.controller.off,
                "metrics": monitor.monitor.last_record.metrics,
            }
        )
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    for cell in sys.argv[2:]:
        one_run(Path(sys.argv[1]) / cell, cell)
