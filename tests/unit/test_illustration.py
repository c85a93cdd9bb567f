"""Which rows of a round are shown."""

from __future__ import annotations

import numpy as np

from rlmon.monitor.illustration import SAMPLE_ROWS, Illustration


def test_formats_that_are_new_or_die_come_first_and_the_rest_is_an_even_spread() -> None:
    shown = Illustration(["prose", "boxed", "json", "bare"], keeps_text=True)
    base = {"format/mode_count": np.array([50.0, 30.0, 20.0, 0.0])}
    # Of 200 rows: prose 120 (60 %, 50 before), boxed 60 (30 %, as before), json 10 (5 %, 20 before: below half), and 10
    # of a format that the baseline did not have.
    mode = ["prose"] * 120 + ["boxed"] * 60 + ["json"] * 10 + ["bare"] * 10
    shown.keep({"mode": mode, "row": range(200), "reward": None}, mode, [""] * 200, base=base)
    rows = shown.samples
    assert len(rows) == SAMPLE_ROWS
    assert [row["mode_change"] for row in rows] == ["new"] * 8 + ["dying"] * 8 + [""] * 16
    assert {row["mode"] for row in rows[:8]} == {"bare"}
    assert {row["mode"] for row in rows[8:16]} == {"json"}
    rest = [row["row"] for row in rows[16:]]
    assert rest == sorted(rest)
    assert rest[0] == 0
    assert rest[-1] == 179  # the last row that is neither
    assert rows[0]["reward"] is None


def test_where_one_format_is_all_there_is_as_many_rows_are_shown() -> None:
    shown = Illustration(["prose", "bare"], keeps_text=True)
    mode = ["bare"] * 100
    shown.keep({"row": range(100)}, mode, [""] * 100, base={"format/mode_count": np.array([90.0, 0.0])})
    assert len(shown.samples) == SAMPLE_ROWS
    assert {row["mode_change"] for row in shown.samples} == {"new"}
    shown.keep({"row": range(5)}, ["prose"] * 5, [""] * 5, base=None)
    assert [row["mode_change"] for row in shown.samples] == [""] * 5
    shown.keep({"row": []}, [], [], base=None)
    assert shown.samples == []
