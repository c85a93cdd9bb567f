"""Whether the rules of a policy can do what they ask for: one pure function, which attaching and ``rlmon check`` share.

::

    for problem in problems(policy, setting):
        print(problem.rule, problem.text, problem.error)

An *error* is what cannot work or can never happen: training is refused. A *note* is what is odd but possible, and what
a preset's own rule has nothing to do with here, since a preset is written for every trainer.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from rlmon.interventions import policy_file
from rlmon.interventions.actions import ACTIONS
from rlmon.interventions.fold import measured_by
from rlmon.interventions.intervention import Intervention
from rlmon.interventions.policy import (
    MODE,
    AllOf,
    Always,
    AnyOf,
    Condition,
    OnFinding,
    OnMetric,
    Policy,
    Rule,
)
from rlmon.interventions.setting import MetricFacts, Setting
from rlmon.printable import nearest, one_of
from rlmon.records import SEVERITIES
from rlmon.series import LEAST_VALUES


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """What is wrong with a rule, or odd about it."""

    rule: str
    text: str
    """What came, what is needed and what to type."""
    error: bool
    """Training is refused."""
    idle: bool = False
    """The rule does nothing here."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _No:
    """Why a condition cannot hold."""

    text: str
    why: Literal["mistake", "setting", "length"] = "setting"
    """A name or a number that can be meant in no run; what this trainer does not have; or the run is too short, as it
    is when something is tried out: that is no error."""


def problems(policy: Policy, setting: Setting) -> tuple[Problem, ...]:
    """All that is wrong with the rules of ``policy`` in ``setting``, in the order of the rules.

    A dry run changes nothing: an error in it is only what can be meant in no run (a mistyped mode, a line that no value
    reaches). That a run is too short for a rule is never an error.
    """
    acting = [rule.action for rule in policy.rules if not rule.dry_run]
    setting = replace(setting, penalised=setting.beta > 0.0 or any(action.turns == "beta" for action in acting))
    useless = {rule.name: rule.action.useless(setting) for rule in policy.rules}
    firing = _firing(policy, setting, useless)
    facts = {**setting.metrics, **_turned(policy, setting, firing, useless)}
    found: list[Problem] = []
    for rule in policy.rules:

        def add(text: str, error: bool, rule: Rule = rule, idle: bool = False) -> None:
            found.append(Problem(rule=rule.name, text=text, error=error, idle=idle))

        given = not _of_a_preset(rule)
        lack = rule.action.lacks(setting)
        if lack is not None:
            lack = lack.rstrip(".")
            add(lack, error=not rule.dry_run)
        never = [(leaf, no) for leaf in _leaves(rule.when) if (no := _never_holds(leaf, setting, facts)) is not None]
        if rule.name not in firing:
            texts = [*_contradictions(rule.when, rule.hysteresis), *(no.text for _, no in never)]
            why = "; ".join(dict.fromkeys(texts)) + _waiting(rule, policy, setting, firing, useless)
            kinds = {no.why for _, no in never}
            refused = given and ("mistake" in kinds or (not rule.dry_run and kinds != {"length"}))
            hint = ". Change that, or leave the rule out" if refused else ""
            add(f"can never fire: {why}{hint}", error=refused, idle=True)
        else:
            for _, no in never:
                add(f"a part of its condition can never hold: {no.text}", error=no.why == "mistake")
        reason = useless[rule.name]
        if lack is None and reason is not None:
            add(f"is of no use: {reason}", error=given and not rule.dry_run, idle=not rule.dry_run)
        short = rule.action.too_late(setting)
        if lack is None and short is not None:
            add(f"is of no use in this run: {short}", error=False, idle=not rule.dry_run)
        if given and lack is None and reason is None and rule.name in firing:
            for text in _odd(rule, setting, facts):
                add(text, error=False)
    return tuple(found)


def said(problem: Problem) -> str:
    """``rule budget: can never fire: ...``."""
    return f"rule {problem.rule}: {problem.text}."


@functools.cache
def _preset_rules() -> tuple[Rule, ...]:
    rules = [Policy.from_dict({"extends": name}).rules for name in policy_file.preset_names()]
    return tuple(replace(rule, dry_run=False) for rule in itertools.chain(*rules))


def _of_a_preset(rule: Rule) -> bool:
    """Whether the rule is word for word a preset's, and so was not asked for by itself."""
    return replace(rule, dry_run=False) in _preset_rules()


# -- conditions --------------------------------------------------------------------------------------------------------


def _firing(policy: Policy, setting: Setting, useless: Mapping[str, str | None]) -> Collection[str]:
    """The rules whose conditions can hold: the least set that needs none but its own members to turn a knob."""
    firing: set[str] = set()
    while True:
        facts = {**setting.metrics, **_turned(policy, setting, firing, useless)}
        more = {rule.name for rule in policy.rules if _can_hold(rule.when, rule.hysteresis, setting, facts)}
        if more == firing:
            return firing
        firing = more


