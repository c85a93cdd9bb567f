"""Deferred prompts are not generated from, on real trainers; and a resumed run draws what it would have drawn."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny
import torch
import trl
import two_processes
from datasets import IterableDataset
from packaging.version import Version
from round_tables import round_table
from transformers import TrainerCallback

from rlmon.errors import AttachError
from rlmon.interventions import deferral
from rlmon.interventions.deferral import Defer, DeferralState, LedgerView
from rlmon.interventions.intervention import NOTHING, Blocked
from rlmon.interventions.rows import row_key
from rlmon.metrics.ledger import SolveLedger
from rlmon.metrics.prompts import prompt_identity
from rlmon.trl.draws import SORTED_ROWS, Draws, continue_order
from studies.random_deferral import RandomShare

pytestmark = pytest.mark.trl

ROWS: list[dict[str, Any]] = [dict(row) for row in tiny.dataset()]
REUSE: dict[str, dict[str, Any]] = {"mu1": {}, "mu2": {"num_iterations": 2}, "S2": {"steps_per_generation": 2}}
EAGER = Defer(solve_rate_below=0.3, credibility=0.6, after_attempts=4, retry_after_rounds=4, share=0.5)


def key(prompt: Any) -> int:
    return row_key(prompt_identity(prompt))


def prompts_of(rows: int = 12) -> list[str]:
    return list(tiny.dataset(rows)["prompt"])


def hopeless_third(prompts: Sequence[Any], completions: Sequence[Any], **_: Any) -> list[float]:
    """No reward, ever, for prompts that begin with 0, 3, 6 or 9."""
    digits = tiny.has_digit(completions)
    return [0.0 if tiny.text(p)[0] in "0369" else d for p, d in zip(prompts, digits, strict=True)]


class Swap(TrainerCallback):
    """The draws as the capture drives them. What is blocked comes from a schedule {round: Blocked}, or from the fold
    and a ledger, which are saved in checkpoints."""

    def __init__(self, trainer: Any, schedule: Mapping[int, Blocked] | Defer, *, active: bool = True) -> None:
        settings = schedule if isinstance(schedule, Defer) else Defer()
        self.settings, self.schedule = settings, schedule
        self.trainer, self.draws = trainer, Draws(trainer, settings, lambda row: str(row["target"] % 2))
        self.fold, self.ledger = settings.fresh(), SolveLedger()
        self.round, self.active = 0, active
        self.given: list[list[str]] = []
        """Per training round the prompt of each group of this rank, as TRL's own sampler had it."""
        self.drawn: list[list[str]] = []
        self.repiloted = 0
        generate, score = trainer._generate_and_score_completions, trainer._calculate_rewards
        scored: list[Any] = []

        def rewards(*args: Any, **kwargs: Any) -> Any:
            scored.append(score(*args, **kwargs))
            return scored[-1]

        def swapped(inputs: Any, *args: Any, **kwargs: Any) -> Any:
            if not trainer.model.training or not self.active:
                return generate(inputs, *args, **kwargs)
            before = [dict(row) for row in inputs]
            rows = self.draws.swap(inputs, self.blocked(), self.round)
            assert [dict(row) for row in inputs] == before, "the trainer's own rows are left alone"
            if not self.blocked():
                assert rows is inputs
            self.given.append([tiny.text(row["prompt"]) for row in inputs])
            self.drawn.append([tiny.text(row["prompt"]) for row in rows])
            output = generate(rows, *args, **kwargs)
            if isinstance(self.schedule, Defer):
                self.observe(rows, scored[-1].double().nansum(1).numpy())
            self.round += 1
            return output

        trainer._calculate_rewards = rewards
        trainer._generate_and_score_completions = swapped
        trainer.add_callback(self)

    def blocked(self) -> Blocked:
        if isinstance(self.schedule, Defer):
            return self.settings.blocked(self.fold, self.round)
        return self.schedule.get(self.round, NOTHING)

    def observe(self, rows: Sequence[Mapping[str, Any]], reward_N: np.ndarray) -> None:
        names = [f"{key(row['prompt']):x}" for row in rows]
        sources = ["all"] * len(rows)
        self.ledger.update(names, sources, reward_N, step=self.round)
        counts = np.array([self.ledger.counts(name) for name in names])
        prompts = [key(row["prompt"]) for row in rows]
        table = round_table(reward_N, round=self.round, group_size=4, prompt=prompts, success=reward_N)
        below = self.ledger.credibly_below(
            names, sources, rate=self.settings.solve_rate_below, credibility=self.settings.credibility
        )
        known = LedgerView(attempts_N=counts[:, 0], successes_N=counts[:, 1], credibly_below_N=below)
        self.fold, changes = deferral.step(self.settings, self.fold, table, known)
        self.repiloted += len(changes.of("re-piloted"))

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step and self.active:
            continue_order(self.trainer)
            saved = json.loads((Path(args.output_dir) / f"checkpoint-{state.global_step}" / "draws.json").read_text())
            self.fold = DeferralState.from_json(saved["fold"])
            self.ledger, self.round = SolveLedger.load(saved["ledger"]), saved["round"]
            self.draws.load(saved["draws"])

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        saved = {
            "fold": self.fold.to_json(),
            "ledger": self.ledger.state(),
            "round": self.round,
            "draws": self.draws.state(),
        }
        (Path(args.output_dir) / f"checkpoint-{state.global_step}" / "draws.json").write_text(json.dumps(saved))


