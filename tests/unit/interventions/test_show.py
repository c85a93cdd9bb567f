"""A policy in words, and as a file to edit."""

from __future__ import annotations

from typing import Any

import pytest

from rlmon.interventions.policy import Policy, parse
from rlmon.interventions.show import row, to_yaml, words


def policy(source: Any) -> Policy:
    return parse(source, known_findings=None, known_metrics=None)


@pytest.mark.parametrize(
    ("when", "said"),
    [
        ("always", "always"),
        ({"finding": "kl-drift"}, "kl-drift WARN or worse"),
        ({"finding": "kl-drift", "severity": "fail", "lasts_steps": 50}, "kl-drift FAIL, for 50 steps"),
        ({"finding": "silent-groups-good", "severity": "note"}, "silent-groups-good NOTE or worse"),
        ({"metric": "rlmon/kl/mean", "above": 0.3}, "rlmon/kl/mean above 0.3 (mean of 5)"),
        ({"metric": "m/x", "below": 0.0, "smooth_steps": 1}, "m/x below 0 (mean of 1)"),
        (
            {"all": [{"finding": "a"}, {"any": ["always", {"metric": "m/x", "below": 0.5, "of": "base"}]}]},
            "(a WARN or worse and (always or m/x below 0.5 of its base (mean of 5)))",
        ),
    ],
)
def test_a_condition_in_words(when: Any, said: str) -> None:
    assert words(policy({"rules": {"r": {"when": when, "do": "stop"}}}).rules[0].when) == said


def test_only_what_differs_is_named() -> None:
    plain, changed = policy(
        {
            "rules": {
                "a": {"when": "always", "do": {"action": "mode_marginal", "modes": "format"}, "cool_off_steps": 10},
                "b": {
                    "when": "always",
                    "do": {"action": "kl_penalty", "bounds": [0.0, 0.5]},
                    "cool_off_steps": 3,
                    "dry_run": True,
                },
            }
        }
    ).rules
    assert row(plain).settings == ""
    assert row(changed).settings == "bounds [0.0, 0.5], cool_off_steps 3"
    assert (row(plain).dry_run, row(changed).dry_run) == (False, True)


def test_the_file_is_the_policy_whatever_its_names_hold() -> None:
    given = policy(
        {
            "dry_run": True,
            "rules": {
                "off": {"when": {"metric": 'rlmon/format/share/my "mode": #1', "above": 1e-7}, "do": "stop"},
                "back": {"when": {"any": ["always", {"finding": "yes"}]}, "do": {"action": "roll_back", "beta": 0.1}},
            },
        }
    )
    text = to_yaml(given)
    assert policy(text) == given
    # One word lets it act: no rule of it is a dry run of its own.
    acting = policy(text.replace("dry_run: true", "dry_run: false", 1))
    assert [rule.dry_run for rule in acting.rules] == [False, False]


def test_every_setting_is_explained_once() -> None:
    text = to_yaml(policy({"rules": {name: {"when": "always", "do": "quarantine", "dry_run": True} for name in "ab"}}))
    assert text.count("solve_rate_below:") == 2
    assert text.count("solve_rate_below: 0.125  # ") == 1
