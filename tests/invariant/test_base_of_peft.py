"""Whatever PEFT method is trained: KL to the base is 0 before the first update, and that of full logits after it."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import tiny
import torch

import rlmon
from rlmon.errors import AttachError
from rlmon.metrics.tokens import ExactKL
from rlmon.trl import RLMon, RLMonConfig
from rlmon.trl.base import BaseModel
from rlmon.trl.base_kinds import FrozenCopy

pytestmark = pytest.mark.trl

CAUSAL = {"task_type": "CAUSAL_LM"}
Q_AND_V = {"target_modules": ["q_proj", "v_proj"], **CAUSAL}


def lora(**settings: Any) -> Any:
    return lambda: peft.LoraConfig(r=4, **(Q_AND_V | settings))


def tuner(name: str, **settings: Any) -> Any:
    return lambda: getattr(peft, name)(**(Q_AND_V | settings))


def virtual(name: str, **settings: Any) -> Any:
    return lambda: getattr(peft, name)(num_virtual_tokens=4, **CAUSAL, **settings)


KINDS: dict[str, tuple[Callable[[], Any], str]] = {
    "lora": (lora(), "adapter"),
    "lora-dropout": (lora(lora_dropout=0.5), "adapter"),
    "dora": (lora(use_dora=True), "adapter"),
    "pissa": (lora(init_lora_weights="pissa"), "snapshot"),
    "whole-head": (lora(modules_to_save=["lm_head"]), "snapshot"),
    "whole-embedding": (lora(modules_to_save=["embed_tokens"]), "snapshot"),
    "lora-and-tokens": (lora(trainable_token_indices=[3, 4, 5]), "adapter"),
    "adalora": (tuner("AdaLoraConfig", total_step=10), "adapter"),
    "ia3": (
        tuner("IA3Config", target_modules=["q_proj", "down_proj"], feedforward_modules=["down_proj"]),
        "adapter",
    ),
    "vera": (tuner("VeraConfig", r=4), "adapter"),
    "vera-drawn": (tuner("PveraConfig", r=4), "adapter"),
    "loha-dropout": (tuner("LoHaConfig", r=4, module_dropout=0.5), "adapter"),
    "lokr": (tuner("LoKrConfig", r=4), "adapter"),
    "householder": (tuner("HRAConfig", r=4), "adapter"),
    "fourier": (tuner("FourierFTConfig", n_frequency=64), "snapshot"),
    "norms": (lambda: peft.LNTuningConfig(**CAUSAL), "adapter"),
    "tokens": (lambda: peft.TrainableTokensConfig(token_indices=list(range(2, 12)), **CAUSAL), "adapter"),
    "prompt": (virtual("PromptTuningConfig"), "snapshot"),
    "p-tuning": (virtual("PromptEncoderConfig", encoder_hidden_size=16), "snapshot"),
    "prefix": (virtual("PrefixTuningConfig"), "snapshot"),
    "prefix-projected": (virtual("PrefixTuningConfig", prefix_projection=True, encoder_hidden_size=16), "snapshot"),
}


class Listener:
    """Takes what the base measured, in the place of a monitor."""

    def __init__(self) -> None:
        self.result: ExactKL | None = None

    def identities(self, rows_B2: list[list[int]]) -> list[tuple[int, int]]:
        return [(number, row) for number, row in rows_B2]

    def observe_kl(self, *, result: ExactKL, **_: Any) -> None:
        self.result = result


IDS = torch.randint(2, 40, (4, 12), generator=torch.Generator().manual_seed(1))
COMPLETION = 6


def measured(trained: Any, base: BaseModel) -> ExactKL | None:
    """What a step's loss would have the base measure, without the step."""
    listener, box = Listener(), []  # type: ignore[var-annotated]
    attention = torch.ones_like(IDS)
    trained.model.train()
    with base.tap_policy(box):
        shown = trained._get_per_token_logps_and_entropies(
            trained.model, IDS, attention, COMPLETION, compute_entropy=True
        )
    rows = torch.tensor([[0, row] for row in range(len(IDS))])
    mask = torch.ones(len(IDS), COMPLETION)
    base.measure(listener, ((IDS, attention, COMPLETION), {}), box, shown[0].detach(), rows, mask)  # type: ignore[arg-type]
    return listener.result


