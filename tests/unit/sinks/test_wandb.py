"""The W&B sink against real offline runs, read back from the file that W&B wrote."""

from __future__ import annotations

import dataclasses
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from offline_wandb import read_run, records

from rlmon.config import RLMonConfig
from rlmon.metrics.catalog import METRICS, lookup
from rlmon.monitor import Monitor
from rlmon.records import Action, Finding, Histogram, RolloutBatch, StepRecord
from rlmon.runlog import RunLogWriter, open_run
from rlmon.sinks import wandb_artifact
from rlmon.sinks.tables import (
    ACT_COLUMNS,
    FINDING_COLUMNS,
    MAX_ACTS,
    MAX_CELL_CHARACTERS,
    MAX_FINDINGS,
    SAMPLE_COLUMNS,
)
from rlmon.sinks.wandb import WandbSink
from rlmon.sinks.wandb_artifact import TYPE
from rlmon.sinks.wandb_tables import SAMPLE_ROUNDS, SUMMARIES

wandb = pytest.importorskip("wandb")

MakeStep = Callable[..., StepRecord]
MakeFinding = Callable[..., Finding]


@pytest.fixture(autouse=True, scope="module")
def _leave_no_settings_behind() -> Iterator[None]:
    yield
    # wandb reads WANDB_* once per process: without this no later test could set them.
    wandb.teardown()


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Any]:
    opened = wandb.init(mode="offline", dir=str(tmp_path), project="rlmon-tests")
    # What transformers' WandbCallback does when training begins.
    opened.define_metric("train/global_step")
    opened.define_metric("*", step_metric="train/global_step", step_sync=True)
    yield opened
    opened.finish()


@pytest.fixture
def sink(header: Any) -> Any:
    """``sink(rlmon_table_every=3)`` is open, for a run with that setting changed."""

    def opened(**settings: Any) -> WandbSink:
        made = WandbSink()
        made.open(header(**{"rlmon_table_every": 2, **settings}))
        return made

    return opened


def test_detectors_that_failed_are_counted_for_rules_of_the_server(
    sink: Any, run: Any, tmp_path: Path, step: MakeStep, finding: MakeFinding
) -> None:
    mirror = sink()
    mirror.record(step(1), {})
    mirror.finding(finding(severity="warn"))
    mirror.record(step(2), {})
    mirror.finding(finding(severity="fail"))
    mirror.finding(finding(severity="fail", finding_id="f1"))
    mirror.record(step(3), {})
    mirror.close()
    run.finish()
    rows = read_run(tmp_path).rows
    assert [row["rlmon/detectors_failed"] for row in rows if "rlmon/detectors_failed" in row] == [0, 0, 1]


def test_one_row_per_step_on_the_trainers_axis(sink: Any, run: Any, tmp_path: Path, step: MakeStep) -> None:
    mirror = sink()
    for number in (1, 2, 3):
        for _ in range(8):  # TRL's profiling logs several times a step: W&B's own counter runs ahead
            run.log({"profiling/seconds": 0.1})
        metrics = {"rlmon/entropy/mean": number / 4, "rlmon/kl/mean": None, "rlmon/format/share/my mode!": 0.5}
        faults = {"metrics.text": 2} if number == 3 else {}
        mirror.record(step(number, metrics=metrics, faults=faults, overhead_seconds=0.25), {})
    mirror.close()
    run.finish()

    read = read_run(tmp_path)
    ours = [row for row in read.rows if "rlmon/entropy/mean" in row]
    assert [row["train/global_step"] for row in ours] == [1, 2, 3]
    assert [row["rlmon/entropy/mean"] for row in ours] == [0.25, 0.5, 0.75]
    assert [row["rlmon/faults"] for row in ours] == [0, 0, 2]
    assert [row["rlmon/overhead_seconds"] for row in ours] == [0.25] * 3
    assert [row["rlmon/format/share/my_mode_"] for row in ours] == [0.5] * 3
    assert not any("rlmon/kl/mean" in row for row in read.rows)  # not measured is absent, not 0
    assert read.step_metrics["rlmon/*"] == "train/global_step"
    assert read.config["rlmon"]["run_id"] == "a-run"
    assert read.config["rlmon"]["config"]["rlmon_alpha"] == 0.01
    assert read.summary["rlmon/verdict"] == "insufficient"  # nothing was compared with the base
    assert read.alerts == []


