"""What is worth an alert, of all that detectors say."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rlmon import detectors
from rlmon.records import VERDICT_WORDS, Finding, RunHeader
from rlmon.runlog import RunLogWriter
from rlmon.sinks.alerts import Alert, Alerts

MakeFinding = Callable[..., Finding]


@pytest.fixture
def header(header: Callable[..., RunHeader]) -> RunHeader:
    """Of a run whose detectors are armed again after 20 records."""
    return dataclasses.replace(header(), detectors={"parameters": {"rearm_records": 20}})


def told(alerts: Alerts, finding: MakeFinding, story: list[tuple[int, str]]) -> list[tuple[int, str]]:
    """Step and severity of the alerts that a story of one detector gives."""
    made = [alerts.take(finding(step=step, severity=severity)) for step, severity in story]
    return [(alert.step, alert.severity) for alert in made if alert is not None]


def test_first_word_escalation_and_what_comes_back(header: RunHeader, finding: MakeFinding) -> None:
    alerts = Alerts()
    alerts.open(header)
    story = [(1, "warn"), (3, "warn"), (5, "fail"), (9, "fail"), (9, "warn"), (29, "warn"), (31, "fail"), (60, "fail")]
    # The second warn and the second fail are those told already; 29 is 20 after 9, and begins a new alarm.
    assert told(alerts, finding, story) == [(1, "warn"), (5, "fail"), (29, "warn"), (31, "fail"), (60, "fail")]
    assert (alerts.verdict, alerts.first_alarm_step) == ("fail", 1)
    assert alerts.gravest == {"format-collapse": "fail"}


def test_an_alert_is_short_and_safe_to_show(header: RunHeader, finding: MakeFinding) -> None:
    alerts = Alerts()
    alerts.open(header)
    long = "formats fell\x1b[2J to 2.1. So many words. And more"
    first = alerts.take(
        finding(step=3, severity="warn", message=f"format-collapse: {long}", advice="set beta: 0.1. Or")
    )
    assert first == Alert(
        severity="warn",
        detector="format-collapse",
        step=3,
        title="rlmon WARN: format-collapse",
        text="Step 3: formats fell\\x1b[2J to 2.1. set beta: 0.1.",
    )
    again = alerts.take(finding(step=40, severity="warn", advice="", detector="format-collapse"))
    assert again is not None
    assert again.text == "Step 40: effective formats fell to 2.1 of 4.7. It was found before, at step 3."
    other = alerts.take(finding(step=41, detector="a\nb"))
    assert other is not None
    assert other.title == "rlmon FAIL: a\\nb"


def test_a_note_is_told_once_and_is_no_alarm(header: RunHeader, finding: MakeFinding) -> None:
    alerts = Alerts()
    alerts.open(header)
    assert told(alerts, finding, [(1, "note"), (90, "note")]) == [(1, "note")]
    assert (alerts.verdict, VERDICT_WORDS[alerts.verdict], alerts.first_alarm_step) == ("insufficient", "UNSURE", None)
    alerts.judged = True
    assert (alerts.verdict, VERDICT_WORDS[alerts.verdict]) == ("pass", "PASS")
    assert alerts.ended(90) is None


def test_nothing_is_told_twice_after_a_resume(tmp_path: Path, header: RunHeader, finding: MakeFinding) -> None:
    def attempt(number: int, from_step: int | None, *findings: Finding) -> RunHeader:
        """An attempt that found these; the header is that of the log."""
        mine = dataclasses.replace(header, attempt=number, run_id=f"r{number}")
        writer = RunLogWriter.open(tmp_path, mine, resume=from_step is not None, from_step=from_step)
        for one in findings:
            writer.append_event("finding", one)
        writer.close()
        return writer.header

    attempt(0, None, finding(detector="kl-drift", step=3))  # another run, that lay in the folder
    early = finding(step=30, severity="warn", finding_id="early")
    attempt(1, None, early, finding(step=47, severity="fail"))
    resumed = attempt(2, 35)
    alerts = Alerts(tmp_path)
    # What came after the checkpoint of step 35 is no part of the run any more, but people were told.
    assert [one.finding_id for one in alerts.open(resumed)] == ["early"]
    assert (alerts.verdict, alerts.first_alarm_step) == ("warn", 30)
    assert told(alerts, finding, [(48, "fail")]) == []
    assert alerts.verdict == "fail"
    assert told(alerts, finding, [(67, "fail"), (90, "warn")]) == [(90, "warn")]  # 67 is 19 after 48
    assert alerts.take(finding(detector="kl-drift", step=91)) is not None


def test_somewhere_else_all_is_told_anew(header: RunHeader, finding: MakeFinding) -> None:
    alerts = Alerts()
    alerts.open(header)
    assert told(alerts, finding, [(1, "warn"), (2, "warn")]) == [(1, "warn")]
    alerts.tell_anew()
    assert told(alerts, finding, [(3, "warn")]) == [(3, "warn")]
    assert alerts.first_alarm_step == 1
    alerts.judged = True
    alerts.open(header)
    assert (alerts.verdict, alerts.first_alarm_step) == ("insufficient", None)  # another run
    assert alerts.ended(3) is None


def test_a_detector_that_was_armed_again_is_heard_again(header: RunHeader, step: Any) -> None:
    """With the real detectors: one NaN is an alarm, 20 clean records arm it again, and every finding is an alert."""
    state = detectors.start(alpha=0.01, total_steps=100, group_size=4)
    metric = state.roster.immediate[0].statistics[0]
    alerts = Alerts()
    alerts.open(dataclasses.replace(header, detectors=detectors.describe(state)))
    steps = []
    for number in range(1, 61):
        bad = number in (5, 6, 20, 45)
        state, findings = detectors.step(state, step(number, metrics={metric: 1.0 if bad else 0.0}))
        steps += [alert.step for alert in map(alerts.take, findings) if alert is not None]
    # 20 is 14 clean records after 6: not yet armed. 45 is 25 after 20.
    assert steps == [5, 45]
