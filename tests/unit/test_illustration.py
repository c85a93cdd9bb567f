"""Which rows of a round are shown, and what a finding looks like in words."""

from __future__ import annotations

from typing import Any

import numpy as np

from rlmon.monitor.illustration import SAMPLE_ROWS, WORDS_CHARACTERS, Illustration, in_words


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


MODES = ["prose", "boxed", "json", "bare"]
OPENERS = ["The sum", "# +", "\x1b[31m`So", None]


def shown(keeps_text: bool = True) -> dict[str, Any] | None:
    """Prose is nearly gone, bare took over, json stayed; three openers moved, of which one is hostile."""
    kept = Illustration(MODES, keeps_text=keeps_text)
    base = {
        "format/mode_count": np.array([60.0, 30.0, 10.0, 0.0]),
        "moves/openers": np.array([30.0, 3.0, 2.0, 9.0]), "moves/tokens": np.array(1_000.0),
    }  # fmt: skip
    now = {
        "format": np.array([(np.array([2.0, 28.0, 10.0, 60.0]),)], dtype=[("mode_count", "f8", 4)])[0],
        "moves": np.array(
            [(np.array([2.0, 60.0, 40.0, 0.0]), 1_000.0)], dtype=[("openers", "f8", 4), ("tokens", "f8")]
        )[0],
    }  # fmt: skip
    kept.add(now)  # type: ignore[arg-type]
    return kept.of("format-collapse-fail-0-9-9", base, lambda: OPENERS)


def test_a_finding_says_which_formats_and_openers_went_and_came() -> None:
    assert in_words(shown()) == (
        "formats: prose 60% to 2%, bare 0% to 60% · sentences begin, per 1,000 tokens: `# +` 3 to 60, "
        "`\\x1b[31m'So` 2 to 40, `The sum` 30 to 2"
    )


def test_openers_are_told_only_where_texts_are_kept() -> None:
    assert in_words(shown(keeps_text=False)) == "formats: prose 60% to 2%, bare 0% to 60%"


def test_what_hardly_moved_is_not_told() -> None:
    same = {"losers": [{"mode": "prose", "base_share": 0.5, "now_share": 0.47}], "gainers": [], "openers": []}
    opener = {"opener": "So", "base_per_1000_tokens": 9.0, "now_per_1000_tokens": 10.0}
    assert in_words(same) == in_words(same | {"openers": [opener]}) == in_words(None) == ""
    unseen = {"opener": "(not seen here)", "base_per_1000_tokens": 60.0, "now_per_1000_tokens": 0.0}
    assert in_words(same | {"openers": [unseen]}) == ""


def test_words_are_one_short_line() -> None:
    long = [{"mode": "m" * 900, "base_share": 0.9, "now_share": 0.0}] * 9
    opener = {"opener": "\n" * 900, "base_per_1000_tokens": 60.0, "now_per_1000_tokens": 0.0}
    told = in_words({"losers": long, "gainers": long, "openers": [opener] * 9})
    assert len(told) <= WORDS_CHARACTERS
    assert told.isprintable()
