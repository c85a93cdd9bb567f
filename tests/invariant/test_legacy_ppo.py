"""TRL's own PPOTrainer (1.8 to 1.12): what its loop shows is watched, what it does not is said.

Run as a script it trains, with and without the monitor, in a process (or one of two ranks) of its own.
"""

from __future__ import annotations

import copy
import hashlib
import importlib
import json
import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

import numpy as np
import pytest
import tiny
import torch
import trl
import two_processes
from datasets import Dataset
from packaging.version import Version
from torch import nn
from transformers import LlamaForSequenceClassification, TrainerCallback

import rlmon
from rlmon.errors import AttachError
from rlmon.trl import RLMon, RLMonConfig
from rlmon.trl.legacy_ppo import LegacyPPOCapture
from rlmon.trl.legacy_ppo.capture import PLACE_OF, plan
from rlmon.trl.legacy_ppo.functions import PATCHES
from rlmon.trl.legacy_ppo.rounds import Comparison, Round

IMPORTED_EAGERLY = "trl.experimental.ppo" in sys.modules
HAS_PPO = Version(trl.__version__) < Version("1.13")
needs_ppo = pytest.mark.skipif(not HAS_PPO, reason=f"TRL {trl.__version__} has no PPOTrainer: it was removed in 1.13")
pytestmark = pytest.mark.trl

CONFIG = RLMonConfig(rlmon_base_kl_every=1, rlmon_console=False, rlmon_strict=True)
PAD, EOS = 0, 1
DIGITS = range(3, 23)
"""Ids of the words 0 to 19."""
BATCH, RESPONSE, STEPS = 8, 6, 4


def ppo() -> Any:
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    return importlib.import_module("trl.experimental.ppo.ppo_trainer")


class DigitScore(nn.Module):
    """A reward model that reads token ids: its score is the share of numbers in the whole text."""

    base_model_prefix = "backbone"

    def __init__(self, fails_at: int | None = None) -> None:
        super().__init__()
        self.calls = 0
        self.fails_at = fails_at
        self.scored: list[tuple[torch.Tensor, list[float]]] = []
        """Independent truth: sequences from the first prompt token to the last before padding, and their scores."""

    def backbone(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, **_: Any) -> Any:
        self.calls += 1
        if self.fails_at == self.calls:
            raise ValueError("the reward model broke")
        hits_BL = ((input_ids >= DIGITS.start) & (input_ids < DIGITS.stop) & attention_mask).float()
        shares_B1 = hits_BL.sum(1, keepdim=True) / attention_mask.sum(1, keepdim=True)
        for ids, kept, share in zip(input_ids, attention_mask, shares_B1, strict=True):
            begun = ids[int(kept.nonzero()[0]) :]
            padding = (begun == PAD).nonzero()
            self.scored.append((begun[: int(padding[0]) if len(padding) else None], share.tolist()))
        return SimpleNamespace(hidden_states=[shares_B1[:, :, None].expand(-1, input_ids.shape[1], 1)])

    def score(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden


def prompts(rows: int = 16) -> Dataset:
    texts = [text if i % 3 else text.removesuffix(" many") for i, text in enumerate(tiny.dataset(rows)["prompt"])]
    return Dataset.from_dict({"input_ids": [tiny.tokenizer()(text)["input_ids"] for text in texts]})


def trainer(out: Path, *, cls: Any = None, lora: bool = False, extra: Any = None, **overrides: Any) -> Any:
    module = ppo()
    settings: dict[str, Any] = {
        "output_dir": str(out),
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "report_to": [],
        "dataloader_pin_memory": False,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "num_ppo_epochs": 2,
        "local_rollout_forward_batch_size": 3,
        "total_episodes": BATCH * STEPS,
        "response_length": RESPONSE,
        "stop_token": "eos",
        "temperature": 0.7,
        "num_sample_generations": 2,
        "learning_rate": 1e-2,
        "save_strategy": "no",
        "seed": 7,
        "disable_tqdm": True,
        "logging_steps": 1,
    }
    policy = tiny.model(0)
    value_config = tiny.model(1).config
    value_config.num_labels = 1
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)
    if lora:
        from peft import LoraConfig

        extra = {"peft_config": LoraConfig(r=4, target_modules=["q_proj", "v_proj"])} | (extra or {})
    parts: dict[str, Any] = {
        "args": module.PPOConfig(**(settings | overrides)),
        "processing_class": tiny.tokenizer(),
        "model": policy,
        "ref_model": None,
        "reward_model": DigitScore(),
        "value_model": LlamaForSequenceClassification(value_config),
        "train_dataset": prompts(),
        "eval_dataset": prompts(BATCH),
    }
    return (cls or module.PPOTrainer)(**(parts | (extra or {})))


