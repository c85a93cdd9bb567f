"""One stream of rounds, split over 1, 2, 4 and 8 ranks: the same records, findings, acts and checkpoints."""

from __future__ import annotations

import base64
import copy
import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import steered
import torch
from simulated_ranks import Collectives, Run, round_of

import rlmon
from rlmon import exchange
from rlmon.controller import load_policy
from rlmon.keys import KEY_MASK, source_key
from rlmon.metrics.catalog import METRICS
from rlmon.metrics.ledger import SolveLedger
from rlmon.monitor import Ranks
from rlmon.records import RolloutBatch, StepRecord

LOCAL = {metric.name for metric in METRICS if metric.kind == "local"}
ROUNDS = 16


def policy(*names: str, **rules: Any) -> Any:
    return load_policy(steered.rules(*names, **rules))


def told(record: StepRecord) -> dict[str, Any]:
    """Of a record what must be the same to the last bit."""
    left_out = ("time_unix_seconds", "overhead_seconds", "base_forward_seconds", "metrics", "missing")
    return {
        field.name: getattr(record, field.name) for field in dataclasses.fields(record) if field.name not in left_out
    }


def assert_alike(one: Any, other: Any, where: str = "") -> None:
    """JSON-like values: equal, numbers to 1e-9."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_alike(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        assert len(one) == len(other), where
        for at, (a, b) in enumerate(zip(one, other, strict=True)):
            assert_alike(a, b, f"{where}[{at}]")
    elif isinstance(one, float) and isinstance(other, float):
        assert one == pytest.approx(other, rel=1e-9, abs=1e-9, nan_ok=True), where
    else:
        assert one == other, where


def assert_same_run(alone: Run, split: Run) -> None:
    for rank, (records, monitor) in enumerate(zip(split.records, split.monitors, strict=True)):
        assert len(records) == len(alone.records[0])
        for mine, whole in zip(records, alone.records[0], strict=True):
            assert told(mine) == told(whole), (rank, whole.step)
            for name, value in whole.metrics.items():
                if name not in LOCAL:
                    assert_alike(mine.metrics[name], value, f"step {whole.step} {name}")
        assert_alike(
            [dataclasses.asdict(found) for found in monitor.findings],
            [dataclasses.asdict(found) for found in alone.monitors[0].findings],
        )
        assert_alike(monitor.shared_state(), split.monitors[0].shared_state())
    states = [run.monitors[0].shared_state() for run in (split, alone)]
    for state in filter(lambda state: state["steering"] is not None, states):
        state["steering"].pop("unconfirmed")  # on several ranks an act is confirmed one step later
    assert_alike(*states, "state")


def acts(run: Run) -> list[tuple[Any, ...]]:
    """What was decided when, by rule and knob."""
    return [
        (act.step, act.rule, act.knob, act.old, act.new, act.reason)
        for act in rlmon.open_run(run.folder).actions
        if act.phase == "decided"
    ]


def late(number: int, names: Sequence[str]) -> Sequence[str]:
    """The last quarter of the sources begins at round 9."""
    return names if number >= 9 else names[: max(1, len(names) * 3 // 4)]


@pytest.mark.parametrize(
    ("sources", "worlds"), [(4, (2, 8)), pytest.param(4, (4,), marks=pytest.mark.slow), (16, (8,))]
)
def test_what_is_read_does_not_depend_on_how_many_ranks_there_are(
    tmp_path: Path, sources: int, worlds: Sequence[int]
) -> None:
    names = [f"täsk {i}" for i in range(sources)]
    rounds = [
        round_of(number, sources=late(number, names), prompts=18, group=4, narrow={"täsk 1": min(1.0, number / 12)})
        for number in range(ROUNDS)
    ]
    rules = policy("hold", "apart", "spread", "suspect", "bound")
    alone = Run(tmp_path / "1", 1, rounds, group=4, policy=rules)
    assert not any(record.faults for record in alone.records[0])
    assert {block.source for record in alone.records[0] for block in record.blocks} == set(
        alone.monitors[0].shared_state()["sources"]
    )
    # On 2 ranks 36 rows are 9 whole groups; on 4 and 8 groups of four straddle ranks of 18 and 9 rows.
    for world in worlds:
        split = Run(tmp_path / str(world), world, rounds, group=4, policy=rules)
        assert_same_run(alone, split)
        assert [rule.off for rule in [monitor.controller for monitor in split.monitors]] == [None] * world
        split.close()
        assert_alike(acts(split), acts(alone))
        assert {act[1] for act in acts(split)} >= {"hold", "apart", "bound"}
        assert rlmon.open_run(split.folder).rollouts().num_rows == ROUNDS * 72


@pytest.mark.parametrize(("over", "until"), [(20, 30), pytest.param(40, 75, marks=pytest.mark.slow)])
def test_a_source_that_collapses_is_found_at_the_same_steps(tmp_path: Path, over: int, until: int) -> None:
    """With 8 ranks of one prompt each and 4 sources no rank holds a pair of prompts of one source, and no rank has met
    all names when the round begins."""
    names = [f"task {i}" for i in range(4)]
    found = []
    for world in (1, 8):
        rounds = (
            round_of(number, sources=names, prompts=8, group=8, narrow={"task 2": min(1.0, number / over)})
            for number in range(until)
        )
        run = Run(tmp_path / str(world), world, list(rounds), group=8)
        run.close()
        for monitor in run.monitors:
            found.append([(one.detector, one.severity, one.step, one.source) for one in monitor.findings])
        assert [dataclasses.asdict(one) for one in run.monitors[0].findings] == [
            dataclasses.asdict(one) for one in rlmon.open_run(run.folder).findings
        ]
    assert all(one == found[0] for one in found)
    severities = [severity for detector, severity, _, source in found[0] if source == "task 2"]
    assert {"warn", "fail"} <= set(severities)


def test_lone_successes_weigh_the_same_on_any_number_of_ranks(tmp_path: Path) -> None:
    """One success in 64 draws of each prompt, and few attempts of each on any one rank."""
    rounds = []
    for number in range(12):
        whole = round_of(number, sources=["all"], prompts=16, group=4, narrow={})
        lone = [float(i == 4 * (number % 16)) for i in range(64)]
        whole |= {
            "prompt_id": [f"p{(i // 4 + 4 * number) % 16}" for i in range(64)],
            "reward": lone,
            "advantages": [0.75 if value else -0.25 * (i // 4 == number % 16) for i, value in enumerate(lone)],
        }
        rounds.append(whole)
    weights = []
    for world in (1, 2, 16):
        run = Run(tmp_path / str(world), world, rounds, group=4)
        run.close()
        weights.append([record.metrics["rlmon/group/lone_success_weight"] for record in run.records[-1]])
    assert weights[1] == weights[2] == pytest.approx(weights[0])
    # The lone success has .75 of 1.5, and its prompt is hard once there are enough failures.
    assert weights[0][0] == 0.0
    assert weights[0][-1] == pytest.approx(0.5)


def test_a_run_goes_on_with_another_number_of_ranks(tmp_path: Path) -> None:
    names = [f"task {i}" for i in range(4)]
    rounds = [round_of(number, sources=names, prompts=8, group=4, narrow={}) for number in range(10)]
    whole = Run(tmp_path / "whole", 1, rounds, group=4)
    before = Run(tmp_path / "cut", 2, rounds[:6], group=4)
    states = [before.state(0), *[before.state(1) | {"rank": None}] * 3]
    before.close()
    after = Run(tmp_path / "cut", 4, rounds[6:], group=4, first_step=6, states=states)
    for mine, other in zip(after.records[3], whole.records[0][6:], strict=True):
        assert told(mine) | {"attempt": 0, "sources": {}} == told(other)
        assert_alike(
            {name: mine.metrics[name] for name in mine.metrics if name not in LOCAL},
            {name: other.metrics[name] for name in mine.metrics if name not in LOCAL},
        )
    assert_alike(after.monitors[2].shared_state(), whole.monitors[0].shared_state())


def test_a_step_may_train_on_a_part_of_its_round(tmp_path: Path) -> None:
    """Four steps a round: what is trained on later is known by the rows that were observed before."""
    rounds = [round_of(number, sources=["a", "b"], prompts=8, group=4, narrow={}) for number in range(6)]
    runs = [Run(tmp_path / str(world), world, rounds, group=4, mini_batches=4) for world in (1, 2)]
    for mine, other in zip(runs[1].records[1], runs[0].records[0], strict=True):
        kinds = [sorted(block.stats) for block in mine.blocks if "entropy_nats" in block.stats]
        assert kinds
        rollout_blocks = [[block for block in one.blocks if "mode_collision" in block.stats] for one in (mine, other)]
        assert rollout_blocks[0] == rollout_blocks[1]


def test_entropy_of_right_answers_is_that_of_the_rows_whatever_step_trains_on_them(tmp_path: Path) -> None:
    """A round of 16 rows over two steps. On two ranks neither knows at first what a success is: both decide by what
    they exchanged."""
    rng = np.random.default_rng(0)
    reward, nats = (rng.random(16) < 0.5).astype(float), rng.random((16, 4))
    columns = {
        "round": 0, "split": "train", "step": 1, "group_size": 4, "source": ["s"] * 16, "prompts": ["q"] * 16,
        "prompt_id": [f"p{row // 4}" for row in range(16)], "completions": [f"a {row}" for row in range(16)],
        "reward": reward.tolist(), "global_row": list(range(16)),
    }  # fmt: skip

    def one(collectives: Collectives | None, rank: int, world: int) -> list[StepRecord]:
        monitor = rlmon.Monitor(
            rlmon.RLMonConfig(rlmon_console=False), directory=tmp_path / str(world), group_size=4,
            ranks=Ranks(rank=rank, world_size=world, **({} if collectives is None else collectives.of(rank))),
        )  # fmt: skip
        mine, count = slice(rank * 16 // world, (rank + 1) * 16 // world), 16 // world
        monitor.observe(RolloutBatch(**{k: v[mine] if isinstance(v, list) else v for k, v in columns.items()}))
        records = []
        for step, rows in enumerate(np.split(np.arange(count), 2)):
            entropies = torch.tensor(nats[mine][rows])
            monitor.observe_tokens(
                split="train", rows_B2=[[0, int(row)] for row in rows], logps_BT=None, entropies_BT=entropies,
                mask_BT=torch.ones_like(entropies),
            )  # fmt: skip
            records.append(monitor.end_step(step + 1))
        monitor.close()
        return records

    collectives = Collectives(2)
    with ThreadPoolExecutor(2) as pool:
        both = [done.result() for done in [pool.submit(one, collectives, rank, 2) for rank in range(2)]]
    trained_on = {1: ([*range(8)], [*range(8, 16)]), 2: ([*range(4), *range(8, 12)], [*range(4, 8), *range(12, 16)])}
    for world, records in ((1, one(None, 0, 1)), (2, both[0]), (2, both[1])):
        for record, rows in zip(records, trained_on[world], strict=True):
            right = [row for row in rows if reward[row]]
            assert record.metrics["rlmon/entropy/mean_correct"] == pytest.approx(nats[right].mean())
            assert record.metrics["rlmon/entropy/mean"] == pytest.approx(nats[rows].mean())


def test_more_rows_than_enter_are_chosen_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 32 groups a round 16 enter, evenly spread: each second one."""
    monkeypatch.setattr(exchange, "ROWS_A_STEP", 64)
    rounds = [round_of(number, sources=["a", "b", "c"], prompts=32, group=4, narrow={}) for number in range(4)]
    runs = [Run(tmp_path / str(world), world, rounds, group=4, rows_per_round=128) for world in (1, 2, 8)]
    for run in runs:
        assert [told(record) for record in run.records[-1]] == [told(record) for record in runs[0].records[0]]
        (record, *_) = run.records[-1]
        assert record.metrics["rlmon/group/coverage"] == 0.5
        assert sum(block.completions for block in record.blocks if "mode_collision" in block.stats) == 64
        assert record.completions == 128
        assert not record.faults


