"""Answers of checks made by hand, with what their questions say beside: what they are about, how they are told."""

from __future__ import annotations

from typing import Any

from rlmon.audit.checks import ABOUT_ROWS, ABOUT_THE_MONITOR, FOLDS, HINDSIGHT
from rlmon.audit.result import Check

_QUESTIONS = {asked.id: asked for asked in FOLDS + HINDSIGHT + ABOUT_ROWS + ABOUT_THE_MONITOR}


def answer(**fields: Any) -> Check:
    """The check of these fields; ``core`` is that of the fields alone."""
    asked = _QUESTIONS.get(fields["id"])
    return Check(**fields) if asked is None else asked.says(**{"core": None} | fields)
