"""Replay equals live: the audit of an rlmon log says what the monitor said, at the same steps; and tells where not."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import tiny
from audit_rows import audited, check, draw, mixed

import rlmon
from rlmon.audit import engine
from rlmon.audit.readers import open_source
from rlmon.audit.replay import as_stored_finding
from rlmon.audit.result import Audit
from rlmon.audit.timeline import records, timeline
from rlmon.monitor import About, Resume
from rlmon.records import Finding, RolloutBatch
from rlmon.trl import RLMon, RLMonConfig

STEPS = 40
QUIET = {"rlmon_console": False, "rlmon_strict": True}


def dying(t: float) -> tuple[float, ...]:
    left = 1.0 if t < 0.3 else max(0.0, 1.0 - 5.0 * (t - 0.3))
    return 1.0 - 0.8 * left, 0.2 * left, 0.2 * left, 0.2 * left, 0.2 * left


def rows_of(seed: int = 1) -> pa.Table:
    return draw(seed, steps=STEPS, prompts=8, group=4, write=mixed(dying), pool=40)


def given(rows: pa.Table, name: str) -> list[Any] | None:
    return None if rows[name].null_count == rows.num_rows else rows[name].to_pylist()


def watch(
    log: Path,
    rows: pa.Table,
    steps: range,
    *,
    resumed_from: int | None = None,
    state: dict[str, Any] | None = None,
    **settings: Any,
) -> tuple[list[Finding], dict[str, Any]]:
    """Feeds the steps to a monitor as a training loop would; its findings, and what a checkpoint would hold."""
    monitor = rlmon.Monitor(
        RLMonConfig(**QUIET, **settings), directory=log, group_size=4, about=About(total_steps=STEPS),
        resume=Resume(step=resumed_from, state=state),
    )  # fmt: skip
    said: list[Finding] = []
    monitor.on_record.append(lambda record, findings: said.extend(findings))
    for step in steps:
        mine = rows.filter(pc.equal(rows["step"], step))
        monitor.observe(
            RolloutBatch(
                round=monitor.next_round("train"),
                split="train",
                step=step,
                group_size=4,
                global_row=range(mine.num_rows),
                prompt_id=mine["prompt"].to_pylist(),
                source=["all"] * mine.num_rows,
                prompts=mine["prompt"].to_pylist(),
                completions=mine["completion"].to_pylist(),
                reward=mine["reward"].to_pylist(),
                advantages=given(mine, "advantage"),
                trained=given(mine, "trained"),
            )
        )
        record = monitor.end_step(step)
        assert record is not None
        assert not record.faults
    held = {"shared": json.loads(json.dumps(monitor.shared_state()))}
    monitor.close()
    return said, held


def as_told(findings: list[Finding]) -> list[dict[str, Any]]:
    return [as_stored_finding(finding) for finding in findings]


def same_as_live(audit: Audit, said: list[Finding]) -> None:
    replayed = [json.loads(json.dumps(dict(finding))) for finding in audit.findings]
    assert replayed == as_told(said)
    found = check(audit, "replay")
    assert found.status == "pass", found.message
    assert found.value == 0.0
    alarms: dict[str, list[Finding]] = {}
    for finding in said:
        alarms.setdefault(finding.detector, []).append(finding)
    for detector, mine in alarms.items():
        judged = check(audit, detector)
        assert judged.status == ("fail" if any(one.severity == "fail" for one in mine) else "warn")
        assert judged.alarm_step == next(one.step for one in mine if one.severity == judged.status)


# --- a log of the monitor -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["full", "hash", "off"])
def test_an_audit_says_what_the_monitor_said(tmp_path: Path, text: str) -> None:
    said, _ = watch(tmp_path / "log", rows_of(), range(1, STEPS + 1), rlmon_store_text=text)
    assert ("format-collapse", "fail") in {(finding.detector, finding.severity) for finding in said}
    audit = engine.audit(tmp_path / "log")
    assert audit.run.reader == "rlmon"
    assert audit.run.completions == STEPS * 32
    same_as_live(audit, said)
    assert audit.verdict == "fail"
    assert not [one.id for one in audit.checks if one.status == "error"]
    # Formats are stored with the rows, so that hindsight sees them die whatever became of the text.
    assert check(audit, "mode-extinction").status == "fail"
    words = check(audit, "near-duplicates")
    assert (words.status == "skip") == (text != "full")
    if text != "full":
        assert all(sample.completion is None for sample in audit.samples)
        assert "rlmon_store_text" in (words.reason or "")
    # Templates and answers are kept as keyed hashes, unless nothing was to be kept.
    for check_id in ("correct-diversity", "answer-diversity"):
        keyed = check(audit, check_id)
        assert (keyed.status == "skip") == (text == "off"), keyed.reason
        assert keyed.status != "skip" or "rlmon_store_text was off" in (keyed.reason or "")


def test_the_curves_of_a_log_are_those_of_the_monitor_and_of_its_rows(original: Path) -> None:
    rows, audit = rows_of(), engine.audit(original)
    records = rlmon.open_run(original).step_records()
    assert audit.steps == [record.step for record in records]
    # 8 prompts a step: the baseline closes with the fourth, and its tallies are in the records till then.
    tallied = [sorted({name for block in record.blocks for name in block.tallies}) for record in records]
    assert tallied[:4] == [["answer_collision", "mode_collision", "template_collision"]] * 4
    assert not any(tallied[4:])
    for name in ("rlmon/format/effective", "rlmon/collision/mode_across", "rlmon/group/all_bad"):
        assert audit.series[name] == [record.metrics[name] for record in records]

    foreign = audited(rows)
    for name in ("rlmon/format/effective", "rlmon/format/share/json", "rlmon/health/reward_mean",
                 "rlmon/collision/mode_across", "rlmon/collision/template_within", "rlmon/group/all_bad",
                 "rlmon/text/effective_answers_within"):  # fmt: skip
        assert foreign.series[name] == pytest.approx(audit.series[name]), name


def test_groups_that_were_sampled_and_not_trained_on_are_no_groups_to_the_rows_either(tmp_path: Path) -> None:
    # 3 prompts a step are one block on both sides; 4 of the 6 prompts are solved once in 16, the others 13 times.
    rows = draw(
        5, steps=STEPS, prompts=3, group=4, pool=6,
        score=lambda rng, t, prompt, text: float(rng.random() < (0.0625 if prompt < 4 else 0.8125)),
    )  # fmt: skip
    reward = rows["reward"].to_numpy().reshape(-1, 4)
    # Groups without a failure are dropped, and every fifth of the others; of the rest three rows of four are taken.
    taken = (reward.sum(axis=1) < 4) & (np.arange(len(reward)) % 5 > 0)
    trained = taken[:, None] & np.array([True, True, True, False])
    advantage = [float(one) if kept else None for one, kept in zip((reward - 0.5).flat, trained.flat, strict=True)]
    for name, values in (("trained", pa.array(trained.reshape(-1))), ("advantage", pa.array(advantage, pa.float64()))):
        rows = rows.set_column(rows.column_names.index(name), name, values)
    watch(tmp_path / "log", rows, range(1, STEPS + 1))

    case = engine._case(open_source(tmp_path / "log"), None, 1, None)
    recomputed = timeline(case.counted, case.modes, {}, 8)
    assert recomputed.steps.tolist() == case.line.steps.tolist()
    for name in ("silent", "all_bad", "lone_success", "reward_std", "lone_success_weight"):
        live = case.line.series[f"rlmon/group/{name}"]
        assert np.nanmax(live) > 0.0, name
        np.testing.assert_allclose(recomputed.series[f"rlmon/group/{name}"], live, atol=1e-12, err_msg=name)
    assert (
        np.nanmax(recomputed.series["rlmon/group/all_good"]) == np.nanmax(case.line.series["rlmon/group/all_good"]) == 0
    )
    # What was sampled is what formats are counted over, whatever became of it.
    assert case.counted.groups["modes"].sum() == len(rows)
    for now, then in zip(records(case.counted, recomputed, {}, characters=False), case.fold.records, strict=False):
        for name in ("all_good", "all_bad"):
            of_rows, of_log = ([b.stats[name] for b in one.blocks if name in b.stats] for one in (now, then))
            assert of_rows == pytest.approx(of_log), (now.step, name)


def test_a_resumed_run_is_folded_on(tmp_path: Path) -> None:
    rows = rows_of()
    whole, _ = watch(tmp_path / "whole", rows, range(1, STEPS + 1))
    first, held = watch(tmp_path / "parts", rows, range(1, 16))
    # Killed at step 19, resumed from the checkpoint of step 15 with other samples in between.
    watch(tmp_path / "parts", rows_of(9), range(16, 20), resumed_from=15, state=held)
    second, _ = watch(tmp_path / "parts", rows, range(16, STEPS + 1), resumed_from=15, state=held)
    audit = engine.audit(tmp_path / "parts")
    assert audit.steps == list(range(1, STEPS + 1))
    assert audit.run.completions == STEPS * 32
    same_as_live(audit, [*first, *second])
    assert [finding.step for finding in [*first, *second]] == [finding.step for finding in whole]


def test_a_run_resumed_without_our_state_is_judged_anew_from_there(tmp_path: Path) -> None:
    rows = rows_of()
    first, _ = watch(tmp_path / "log", rows, range(1, 11))
    second, _ = watch(tmp_path / "log", rows, range(11, STEPS + 1), resumed_from=10)
    audit = engine.audit(tmp_path / "log")
    same_as_live(audit, [*first, *second])


MINE: dict[str, str | Callable[[str], bool]] = {
    "tagged": "^the \\w+ and",
    "called": lambda text: text.endswith(")"),
}


def test_modes_of_the_user_are_kept(tmp_path: Path) -> None:
    said, _ = watch(tmp_path / "log", rows_of(), range(1, STEPS + 1), rlmon_modes=MINE)
    audit = engine.audit(tmp_path / "log", processes=2)
    same_as_live(audit, said)
    assert {"tagged", "called", "prose", "json", "xml"} == set(audit.mode_shares)
    assert {one.mode for one in audit.modes if one.fate == "extinct"} >= {"tagged", "called"}


def test_evaluations_do_not_take_part(log: Path) -> None:
    before = engine.audit(log)
    monitor = rlmon.Monitor(
        RLMonConfig(**QUIET), directory=log, group_size=4, about=About(total_steps=STEPS), resume=Resume(step=STEPS)
    )
    batch = RolloutBatch(
        round=monitor.next_round("eval"), split="eval", step=STEPS, group_size=4, global_row=range(4),
        prompt_id=["e"] * 4, source=["all"] * 4, prompts=["e"] * 4, completions=["7"] * 4, reward=[1.0] * 4,
    )  # fmt: skip
    monitor.observe(batch)
    monitor.end_eval(STEPS)
    monitor.close()
    after = engine.audit(log)
    assert after.run.eval_completions == 4
    assert check(after, "replay").status == "pass"
    assert after.findings == before.findings
    assert after.series["rlmon/format/effective"] == before.series["rlmon/format/effective"]


# --- a doctored log -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    log = tmp_path_factory.mktemp("replay") / "log"
    watch(log, rows_of(), range(1, STEPS + 1))
    assert check(engine.audit(log), "replay").status == "pass"
    return log


@pytest.fixture
def log(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "log"))


def edit(path: Path, change: Callable[[list[dict[str, Any]]], list[dict[str, Any]]]) -> None:
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    path.write_text("".join(json.dumps(line) + "\n" for line in change(lines)), encoding="utf-8")


def is_finding(line: dict[str, Any]) -> bool:
    return "finding" in json.dumps(line.get("kind", ""))


def test_a_deleted_finding_is_told(log: Path) -> None:
    def without_the_last(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
        at = max(i for i, line in enumerate(lines) if is_finding(line))
        return lines[:at] + lines[at + 1 :]

    edit(log / "events.jsonl", without_the_last)
    audit = engine.audit(log)
    found = check(audit, "replay")
    assert found.status == "warn"
    assert found.value == 1.0
    assert "replayed but not in the log" in found.message
    assert check(audit, "format-collapse").status == "fail", "the verdict is the replay's, not the log's"


def test_an_invented_finding_is_told(log: Path) -> None:
    def twice(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
        (last,) = [line for line in lines if is_finding(line)][-1:]
        invented = json.loads(json.dumps(last).replace('"step": ', '"step": 1'))
        return [*lines, invented]

    edit(log / "events.jsonl", twice)
    assert "in the log but not replayed" in check(engine.audit(log), "replay").message


def test_a_changed_share_is_told(log: Path) -> None:
    def nudged(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
        lines[4]["metrics"]["rlmon/format/share/json"] += 0.01
        return lines

    edit(log / "steps.jsonl", nudged)
    found = check(engine.audit(log), "replay")
    assert found.status == "warn"
    assert found.value == 1.0
    assert "step 5: the log says" in found.message
    assert "json" in found.message


def test_a_changed_block_changes_the_findings_and_is_told(log: Path) -> None:
    def healed(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
        for line in lines:
            for block in line["blocks"]:
                for name in block["stats"]:
                    if name.startswith("mode_collision"):
                        block["stats"][name] = 0.2
        return lines

    edit(log / "steps.jsonl", healed)
    audit = engine.audit(log)
    found = check(audit, "replay")
    assert found.status == "warn"
    assert "in the log but not replayed: format-collapse" in found.message
    # The detectors were made blind; the curve that was logged still shows it.
    assert (check(audit, "format-collapse").status, check(audit, "format-collapse").method) == ("fail", "hindsight")
    # The rows were not doctored: hindsight still sees that the formats died.
    assert check(audit, "mode-extinction").status == "fail"
    assert audit.verdict == "fail"


def test_rows_that_were_taken_away_are_told(log: Path) -> None:
    parts = sorted((log / "rollouts").glob("*.parquet"))
    table = pq.read_table(parts[3])
    json_rows = pc.equal(table["mode"], "json")
    pq.write_table(table.filter(pc.invert(json_rows)), parts[3])
    assert check(engine.audit(log), "replay").status == "warn"


def test_a_log_that_was_torn_is_read_to_the_tear(log: Path) -> None:
    whole = (log / "steps.jsonl").read_bytes()
    (log / "steps.jsonl").write_bytes(whole[:-20])
    audit = engine.audit(log)
    assert audit.run.last_step == STEPS - 1
    assert not [one.id for one in audit.checks if one.status == "error"]


# --- a real run ---------------------------------------------------------------------------------------------------


@pytest.mark.trl
@pytest.mark.parametrize("text", ["full", "hash", "off"])
def test_a_watched_training_is_replayed(tmp_path: Path, text: str) -> None:
    trained = tiny.trainer(tmp_path / "run", train=tiny.dataset(24), max_steps=12, learning_rate=5e-2)
    monitor = RLMon(trained, RLMonConfig(rlmon_base_kl_every=2, rlmon_store_text=text, **QUIET))
    trained.train()
    audit = engine.audit(tmp_path / "run")  # the log lies in it
    assert audit.run.reader == "rlmon"
    assert monitor.monitor is not None
    same_as_live(audit, monitor.monitor.findings)
    assert audit.steps == list(range(1, 13))
    assert audit.run.completions == 12 * 8
    assert not [one.id for one in audit.checks if one.status == "error"]
    json.dumps(audit.to_json(), allow_nan=False)
    assert dataclasses.asdict(audit.run)["group_size"] == 4


@pytest.mark.trl
def test_a_watched_training_that_was_resumed_is_replayed(tmp_path: Path) -> None:
    said: list[Finding] = []
    for steps, resume in ((6, None), (12, str(tmp_path / "run" / "checkpoint-6"))):
        trained = tiny.trainer(
            tmp_path / "run", train=tiny.dataset(24), max_steps=steps, learning_rate=5e-2,
            save_strategy="steps", save_steps=6,
        )  # fmt: skip
        monitor = RLMon(trained, RLMonConfig(**QUIET))
        trained.train(resume_from_checkpoint=resume)
        assert monitor.monitor is not None
        said += monitor.monitor.findings
    audit = engine.audit(tmp_path / "run")
    same_as_live(audit, said)
    assert audit.steps == list(range(1, 13))
