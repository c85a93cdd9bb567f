"""What a policy asks for against what a run is: errors, notes, and their words."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import pytest

from rlmon.controller import load_policy
from rlmon.detectors import DETECTORS
from rlmon.interventions.policy import Policy
from rlmon.interventions.policy_file import preset_names
from rlmon.interventions.setting import DetectorFacts, MetricFacts, Setting
from rlmon.interventions.validate import Problem, problems, said
from rlmon.metrics.catalog import METRICS
from rlmon.metrics.formats import BUILT_IN_MODES

KL = "rlmon/kl/mean"
TOP = "rlmon/format/top_share"


def setting(missing: Mapping[str, str] | None = None, silent: Mapping[str, str] | None = None, **facts: Any) -> Setting:
    """A GRPO run of 8 prompts x 8 completions a step. ``missing``: by family, why it is not measured."""
    missing, silent = {"value": "there is no critic", **(missing or {})}, silent or {}
    return Setting(
        metrics={
            metric.name: MetricFacts(
                low=metric.low, high=metric.high, missing=missing.get(metric.name.split("/")[1]),
                every_steps=10 if "/kl/" in metric.name else 1,
            )
            for metric in METRICS
        },
        detectors={
            spec.id: DetectorFacts(
                severities=spec.rungs, silent=silent.get(spec.id), compares=spec.rule in ("effective", "ratio")
            ) for spec in DETECTORS
        },
        modes=BUILT_IN_MODES,
        **facts,
    )  # fmt: skip


USUAL = setting()


def rules(**given: Mapping[str, Any]) -> Policy:
    return load_policy({"rules": {name.replace("_", "-"): dict(rule) for name, rule in given.items()}})


def one(when: Any, do: Any = "stop", facts: Setting = USUAL, **more: Any) -> list[Problem]:
    return list(problems(rules(rule={"when": when, "do": do, **more}), facts))


def errors(found: list[Problem]) -> str:
    return "\n".join(said(problem) for problem in found if problem.error)


def notes(found: list[Problem]) -> str:
    return "\n".join(said(problem) for problem in found if not problem.error)


NO_KL = setting({"kl": "rlmon_base_kl is off (set rlmon_base_kl: auto)"}, {"kl-drift": "rlmon_base_kl is off"})


@pytest.mark.parametrize(
    ("when", "facts", "words"),
    [
        ({"metric": KL, "above": 0.3}, NO_KL, ["kl/mean is never measured", "set rlmon_base_kl: auto"]),
        ({"metric": "rlmon/kl/mode/json", "above": 0.3}, NO_KL, ["kl/mode/json is never measured"]),
        ({"metric": "rlmon/value/loss", "above": 1.0}, USUAL, ["value/loss is never measured: there is no critic"]),
        ({"metric": "rlmon/format/share/jsno", "below": 0.1}, USUAL, ["no format mode 'jsno'", "Did you mean json?"]),
        ({"metric": "rlmon/entropy/mode/pythn", "below": 1}, USUAL, ["no format mode", "Did you mean python?"]),
        ({"finding": "silent-groups-good", "severity": "fail"}, USUAL, ["only note", "Type severity: note"]),
        ({"finding": "silent-groups-good"}, USUAL, ["never says warn, only note"]),
        ({"finding": "kl-drift"}, NO_KL, ["kl-drift can never fire: rlmon_base_kl is off"]),
        ({"metric": TOP, "above": 1.0}, USUAL, ["1 at most, and never above 1"]),
        ({"metric": TOP, "above": 90}, USUAL, ["never above 90", "Did you mean above: 0.9?"]),
        ({"metric": "rlmon/format/effective", "below": 0.5}, USUAL, ["1 at least, and never below 0.5"]),
        ({"all": [{"metric": TOP, "above": 0.9}, {"metric": TOP, "below": 0.5}]}, USUAL, ["at once"]),
        ({"any": [{"all": [{"metric": TOP, "above": 0.9}, {"metric": TOP, "below": 0.5}]}]}, USUAL, ["at once"]),
        ({"all": [{"finding": "kl-drift"}, "always"]}, NO_KL, ["kl-drift can never fire"]),
        ({"any": [{"finding": "kl-drift"}, {"metric": KL, "above": 1}]}, NO_KL, ["kl-drift", "kl/mean"]),
        ({"metric": "rlmon/intervention/kappa", "above": 0.5}, USUAL, ["no rule of this policy does mode_marginal"]),
        ({"metric": "rlmon/intervention/beta", "above": 0.1}, USUAL, ["beta is 0 at most"]),
    ],
)
def test_what_can_never_hold_is_an_error(when: Any, facts: Setting, words: list[str]) -> None:
    found = errors(one(when, facts=facts))
    assert found.startswith("rule rule: can never fire: ")
    for word in words:
        assert word in found


@pytest.mark.parametrize(
    "when",
    [
        {"metric": TOP, "above": 0.99},
        {"metric": "rlmon/format/effective", "below": 1.01},
        {"finding": "silent-groups-good", "severity": "note"},
        {"finding": "format-collapse", "severity": "fail", "lasts_steps": 5},
        {"metric": TOP, "above": 1.5, "of": "base"},
        # Held by its hysteresis: above .5 until .475, and below .49.
        {"all": [{"metric": TOP, "above": 0.5}, {"metric": TOP, "below": 0.49}]},
        {"all": [{"metric": TOP, "above": 0.5}, {"metric": TOP, "below": 0.9}]},
        {"any": [{"metric": TOP, "above": 0.9}, {"metric": TOP, "below": 0.5}]},
        {"metric": "rlmon/entropy/mean", "above": 1e-9},
    ],
)
def test_what_can_hold_is_none(when: Any) -> None:
    assert errors(one(when)) == ""


@pytest.mark.parametrize(
    ("do", "facts", "words"),
    [
        ({"action": "winsorise", "limit": 0}, USUAL, ["limit: 0 makes every advantage 0", "Type limit: 2.5"]),
        ({"action": "winsorise", "limit": 2.0}, setting(most_advantage=1.5, group_size=4), ["never pass 1.5"]),
        ({"action": "mode_marginal", "kappa": 0, "bounds": [0, 1]}, USUAL, ["kappa: 0 adds nothing", "Type kappa: 1"]),
        ({"action": "mode_marginal", "bound": 0}, USUAL, ["bound: 0 adds nothing"]),
        ({"action": "anchor", "weight": 0}, USUAL, ["weight: 0"]),
        ({"action": "anchor", "decay": 0}, USUAL, ["decay: 0"]),
        ({"action": "anchor", "below": 0}, USUAL, ["below: 0"]),
        ({"action": "kl_penalty", "start": 0}, USUAL, ["start: 0 never takes beta above"]),
        ({"action": "kl_penalty", "start": 0, "bounds": [0, 0]}, USUAL, ["bounds: [0, 0] never takes beta above"]),
        ({"action": "kl_penalty", "factor": 1}, setting(beta=0.1), ["factor: 1 never takes beta above the 0.1"]),
        ("kl_penalty", setting(beta=0.3), ["beta is 0.3 from the start, and bounds end at 0.3"]),
        ("kl_penalty", setting(beta=0.3, beta_name="kl_coef"), ["kl_coef is 0.3"]),
        ({"action": "kl_penalty", "off_when_silent": 0}, USUAL, ["off_when_silent: 0 suspends"]),
        ({"action": "entropy_bonus", "increment": 0}, USUAL, ["increment is 0"]),
        ({"action": "entropy_bonus", "bounds": [0, 0]}, USUAL, ["bounds end at 0"]),
        ({"action": "entropy_bonus", "target": 0}, setting(moved=frozenset({"entropy_coef"})), ["target: 0"]),
        ({"action": "quarantine", "solve_rate_below": 0}, USUAL, ["solve_rate_below: 0"]),
        ("quarantine", setting(group_size=1), ["groups of one"]),
        ({"action": "quarantine", "signs": 4, "most_successes": 0}, USUAL, ["signs: 4 are needed, and 3 can be seen"]),
        ({"action": "defer", "share": 0}, USUAL, ["share: 0"]),
        ({"action": "defer", "solve_rate_below": 0}, USUAL, ["below every solve rate"]),
    ],
)
def test_what_changes_nothing_is_an_error(do: Any, facts: Setting, words: list[str]) -> None:
    found = errors(one({"finding": "format-collapse"}, do, facts))
    assert found.startswith("rule rule: is of no use: ")
    for word in words:
        assert word in found
    # A dry run changes nothing anyway, and says what it would do.
    assert errors(one({"finding": "format-collapse"}, do, facts, dry_run=True)) == ""


@pytest.mark.parametrize(
    ("when", "do", "facts", "words"),
    [
        ({"metric": TOP, "above": 1.5, "of": "base"}, "stop", {"steps": 3}, "measured 3 times in 3 steps"),
        # 30 steps are three values of KL.
        ({"metric": KL, "above": 1.5, "of": "base"}, "stop", {"steps": 30}, "its base takes the first 4"),
        ({"finding": "format-collapse"}, "stop", {"steps": 3}, "max_steps: 3 ends within that"),
        ("always", "defer", {"prompt_attempts": 12}, "12 attempts"),
        ("always", {"action": "defer", "by": "source"}, {"steps": 10}, "640 completions"),
        ({"finding": "kl-drift"}, "roll_back", {"first_checkpoint": 500, "steps": 100}, "would come at step 500"),
        ({"metric": TOP, "above": 0.9, "smooth_steps": 50}, "stop", {"steps": 40}, "smooth_steps is 50"),
    ],
)
def test_that_a_run_is_too_short_is_a_note(when: Any, do: Any, facts: dict[str, Any], words: str) -> None:
    """A policy is tried out in runs of a few steps."""
    found = one(when, do, setting(**facts, **({"rounds": facts["steps"]} if "steps" in facts else {})))
    assert errors(found) == ""
    assert words in notes(found)


def test_what_the_trainer_lacks_is_an_error_of_what_acts() -> None:
    facts = setting(lacks={"beta": "it has no reference.", "roll_back": "nothing is saved"})
    assert errors(one("always", "kl_penalty", facts)) == "rule rule: it has no reference."
    assert errors(one({"finding": "kl-drift"}, {"action": "roll_back"}, facts)) == "rule rule: nothing is saved."
    assert "no reference" in errors(
        one({"finding": "kl-drift"}, {"action": "roll_back", "beta": 0.1}, dataclasses.replace(
            facts, lacks={"beta": "it has no reference"}
        ))
    )  # fmt: skip
    assert errors(one("always", "kl_penalty", facts, dry_run=True)) == ""
    assert "nothing to reset" in errors(one("always", "reset_reference"))
    assert errors(one("always", "reset_reference", setting(beta=0.1))) == ""


def test_a_rule_that_waits_for_itself_or_for_one_that_waits_for_it() -> None:
    coef, beta = "rlmon/intervention/entropy_coef", "rlmon/intervention/beta"
    itself = {"when": {"metric": coef, "above": 0.01}, "do": "entropy_bonus"}
    found = errors(list(problems(rules(spread=itself), USUAL)))
    assert "Only this rule would change that, and it waits for it" in found
    cycle = {
        "spread": {"when": {"metric": beta, "above": 0.01}, "do": "entropy_bonus"},
        "near": {"when": {"metric": coef, "above": 0.001}, "do": "kl_penalty"},
    }
    found = errors(list(problems(rules(**cycle), USUAL)))
    assert found.count("wait for one another") == 2
    # With something that begins it, the same rules can fire.
    cycle["near"] = {**cycle["near"], "when": {"any": [cycle["near"]["when"], {"finding": "kl-drift"}]}}
    assert errors(list(problems(rules(**cycle), USUAL))) == ""
    # Given from the start, or turned by the trainer itself, it needs no rule.
    assert errors(list(problems(rules(spread=itself), setting(entropy_coef=0.02)))) == ""
    assert errors(list(problems(rules(spread=itself), setting(moved=frozenset({"entropy_coef"}))))) == ""
    # A dry run turns nothing that another rule could wait for; and no bound of a rule is passed.
    dry = {"near": {"when": "always", "do": "kl_penalty", "dry_run": True}, "stop-then": {
        "when": {"metric": beta, "above": 0.01}, "do": "stop"}}  # fmt: skip
    assert "beta is 0 at most" in errors(list(problems(rules(**dry), USUAL)))
    dry["near"] = {"when": "always", "do": "kl_penalty"}
    assert errors(list(problems(rules(**dry), USUAL))) == ""
    dry["stop-then"] = {"when": {"metric": beta, "above": 0.4}, "do": "stop"}
    assert "beta is 0.3 at most, and never above 0.4" in errors(list(problems(rules(**dry), USUAL)))


def test_all_that_is_wrong_is_said() -> None:
    found = problems(
        rules(
            a={"when": {"metric": KL, "above": 0.3}, "do": "stop"},
            b={"when": {"metric": "rlmon/format/share/jsno", "above": 0.3}, "do": {"action": "winsorise", "limit": 0}},
        ),
        NO_KL,
    )
    assert [(problem.rule, problem.text.split(":")[0]) for problem in found if problem.error] == [
        ("a", "can never fire"),
        ("b", "can never fire"),
        ("b", "is of no use"),
    ]


@pytest.mark.parametrize(
    ("when", "do", "facts", "more", "words"),
    [
        ("always", "stop", USUAL, {}, "ends training at the first step"),
        ("always", "roll_back", USUAL, {}, "wants to go back at the first step"),
        ({"metric": TOP, "below": 85}, "stop", USUAL, {}, "below 85 holds always. Did you mean below: 0.85?"),
        ({"metric": TOP, "above": -1}, "stop", USUAL, {}, "above -1 holds always"),
        ({"metric": "rlmon/format/reward/json", "below": 0.1}, "stop", USUAL, {}, "null in steps without"),
        (
            {"any": [{"finding": "kl-drift"}, {"metric": TOP, "above": 0.9}]},
            "stop",
            NO_KL,
            {},
            "a part of its condition",
        ),
        ("always", "kl_penalty", setting({"kl": "off"}, beta=0.01), {}, "its effect is not measured"),
        ({"finding": "kl-drift"}, "kl_penalty", USUAL, {"measure_after_steps": 20}, "2 values in"),
        (
            {"finding": "kl-drift"},
            "anchor",
            setting(steps=15),
            {"measure_after_steps": 30},
            "30, and the run has 15",
        ),
        ({"finding": "kl-drift"}, {"action": "quarantine", "signs": 4}, USUAL, {}, "3 can be seen here"),
    ],
)
def test_what_is_odd_is_a_note(when: Any, do: Any, facts: Setting, more: Any, words: str) -> None:
    found = one(when, do, facts, **more)
    assert errors(found) == ""
    assert words in notes(found)


def test_a_dry_run_is_wrong_only_where_it_could_be_meant_in_no_run() -> None:
    assert errors(one({"metric": KL, "above": 0.3}, facts=NO_KL, dry_run=True)) == ""
    assert "never measured" in notes(one({"metric": KL, "above": 0.3}, facts=NO_KL, dry_run=True))
    assert "jsno" in errors(one({"metric": "rlmon/format/share/jsno", "above": 0.3}, dry_run=True))


@pytest.mark.parametrize("name", preset_names())
@pytest.mark.parametrize(
    "facts",
    [
        USUAL,
        setting(steps=4, rounds=4, most_advantage=1.5, group_size=4),
        setting(silent={"lone-success": "a critic is the baseline"}, critic=True, beta=0.3, group_size=1),
        NO_KL,
    ],
    ids=["usual", "smoke", "ppo", "no kl"],
)
def test_a_preset_is_never_refused_for_what_it_has_nothing_to_do_with(name: str, facts: Setting) -> None:
    found = list(problems(load_policy(name), facts))
    assert errors(found) == ""
    # Changed by the user, the same rule is asked for by itself.
    if name == "strict" and facts.critic:
        mine = {"extends": "strict", "rules": {"bound-lone-successes": {"cool_off_steps": 3}}}
        assert "lone-success can never fire" in errors(list(problems(load_policy(mine), facts)))


def test_the_usual_setting_has_nothing_against_the_presets() -> None:
    assert [said(p) for name in preset_names() for p in problems(load_policy(name), USUAL)] == []
