"""A policy for people: its rules in words, and as a YAML file to edit."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from rlmon.interventions import policy_file
from rlmon.interventions.actions import known_actions
from rlmon.interventions.intervention import Intervention
from rlmon.interventions.policy import (
    AllOf,
    AnyOf,
    Condition,
    OnFinding,
    OnMetric,
    Policy,
    Rule,
    condition_to_dict,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class RuleRow:
    """One rule in words."""

    name: str
    when: str
    do: str
    settings: str
    """``kappa 0.5, bounds [0.25, 1]``: of the rule and its action, those that are not the default."""
    dry_run: bool


def row(rule: Rule) -> RuleRow:
    """``rule`` in words."""
    changed = [*_changed(rule.action), *_changed(rule, leave_out=("name", "when", "action", "dry_run"))]
    return RuleRow(
        name=rule.name,
        when=words(rule.when),
        do=rule.action.name,
        settings=", ".join(f"{name} {_flow(value)}" for name, value in changed),
        dry_run=rule.dry_run,
    )


def words(when: Condition) -> str:
    """A condition in words: ``rlmon/kl/mean above 0.3 (mean of 2)``."""
    if isinstance(when, OnFinding):
        lasts = "" if when.lasts_steps is None else f", for {when.lasts_steps} steps"
        return f"{when.finding} {when.severity.upper()}{'' if when.severity == 'fail' else ' or worse'}{lasts}"
    if isinstance(when, OnMetric):
        side, line = ("above", when.above) if when.above is not None else ("below", when.below)
        of = " of its base" if when.of == "base" else ""
        return f"{when.metric} {side} {line:g}{of} (mean of {when.smooth_steps})"
    if isinstance(when, AnyOf | AllOf):
        joint = " or " if isinstance(when, AnyOf) else " and "
        return f"({joint.join(words(part) for part in when.conditions)})"
    return "always"


def catalogue(actions: Iterable[type[Intervention]] = ()) -> Iterator[tuple[str, str, str]]:
    """What there is to choose from, ``actions`` beside those that come with rlmon: (``preset`` or ``action``, its name,
    what it is in a line)."""
    for name in policy_file.preset_names():
        lines = (policy_file.PRESETS / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
        comment = " ".join(line[1:].strip() for line in itertools.takewhile(lambda line: line.startswith("#"), lines))
        yield "preset", name, f"{comment.removeprefix(f'{name}:').strip().split('. ')[0].rstrip('.')}."
    for name, kind in known_actions(actions).items():
        yield "action", name, (kind.__doc__ or "").strip().split("\n", 1)[0].replace("``", "")


def to_yaml(policy: Policy) -> str:
    """A file that ``parse`` reads back as ``policy``, every setting written out and explained once."""
    explained: set[tuple[type[Any], str]] = set()

    def line(indent: int, owner: Any, name: str, value: Any) -> str:
        text = f"{' ' * indent}{name}: {_flow(value)}"
        about = {f.name: f.metadata.get("help") for f in dataclasses.fields(owner)}.get(name)
        if about is None or (type(owner), name) in explained:
            return text
        explained.add((type(owner), name))
        return f"{text}  # {about}"

    dry_run = policy.dry_run
    lines = [f"dry_run: {_flow(dry_run)}  # true: nothing acts, everything is written down", "rules:"]
    for rule in policy.rules:
        lines += [f"  {_flow(rule.name)}:", f"    when: {_flow(condition_to_dict(rule.when))}", "    do:"]
        lines.append(f"      action: {rule.action.name}")
        for field in dataclasses.fields(rule.action):
            lines.append(line(6, rule.action, field.name, getattr(rule.action, field.name)))
        for name in ("cool_off_steps", "hysteresis", "measure_after_steps"):
            lines.append(line(4, rule, name, getattr(rule, name)))
        # A policy that is a dry run as a whole says so once, so that one word lets it act.
        lines.append(line(4, rule, "dry_run", rule.dry_run and not dry_run))
    return "\n".join(lines) + "\n"


def _changed(settings: Any, leave_out: tuple[str, ...] = ()) -> list[tuple[str, Any]]:
    return [
        (field.name, getattr(settings, field.name))
        for field in dataclasses.fields(settings)
        if field.name not in leave_out and getattr(settings, field.name) != field.default
    ]


def _flow(value: Any) -> str:
    """A value as one line of YAML; text that could be read as anything else is quoted."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_flow(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_flow(item) for item in value) + "]"
    if isinstance(value, str) and re.fullmatch(r"[a-z][a-z0-9_/-]*", value) and value not in _NOT_TEXT:
        return value
    return json.dumps(value)


_NOT_TEXT = ("true", "false", "null", "yes", "no", "on", "off", "y", "n")
