"""What a sample of the base is to detectors, to the sums of the base, to the log and to an audit of it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import made_records
import make_runlog
import numpy as np
import pytest

from rlmon.audit.readers import open_source, rlmon_log
from rlmon.baseline import Baseline
from rlmon.config import RLMonConfig
from rlmon.detectors import describe, start, state_from_json, state_to_json, status, step
from rlmon.errors import ConfigError, RunLogError
from rlmon.metrics import CompletionMetric
from rlmon.metrics.families import WATCHING
from rlmon.metrics.rows import ROW
from rlmon.metrics.step import Families
from rlmon.monitor import About, Monitor
from rlmon.monitor.base import BaseSums
from rlmon.monitor.base_sample import as_one_round
from rlmon.records import BaseSample, Block, RolloutBatch, StepRecord
from rlmon.report.live import View
from rlmon.runlog import RunLogWriter, open_run
from rlmon.runlog.lines import build_step, checked_step


def blocks(count: int, wiggle: float = 0.05, source: str = "a", **stats: float) -> tuple[Block, ...]:
    return tuple(
        Block(
            source=source,
            prompts=4,
            completions=32,
            stats={name: value * (1 + (wiggle if i % 2 else -wiggle)) for name, value in stats.items()},
        )
        for i in range(count)
    )


SAMPLE = BaseSample(prompts=32, completions=256, blocks=blocks(8, mode_collision=0.25, mode_collision_within=0.3))


def records(steps: int, base: BaseSample | None = SAMPLE, **stats: float) -> list[StepRecord]:
    made = [made_records.made_step(at, blocks=blocks(4, **stats)) for at in range(1, steps + 1)]
    return [dataclasses.replace(made[0], base=base), *made[1:]]


def folded(given: list[StepRecord]) -> tuple[Any, list[Any]]:
    state, said = start(alpha=0.01, total_steps=200, group_size=8), []
    for record in given:
        state, found = step(state, record)
        said += found
    return state, said


# -- detectors ---------------------------------------------------------------------------------------------------------


def test_the_first_record_is_compared_with_the_sample() -> None:
    narrowed = {"mode_collision": 0.9, "mode_collision_within": 0.9}
    state, said = folded(records(12, **narrowed))
    assert {one.baseline_kind for one in said} == {"base_sample"}
    assert said[0].message.endswith(" Its base is a sample of 256 completions.")
    assert said[0].evidence["base_completions"] == 256
    assert said[0].baseline == pytest.approx(4.0)
    assert state.records == 12, "the sample is no look"
    # Without it the narrow rounds are the base, and nothing ever happened.
    assert folded(records(12, None, **narrowed))[1] == []


def test_a_finding_counts_the_sample_of_its_own_source() -> None:
    both = (*SAMPLE.blocks, *blocks(8, source="b", mode_collision=0.25, mode_collision_within=0.3))
    given = records(12, dataclasses.replace(SAMPLE, completions=512, blocks=both), mode_collision=0.9)
    said = folded(given)[1]
    assert said[0].message.endswith(" Its base is a sample of 256 completions.")
    assert said[0].evidence["base_completions"] == 256


def test_what_it_does_not_measure_keeps_the_first_rounds() -> None:
    state, _ = folded(records(12, mode_collision=0.25, mode_collision_within=0.3, entropy_nats=1.0))
    rows = {row["id"]: {one["statistic"]: one for one in row["sources"]} for row in status(state)}
    assert rows["format-collapse"]["mode_collision"]["baseline_kind"] == "base_sample"
    entropy = rows["entropy-collapse"]["entropy_nats"]
    assert (entropy["baseline_kind"], entropy["baseline_done"]) == ("early_rounds", True)
    assert state.sampled == {state.sources[0]: ("mode_collision", "mode_collision_within")}


def test_a_source_with_too_few_blocks_goes_on_with_the_first_rounds() -> None:
    few = dataclasses.replace(SAMPLE, blocks=(*SAMPLE.blocks, *blocks(3, source="b", mode_collision=0.25)))
    given = records(1, few, mode_collision=0.25)
    state, _ = folded([dataclasses.replace(given[0], blocks=blocks(4, source="b", mode_collision=0.25))])
    b = state.sources[1]
    assert state.baseline_kind(b, "mode_collision") == "early_rounds"
    assert not state.arrays.done[0, 1].any()
    assert state.arrays.sums[0, 1, state.roster.at["mode_collision"], 0] == 7, "its blocks count among them"


def test_it_is_taken_before_the_first_record_and_never_after() -> None:
    late = [made_records.made_step(1, blocks=blocks(4, mode_collision=0.5)), *records(3, mode_collision=0.5)]
    state, _ = folded(late)
    assert state.base_completions == 0
    assert state.sampled == {}


def test_a_checkpoint_keeps_it() -> None:
    given = records(12, mode_collision=0.9, mode_collision_within=0.9)
    whole, said = folded(given)
    state, _ = folded(given[:2])
    saved = json.loads(json.dumps(state_to_json(state), allow_nan=False))
    state = state_from_json(saved)
    assert (state.base_completions, state.sampled) == (256, whole.sampled)
    later = []
    for record in given[2:]:
        state, found = step(state, record)
        later += found
    assert later == [one for one in said if one.step > 2]
    assert "base_sample" not in state_to_json(folded(records(2, None))[0]), "without one it is the state that it was"


# -- the log -----------------------------------------------------------------------------------------------------------


def log_of(path: Path, given: list[StepRecord]) -> Path:
    described = describe(start(alpha=0.01, total_steps=200, group_size=8))
    writer = RunLogWriter.open(path, make_runlog.header(0, detectors=described), resume=False)
    for record in given:
        writer.append_step(record)
    writer.close()
    return path


def test_a_log_gives_it_back(tmp_path: Path) -> None:
    odd = dataclasses.replace(SAMPLE, blocks=(dataclasses.replace(SAMPLE.blocks[0], stats={"a": 0.1, "b": np.nan}),))
    given = [*records(2, mode_collision=0.3)]
    given[0] = dataclasses.replace(given[0], base=odd)
    first, second = open_run(log_of(tmp_path / "log", given)).step_records()
    assert first.base is not None
    assert (first.base.prompts, first.base.completions) == (32, 256)
    assert [block.stats for block in first.base.blocks] == [{"a": 0.1}]
    assert second.base is None


@pytest.mark.parametrize(
    "damage", [7, [1], {"prompts": 1}, {"prompts": 1, "completions": 2, "blocks": 3}, {"blocks": [{"source": 1}]}]
)
def test_a_damaged_one_is_told(damage: Any) -> None:
    values = json.loads(json.dumps(dataclasses.asdict(records(1)[0]))) | {"base": damage}
    with pytest.raises(RunLogError):
        checked_step(build_step(values))
    values["base"] = {"prompts": "many", "completions": 2, "blocks": []}
    with pytest.raises(RunLogError):
        checked_step(build_step(values))


def test_the_live_page_knows_it(tmp_path: Path) -> None:
    view = View(log_of(tmp_path / "log", records(3, mode_collision=0.25, mode_collision_within=0.3)))
    while view.poll():
        pass
    assert view.detectors is not None
    assert view.detectors.base_completions == 256


# -- sums of the base --------------------------------------------------------------------------------------------------


def sums_of(families: Families, **values: float) -> Any:
    sums = families.zeros()
    for name, value in values.items():
        family, field = name.split("__")
        sums[family][field] = value
    return sums


def test_metrics_are_compared_with_it_but_for_what_only_training_shows() -> None:
    families = Families(WATCHING, ("json", "other"))
    base = BaseSums(families)
    base.take_sample(sums_of(families, format__mode_count=128.0), prompts=32, completions=256)
    for _ in range(20):
        early = sums_of(families, format__mode_count=5.0, entropy__nats=2.0, entropy__tokens=1.0)
        base.grow(early, prompts=2, completions=8)
    assert base.sums is not None
    assert base.sums["format/mode_count"].tolist() == [128.0, 128.0]
    assert base.sums["entropy/nats"] == 2.0 * 8, "the first eight rounds"
    again = BaseSums(families)
    again.load(json.loads(json.dumps(base.state())))
    assert again.state() == base.state()
    again.grow(sums_of(families, entropy__nats=9.0), prompts=2, completions=8)
    assert again.state() == base.state()


def test_what_the_sample_measured_as_nothing_stays_nothing() -> None:
    """A mean of 0 was measured: rounds of training are no part of it."""
    families = Families(WATCHING, ("json", "other"), added=[CompletionMetric("shouting/share", lambda text: 0.0)])

    def of_share(total: float, rows: float) -> Any:
        sums = sums_of(families, entropy__nats=2.0 if total else 0.0)
        sums["shouting/share"]["total"], sums["shouting/share"]["rows"] = total, rows
        return sums

    base = BaseSums(families)
    base.take_sample(of_share(0.0, 256.0), prompts=32, completions=256)
    base.grow(of_share(8.0, 8.0), prompts=2, completions=8)
    assert base.sums is not None
    assert (base.sums["shouting/share/total"], base.sums["shouting/share/rows"]) == (0.0, 256.0)
    assert base.sums["entropy/nats"] == 2.0, "which the sample could not measure"


def test_a_sample_that_is_no_whole_baseline_is_its_first_part() -> None:
    families = Families(WATCHING, ("json", "other"))
    base = BaseSums(families)
    base.take_sample(sums_of(families, format__mode_count=16.0), prompts=8, completions=32)
    base.grow(sums_of(families, format__mode_count=1.0, entropy__nats=2.0), prompts=24, completions=96)
    assert base.baseline == Baseline(prompts=32, completions=128, rounds=2)
    assert base.sums is not None
    assert base.sums["format/mode_count"].tolist() == [17.0, 17.0]
    assert "base_sampled" not in base.state()


def test_rounds_are_joined_to_one_group_by_group() -> None:
    def rows(number: int, count: int) -> Any:
        made = np.zeros(count, dtype=ROW)
        made["round"], made["group_size"], made["global_row"] = number, 4.0, np.arange(count)
        return made

    one = as_one_round([rows(0, 8), rows(1, 6), rows(2, 4)])
    assert set(one["round"]) == {-1.0}
    assert one["global_row"].tolist() == [*range(8), *range(8, 14), *range(16, 20)]


# -- the monitor without a trainer -------------------------------------------------------------------------------------


def batch(number: int, texts: list[str], split: Any = "base") -> RolloutBatch:
    count = len(texts)
    return RolloutBatch(
        round=number,
        split=split,
        step=0 if split == "base" else number + 1,
        group_size=4,
        global_row=range(count),
        prompt_id=[f"{number}-{row // 4}" for row in range(count)],
        source=["sums"] * count,
        prompts=[f"prompt {number}-{row // 4}" for row in range(count)],
        completions=texts,
        rewards={"right": [float(row % 2) for row in range(count)]},
        reward=[float(row % 2) for row in range(count)],
        advantages=[0.0] * count,
    )


TEXTS = ['{"a": 1}', "so it is 3", "12", "<answer>4</answer>"] * 4


def test_a_loop_of_your_own_can_hand_one_in(tmp_path: Path) -> None:
    monitor = Monitor(
        RLMonConfig(rlmon_console=False, rlmon_strict=True), directory=tmp_path / "log", group_size=4,
        about=About(total_steps=10),
    )  # fmt: skip
    sample = monitor.observe_base([batch(number, TEXTS) for number in range(8)], rounds=8, rows=16)
    assert sample is not None
    assert (sample.prompts, sample.completions) == (32, 128)
    monitor.observe(batch(0, TEXTS, "train"))
    record = monitor.end_step(1)
    assert record is not None
    assert record.base == sample
    assert record.metrics["rlmon/format/js_to_base"] == pytest.approx(0.0, abs=1e-9)
    assert set(record.sources.values()) == {"sums"}, "the names that the sample brought"
    assert monitor.detector_state.base_completions == 128
    monitor.close()
    assert monitor.shared_state()["ledger"] != {}
    shown = open_run(tmp_path / "log")
    assert [row["split"] for row in shown.rollouts().to_pylist()].count("base") == 128

    # An audit counts no row of it as one of training, and can read them as a run of their own.
    run = open_source(tmp_path / "log")
    assert rows_in(run) == 16
    assert rows_in(rlmon_log.base_sample_of(run)) == 128


def rows_in(run: Any) -> int:
    tables = [one.rows for shard in run.shards for one in shard.read()]
    assert all(set(table["split"].to_pylist()) <= {"train"} for table in tables)
    return sum(table.num_rows for table in tables)


@pytest.mark.parametrize(
    ("before", "split", "reason"),
    [
        ("nothing", "train", "'train'"),
        ("a step", "base", "once, before the first step"),
        ("a sample", "base", "once, before the first step"),
    ],
)
def test_one_that_is_none_is_refused_and_leaves_no_rows(tmp_path: Path, before: str, split: str, reason: str) -> None:
    monitor = Monitor(RLMonConfig(rlmon_console=False), directory=tmp_path / "log", group_size=4)
    if before == "a sample":
        assert monitor.observe_base([batch(0, TEXTS)], rounds=1, rows=16) is not None
    if before == "a step":
        monitor.observe(batch(0, TEXTS, "train"))
        monitor.end_step(1)
    written = monitor.writer.rows_written
    assert monitor.observe_base([batch(0, TEXTS, split)], rounds=1, rows=16) is None
    assert monitor.writer.rows_written == written
    monitor.observe(batch(1, TEXTS, "train"))
    record = monitor.end_step(2)
    assert record is not None
    assert (record.base is not None) == (before == "a sample")
    monitor.close()
    (fault,) = open_run(tmp_path / "log").faults
    assert (fault.place, reason in fault.error) == ("base.sample", True)


@pytest.mark.parametrize(("sizes", "rounds", "rows"), [((12, 20), 2, 16), ((16, 16), 1, 32)])
def test_rounds_of_other_sizes_than_were_said_are_refused(
    tmp_path: Path, sizes: tuple[int, ...], rounds: int, rows: int
) -> None:
    """Other ranks would wait for a collective of another size, or for one more of them."""
    monitor = Monitor(RLMonConfig(rlmon_console=False), directory=tmp_path / "log", group_size=4)
    batches = [batch(number, (TEXTS * 2)[:size]) for number, size in enumerate(sizes)]
    assert monitor.observe_base(batches, rounds=rounds, rows=rows) is None
    assert monitor.faults.totals == {"base.sample": 1}
    assert monitor.writer.rows_written == 0
    monitor.close()


def test_a_rank_without_its_rows_leaves_the_first_rounds(tmp_path: Path) -> None:
    monitor = Monitor(RLMonConfig(rlmon_console=False), directory=tmp_path / "log", group_size=4)
    assert monitor.observe_base([batch(0, TEXTS)], rounds=2, rows=16) is None
    monitor.observe(batch(0, TEXTS, "train"))
    record = monitor.end_step(1)
    assert record is not None
    assert record.base is None
    monitor.close()


# -- settings ----------------------------------------------------------------------------------------------------------


def test_the_setting() -> None:
    assert RLMonConfig().rlmon_base_sample == 0
    for odd in (-1, 1.5, True, "256"):
        with pytest.raises(ConfigError, match="rlmon_base_sample must be an integer of at least 0"):
            RLMonConfig(rlmon_base_sample=odd)
    assert RLMonConfig.from_env({"RLMON_BASE_SAMPLE": "256"}).rlmon_base_sample == 256


@pytest.mark.trl
def test_what_stands_in_the_way_is_said() -> None:
    from rlmon.trl.capabilities import unsampled

    plain = SimpleNamespace(use_vllm=False, use_transformers_continuous_batching=False)
    assert unsampled(plain) is None
    assert "vLLM" in (unsampled(SimpleNamespace(use_vllm=True)) or "")
    assert "batching" in (unsampled(SimpleNamespace(use_transformers_paged=True)) or "")
