"""Policies: what can be written, what comes out, and what each mistake is answered with."""

from __future__ import annotations

import builtins
import dataclasses
import json
import math
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlmon.controller import load_policy
from rlmon.detectors import DETECTORS
from rlmon.errors import ConfigError, MissingExtraError
from rlmon.interventions import policy_file
from rlmon.interventions.actions import ACTIONS
from rlmon.interventions.entropy_bonus import EntropyBonus
from rlmon.interventions.kl_penalty import KLPenalty
from rlmon.interventions.mode_marginal import ModeMarginal
from rlmon.interventions.once import RollBack, Stop
from rlmon.interventions.policy import (
    MODE,
    AllOf,
    Always,
    AnyOf,
    OnFinding,
    OnMetric,
    Policy,
    Rule,
    parse,
)
from rlmon.interventions.winsorise import Winsorise
from rlmon.metrics.catalog import METRICS, local_metrics
from rlmon.restored import policy_change

FINDINGS = [spec.id for spec in DETECTORS]
NAMES = [metric.name for metric in METRICS]


def read(source: Any) -> Policy:
    return parse(source, known_findings=FINDINGS, known_metrics=NAMES)


def refused(source: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        read(source)
    text = str(caught.value)
    assert "\n" not in text
    return text


def one(do: Any = "stop", when: Any = "always", **fields: Any) -> dict[str, Any]:
    return {"rules": {"a-rule": {"when": when, "do": do, **fields}}}


# -- what can be written -----------------------------------------------------------------------------------------------


def test_every_part_of_the_grammar_comes_out_as_its_object() -> None:
    policy = read(
        """
        rules:
          hold-formats:
            when: always
            do: {action: mode_marginal, kappa: 1, bounds: [0.5, 2]}
            cool_off_steps: 3
            hysteresis: 0.1
            measure_after_steps: 7
            dry_run: yes
          drift:
            when: {metric: rlmon/format/effective, below: 0.85, of: base, smooth_steps: 2}
            do: kl_penalty
          stop-it:
            when:
              any:
                - finding: format-collapse
                - all:
                    - {finding: lone-success, severity: fail, lasts_steps: 9}
                    - {metric: rlmon/format/share/json, above: 1e-3}
            do: stop
        """
    )
    assert policy.dry_run is False
    assert [rule.name for rule in policy.rules] == ["hold-formats", "drift", "stop-it"]
    hold, drift, stop = policy.rules
    assert hold == Rule(
        name="hold-formats",
        when=Always(),
        action=ModeMarginal(kappa=1.0, bounds=(0.5, 2.0)),
        cool_off_steps=3,
        hysteresis=0.1,
        measure_after_steps=7,
        dry_run=True,
    )
    assert type(hold.action.kappa) is float
    assert drift == Rule(
        name="drift",
        when=OnMetric(metric="rlmon/format/effective", below=0.85, of="base", smooth_steps=2),
        action=KLPenalty(),
    )
    # 1e-3 without a point is text to PyYAML, and a number to everybody else.
    share = OnMetric(metric="rlmon/format/share/json", above=0.001)
    lone = OnFinding(finding="lone-success", severity="fail", lasts_steps=9)
    assert stop.when == AnyOf(conditions=(OnFinding(finding="format-collapse"), AllOf(conditions=(lone, share))))
    assert policy.rule("drift") is drift
    with pytest.raises(KeyError):
        policy.rule("drift-2")


@pytest.mark.parametrize("name", ACTIONS)
def test_an_action_by_its_name_alone_has_its_defaults(name: str) -> None:
    assert read(one(name)).rules[0].action == ACTIONS[name]()
    assert read(one({"action": name})) == read(one(name))


def test_a_mapping_a_file_its_text_json_and_a_policy_say_the_same(tmp_path: Path) -> None:
    mapping = one({"action": "winsorise", "limit": 2}, {"metric": "rlmon/kl/mean", "above": 0.3}, cool_off_steps=4)
    text = json.dumps(mapping)
    file = tmp_path / "p.yaml"
    file.write_text(text)
    indented = tmp_path / "p.json"
    indented.write_text(json.dumps(mapping, indent="\t"))  # tabs are no YAML
    policy = read(mapping)
    for same in (
        text,
        file,
        str(file),
        indented,
        policy,
        "rules:\n  a-rule: " + json.dumps(mapping["rules"]["a-rule"]),
    ):
        assert read(same) == policy
    assert read("rules: " + json.dumps(mapping["rules"])) == policy
    assert policy.rules[0].action == Winsorise(limit=2.0)


def test_the_resolved_dict_is_json_and_reads_back_equal() -> None:
    for source in (*policy_file.preset_names(), one({"action": "roll_back", "beta": 0.1}), one("roll_back")):
        policy = read(source)
        saved = json.loads(json.dumps(policy.to_dict(), allow_nan=False))
        assert Policy.from_dict(saved) == policy
        assert read(saved) == policy
    assert read(one("roll_back")).to_dict()["rules"]["a-rule"]["do"] == {"action": "roll_back", "beta": None}
    everything = read(one("kl_penalty")).to_dict()["rules"]["a-rule"]
    assert set(everything) == {"when", "do", *(f.name for f in dataclasses.fields(Rule))} - {"name", "action"}


def test_names_in_a_stored_policy_are_not_judged_by_this_version() -> None:
    stored = one("stop", {"finding": "a-detector-of-another-version"})
    assert Policy.from_dict(stored).rules[0].when == OnFinding(finding="a-detector-of-another-version")
    assert "is no detector" in refused(stored)


def test_numpy_numbers_and_tuples_of_a_python_caller_are_plain_numbers_here() -> None:
    policy = read(
        one({"action": "kl_penalty", "bounds": (np.float64(0.0), np.float32(0.5))}, cool_off_steps=np.int64(3))
    )
    assert policy.rules[0].action.bounds == (0.0, 0.5)
    assert type(policy.rules[0].cool_off_steps) is int
    json.dumps(policy.to_dict())


def test_anchors_aliases_and_merged_keys_are_fine() -> None:
    policy = read(
        """
        rules:
          first: &first
            when: &drift {metric: rlmon/kl/mean, above: 0.3}
            do: kl_penalty
            cool_off_steps: 7
          second:
            <<: *first
            do: stop
          third:
            when: *drift
            do: winsorise
        """
    )
    first, second, third = policy.rules
    assert (second.when, second.cool_off_steps, second.action) == (first.when, 7, Stop())
    assert third.when == first.when


def test_the_input_is_not_changed() -> None:
    mapping = {"extends": "protect", "rules": {"stay-near": {"cool_off_steps": 1}, "defer-guessed": "off"}}
    before = json.dumps(mapping)
    read(mapping)
    assert json.dumps(mapping) == before


# -- presets -----------------------------------------------------------------------------------------------------------


def test_observe_is_strict_without_acting_and_strict_is_protect_and_more() -> None:
    protect, strict, observe = read("protect"), read("strict"), read("observe")
    assert strict.rules[: len(protect.rules)] == protect.rules
    assert len(strict.rules) > len(protect.rules)
    assert all(rule.dry_run for rule in observe.rules)
    assert not any(rule.dry_run for rule in strict.rules)
    assert [dataclasses.replace(rule, dry_run=False) for rule in observe.rules] == list(strict.rules)


def test_a_rule_of_the_preset_is_changed_in_the_fields_that_are_named() -> None:
    protect = read("protect")
    policy = read(
        """
        extends: protect
        rules:
          stay-near: {cool_off_steps: 33}
          quarantine-shortcuts: off
          hold-formats:
            do: {action: mode_marginal, modes: template}
          my-own: {when: always, do: winsorise}
        """
    )
    names = [rule.name for rule in protect.rules if rule.name != "quarantine-shortcuts"]
    assert [rule.name for rule in policy.rules] == [*names, "my-own"]
    assert policy.rule("stay-near") == dataclasses.replace(protect.rule("stay-near"), cool_off_steps=33)
    # `do` is one field: what the preset set inside it is gone.
    assert policy.rule("hold-formats").action == ModeMarginal(modes="template")


def test_dry_run_of_the_policy_wins_over_that_of_its_rules_and_the_child_over_its_preset() -> None:
    dry = read({**one(dry_run=False), "dry_run": True})
    assert dry.dry_run
    assert dry.rules[0].dry_run
    assert read({"extends": "observe", "dry_run": False}) == read("strict")
    assert read({"extends": "protect", "dry_run": True}).rules[0].dry_run


def test_a_preset_wins_over_a_file_of_its_name_which_a_path_still_reaches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "protect").write_text(json.dumps(one()))
    assert read("protect") != read(one())
    assert read("./protect") == read(one())
    assert read(Path("protect")) == read(one())


