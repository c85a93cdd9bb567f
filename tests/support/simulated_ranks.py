"""Ranks as threads in one process: one monitor each, and collectives that wait for all of them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

import rlmon
from rlmon.metrics.tokens import ExactKL
from rlmon.monitor import About, Ranks, Resume
from rlmon.records import Action, RolloutBatch, StepRecord

TEXTS = (
    "Ann has {n} figs now. So Ben has more.",
    "7 + 9 = \\boxed{{{n}}}. That is all.",
    "print({n})",
    '{{"answer": {n}}}',
    "1. Add {n} and 9\n2. Get it",
    "<answer>{n}</answer>",
)


class Collectives:
    """Sum, stack and share over threads. Each rank gets a copy of its own."""

    def __init__(self, world: int) -> None:
        self._barrier = threading.Barrier(world, timeout=60)
        self._given: list[Any] = [None] * world

    def _exchange(self, rank: int, value: Any) -> list[Any]:
        self._given[rank] = value
        self._barrier.wait()
        every = list(self._given)
        self._barrier.wait()
        return every

    def of(self, rank: int) -> dict[str, Callable[[Any], Any]]:
        return {
            "reduce": lambda vector: np.sum(self._exchange(rank, vector), axis=0),
            "gather": lambda matrix: np.concatenate(self._exchange(rank, matrix)),
            "share": lambda value: self._exchange(rank, value)[0],
        }


class Actuators:
    """Two knobs that remember what they were set to."""

    def __init__(self) -> None:
        self.beta = self.entropy_coef = 0.0

    def values(self) -> Mapping[str, float]:
        return {"beta": self.beta, "entropy_coef": self.entropy_coef}

    def apply(self, action: Action, settings: Any) -> None:
        if action.knob in ("beta", "entropy_coef"):
            setattr(self, action.knob, float(action.new or 0.0))

    def rest(self, settings: Any) -> None:
        return None

    def state(self) -> Mapping[str, Any]:
        return self.values()

    def load(self, state: Mapping[str, Any]) -> None:
        self.beta, self.entropy_coef = state["beta"], state["entropy_coef"]


def round_of(number: int, *, sources: Sequence[str], prompts: int, group: int, narrow: Mapping[str, float]) -> Any:
    """The whole round as columns. ``narrow``: by source, the share of completions that are python alone."""
    rng = np.random.default_rng(number)
    rows = prompts * group
    source = [sources[(number + i // group) % len(sources)] for i in range(rows)]
    texts = []
    for i in range(rows):
        kind = 2 if rng.random() < narrow.get(source[i], 0.0) else int(rng.integers(len(TEXTS)))
        texts.append(TEXTS[kind].format(n=int(rng.integers(90))))
    reward = (rng.random(rows) < rng.choice([0.0, 0.1, 0.5, 1.0], prompts).repeat(group)).astype(float).tolist()
    return {
        "prompt_id": [f"{source[i]}-{(number * prompts + i // group) % (3 * prompts)}" for i in range(rows)],
        "source": source,
        "prompts": [f"What is {i // group}?" for i in range(rows)],
        "completions": texts,
        "completion_ids": [[ord(mark) % 128 for mark in text] for text in texts],
        "reward": [None if i == 3 and number % 5 == 0 else value for i, value in enumerate(reward)],
        "advantages": (np.array(reward) - np.array(reward).reshape(prompts, group).mean(1).repeat(group)).tolist(),
        "truncated": [False] * rows,
        "entropies": rng.random((rows, 6)) * (1.0 - 0.9 * max(narrow.values(), default=0.0)),
        "kl": rng.random((rows, 3)),
    }


class Run:
    """What came of a stream of rounds on ``world`` ranks, rank by rank."""

    def __init__(
        self,
        folder: Path,
        world: int,
        rounds: Sequence[Mapping[str, Any]],
        *,
        group: int,
        policy: Any = None,
        first_step: int = 0,
        states: Sequence[Any] | None = None,
        mini_batches: int = 1,
        extensions: Any = None,
        **about: Any,
    ) -> None:
        collectives = Collectives(world)
        folder.mkdir(exist_ok=True)
        (folder / "secret").write_text(bytes(range(32)).hex())  # else keys of answers and templates are a run's own
        self.folder = folder
        self.records: list[list[StepRecord]] = [[] for _ in range(world)]
        self.effects: list[list[Any]] = [[] for _ in range(world)]
        self.monitors: list[rlmon.Monitor] = [None] * world  # type: ignore[list-item]

        def one(rank: int) -> None:
            torch.set_num_threads(1)
            monitor = rlmon.Monitor(
                rlmon.RLMonConfig(rlmon_console=False),
                directory=folder,
                group_size=group,
                about=About(total_steps=400, vocabulary=[chr(i) for i in range(128)], **about),
                ranks=Ranks(rank=rank, world_size=world, **(collectives.of(rank) if world > 1 else {})),
                resume=Resume(step=first_step or None, state=None if states is None else states[rank]),
                policy=policy,
                actuators=None if policy is None else Actuators(),
                extensions=extensions,
            )
            self.monitors[rank] = monitor
            for at, whole in enumerate(rounds, start=first_step):
                self._step(monitor, rank, world, at, whole, group, mini_batches)

        with ThreadPoolExecutor(world) as pool:
            for done in [pool.submit(one, rank) for rank in range(world)]:
                done.result()

    def _step(
        self, monitor: rlmon.Monitor, rank: int, world: int, at: int, whole: Any, group: int, mini_batches: int
    ) -> None:
        count = len(whole["source"]) // world
        mine = slice(rank * count, (rank + 1) * count)
        number = monitor.next_round("train")
        columns = {name: values[mine] for name, values in whole.items() if name not in ("entropies", "kl")}
        batch = RolloutBatch(
            round=number,
            split="train",
            step=at + 1,
            group_size=group,
            global_row=range(mine.start, mine.stop),
            **columns,
        )
        monitor.observe(batch)
        self.effects[rank].append(monitor.steer(batch, count))
        rows = np.array_split(np.arange(count), mini_batches)[at % mini_batches] if mini_batches > 1 else range(count)
        entropies = torch.tensor(whole["entropies"][mine][rows])
        rows_B2 = [[number, int(row)] for row in rows]
        monitor.observe_tokens(
            split="train", rows_B2=rows_B2, logps_BT=-entropies, entropies_BT=entropies,
            mask_BT=torch.ones_like(entropies), advantages_B=torch.zeros(len(rows_B2)),
        )  # fmt: skip
        kl = whole["kl"][mine][rows]
        if at % 5 == 0:
            flat = kl.reshape(-1)
            monitor.observe_kl(
                rows_b2=rows_B2, sampled_b=np.full(len(rows_B2), 3), tokens_b=np.full(len(rows_B2), 6),
                result=ExactKL(flat, flat, flat, -flat, -flat), seconds=0.0,
            )  # fmt: skip
        record = monitor.end_step(at + 1)
        assert record is not None
        self.records[rank].append(record)

    def state(self, rank: int = 0) -> dict[str, Any]:
        """As a checkpoint holds it."""
        monitor = self.monitors[rank]
        return {"shared": monitor.shared_state(), "rank": monitor.rank_state()}

    def close(self) -> None:
        for monitor in self.monitors:
            monitor.close()
