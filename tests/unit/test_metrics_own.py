"""A family of metrics of the user's own beside the built-in ones: live, on several ranks, resumed, broken."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from simulated_ranks import Run, round_of

import rlmon
from rlmon.errors import ConfigError
from rlmon.extensions import Extensions
from rlmon.metrics import CompletionMetric, Metric, MetricFamily, Numbers, RankRows, StepSums
from rlmon.metrics.step import STAGES
from rlmon.monitor import Resume
from rlmon.records import RolloutBatch, StepRecord

DIGITS = CompletionMetric(
    "digits/share", lambda text: sum(mark.isdigit() for mark in text) / len(text), unit="share", low=0, high=1,
    bad="down", formula="characters of a completion that are digits",
)  # fmt: skip


class Longest(MetricFamily):
    """The longest completion of each rank, summed: a family with sums of its own and no number per row."""

    name = "longest"
    entries = (Metric("longest/characters", "characters", 0, None, "up", "", "", "local", "completions"),)

    def fields(self, modes: Sequence[str]) -> Mapping[str, Any]:
        return {"characters": (), "by_mode": (len(modes),)}

    def add_rows(self, sums: Any, seen: RankRows) -> None:
        sums["characters"] += max(len(text) for text in seen.batch.completions)

    def finish(self, out: Numbers, sums: Any, step: StepSums) -> None:
        out.put("longest/characters", sums["characters"], "nothing was written")


def of(**changes: Any) -> MetricFamily:
    """``Longest`` with something else in it."""
    return type("Other", (Longest,), changes)()


def batch(round_: int, completions: Sequence[str], first: int = 0) -> RolloutBatch:
    return RolloutBatch(
        round=round_,
        split="train",
        step=round_ + 1,
        group_size=2,
        global_row=range(first, first + len(completions)),
        prompt_id=[f"p{(first + i) // 2}" for i in range(len(completions))],
        source=["s"] * len(completions),
        prompts=["?"] * len(completions),
        completions=completions,
        reward=[float(i % 2) for i in range(len(completions))],
    )


def monitor(folder: Path, *families: MetricFamily, **settings: Any) -> rlmon.Monitor:
    return rlmon.Monitor(
        rlmon.RLMonConfig(rlmon_console=False), directory=folder, group_size=2,
        extensions=Extensions(metrics=families), **settings,
    )  # fmt: skip


def step(of: rlmon.Monitor, number: int, completions: Sequence[str] | None) -> StepRecord:
    if completions is not None:
        of.observe(batch(of.next_round("train"), completions))
    record = of.end_step(number)
    assert record is not None
    return record


TEXTS = ("11aa", "1aaa", "aaaa", "1111")
"""Shares of digits .5, .25, 0 and 1; by prompt .375 and .5."""


def test_a_number_per_completion_is_a_metric_and_a_statistic_of_blocks(tmp_path: Path) -> None:
    of = monitor(tmp_path, DIGITS, Longest())
    record = step(of, 1, TEXTS)
    assert record.metrics["digits/share"] == pytest.approx(1.75 / 4)
    assert record.metrics["digits/share_ratio_to_base"] == 1.0
    assert record.metrics["longest/characters"] == 4.0
    assert [block.stats["digits/share"] for block in record.blocks] == [pytest.approx(0.4375)]
    assert record.metrics["rlmon/health/reward_mean"] == 0.5, "the built-in ones are there as ever"
    again = step(of, 2, None)
    assert again.metrics["digits/share"] is None
    assert again.missing["digits/share"] == "no new generation was trained in this step"
    of.close()
    assert rlmon.open_run(tmp_path).step_records() == [record, again]


@pytest.mark.parametrize("value", [math.nan, math.inf, None])
def test_what_is_not_a_number_is_none_with_a_reason(tmp_path: Path, value: float | None) -> None:
    odd = CompletionMetric("odd/number", lambda text: value)
    record = step(monitor(tmp_path, odd), 1, TEXTS)
    assert record.metrics["odd/number"] is None
    assert record.missing["odd/number"] == "no completion of this step has a value"
    assert "odd/number" not in record.blocks[0].stats
    assert not record.faults


def test_one_that_breaks_is_a_counted_fault_of_its_own(tmp_path: Path) -> None:
    class Broken(Longest):
        name, entries = "broken", (Metric("broken/number", "", None, None, "none", "", "", "exact", ""),)

        def finish(self, out: Numbers, sums: Any, step: StepSums) -> None:
            raise KeyError("of the user's")

    division = CompletionMetric("division/share", lambda text: 1 / (len(text) - 4))
    of, plain = monitor(tmp_path / "run", division, DIGITS, Broken()), monitor(tmp_path / "plain")
    record, without = step(of, 1, TEXTS), step(plain, 1, TEXTS)
    assert record.faults == {"metrics.division/share": 1}
    assert record.missing["division/share"] == "metrics.division/share failed in this step"
    assert record.missing["broken/number"] == "metrics.broken failed in this step"
    assert record.metrics["digits/share"] is not None
    assert {name: record.metrics[name] for name in without.metrics} == dict(without.metrics)
    assert [block.stats.keys() - {"digits/share"} for block in record.blocks] == [
        b.stats.keys() for b in without.blocks
    ]
    assert step(of, 2, None).faults == {"metrics.broken": 1}, "what failed at the end of a step is of the next"
    said = {fault.place: fault.error for fault in rlmon.open_run(tmp_path / "run").faults}
    line = next(
        at
        for at, text in enumerate(Path(__file__).read_text().splitlines(), 1)
        if text.endswith('KeyError("of the user\'s")')
    )
    assert said["metrics.broken"] == f'KeyError: "of the user\'s" ({Path(__file__).name}:{line})'
    assert said["metrics.division/share"].startswith(f"ZeroDivisionError: division by zero ({Path(__file__).name}:")


def test_one_that_claims_what_is_not_its_own_gets_nothing(tmp_path: Path) -> None:
    class Claims(Longest):
        name, entries = "claims", ()

        def put_round(self, into: Any, seen: Any) -> None:
            into.put_mean("reward", seen.rows["reward"] + 5.0)
            into.put_mean("claims/rows", seen.rows["present"])

        def finish(self, out: Numbers, sums: Any, step: StepSums) -> None:
            out.put("rlmon/health/reward_mean", 7.0, "")

    class Shapeless(Longest):
        def fields(self, modes: Sequence[str]) -> Any:
            return {"characters": "many"}

    record, without = (step(monitor(tmp_path / str(len(own)), *own), 1, TEXTS) for own in ([Claims()], []))
    assert record.metrics == without.metrics
    assert [block.stats for block in record.blocks] == [block.stats for block in without.blocks]
    with pytest.raises(ConfigError, match="'longest' does not say its sums"):
        monitor(tmp_path / "shapeless", Shapeless())


@pytest.mark.parametrize("value", ["abc", [1.0, 2.0], {}, np.zeros(3), math.nan, "1.5"])
def test_a_value_that_is_no_number_costs_itself_alone(tmp_path: Path, value: Any) -> None:
    def finish(self: Any, out: Numbers, sums: Any, step: StepSums) -> None:
        out.metrics["longest/characters"] = value
        out.metrics["longest/other"] = 2.0

    own, plain = monitor(tmp_path / "own", of(finish=finish), DIGITS), monitor(tmp_path / "plain", DIGITS)
    record, without = step(own, 1, TEXTS), step(plain, 1, TEXTS)
    assert record.metrics == {**without.metrics, "longest/characters": None, "longest/other": 2.0}
    assert record.missing["longest/characters"]
    expected = {} if isinstance(value, float) else {"metrics.longest": 1}
    assert step(own, 2, TEXTS).faults == expected
    assert own.close() is None
    assert rlmon.open_run(tmp_path / "own").step_records()[0] == record


@pytest.mark.parametrize("values", ["abc", [0.5, 0.5, 0.5], 1.0])
def test_a_statistic_that_is_no_number_a_block_costs_itself_alone(tmp_path: Path, values: Any) -> None:
    def put(self: Any, into: Any, seen: Any) -> None:
        into.stats["longest/share"] = values

    record, without = (
        step(monitor(tmp_path / name, *own), 1, TEXTS) for name, own in (("a", [of(put_round=put)]), ("b", []))
    )
    assert [block.stats for block in record.blocks] == [block.stats for block in without.blocks]
    assert record.blocks


@pytest.mark.parametrize("add", [lambda self, sums, seen: sums.__setitem__("characters", np.ones(3))])
def test_sums_of_another_shape_cost_themselves_alone(tmp_path: Path, add: Any) -> None:
    record = step(monitor(tmp_path, of(add_rows=add), DIGITS), 1, TEXTS)
    assert record.faults == {"metrics.longest": 1}
    assert record.metrics["digits/share"] is not None


@pytest.mark.parametrize(
    ("families", "told"),
    [
        ((CompletionMetric("text", len),), "name = 'my_text'"),
        ((DIGITS, DIGITS), "two that are called 'digits/share'"),
        ((CompletionMetric("rlmon/mine", len),), "call it"),
        ((CompletionMetric("reward", len),), "call it <family>/reward"),
        *(((of(name=name),), "like a part of rlmon") for name in STAGES if name != "kl"),
        ((of(name=None),), "has no name"),
        ((of(entries=["mine/x"]),), r"Type: entries = \(Metric"),
        ((of(entries=(Metric("bare", "", None, None, "none", "", "", "exact", ""),)),), "call it longest/bare"),
        ((of(columns="mine/x"),), "Type: columns"),
        ((of(base=("total",)),), "base names 'total'"),
        ((of(fields=lambda *_: ["characters"]),), "does not say its sums"),
        ((of(fields=lambda *_: {"characters": np.dtype("i8")}),), "is not of float64"),
    ],
)
def test_names_that_others_have_are_refused(tmp_path: Path, families: Any, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        monitor(tmp_path, *families)


def test_a_checkpoint_goes_on_with_it_and_without_it(tmp_path: Path) -> None:
    def state(of: rlmon.Monitor) -> Any:
        return {"shared": of.shared_state(), "rank": of.rank_state()}

    whole, cut = monitor(tmp_path / "whole", DIGITS), monitor(tmp_path / "cut", DIGITS)
    expected = [step(whole, number, TEXTS[number % 2 :] * 2) for number in (1, 2, 3)]
    for number in (1, 2):
        step(cut, number, TEXTS[number % 2 :] * 2)
    saved = state(cut)
    cut.close()
    again = monitor(tmp_path / "cut", DIGITS, resume=Resume(step=2, state=saved))
    assert step(again, 3, TEXTS[1:] * 2).metrics == expected[2].metrics
    without = monitor(tmp_path / "without", resume=Resume(step=2, state=saved))
    record = step(without, 3, TEXTS[1:] * 2)
    assert record.metrics == {name: v for name, v in expected[2].metrics.items() if name.startswith("rlmon/")}
    joined = monitor(tmp_path / "joined", DIGITS, Longest(), resume=Resume(step=3, state=state(without)))
    assert step(joined, 4, TEXTS).metrics["digits/share"] == pytest.approx(1.75 / 4)


def test_a_checkpoint_of_before_there_were_families_gives_back_the_same_baseline(tmp_path: Path) -> None:
    """Version 2 kept four sums by names of their own, two of them as one, and numbers as lists of one."""
    whole, cut = monitor(tmp_path / "whole"), monitor(tmp_path / "cut")
    expected = [step(whole, number, TEXTS) for number in (1, 2)][1]
    step(cut, 1, TEXTS)
    shared = cut.shared_state()
    sums = shared["base_sums"]
    old = {
        "mode_count": sums["format/mode_count"],
        "openers": sums["moves/openers"],
        "opener_tokens": [sums["moves/tokens"]],
        "entropy": [sums["entropy/nats"], sums["entropy/tokens"]],
    }
    before = {"shared": shared | {"version": 2, "base_sums": old}, "rank": cut.rank_state()}
    again = monitor(tmp_path / "again", DIGITS, resume=Resume(step=1, state=before))
    assert again.shared_state()["base_sums"] == sums
    assert step(again, 2, TEXTS).metrics | {"digits/share": None, "digits/share_ratio_to_base": None} == {
        **expected.metrics, "digits/share": None, "digits/share_ratio_to_base": None,
    }  # fmt: skip


def test_all_ranks_hold_the_same(tmp_path: Path) -> None:
    names = ["a", "b"]
    rounds = [round_of(number, sources=names, prompts=8, group=4, narrow={}) for number in range(3)]
    one, two = (
        Run(tmp_path / str(world), world, rounds, group=4, extensions=Extensions(metrics=[DIGITS])) for world in (1, 2)
    )
    for alone, first, second in zip(one.records[0], *two.records, strict=True):
        assert first.metrics == second.metrics
        assert first.blocks == second.blocks == alone.blocks
        assert first.metrics["digits/share"] == pytest.approx(alone.metrics["digits/share"], rel=1e-12)
        assert all("digits/share" in block.stats for block in first.blocks if "reward" in block.stats)
    one.close()
    two.close()


class Counts(Longest):
    """Completions, and the same of the baseline; fails in the rounds that it is told to."""

    name, base = "counts", ("characters",)
    entries = (Metric("counts/rows", "completions", 0, None, "none", "", "", "exact", "completions"),)

    def __init__(self, *fails: int) -> None:
        self.fails = fails

    def fields(self, modes: Sequence[str]) -> Mapping[str, Any]:
        return {"characters": ()}

    def add_rows(self, sums: Any, seen: RankRows) -> None:
        if seen.batch.round in self.fails and seen.batch.global_row[0] != 0:
            raise ZeroDivisionError("on purpose")
        sums["characters"] += len(seen.batch)

    def finish(self, out: Numbers, sums: Any, step: StepSums) -> None:
        out.put("counts/rows", sums["characters"], "none")


def test_what_failed_on_one_rank_is_null_on_all_and_not_half_of_a_number(tmp_path: Path) -> None:
    rounds = [round_of(number, sources=["a"], prompts=4, group=4, narrow={}) for number in range(4)]
    run = Run(tmp_path, 2, rounds, group=4, extensions=Extensions(metrics=[Counts(1)]))
    for records in run.records:
        assert [record.metrics["counts/rows"] for record in records] == [16.0, None, 16.0, 16.0]
        assert records[1].missing["counts/rows"] == "metrics.counts failed in this step"
        assert records[1].faults == {"metrics.counts": 1}
    base = run.monitors[0].shared_state()["base_sums"]
    assert base["counts/characters"] == 48.0, "the round in which it failed is no part of its base"
