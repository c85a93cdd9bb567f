"""Law 1: final weights are bit-equal with and without rlmon, and no hook leaves a trace."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

from rlmon.trl import MonitoredGRPOTrainer, MonitoredRLOOTrainer, RLMon, RLMonConfig

pytestmark = pytest.mark.trl

CONFIG = RLMonConfig(rlmon_base_kl_every=1, rlmon_console=False, rlmon_strict=True)


@pytest.mark.parametrize("rloo", [False, True], ids=["grpo", "rloo"])
@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"beta": 0.1},
        {"num_iterations": 2, "gradient_accumulation_steps": 2, "steps_per_generation": 4},
    ],
    ids=["plain", "beta", "reuse"],
)
def test_weights_are_bit_equal(tmp_path: Path, rloo: bool, lora: bool, overrides: dict[str, Any]) -> None:
    stock = tiny.trainer(tmp_path / "stock", rloo=rloo, lora=lora, **overrides)
    stock.train()
    watched = tiny.trainer(tmp_path / "watched", rloo=rloo, lora=lora, **overrides)
    monitor = RLMon(watched, CONFIG)
    watched.train()
    assert tiny.same_weights(tiny.weights(stock), tiny.weights(watched))
    assert not tiny.same_weights(tiny.weights(stock), {k: v + 1 for k, v in tiny.weights(watched).items()})
    record = monitor.monitor.last_record
    assert record is not None
    assert record.metrics["rlmon/kl/mean"] is not None, "the base forward was on"
    before = tiny.trainer(tmp_path / "before", rloo=rloo, lora=lora, **overrides)
    assert not tiny.same_weights(tiny.weights(before), tiny.weights(watched)), "the run trained something"


@pytest.mark.parametrize("cls", [MonitoredGRPOTrainer, MonitoredRLOOTrainer])
def test_the_subclass_changes_nothing_either(tmp_path: Path, cls: Any) -> None:
    rloo = cls is MonitoredRLOOTrainer
    stock = tiny.trainer(tmp_path / "stock", rloo=rloo)
    stock.train()
    watched = tiny.trainer(tmp_path / "watched", rloo=rloo, cls=cls, extra={"rlmon": CONFIG})
    watched.train()
    assert tiny.same_weights(tiny.weights(stock), tiny.weights(watched))
    assert watched.monitor.last_record.step == 4


def test_dropout_and_gradient_checkpointing_are_left_alone(tmp_path: Path) -> None:
    def run(name: str, watch: bool) -> dict[str, torch.Tensor]:
        policy = tiny.model(dropout=0.2)
        trained = tiny.trainer(tmp_path / name, policy=policy, gradient_checkpointing=True)
        if watch:
            RLMon(trained, CONFIG)
        trained.train()
        return tiny.weights(trained)

    assert tiny.same_weights(run("stock", False), run("watched", True))


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_every_hook_leaves_the_world_as_it_was(tmp_path: Path, lora: bool) -> None:
    """In a process of its own: the shape checks of the test suite draw from python's global random state."""
    script = Path(__file__).with_name("photograph_hooks.py")
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path), str(int(lora))], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    seen = json.loads(done.stdout.splitlines()[-1])
    assert seen["changed"] == []
    hooks = {"_observe_rollouts", "_observe_tokens", "on_step_end", "on_save", "attach", "sample_base"}
    assert hooks <= set(seen["calls"])
    assert seen["noticed"] == ["python", "numpy", "torch", "training", "requires_grad"], "the photographs can see"


@pytest.mark.slow
def test_a_compiled_model(tmp_path: Path) -> None:
    """Compiled, the same weights and entropies; KL is left out, with the reason."""

    def run(name: str, watch: bool) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the compiler's own
            trained = tiny.trainer(tmp_path / name, policy=tiny.model(), torch_compile=True, max_steps=2)
            monitor = RLMon(trained, CONFIG) if watch else None
            trained.train()
        return trained, monitor

    stock, _ = run("stock", False)
    watched, monitor = run("watched", True)
    assert tiny.same_weights(tiny.weights(stock), tiny.weights(watched))
    record = monitor.monitor.last_record
    entropies = [row["entropy"] for row in watched.state.log_history if "entropy" in row]
    assert record.metrics["rlmon/entropy/mean"] == pytest.approx(entropies[-1], abs=1e-6)
    assert "torch_compile" in record.missing["rlmon/kl/mean"]


def test_detach_leaves_the_trainer_as_it_came(tmp_path: Path) -> None:
    trained = tiny.trainer(tmp_path / "run")
    attributes = set(vars(trained))
    monitor = RLMon(trained, CONFIG)
    assert set(vars(trained)) - attributes, "the hooks are instance attributes"
    monitor.detach()
    assert set(vars(trained)) == attributes
    assert monitor not in trained.callback_handler.callbacks
