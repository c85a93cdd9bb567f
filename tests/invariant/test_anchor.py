"""The anchor's loss in real trainers: its gradient by hand, its scaling, its rows, its resume, and what it is for."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from transformers import TrainerCallback

from rlmon.errors import ConfigError
from rlmon.interventions.anchor import Anchor
from rlmon.trl.anchor import MAX_MODES, AnchorStore

pytestmark = pytest.mark.trl

PRINTS, SUMS = 0, 1
ROWS = [
    (PRINTS, "3 + 1 = how many", "print ( 4 ) <eos>"),
    (PRINTS, "2 + 1 = how many", "print ( 3 ) <eos>"),
    (SUMS, "1 + 0 = how many", "the sum is 1 . so we get 1 <eos>"),
    (SUMS, "5 + 2 =", "7 <eos>"),
    (PRINTS, "9 + 4 = how many apples", "print ( 13 )"),
]


def ids(text: str) -> list[int]:
    return [tiny.WORDS.index(word) for word in text.split()]


def filled(**settings: Any) -> AnchorStore:
    store = AnchorStore(Anchor(**settings))
    for mode, prompt, completion in ROWS:
        store.add(mode, ids(prompt), ids(completion))
    return store


def anchored(trained: Any, store: AnchorStore, weight: float, modes: Sequence[int] = (PRINTS, SUMS)) -> Any:
    """The trainer with the store's loss added to its own."""
    original = trained._compute_loss

    def with_anchor(model: Any, inputs: Any) -> torch.Tensor:
        loss = original(model, inputs)
        extra = store.loss(trained, modes, weight)
        return loss if extra is None else loss + extra

    trained._compute_loss = with_anchor
    return trained


def by_hand(model: Any, rows: Sequence[tuple[int, str, str]]) -> torch.Tensor:
    """Mean of -ln p over all completion tokens, row by row, without padding."""
    total, count = torch.zeros(()), 0
    for _, prompt, completion in rows:
        before, own = ids(prompt), ids(completion)
        logp = model(input_ids=torch.tensor([before + own])).logits[0].log_softmax(-1)
        for i, token in enumerate(own):
            total, count = total - logp[len(before) + i - 1, token], count + 1
    return total / count


def ready(trained: Any) -> Any:
    """The trainer as it is inside its loop."""
    trained.current_gradient_accumulation_steps = 1
    trained.model.train()
    return trained


def gradients(model: Any) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def nothing(completions: Sequence[str], **_: Any) -> list[float]:
    """No variance: TRL's own gradient is exactly 0, so that all of it is the anchor's."""
    return [0.0 for _ in completions]


@pytest.mark.parametrize("lora", [False, True])
def test_the_gradient_is_that_of_the_mean_cross_entropy(tmp_path: Path, lora: bool) -> None:
    trained = ready(tiny.trainer(tmp_path / "run", lora=lora))
    model = trained.model
    loss = filled().loss(trained, (PRINTS, SUMS), 0.25)
    assert loss is not None
    loss.backward()
    ours = gradients(model)
    model.zero_grad()
    expected = by_hand(model, ROWS)
    (0.25 * expected).backward()
    theirs = gradients(model)
    assert loss.item() == pytest.approx(0.25 * expected.item(), rel=1e-5)
    assert ours.keys() == theirs.keys()
    assert len(ours) > 0
    assert not lora or all("lora" in name for name in ours)
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("rloo", [False, True])
def test_micro_batches_add_up_to_one_batch(tmp_path: Path, rloo: bool) -> None:
    """One step of plain gradient descent, whole and in micro-batches, against the step that is computed by hand."""
    common: dict[str, Any] = {"optim": "sgd", "learning_rate": 0.5, "max_grad_norm": 0.0, "beta": 0.0, "max_steps": 1}
    ends, start = [], {}
    for parts in (1, 2, 4):
        trained = tiny.trainer(
            tmp_path / f"run-{parts}",
            rloo=rloo,
            reward=nothing,
            gradient_accumulation_steps=parts,
            per_device_train_batch_size=8 // parts,
            **common,
        )
        start = tiny.weights(trained)
        anchored(trained, filled(), 0.25).train()
        ends.append(tiny.weights(trained))
    fresh = tiny.trainer(tmp_path / "fresh", rloo=rloo, reward=nothing, **common)
    (0.25 * by_hand(fresh.model, ROWS)).backward()
    for name, p in fresh.model.named_parameters():
        if p.grad is None:
            continue
        for end in ends:
            torch.testing.assert_close(end[name], start[name] - 0.5 * p.grad, rtol=1e-5, atol=1e-6)
    assert not tiny.same_weights(start, ends[0])


