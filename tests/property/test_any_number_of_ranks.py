"""One stream of rounds, split over 1, 2, 4 and 8 ranks: the same records, findings, acts and checkpoints."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import steered
from simulated_ranks import Run, round_of

import rlmon
from rlmon.metrics.catalog import METRICS
from rlmon.records import StepRecord
from rlmon.steering import load_policy

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
    for state in states:
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


@pytest.mark.parametrize(("sources", "worlds"), [(4, (2, 4, 8)), (16, (8,))])
def test_what_is_read_does_not_depend_on_how_many_ranks_there_are(
    tmp_path: Path, sources: int, worlds: Sequence[int]
) -> None:
    names = [f"täsk {i}" for i in range(sources)]
    rounds = [
        round_of(number, sources=late(number, names), prompts=18, group=4, narrow={"täsk 1": min(1.0, number / 12)})
        for number in range(ROUNDS)
    ]
    rules = policy("hold", "spread", "suspect", "bound")
    alone = Run(tmp_path / "1", 1, rounds, group=4, policy=rules)
    assert not any(record.faults for record in alone.records[0])
    assert {block.source for record in alone.records[0] for block in record.blocks} == set(
        alone.monitors[0].shared_state()["sources"]
    )
    # On 2 ranks 36 rows are 9 whole groups; on 4 and 8 groups of four straddle ranks of 18 and 9 rows.
    for world in worlds:
        split = Run(tmp_path / str(world), world, rounds, group=4, policy=rules)
        assert_same_run(alone, split)
        assert [rule.off for rule in [monitor.steering for monitor in split.monitors]] == [None] * world
        split.close()
        assert_alike(acts(split), acts(alone))
        assert {act[1] for act in acts(split)} >= {"hold", "bound"}
        assert rlmon.open_run(split.folder).rollouts().num_rows == ROUNDS * 72