def by_hand(world: int, folder: Path, change: Any, steps: int = 5, **config: Any) -> list[tuple[Any, list[Any]]]:
    """Monitor and records of ranks of 16 rows; ``change(rank, step, columns)`` gives the columns of a rank's batch, or
    ``None`` where it fails to observe."""
    collectives = Collectives(world)

    def one(rank: int) -> tuple[Any, list[Any]]:
        monitor = rlmon.Monitor(
            rlmon.RLMonConfig(rlmon_console=False, **config),
            directory=folder, group_size=4, ranks=Ranks(rank=rank, world_size=world, **collectives.of(rank)),
        )  # fmt: skip
        records = []
        for step in range(steps):
            reward = (np.random.default_rng(step).random(16 * world) < 0.4).astype(float).tolist()
            columns = change(rank, step, {"global_row": list(range(16 * rank, 16 * rank + 16)), "reward": reward})
            if columns is not None:
                mine = columns["global_row"]
                fixed = {
                    "round": step, "split": "train", "step": step + 1, "group_size": 4,
                    "prompt_id": [f"p{i // 4}-{step}" for i in mine], "source": ["s"] * len(mine),
                    "prompts": ["q"] * len(mine), "completions": [f"a {reward[i]}" for i in mine],
                    "rewards": {"acc": [columns["reward"][i] for i in mine]} if mine else {},
                }  # fmt: skip
                own = {"reward": [columns["reward"][i] for i in mine]}
                monitor.observe(RolloutBatch(**(fixed | columns | own)))
            records.append(monitor.end_step(step + 1))
        monitor.close()
        return monitor, records

    with ThreadPoolExecutor(world) as pool:
        return [done.result() for done in [pool.submit(one, rank) for rank in range(world)]]