def share_of_print(tmp_path: Path, name: str, weight: float) -> tuple[float, float]:
    """Share of completions that begin with "print", in the first two steps and in the last ten of 30."""
    seen: list[list[float]] = []

    def reward(completions: Sequence[str], **_: Any) -> list[float]:
        seen.append([float(c.strip().startswith("print")) for c in completions])
        return tiny.has_digit(completions)

    trained = tiny.trainer(tmp_path / name, reward=reward, max_steps=30, learning_rate=5e-3)
    anchored(trained, filled(), weight, modes=(PRINTS,)).train()
    return float(np.mean(seen[:2])), float(np.mean(seen[-10:]))


def test_the_share_of_a_dying_mode_rises(tmp_path: Path) -> None:
    """The reward wants numbers first: without an anchor "print" is gone, with one it is held."""
    before, without = share_of_print(tmp_path, "without", 0.0)
    _, held = share_of_print(tmp_path, "held", 0.5)
    assert without <= 0.05, (before, without)
    assert held > max(before + 0.1, without + 0.2), (before, without, held)


def test_with_nothing_to_add_the_loss_is_left_as_it_is(tmp_path: Path) -> None:
    trained = ready(tiny.trainer(tmp_path / "run"))
    store = filled()
    assert AnchorStore(Anchor()).loss(trained, (PRINTS,), 0.1) is None, "nothing stored"
    assert store.loss(trained, (), 0.1) is None, "nothing is dying"
    assert store.loss(trained, (77,), 0.1) is None, "nothing stored of what is dying"
    assert store.loss(trained, (PRINTS,), 0.0) is None, "no weight"
    trained.model.eval()
    assert store.loss(trained, (PRINTS,), 0.1) is None, "evaluation"
    trained.model.train()
    assert store.loss(trained, (PRINTS,), 0.1) is not None


@pytest.mark.parametrize("rloo", [False, True])
def test_what_is_stored_is_what_the_reward_verified(tmp_path: Path, rloo: bool) -> None:
    scored: list[tuple[str, str, float]] = []

    def reward(prompts: Sequence[str], completions: Sequence[str], **_: Any) -> list[float]:
        values = tiny.has_digit(completions)
        scored.extend(zip(prompts, completions, values, strict=True))
        return values

    trained = tiny.trainer(tmp_path / "run", rloo=rloo, reward=reward, max_steps=3)
    store = AnchorStore(Anchor(per_mode=3))
    original = trained._generate_and_score_completions
    wanted: list[tuple[str, str]] = []

    def generate(inputs: Any) -> Any:
        output = original(inputs)
        rows = scored[-len(inputs) :]
        reward_n = np.array([value for _, _, value in rows])
        reward_n[0] = np.nan
        room = 3 - store.stored().get(4, 0)
        wanted.extend([(p, c) for p, c, value in rows[1:] if value > 0.5][:room])
        store.collect(output, reward_n, np.full(len(rows), 4), prompts=2, completions=8)
        return output

    trained._generate_and_score_completions = generate
    trained.train()
    tokenizer = tiny.tokenizer()
    kept = [
        (tokenizer.decode(prompt), tokenizer.decode(completion, skip_special_tokens=True))
        for prompt, completion in store.state()["rows"][0][1]
    ]
    assert 0 < len(kept) <= 3
    assert kept == wanted


ROUND = {"prompts": 8, "completions": 16}


def test_what_is_not_stored() -> None:
    def output(**changes: Any) -> dict[str, Any]:
        ones = torch.ones((2, 3), dtype=torch.long)
        return {
            "prompt_ids": torch.tensor([[0, 5, 6], [4, 5, 6]]),
            "prompt_mask": torch.tensor([[0, 1, 1], [1, 1, 1]]),
            "completion_ids": torch.tensor([[7, 8, 1], [7, 1, 0]]),
            "completion_mask": torch.tensor([[1, 1, 1], [1, 1, 0]]),
            **{name: ones if value is None else value for name, value in changes.items()},
        }

    right, known = np.ones(2), np.zeros(2, dtype=np.int64)
    plain = AnchorStore(Anchor())
    assert plain.collect(output(), right, known, **ROUND) == 2
    assert plain.state()["rows"] == [[0, [[[5, 6], [7, 8, 1]], [[4, 5, 6], [7, 1]]]]]
    assert AnchorStore(Anchor()).collect(output(), np.array([0.5, np.nan]), known, **ROUND) == 0
    assert AnchorStore(Anchor()).collect(output(), right, known - 1, **ROUND) == 0, "no mode"
    assert AnchorStore(Anchor()).collect(output(pixel_values=None), right, known, **ROUND) == 0
    tools = torch.tensor([[1, 0, 1], [1, 1, 1]])
    assert AnchorStore(Anchor()).collect(output(tool_mask=tools), right, known, **ROUND) == 1, "tokens of a tool"
    cut = torch.tensor([[0, 0, 0], [1, 1, 0]])
    assert AnchorStore(Anchor()).collect(output(completion_mask=cut), right, known, **ROUND) == 1, "masked as truncated"
    many = AnchorStore(Anchor(per_mode=1000))
    # 8 prompts a round: the baseline is complete after four.
    assert sum(many.collect(output(), right, known, **ROUND) for _ in range(20)) == 4 * 2