def _can_hold(when: Condition, hysteresis: float, setting: Setting, facts: Mapping[str, MetricFacts]) -> bool:
    if isinstance(when, AnyOf | AllOf):
        parts = [_can_hold(part, hysteresis, setting, facts) for part in when.conditions]
        return any(parts) if isinstance(when, AnyOf) else all(parts) and not any(_contradictions(when, hysteresis))
    return _never_holds(when, setting, facts) is None


def _leaves(when: Condition) -> Iterator[Condition]:
    if isinstance(when, AnyOf | AllOf):
        for part in when.conditions:
            yield from _leaves(part)
    else:
        yield when


def _contradictions(when: Condition, hysteresis: float) -> Iterator[str]:
    """Pairs of lines of one metric that it cannot be past at once, nor still be held by, in each ``all``."""
    if not isinstance(when, AnyOf | AllOf):
        return
    for part in when.conditions:
        yield from _contradictions(part, hysteresis)
    lines = [part for part in when.conditions if isinstance(when, AllOf) and isinstance(part, OnMetric)]
    for a, b in itertools.permutations(lines, 2):
        same = (a.metric, a.of, a.smooth_steps) == (b.metric, b.of, b.smooth_steps)
        if not same or a.above is None or b.below is None or b.below <= 0.0:
            continue
        if a.above * (1.0 - hysteresis) >= b.below and b.below * (1.0 + hysteresis) <= a.above:
            yield f"{a.metric} is not above {a.above:g} and below {b.below:g} at once"


def _never_holds(when: Condition, setting: Setting, facts: Mapping[str, MetricFacts]) -> _No | None:
    """Why a condition on a finding or a metric cannot hold; ``None`` where it can."""
    if isinstance(when, OnFinding):
        return _never_found(when, setting)
    return _never_past(when, setting, facts) if isinstance(when, OnMetric) else None


def _never_found(when: OnFinding, setting: Setting) -> _No | None:
    detector = setting.detectors[when.finding]
    wanted = SEVERITIES[SEVERITIES.index(when.severity) :]
    if not set(wanted) & set(detector.severities):
        (*_, worst) = [severity for severity in SEVERITIES if severity in detector.severities]
        has = one_of(detector.severities)
        return _No(
            text=f"detector {when.finding} never says {when.severity}, only {has}. Type severity: {worst}",
            why="mistake",
        )
    if detector.silent is not None:
        return _No(text=f"detector {when.finding} can never fire: {detector.silent}")
    if detector.compares and setting.within_baseline(of_training=detector.of_training):
        return _No(
            text=f"detector {when.finding} compares with the baseline, and max_steps: {setting.steps} ends within that",
            why="length",
        )
    return None


def _never_past(when: OnMetric, setting: Setting, facts: Mapping[str, MetricFacts]) -> _No | None:
    name = when.metric
    metric, mode = _facts(name, facts)
    if mode is not None and mode not in setting.modes:
        known = nearest(mode, setting.modes)
        return _No(
            text=f"{name} is never measured: there is no format mode {mode!r}.{known} The modes are "
            f"{', '.join(setting.modes)} (rlmon_modes adds your own)",
            why="mistake",
        )
    if metric.missing is not None:
        return _No(text=f"{name} is never measured: {metric.missing}")
    if when.of == "value":
        if when.above is not None and metric.high is not None and when.above >= metric.high:
            text = f"{name} is {metric.high:g} at most, and never above {when.above:g}"
            if metric.high == 1.0 < when.above <= 100.0:
                text += f". Did you mean above: {when.above / 100.0:g}?"
            return _No(text=text, why="setting" if name.startswith(TURNED) else "mistake")
        if when.below is not None and metric.low is not None and when.below <= metric.low:
            text = f"{name} is {metric.low:g} at least, and never below {when.below:g}"
            return _No(text=text, why="setting" if name.startswith(TURNED) else "mistake")
        return None
    values = None if setting.steps is None else math.ceil(setting.steps / metric.every_steps)
    if values is not None and values < setting.baseline_records:
        return _No(
            text=f"{name} is measured {values} times in {setting.steps} steps, and its base takes the first "
            f"{setting.baseline_records}",
            why="length",
        )
    return None


def _facts(name: str, facts: Mapping[str, MetricFacts]) -> tuple[MetricFacts, str | None]:
    """What is known of a metric, and the mode where it is one of a mode; ``parse`` let no other name pass."""
    if name in facts:
        return facts[name], None
    family, _, mode = name.rpartition("/")
    return facts[f"{family}/{MODE}"], mode


