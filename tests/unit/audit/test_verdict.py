"""What the checks of a run come to together, and what it rests on."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from typing import Any
from xml.etree import ElementTree

import pytest
from audit_rows import audited, check, draw, opened
from rich.console import Console

from rlmon.audit.checks.question import past_line
from rlmon.audit.readers.history import beside_curves
from rlmon.audit.readers.tables import no_completions
from rlmon.audit.result import Audit, Check
from rlmon.audit.verdict import QUESTIONS, coverage, reached, unsure
from rlmon.report import github, junit, markdown, terminal
from rlmon.report.audit import build_page


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
    assert set(coverage([], outputs=False).missing) == set(QUESTIONS) - {"formats"}


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


# --- from a run to its verdict ------------------------------------------------------------------------------------

STEPS = range(1, 61)
NOISE = (0.0, 0.02, -0.01, 0.03, -0.02, 0.01)


def curve(level: float) -> list[tuple[int, float]]:
    return [(step, level * (1.0 + NOISE[step % 6])) for step in STEPS]


CURVES = {
    "entropy": curve(0.5),
    "reward": curve(0.6),
    "reward_std": curve(0.3),
    "completions/mean_length": curve(200.0),
    "completions/clipped_ratio": [(step, 0.01) for step in STEPS],
    "grad_norm": curve(0.4),
}


@pytest.mark.parametrize(
    ("left_out", "missing"),
    [
        ((), set()),
        (("reward_std",), {"groups"}),
        (("entropy",), {"entropy"}),
        (("reward", "reward_std"), {"reward", "groups"}),
        # One of length and truncation is enough.
        (("completions/clipped_ratio",), set()),
        (("completions/mean_length",), set()),
        (("completions/clipped_ratio", "completions/mean_length"), {"length"}),
    ],
)
def test_curves_pass_only_where_all_that_matters_was_logged(left_out: tuple[str, ...], missing: set[str]) -> None:
    logged = {name: values for name, values in CURVES.items() if name not in left_out}
    found = audited(opened(scalars=logged, lacks=beside_curves(no_completions("no completions here"), logged, {})))
    assert set(found.coverage.missing) == missing
    assert found.verdict == ("insufficient" if missing else "pass")
    # How to have it next time, by the name of a curve that would do.
    named = {"groups": "log reward_std", "reward": "log reward ", "length": "log completions/mean_length",
             "entropy": "TRL 0.18"}  # fmt: skip
    assert all(named[core] in reason for core, reason in found.coverage.missing.items())
    printed = [json.dumps(found.to_json()), markdown.render(found), junit.render(found), github.render(found),
               drawn(found), build_page(found)]  # fmt: skip
    for text in printed:
        shown = " ".join(text.replace("\\_", "_").split()).lower()
        assert f"{found.coverage.judged} of {found.coverage.checks} judged" in shown
        assert ("pass (curves only: outputs not seen)" in shown) == (not missing)
        assert all(QUESTIONS[core] in shown for core in missing)  # type: ignore[index]
    if missing:
        assert "::warning title=rlmon%3A UNSURE" in printed[3]
        assert "🟢 rlmon" not in printed[1]
        case = ElementTree.fromstring(printed[2]).find("testsuite/testcase[@name='verdict']")
        assert case is not None
        assert case.find("skipped") is not None


def drawn(found: Audit) -> str:
    stream = io.StringIO()
    Console(file=stream, width=120, highlight=False).print(terminal.render(found, width=120))
    return stream.getvalue()


def test_completions_need_formats_too() -> None:
    scalars = {"entropy": curve(0.5)}
    assert audited(opened(draw(1), scalars=scalars)).verdict == "pass"
    empty = draw(1).drop_columns(["completion"])
    unseen = audited(opened(empty, scalars=scalars | {"completions/mean_length": curve(200.0)}))
    assert set(unseen.coverage.missing) == {"formats"}
    assert unseen.verdict == "insufficient"


def test_no_value_past_its_line_is_under_a_pass() -> None:
    """Entropy that fell in the last steps: past its line, not for long enough for an alarm. The question is open."""
    late = [(step, value if step < 57 else 0.12) for step, value in curve(0.5)]
    found = audited(opened(scalars=CURVES | {"entropy": late}))
    one = check(found, "entropy-collapse")
    assert one.status == "unsure"
    assert one.reason
    assert "entropy-collapse" in found.coverage.missing["entropy"]
    assert found.verdict == "insufficient"
    for audit in (found, audited(draw(1)), audited(opened(scalars=CURVES))):
        assert not [one.id for one in audit.checks if one.status == "pass" and past_line(one)]


def test_what_can_only_be_a_note_leaves_no_question_open() -> None:
    late = [(step, 0.4 if step < 58 else 0.95) for step in STEPS]
    found = audited(opened(scalars=CURVES | {"rlmon/group/all_good": late}))
    assert check(found, "silent-groups-good").status in ("pass", "unsure")
    assert found.verdict == "pass"