# -- mistakes ----------------------------------------------------------------------------------------------------------


def test_the_place_of_a_mistake_is_file_and_line(tmp_path: Path) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text(
        "# a comment\n\nrules:\n  hold-formats:\n    when: always\n    do:\n"
        "      action: mode_marginal\n      kapa: 1\n"
    )
    settings = ", ".join(f.name for f in dataclasses.fields(ModeMarginal))
    assert refused(file) == (
        f"{file}:8: rules.hold-formats.do.kapa: unknown field. Did you mean kappa? mode_marginal takes {settings}."
    )
    # Text has lines as well, a mapping has none.
    assert refused(file.read_text()).startswith("policy text:8: rules.hold-formats.do.kapa: unknown field.")
    assert refused(one({"action": "stop", "x": 1})) == (
        "policy: rules.a-rule.do.x: unknown field. stop takes no settings."
    )


def test_a_mistake_in_a_list_names_the_item_and_its_line() -> None:
    text = "rules:\n  r:\n    do: stop\n    when:\n      any:\n        - always\n        - finding: x\n"
    assert refused(text).startswith("policy text:7: rules.r.when.any[1].finding: 'x' is no detector.")


def test_a_mistake_in_what_a_rule_inherits_is_told_where_it_stands() -> None:
    # The rule of the preset is in the preset's file, the two that clash name both places.
    text = "extends: protect\nrules:\n  mine: {when: always, do: kl_penalty}\n"
    said = refused(text)
    assert said.startswith("policy text:3: rules.mine: does kl_penalty, as stay-near does; one rule turns one knob.")
    assert "`stay-near: off`" in said
    assert "(preset protect:" in said


