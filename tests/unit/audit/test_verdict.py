"""What the checks of a run come to together, and what it rests on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from rlmon.audit.result import Check
from rlmon.audit.verdict import QUESTIONS, coverage, reached, unsure


def asked(core: Any, status: Any, check_id: str = "x", reason: str | None = None) -> Check:
    return Check(
        id=check_id, title="?", status=status, method="hindsight", message="3, line 2", core=core, reason=reason
    )


def all_but(*cores: str, more: Sequence[Check] = ()) -> list[Check]:
    """A check that passed for every core question but these, and more."""
    return [*(asked(core, "pass") for core in QUESTIONS if core not in cores), *more]


@pytest.mark.parametrize(
    ("checks", "verdict"),
    [
        (all_but(), "pass"),
        (all_but(more=[asked(None, "skip"), asked(None, "error"), asked(None, "unsure")]), "pass"),
        (all_but(more=[asked("reward", "note")]), "pass"),
        (all_but(more=[asked("entropy", "fail"), asked(None, "warn")]), "fail"),
        # What is bad is bad, however little else was seen.
        ([asked(None, "warn"), asked("entropy", "skip")], "warn"),
        # One answer to a question is enough.
        (all_but("formats", more=[asked("formats", "skip"), asked("formats", "pass")]), "pass"),
        # One that may be past its line is not outweighed by another that is not.
        (all_but("formats", more=[asked("formats", "unsure"), asked("formats", "pass")]), "insufficient"),
        (all_but("entropy", more=[asked("entropy", "skip")]), "insufficient"),
        (all_but("reward", more=[asked("reward", "error")]), "insufficient"),
        (all_but("groups"), "insufficient"),
        ([], "insufficient"),
    ],
)
def test_a_pass_answers_every_core_question(checks: list[Check], verdict: str) -> None:
    assert reached(checks, coverage(checks, outputs=True)) == verdict


def test_curves_are_not_asked_for_formats() -> None:
    curves = all_but("formats")
    assert reached(curves, coverage(curves, outputs=False)) == "pass"
    assert reached(curves, coverage(curves, outputs=True)) == "insufficient"
    assert set(coverage([], outputs=False).missing) == set(QUESTIONS) - {"formats", "reward"}


def test_what_is_missing_and_how_to_have_it_next_time() -> None:
    checks = all_but(
        "entropy",
        "length",
        more=[
            asked("entropy", "skip", "entropy-collapse", "no entropy was logged; set log_entropy"),
            asked("entropy", "skip", "entropy-explosion", "no entropy was logged; set log_entropy"),
            asked("length", "skip", "truncation", "truncation was not logged"),
            asked("length", "unsure", "length-collapse", "too few steps since"),
            asked(None, "skip"),
        ],
    )
    covered = coverage(checks, outputs=True)
    assert covered.missing == {
        "entropy": "no entropy was logged; set log_entropy",
        "length": "length-collapse: 3, line 2: too few steps since",
    }
    assert (covered.judged, covered.checks) == (4, 9)
    assert str(covered) == "4 of 9 judged"
    said = unsure(covered, "3 steps")
    assert "entropy and length or truncation" in said
    assert "in 3 steps" in said
