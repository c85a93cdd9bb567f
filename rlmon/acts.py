"""Acts of a policy as people see them: the lines of one act joined, its change in words, many like acts as one entry.

A log may come from anywhere, so that values of any type are taken; text comes out as it is, and whoever shows it makes
it printable.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

ROW_KNOBS = ("advantages", "draws")
"""Acts on rows of a round and not on a setting: there may be one each round, and the reason says what was done."""
OUTCOMES = ("decided", "applied", "failed", "dry run")
EFFECTS = ("helped", "no_effect", "harmed", "not_measured")


@dataclass(frozen=True, kw_only=True, slots=True)
class Act:
    """What the lines with one ``action_id`` say together."""

    action_id: str
    step: int
    """At which it was decided."""
    rule: str
    knob: str
    old: float | str | None
    new: float | str | None
    reason: str
    outcome: str
    """One of ``OUTCOMES``; ``decided``: nothing is known of what became of it."""
    effect: str | None = None
    """One of ``EFFECTS``; ``None`` while it is waited for."""
    effect_reason: str | None = None

    @property
    def change(self) -> str:
        """``kappa (format) 1 -> 0.9``; empty for acts on rows, whose reason says all."""
        return change(self.knob, self.old, self.new)


def change(knob: str, old: float | str | None, new: float | str | None) -> str:
    """What was turned, and how far, in words."""
    if knob in ROW_KNOBS:
        return ""
    if old is None and new is None:
        return knob
    if old is None and isinstance(new, str):
        return f"{knob}: {new}"
    return f"{knob} {_level(old)} -> {_level(new)}"


def _level(value: float | str | None) -> str:
    if value is None:
        return "none"
    return value if isinstance(value, str) else f"{value:.3g}"


def act_of(action: Mapping[str, Any], before: Act | None = None) -> Act:
    """``action``, a line of the log, as an act; ``before``: what earlier lines with its ``action_id`` said."""
    phase = _text(action.get("phase"))
    if before is None:
        before = Act(
            action_id=_text(action.get("action_id")),
            step=_step(action.get("step")),
            rule=_text(action.get("rule")),
            knob=_text(action.get("knob")),
            old=_value(action.get("old")),
            new=_value(action.get("new")),
            reason=_text(action.get("reason")),
            outcome="dry run" if action.get("dry_run") is True else "decided",
        )
    if phase in ("applied", "failed"):
        # The reason of a failure ends in what went wrong.
        reason = _text(action.get("reason")) or before.reason
        return replace(before, outcome=phase, reason=reason if phase == "failed" else before.reason)
    if phase == "measured":
        effect, why = action.get("effect"), action.get("effect_reason")
        applied = "applied" if before.outcome == "decided" else before.outcome
        return replace(
            before,
            outcome=applied,
            effect=None if effect is None else _text(effect),
            effect_reason=None if why is None else _text(why),
        )
    return before


def fold(actions: Iterable[Mapping[str, Any]]) -> list[Act]:
    """One act for each ``action_id``, in the order in which they were decided."""
    found: dict[Any, Act] = {}
    for at, action in enumerate(actions):
        key = action.get("action_id")
        # Without an identifier a line stands for itself.
        key = key if isinstance(key, str) else at
        found[key] = act_of(action, found.get(key))
    return list(found.values())


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """Acts that are shown as one: several rounds of one row rule, or a single act."""

    newest: Act
    count: int
    first_step: int
    effects: Mapping[str, int]
    """How many of the acts had each effect; those that were not measured are left out."""

    @property
    def effect(self) -> str:
        """``helped``, ``2 helped, 1 harmed``, or empty."""
        if self.count == 1:
            return "".join(name.replace("_", " ") for name in self.effects)
        return ", ".join(f"{amount} {name.replace('_', ' ')}" for name, amount in self.effects.items())


def entries(acts: Sequence[Act]) -> list[Entry]:
    """Newest first. Acts of one rule on rows are one entry, however many there are, as long as they ended alike."""
    groups: dict[Any, list[Act]] = {}
    for at, act in enumerate(acts):
        groups.setdefault((act.rule, act.knob, act.outcome) if act.knob in ROW_KNOBS else at, []).append(act)
    made = []
    for group in groups.values():
        counted = Counter(act.effect for act in group if act.effect is not None and act.effect != "not_measured")
        made.append(
            Entry(
                newest=group[-1],
                count=len(group),
                first_step=group[0].step,
                effects={name: counted[name] for name in sorted(counted, key=_effect_rank)},
            )
        )
    places = {id(act): at for at, act in enumerate(acts)}
    return sorted(made, key=lambda entry: (-entry.newest.step, -places[id(entry.newest)]))


def summary(acts: Sequence[Act]) -> str:
    """``37 acts by 3 rules: 30 applied, 6 dry run, 1 failed; 4 helped, 1 harmed``; empty without acts."""
    if not acts:
        return ""
    rules = len({act.rule for act in acts})
    outcomes = Counter(act.outcome if act.outcome in OUTCOMES else "decided" for act in acts)
    effects = Counter(act.effect for act in acts if act.effect in EFFECTS and act.effect != "not_measured")
    parts = [", ".join(f"{outcomes[name]:,} {name}" for name in ("applied", "dry run", "decided", "failed")
                       if outcomes[name])]  # fmt: skip
    if effects:
        parts.append(", ".join(f"{effects[name]:,} {name.replace('_', ' ')}" for name in EFFECTS if effects[name]))
    said = f"{len(acts):,} act{'' if len(acts) == 1 else 's'} by {rules} rule{'' if rules == 1 else 's'}"
    return f"{said}: {'; '.join(parts)}"


def _effect_rank(effect: str | None) -> int:
    return EFFECTS.index(effect) if effect in EFFECTS else len(EFFECTS)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else "" if value is None else str(value)[:200]


def _step(value: Any) -> int:
    return value if type(value) is int else 0


def _value(value: Any) -> float | str | None:
    if value is None or isinstance(value, str):
        return value
    return float(value) if isinstance(value, (int, float)) and abs(value) < 1e300 else str(value)[:200]