MISTAKES: list[tuple[Any, str]] = [
    # levels of unknown keys
    ({**one(), "rule": 1}, "rule: unknown field. Did you mean rules? A policy takes rules, extends, dry_run."),
    (one(cool_of_steps=3), "rules.a-rule.cool_of_steps: unknown field. Did you mean cool_off_steps?"),
    (one("stop", {"finding": "lone-success", "severty": "fail"}), "severty: unknown field. Did you mean severity?"),
    (one("stop", {"metric": "rlmon/kl/mean", "above": 1, "off": "base"}), "when.off: unknown field. Did you mean of?"),
    (one("stop", {"any": ["always"], "lasts_steps": 3}), "when.lasts_steps: unknown field."),
    # unknown names
    (one("mode_margnal"), "'mode_margnal' is no action. Did you mean mode_marginal? The actions are kl_penalty,"),
    (one({"action": "stopp"}), "'stopp' is no action. Did you mean stop?"),
    (one({"kappa": 1}), "rules.a-rule.do: has no action:; the actions are"),
    (one({"action": ["stop"]}), "is no action."),
    (one("stop", {"finding": "format-colapse"}), "'format-colapse' is no detector. Did you mean format-collapse?"),
    (one("stop", {"metric": "rlmon/kl/men", "above": 1}), "'rlmon/kl/men' is no metric. Did you mean rlmon/kl/mean?"),
    (one("stop", {"metric": f"rlmon/format/share/{MODE}", "above": 1}), "name the mode in place of <mode>."),
    (one("stop", {"metric": "rlmon/nothing/json", "above": 1}), "is no metric."),
    ({"extends": "protct"}, "is the text 'protct'; it takes observe, protect or strict. Did you mean protect?"),
    ({"extends": "protect", "rules": {"stay-nera": "off"}}, "such rule in what this extends. Did you mean stay-near?"),
    # wrong types
    (one({"action": "mode_marginal", "kappa": "1"}), "do.kappa: is the text '1'; it takes a number of at least 0."),
    (one({"action": "mode_marginal", "kappa": True}), "do.kappa: is true; it takes a number"),
    (one({"action": "mode_marginal", "kappa": None}), "do.kappa: is empty; it takes a number"),
    (one({"action": "mode_marginal", "kappa": [1]}), "do.kappa: is a list of 1; it takes a number"),
    (one({"action": "mode_marginal", "memory_completions": 64.5}), "is the number 64.5; it takes a whole number of at"),
    (one({"action": "mode_marginal", "modes": "formats"}), "it takes format, template, opening or moves. Did you mean"),
    (one({"action": "mode_marginal", "bounds": 1}), "do.bounds: is the number 1; it takes a list [least, most]."),
    (one({"action": "mode_marginal", "bounds": [1, 2, 3]}), "bounds: is a list of 3; it takes a list [least, most]."),
    (one({"action": "mode_marginal", "bounds": [1, "2"]}), "do.bounds[1]: is the text '2'; it takes a number"),
    (one(dry_run="yes"), "rules.a-rule.dry_run: is the text 'yes'; it takes true or false."),
    ({**one(), "dry_run": 1}, "dry_run: is the number 1; it takes true or false."),
    (one(7), "rules.a-rule.do: is the number 7; it takes the name of an action"),
    (one("stop", "sometimes"), "rules.a-rule.when: is the text 'sometimes'; a condition is always, or a mapping"),
    (one("stop", "format-collapse"), "Did you mean {finding: format-collapse}?"),
    (one("stop", ["always"]), "Put the list under any: or all:."),
    (one("stop", {"any": "always"}), "when.any: is the text 'always'; it takes a list of 1 to 16 conditions."),
    (one("stop", {"all": []}), "when.all: is an empty list; it takes a list of 1 to 16 conditions."),
    (one("stop", {"finding": 3}), "when.finding: is the number 3; it takes a name."),
    ({"rules": ["stop"]}, "rules: is a list of 1; it maps names of rules to rules."),
    ({"rules": {"a": "stop"}}, "rules.a: is the text 'stop'; a rule is a mapping with when: and do:, or off."),
    ({"rules": {"a": True}}, "rules.a: is true; a rule is a mapping"),
    ({"rules": {True: {}}}, "a rule's name is kebab-case"),
    (one("stop", {True: 1}), "neither finding, metric, any nor all"),
    (one({"action": "stop", False: 1}), "a key must be text. YAML reads on, off, yes and no as true and false"),
    ({"rules": {"Hold_Formats": {}}}, "rules.Hold_Formats: a rule's name is kebab-case"),
    (7, "policy: is the number 7; give observe, protect or strict, the path of a YAML file, or a mapping of rules."),
    (None, "policy: is empty; give"),
    # out of range
    (one({"action": "kl_penalty", "factor": 0.5}), "do.factor: is 0.5; it takes a number from 1 to 10."),
    (one({"action": "winsorise", "limit": -1}), "do.limit: is -1; it takes a number of at least 0."),
    (one({"action": "kl_penalty", "bounds": [-0.1, 1]}), "do.bounds[0]: is -0.1; it takes a number of at least 0."),
    (one({"action": "kl_penalty", "bounds": [0.3, 0.1]}), "do.bounds: is [0.3, 0.1]; the least comes first."),
    (one({"action": "mode_marginal", "kappa": 5, "bounds": [1, 2]}), "kappa 5 does not lie within bounds [1, 2]."),
    (one({"action": "kl_penalty", "bounds": [7, 8]}), "do.bounds: start 0.02 does not lie within bounds [7, 8]."),
    (one(hysteresis=1), "hysteresis: is 1; it takes a number from 0 to 0.9."),
    (one(cool_off_steps=-1), "cool_off_steps: is -1; it takes a whole number of at least 0."),
    (one(cool_off_steps=10**12), "cool_off_steps: is the number 1000000000000; whole numbers go to 1,000,000,000."),
    (one(measure_after_steps=0), "measure_after_steps: is 0; it takes a whole number from 1 to 10000."),
    (one("stop", {"finding": "lone-success", "lasts_steps": 0}), "lasts_steps: is 0; it takes a whole number of at"),
    (one({"action": "winsorise", "limit": math.nan}), "do.limit: is the number nan, which is not finite"),
    (one({"action": "winsorise", "limit": math.inf}), "do.limit: is the number inf, which is not finite"),
    (one({"action": "winsorise", "limit": 10**400}), "which is not finite"),
    (one("stop", {"metric": "rlmon/kl/mean", "above": -math.inf}), "when.above: is the number -inf, which is not"),
    (one("stop", {"metric": "rlmon/kl/mean", "above": 0, "of": "base"}), "when.above: is 0; of: base makes it a share"),
    # what does not go together
    (one("stop", {"metric": "rlmon/kl/mean"}), "when: has neither above: nor below:; exactly one is needed."),
    (one("stop", {"metric": "rlmon/kl/mean", "above": 1, "below": 0}), "when: has both above: and below:; exactly one"),
    (one("stop", {"finding": "lone-success", "metric": "x"}), "has finding and metric; a condition has exactly one"),
    (one("stop", {}), "says neither finding, metric, any nor all"),
    (one("stop", {"findings": "lone-success"}), "exactly one of them. Did you mean finding?"),
    ({"rules": {"a": {"do": "stop"}}}, "rules.a: has no when:, for example when: always."),
    ({"rules": {"a": {"when": "always"}}}, "rules.a: has no do:, for example do: mode_marginal."),
    ({}, "policy: has no rules:; write some, or extends: observe, protect or strict."),
    ({"rules": {}}, "rules: no rule is left to act."),
    ({"rules": {"a": False}}, "rules.a: is off, but there is no such rule"),
]  # fmt: skip


