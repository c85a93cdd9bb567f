"""What to do when: rules, their conditions, and the reading of both from a mapping, a YAML file or a preset.

::

    policy = parse("protect", known_findings=[...], known_metrics=[...])
    policy = parse({"rules": {"hold-formats": {"when": "always", "do": "mode_marginal"}}}, ...)
"""

from __future__ import annotations

import dataclasses
import math
import numbers
import re
import types
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from rlmon.errors import ConfigError
from rlmon.interventions import policy_file
from rlmon.interventions.actions import ACTIONS, known_actions
from rlmon.interventions.intervention import Intervention, setting
from rlmon.interventions.policy_file import Document, Where
from rlmon.printable import nearest, one_line, one_of
from rlmon.records import Severity

MOST_RULES = 64
MOST_CONDITIONS = 16
"""In one ``any`` or ``all``."""
MOST_NESTING = 8
MOST_INTEGER = 1_000_000_000
NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
MODE = "<mode>"
"""Last part of a catalogue name that stands for the name of any mode."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Always:
    """Holds from the first step to the last."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OnFinding:
    """Holds once a detector has raised its alarm."""

    finding: str = field(metadata={"help": "id of a detector, as `rlmon detectors` prints it"})
    severity: Severity = field(
        default="warn", metadata={"help": "least severity: `warn` takes a FAIL too, `note` any finding"}
    )
    lasts_steps: int | None = setting(
        None, "steps that it holds from a finding on, counted anew by each finding; unset: the rest of the run", low=1
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class OnMetric:
    """Holds while a metric, smoothed, is past its line."""

    metric: str = field(metadata={"help": "name of a metric, as `rlmon metrics` prints it"})
    above: float | None = setting(None, "the line; holds above it")
    below: float | None = setting(None, "the line; holds below it. Exactly one of above and below")
    of: Literal["value", "base"] = field(
        default="value",
        metadata={"help": "what the line is compared as: the metric's `value`, or its ratio to the run's own `base`"},
    )
    smooth_steps: int = setting(
        5, "the mean of this many newest values is compared, of fewer at the start", low=1, high=1000
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class AnyOf:
    """Holds while one of its conditions does."""

    conditions: tuple[Condition, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class AllOf:
    """Holds while all of its conditions do."""

    conditions: tuple[Condition, ...]


Condition = Always | OnFinding | OnMetric | AnyOf | AllOf


@dataclass(frozen=True, kw_only=True, slots=True)
class Rule:
    """What to do, when, and how patiently."""

    name: str
    when: Condition
    action: Intervention
    cool_off_steps: int = setting(10, "least steps between two changes by this rule", low=0)
    hysteresis: float = setting(
        0.05, "a metric condition is released only once it is past its line by this share", low=0.0, high=0.9
    )
    measure_after_steps: int = setting(
        20, "the effect is measured after this many steps, against as many before", low=1, high=10_000
    )
    dry_run: bool = setting(False, "write down what it would do, and change nothing")


@dataclass(frozen=True, kw_only=True, slots=True)
class Policy:
    """The rules of a run.

    With ``dry_run`` every rule becomes a dry run. Raises ``ConfigError`` where two rules have one name, or would turn
    the same knob.
    """

    rules: tuple[Rule, ...]
    dry_run: bool = False

    def __post_init__(self) -> None:
        rules = tuple(replace(rule, dry_run=True) if self.dry_run else rule for rule in self.rules)
        object.__setattr__(self, "rules", rules)
        for rule in rules:
            if not isinstance(rule.action, Intervention):
                raise ConfigError(f"policy: rules.{rule.name}: {_came(rule.action)} is no action.")
        names = [rule.name for rule in rules]
        for name in names:
            if names.count(name) > 1:
                raise ConfigError(f"policy: rules.{name}: is given twice; names of rules are unique.")
        clash = _clash(rules)
        if clash is not None:
            raise ConfigError(f"policy: rules.{clash[1].name}: {_clash_text(*clash)}")

    def rule(self, name: str) -> Rule:
        """The rule of this name. Raises ``KeyError`` where there is none."""
        for rule in self.rules:
            if rule.name == name:
                return rule
        raise KeyError(name)

    def to_dict(self) -> dict[str, Any]:
        """The policy as JSON types with every default written out: what ``parse`` reads back."""
        return {
            "dry_run": self.dry_run,
            "rules": {
                rule.name: {
                    "when": condition_to_dict(rule.when),
                    "do": {"action": rule.action.name, **_plain(rule.action)},
                    **{name: getattr(rule, name) for name in _RULE_SETTINGS},
                }
                for rule in self.rules
            },
        }

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any], actions: Iterable[type[Intervention]] = ()) -> Policy:
        """The policy that ``to_dict`` described; names of findings and metrics are taken as they are."""
        return _build(Document(name="policy", data=saved), None, None, {}, actions)


_RULE_SETTINGS = ("cool_off_steps", "hysteresis", "measure_after_steps", "dry_run")
_CONDITIONS: Mapping[str, type[Any]] = {"finding": OnFinding, "metric": OnMetric, "any": AnyOf, "all": AllOf}
"""The key that tells what a condition is."""


def parse(
    source: str | Path | Mapping[str, Any] | Policy,
    *,
    known_findings: Collection[str] | None,
    known_metrics: Collection[str] | None,
    local_metrics: Mapping[str, str] = types.MappingProxyType({}),
    actions: Iterable[type[Intervention]] = (),
) -> Policy:
    """Read and check a policy.

    Args:
        source: a preset's name, the path of a YAML file, YAML or JSON text, a mapping, or a ``Policy`` to check.
        known_findings: ids of the detectors; ``None``: any name will do.
        known_metrics: names of the metrics' catalogue, where a last part ``<mode>`` stands for any; ``None``: any name.
        local_metrics: those of them that no rule can read, since they depend on how many ranks there are, and what to
            read instead.
        actions: classes of interventions beside those that come with rlmon.

    Raises ``ConfigError`` naming the file, the line, the field, what came and what was needed.
    """
    if isinstance(source, Policy):
        document = Document(name="policy", data=source.to_dict())
        actions = dict.fromkeys([*actions, *(type(rule.action) for rule in source.rules)])
    elif isinstance(source, Mapping):
        document = Document(name="policy", data=source)
    elif isinstance(source, str | Path):
        document = policy_file.read(source)
    else:
        raise ConfigError(
            f"policy: is {_came(source)}; give {one_of(policy_file.preset_names())}, the path of a YAML file, or a "
            "mapping of rules."
        )
    return _build(document, known_findings, known_metrics, local_metrics, actions)


# -- to plain data -----------------------------------------------------------------------------------------------------


def condition_to_dict(when: Condition) -> Any:
    """A condition as ``parse`` reads it: ``always``, or a mapping."""
    if isinstance(when, Always):
        return "always"
    if isinstance(when, AnyOf | AllOf):
        return {"any" if isinstance(when, AnyOf) else "all": [condition_to_dict(part) for part in when.conditions]}
    if isinstance(when, OnFinding | OnMetric):
        return {name: value for name, value in _plain(when).items() if value is not None}
    raise ConfigError(f"policy: {_came(when)} is no condition.")


def _plain(settings: Any) -> dict[str, Any]:
    values = {f.name: getattr(settings, f.name) for f in dataclasses.fields(settings)}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


# -- from plain data ---------------------------------------------------------------------------------------------------


def _build(
    document: Document,
    known_findings: Collection[str] | None,
    known_metrics: Collection[str] | None,
    local_metrics: Mapping[str, str],
    actions: Iterable[type[Intervention]],
) -> Policy:
    document = _extended(document)
    reading = _Reading(document, known_findings, known_metrics, local_metrics, known_actions(actions))
    dry_run = reading.value(bool, document.data.get("dry_run", False), ("dry_run",))
    entries = document.data.get("rules", {})
    if not entries:
        raise document.error(("rules",), "no rule is left to act. To watch only, leave the policy unset.")
    if len(entries) > MOST_RULES:
        raise document.error(("rules",), f"{len(entries)} rules; {MOST_RULES} are allowed.")
    rules = tuple(reading.rule(name, entry) for name, entry in entries.items())
    clash = _clash(tuple(replace(rule, dry_run=rule.dry_run or dry_run) for rule in rules))
    if clash is not None:
        raise document.error(
            ("rules", clash[1].name), f"{_clash_text(*clash)} ({document.place(('rules', clash[0].name))})"
        )
    return Policy(rules=rules, dry_run=dry_run)


def _extended(document: Document) -> Document:
    """The document with its preset written out below it: a rule's own fields stand, the others are the preset's."""
    data = document.data
    if data is None:
        raise document.error((), f"is empty; a policy has rules:, or extends: {one_of(policy_file.preset_names())}.")
    if not isinstance(data, Mapping):
        raise document.error((), f"is {_came(data)}; a policy is a mapping with rules:, extends: or dry_run:.")
    fields = ("rules", "extends", "dry_run")
    if not any(name in data for name in fields) and any(nearest(str(key), fields) == "" for key in data):
        keys = ", ".join(repr(str(key)[:40]) for key in list(data)[:3])
        raise document.error(
            (),
            f"is no policy: it has {keys}, and neither rules nor extends. For the file of a trainer type: rlmon check.",
        )
    _known_keys(document, (), data, fields, "a policy")
    rules: dict[str, Any] = {}
    places: dict[Where, str] = {}
    dry_run: dict[str, Any] = {}
    if data.get("extends") is not None:
        name = data["extends"]
        presets = policy_file.preset_names()
        if not isinstance(name, str) or name not in presets:
            raise document.error(("extends",), f"is {_came(name)}; it takes {one_of(presets)}.{nearest(name, presets)}")
        base = _extended(policy_file.read_preset(name))
        rules, places = dict(base.data["rules"]), dict(base.places)
        dry_run = {"dry_run": base.data["dry_run"]} if "dry_run" in base.data else {}
    elif "rules" not in data:
        raise document.error((), f"has no rules:; write some, or extends: {one_of(policy_file.preset_names())}.")
    given = data.get("rules")
    if given is None:  # every line below it is a comment
        given = {}
    if not isinstance(given, Mapping):
        raise document.error(("rules",), f"is {_came(given)}; it maps names of rules to rules.")
    for name, entry in given.items():
        where = ("rules", name)
        if not isinstance(name, str) or not NAME.fullmatch(name) or len(name) > 64:
            raise document.error(where, "a rule's name is kebab-case: small letters, digits and single hyphens.")
        if entry is False or entry == "off":
            if name not in rules:
                hint = nearest(name, rules)
                raise document.error(where, f"is off, but there is no such rule in what this extends.{hint}")
            del rules[name]
            continue
        if not isinstance(entry, Mapping):
            raise document.error(where, f"is {_came(entry)}; a rule is a mapping with when: and do:, or off.")
        rules[name] = {**rules.get(name, {}), **entry}
        # Lines of what is replaced go with it, also where what replaces it has none of its own.
        replaced = {(*where, key) for key in entry}
        places = {place: text for place, text in places.items() if place[:3] not in replaced}
        places.update((at, document.place(at)) for at in (where, *replaced))
    places.update((at, document.place(at)) for at in ((), ("rules",)))
    if "dry_run" in data:
        dry_run = {"dry_run": data["dry_run"]}
        places["dry_run",] = document.place(("dry_run",))
    return Document(name=document.name, data={**dry_run, "rules": rules}, places={**places, **document.places})


class _Reading:
    """Checks the parts of one document."""

    def __init__(
        self,
        document: Document,
        findings: Collection[str] | None,
        metrics: Collection[str] | None,
        local_metrics: Mapping[str, str],
        actions: Mapping[str, type[Intervention]],
    ) -> None:
        self._document, self._actions = document, actions
        self._findings, self._metrics, self._local_metrics = findings, metrics, local_metrics

    def rule(self, name: str, entry: Mapping[str, Any]) -> Rule:
        where = ("rules", name)
        _known_keys(self._document, where, entry, ("when", "do", *_RULE_SETTINGS), "a rule")
        for needed, example in (("when", "when: always"), ("do", "do: mode_marginal")):
            if entry.get(needed) is None:
                raise self._document.error(where, f"has no {needed}:, for example {example}.")
        plain = {key: value for key, value in entry.items() if key in _RULE_SETTINGS}
        return Rule(
            name=name,
            when=self.condition(entry["when"], (*where, "when")),
            action=self.action(entry["do"], (*where, "do")),
            **self.settings(Rule, plain, where),
        )

    def action(self, given: Any, where: Where) -> Intervention:
        """``mode_marginal``, or ``{action: mode_marginal, kappa: 1.0}``."""
        if isinstance(given, str):
            given = {"action": given}
        if not isinstance(given, Mapping):
            raise self._document.error(
                where, f"is {_came(given)}; it takes the name of an action, or a mapping with action: and its settings."
            )
        names = ", ".join(self._actions)
        if "action" not in given:
            hint = nearest(next(iter(given), ""), self._actions)
            raise self._document.error(where, f"has no action:; the actions are {names}.{hint}")
        name, at = given["action"], (*where, "action") if (*where, "action") in self._document.places else where
        kind = self._actions.get(name) if isinstance(name, str) else None
        if kind is None:
            hint = nearest(name, self._actions)
            raise self._document.error(
                at,
                f"{_shown(name)} is no action.{hint} The actions are {names}. One of your own is passed to RLMon "
                "(actions=[...]), or comes with a package that has an entry point rlmon.actions.",
            )
        fields = [f.name for f in dataclasses.fields(kind)]
        for old, (harmless, said) in kind.gone.items():
            if given.get(old, harmless) != harmless:
                raise self._document.error((*where, old), said)
        given = {key: value for key, value in given.items() if key not in kind.gone}
        _known_keys(self._document, where, given, ("action", *fields), name, fields)
        values = self.settings(kind, {key: value for key, value in given.items() if key != "action"}, where)
        try:
            action = kind(**values)
        except ValueError as error:
            raise self._document.error(where, one_line(str(error))) from error
        inner = kind.starts_at
        if inner is not None:
            plain = _plain(action)
            (low, high), value = plain["bounds"], plain[inner]
            if not low <= value <= high:
                at = (*where, inner if inner in given else "bounds")
                raise self._document.error(at, f"{inner} {value:g} does not lie within bounds [{low:g}, {high:g}].")
        return action

    def condition(self, given: Any, where: Where, nesting: int = 0) -> Condition:
        if given == "always":
            return Always()
        if nesting > MOST_NESTING:
            raise self._document.error(where, f"any and all are nested more than {MOST_NESTING} deep.")
        if not isinstance(given, Mapping):
            raise self._document.error(where, f"is {_came(given)}; {self._condition_help(given)}")
        kinds = [key for key in given if isinstance(key, str) and key in _CONDITIONS]
        if len(kinds) != 1:
            stray = next((key for key in given if key not in _CONDITIONS), "")
            problem = f"has {' and '.join(kinds)}" if kinds else "says neither finding, metric, any nor all"
            hint = "" if kinds else nearest(stray, _CONDITIONS)
            raise self._document.error(where, f"{problem}; a condition has exactly one of them.{hint}")
        (key,) = kinds
        kind = _CONDITIONS[key]
        if kind in (AnyOf, AllOf):
            _known_keys(self._document, where, given, (key,), key)
            parts = given[key]
            if not _is_list(parts) or not 1 <= len(parts) <= MOST_CONDITIONS:
                raise self._document.error(
                    (*where, key), f"is {_came(parts)}; it takes a list of 1 to {MOST_CONDITIONS} conditions."
                )
            inner = tuple(self.condition(part, (*where, key, i), nesting + 1) for i, part in enumerate(parts))
            return AnyOf(conditions=inner) if kind is AnyOf else AllOf(conditions=inner)
        fields = [f.name for f in dataclasses.fields(kind)]
        _known_keys(self._document, where, given, fields, f"a condition on a {key}")
        values = self.settings(kind, given, where)
        return self._finding(values, where) if kind is OnFinding else self._metric(values, where)

    def _finding(self, values: dict[str, Any], where: Where) -> OnFinding:
        name = values["finding"]
        if self._findings is not None and name not in self._findings:
            raise self._document.error(
                (*where, "finding"),
                f"{_shown(name)} is no detector.{nearest(name, self._findings)} `rlmon detectors` lists them: "
                f"{', '.join(self._findings)}.",
            )
        return OnFinding(**values)

    def _metric(self, values: dict[str, Any], where: Where) -> OnMetric:
        name = values["metric"]
        if name.endswith(MODE):
            raise self._document.error(
                (*where, "metric"), f"{_shown(name)} stands for one metric per mode; name the mode in place of {MODE}."
            )
        pattern = f"{name.rsplit('/', 1)[0]}/{MODE}"
        if self._metrics is not None and name not in self._metrics and pattern not in self._metrics:
            raise self._document.error(
                (*where, "metric"),
                f"{_shown(name)} is no metric.{nearest(name, self._metrics)} `rlmon metrics` lists them.",
            )
        if name in self._local_metrics:
            instead = self._local_metrics[name]
            raise self._document.error(
                (*where, "metric"),
                f"{_shown(name)} is measured on each rank's own completions, so that a rule on it would depend on how "
                f"many ranks there are.{f' Use {instead}.' if instead else ''}",
            )
        lines = [side for side in ("above", "below") if values.get(side) is not None]
        if len(lines) != 1:
            problem = "has both above: and below:" if lines else "has neither above: nor below:"
            raise self._document.error(where, f"{problem}; exactly one is needed.")
        (side,) = lines
        if values.get("of") == "base" and values[side] <= 0.0:
            raise self._document.error(
                (*where, side), f"is {values[side]:g}; of: base makes it a share of the base, so it is above 0."
            )
        return OnMetric(**values)

    def _condition_help(self, given: Any) -> str:
        needed = "a condition is always, or a mapping with finding:, metric:, any: or all:."
        if _is_list(given):
            return f"{needed} Put the list under any: or all:."
        if isinstance(given, str):
            if self._findings is not None and given in self._findings:
                return f"{needed} Did you mean {{finding: {given}}}?"
            return f"{needed}{nearest(given, ['always'])}"
        return needed

    def settings(self, kind: type[Any], given: Mapping[str, Any], where: Where) -> dict[str, Any]:
        """The given fields of a dataclass, each checked against its annotation and its range."""
        hints, fields = get_type_hints(kind), {f.name: f for f in dataclasses.fields(kind)}
        return {key: self.value(hints[key], value, (*where, key), fields[key].metadata) for key, value in given.items()}

    def value(self, hint: Any, given: Any, where: Where, limits: Mapping[str, Any] = types.MappingProxyType({})) -> Any:
        """One value in the type that ``hint`` says."""
        error = self._document.error
        origin, inside = get_origin(hint), get_args(hint)
        if origin in (Union, types.UnionType):
            if given is None:
                return None
            return self.value(next(arg for arg in inside if arg is not type(None)), given, where, limits)
        if origin is Literal:
            if not isinstance(given, str) or given not in inside:
                raise error(where, f"is {_came(given)}; it takes {one_of(inside)}.{nearest(given, inside)}")
            return given
        if origin is tuple:
            if not _is_list(given) or len(given) != len(inside):
                raise error(where, f"is {_came(given)}; it takes a list [least, most].")
            parts = enumerate(zip(inside, given, strict=True))
            pair = tuple(self.value(arg, part, (*where, i), limits) for i, (arg, part) in parts)
            if pair[0] > pair[1]:
                raise error(where, f"is [{pair[0]:g}, {pair[1]:g}]; the least comes first.")
            return pair
        if hint is bool:
            if not isinstance(given, bool):
                raise error(where, f"is {_came(given)}; it takes true or false.")
            return given
        if hint is str:
            if not isinstance(given, str) or not given:
                raise error(where, f"is {_came(given)}; it takes a name.")
            return given
        return self._number(hint, given, where, limits)

    def _number(self, hint: Any, given: Any, where: Where, limits: Mapping[str, Any]) -> int | float:
        error = self._document.error
        low, high = limits.get("low"), limits.get("high")
        needed = f"a {'whole ' if hint is int else ''}number{_range(low, high)}"
        if isinstance(given, bool) or not isinstance(given, numbers.Real):
            raise error(where, f"is {_came(given)}; it takes {needed}.")
        try:
            value = float(given)
        except OverflowError:
            value = math.inf
        if not math.isfinite(value):
            raise error(where, f"is {_came(given)}, which is not finite; it takes {needed}.")
        if hint is int and not value.is_integer():
            raise error(where, f"is {_came(given)}; it takes {needed}.")
        if (low is not None and value < low) or (high is not None and value > high):
            raise error(where, f"is {given}; it takes {needed}.")
        if hint is int and abs(value) > MOST_INTEGER:
            raise error(where, f"is {_came(given)}; whole numbers go to {MOST_INTEGER:,}.")
        return int(value) if hint is int else value


def _known_keys(
    document: Document,
    where: Where,
    given: Mapping[Any, Any],
    known: Sequence[str],
    what: str,
    shown: Sequence[str] | None = None,
) -> None:
    for key in given:
        if not isinstance(key, str):
            hint = " YAML reads on, off, yes and no as true and false: quote them." if isinstance(key, bool) else ""
            raise document.error((*where, key), f"a key must be text.{hint}")
        if key not in known:
            takes = ", ".join(known if shown is None else shown) or "no settings"
            raise document.error((*where, key), f"unknown field.{nearest(key, known)} {_capital(what)} takes {takes}.")


def _clash(rules: Sequence[Rule]) -> tuple[Rule, Rule] | None:
    """Two rules that turn the same knob. Dry runs turn none, so that one may be tried beside a rule that acts."""
    seen: dict[Any, Rule] = {}
    for rule in rules:
        if rule.dry_run:
            continue
        action = rule.action
        # Every loop has but one of what else can be turned; to advantages several may contribute.
        turned = (type(action), action.knob) if action.turns == "advantages" else action.turns
        if turned in seen:
            return seen[turned], rule
        seen[turned] = rule
    return None


def _clash_text(first: Rule, second: Rule) -> str:
    return (
        f"does {second.action.name}, as {first.name} does; one rule turns one knob. Join their conditions with any:, "
        f"or take one out with `{first.name}: off`"
    )


def _is_list(given: Any) -> bool:
    return isinstance(given, Sequence) and not isinstance(given, str | bytes)


def _range(low: float | None, high: float | None) -> str:
    if low is not None and high is not None:
        return f" from {low:g} to {high:g}"
    if low is not None:
        return f" of at least {low:g}"
    return "" if high is None else f" of at most {high:g}"


def _shown(value: Any) -> str:
    try:
        return one_line(repr(value), 80)
    except (ValueError, RecursionError):  # an integer of thousands of digits; a list that holds itself
        return "a value too long to show"


def _came(value: Any) -> str:
    """What came, in words: ``empty``, ``the text 'yes'``, ``a list of 3``, ``the number 7``."""
    if value is None:
        return "empty"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f"the text {_shown(value)}"
    if isinstance(value, numbers.Number):
        return f"the number {_shown(value)}"
    if isinstance(value, Mapping):
        return "a mapping" if value else "an empty mapping"
    if _is_list(value):
        return f"a list of {len(value)}" if len(value) else "an empty list"
    return f"a {type(value).__name__}"


def _capital(text: str) -> str:
    """A sentence's first letter, where the text is no name of ours."""
    return text if "_" in text or text in ACTIONS else text[:1].upper() + text[1:]
