"""What is said when a run begins and when it ends."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import pytest

from rlmon import console, detectors
from rlmon.records import Finding

HERE = Path("/runs/my run")


def finding(detector: str, severity: Any, step: int, message: str = "", advice: str = "") -> Finding:
    return Finding(
        finding_id=f"{detector}-{step}", detector=detector, severity=severity, step=step, metric="m", value=None,
        baseline=None, threshold=None, source=None, message=message or f"{detector}: it fell from 4.7 to 2.1. More.",
        advice=advice, baseline_kind="none", baseline_prompts=0, benign_sharpening=None,
    )  # fmt: skip


def status(**words: str) -> list[dict[str, Any]]:
    return [{"id": name.replace("_", "-"), "status": word, "bets": 3} for name, word in words.items()]


def test_hello() -> None:
    assert console.hello(HERE) == "watching, log in /runs/my run · rlmon watch '/runs/my run'"


def test_goodbye_has_verdict_cause_one_thing_to_change_and_the_command() -> None:
    told = [
        finding("kl-drift", "warn", 3),
        finding("silent-groups-good", "note", 4),
        finding("format-collapse", "fail", 9, advice="Raise beta (0.05; or .1), lower learning_rate; or stop. Or not."),
        finding("answer-concentration", "fail", 12, advice="Drop them."),
    ]
    assert console.goodbye(HERE, told, status(a="ok"), compared=True, step=30) == (
        "FAIL since step 9, ended at step 30 · format-collapse: it fell from 4.7 to 2.1 (and 2 more) · Raise beta · "
        "rlmon report '/runs/my run'"
    )
    warned = console.goodbye(HERE, told[:2], status(kl_drift="warn"), compared=True, step=5, interrupted=True)
    assert warned.startswith("WARN since step 3, interrupted at step 5 · kl-drift: it fell")
    assert "silent-groups-good" not in warned


def test_a_pass_is_earned_and_notes_are_no_part_of_it() -> None:
    note = [finding("silent-groups-good", "note", 4, advice="Move to harder prompts, or stop.")]
    judged = status(a="ok", b="ok", c="waiting", silent_groups_good="note")
    assert console.goodbye(HERE, note, judged, compared=True, step=30) == (
        "PASS, ended at step 30 · 3 of 4 detectors judged · a note on compute: silent-groups-good (Move to harder "
        "prompts) · rlmon report '/runs/my run'"
    )
    start = detectors.start(alpha=0.01, total_steps=10, group_size=4)
    fresh = detectors.status(start)
    said = console.goodbye(HERE, [], fresh, compared=detectors.judged(start), step=0)
    assert said.startswith("not judged, ended at step 0: too short to compare")
    assert "not judged" in console.goodbye(HERE, [], status(a="ok"), compared=False, step=3)


def test_an_alarm_of_before_a_resume_is_still_the_verdict() -> None:
    said = console.goodbye(HERE, [], status(format_collapse="fail", kl_drift="ok"), compared=True, step=30)
    assert said.startswith("FAIL, ended at step 30 · raised before this train(): format-collapse · ")


def test_hostile_text_is_one_printable_line(monkeypatch: pytest.MonkeyPatch) -> None:
    odd = [finding("x", "fail", 1, message="x: \x1b[2J\nforged\u202e " + "y" * 999, advice="\x07 a\nb")]
    text = console.goodbye(Path("/a\nb"), odd, [], compared=True, step=2)
    assert text.isprintable()
    assert text.endswith("rlmon report '/a\\nb'")
    ascii_only = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stderr", ascii_only)
    console.say("läuft · ok")
    ascii_only.seek(0)
    assert ascii_only.read() == "rlmon: l\\xe4uft \\xb7 ok\n"
    monkeypatch.setattr(sys, "stderr", None)
    console.say("nobody hears this")