@pytest.mark.parametrize(("source", "said"), MISTAKES, ids=[said[:50] for _, said in MISTAKES])
def test_a_mistake_is_refused_with_what_came_and_what_was_needed(source: Any, said: str) -> None:
    text = refused(source)
    assert said in text
    assert text.startswith("policy: ")


def test_what_is_nested_or_repeated_without_end_is_refused() -> None:
    deep: Any = "always"
    for _ in range(9):
        deep = {"any": [deep]}
    assert read(one("stop", deep["any"][0])).rules[0].when != Always()
    assert "nested more than 8 deep" in refused(one("stop", {"any": [deep]}))
    many = {"rules": {f"r{i}": {"when": "always", "do": "stop", "dry_run": True} for i in range(65)}}
    assert "rules: 65 rules; 64 are allowed." in refused(many)
    del many["rules"]["r64"]
    assert len(read(many).rules) == 64
    assert "a list of 17" in refused(one("stop", {"any": ["always"] * 17}))


@pytest.mark.parametrize("name", ["kl_penalty", "winsorise", "stop", "quarantine", "defer", "anchor", "entropy_bonus"])
def test_two_rules_for_one_knob_are_refused_unless_one_is_dry(name: str) -> None:
    rules = {"a": {"when": "always", "do": name}, "b": {"when": "always", "do": name}}
    assert f"rules.b: does {name}, as a does; one rule turns one knob" in refused({"rules": rules})
    rules["b"]["dry_run"] = True  # type: ignore[assignment]
    assert len(read({"rules": rules}).rules) == 2