def full(trained: Any) -> torch.Tensor:
    """Log-probabilities [B, T, V] of a plain forward, in float64."""
    trained.model.eval()
    with torch.no_grad():
        logits = trained.model(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits.double()
    return torch.log_softmax(logits[:, -COMPLETION - 1 : -1], -1)


def move(trained: Any) -> None:
    """As an optimizer would, in no particular direction."""
    draw = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in trained.model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=draw).to(parameter.dtype))


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_starts_at_itself_and_is_measured_to_its_start(tmp_path: Path, name: str) -> None:
    make, kind = KINDS[name]
    trained = tiny.trainer(tmp_path / "run", lora=make(), policy=tiny.model())
    before = tiny.weights(trained), torch.get_rng_state(), [module.training for module in trained.model.modules()]
    base = BaseModel.choose(trained, RLMonConfig(), initial_weights=True)
    assert base.kind == kind, base.reason
    assert tiny.same_weights(before[0], tiny.weights(trained))
    assert torch.equal(before[1], torch.get_rng_state())
    assert before[2] == [module.training for module in trained.model.modules()]

    start = measured(trained, base)
    assert base.kind == kind, base.reason
    assert start is not None
    assert max(start.kl_pi_base_T.max(), start.kl_base_pi_T.max()) < 1e-6
    initial = full(trained)
    move(trained)
    now = full(trained)
    moved = measured(trained, base)
    assert moved is not None
    truth = (now.exp() * (now - initial)).sum(-1).reshape(-1)
    assert truth.mean() > 1e-5
    torch.testing.assert_close(torch.from_numpy(moved.kl_pi_base_T), truth, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
def test_virtual_tokens_are_part_of_the_initial_policy(tmp_path: Path, bf16: bool) -> None:
    """With beta above 0 too, where TRL's reference is the model without them and held nowhere."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of autocast on a CPU
        trained = tiny.trainer(
            tmp_path / "run", lora=virtual("PromptTuningConfig")(), beta=0.1, bf16=bf16, learning_rate=3.0
        )
        monitor = RLMon(trained, RLMonConfig(rlmon_base_kl_every=1, rlmon_console=False, rlmon_strict=True))
        trained.train()
    records = rlmon.open_run(monitor.log_dir).step_records()
    assert monitor._capture is not None
    assert monitor._capture.base.kind == "snapshot"
    assert records[0].metrics["rlmon/kl/mean"] == pytest.approx(0.0, abs=1e-6)
    assert records[-1].metrics["rlmon/kl/mean"] > 1e-5


def test_adalora_attaches_and_trains(tmp_path: Path) -> None:
    trained = tiny.trainer(tmp_path / "run", lora=KINDS["adalora"][0](), max_steps=2)
    monitor = RLMon(trained, RLMonConfig(rlmon_base_kl_every=1, rlmon_console=False, rlmon_strict=True))
    trained.train()
    assert rlmon.open_run(monitor.log_dir).step_records()[-1].metrics["rlmon/kl/mean"] is not None


def test_the_self_test_lets_no_near_miss_pass(tmp_path: Path) -> None:
    """The bare model differs from a prompt-tuned policy by .06 nats in one token, and by 8e-4 nats of KL."""
    trained = tiny.trainer(tmp_path / "run", lora=virtual("PromptTuningConfig")(), policy=tiny.model())
    base = BaseModel.choose(trained, RLMonConfig(), initial_weights=True)
    base.own = FrozenCopy(tiny.model())
    assert measured(trained, base) is None
    assert base.kind == "off"
    assert "before the first update policy and base differ by" in base.reason


def test_a_reference_that_is_not_the_start_is_replaced_by_a_copy(tmp_path: Path) -> None:
    trained = tiny.trainer(tmp_path / "run", beta=0.1)
    base = BaseModel.choose(trained, RLMonConfig(), initial_weights=True)
    assert base.kind == "reference"
    with torch.no_grad():
        next(trained.ref_model.parameters()).mul_(1.01)
    start = measured(trained, base)
    assert start is not None
    assert start.kl_pi_base_T.max() < 1e-6
    assert base.kind == "copy"


def test_a_reference_cannot_be_asked_for_where_trl_holds_none(tmp_path: Path) -> None:
    trained = tiny.trainer(tmp_path / "run", lora=True, beta=0.1)
    with pytest.raises(AttachError, match=r"rlmon_base_kl=reference cannot work.*holds none.*rlmon_base_kl: auto"):
        RLMon(trained, RLMonConfig(rlmon_base_kl="reference"))


def test_a_small_budget_measures_the_same_on_average(tmp_path: Path) -> None:
    """From the tensors of a loss to weighted sums, on completions of 1 to 6 tokens with a budget of a third."""
    trained = tiny.trainer(tmp_path / "run", policy=tiny.model())
    base = BaseModel.choose(trained, RLMonConfig(), initial_weights=True)
    assert measured(trained, base) is not None
    move(trained)
    lengths = torch.tensor([1, 6, 2, 3])
    mask = (torch.arange(COMPLETION) < lengths[:, None]).long()
    attention = torch.cat([torch.ones_like(IDS[:, COMPLETION:]), mask], 1)
    with torch.no_grad():
        shown = trained._get_per_token_logps_and_entropies(
            trained.model, IDS, attention, COMPLETION, compute_entropy=True
        )
    totals: dict[int, list[float]] = {4: [], 100: []}

    class Sums(Listener):
        def observe_kl(self, *, result: ExactKL, **given: Any) -> None:
            assert given["sampled_b"].sum() == len(result.kl_pi_base_T) <= budget
            assert given["tokens_b"].tolist() == lengths.tolist()
            assert given["sampled_b"] @ given["weight_b"] == pytest.approx(12.0)
            weight_T = given["weight_b"].repeat(given["sampled_b"])
            totals[budget].append(float(weight_T @ result.kl_pi_base_T))

    for budget, rounds in ((4, 400), (100, 1)):
        base.max_tokens = budget
        for number in range(rounds):
            rows = torch.tensor([[number, row] for row in range(len(IDS))])
            base.measure(
                Sums(),
                ((IDS, attention, COMPLETION), {}),
                [],
                shown[0],
                rows,
                mask,  # type: ignore[arg-type]
            )
    (whole,) = totals[100]
    estimates = torch.tensor(totals[4], dtype=torch.float64)
    assert float(estimates.mean()) == pytest.approx(whole, abs=3.5 * float(estimates.std()) / 20)
    assert float(estimates.std()) > 0.02 * whole
