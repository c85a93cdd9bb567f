"""The terminal sink: one line per finding, and nothing hostile reaches the terminal."""

from __future__ import annotations

import io
import unicodedata
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlmon.printable import one_line
from rlmon.records import Action, Finding, StepRecord
from rlmon.sinks.terminal import TerminalSink

MakeStep = Callable[..., StepRecord]
MakeFinding = Callable[..., Finding]
MakeAction = Callable[..., Action]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_finding_is_one_line_with_step_detector_message_and_advice(step: MakeStep, finding: MakeFinding) -> None:
    stream = io.StringIO()
    TerminalSink(stream).finding(finding())
    assert stream.getvalue() == (
        "rlmon FAIL step 47 format-collapse: effective formats fell to 2.1 of 4.7 -> set beta: 0.1\n"
    )


def test_what_narrowed_is_a_line_below_the_finding(finding: MakeFinding) -> None:
    stream = io.StringIO()
    TerminalSink(stream).words(finding(), "formats: prose 60% to 2%, \x1b[2J bare 0% to 60%")
    assert stream.getvalue() == "rlmon FAIL step 47 formats: prose 60% to 2%, \\x1b[2J bare 0% to 60%\n"


def test_a_fault_is_left_to_the_rank_it_happens_on(step: MakeStep) -> None:
    stream = io.StringIO()
    TerminalSink(stream).record(step(1, faults={"metrics.formats": 2}), {})
    assert stream.getvalue() == ""


def test_lost_rows_are_said_once(step: MakeStep) -> None:
    stream = io.StringIO()
    sink = TerminalSink(stream)
    sink.record(step(1, shed_rows=0), {})
    assert stream.getvalue() == ""
    sink.record(step(2, shed_rows=16), {})
    sink.record(step(3, shed_rows=24), {})
    assert stream.getvalue() == "rlmon FAULT step 2 16 rollout rows could not be written to the run log\n"


def test_colour_only_on_a_terminal(monkeypatch: pytest.MonkeyPatch, step: MakeStep, finding: MakeFinding) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    terminal = Terminal()
    TerminalSink(terminal).finding(finding())
    assert terminal.getvalue().startswith("rlmon \x1b[1;31mFAIL\x1b[0m step 47")
    monkeypatch.setenv("NO_COLOR", "1")
    plain = Terminal()
    TerminalSink(plain).finding(finding())
    assert plain.getvalue().startswith("rlmon FAIL step 47")


def test_a_note_is_not_coloured_as_an_alarm(
    monkeypatch: pytest.MonkeyPatch, step: MakeStep, finding: MakeFinding
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    terminal = Terminal()
    TerminalSink(terminal).finding(finding(severity="note"))
    assert terminal.getvalue().startswith("rlmon \x1b[2mNOTE\x1b[0m step 47")


@pytest.mark.parametrize(
    ("hostile", "shown"),
    [
        ("\x1b[2J\x1b]0;owned\x07", "\\x1b[2J\\x1b]0;owned\\x07"),  # clear screen, set title
        ("a\r\nrlmon FAIL step 1", "a\\r\\nrlmon FAIL step 1"),  # a forged line
        ("\u202eevil\u2069", "\\u202eevil\\u2069"),  # direction override
        ("a\u2028b\x85c\x9bm", "a\\u2028b\\x85c\\x9bm"),  # other line ends, 8-bit CSI
        ("\ud800", "\\ud800"),  # lone surrogate
        ("[bold red]x[/] <b>", "[bold red]x[/] <b>"),  # markup is text
        ("a\xa0b\u3000c", "a b c"),
        ("Größe 数", "Größe 数"),
    ],
)
def test_hostile_text_is_shown_not_obeyed(hostile: str, shown: str, step: MakeStep, finding: MakeFinding) -> None:
    assert one_line(hostile) == shown
    stream = io.StringIO()
    TerminalSink(stream).finding(finding(message=hostile, advice=""))
    assert stream.getvalue() == f"rlmon FAIL step 47 format-collapse: {shown}\n"


@given(st.text(st.characters(), max_size=80), st.integers(1, 40))
def test_one_line_is_printable_bounded_and_keeps_printable_text(text: str, limit: int) -> None:
    shown = one_line(text, limit)
    assert len(shown) <= limit
    assert all(unicodedata.category(character)[0] not in "C" for character in shown)
    if text.isprintable() and len(text) <= limit:
        assert shown == text


def test_a_stream_that_cannot_encode_gets_escapes(step: MakeStep, finding: MakeFinding) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    TerminalSink(stream).finding(finding(message="Größe", advice=""))
    stream.seek(0)
    assert stream.read() == "rlmon FAIL step 47 format-collapse: Gr\\xf6\\xdfe\n"


# ---- acts of the policy


def said(*actions: Action) -> list[str]:
    stream = io.StringIO()
    sink = TerminalSink(stream)
    for one in actions:
        sink.action(one)
    sink.close()
    return stream.getvalue().splitlines()


def test_a_decision_is_one_line_and_what_becomes_of_it_none(action: MakeAction) -> None:
    phases = [action(), action(phase="applied"), action(phase="measured", effect="helped", effect_reason="rose")]
    assert said(*phases) == [
        "rlmon ACT step 120 hold-formats: kappa (format) 1 -> 1.15 · effective formats are 0.8 of the base's"
    ]


def test_what_failed_or_harmed_is_said_and_a_dry_run_would_have(action: MakeAction) -> None:
    assert said(
        action(dry_run=True, knob="training", old=None, new="stop", reason="format-collapse FAIL"),
        action(phase="failed", reason="below: RuntimeError: odd"),
        action(phase="measured", step=140, effect="harmed", effect_reason="4.1 -> 3.2 over 20 steps"),
    ) == [
        "rlmon ACT step 120 hold-formats would: training: stop · format-collapse FAIL",
        "rlmon FAILED step 120 hold-formats: kappa (format) 1 -> 1.15 · below: RuntimeError: odd",
        "rlmon HARMED step 140 hold-formats: kappa (format) 1 -> 1.15 · 4.1 -> 3.2 over 20 steps",
    ]


def test_a_rule_that_acts_in_every_round_is_said_every_20_steps_and_counted_between(action: MakeAction) -> None:
    rounds = [
        action(step=step, rule="quarantine", knob="advantages", old=None, new="1", reason="1 group neutralised")
        for step in range(100, 145)
    ]
    # Said at 100, 120 and 140: 19 are counted between two lines, and 141 to 144 at the end.
    assert said(*rounds, action(step=121)) == [
        "rlmon ACT step 100 quarantine: 1 group neutralised",
        "rlmon ACT step 120 quarantine: 1 group neutralised (19 more since the last line)",
        "rlmon ACT step 140 quarantine: 1 group neutralised (19 more since the last line)",
        "rlmon ACT step 121 hold-formats: kappa (format) 1 -> 1.15 · effective formats are 0.8 of the base's",
        "rlmon ACT quarantine: 4 more after step 140, all of them in the log",
    ]


def test_an_act_is_shown_not_obeyed(action: MakeAction) -> None:
    (line,) = said(action(rule="\x1b[2J", reason="a\nrlmon FAIL step 1"))
    assert line == "rlmon ACT step 120 \\x1b[2J: kappa (format) 1 -> 1.15 · a\\nrlmon FAIL step 1"