def test_two_kinds_of_modes_are_two_knobs() -> None:
    rules = {kind: {"when": "always", "do": {"action": "mode_marginal", "modes": kind}} for kind in ("format", "moves")}
    assert len(read({"rules": rules}).rules) == 2
    rules["moves"]["do"]["modes"] = "format"  # type: ignore[index]
    assert "rules.moves: does mode_marginal, as format does" in refused({"rules": rules})


def test_objects_are_checked_like_text() -> None:
    rule = Rule(name="a", when=Always(), action=EntropyBonus())
    assert read(Policy(rules=(rule,))) == Policy(rules=(rule,))
    with pytest.raises(ConfigError, match="given twice"):
        Policy(rules=(rule, rule))
    with pytest.raises(ConfigError, match="one rule turns one knob"):
        Policy(rules=(rule, dataclasses.replace(rule, name="b")))
    bad = Policy(rules=(dataclasses.replace(rule, action=EntropyBonus(increment=-1.0)),))
    assert "do.increment: is -1.0; it takes a number of at least 0." in refused(bad)
    assert "is no detector" in refused(Policy(rules=(dataclasses.replace(rule, when=OnFinding(finding="x")),)))
    with pytest.raises(ConfigError, match=r"rules\.a: a Always is no action"):
        Policy(rules=(dataclasses.replace(rule, action=Always()),))  # type: ignore[arg-type]
    assert Policy(rules=(rule,), dry_run=True).rules[0].dry_run
    assert not rule.dry_run
    assert read(Policy(rules=(dataclasses.replace(rule, action=RollBack(beta=0.1)),))).rules[0].action.beta == 0.1


