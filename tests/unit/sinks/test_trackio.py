"""The trackio sink against real local runs, read back from trackio's data base."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from local_trackio import keep_in, read

from rlmon.metrics.catalog import METRICS
from rlmon.records import Histogram
from rlmon.sinks.tables import FINDING_COLUMNS, MAX_FINDINGS, MAX_TABLE_ROWS, SAMPLE_COLUMNS
from rlmon.sinks.trackio import MAX_WAITING, TrackioSink

trackio = pytest.importorskip("trackio")

Make = Callable[..., Any]
AXIS = "train/global_step"


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    keep_in(tmp_path, monkeypatch)
    yield
    if trackio.context_vars.current_run.get() is not None:
        trackio.finish()


def opened(name: str = "one") -> Any:
    return trackio.init(project="tests", name=name, embed=False, auto_log_cpu=False, auto_log_gpu=False)


@pytest.fixture
def sink(header: Make) -> TrackioSink:
    made = TrackioSink()
    made.open(header())
    return made


def test_numbers_and_histograms_once_at_their_step(tmp_path: Path, header: Make, step: Make) -> None:
    opened()
    mirror = TrackioSink()
    mirror.open(header(rlmon_table_every=7))
    for number in (1, 2, 3):
        metrics = {"rlmon/entropy/mean": number / 3, "rlmon/kl/mean": None}
        histogram = Histogram(edges=[0.0, 1.0, 4.0], counts=[3.0, 1.5])
        mirror.record(step(number, metrics=metrics, faults={"sinks": 2}), {"rlmon/histogram/x": histogram})
    mirror.close()
    trackio.finish()
    found = read(tmp_path / "tests.db")
    assert found.of("rlmon/entropy/mean") == [(1, 1 / 3), (2, 2 / 3), (3, 1.0)]
    assert found.of("rlmon/faults") == [(1, 2), (2, 2), (3, 2)]
    assert found.of("rlmon/kl/mean") == []  # not measured is absent
    assert [value["bins"] for _, value in found.of("rlmon/histogram/x")] == [[0.0, 1.0, 4.0]] * 3
    assert [value["values"] for _, value in found.of("rlmon/histogram/x")] == [[3.0, 1.5]] * 3
    assert all(row[AXIS] == row["_step"] for row in found.rows)
    assert found.config["rlmon"]["config"]["rlmon_table_every"] == 7


def test_the_trainers_own_calls_stay_where_they_are(tmp_path: Path, sink: TrackioSink, step: Make) -> None:
    """TRL logs its timings at the step before; the integration logs after it and leaves the step to the counter."""
    for name in ("alone", "watched"):
        opened(name)
        for number in range(1, 13):
            trackio.log({"timing": 0.1}, step=number - 1)
            if name == "watched":
                sink.record(step(number), {})
            if number % 4 == 0:
                trackio.log({"train/loss": 1.0, AXIS: number})
                sink.table(number, [{"completion": "x"}])
        if name == "watched":
            sink.close()
        trackio.finish()
    alone, watched = (read(tmp_path / "tests.db", name) for name in ("alone", "watched"))
    assert alone.of("train/loss") == watched.of("train/loss") == [(4, 1.0), (8, 1.0), (12, 1.0)]
    assert [at for at, _ in watched.of("rlmon/faults")] == list(range(1, 13))
    assert [at for at, _ in watched.of("rlmon/samples")] == [4, 8, 12]


def test_alerts_have_levels_and_come_once(tmp_path: Path, sink: TrackioSink, step: Make, finding: Make) -> None:
    opened()
    for number, severity in enumerate(["note", "warn", "warn", "fail"], start=1):
        sink.record(step(number), {})
        sink.finding(finding(step=number, severity=severity, finding_id=str(number)))
    sink.close()
    trackio.finish()
    found = read(tmp_path / "tests.db")
    assert [(level, title, at) for level, title, _, at in found.alerts] == [
        ("info", "rlmon NOTE: format-collapse", 1),
        ("warn", "rlmon WARN: format-collapse", 2),
        ("error", "rlmon FAIL: format-collapse", 4),
    ]
    assert found.alerts[-1][2] == "Step 4: effective formats fell to 2.1 of 4.7. set beta: 0.1."
    assert found.of("rlmon/verdict") == [(2, "warn"), (4, "fail"), (4, "fail")]  # when it changes, and at the end
    assert found.of("rlmon/report")[-1] == (
        4,
        "# rlmon: FAIL\n\nFirst alarm at step 2.\n\n"
        "- **FAIL** format-collapse, step 4: effective formats fell to 2.1 of 4.7. set beta: 0.1.",
    )
    assert [value for _, value in found.of("rlmon/detectors_failed")] == [0, 0, 0, 0]  # as of before their step


def test_a_report_is_no_markup_of_others(tmp_path: Path, sink: TrackioSink, step: Make, finding: Make) -> None:
    opened()
    sink.record(step(1), {})
    hostile = "so **b** `c` [d](javascript:1) <script>e</script> \x1b[2J\n# big"
    sink.finding(finding(message=hostile, advice=""))
    sink.finding(finding(detector="kl-drift", severity="warn", finding_id="f1", message="kl rose", advice=""))
    sink.close()
    trackio.finish()
    found = read(tmp_path / "tests.db")
    said = found.of("rlmon/report")[-1][1].splitlines()[-2:]
    assert [line[:15] for line in said] == ["- **FAIL** form", "- **WARN** kl-d"]  # the gravest first
    assert not set("*`[]<>\x1b#") & set(said[0][10:])
    assert said[1] == "- **WARN** kl-drift, step 47: kl rose."
    assert "\x1b" not in found.alerts[0][2]


def test_tables_are_bounded_and_printable(
    tmp_path: Path, sink: TrackioSink, step: Make, finding: Make, action: Make
) -> None:
    opened()
    sink.record(step(1), {})
    sink.table(1, [{"mode": "prose", "reward": 1 / 3, "completion": "<b>a</b>\x1b[2J" + "y" * 9_000}] * 100)
    for number in range(MAX_FINDINGS + 10):
        sink.finding(finding(finding_id=str(number), step=number, value=1 / 3))
    sink.action(action())
    sink.action(action(phase="applied", step=121))
    sink.close()
    trackio.finish()
    found = read(tmp_path / "tests.db")
    [(at, samples)] = found.of("rlmon/samples")
    assert (at, len(samples), list(samples[0])) == (1, MAX_TABLE_ROWS, list(SAMPLE_COLUMNS))
    assert samples[0]["completion"].startswith("<b>a</b>\\x1b[2J")
    assert len(samples[0]["completion"]) < 4_100
    assert samples[0]["reward"] == 1 / 3  # an audit reads it
    [(_, findings)] = found.of("rlmon/findings")
    assert [row["step"] for row in findings] == list(range(MAX_FINDINGS + 9, 9, -1))  # the newest first
    assert list(findings[0]) == [column.replace("_", " ") for column in FINDING_COLUMNS]
    assert findings[0]["value"] == 0.3333  # for people
    [(_, acts)] = found.of("rlmon/interventions")
    assert [(row["step"], row["change"], row["outcome"]) for row in acts] == [
        (120, "kappa (format) 1 -> 1.15", "applied")
    ]


def test_silent_without_a_run(sink: TrackioSink, step: Make, finding: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    for absent in (False, True):
        if absent:
            monkeypatch.delitem(sys.modules, "trackio")
        sink.record(step(1), {})
        sink.finding(finding())
        sink.table(1, [{}])
        sink.close()
        assert ("trackio" in sys.modules) is not absent  # looked for, never imported


def test_a_second_run_is_told_all_of_it(tmp_path: Path, sink: TrackioSink, step: Make, finding: Make) -> None:
    for number, name in enumerate(("first", "second"), start=1):
        opened(name)
        sink.record(step(number), {})
        sink.finding(finding(step=number, finding_id=str(number)))
        sink.record(step(number + 10), {})
        sink.close()
        trackio.finish()
        sink.close()  # nothing to write to, nothing raised
    first, second = (read(tmp_path / "tests.db", name) for name in ("first", "second"))
    assert [at for at, _ in first.of("rlmon/faults")] == [1, 11]
    assert [at for at, _ in second.of("rlmon/faults")] == [2, 12]
    assert [len(found.alerts) for found in (first, second)] == [1, 1]
    assert [len(rows) for _, rows in second.of("rlmon/findings")] == [1, 2]
    assert "rlmon" in second.config


def test_a_server_that_does_not_answer_costs_no_memory_without_end(
    sink: TrackioSink, step: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    away = "http://127.0.0.1:1"
    run = trackio.Run(url=away, project="tests", client=None, name="away", server_base_url=away, write_token="w")
    trackio.context_vars.current_run.set(run)
    for number in range(1, MAX_WAITING + 101):
        sink.record(step(number), {})
    assert len(run._queued_logs) == MAX_WAITING
    assert capsys.readouterr().err.count("rlmon leaves its own out") == 1
    run._queued_logs.clear()  # it was sent
    sink.record(step(MAX_WAITING + 200), {})
    assert len(run._queued_logs) == 1
    trackio.context_vars.current_run.set(None)
    run._queued_logs.clear()
    run._stop_flag.set()


@pytest.mark.slow
def test_a_step_costs_about_a_millisecond(sink: TrackioSink, step: Make) -> None:
    opened()
    names = [metric.name.replace("<mode>", "prose") for metric in METRICS]
    histograms = {f"rlmon/histogram/{name}": Histogram(list(range(33)), [1.5] * 32) for name in "abcd"}
    text = {"prompt": "p" * 300, "completion": "c" * 1_000, "reward": 0.5, "truncated": False}
    plain, with_table = [], []
    for number in range(1, 301):
        record = step(number, metrics=dict.fromkeys(names, number / 7))
        began = time.thread_time()
        sink.record(record, histograms)
        if number % 25 == 0:
            sink.table(number, [text] * 32)
        # A table is sent with the step after it.
        (with_table if number % 25 < 2 else plain).append(time.thread_time() - began)
    # Measured: 0.9 ms and 2 ms of processor time; the promise is 1 and 10.
    assert statistics.median(plain) < 0.003
    assert statistics.median(with_table) < 0.020
