"""Entropy and KL against full logits computed beside the run, in the settings where averages usually go wrong."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch

import rlmon
from rlmon.records import StepRecord
from rlmon.trl import RLMon, RLMonConfig

pytestmark = pytest.mark.trl

QUIET = {"rlmon_console": False, "rlmon_strict": True}


def full_logits(model: Any, inputs: dict[str, Any], temperature: float) -> torch.Tensor:
    """Log-probabilities [B, C, V] of a plain forward, in float64.

    The class's forward: TRL patches that of the instance, and a deep copy of the patch still calls the original.
    """
    inner = model.get_base_model() if hasattr(model, "peft_config") else model
    ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
    mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
    training = model.training
    model.eval()
    with torch.no_grad():
        logits = type(inner).forward(inner, input_ids=ids, attention_mask=mask).logits.double() / temperature
    model.train(training)
    return torch.log_softmax(logits[:, :-1][:, -inputs["completion_ids"].shape[1] :], -1)


def beside(trained: Any, look: Callable[[dict[str, Any]], None]) -> None:
    """Call ``look`` with the inputs of every training loss, before anything of ours sees them."""
    original = trained._compute_loss

    def wrapper(model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        if trained.model.training:
            look(inputs)
        return original(model, inputs, *args, **kwargs)

    trained._compute_loss = wrapper


def watched_steps(monitor: RLMon) -> list[StepRecord]:
    return rlmon.open_run(monitor.log_dir).step_records()


@pytest.mark.parametrize("rloo", [False, True], ids=["grpo", "rloo"])
def test_entropy_is_trls_own(tmp_path: Path, rloo: bool) -> None:
    trained = tiny.trainer(tmp_path / "run", rloo=rloo, max_steps=6, learning_rate=3e-2)
    RLMon(trained, RLMonConfig(**QUIET))
    trained.train()
    rows = [row for row in trained.state.log_history if "entropy" in row]
    assert len(rows) == 6
    for row in rows:
        assert row["rlmon/entropy/mean"] == pytest.approx(row["entropy"], abs=1e-6)


@pytest.mark.parametrize("rloo", [False, True], ids=["grpo", "rloo"])
@pytest.mark.parametrize(
    "overrides",
    [
        {"gradient_accumulation_steps": 3},
        {"gradient_accumulation_steps": 2, "num_iterations": 2, "temperature": 0.7},
        {"steps_per_generation": 2, "logging_steps": 4},
    ],
    ids=["accumulation", "iterations-temperature", "reuse"],
)
def test_entropy_is_the_token_weighted_mean_of_full_logits(
    tmp_path: Path, rloo: bool, overrides: dict[str, Any]
) -> None:
    trained = tiny.trainer(tmp_path / "run", rloo=rloo, learning_rate=3e-2, max_completion_length=12, **overrides)
    sums = np.zeros((20, 2))

    def look(inputs: dict[str, Any]) -> None:
        logp = full_logits(trained.model, inputs, trained.temperature)
        entropy = -(logp.exp() * logp).sum(-1)
        mask = inputs["completion_mask"]
        sums[trained.state.global_step] += (float((entropy * mask).sum()), float(mask.sum()))

    beside(trained, look)
    monitor = RLMon(trained, RLMonConfig(**QUIET))
    trained.train()
    records = watched_steps(monitor)
    assert len(records) == 4
    for record in records:
        total, count = sums[record.step - 1]
        assert record.metrics["rlmon/entropy/mean"] == pytest.approx(total / count, abs=1e-5)
        assert record.tokens == count


def lora(**settings: Any) -> Any:
    from peft import LoraConfig

    return LoraConfig(r=4, target_modules=["q_proj", "v_proj"], **settings)


@pytest.mark.parametrize("rloo", [False, True], ids=["grpo", "rloo"])
@pytest.mark.parametrize(
    ("adapter", "overrides", "kind"),
    [
        (False, {"beta": 0.0}, "copy"),
        (False, {"beta": 0.1}, "reference"),
        (lora(), {"beta": 0.0}, "adapter"),
        (lora(), {"beta": 0.1}, "adapter"),
        (lora(lora_dropout=0.5), {"beta": 0.0}, "adapter"),
        (lora(bias="all"), {"beta": 0.0}, "snapshot"),
        (lora(init_lora_weights="pissa"), {"beta": 0.0}, "snapshot"),
    ],
    ids=["copy", "reference", "adapter", "adapter-beta", "adapter-dropout", "biases", "pissa"],
)
def test_kl_is_that_of_full_logits_to_the_initial_policy(
    tmp_path: Path, rloo: bool, adapter: Any, overrides: dict[str, Any], kind: str
) -> None:
    trained = tiny.trainer(
        tmp_path / "run", rloo=rloo, lora=adapter, learning_rate=3e-2, temperature=0.8, max_steps=5, **overrides
    )
    base = copy.deepcopy(trained.model).eval()
    truth: dict[int, tuple[float, float, float, float]] = {}

    def look(inputs: dict[str, Any]) -> None:
        policy, initial = (full_logits(m, inputs, trained.temperature) for m in (trained.model, base))
        mask = inputs["completion_mask"].bool()
        forward = (policy.exp() * (policy - initial)).sum(-1)
        backward = (initial.exp() * (initial - policy)).sum(-1)
        tokens = inputs["completion_ids"].unsqueeze(-1)
        ratio = (policy - initial).gather(-1, tokens)[..., 0][mask]
        truth[trained.state.global_step + 1] = (
            float(forward[mask].mean()),
            float(backward[mask].mean()),
            float((forward * mask).sum(1).mean()),
            float(ratio.mean()),
        )

    beside(trained, look)
    monitor = RLMon(trained, RLMonConfig(rlmon_base_kl_every=2, **QUIET))
    assert monitor._capture is not None
    assert monitor._capture.base is not None
    assert monitor._capture.base.kind == kind
    trained.train()
    assert monitor._capture.base.kind == kind, monitor._capture.base.reason
    records = watched_steps(monitor)
    assert [record.step for record in records if record.metrics["rlmon/kl/mean"] is not None] == [1, 3, 5]
    for record in records:
        if record.step not in (1, 3, 5):
            assert record.missing["rlmon/kl/mean"] == "measured every 2 steps"
            continue
        forward, backward, sequence, k1 = truth[record.step]
        assert record.metrics["rlmon/kl/mean"] == pytest.approx(forward, abs=1e-5)
        assert record.metrics["rlmon/kl/reverse"] == pytest.approx(backward, abs=1e-5)
        assert record.metrics["rlmon/kl/seq"] == pytest.approx(sequence, abs=1e-4)
        assert record.metrics["rlmon/kl/k1"] == pytest.approx(k1, abs=1e-5)
        assert any("kl_nats" in block.stats for block in record.blocks)
    assert records[0].metrics["rlmon/kl/mean"] == pytest.approx(0.0, abs=1e-6)
    assert records[-1].metrics["rlmon/kl/mean"] > 1e-4


@pytest.mark.parametrize("adapter", [False, lora(), lora(lora_dropout=0.5)], ids=["copy", "adapter", "dropout"])
def test_half_precision_is_compared_in_half_precision(tmp_path: Path, adapter: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of autocast on a CPU
        trained = tiny.trainer(tmp_path / "run", lora=adapter, bf16=True, learning_rate=3e-2)
        monitor = RLMon(trained, RLMonConfig(rlmon_base_kl_every=1, **QUIET))
        trained.train()
    records = watched_steps(monitor)
    assert records[0].metrics["rlmon/kl/mean"] == pytest.approx(0.0, abs=1e-3)
    assert records[-1].metrics["rlmon/kl/mean"] > 1e-3


def test_an_adapter_trained_before_starts_at_itself_not_at_the_bare_base(tmp_path: Path) -> None:
    from peft import get_peft_model

    policy = get_peft_model(tiny.model(), lora())
    for name, parameter in policy.named_parameters():
        if "lora_B" in name:
            torch.nn.init.constant_(parameter, 0.1)
    trained = tiny.trainer(tmp_path / "run", policy=policy, learning_rate=3e-2)
    monitor = RLMon(trained, RLMonConfig(rlmon_base_kl_every=1, **QUIET))
    trained.train()
    assert monitor._capture is not None
    assert monitor._capture.base.kind == "snapshot"
    records = watched_steps(monitor)
    assert records[0].metrics["rlmon/kl/mean"] == pytest.approx(0.0, abs=1e-6)
    assert records[-1].metrics["rlmon/kl/mean"] > 0


def test_a_wrong_base_is_found_out_at_step_0(tmp_path: Path) -> None:
    other = tiny.saved_model(tmp_path / "other", seed=5)
    assert other.config._name_or_path
    trained = tiny.trainer(tmp_path / "run")
    monitor = RLMon(trained, RLMonConfig(rlmon_base_kl_every=1, rlmon_base_model=other.config._name_or_path, **QUIET))
    trained.train()
    for record in watched_steps(monitor):
        assert record.metrics["rlmon/kl/mean"] is None
        assert "self-test" in record.missing["rlmon/kl/mean"]


def test_a_token_budget_bounds_the_comparison(tmp_path: Path) -> None:
    for budget, rows in ((20, 2), (5, 1)):
        trained = tiny.trainer(tmp_path / f"run-{budget}", max_completion_length=8)
        monitor = RLMon(trained, RLMonConfig(rlmon_base_kl_every=1, rlmon_base_kl_tokens=budget, **QUIET))
        trained.train()
        passes = rlmon.open_run(monitor.log_dir).passes()
        compared = sum(value is not None for value in passes.column("kl_mean_nats").to_pylist())
        assert 1 <= compared <= 4 * (rows + 1)


def test_measuring_is_off_when_it_is_off(tmp_path: Path) -> None:
    trained = tiny.trainer(tmp_path / "run")
    monitor = RLMon(trained, RLMonConfig(rlmon_base_kl="off", **QUIET))
    trained.train()
    record = watched_steps(monitor)[-1]
    assert record.metrics["rlmon/kl/mean"] is None
    assert record.missing["rlmon/kl/mean"] == "rlmon_base_kl is off"
    assert record.base_forward_seconds is None
