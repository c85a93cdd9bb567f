"""Acts of a policy: lines with one action_id joined, and many like acts as one entry."""

from __future__ import annotations

from typing import Any

import pytest

from rlmon.acts import change, entries, fold, summary


def line(action_id: str, phase: str = "decided", **changes: Any) -> dict[str, Any]:
    return {
        "action_id": action_id, "phase": phase, "step": 10, "knob": "beta", "old": 0.0, "new": 0.05,
        "reason": "KL rose",
        "finding_id": None, "effect": None, "effect_reason": None, "rule": "kl-budget", "dry_run": False, **changes,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("knob", "old", "new", "words"),
    [
        ("kappa (format)", 1.0, 1.15, "kappa (format) 1 -> 1.15"),
        ("advantage_limit", None, 2.5, "advantage_limit none -> 2.5"),
        ("quarantine", "off", "on", "quarantine off -> on"),
        ("training", None, "stop", "training: stop"),
        ("beta", None, None, "beta"),
        ("advantages", None, "3", ""),
        ("draws", None, "3", ""),
    ],
)
def test_a_change_in_words(knob: str, old: Any, new: Any, words: str) -> None:
    assert change(knob, old, new) == words


def test_the_phases_of_an_act_are_one_act() -> None:
    lines = [
        line("a"), line("b", step=12), line("a", "applied"),
        line("b", "failed", step=13, reason="KL rose: RuntimeError"),
        line("c", dry_run=True, step=14), line("a", "measured", step=30, effect="helped", effect_reason="0.4 -> 0.2"),
    ]  # fmt: skip
    acts = fold(lines)
    assert [(act.action_id, act.step, act.outcome, act.effect) for act in acts] == [
        ("a", 10, "applied", "helped"), ("b", 12, "failed", None), ("c", 14, "dry run", None),
    ]  # fmt: skip
    assert [act.reason for act in acts] == ["KL rose", "KL rose: RuntimeError", "KL rose"]
    assert acts[0].effect_reason == "0.4 -> 0.2"
    assert summary(acts) == "3 acts by 1 rule: 1 applied, 1 dry run, 1 failed; 1 helped"
    assert summary([]) == ""


def test_acts_on_rows_are_one_entry_as_long_as_they_ended_alike() -> None:
    rows = {"rule": "quarantine", "knob": "advantages", "old": None, "new": "1"}
    lines = [
        *(line(f"q{step}", phase, **rows, step=step) for step in (1, 2, 3) for phase in ("decided", "applied")),
        line("q1", "measured", **rows, step=21, effect="helped"),
        line("q2", "measured", **rows, step=22, effect="harmed"),
        line("q3", "measured", **rows, step=23, effect="not_measured"),
        line("q4", **rows, step=4), line("k1", step=2), line("k2", step=4),
    ]  # fmt: skip
    shown = [
        (e.newest.rule, e.newest.outcome, e.count, e.first_step, e.newest.step, e.effect) for e in entries(fold(lines))
    ]
    assert shown == [
        ("kl-budget", "decided", 1, 4, 4, ""),
        ("quarantine", "decided", 1, 4, 4, ""),
        ("quarantine", "applied", 3, 1, 3, "1 helped, 1 harmed"),
        ("kl-budget", "decided", 1, 2, 2, ""),
    ]


def test_a_line_of_any_shape_is_taken() -> None:
    odd: list[dict[str, Any]] = [
        {}, {"action_id": 3, "step": "x", "old": [], "new": {}, "reason": None}, {"phase": "measured", "effect": 4},
        {"action_id": "a", "old": True, "new": 10**400, "dry_run": "yes"},
    ]  # fmt: skip
    acts = fold(odd)
    assert len(acts) == 4
    assert all(isinstance(act.change + act.reason + act.rule, str) for act in acts)
    assert len(entries(acts)) == 4
    assert summary(acts).startswith("4 acts")