def assert_ranks_agree(ranks: Sequence[tuple[Any, list[Any]]]) -> None:
    (first, records), *others = ranks
    for monitor, mine in others:
        for record, expected in zip(mine, records, strict=True):
            assert record.blocks == expected.blocks
            for kind in ("metrics", "missing"):
                one, other = (
                    {name: value for name, value in getattr(at, kind).items() if name not in LOCAL}
                    for at in (record, expected)
                )
                assert one == other
        assert monitor.shared_state() == first.shared_state()


@pytest.mark.parametrize("success", [None, "acc", "acc>0.5", "ac"])
@pytest.mark.parametrize("without", [0, 1])
def test_a_rank_without_rows_decides_what_the_others_do(tmp_path: Path, success: Any, without: int) -> None:
    def change(rank: int, step: int, columns: Any) -> Any:
        if rank != without:
            return columns
        return None if step % 3 == 1 else columns | {"global_row": []}

    ranks = by_hand(2, tmp_path, change, rlmon_success=success)
    assert_ranks_agree(ranks)
    (monitor, records), _ = ranks
    says = str(monitor._state.successes.definition)
    if success == "ac":
        assert "Did you mean acc?" in says
    else:
        assert says == "acc above 0.5"
        assert records[-1].metrics["rlmon/group/hard_share"] is not None
    assert not any(record.faults for record in records)


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("kind", ["plain", "graded", "penalty"])
@pytest.mark.parametrize("failing", [(0, 0), (1, 3)])
def test_a_rank_that_missed_a_round_goes_on_with_the_definition_of_the_others(
    tmp_path: Path, failing: tuple[int, int], kind: str, whole: bool
) -> None:
    """A rank that fails to observe a round has not seen what the others decided by: it takes theirs."""

    def change(rank: int, step: int, columns: Any) -> Any:
        if (rank, step) == failing:
            return None
        reward = columns["reward"]
        if kind == "graded":  # {0, .2} at first, more values later
            reward = [0.2 * value + 0.1 * (step > 0) for value in reward]
        if kind == "penalty":  # a goal that was never met, until the round that one rank misses shows another value
            reward = [-0.4 * value if step >= 3 else 0.0 for value in reward]
        rounds = {"round_reward": reward, "round_rewards": {"acc": [0.0] * 16 + [1.0] * 16, "b": reward}}
        return columns | {"reward": reward} | (rounds if whole else {})

    assert_ranks_agree(by_hand(2, tmp_path, change))


