"""Checks as objects: every one has a name, a question, and says which core question it answers."""

from __future__ import annotations

import dataclasses
import typing
from types import SimpleNamespace
from typing import Any

import pytest

from rlmon.audit.checks import ABOUT_ROWS, ABOUT_THE_MONITOR, FOLDS, HINDSIGHT
from rlmon.audit.checks.question import Ends
from rlmon.audit.result import Check, Core
from rlmon.audit.verdict import coverage, reached
from rlmon.detectors import DETECTORS

EVERY = FOLDS + HINDSIGHT + ABOUT_ROWS + ABOUT_THE_MONITOR


def test_every_check_is_one_object_with_a_name_of_its_own_and_a_question() -> None:
    ids = [asked.id for asked in EVERY]
    assert len(set(ids)) == len(ids)
    assert all(asked.title.endswith("?") for asked in EVERY)
    assert [asked.id for asked in FOLDS] == [spec.id for spec in DETECTORS]


def test_every_core_question_is_answered_by_some_check() -> None:
    assert set(typing.get_args(Core)) <= {asked.core for asked in EVERY}


@pytest.mark.parametrize("check_id", ["near-duplicates", "sentence-openings", "word-diversity"])
def test_a_sign_of_narrowing_that_is_unsure_leaves_the_formats_open(check_id: str) -> None:
    """Formats were judged and kept, and yet something narrowed perhaps: that is no pass."""
    asked = next(asked for asked in EVERY if asked.id == check_id)
    answer: dict[str, Any] = {"status": "unsure", "message": "6 -> 3", "reason": "few"}
    doubtful = dataclasses.replace(asked, needs=(), judge=lambda ask, _: ask.says(**answer))
    nothing: Any = SimpleNamespace(run=SimpleNamespace(lacks={}))
    ends = Ends(case=nothing, groups={}, contrast=None, wording=None, strata=None, alpha=0.01)
    kept = Check(id="format-collapse", title="?", status="pass", method="fold", message="4 -> 4", core="formats")
    found = doubtful.ask(ends)
    covered = coverage([kept, found], outputs=True)
    assert "few" in covered.missing["formats"]
    assert reached([kept, found], covered) == "insufficient"
    # Chance: the base lies inside of the interval.
    for low, open_ in ((2.0, True), (7.0, False)):
        answer |= {"baseline": 6.0, "value": 3.0, "interval": (1.0, low)}
        assert ("formats" in coverage([kept, doubtful.ask(ends)], outputs=True).missing) is open_