def test_a_table_has_at_most_32_rows_and_no_text_that_a_page_could_choke_on(
    sink: Any, run: Any, tmp_path: Path, step: MakeStep
) -> None:
    row = {"step": 1, "reward": None, "completion": "\x1b[2J\ud800\nok " + "y" * 9000, "mode_change": "new"}
    mirror = sink()
    for number in (1, 4, 7):
        mirror.record(step(number), {})
        mirror.table(number, [row] * 50)  # more than are shown
    run.finish()

    read = read_run(tmp_path)
    assert [row["train/global_step"] for row in read.rows if "rlmon/samples/path" in row] == [1, 4, 7]
    assert [row["rlmon/samples/_type"] for row in read.rows if "rlmon/samples/path" in row] == [
        "incremental-table-file"
    ] * 3
    tables = sorted(tmp_path.glob("wandb/offline-run-*/files/media/table/rlmon/samples_*.table.json"))
    assert [len(json.loads(file.read_text())["data"]) for file in tables] == [32] * 3  # the new rows alone
    table = json.loads(tables[0].read_text())
    assert table["columns"] == list(SAMPLE_COLUMNS)
    cells = dict(zip(table["columns"], table["data"][0], strict=True))
    assert cells["reward"] is None
    assert cells["mode_change"] == "new"
    assert cells["completion"].startswith("\\x1b[2J\\ud800\nok yyy")
    assert cells["completion"].endswith("y…")
    # 4,000 characters kept; ESC became 4 and the surrogate 6 instead of 1 each; the ellipsis is one more
    assert len(cells["completion"]) == MAX_CELL_CHARACTERS + 3 + 5 + 1


def test_alert_on_a_change_of_state_only(
    sink: Any, run: Any, tmp_path: Path, step: MakeStep, finding: MakeFinding
) -> None:
    mirror = sink()
    story = ["warn", "warn", "fail", "fail", "warn"]
    for number, severity in enumerate(story, start=1):
        mirror.record(step(number), {})
        mirror.finding(finding(severity=severity, step=number))
    mirror.record(step(6), {})
    mirror.finding(finding(detector="kl-drift", severity="warn", step=6))
    mirror.close()
    run.finish()

    read = read_run(tmp_path)
    assert [(title, level) for title, level, _ in read.alerts] == [
        ("rlmon WARN: format-collapse", "WARN"),
        ("rlmon FAIL: format-collapse", "ERROR"),
        ("rlmon WARN: kl-drift", "WARN"),
    ]
    assert read.alerts[1][2] == "Step 3: effective formats fell to 2.1 of 4.7. set beta: 0.1."
    assert read.summary["rlmon/verdict"] == "fail"


def test_a_note_informs_and_leaves_the_verdict_alone(
    sink: Any, run: Any, tmp_path: Path, step: MakeStep, finding: MakeFinding
) -> None:
    mirror = sink()
    for number in (1, 2):
        mirror.record(step(number), {})
        mirror.finding(finding(detector="silent-groups-good", severity="note", step=number))
    mirror.judged()
    mirror.close()
    run.finish()
    read = read_run(tmp_path)
    assert [(title, level) for title, level, _ in read.alerts] == [("rlmon NOTE: silent-groups-good", "INFO")]
    assert read.summary["rlmon/verdict"] == "pass"


def test_silent_without_a_run(sink: Any, step: MakeStep, finding: MakeFinding, monkeypatch: pytest.MonkeyPatch) -> None:
    assert wandb.run is None
    mirror = sink()
    mirror.record(step(1), {})
    mirror.finding(finding())
    mirror.close()
    monkeypatch.delitem(sys.modules, "wandb")
    mirror.record(step(2), {})
    mirror.finding(finding())
    mirror.close()
    assert "wandb" not in sys.modules  # looked for, never imported


def test_a_second_run_is_set_up_again(sink: Any, tmp_path: Path, step: MakeStep, finding: MakeFinding) -> None:
    mirror = sink()
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        opened = wandb.init(mode="offline", dir=str(tmp_path / name), project="rlmon-tests")
        mirror.record(step(1, metrics={"rlmon/entropy/mean": 1.0}), {})
        mirror.finding(finding())
        opened.finish()
        mirror.close()  # after the run was finished: nothing to write to, nothing raised
    for name in ("first", "second"):
        read = read_run(tmp_path / name)
        assert read.step_metrics["rlmon/*"] == "train/global_step"
        assert len(read.alerts) == 1