def test_what_is_stored_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    store = AnchorStore(Anchor(per_mode=2))
    store.add(0, [5], [6])
    store.add(0, [5], [6])
    with pytest.raises(ConfigError, match=r"no room for another row of mode 0: 2 rows a mode"):
        store.add(0, [5], [6])
    for mode in range(1, MAX_MODES):
        store.add(mode, [5], [6])
    with pytest.raises(ConfigError, match="64 modes"):
        store.add(MAX_MODES, [5], [6])
    monkeypatch.setattr("rlmon.trl.anchor.MAX_TOKENS", 10)
    small = AnchorStore(Anchor())
    small.add(0, [5] * 5, [6] * 5)
    with pytest.raises(ConfigError, match="10 tokens"):
        small.add(0, [5], [6])
    with pytest.raises(ConfigError, match="completion tokens"):
        small.add(0, [5], [])


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_the_trainers_random_numbers_stay_what_they_were(tmp_path: Path, dropout: float) -> None:
    trained = ready(tiny.trainer(tmp_path / "run", policy=tiny.model(dropout=dropout)))
    before, numpy = torch.get_rng_state(), np.random.get_state()[1].copy()
    losses = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        inside = torch.get_rng_state()
        loss = filled().loss(trained, (PRINTS, SUMS), 1.0)
        assert loss is not None
        losses.append(loss.item())
        assert torch.equal(torch.get_rng_state(), inside)
    assert (losses[0] != losses[1]) == (dropout > 0.0), "dropout is the trainer's"
    assert (np.random.get_state()[1] == numpy).all()
    torch.set_rng_state(before)
    assert all(module.training for module in trained.model.modules())


def test_gradient_checkpointing_with_dropout(tmp_path: Path) -> None:
    """What checkpointing computes again in backward is what it computed in the forward."""
    seen = []
    for checkpointing in (False, True):
        trained = ready(tiny.trainer(tmp_path / "run", policy=tiny.model(dropout=0.5)))
        if checkpointing:
            trained.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        torch.manual_seed(3)
        loss = filled().loss(trained, (PRINTS, SUMS), 1.0)
        assert loss is not None
        loss.backward()
        seen.append(gradients(trained.model))
    for name, gradient in seen[0].items():
        torch.testing.assert_close(seen[1][name], gradient, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("find_unused", [False, True])
def test_beside_the_forward_of_ddp(tmp_path: Path, find_unused: bool) -> None:
    """The reducer of DDP takes the sum of both gradients, and is ready for the next step."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        trained = ready(tiny.trainer(tmp_path / "run"))
        model = trained.model
        tokens = torch.tensor([ids("3 + 1 = 4 <eos>")])
        model(input_ids=tokens, labels=tokens).loss.backward()
        filled().loss(trained, (PRINTS,), 0.5).backward()
        expected = gradients(model)
        wrapped = torch.nn.parallel.DistributedDataParallel(model, find_unused_parameters=find_unused)
        for _ in range(2):
            wrapped.zero_grad()
            loss = wrapped(input_ids=tokens, labels=tokens).loss
            (loss + filled().loss(trained, (PRINTS,), 0.5)).backward()
            for name, gradient in gradients(model).items():
                torch.testing.assert_close(gradient, expected[name], rtol=1e-5, atol=1e-7)
    finally:
        torch.distributed.destroy_process_group()


class Keep(TrainerCallback):
    """Keeps the store's state at every checkpoint."""

    def __init__(self, store: AnchorStore) -> None:
        self.store, self.saved = store, ""

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if not self.saved:
            self.saved = json.dumps(self.store.state())


def test_a_resumed_run_ends_with_the_same_weights(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    make: Callable[[AnchorStore], Any] = lambda store: anchored(  # noqa: E731
        tiny.trainer(tmp_path / "run", **settings), store, 0.3
    )
    store = filled(batch=2)
    whole = make(store)
    keep = Keep(store)
    whole.add_callback(keep)
    whole.train()
    again = AnchorStore(Anchor(batch=2))
    again.load(json.loads(keep.saved))
    assert json.dumps(again.state()) == keep.saved
    resumed = make(again)
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    assert tiny.same_weights(tiny.weights(whole), tiny.weights(resumed))


def test_a_resumed_store_has_no_more_than_its_settings_allow() -> None:
    state = filled().state()
    less = AnchorStore(Anchor(per_mode=1))
    less.load(state)
    assert less.stored() == {PRINTS: 1, SUMS: 1}