class StopAt(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        control.should_training_stop = control.should_training_stop or state.global_step >= self.step


def groups(rounds: list[list[str]], size: int = 4) -> list[list[str]]:
    """Each group's prompt; fails where the copies of a group differ."""
    made = []
    for rows in rounds:
        parts = [rows[i : i + size] for i in range(0, len(rows), size)]
        assert all(len(set(part)) == 1 for part in parts), rows
        made.append([part[0] for part in parts])
    return made


def stream(rows: int = 12) -> IterableDataset:
    return tiny.dataset(rows).to_iterable_dataset()


TAKES_STREAMS = Version(trl.__version__) >= Version("1.12")
OF_TWO_RANKS = (("straddle", 6), ("whole", 8), *([("stream", 8)] if TAKES_STREAMS else []))
"""Runs of two ranks, and the rows of each in a batch."""


def trained_stream() -> IterableDataset:
    if not TAKES_STREAMS:
        pytest.skip("TRL takes iterable datasets only since 1.12")
    return stream()


@pytest.mark.parametrize("rloo", [False, True])
@pytest.mark.parametrize("reuse", list(REUSE))
def test_blocked_prompts_are_not_generated_from(tmp_path: Path, rloo: bool, reuse: str) -> None:
    """Rounds 0 and 1 as they are, then three prompts of twelve blocked: no reward function sees them any more, what is
    not blocked stays where it was, and the global random states are what they would have been."""
    held = prompts_of()[:3]
    schedule = {r: Blocked(prompts=frozenset(map(key, held))) for r in range(2, 99)}
    seen: list[list[str]] = []

    def reward(prompts: Sequence[str], completions: Sequence[str], **_: Any) -> Any:
        seen.append(list(prompts))
        return tiny.has_digit(completions)

    trained = tiny.trainer(tmp_path / "run", rloo=rloo, reward=reward, max_steps=12, **REUSE[reuse])
    swap = Swap(trained, schedule)
    trained.train()
    assert seen == swap.drawn
    given, drawn = groups(swap.given), groups(swap.drawn)
    assert given[:2] == drawn[:2]
    replaced = 0
    for before, after in zip(given[2:], drawn[2:], strict=True):
        assert not set(after) & set(held)
        for was, now in zip(before, after, strict=True):
            assert (was == now) == (was not in held)
            replaced += was != now
    assert replaced > 0
    assert swap.draws.kept == 0


def test_nothing_blocked_changes_nothing(tmp_path: Path) -> None:
    plain = tiny.trainer(tmp_path / "plain", max_steps=8)
    plain.train()
    swapped = tiny.trainer(tmp_path / "swapped", max_steps=8)
    Swap(swapped, {r: Blocked(prompts=frozenset({1, 2, 3})) for r in range(99)})
    swapped.train()
    assert tiny.same_weights(tiny.weights(plain), tiny.weights(swapped))


def test_evaluation_is_left_alone(tmp_path: Path) -> None:
    everything = RandomShare(share=1.0)
    scored: list[str] = []

    def reward(prompts: Sequence[str], completions: Sequence[str], **_: Any) -> Any:
        if not trained.model.training:
            scored.extend(prompts)
        return tiny.has_digit(completions)

    trained = tiny.trainer(tmp_path / "run", reward=reward, eval_strategy="steps", eval_steps=4, max_steps=4)
    swap = Swap(trained, dict.fromkeys(range(99), everything))
    trained.train()
    assert set(scored) == set(prompts_of(4))
    assert swap.drawn == swap.given, "with everything blocked there is no replacement, and rows stay"
    assert swap.draws.kept == 8


@pytest.mark.parametrize("kind", ["map", "stream", "conversational"])
def test_the_fold_defers_and_re_pilots(tmp_path: Path, kind: str) -> None:
    """12 prompts, 4 of them hopeless, 2 a round: once they are deferred they come back as re-pilots only."""
    train = trained_stream() if kind == "stream" else tiny.dataset(12, conversational=kind == "conversational")
    trained = tiny.trainer(tmp_path / "run", reward=hopeless_third, train=train, max_steps=60, learning_rate=2e-2)
    swap = Swap(trained, dataclasses.replace(EAGER, retry_after_rounds=12))
    seen_blocked = 0
    original = swap.draws.swap

    def checked(inputs: Any, blocked: Blocked, number: int) -> Any:
        nonlocal seen_blocked
        rows = original(inputs, blocked, number)
        assert not any(blocked.holds(key(row["prompt"])) for row in rows)
        seen_blocked += bool(blocked)
        return rows

    swap.draws.swap = checked  # type: ignore[method-assign]
    trained.train()
    assert swap.draws.kept == 0
    assert swap.fold.deferrals >= 4
    assert swap.repiloted > 0
    assert seen_blocked > 20
    count = Counter(prompt[0] in "0369" for rows in groups(swap.drawn)[12:] for prompt in rows)
    before = Counter(prompt[0] in "0369" for rows in groups(swap.given)[12:] for prompt in rows)
    assert count[True] < 0.75 * before[True]


@pytest.mark.parametrize(
    ("kind", "stop"), [("map", 2), ("map", 6), ("map", 8), ("map", 13), ("accumulated", 8), ("stream", 4)]
)
def test_a_resumed_run_draws_what_the_uninterrupted_one_did(tmp_path: Path, kind: str, stop: int) -> None:
    """6 steps an epoch (3 with accumulation): stopped in epochs 0, 1 and 2, and where one ends. Prompts and weights are
    equal. (A stream of unknown length is wound forward by the Trainer within its first pass only.)"""

    def run(name: str, until: int, resume: int | None = None) -> tuple[Any, Swap]:
        trained = tiny.trainer(
            tmp_path / name,
            reward=hopeless_third,
            train=trained_stream() if kind == "stream" else None,
            max_steps=18,
            save_strategy="steps",
            save_steps=stop,
            save_only_model=False,
            policy=tiny.model(),
            callbacks=[StopAt(until)],
            gradient_accumulation_steps=2 if kind == "accumulated" else 1,
        )
        swap = Swap(trained, EAGER)
        trained.train(resume_from_checkpoint=None if resume is None else str(tmp_path / name / f"checkpoint-{resume}"))
        return trained, swap

    whole, expected = run("whole", 18)
    run("parts", stop)
    resumed, got = run("parts", 18, resume=stop)
    assert got.drawn == expected.drawn[stop:]
    assert got.fold == expected.fold
    assert expected.fold.deferrals > 0
    assert tiny.same_weights(tiny.weights(whole), tiny.weights(resumed))


def test_without_the_fix_a_resumed_run_would_repeat_the_first_epoch(tmp_path: Path) -> None:
    """What ``continue_order`` is for; goes red when TRL keeps the order itself, and then it can go."""
    orders: list[list[str]] = []
    for resume in (None, 8):
        for active in (False, True):
            seen: list[str] = []

            def reward(prompts: Sequence[str], completions: Sequence[str], **_: Any) -> Any:
                seen.extend(prompts[::4])  # noqa: B023 (called within the iteration)
                return tiny.has_digit(completions)

            trained = tiny.trainer(
                tmp_path / f"{active}", reward=reward, max_steps=12, save_strategy="steps", save_steps=8
            )
            Swap(trained, {}, active=active)
            trained.train(resume_from_checkpoint=None if resume is None else str(tmp_path / f"{active}/checkpoint-8"))
            orders.append(seen)
    plain, watched, resumed_plain, resumed_watched = orders
    assert plain == watched
    assert resumed_watched == watched[16:]
    assert resumed_plain == plain[4:12], "steps 3 to 6 of epoch 0 instead of 9 to 12"


def test_every_row_that_is_not_blocked_is_as_likely(tmp_path: Path) -> None:
    """12 prompts, 4 blocked, a round of 2 groups, both blocked: each of the other 8 is drawn at a rate of 1/8.
    2 x 4,000 draws: 1,000 of each, standard deviation 30."""
    trained = tiny.trainer(tmp_path / "run")
    draws = Draws(trained, Defer())
    names = prompts_of()
    blocked = Blocked(prompts=frozenset(map(key, names[:4])))
    inputs = [dict(ROWS[i]) for i in (0, 1) for _ in range(4)]
    python, numpy_state, torch_state = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()
    count: Counter[str] = Counter()
    for number in range(4_000):
        rows = draws.swap(inputs, blocked, number)
        assert rows[0]["prompt"] != rows[4]["prompt"], "two groups of a round get two prompts"
        count.update([rows[0]["prompt"], rows[4]["prompt"]])
    assert count.keys() == set(names[4:])
    assert max(abs(n - 1_000) for n in count.values()) < 130
    again = Draws(trained, Defer())
    assert again.swap(inputs, blocked, 17) == draws.swap(inputs, blocked, 17), "a function of seed, round and group"
    assert random.getstate() == python
    assert (np.random.get_state()[1] == numpy_state).all()
    assert torch.equal(torch.get_rng_state(), torch_state)


def test_ranks_replace_both_parts_of_a_group_alike() -> None:
    """3 groups of 4 on 2 ranks of 6 rows: rows 4 to 7 are one group. Each rank sees its own 6 rows only."""
    rows = [dict(ROWS[i]) for i in (0, 1, 2) for _ in range(4)]
    ranks = [Draws(fake_trainer(rank=rank, world=2, batch=6), Defer()) for rank in (0, 1)]
    blocked = Blocked(prompts=frozenset(key(rows[i]["prompt"]) for i in (0, 4)))
    for number in range(200):
        halves = [ranks[rank].swap(rows[6 * rank : 6 * rank + 6], blocked, number) for rank in (0, 1)]
        drawn = groups([[row["prompt"] for half in halves for row in half]])[0]
        assert drawn[2] == rows[8]["prompt"]
        assert len({key(drawn[0]), key(drawn[1])} & blocked.prompts) == 0
        assert drawn[0] != drawn[1]


def test_sources_are_blocked_by_their_name() -> None:
    draws = Draws(fake_trainer(), Defer(by="source"), lambda row: str(row["target"] % 2))
    odd = Blocked(sources={row_key("1"): 1.0})
    inputs = [dict(ROWS[i]) for i in (0, 1) for _ in range(4)]
    assert [row["target"] % 2 for row in inputs] == [0] * 4 + [1] * 4
    for number in range(50):
        rows = draws.swap(inputs, odd, number)
        assert rows[:4] == inputs[:4]
        assert all(row["target"] % 2 == 0 for row in rows)


def test_large_datasets_are_drawn_from_by_hash() -> None:
    """Twice as many rows as are permuted at once, half of them blocked: both halves of the dataset are reached."""

    class Rows:
        column_names = ("prompt",)

        def __len__(self) -> int:
            return 2 * SORTED_ROWS

        def __getitem__(self, index: int) -> dict[str, Any]:
            return {"prompt": f"{index}", "index": index}

    draws = Draws(fake_trainer(dataset=Rows()), Defer())
    blocked = RandomShare(share=0.5)
    held = next(f"{i}" for i in range(99) if blocked.holds(key(f"{i}")))
    drawn = [draws.swap([{"prompt": held, "index": 0}] * 4, blocked, number)[0] for number in range(400)]
    assert not any(blocked.holds(key(row["prompt"])) for row in drawn)
    assert 150 < sum(row["index"] < SORTED_ROWS for row in drawn) < 250
    # 400 of 8,192: 400^2 / (2 x 8,192) = 10 are expected to come twice.
    assert len({row["index"] for row in drawn}) > 375


def fake_trainer(*, rank: int = 0, world: int = 1, batch: int = 8, dataset: Any = None, **more: Any) -> Any:
    return SimpleNamespace(
        num_generations=4,
        accelerator=SimpleNamespace(process_index=rank, num_processes=world),
        args=SimpleNamespace(seed=7, per_device_train_batch_size=batch, steps_per_generation=1),
        train_dataset=tiny.dataset() if dataset is None else dataset,
        **more,
    )


def test_what_cannot_work_is_refused_at_attach() -> None:
    with pytest.raises(AttachError, match="multiple of num_generations"):
        Draws(fake_trainer(world=2, batch=6, dataset=stream()), Defer())
    Draws(fake_trainer(world=2, batch=8, dataset=stream()), Defer())
    Draws(fake_trainer(world=2, batch=6), Defer())
    with pytest.raises(AttachError, match="environment"):
        Draws(fake_trainer(environment_factories={"a": object}), Defer())
    with pytest.raises(AttachError, match="images"):
        Draws(fake_trainer(dataset=tiny.dataset().add_column("image", [0] * 12)), Defer())
    with pytest.raises(AttachError, match="source"):
        Draws(fake_trainer(), Defer(by="source"))


def test_rows_of_a_stream_that_json_would_change_are_not_kept() -> None:
    draws = Draws(fake_trainer(dataset=stream()), Defer())
    draws.swap([{"prompt": "a", "image": b"1"}] * 4 + [{"prompt": "b", "n": 1}] * 4, NOTHING, 0)
    saved = json.loads(json.dumps(draws.state()))
    assert saved == {"reservoir": [[key("b"), {"prompt": "b", "n": 1}]]}
    assert draws.state(text=False) == {"reservoir": []}


def test_two_processes_draw_alike(tmp_path: Path) -> None:
    """Real ranks (gloo): groups that straddle them hold one prompt, and blocked prompts are on neither."""
    tiny.saved_model(tmp_path)
    two_processes.run(Path(__file__), str(tmp_path))
    for name, batch in OF_TWO_RANKS:
        ranks = [json.loads((tmp_path / f"{name}-{rank}.json").read_text()) for rank in (0, 1)]
        given, drawn = (
            groups([a + b for a, b in zip(ranks[0][which], ranks[1][which], strict=True)])
            for which in ("given", "drawn")
        )
        assert len(drawn) == 8
        assert {len(rows) for rows in drawn} == {batch // 2}
        assert given[:2] == drawn[:2]
        held = set(prompts_of()[:4])
        assert not held & {prompt for rows in drawn[2:] for prompt in rows}
        assert held & {prompt for rows in given[2:] for prompt in rows}
        assert ranks[0]["kept"] == ranks[1]["kept"] == 0


def _one_rank(folder: Path) -> None:
    torch.set_num_threads(1)
    held = Blocked(prompts=frozenset(key(prompt) for prompt in prompts_of()[:4]))
    for name, batch in OF_TWO_RANKS:
        trained = tiny.trainer(
            folder / name,
            max_steps=8,
            per_device_train_batch_size=batch,
            train=stream() if name == "stream" else None,
        )
        swap = Swap(trained, dict.fromkeys(range(2, 99), held))
        trained.train()
        seen = {"given": swap.given, "drawn": swap.drawn, "kept": swap.draws.kept}
        (folder / f"{name}-{os.environ['RANK']}.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    _one_rank(Path(sys.argv[1]))