class Sampler:
    """Made a base of TRL's class: its reward model is told what is sampled for the eye alone."""

    def generate_completions(self, *args: Any, **kwargs: Any) -> Any:
        live = self.reward_model.scored  # type: ignore[attr-defined]
        self.reward_model.scored = []  # type: ignore[attr-defined]
        super().generate_completions(*args, **kwargs)  # type: ignore[misc]
        self.reward_model.scored = live  # type: ignore[attr-defined]


def weights(trained: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in trained.accelerator.unwrap_model(trained.model).named_parameters()}


def rows_of(monitor: RLMon) -> list[dict[str, Any]]:
    return rlmon.open_run(monitor.log_dir).rollouts().to_pylist()


def passes_of(monitor: RLMon) -> list[dict[str, Any]]:
    return rlmon.open_run(monitor.log_dir).passes().to_pylist()


@pytest.fixture(autouse=True)
def nothing_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Whatever a test did, the module's functions are TRL's own afterwards."""
    if not HAS_PPO:
        yield
        return
    # The loop collects garbage twice an update, which takes most of the time in a process that holds a test suite.
    monkeypatch.setattr(ppo(), "gc", SimpleNamespace(collect=int))
    before = {name: getattr(ppo(), name) for name in PLACE_OF}
    yield
    assert {name: getattr(ppo(), name) for name in PLACE_OF} == before
    assert not PATCHES


@pytest.fixture(scope="module")
def unwatched_weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """What the default settings end with when nobody watches."""
    stock = trainer(tmp_path_factory.mktemp("stock") / "run")
    stock.train()
    return weights(stock)


# -- law 1 -------------------------------------------------------------------------------------------------------------


@needs_ppo
@pytest.mark.parametrize(
    ("lora", "overrides"),
    [(False, {"whiten_rewards": True}), (True, {}), (False, {"stop_token": None, "missing_eos_penalty": 1.0})],
    ids=["whitened", "lora", "no stop"],
)
def test_weights_are_bit_equal(tmp_path: Path, lora: bool, overrides: dict[str, Any]) -> None:
    stock = trainer(tmp_path / "stock", lora=lora, **overrides)
    start = weights(stock)
    stock.train()
    watched = trainer(tmp_path / "watched", lora=lora, **overrides)
    monitor = RLMon(watched, CONFIG)
    watched.train()
    assert tiny.same_weights(weights(stock), weights(watched))
    assert not tiny.same_weights(start, weights(watched)), "the run trained something"
    record = monitor.monitor.last_record
    assert record.metrics["rlmon/kl/mean"] is not None, "the base was compared"
    assert record.step == STEPS
    assert len(rows_of(monitor)) == BATCH * STEPS
    assert not record.faults


def test_one_module_alone_knows_of_it() -> None:
    package = Path(rlmon.__file__).parent
    naming = {
        str(path.relative_to(package))
        for path in package.rglob("*.py")
        if "legacy_ppo" not in path.parts and "rlmon.trl.legacy_ppo import" in path.read_text(encoding="utf-8")
    }
    assert naming == {"trl/kinds.py"}


@needs_ppo
def test_every_hook_leaves_the_world_as_it_was(tmp_path: Path) -> None:
    """In a process of its own: the shape checks of the test suite draw from python's global random state."""
    done = subprocess.run(
        [sys.executable, __file__, str(tmp_path), "photographs"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    seen = json.loads(done.stdout.splitlines()[-1])
    assert seen["changed"] == []
    assert {*PLACE_OF, "_finish", "attach", "on_step_end", "on_save"} <= set(seen["calls"])
    assert seen["noticed"] == ["python", "numpy", "torch", "training", "requires_grad"], "the photographs can see"


@needs_ppo
@pytest.mark.slow
def test_two_ranks(tmp_path: Path) -> None:
    two_processes.run(Path(__file__), str(tmp_path), "stock", "watched")
    stock, watched = (
        [json.loads((tmp_path / f"{kind}-{rank}.json").read_text()) for rank in (0, 1)] for kind in ("stock", "watched")
    )
    assert len({rank["weights"] for rank in stock + watched}) == 1
    assert watched[0]["metrics"] == watched[1]["metrics"], "every rank makes the same record"
    assert watched[0]["completions"] == 2 * BATCH
    assert watched[0]["faults"] == watched[1]["faults"] == {}
    rows = rlmon.open_run(tmp_path / "watched" / "rlmon").rollouts().to_pylist()
    assert len({(row["round"], row["global_row"]) for row in rows}) == len(rows) == 2 * BATCH * STEPS
    logged = Counter((" ".join(f"{r['prompt']} {r['completion']}".split()), round(r["reward"], 5)) for r in rows)
    assert logged == Counter((" ".join(text.split()), score) for rank in watched for text, score in rank["scored"])


# -- what is measured --------------------------------------------------------------------------------------------------


@needs_ppo
def test_each_scored_completion_is_logged_once_with_its_score(tmp_path: Path) -> None:
    """Samples for the eye run the same functions on the same policy with as many rows, and are left out."""
    cls = type("Own", (Sampler, ppo().PPOTrainer), {})
    trained = trainer(tmp_path / "run", cls=cls, missing_eos_penalty=0.5, num_sample_generations=STEPS)
    monitor = RLMon(trained, CONFIG)
    trained.train()
    # An update scores 8 rows in chunks of 3, which are 3 calls; a sample is one more.
    assert trained.reward_model.calls == 4 * STEPS
    assert [record.completions for record in rlmon.open_run(monitor.log_dir).step_records()] == [BATCH] * STEPS
    rows = rows_of(monitor)
    assert [(row["round"], row["global_row"]) for row in rows] == [(r, b) for r in range(STEPS) for b in range(BATCH)]
    assert [row["step"] for row in rows] == [row["round"] + 1 for row in rows]
    scored = trained.reward_model.scored
    assert len(scored) == len(rows) == BATCH * STEPS
    ended = []
    for row, (ids, score) in zip(rows, scored, strict=True):
        own = ids[row["prompt_tokens"] :]
        assert row["prompt_tokens"] in (5, 6)
        assert row["prompt"] == tiny.tokenizer().decode(ids[: row["prompt_tokens"]])
        assert row["completion"] == tiny.tokenizer().decode(own, skip_special_tokens=True)
        assert row["completion_tokens"] == len(own) <= RESPONSE
        ended.append(EOS in own.tolist())
        assert row["truncated"] is not ended[-1]
        penalty = 0.0 if ended[-1] else -0.5
        assert dict(row["rewards"]) == pytest.approx({"reward_model": score[0], "missing_eos_penalty": penalty})
        assert row["reward"] == pytest.approx(score[0] + penalty)
    assert len(set(ended)) == 2, "some ended and some did not"
    means = [float(entry["objective/scores"]) for entry in trained.state.log_history]
    for step, mean in enumerate(means):
        assert np.mean([row["reward"] for row in rows if row["round"] == step]) == pytest.approx(mean, abs=1e-6)


def by_hand(model: Any, sequences: list[torch.Tensor], prompt: list[int], temperature: float) -> list[torch.Tensor]:
    """Log-probabilities (T, V) of each row's completion, from a forward of its own without padding."""
    with torch.no_grad():
        return [
            (model(ids[None]).logits[0, start - 1 : -1] / temperature).log_softmax(-1)
            for ids, start in zip(sequences, prompt, strict=True)
        ]


@needs_ppo
@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_entropy_logprobs_and_kl_are_those_of_the_policy_that_sampled(tmp_path: Path, lora: bool) -> None:
    policies: list[Any] = []

    class Keeps(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            policies.append(copy.deepcopy(kwargs["model"].policy).eval())

    cls = type("Own", (Sampler, ppo().PPOTrainer), {})
    trained = trainer(tmp_path / "run", cls=cls, lora=lora, extra={"callbacks": [Keeps()]})
    monitor = RLMon(trained, CONFIG)
    trained.train()
    base = tiny.model(0).eval()
    rows, passes = rows_of(monitor), passes_of(monitor)
    records = rlmon.open_run(monitor.log_dir).step_records()
    assert abs(records[0].metrics["rlmon/kl/mean"]) < 1e-6, "before the first update the policy is the base"
    assert records[-1].metrics["rlmon/kl/mean"] > 1e-3
    for step in range(STEPS):
        kept = range(BATCH * step, BATCH * (step + 1))
        sequences = [trained.reward_model.scored[i][0] for i in kept]
        starts = [rows[i]["prompt_tokens"] for i in kept]
        policy = base if step == 0 else policies[step - 1]
        of_policy, of_base = (by_hand(model, sequences, starts, 0.7) for model in (policy, base))
        sampled = [ids[start:, None] for ids, start in zip(sequences, starts, strict=True)]
        entropy = [-(p.exp() * p).sum(1) for p in of_policy]
        logp = [p.gather(1, ids)[:, 0] for p, ids in zip(of_policy, sampled, strict=True)]
        kl = [(p.exp() * (p - q)).sum(1) for p, q in zip(of_policy, of_base, strict=True)]
        metrics = records[step].metrics
        assert metrics["rlmon/entropy/mean"] == pytest.approx(float(torch.cat(entropy).mean()), abs=1e-5)
        assert metrics["rlmon/entropy/logp_mean"] == pytest.approx(float(torch.cat(logp).mean()), abs=1e-5)
        assert metrics["rlmon/kl/mean"] == pytest.approx(float(torch.cat(kl).mean()), abs=1e-5)
        for column, truth in (("entropy_mean_nats", entropy), ("logp_mean_nats", logp), ("kl_mean_nats", kl)):
            for i, row in zip(kept, truth, strict=True):
                if len(row):
                    assert passes[i][column] == pytest.approx(float(row.mean()), abs=1e-5)
        assert [passes[i]["tokens"] for i in kept] == [len(row) for row in entropy]


@needs_ppo
@pytest.mark.parametrize("bound", [3, 14])
def test_kl_is_measured_on_a_bounded_sample_and_in_its_steps_alone(tmp_path: Path, bound: int) -> None:
    trained = trainer(tmp_path / "run", stop_token=None)
    config = RLMonConfig(rlmon_base_kl_every=2, rlmon_base_kl_tokens=bound, rlmon_console=False, rlmon_strict=True)
    monitor = RLMon(trained, config)
    trained.train()
    records = rlmon.open_run(monitor.log_dir).step_records()
    # global_step is 0 and 2 before steps 1 and 3.
    assert [record.metrics["rlmon/kl/mean"] is not None for record in records] == [True, False, True, False]
    assert "measured every 2 steps" in records[1].missing["rlmon/kl/mean"]
    # Rows have 6 tokens: of 14, two whole rows fit; of 3, two rows give what they can.
    compared = [row["kl_mean_nats"] is not None for row in passes_of(monitor)]
    assert [sum(compared[BATCH * step : BATCH * (step + 1)]) for step in range(3)] == [2, 0, 2]


@needs_ppo
@pytest.mark.parametrize("whiten", [False, True])
def test_advantages_are_the_means_of_what_the_loss_weighs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whiten: bool
) -> None:
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    stock = ppo().masked_whiten

    def noted(values: torch.Tensor, mask: torch.Tensor, shift_mean: bool = True) -> torch.Tensor:
        result = stock(values, mask, shift_mean)
        if shift_mean:
            seen.append((result.clone(), mask.clone()))
        return result

    monkeypatch.setattr(ppo(), "masked_whiten", noted)
    trained = trainer(tmp_path / "run", whiten_rewards=whiten)
    monitor = RLMon(trained, CONFIG)
    trained.train()
    assert ppo().masked_whiten is noted
    rows = rows_of(monitor)
    expected = [
        float(values[mask].mean()) if mask.any() else None
        for result, masks in seen
        for values, mask in zip(result, masks, strict=True)
    ]
    assert len(expected) == len(rows)
    assert [row["advantage"] for row in rows] == pytest.approx(expected, abs=1e-5)
    monkeypatch.undo()


# -- which tokens count ------------------------------------------------------------------------------------------------


def begin(responses: list[list[int]], *, stop: int | None, pad: int) -> Any:
    queries = torch.tensor([[7, 8]] * len(responses))
    sequences = torch.cat([queries, torch.tensor(responses)], 1)
    return Round.begin(0, 0, queries, sequences, stop=stop, pad=pad)


def test_tokens_up_to_the_first_stop_count() -> None:
    # Stop 1, pad 0. Row 0 stops at its third token, and what follows is not read; row 1 never stops; row 2 stops at
    # once; row 3 samples the padding token: TRL trains what is before it.
    made = begin([[5, 6, 1, 9], [5, 6, 7, 8], [1, 5, 0, 0], [5, 0, 6, 1]], stop=1, pad=0)
    assert made.own_BT.sum(1).tolist() == [3, 4, 1, 1]
    assert made.trained_BT.tolist() == made.own_BT.tolist()
    assert made.stopped_B.tolist() == [True, False, True, False]
    assert made.scored_BT.tolist() == [[5, 6, 1, 0], [5, 6, 7, 8], [1, 0, 0, 0], [5, 0, 6, 1]]


def test_a_stop_token_that_doubles_as_padding_is_the_models_own() -> None:
    # TRL trains the 2 tokens before it; the stop token was sampled all the same, once.
    made = begin([[5, 6, 1, 1], [5, 6, 7, 8], [1, 1, 1, 1]], stop=1, pad=1)
    assert made.trained_BT.sum(1).tolist() == [2, 4, 0]
    assert made.own_BT.sum(1).tolist() == [3, 4, 1]
    assert made.stopped_B.tolist() == [True, False, True]


def test_without_a_stop_token_everything_counts() -> None:
    made = begin([[5, 1, 7, 8], [5, 6, 0, 8]], stop=None, pad=0)
    assert made.own_BT.sum(1).tolist() == [4, 2]
    assert made.stopped_B.tolist() == [False, False]


def test_entropy_where_sampling_ruled_tokens_out() -> None:
    # Two tokens are left, with probabilities 1/4 and 3/4: H = 1/4 ln 4 + 3/4 ln 4/3 = 0.5623; log p(5) = ln 1/4.
    made = begin([[5]], stop=None, pad=0)
    logits = torch.full((1, 1, 8), float("-inf"))
    logits[0, 0, 5], logits[0, 0, 6] = 0.0, float(np.log(3.0))
    made.measure(logits)
    assert float(made.entropies_BT[0, 0]) == pytest.approx(0.562335, abs=1e-5)
    assert float(made.logps_BT[0, 0]) == pytest.approx(float(np.log(0.25)), abs=1e-6)


def test_scores_and_references_of_other_rows_are_not_taken() -> None:
    """Another trainer may share the reward model or the reference; one model may be both critic and reward model."""
    made = begin([[5, 1], [6, 7], [8, 1]], stop=1, pad=0)
    made.take_scores(torch.tensor([[7, 8, 9, 9], [7, 8, 9, 9]]), torch.tensor([5.0, 5.0]))
    assert made.scored == 0
    made.take_scores(made.sequences_BL[:2], torch.tensor([1.0, 2.0]))
    made.take_scores(made.sequences_BL[:2], torch.tensor([3.0, 4.0]))
    assert (made.scored, [part.tolist() for part in made.scores]) == (2, [[1.0, 2.0]])
    made.take_scores(made.sequences_BL[2:], torch.tensor([6.0]))
    assert torch.cat(made.scores).tolist() == [1.0, 2.0, 6.0]

    comparison = Comparison(torch.zeros(3, 2, 10), np.ones(3), made.own_BT)
    comparison.take(made, torch.full((3, 4), 9), torch.zeros(3, 4, 10), 1.0)
    assert (comparison.rows, comparison.parts) == (0, [])
    with pytest.raises(RuntimeError, match="not seen on all rows"):
        comparison.result()
    comparison.take(made, made.sequences_BL, torch.zeros(3, 4, 10), 1.0)
    assert comparison.result().kl_pi_base_T.tolist() == [0.0] * 6


# -- what fails --------------------------------------------------------------------------------------------------------


@needs_ppo
def test_the_users_exception_passes_and_the_functions_come_back(tmp_path: Path) -> None:
    # Three calls an update: the fifth is in the middle of the second update.
    trained = trainer(tmp_path / "run", extra={"reward_model": DigitScore(fails_at=5)}, num_sample_generations=0)
    monitor = RLMon(trained, RLMonConfig(rlmon_console=False))
    before = ppo().forward
    with pytest.raises(ValueError, match="the reward model broke"):
        trained.train()
    assert ppo().forward is before
    rows = rows_of(monitor)
    assert [row["round"] for row in rows] == [0] * BATCH + [1] * BATCH, "what was sampled is in the log"
    assert all(row["reward"] is not None for row in rows[:BATCH])
    assert all(row["reward"] is None and row["advantage"] is None for row in rows[BATCH:])


@needs_ppo
@pytest.mark.parametrize(
    ("owner", "name", "place", "rows"),
    [
        (Round, "begin", "capture.rollouts", 0),
        (Round, "measure", "capture.tokens", BATCH * STEPS),
        (Round, "take_scores", "capture.rollouts", BATCH * STEPS),
        (Comparison, "take", "base.forward", BATCH * STEPS),
        (LegacyPPOCapture, "_masked_whiten", "capture.rollouts", BATCH * STEPS),
    ],
)
def test_our_failures_are_counted_and_change_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    unwatched_weights: dict[str, torch.Tensor],
    owner: type,
    name: str,
    place: str,
    rows: int,
) -> None:
    def broken(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("broken on purpose")

    watched = trainer(tmp_path / "watched")
    monitor = RLMon(watched, RLMonConfig(rlmon_base_kl_every=1, rlmon_console=False))
    monkeypatch.setattr(owner, name, broken)
    watched.train()
    assert tiny.same_weights(unwatched_weights, weights(watched))
    assert monitor.monitor.last_record.faults[place] >= 1
    assert len(rows_of(monitor)) == rows
    assert monitor.monitor.last_record.shed_rows == BATCH * STEPS - rows, "what is not logged is counted"
    if name == "take":
        assert monitor.monitor.last_record.metrics["rlmon/kl/mean"] is None


@needs_ppo
def test_a_loop_that_generates_elsewhere_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = trainer(tmp_path / "run")
    monitor = RLMon(trained, RLMonConfig(rlmon_console=False))
    monkeypatch.setattr(LegacyPPOCapture, "policy", None)
    trained.train()
    assert monitor.monitor.last_record.faults["capture.rollouts"] == 1
    monkeypatch.undo()


@needs_ppo
def test_trainers_that_run_inside_one_another_keep_apart(tmp_path: Path) -> None:
    inner = trainer(tmp_path / "inner", cls=type("Inner", (Sampler, ppo().PPOTrainer), {}), total_episodes=2 * BATCH)
    unwatched = trainer(tmp_path / "unwatched", total_episodes=BATCH)
    inside: list[Any] = []

    class Nests(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 1:
                inside.extend([inner.train(), unwatched.train(), len(PATCHES)])

    outer = trainer(
        tmp_path / "outer", cls=type("Outer", (Sampler, ppo().PPOTrainer), {}), extra={"callbacks": [Nests()]}
    )
    monitors = [RLMon(watched, CONFIG) for watched in (outer, inner)]
    outer.train()
    assert inside == [None, None, 1], "the outer one is still watched when the inner ones are done"
    for monitor, watched, rounds in zip(monitors, (outer, inner), (STEPS, 2), strict=True):
        rows = rows_of(monitor)
        assert len(rows) == rounds * BATCH
        truth = [ids.tolist() for ids, _ in watched.reward_model.scored]
        assert [len(ids) for ids in truth] == [row["prompt_tokens"] + row["completion_tokens"] for row in rows]
        assert [row["reward"] for row in rows] == pytest.approx([s[0] for _, s in watched.reward_model.scored])


# -- attaching ---------------------------------------------------------------------------------------------------------


def test_ppo_is_not_imported_until_somebody_uses_it() -> None:
    assert not IMPORTED_EAGERLY


@needs_ppo
def test_what_cannot_be_seen_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trained = trainer(tmp_path / "run", total_episodes=BATCH)
    monitor = RLMon(trained, RLMonConfig(rlmon_strict=True))
    notice = capsys.readouterr().err
    assert "watched without group" in notice
    assert "rlmon.trl.PPOTrainer" in notice
    trained.train()
    header = rlmon.open_run(monitor.log_dir).header
    status = {row["signal"]: (row["status"], row["reason"]) for row in header.capabilities}
    assert status["entropy"][0] == status["kl"][0] == status["truncated"][0] == "yes"
    assert status["kl"][1].startswith("reference")
    for signal in ("group", "interventions", "resume", "critic", "mirror", "passes"):
        assert status[signal][0] == "skip"
        assert status[signal][1]
    assert "should_training_stop" in status["interventions"][1]
    assert header.group_size == 1
    assert header.trainer_config["num_ppo_epochs"] == 2
    off = SimpleNamespace(active=False, reason="rlmon_base_kl is off")
    silent = plan(trained.args, CONFIG, off)
    assert {"signal": "kl", "status": "skip", "reason": "rlmon_base_kl is off"} in silent
    trained.args.stop_token = None
    assert "truncated" in [row["signal"] for row in plan(trained.args, CONFIG, off) if row["status"] == "skip"]


@needs_ppo
@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"rlmon_policy": "observe"}, r"rlmon_policy cannot work with TRL's own PPOTrainer.*MonitoredPPOTrainer"),
        ({"rlmon_source_column": "task"}, r"rlmon_source_column cannot work.*Leave it out"),
        ({"rlmon_base_kl": "copy"}, r"rlmon_base_kl=copy cannot work.*its own reference \(reference\)"),
        ({"rlmon_base_model": "x"}, r"rlmon_base_model cannot work"),
    ],
)
def test_what_cannot_work_is_refused(tmp_path: Path, settings: dict[str, Any], match: str) -> None:
    trained = trainer(tmp_path / "run")
    attributes = set(vars(trained))
    with pytest.raises(AttachError, match=match):
        RLMon(trained, RLMonConfig(rlmon_console=False, **settings))
    assert set(vars(trained)) == attributes


