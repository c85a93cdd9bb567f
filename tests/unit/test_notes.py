"""A healthy run that solved its prompts, from its log to every place where somebody reads of it: a pass with a note."""

from __future__ import annotations

import io
import json
import random
import shutil
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import sums_shown
import torch
from page_parts import data_of
from rich.console import Console

import rlmon
from rlmon import cli
from rlmon.audit import engine
from rlmon.audit.result import Audit
from rlmon.detectors.catalog import VERSION
from rlmon.monitor import About
from rlmon.report.audit import build_page
from rlmon.report.live import View
from rlmon.report.watch import frame
from rlmon.sinks.terminal import TerminalSink

STEPS, SOLVED_FROM, PROMPTS, GROUP = 90, 40, 8, 8
WRITE = (
    "Adding {a} and {b} gives {c}.",
    "{c}",
    '{{"answer": {c}}}',
    "\\boxed{{{c}}}",
    "```python\nprint({a} + {b})\n```",
    "1. Take {a}.\n2. Add {b}.\n3. That is {c}.",
)


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six formats in equal parts throughout; from step 40 on nearly every completion is right (.5 before)."""
    folder = tmp_path_factory.mktemp("solved") / "run"
    draw, noise = random.Random(5), torch.Generator().manual_seed(5)
    monitor = rlmon.Monitor(
        rlmon.RLMonConfig(rlmon_console=False), directory=folder, group_size=GROUP, about=About(total_steps=STEPS)
    )
    for step in range(1, STEPS + 1):
        sums = [(draw.randint(2, 60), draw.randint(2, 60)) for _ in range(PROMPTS)]
        rows = [(a, b) for a, b in sums for _ in range(GROUP)]
        ease = 0.5 if step < SOLVED_FROM else 0.995
        completions = [draw.choice(WRITE).format(a=a, b=b, c=a + b) for a, b in rows]
        sums_shown.observe(monitor, step, rows, completions, [float(draw.random() < ease) for _ in rows], noise)
        assert monitor.end_step(step) is not None
    assert [(f.detector, f.severity) for f in monitor.findings] == [("silent-groups-good", "note")]
    monitor.close()
    return folder


@pytest.fixture(scope="module")
def audited(log: Path) -> Audit:
    return engine.audit(log)


def printed(log: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *options: str) -> str:
    monkeypatch.setattr(sys, "argv", ["rlmon", "audit", str(log), *options])
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert left.value.code == 0, options
    return capsys.readouterr().out


def test_the_verdict_is_pass_and_the_note_says_since_when_and_what_to_change(audited: Audit) -> None:
    assert audited.verdict == "pass"
    spoken = [check for check in audited.checks if check.status not in ("pass", "skip")]
    assert [(check.id, check.status) for check in spoken] == [("silent-groups-good", "note")]
    (note,) = spoken
    assert note.first_step is not None
    assert SOLVED_FROM <= note.first_step <= SOLVED_FROM + 5
    assert note.alarm_step is not None
    assert note.alarm_step >= note.first_step
    assert "every completion is right" in note.message
    assert f"NOTE at step {note.alarm_step}" in note.message
    assert "harder prompts" in note.advice
    assert f"A note on compute: silent-groups-good since step {note.first_step}." in audited.headline
    # It is read after what went wrong and before what passed.
    assert audited.checks[0] is note


def test_no_exit_code_in_any_form_and_all_forms_show_it(
    log: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def form(name: str) -> str:
        return printed(log, capsys, monkeypatch, "--format", name, "--fail-on", "warn", "--strict")

    rich = form("rich")
    assert "\n PASS " in rich
    assert "NOTE  silent-groups-good" in rich
    assert "→ Move to harder prompts" in " ".join(rich.split())
    assert "A note" in rich
    markdown = form("markdown")
    assert "🟢 rlmon: PASS" in markdown
    assert "| 🔵 NOTE | silent-groups-good |" in markdown
    assert "**What to do:** Move to harder prompts" in markdown
    case = ElementTree.fromstring(form("junit")).find("testsuite/testcase[@name='silent-groups-good']")
    assert case is not None
    assert [child.tag for child in case] == ["system-out"]
    assert (case[0].text or "").startswith("NOTE: ")
    levels = [line.split(" ")[0] for line in form("github").splitlines()]
    assert levels == ["::notice", "::notice"]
    value: dict[str, Any] = json.loads(form("json"))
    assert value["verdict"] == "pass"
    assert {c["status"] for c in value["checks"]} == {"note", "pass", "skip"}
    assert [f["severity"] for f in value["findings"]] == ["note"]


def test_the_page_has_it_apart_from_what_went_wrong(audited: Audit) -> None:
    page = build_page(audited)
    data = data_of(page)
    assert data["verdict"] == "pass"
    (note,) = [check for check in data["checks"] if check["status"] == "note"]
    assert note["id"] == "silent-groups-good"
    marks = [(event["kind"], event["severity"]) for event in data["events"] if event["check"] == "silent-groups-good"]
    assert marks == [("onset", "note"), ("finding", "note")]
    # Its curve is one of the first, not behind the disclosure.
    assert any(data["checks"].index(note) in chart["checks"] for chart in data["charts"])


def test_watch_shows_it_once(log: Path) -> None:
    view = View(log)
    while view.poll():
        pass
    stream = io.StringIO()
    Console(file=stream, width=120, highlight=False).print(frame(view, width=120, now_unix_seconds=0.0))
    text = stream.getvalue()
    assert "Newest findings (of 1 NOTE)" in text
    # Once as what was said, once as the detector's state.
    assert [line.split()[:2] for line in text.splitlines() if line.startswith("NOTE")] == [
        ["NOTE", "step"],
        ["NOTE", "silent-groups-good"],
    ]


def test_the_console_says_it_once(log: Path) -> None:
    stream = io.StringIO()
    sink = TerminalSink(stream)
    run = rlmon.open_run(log)
    for record in run.iter_steps():
        sink.record(record, {})
        for finding in run.findings:
            if finding.step == record.step:
                sink.finding(finding)
    assert stream.getvalue().count("NOTE") == 1


def test_a_log_of_the_version_before_passes_too_and_nothing_false_is_said(log: Path, tmp_path: Path) -> None:
    """There the same finding was a WARN, by the detectors of version 1: it is judged anew, and not compared."""
    old = tmp_path / "old"
    shutil.copytree(log, old)
    swap(old / "events.jsonl", '"severity": "note"', '"severity": "warn"')
    swap(old / "run.json", f'"version": {VERSION}', '"version": 1')
    (said,) = rlmon.open_run(old).findings
    assert said.severity == "warn"
    found = engine.audit(old)
    assert found.verdict == "pass"
    replayed = next(check for check in found.checks if check.id == "replay")
    assert replayed.status == "skip"
    assert replayed.reason is not None
    assert f"silent-groups-good WARN at step {said.step}" in replayed.reason
    assert "version 1" in replayed.reason
    # With the present version, a finding that was changed by hand is still found out.
    swap(old / "run.json", '"version": 1', f'"version": {VERSION}')
    assert next(check for check in engine.audit(old).checks if check.id == "replay").status == "warn"


def swap(path: Path, before: str, after: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert before in text
    path.write_text(text.replace(before, after), encoding="utf-8")
