"""The terminal sink: one line per finding, and nothing hostile reaches the terminal."""

from __future__ import annotations

import io
import unicodedata
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlmon.printable import one_line
from rlmon.records import Finding, StepRecord
from rlmon.sinks.terminal import TerminalSink

MakeStep = Callable[..., StepRecord]
MakeFinding = Callable[..., Finding]


def no_rows(count: int) -> list[dict[str, object]]:
    raise AssertionError("the terminal shows no rows")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_finding_is_one_line_with_step_detector_message_and_advice(step: MakeStep, finding: MakeFinding) -> None:
    stream = io.StringIO()
    TerminalSink(stream).record(step(47), [finding()], no_rows)
    assert stream.getvalue() == (
        "rlmon FAIL step 47 format-collapse: effective formats fell to 2.1 of 4.7 -> set beta: 0.1\n"
    )


def test_a_fault_is_left_to_the_rank_it_happens_on(step: MakeStep) -> None:
    stream = io.StringIO()
    TerminalSink(stream).record(step(1, faults={"metrics.formats": 2}), [], no_rows)
    assert stream.getvalue() == ""


def test_lost_rows_are_said_once(step: MakeStep) -> None:
    stream = io.StringIO()
    sink = TerminalSink(stream)
    sink.record(step(1, shed_rows=0), [], no_rows)
    assert stream.getvalue() == ""
    sink.record(step(2, shed_rows=16), [], no_rows)
    sink.record(step(3, shed_rows=24), [], no_rows)
    assert stream.getvalue() == "rlmon FAULT step 2 16 rollout rows could not be written to the run log\n"


def test_colour_only_on_a_terminal(monkeypatch: pytest.MonkeyPatch, step: MakeStep, finding: MakeFinding) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    terminal = Terminal()
    TerminalSink(terminal).record(step(47), [finding()], no_rows)
    assert terminal.getvalue().startswith("rlmon \x1b[1;31mFAIL\x1b[0m step 47")
    monkeypatch.setenv("NO_COLOR", "1")
    plain = Terminal()
    TerminalSink(plain).record(step(47), [finding()], no_rows)
    assert plain.getvalue().startswith("rlmon FAIL step 47")


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
    TerminalSink(stream).record(step(47), [finding(message=hostile, advice="")], no_rows)
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
    TerminalSink(stream).record(step(47), [finding(message="Größe", advice="")], no_rows)
    stream.seek(0)
    assert stream.read() == "rlmon FAIL step 47 format-collapse: Gr\\xf6\\xdfe\n"
