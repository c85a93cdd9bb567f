"""Settings of runs side by side: what differs, and what is no reason for a difference."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlmon.audit.result import Audit
from rlmon.printable import one_line

_NOISE = (
    "output_dir", "run_name", "seed", "data_seed", "logging_dir", "report_to", "project", "trackio_space_id",
    "hub_model_id", "hub_token", "push_to_hub", "local_rank", "process_index", "device", "rlmon_dir",
)  # fmt: skip
_RULES = "policy.rules."


@dataclass(frozen=True, kw_only=True, slots=True)
class SettingDifference:
    """A setting that is not the same on both sides."""

    key: str
    a: Sequence[str]
    """The distinct values of A's runs as JSON text; empty where none of them has the setting."""
    b: Sequence[str]


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{name}.")
        else:
            flat[name] = _text(value)
    return flat


def _text(value: Any) -> str:
    return one_line(json.dumps(value, sort_keys=True, default=str, ensure_ascii=True), 300)


def differing_settings(
    a: Sequence[Audit], b: Sequence[Audit]
) -> tuple[list[SettingDifference], list[SettingDifference], str]:
    """What may be a reason for a difference, what is none, and how much was compared, in words."""
    flats = [[_flat(run.run.config) for run in side] for side in (a, b)]
    if not any(flats[0]) or not any(flats[1]):
        without = "A" if not any(flats[0]) else "B"
        both = not any(flats[0]) and not any(flats[1])
        who = "Neither side" if both else f"Side {without}"
        note = f"{who} left its settings behind (W&B, trackio and rlmon logs hold them), so they cannot be compared."
        return [], [], note if both else note.replace("left its settings", "did not leave its settings")
    flats = _whole_rules(flats)
    keys = sorted({key for side in flats for flat in side for key in flat})
    differing: list[SettingDifference] = []
    noise: list[SettingDifference] = []
    for key in keys:
        values = [sorted({flat[key] for flat in side if key in flat}) for side in flats]
        if values[0] == values[1]:
            continue
        found = SettingDifference(key=key[:200], a=values[0][:8], b=values[1][:8])
        leaf = key.rsplit(".", 1)[-1]
        (noise if leaf in _NOISE or leaf.endswith(("_dir", "_path", "_time")) else differing).append(found)
    return differing, noise, f"{len(keys)} settings compared"


def _whole_rules(sides: list[list[dict[str, str]]]) -> list[list[dict[str, str]]]:
    """A policy that only one side has is one setting, its rules; and so is a rule that only one side has, its action:
    twenty knobs of it, each not set on the other side, would say no more."""
    rules = [{_rule(key) for flat in side for key in flat if key.startswith(_RULES)} for side in sides]
    both = rules[0] & rules[1]
    whole: list[list[dict[str, str]]] = []
    for side in sides:
        told = []
        for flat in side:
            mine = {_rule(key): "" for key in flat if key.startswith(_RULES)}
            kept = {key: value for key, value in flat.items() if not key.startswith("policy.")}
            if mine and not (rules[0] and rules[1]):
                kept["policy"] = ", ".join(mine)
            elif mine:
                kept |= {key: value for key, value in flat.items() if key.startswith("policy.") and _known(key, both)}
                alone = [rule for rule in mine if rule not in both]
                kept |= {f"{_RULES}{rule}": flat.get(f"{_RULES}{rule}.do.action", "set") for rule in alone}
            told.append(kept)
        whole.append(told)
    return whole


def _rule(key: str) -> str:
    return key.removeprefix(_RULES).partition(".")[0]


def _known(key: str, rules: set[str]) -> bool:
    return not key.startswith(_RULES) or _rule(key) in rules