def test_a_ppo_trainer_of_somebody_else_is_refused() -> None:
    other = type("PPOTrainer", (), {})()
    with pytest.raises(AttachError, match=r"got PPOTrainer\..*use rlmon.trl.PPOTrainer"):
        RLMon(other, CONFIG)


@needs_ppo
def test_a_callback_comes_too_late(tmp_path: Path) -> None:
    trained = trainer(tmp_path / "run", extra={"callbacks": [RLMon(config=CONFIG)]})
    start = weights(trained)
    with pytest.raises(AttachError, match=r"Type RLMon\(trainer\) after building it"):
        trained.train()
    assert tiny.same_weights(start, weights(trained))
    assert "train" not in vars(trained)


@needs_ppo
def test_detach_leaves_the_trainer_as_it_came(tmp_path: Path) -> None:
    trained = trainer(tmp_path / "run", total_episodes=BATCH)
    attributes = set(vars(trained))
    monitor = RLMon(trained, CONFIG)
    assert {"train", "generate_completions"} <= set(vars(trained)) - attributes
    with pytest.raises(AttachError, match="already has a monitor"):
        RLMon(trained, CONFIG)
    monitor.detach()
    assert set(vars(trained)) == attributes
    trained.train()
    assert monitor.monitor is None


@needs_ppo
def test_detaching_in_mid_training_takes_the_functions_off(tmp_path: Path) -> None:
    stock = ppo().forward
    after: list[bool] = []

    class Leaves(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 2:
                monitor.detach()
                after.append(ppo().forward is stock)

    trained = trainer(tmp_path / "run")
    monitor = RLMon(trained, CONFIG)
    trained.add_callback(Leaves())
    log = monitor.log_dir
    trained.train()
    assert after == [True]
    assert len(rlmon.open_run(log).rollouts()) == 2 * BATCH


@needs_ppo
def test_a_reference_that_is_not_the_start_is_no_base(tmp_path: Path) -> None:
    other = trainer(tmp_path / "run", extra={"ref_model": tiny.model(5)}, total_episodes=BATCH)
    monitor = RLMon(other, CONFIG)
    other.train()
    assert monitor.monitor.last_record.metrics["rlmon/kl/mean"] is None
    assert "ref_model is not the policy as it starts" in monitor.monitor.last_record.missing["rlmon/kl/mean"]
    with pytest.raises(AttachError, match="rlmon_base_kl=reference cannot work here"):
        RLMon(trainer(tmp_path / "x", extra={"ref_model": tiny.model(5)}), RLMonConfig(rlmon_base_kl="reference"))
    equal = trainer(tmp_path / "equal", lora=True, extra={"ref_model": tiny.model(0)}, total_episodes=BATCH)
    monitor = RLMon(equal, CONFIG)
    equal.train()
    assert monitor.monitor.last_record.metrics["rlmon/kl/mean"] == pytest.approx(0.0, abs=1e-6)


@needs_ppo
def test_checkpoints_and_a_second_training(tmp_path: Path) -> None:
    trained = trainer(tmp_path / "run", save_strategy="steps", save_steps=2, total_episodes=2 * BATCH)
    monitor = RLMon(trained, CONFIG)
    trained.train()
    state = json.loads((tmp_path / "run" / "checkpoint-2" / "rlmon" / "state.json").read_text())
    assert state["step"] == 2
    trained.train()
    run = rlmon.open_run(monitor.log_dir)
    assert Counter(run.rollouts(all_attempts=True).column("attempt").to_pylist()) == {0: 2 * BATCH, 1: 2 * BATCH}


# -- as a script -------------------------------------------------------------------------------------------------------


def photographs(out: Path) -> None:
    from photograph_hooks import Photographs

    trained = trainer(out / "run", save_strategy="steps", save_steps=2, total_episodes=2 * BATCH)
    taken = Photographs(trained)
    taken.take(LegacyPPOCapture, "saw", "_finish", "step_ends", "install")
    taken.take(RLMon, "attach", "on_train_begin", "on_step_end", "on_log", "on_save", "on_train_end")
    RLMon(trained, CONFIG)
    trained.train()
    print(taken.told())


def one_rank(out: Path, kind: str) -> None:
    rank = int(os.environ["RANK"])
    cls = type("Own", (Sampler, ppo().PPOTrainer), {})
    trained = trainer(out / kind, cls=cls, total_episodes=2 * BATCH * STEPS)
    monitor = RLMon(trained, RLMonConfig(rlmon_base_kl_every=1, rlmon_console=False)) if kind == "watched" else None
    trained.train()
    digest = hashlib.blake2b()
    for name, tensor in sorted(weights(trained).items()):
        digest.update(name.encode() + tensor.numpy().tobytes())
    seen: dict[str, Any] = {"weights": digest.hexdigest()}
    seen["scored"] = [
        (tiny.tokenizer().decode(ids, skip_special_tokens=True), round(score[0], 5))
        for ids, score in trained.reward_model.scored
    ]
    if monitor is not None:
        record = monitor.monitor.last_record
        seen |= {"metrics": record.metrics, "completions": record.completions, "faults": dict(record.faults)}
    (out / f"{kind}-{rank}.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    torch.set_num_threads(1)
    for cell in sys.argv[2:]:
        if cell == "photographs":
            photographs(Path(sys.argv[1]))
        else:
            one_rank(Path(sys.argv[1]), cell)
