"""Renders docs/interventions-reference.md from the settings of actions, rules and conditions.

python -m rlmon.interventions.document            print it
python -m rlmon.interventions.document PATH       write it
"""

from __future__ import annotations

import dataclasses
import sys
import types
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from rlmon.interventions import policy_file
from rlmon.interventions.actions import ACTIONS
from rlmon.interventions.policy import OnFinding, OnMetric, Policy, Rule, condition_to_dict

_INTRODUCTION = """# Interventions: reference

Generated from `rlmon/interventions/` by `python -m rlmon.interventions.document docs/interventions-reference.md`; do
not edit. What the actions are for, and how to write a policy: [interventions.md](interventions.md).
"""


def render() -> str:
    """The page as Markdown."""
    out = [_INTRODUCTION, "## Actions"]
    for name, kind in ACTIONS.items():
        out.append(f"### {name}\n\n{_first_line(kind)}")
        out.append(_table(kind) if dataclasses.fields(kind) else "It has no settings.")
    out.append("## Rules\n\nBeside `when` and `do`:")
    out.append(_table(Rule, leave_out=("name", "when", "action")))
    out.append("## Conditions")
    for key, condition in (("finding", OnFinding), ("metric", OnMetric)):
        out.append(f"### {key}\n\n{_first_line(condition)}")
        out.append(_table(condition))
    out.append("`always` holds from the first step to the last; `any: [...]` and `all: [...]` join conditions.")
    out.append("## Presets\n\nAs resolved, rule by rule; the files say why each is there.")
    for name in policy_file.preset_names():
        out.append(f"### {name}\n\n{_preset(name)}")
    return "\n\n".join(part.strip() for part in out) + "\n"


def _first_line(kind: type[Any]) -> str:
    return (kind.__doc__ or "").strip().split("\n\n")[0].replace("\n    ", " ")


def _table(kind: type[Any], leave_out: tuple[str, ...] = ()) -> str:
    hints = get_type_hints(kind)
    rows = ["| field | takes | default | meaning |", "|---|---|---|---|"]
    for field in dataclasses.fields(kind):
        if field.name in leave_out:
            continue
        cells = (
            f"`{field.name}`",
            _takes(hints[field.name], field.metadata),
            "needed" if field.default is dataclasses.MISSING else _shown(field.default),
            field.metadata["help"],
        )
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows)


def _takes(hint: Any, metadata: Any) -> str:
    """A field's type and range, in words."""
    inside = get_args(hint)
    if get_origin(hint) in (Union, types.UnionType):
        return _takes(next(arg for arg in inside if arg is not type(None)), metadata)
    if get_origin(hint) is Literal:
        return ", ".join(f"`{word}`" for word in inside)
    if hint is bool:
        return "`true`, `false`"
    if hint is str:
        return "name"
    low, high = metadata.get("low"), metadata.get("high")
    number = "whole number" if hint is int else "number"
    limits = "" if low is None and high is None else f" >= {low:g}" if high is None else f" in [{low:g}, {high:g}]"
    return f"two: [least, most],{limits}" if get_origin(hint) is tuple else number + limits


def _shown(value: Any) -> str:
    if value is None:
        return "unset"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return f"[{', '.join(f'{part:g}' for part in value)}]"
    return str(value)


def _preset(name: str) -> str:
    policy = Policy.from_dict({"extends": name})
    rows = ["| rule | when | does | dry run |", "|---|---|---|---|"]
    for rule in policy.rules:
        when = _words(condition_to_dict(rule.when))
        rows.append(f"| `{rule.name}` | {when} | [{rule.action.name}](#{rule.action.name}) | "
                    f"{'yes' if rule.dry_run else 'no'} |")  # fmt: skip
    return "\n".join(rows)


def _words(when: Any) -> str:
    """A condition as one line of YAML."""
    if isinstance(when, str):
        return f"`{when}`"
    return "`{" + ", ".join(f"{key}: {value}" for key, value in when.items()) + "}`"


if __name__ == "__main__":
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(render(), encoding="utf-8")
    else:
        sys.stdout.write(render())