def test_acts_are_rows_of_one_table_newest_first_and_knobs_are_metrics(
    sink: Any, run: Any, tmp_path: Path, step: MakeStep, action: Callable[..., Action]
) -> None:
    mirror = sink(rlmon_table_every=10)
    mirror.action(action(step=1, action_id="a"))
    mirror.record(step(1, metrics={"rlmon/intervention/beta": 0.05}), {})
    mirror.action(action(step=2, action_id="a", phase="applied"))
    mirror.action(action(step=2, action_id="b", rule="quarantine", knob="advantages", old=None, new="3", dry_run=True))
    for number in range(2, 11):
        mirror.record(step(number), {})
    mirror.action(action(step=10, action_id="a", phase="measured", effect="helped", effect_reason="2 -> 3"))
    mirror.close()
    run.finish()
    read = read_run(tmp_path)
    assert [row["rlmon/intervention/beta"] for row in read.rows if "rlmon/intervention/beta" in row] == [0.05]
    # One at step 1; the next is due at 11, which does not come: the rest is written at the end, on its last step.
    written = [row["train/global_step"] for row in read.rows if "rlmon/interventions/path" in row]
    assert written == [1, 10]
    files = tmp_path.glob("wandb/offline-run-*/files/media/table/rlmon/interventions_*.table.json")
    last = max((json.loads(file.read_text()) for file in files), key=lambda table: len(table["data"]))
    assert last["columns"] == list(ACT_COLUMNS)
    assert [row[:5] for row in last["data"]] == [
        [2, "quarantine", "", "dry run", None],
        [1, "hold-formats", "kappa (format) 1 -> 1.15", "applied", "helped"],
    ]


def test_the_table_of_acts_is_bounded(sink: Any, run: Any, action: Callable[..., Action]) -> None:
    mirror = sink()
    for number in range(MAX_ACTS + 50):
        mirror.action(action(step=number, action_id=str(number)))
    mirror.action(action(step=900, action_id="0", phase="measured", effect="helped"))  # of an act no longer kept
    assert list(mirror._acts.rows) == [str(number) for number in range(50, MAX_ACTS + 50)]


def test_histograms_keep_their_edges_and_the_worst_values_stand_in_the_summary(
    sink: Any, run: Any, tmp_path: Path, step: MakeStep, finding: MakeFinding
) -> None:
    assert all(lookup(name) is not None for name in SUMMARIES)
    mirror = sink()
    uneven = Histogram([0.0, 0.1, 1.0, 10.0], [3.0, 0.0, 2.5])
    for number, (ratio, top) in enumerate([(1.0, 0.2), (0.25, 0.9), (0.5, 0.7)], start=1):
        metrics = {"rlmon/entropy/ratio_to_base": ratio, "rlmon/format/top_share": top}
        mirror.record(step(number, metrics=metrics), {"rlmon/entropy/tokens!": uneven})
        if number > 1:
            mirror.finding(finding(step=number, severity="note" if number == 2 else "warn"))
    mirror.close()
    run.finish()
    read = read_run(tmp_path)
    shown = [row for row in read.rows if "rlmon/entropy/tokens_/bins" in row]
    assert [row["train/global_step"] for row in shown] == [1, 2, 3]
    assert shown[0]["rlmon/entropy/tokens_/bins"] == [0.0, 0.1, 1.0, 10.0]
    assert shown[0]["rlmon/entropy/tokens_/values"] == [3.0, 0.0, 2.5]
    assert read.summary["rlmon/entropy/ratio_to_base"] == {"min": 0.25, "last": 0.5}
    assert read.summary["rlmon/format/top_share"] == {"max": 0.9, "last": 0.7}
    assert read.step_metrics["rlmon/format/top_share"] == "train/global_step"
    assert read.summary["rlmon/first_alarm_step"] == 3  # a note is no alarm


def test_findings_are_one_bounded_table_and_alerts_are_short(
    sink: Any, run: Any, tmp_path: Path, step: MakeStep, finding: MakeFinding
) -> None:
    mirror = sink()
    long = "formats fell\x1b[2J to 2.1. So many words. And more. And more"
    for number in range(1, MAX_FINDINGS + 11):
        mirror.record(step(number), {})
        mirror.finding(finding(step=number, finding_id=str(number), message=f"format-collapse: {long}", advice=long))
    mirror.close()
    run.finish()
    read = read_run(tmp_path)
    ((title, _, text),) = read.alerts
    assert title == "rlmon FAIL: format-collapse"
    assert text == "Step 1: formats fell\\x1b[2J to 2.1. formats fell\\x1b[2J to 2.1."
    sent = [row["train/global_step"] for row in read.rows if "rlmon/findings/path" in row]
    # With the step after the first one, then every 25, and what is left at the end.
    assert sent == [*range(2, MAX_FINDINGS + 11, 25), MAX_FINDINGS + 10]
    last = [row["rlmon/findings/path"] for row in read.rows if "rlmon/findings/path" in row][-1]
    (file,) = tmp_path.glob(f"wandb/offline-run-*/files/{last}")
    table = json.loads(file.read_text())
    assert table["columns"] == list(FINDING_COLUMNS)
    assert [row[0] for row in table["data"]] == list(range(MAX_FINDINGS + 10, 10, -1))  # the newest first
    said = "formats fell\\x1b[2J to 2.1"
    assert table["data"][0][1:] == ["fail", "format-collapse", said, said, 2.1, 4.7, 2.8]