def as_version_1(state: Mapping[str, Any], prompts: Sequence[str], names: Sequence[str]) -> Any:
    """A checkpoint as rlmon 0.1 wrote it: sources by name, 64-bit keys, sums in one vector, a ledger of each rank's."""
    shared = copy.deepcopy(state["shared"])
    of_key = {source_key(name): name for name in names}
    ledger, counts = shared.pop("ledger"), shared.pop("baseline")
    whole = {hashlib.blake2b(prompt.encode(), digest_size=8).digest() for prompt in prompts}
    by_key = {int.from_bytes(key, "little") & KEY_MASK: int.from_bytes(key, "little") for key in whole}
    keys = np.frombuffer(base64.b64decode(ledger["key"]), dtype=np.uint64)
    long = np.array([by_key[int(key)] for key in keys], dtype=np.uint64)
    sums = {name: np.array(value) for name, value in shared["base_sums"].items()}
    modes = sums["format/mode_count"].size
    # The sums of then, one behind the other; only these were read of the baseline.
    vector = np.concatenate(
        [
            *(np.zeros(2), sums["format/mode_count"], np.zeros(4 * modes + 9 + 8 * 4 + 10 * 4)),
            *(sums["moves/openers"], [sums["moves/tokens"]], np.zeros(12 + 2 + 212 + 2 + 2 + 2 + 20 + 161)),
            *([sums["entropy/nats"], sums["entropy/tokens"]], np.zeros(50)),
        ]
    )
    shared |= {
        "version": 1,
        "base_counts": [counts["prompts"], counts["completions"], counts["rounds"]],
        "base_sums": vector.tolist(),
        "base_examples": {},
    }
    shared.pop("sources")
    shared["detectors"]["sources"] = [of_key[key] for key in shared["detectors"]["sources"]]
    shared["detectors"].pop("names")
    ledger |= {
        "key": base64.b64encode(long.tobytes()).decode(),
        "sources": [of_key[key] for key in ledger["sources"]],
    }
    return {"shared": shared, "rank": {"version": 1, "ledger": ledger}}


