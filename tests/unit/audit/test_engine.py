"""One audit from end to end: what it takes, what it refuses, and that processes and shards change nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from audit_rows import TableShard, audited, chance, check, draw, mixed, opened, spoken, table, told

from rlmon.audit import counting, engine
from rlmon.audit.readers import mapped
from rlmon.audit.run import OpenedRun
from rlmon.errors import ReadError
from rlmon.metrics.formats import ModeSet
from rlmon.metrics.prompts import template_name


def narrowed(t: float) -> tuple[float, ...]:
    return 0.7, 0.1, 0.1, 0.05, 0.05


def one_left(t: float) -> tuple[float, ...]:
    return (1.0, 0.0, 0.0, 0.0, 0.0) if t > 0.4 else (0.2, 0.2, 0.2, 0.2, 0.2)


def as_trl(rows: pa.Table, folder: Path, per_file: int = 1) -> Path:
    """The rows as stock TRL writes them: a file for every logging step."""
    (folder / "completions").mkdir(parents=True)
    columns = pa.table(
        {
            "step": pc.cast(rows["step"], pa.string()),
            "prompt": rows["prompt"],
            "completion": rows["completion"],
            "reward_correct": rows["reward"],
            "advantage": pa.array(np.zeros(rows.num_rows)),
        }
    )
    last = int(rows["step"].to_numpy().max())
    for number, first in enumerate(range(1, last + 1, per_file)):
        mine = pc.and_(pc.greater_equal(rows["step"], first), pc.less(rows["step"], first + per_file))
        pq.write_table(columns.filter(mine), folder / "completions" / f"completions_{number + 1:05d}.parquet")
    return folder


def as_jsonl(rows: pa.Table, path: Path) -> Path:
    kept = rows.select(["step", "prompt", "completion", "reward", "group"])
    path.write_text("".join(json.dumps(row) + "\n" for row in kept.to_pylist()), encoding="utf-8")
    return path


# --- processes ----------------------------------------------------------------------------------------------------


def test_a_pool_and_one_process_give_the_same_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Small shards, so that there are several: the reader would make one of such a small run.
    rows = draw(3, steps=24, prompts=6, group=6)
    path = as_jsonl(rows, tmp_path / "run.jsonl")
    run = mapped.open_run(path)
    parts = [run_of(rows.filter(pc.equal(rows["step"], step)), tmp_path / f"{step}.jsonl") for step in range(1, 25)]
    several = OpenedRun(
        reader="mapped", run_id="x", path=path, shards=[shard for part in parts for shard in part.shards]
    )
    assert len(several.shards) == 24
    assert len(run.shards) == 1
    used: list[int] = []
    pool = counting.ProcessPoolExecutor

    def counting_pool(workers: int, **how: Any) -> Any:
        used.append(workers)
        return pool(workers, **how)

    monkeypatch.setattr(counting, "ProcessPoolExecutor", counting_pool)
    serial = audited(several, processes=1)
    assert used == []
    pooled = audited(several, processes=2)
    assert used == [2]
    assert json.dumps(told(pooled)) == json.dumps(told(serial))
    assert pooled.samples == serial.samples
    assert pooled.heat == serial.heat
    assert pooled.modes == serial.modes
    # One shard: the same but for which texts are in the sample.
    whole = audited(run)
    without_texts = [name for name in serial.series if name.startswith("rlmon/") and "/text/" not in name]
    assert {name: whole.series[name] for name in without_texts} == {name: serial.series[name] for name in without_texts}


def run_of(rows: pa.Table, path: Path) -> OpenedRun:
    return mapped.open_run(as_jsonl(rows, path))


def test_a_small_run_is_counted_without_a_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_pool(*_: Any, **__: Any) -> Any:
        raise AssertionError("a pool for a small run")

    monkeypatch.setattr(counting, "ProcessPoolExecutor", no_pool)
    rows = draw(1, steps=8)
    assert audited(opened(rows.slice(0, 256), rows.slice(256))).run.completions == 512


def test_a_trl_folder_is_audited_as_its_rows(tmp_path: Path) -> None:
    rows = draw(3, steps=24, write=mixed(one_left))
    folder = engine.audit(as_trl(rows, tmp_path / "run"))
    memory = audited(rows)
    assert folder.run.reader == "trl"
    assert folder.verdict == memory.verdict == "fail"
    assert folder.series["rlmon/format/effective"] == memory.series["rlmon/format/effective"]
    one, other = check(folder, "format-collapse"), check(memory, "format-collapse")
    assert (one.status, one.first_step, one.alarm_step) == (other.status, other.first_step, other.alarm_step)


# --- what is refused ----------------------------------------------------------------------------------------------


def test_a_run_without_rows_and_scalars_is_refused() -> None:
    with pytest.raises(ReadError, match="neither completions nor logged scalars"):
        audited(opened())


def test_nothing_at_a_path_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ReadError, match="There is nothing at"):
        engine.audit(tmp_path / "absent")


def test_one_step_is_too_little_to_judge() -> None:
    audit = audited(draw(1, steps=1, prompts=2, group=2))
    assert audit.run.completions == 4
    assert not spoken(audit)
    assert "fewer than 4 prompts" in (check(audit, "pass-at-k").reason or "")


def test_rows_without_rewards_are_audited_for_their_formats() -> None:
    audit = audited(draw(1, steps=30, score=lambda rng, t, prompt, text: None, write=mixed(one_left)))
    assert check(audit, "format-collapse").status == "fail"
    assert check(audit, "pass-at-k").status == "skip"
    assert check(audit, "silent-groups-bad").status == "skip"


# --- another run as the base --------------------------------------------------------------------------------------


def test_a_run_that_began_narrow_fails_only_against_a_base_that_was_wide() -> None:
    narrow, wide = draw(1, steps=40, write=mixed(narrowed)), draw(2, steps=40)
    alone = audited(narrow)
    assert check(alone, "format-collapse").status == "pass"
    assert alone.run.baseline["kind"] == "first_logged"
    against = audited(opened(narrow), baseline=opened(wide))
    found = check(against, "format-collapse")
    assert found.status == "fail"
    assert found.first_step == 1
    assert against.run.baseline["kind"] == "given"
    # The first steps of the base until 64 prompts: eight of them.
    assert (against.run.baseline["prompts"], against.run.baseline["completions"]) == (64, 512)
    # And against a base like itself it passes.
    same = audited(opened(narrow), baseline=opened(draw(3, steps=40, write=mixed(narrowed))))
    assert check(same, "format-collapse").status == "pass"


def test_hindsight_compares_with_the_base_that_was_given() -> None:
    poor, good = draw(1, steps=40, score=chance(0.05)), draw(2, steps=40, score=chance(0.5))
    assert check(audited(poor), "pass-at-k").status == "pass"
    found = check(audited(opened(poor), baseline=opened(good)), "pass-at-k")
    assert found.status == "fail"
    # 1 - C(.95 of 8): one minus .95^8 = .34 at the end, nearly 1 at the base.
    assert found.baseline == pytest.approx(1 - 0.5**8, abs=0.02)
    assert found.value == pytest.approx(1 - 0.95**8, abs=0.1)


def test_curves_are_summed_up_against_the_base_that_was_given() -> None:
    def cut(share: float) -> Any:
        return lambda rng, t, prompt, text: {"truncated": bool(rng.random() < share)}

    often, seldom = draw(1, steps=40, columns=cut(0.7)), draw(2, steps=40, columns=cut(0.02))
    assert check(audited(often), "truncation").status == "note", "it was so from the start"
    against = audited(opened(often), baseline=opened(seldom))
    found = check(against, "truncation")
    assert found.status == "fail"
    assert found.baseline == pytest.approx(0.02, abs=0.02)
    summary = against.metrics["rlmon/health/truncated"]
    assert summary.base == found.baseline
    assert summary.last == pytest.approx(0.7, abs=0.1)


def test_a_base_without_completions_is_refused() -> None:
    scalars = {"entropy": [(step, 1.0) for step in range(1, 20)]}
    with pytest.raises(ReadError, match="--baseline needs a run with completions"):
        audited(draw(1, steps=12), baseline=opened(scalars=scalars))


# --- counting -----------------------------------------------------------------------------------------------------


def test_progress_is_heardin_bytes_after_every_shard() -> None:
    rows = draw(1, steps=6, prompts=2, group=2)
    run = opened(rows.slice(0, 8), rows.slice(8, 8), rows.slice(16))
    heard: list[tuple[int, int]] = []
    audited(run, progress=lambda done, total: heard.append((done, total)))
    sizes = [shard.bytes for shard in run.shards]
    assert heard == [(sum(sizes[: n + 1]), sum(sizes)) for n in range(3)]


def test_the_sample_of_texts_is_bounded_whatever_the_number_of_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counting, "SAMPLE_ROWS", 128)
    monkeypatch.setattr(counting, "LEAST_SAMPLE", 8)
    rows = draw(1, steps=32)
    for parts in (1, 4, 16):
        size = rows.num_rows // parts
        run = opened(*[rows.slice(at, size) for at in range(0, rows.num_rows, size)])
        (one, *more) = counting.count(run, ModeSet.build(None)).samples
        sample = pa.concat_tables([one, *more])
        assert sample.filter(pc.greater_equal(sample["rank"], 0)).num_rows == 128


def test_what_was_passed_over_is_in_the_coverage_and_warned_of() -> None:
    run = opened(shards=[TableShard((draw(1, steps=12),), duplicates=3, damaged=2)])
    audit = audited(run)
    assert audit.run.coverage["duplicate_rows"] == 3
    assert audit.run.coverage["damaged_rows"] == 2
    assert check(audit, "rows-complete").status == "warn"
    assert "2 damaged" in check(audit, "rows-complete").message
    assert check(audited(draw(1, steps=12)), "rows-complete").status == "pass"


def test_templates_that_are_frequent_are_strata() -> None:
    def prompts(count: int, text: str) -> list[str]:
        return [text.format(n) for n in range(count)]

    def shard(texts: list[str], steps: int) -> TableShard:
        rows = [{"step": i % steps, "prompt": text, "completion": "7"} for i, text in enumerate(texts)]
        return TableShard((table(sorted(rows, key=lambda row: row["step"])),))

    sums, words = prompts(40, "what is {} plus 1?"), prompts(40, "spell word {}")
    expected = {template_name(sums[0]), template_name(words[0])}
    # 8 prompts a step, half of each: four of each are expected.
    assert counting._templates([shard(sums + words, 10)]) == expected
    # 2 prompts a step: no stratum could be compared inside a step.
    assert counting._templates([shard(sums + words, 40)]) == frozenset()
    # One template is no mix.
    assert counting._templates([shard(sums, 5)]) == frozenset()


def test_sources_are_judged_apart() -> None:
    # A curriculum: the mix moves from a task of five formats to one of one; neither task changes.
    def columns(rng: Any, t: float, prompt: int, text: str) -> dict[str, Any]:
        return {"source": "wide" if prompt % 8 < 8 * (1 - t) else "narrow"}

    def write(rng: Any, t: float, prompt: int) -> str:
        source = columns(rng, t, prompt, "")["source"]
        return mixed((lambda _: (0.2,) * 5) if source == "wide" else narrowed)(rng, t, prompt)

    rows = draw(1, steps=80, prompts=16, group=4, write=write, columns=columns)
    by_source = audited(rows)
    assert check(by_source, "format-collapse").status == "pass"
    pooled = rows.set_column(rows.column_names.index("source"), "source", pa.nulls(rows.num_rows, pa.string()))
    assert check(audited(pooled), "format-collapse").status == "fail", "the twin without sources"