# -- files -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "policy: is empty; give observe, protect or strict, a YAML file, or a mapping of rules."),
        ("# nothing\n# at all", "policy text: is empty; a policy has rules:"),
        ("---\n# nothing", "policy text: is empty; a policy has rules:"),
        ("rules:\n", "no rule is left to act"),
        ("- a\n- b", "policy text: is a list of 2; a policy is a mapping with rules:, extends: or dry_run:."),
        ("rules:\n  a: {when: always, do: stop}\n  a: {when: always, do: stop}\n",
         "policy text:3: rules.a: is given twice, the first time in line 2."),
        ("rules:\n  a:\n    when: always\n    do: stop\n    when: always\n",
         "policy text:5: rules.a.when: is given twice, the first time in line 3."),
        ("rules:\n  a: {when: always, do: stop, when: always}\n", "policy text:2: rules.a.when: is given twice"),
        ("rules:\n  a: [1, 2\n  b: 3\n", "policy text:3: is not YAML: "),
        ("rules:\n\ta: 1\n", "policy text:2: is not YAML: "),
        ("rules: {}\n---\nrules: {}\n", "policy text:2: is not YAML: expected a single document"),
        ("rules: *nobody\n", "policy text:1: is not YAML: found undefined alias"),
        ("a: \x00\n", "policy text: is not YAML: "),
        ("rules: !!python/object/apply:os.system ['x']\n", "policy text:1: rules: the tag"),
        ("rules: &a\n  a: *a\n", "policy text:1: rules.a: an alias stands inside what it names."),
        ("rules: &a\n  <<: *a\n", "<< takes an alias of a mapping"),
        ("rules:\n  ? [a]\n  : 1\n", "policy text:2: rules: a key must be a plain name."),
        ("rules:\n  a: {when: always, do: {action: winsorise, limit: .nan}}\n",
         "policy text:2: rules.a.do.limit: is the number nan, which is not finite"),
        ("rules:\n  a: {when: always, do: {action: winsorise, limit: .inf}}\n", "is the number inf"),
        ("rules:\n  a: {when: always, do: {action: winsorise, limit: 2020-13-45}}\n", "cannot be read as timestamp"),
        ("rules:\n  a: {when: always, do: {action: winsorise, limit: 2020-12-24}}\n", "is a date; it takes a number"),
        ('{"rules": {"a": {"when": "always", "do": "stop", "do": "stop"}}}', "rules.a.do: is given twice"),
        ('{\t"rules": {"a":\t1, "a":\t1}}', "given twice"),
        ('{"rules": {"a": {"when": "always", "do": {"action": "winsorise", "limit": NaN}}}}', "is the text 'NaN'"),
        ("extends: protect\nrules:\n  hold-formats: maybe\n", "policy text:3: rules.hold-formats: is the text 'maybe'"),
        ("extends: ./other.yaml\n", "extends: is the text './other.yaml'; it takes observe, protect or strict."),
        ("rules:\n  on: {when: always, do: stop}\n", "policy text:2: rules.True: a rule's name is kebab-case"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_policy(text: str, said: str) -> None:
    assert said in refused(text)


def test_what_a_path_does_not_lead_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert refused("protekt") == (
        "protekt: is neither a file nor a preset. Did you mean protect? The presets are observe, protect, strict."
    )
    assert "There is no folder nowhere." in refused("nowhere/policy.yaml")
    (tmp_path / "policy.yaml").write_text(json.dumps(one()))
    assert "Did you mean policy.yaml?" in refused("./polcy.yaml")
    assert "Did you mean policy.yaml?" in refused(tmp_path / "polcy.yaml")
    assert refused(tmp_path).endswith(": is a folder; a policy is one YAML file.")
    assert "cannot be read" in refused("x" * 5000)
    assert refused("a\x00b").startswith("a\\x00b: is neither a file nor a preset.")
    (tmp_path / "latin.yaml").write_bytes(b"rules: \xff\n")
    assert "latin.yaml: is not UTF-8 text" in refused("latin.yaml")
    (tmp_path / "empty.yaml").write_text("")
    assert "empty.yaml: is empty; a policy has rules:" in refused("empty.yaml")
    (tmp_path / "bom.yaml").write_bytes(b"\xef\xbb\xbf" + json.dumps(one()).encode())
    assert read("bom.yaml") == read(one())


def test_a_huge_file_is_not_read(tmp_path: Path) -> None:
    file = tmp_path / "huge.yaml"
    with file.open("wb") as sparse:
        sparse.truncate(10 * policy_file.MOST_BYTES)
    assert refused(file) == f"{file}: is larger than 1,000,000 bytes; a policy is a page of rules."
    assert "is larger than" in refused("#\n" * policy_file.MOST_BYTES)


def test_aliases_that_stand_for_billions_are_refused_at_once() -> None:
    lists = "\n".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12))
    assert "more than 20,000 values, aliases written out." in refused(f"a0: &a0 [x]\n{lists}\n")
    merges = "\n".join(f"a{i}: &a{i}\n  <<: [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12))
    assert "more than 20,000 values, aliases written out." in refused(f"a0: &a0 {{x: 1}}\n{merges}\n")


@pytest.mark.parametrize("depth", [40, 5_000])
def test_brackets_without_end_are_refused(depth: int) -> None:
    said = refused("rules: " + "[" * depth + "]" * depth)
    assert "nested too deep; 32 levels are allowed." in said


def test_a_line_of_an_override_is_its_own_and_of_the_rest_the_presets() -> None:
    text = "extends: protect\nrules:\n  stay-near:\n    do: {action: kl_penalty, factor: 100}\n"
    assert refused(text).startswith("policy text:4: rules.stay-near.do.factor: is 100; it takes a number from 1 to 10.")
    text = "extends: protect\nrules:\n  stay-near:\n    do: {action: kl_penalty, bounds: [0.5, 1.0]}\n"
    assert refused(text).startswith("policy text:4: rules.stay-near.do.bounds: start 0.02 does not lie within")


@pytest.mark.parametrize(
    "mapping",
    [
        {"rules": {"stay-near": {"do": {"action": "kl_penalty", "factor": 100}}}},
        {"rules": {"stay-near": {"when": {"metric": "rlmon/kl/mean", "above": "x"}}}},
        {"rules": {"stay-near": {"cool_off_steps": -1}}},
        {"rules": {"stay-near": {"colour": 1}}},
        {"rules": {"mine": {"when": "always"}}},
        {"rules": {"mine": {"when": "always", "do": "kl_penalty"}}},
        {"rules": dict.fromkeys([rule.name for rule in read("protect").rules], "off")},
        {"dry_run": 3},
    ],
)
def test_a_mapping_is_not_blamed_on_the_lines_of_the_preset_that_it_extends(mapping: dict[str, Any]) -> None:
    assert refused({"extends": "protect", **mapping}).startswith("policy: ")
    assert refused({"extends": "observe", "dry_run": 3}).startswith("policy: dry_run: ")


def test_a_key_that_overrides_a_merged_one_is_told_by_its_own_line() -> None:
    text = (
        "rules:\n  a: &a\n    when: always\n    do: stop\n    cool_off_steps: 1\n"
        "  b:\n    cool_off_steps: -1\n    do: winsorise\n    <<: *a\n"
    )
    assert refused(text).startswith("policy text:7: rules.b.cool_off_steps: is -1;")
    assert refused(text.replace("steps: 1", "steps: x").replace("-1", "2")).startswith("policy text:5: rules.a.cool_")


def test_hostile_text_stays_on_one_line_of_printable_characters() -> None:
    text = refused({"rules": {"a": {"when": "always", "do": "\x1b[2J\nstop" * 50}}})
    assert text.isprintable()
    assert len(text) < 400
    assert refused({"rules": {"\x1b[2J\n": {}}}).isprintable()


def test_without_pyyaml_mappings_and_json_still_work(monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def without(name: str, *args: Any, **kw: Any) -> Any:
        if name == "yaml":
            raise ImportError("No module named 'yaml'")
        return original(name, *args, **kw)

    monkeypatch.delitem(sys.modules, "yaml", raising=False)
    monkeypatch.setattr(builtins, "__import__", without)
    assert read(json.dumps(one())) == read(one())
    with pytest.raises(MissingExtraError, match="pip install pyyaml"):
        read("protect")


def test_a_rule_cannot_read_what_depends_on_the_number_of_ranks() -> None:
    local = local_metrics()
    assert {
        "rlmon/text/distinct_2",
        "rlmon/collision/similarity_across",
        "rlmon/moves/effective_across_decile_3",
    } <= set(local)
    for name, instead in local.items():
        with pytest.raises(
            ConfigError, match=re.escape(f"{name}' is measured on each rank's own completions")
        ) as caught:
            load_policy(one(when={"any": [{"metric": name, "above": 0.5}]}))
        assert str(caught.value).endswith(f"Use {instead}.")
        load_policy(one(when={"metric": instead, "above": 0.5}))
    readable = [metric.name for metric in METRICS if metric.kind != "local" and not metric.name.endswith(MODE)]
    for name in readable:
        load_policy(one(when={"metric": name, "above": 0.5}))


def test_what_changed_in_a_policy_since_a_checkpoint() -> None:
    now = load_policy(
        {"rules": {"a": {"when": "always", "do": "stop"}, "b": {"when": "always", "do": "defer"}}}
    ).to_dict()
    before = json.loads(json.dumps(now))
    assert policy_change(before, now) is None
    before["rules"]["b"]["do"]["random"] = False  # a setting that its action had before
    assert policy_change(before, now) is None
    assert policy_change({**before, "dry_run": True}, now) == "The policy changed since the checkpoint (dry_run)."
    before["rules"]["b"]["do"]["share"] = 0.1
    before["rules"]["c"] = before["rules"].pop("a")
    assert policy_change(before, now) == (
        "The policy changed since the checkpoint: rules added a; removed c; changed b. An added rule begins at rest."
    )
    assert "removed b, c" in str(policy_change(before, None))
    assert "added a, b" in str(policy_change(None, now))
    assert policy_change(None, None) is None
    assert "changed b" in str(policy_change({**before, "rules": {"a": now["rules"]["a"], "b": 3}}, now))