def test_a_checkpoint_of_the_version_before_is_read_alike_by_all_ranks(tmp_path: Path) -> None:
    names = [f"task {i}" for i in range(3)]
    rounds = [round_of(number, sources=names, prompts=8, group=4, narrow={"task 0": 0.5}) for number in range(12)]
    whole = Run(tmp_path / "whole", 1, rounds, group=4)
    before = Run(tmp_path / "cut", 1, rounds[:6], group=4)
    before.close()
    prompts = [prompt for one in rounds for prompt in one["prompt_id"]]
    old = as_version_1(before.state(), prompts, names)
    # Rank 1's own ledger knew other prompts: all take rank 0's.
    other = {"shared": old["shared"], "rank": {"version": 1, "ledger": SolveLedger().state()}}
    after = Run(tmp_path / "cut", 2, rounds[6:], group=4, first_step=6, states=[old, other])
    for record, expected in zip(after.records[1], whole.records[0][6:], strict=True):
        assert record.blocks == expected.blocks
        assert_alike(
            record.metrics["rlmon/group/lone_success_weight"], expected.metrics["rlmon/group/lone_success_weight"]
        )
    mine, expected_state = (run.monitors[0].shared_state() for run in (after, whole))
    assert_alike(mine["ledger"], expected_state["ledger"])
    assert_alike(mine["detectors"], expected_state["detectors"])
    assert_alike(mine["base_sums"], expected_state["base_sums"])