def _waiting(
    rule: Rule, policy: Policy, setting: Setting, firing: Collection[str], useless: Mapping[str, str | None]
) -> str:
    """What to add where a rule would fire, were it or another one to fire first."""
    for names, text in (
        ([*firing, rule.name], ". Only this rule would change that, and it waits for it"),
        ([each.name for each in policy.rules], ". The rules that would change that wait for one another"),
    ):
        if _can_hold(
            rule.when, rule.hysteresis, setting, {**setting.metrics, **_turned(policy, setting, names, useless)}
        ):
            return text
    return ""


# -- what the rules themselves turn ------------------------------------------------------------------------------------

TURNED = "rlmon/intervention/"


def _turned(
    policy: Policy, setting: Setting, firing: Collection[str], useless: Mapping[str, str | None]
) -> dict[str, MetricFacts]:
    """The metrics of the knobs, with the values that they can have while none but the rules ``firing`` turn them."""
    facts = {
        "beta": MetricFacts(low=setting.beta, high=setting.beta),
        "entropy_coef": MetricFacts(low=setting.entropy_coef, high=setting.entropy_coef),
    }
    asked = [rule.action for rule in policy.rules]
    kinds: list[type[Intervention]] = [*ACTIONS.values(), *map(type, asked)]
    for kind in kinds:
        missing = None if any(type(action) is kind for action in asked) else f"no rule of this policy does {kind.name}"
        facts |= {name: MetricFacts(low=0.0, high=high, missing=missing) for name, high in kind.holds.items()}
    for rule in policy.rules:
        acts = not rule.dry_run and useless[rule.name] is None
        if rule.name not in firing or not (acts or rule.action.moves_when_dry):
            continue
        for name, most in rule.action.reach().items():
            if name not in facts:  # neither beta, nor entropy_coef, nor what it says that it holds
                continue
            before = facts[name]
            high = None if before.high is None else max(before.high, most)
            facts[name] = replace(before, low=0.0 if name == "beta" else before.low, high=high)
    for name in setting.moved:
        facts[name] = MetricFacts(low=0.0, high=None)
    return {TURNED + name: known for name, known in facts.items()}


# -- what is odd -------------------------------------------------------------------------------------------------------


def _odd(rule: Rule, setting: Setting, facts: Mapping[str, MetricFacts]) -> Iterator[str]:
    """What is possible, and hardly meant."""
    for leaf in _leaves(rule.when):
        if not isinstance(leaf, OnMetric):
            continue
        metric, mode = _facts(leaf.metric, facts)
        if metric.missing is not None:
            continue
        if leaf.of == "value" and metric.low is not None and leaf.above is not None and leaf.above < metric.low:
            yield f"{leaf.metric} is {metric.low:g} at least: above {leaf.above:g} holds always"
        if leaf.of == "value" and metric.high is not None and leaf.below is not None and leaf.below > metric.high:
            hint = f". Did you mean below: {leaf.below / 100.0:g}?" if metric.high == 1.0 else ""
            yield f"{leaf.metric} is {metric.high:g} at most: below {leaf.below:g} holds always{hint}"
        if mode is not None and not leaf.metric.startswith("rlmon/format/share/"):
            yield f"{leaf.metric} is null in steps without a completion that is {mode}"
    yield from rule.action.odd(setting, always=isinstance(rule.when, Always))
    window = max((leaf.smooth_steps for leaf in _leaves(rule.when) if isinstance(leaf, OnMetric)), default=0)
    usual = {field.name: field.default for kind in (OnMetric, Rule) for field in dataclasses.fields(kind)}
    for name, length in (("smooth_steps", window), ("cool_off_steps", rule.cool_off_steps)):
        # Defaults are not worth a word where a policy is tried out in a few steps.
        if setting.steps is not None and length >= setting.steps and length != usual[name]:
            yield f"{name} is {length}, and the run has {setting.steps} steps"
    judged = measured_by(rule)
    if judged is None or rule.dry_run:
        return
    known = facts.get(judged[0]) or facts.get(f"{judged[0].rpartition('/')[0]}/{MODE}")
    if known is not None and known.missing is not None:
        yield f"its effect is not measured: {judged[0]} is never measured ({known.missing})"
    elif setting.steps is not None and rule.measure_after_steps >= setting.steps:
        if rule.measure_after_steps == usual["measure_after_steps"]:
            return
        yield (
            f"its effect is not measured: measure_after_steps is {rule.measure_after_steps}, and the run has "
            f"{setting.steps}"
        )
    elif known is not None and rule.measure_after_steps < LEAST_VALUES * known.every_steps:
        least = LEAST_VALUES * known.every_steps
        yield (
            f"its effect is not measured: {judged[0]} has {rule.measure_after_steps // known.every_steps} values in "
            f"measure_after_steps: {rule.measure_after_steps}, and {LEAST_VALUES} are needed. Type {least}"
        )
