"""Policies whose every rule fires within a few steps of a tiny run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import tiny
import trl.trainer.utils
from transformers import TrainerCallback

import rlmon
from rlmon.records import Action
from rlmon.trl import RLMon, RLMonConfig

KL = "rlmon/kl/mean"
QUICK = {"cool_off_steps": 2, "measure_after_steps": 6}


def some_unsolvable(prompts: Sequence[Any], completions: Sequence[Any], **_: Any) -> list[float]:
    """As ``tiny.has_digit``, but nothing solves a prompt that begins with an even number: every second one."""
    solved = tiny.has_digit(completions)
    return [found * (int(tiny.text(prompt)[0]) % 2) for prompt, found in zip(prompts, solved, strict=True)]


def above(metric: str, line: float) -> dict[str, Any]:
    return {"metric": metric, "above": line, "smooth_steps": 1}


CONTINUING: dict[str, dict[str, Any]] = {
    "hold": {"when": "always", "do": "mode_marginal", **QUICK},
    "apart": {
        "when": "always",
        "do": {"action": "hold", "opening": 1.0, "sketch": 1.0, "moves": 1.0, "kappa": 0.1, "bounds": [0.1, 0.1]},
        **QUICK,
    },
    "budget": {"when": above(KL, 1e-4), "do": {"action": "kl_penalty", "start": 0.05, "factor": 1.2}, **QUICK},
    "spread": {"when": "always", "do": {"action": "entropy_bonus", "increment": 0.01}, **QUICK},
    # Every success is that of a nearly impossible prompt, and its answer is a habit.
    "suspect": {
        "when": "always",
        "do": {
            "action": "quarantine", "solve_rate_below": 1.0, "credibility": 0.5, "answer_share": 0.0,
            "answer_growth": 0.0, "win_share": 0.0, "shorter_than": 10.0, "fewer_numbers_than": 10.0,
        },
        **QUICK,
    },
    "bound": {"when": "always", "do": {"action": "winsorise", "limit": 1.0}, **QUICK},
    "unsolvable": {
        "when": "always",
        "do": {
            "action": "defer", "solve_rate_below": 0.7, "credibility": 0.6, "after_attempts": 4,
            "retry_after_rounds": 8,
        },
        **QUICK,
    },
    "keep": {
        "when": above("rlmon/format/top_share", 0.1),
        "do": {"action": "anchor", "below": 1.0, "weight": 0.5},
        **QUICK,
    },
    "renew": {"when": above("rlmon/intervention/beta", 0.055), "do": "reset_reference", **QUICK},
}  # fmt: skip
"""One rule for each action that lets training go on."""
ENDING: dict[str, dict[str, Any]] = {
    "stop": {"when": "always", "do": "stop"},
    "return": {"when": "always", "do": "roll_back"},
}


def rules(*names: str, **changes: dict[str, Any]) -> dict[str, Any]:
    """The named rules (all that let training go on, where none is named), with more beside them."""
    chosen = {name: CONTINUING[name] for name in names} if names or changes else dict(CONTINUING)
    return {"rules": {**chosen, **{name.replace("_", "-"): rule for name, rule in changes.items()}}}


class DiesAfter(TrainerCallback):
    """Ends training by an exception after a step, and after its checkpoint: nothing is closed."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self.step:
            raise Killed


class Killed(Exception):
    pass


def config(policy: Any, **settings: Any) -> RLMonConfig:
    return RLMonConfig(
        **({"rlmon_base_kl_every": 1, "rlmon_console": False, "rlmon_strict": True, "rlmon_policy": policy} | settings)
    )


def skip_a_bonus_without_gradient(policy: Any, rloo: Any) -> None:
    """RLOO has no entropy bonus of its own, and before TRL 1.15 its entropies carry no gradient: refused there."""
    if rloo and "entropy_bonus" in str(policy) and not hasattr(trl.trainer.utils, "add_fused_lm_head"):
        pytest.skip("an entropy bonus for RLOO needs TRL 1.15")


def trained(
    out: Path, policy: Any, *, resume: Path | None = None, dies_after: int | None = None, **overrides: Any
) -> Any:
    """A tiny run under a policy (``None``: watched only); strict, so that any fault ends it."""
    skip_a_bonus_without_gradient(policy, overrides.get("rloo"))
    made = tiny.trainer(out, **({"max_steps": 24, "reward": some_unsolvable} | overrides))
    made.rlmon_callback = RLMon(made, config(policy))
    if dies_after is not None:
        made.add_callback(DiesAfter(dies_after))
    try:
        made.train(resume_from_checkpoint=None if resume is None else str(resume))
    except Killed:
        assert dies_after is not None
    return made


def actions(out: Path) -> list[Action]:
    return rlmon.open_run(out / "rlmon").actions


def told(action: Action) -> tuple[Any, ...]:
    return (action.phase, action.action_id, action.step, action.knob, action.old, action.new, action.effect)


def checkpoints(out: Path) -> list[int]:
    return sorted(int(path.name.rpartition("-")[2]) for path in out.glob("checkpoint-*"))
