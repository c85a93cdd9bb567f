"""Checks as objects: every one has a name, a question, and says which core question it answers."""

from __future__ import annotations

import typing

from rlmon.audit.checks import ABOUT_ROWS, ABOUT_THE_MONITOR, FOLDS, HINDSIGHT
from rlmon.audit.result import Core
from rlmon.detectors import DETECTORS

EVERY = FOLDS + HINDSIGHT + ABOUT_ROWS + ABOUT_THE_MONITOR


def test_every_check_is_one_object_with_a_name_of_its_own_and_a_question() -> None:
    ids = [asked.id for asked in EVERY]
    assert len(set(ids)) == len(ids)
    assert all(asked.title.endswith("?") for asked in EVERY)
    assert [asked.id for asked in FOLDS] == [spec.id for spec in DETECTORS]


def test_every_core_question_is_answered_by_some_check() -> None:
    assert set(typing.get_args(Core)) <= {asked.core for asked in EVERY}
