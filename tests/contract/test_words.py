"""People are told things in plain words, one for each thing (docs/glossary.md); names in JSON and trackers stay."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from rlmon.audit.checks import ABOUT_ROWS, ABOUT_THE_MONITOR, FOLDS, HINDSIGHT
from rlmon.detectors import DETECTORS
from rlmon.report.charts import CHARTS
from rlmon.report.live import HEADLINE

GLOSSARY = Path(__file__).parents[2] / "docs" / "glossary.md"
NEEDS_THE_MANUAL = re.compile(
    r"\b(effective|modes?|kappa|the policy|extinct|onset)\b|lone success|silent group", re.IGNORECASE
)


def told() -> Iterator[tuple[str, str]]:
    """Where it is said, and the text."""
    for spec in DETECTORS:
        yield from ((spec.id, text) for text in (*spec.told, spec.meaning, spec.advice, spec.unit))
    # What the monitor says while it runs, what an audit asks, how figures and the screen of a live run are labelled.
    yield from ((question.id, question.title) for question in (*FOLDS, *HINDSIGHT, *ABOUT_ROWS, *ABOUT_THE_MONITOR))
    for title, unit, curves in CHARTS:
        yield from ((title, text) for text in (title, unit, *(label for _, label in curves)))
    yield from HEADLINE.items()


def test_what_people_read_needs_no_manual() -> None:
    said = list(told())
    assert len(said) > 150
    assert [(where, text) for where, text in said if NEEDS_THE_MANUAL.search(text)] == []


@pytest.mark.parametrize("text", ["4 effective formats", "silent groups", "The policy is far", "which modes", "Kappa"])
def test_the_check_can_fail(text: str) -> None:
    assert NEEDS_THE_MANUAL.search(text)


def test_each_word_is_in_the_glossary_once() -> None:
    words = re.findall(r"^\| (.+?) \|", GLOSSARY.read_text(encoding="utf-8"), re.M)[2:]
    assert len(words) == len(set(words)) >= 15