def test_samples_begin_anew_before_they_fill_the_memory(
    sink: Any, run: Any, tmp_path: Path, step: MakeStep, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror = sink()
    for number in range(1, SAMPLE_ROUNDS + 3):
        mirror.record(step(number), {})
        mirror.table(number, [{"step": number, "completion": "x"}])
    assert len(mirror._samples._table.data) == 2
    complete = wandb.Table.__init__

    def of_an_older_wandb(table: Any, *arguments: Any, **settings: Any) -> None:
        if "log_mode" in settings:
            raise TypeError("unexpected keyword argument 'log_mode'")
        complete(table, *arguments, **settings)

    monkeypatch.setattr(wandb.Table, "__init__", of_an_older_wandb)
    other = sink()
    for number in (101, 102):
        other.record(step(number), {})
        other.table(number, [{"step": number, "completion": "y"}])
    run.finish()
    read = read_run(tmp_path)
    shown = [row for row in read.rows if "rlmon/samples/path" in row]
    assert [row["train/global_step"] for row in shown] == [*range(1, SAMPLE_ROUNDS + 3), 101, 102]
    numbers = [row["rlmon/samples/increment_num"] for row in shown[:-2]]
    assert numbers == [*range(SAMPLE_ROUNDS), 0, 1]
    assert [row["rlmon/samples/_type"] for row in shown[-2:]] == ["table-file"] * 2
    assert [row["rlmon/samples/nrows"] for row in shown[-2:]] == [1, 1]


def test_another_run_is_given_the_verdict_so_far(
    sink: Any, tmp_path: Path, step: MakeStep, finding: MakeFinding
) -> None:
    mirror = sink()
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        opened = wandb.init(mode="offline", dir=str(tmp_path / name), project="rlmon-tests")
        number = 1 if name == "first" else 2
        mirror.record(step(number), {})
        if name == "first":
            mirror.finding(finding(step=number))
        else:
            mirror.close()
        opened.finish()
    read = read_run(tmp_path / "second")
    assert read.summary["rlmon/verdict"] == "fail"
    assert read.summary["rlmon/first_alarm_step"] == 1
    assert read.alerts == []  # nothing changed
    assert [row["train/global_step"] for row in read.rows if "rlmon/findings/path" in row] == [2]


def test_a_resumed_run_has_its_verdict_at_once_where_people_were_told_before(
    run: Any, header: Any, tmp_path: Path, step: MakeStep, finding: MakeFinding
) -> None:
    log = tmp_path / "log"
    for number, from_step in ((0, None), (1, 3)):
        mine = dataclasses.replace(header(), attempt=number, run_id=f"r{number}")
        writer = RunLogWriter.open(log, mine, resume=number > 0, from_step=from_step)
        if number == 0:
            writer.append_event("finding", finding(step=5))  # after the checkpoint of step 3
        writer.close()
    mirror = WandbSink(log)
    mirror.open(writer.header)
    mirror.record(step(4), {})
    assert "rlmon/verdict" not in dict(run.summary)
    mirror.record(step(5), {})
    mirror.finding(finding(step=5))
    assert (run.summary["rlmon/verdict"], run.summary["rlmon/first_alarm_step"]) == ("fail", 5)
    run.finish()
    assert read_run(tmp_path).alerts == []


@pytest.mark.slow
def test_a_step_costs_about_a_millisecond(sink: Any, run: Any, step: MakeStep) -> None:
    names = [metric.name.replace("<mode>", "prose") for metric in METRICS]
    histograms = {f"rlmon/histogram/{name}": Histogram(list(range(33)), [1.5] * 32) for name in "abcd"}
    text = {"prompt": "p" * 300, "completion": "c" * 1_000, "reward": 0.5, "truncated": False}
    mirror = sink()
    mirror.record(step(0), {})  # the run is met
    plain, with_table = [], []
    for number in range(1, 301):
        record = step(number, metrics=dict.fromkeys(names, number / 7))
        began = time.thread_time()
        mirror.record(record, histograms)
        if number % 25 == 0:
            mirror.table(number, [text] * 32)
        (with_table if number % 25 == 0 else plain).append(time.thread_time() - began)
    # Of the processor: 0.4 ms and 7 ms at rest; the promise is 1 and 10. Other programs slow a processor down, most of
    # the time on a busy machine, so the quick ones are looked at.
    assert statistics.quantiles(plain, n=10)[0] < 0.002
    assert min(with_table) < 0.020


def staged(folder: Path) -> dict[str, dict[str, Path]]:
    """The files of each artifact of ours, by their names, where they lie until they are sent."""
    (path,) = folder.glob("wandb/offline-run-*/*.wandb")
    read_run(folder)  # the file is complete
    artifacts = [record.artifact for record in records(path) if record.artifact.type == TYPE]
    return {one.name: {entry.path: Path(entry.local_path) for entry in one.manifest.contents} for one in artifacts}


@pytest.fixture
def watched(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """``watched("page")`` is the log of a finished run that asked for that artifact."""

    def made(what: str, text: str = "full", *, attempts: Sequence[str] = ()) -> Path:
        log = tmp_path / "log"
        for stored in (*attempts, text):
            config = RLMonConfig(rlmon_wandb_artifacts=what, rlmon_store_text=stored)
            monitor = Monitor(config, directory=log, group_size=2)
            monitor.open_sinks()
            for number in (1, 2):
                monitor.observe(
                    RolloutBatch(
                        round=number,
                        split="train",
                        step=number,
                        group_size=2,
                        global_row=range(4),
                        prompt_id=["a", "a", "b", "b"],
                        source=["x"] * 4,
                        prompts=["what is this"] * 4,
                        completions=[f"it is {number}", "no", "<answer>7</answer>", "my-own-words"],
                        reward=[1.0, 0.0, 1.0, 0.0],
                        rewards={"right": [1.0, 0.0, 1.0, 0.0]},
                    )
                )
                monitor.end_step(number)
            if stored is text:
                monitor.close()
        run.finish()
        return log

    return made


def test_nothing_is_sent_unless_asked(watched: Callable[..., Path], tmp_path: Path) -> None:
    watched("none")
    assert staged(tmp_path) == {}


@pytest.mark.parametrize("text", ["full", "hash"])
def test_the_log_as_an_artifact_without_its_key(watched: Callable[..., Path], tmp_path: Path, text: str) -> None:
    log = watched("log", text)
    ((name, files),) = staged(tmp_path).items()
    assert name.startswith("rlmon-log-")
    assert {"run.json", "steps.jsonl", "events.jsonl"} < set(files)
    assert any(file.startswith("rollouts/") for file in files)
    assert (log / "secret").exists()
    assert "secret" not in files
    said = b"".join(file.read_bytes() for file in files.values())
    assert b'"kind":"ended"' in said.replace(b'": ', b'":')
    folder = tmp_path / "downloaded"
    for place, file in files.items():
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        (folder / place).write_bytes(file.read_bytes())
    rows = open_run(folder).rollouts().to_pylist()
    assert len(rows) == 8
    assert {row["completion"] is None for row in rows} == {text != "full"}


@pytest.mark.parametrize("text", ["full", "hash"])
def test_the_page_as_an_artifact(watched: Callable[..., Path], tmp_path: Path, text: str) -> None:
    watched("page", text)
    ((name, files),) = staged(tmp_path).items()
    assert name.startswith("rlmon-page-")
    assert list(files) == ["report.html"]
    page = files["report.html"].read_text(encoding="utf-8")
    assert "rlmon audit" in page
    assert ("my-own-words" in page) == (text == "full")


def test_no_artifact_above_the_limit(
    watched: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(wandb_artifact, "MAX_BYTES", 1_000)
    watched("log")
    assert staged(tmp_path) == {}
    assert capsys.readouterr().err.count("rlmon: no artifact was sent to W&B: the log has 0 MB") == 1


def test_no_text_of_an_earlier_attempt_leaves(
    watched: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    watched("log", "hash", attempts=["full"])
    assert staged(tmp_path) == {}
    assert "also holds text of an earlier attempt" in capsys.readouterr().err
