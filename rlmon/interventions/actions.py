"""The interventions that come with rlmon, by the word after ``do:``, and those that people add."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import Any, get_args, get_type_hints

from rlmon.errors import ConfigError
from rlmon.interventions.anchor import Anchor
from rlmon.interventions.deferral import Defer
from rlmon.interventions.entropy_bonus import EntropyBonus
from rlmon.interventions.hold import Hold
from rlmon.interventions.intervention import Intervention, Turns
from rlmon.interventions.kl_penalty import KLPenalty
from rlmon.interventions.mode_marginal import ModeMarginal
from rlmon.interventions.once import ResetReference, RollBack, Stop
from rlmon.interventions.quarantine import Quarantine
from rlmon.interventions.winsorise import Winsorise

ACTIONS: Mapping[str, type[Intervention]] = {
    kind.name: kind
    for kind in (
        KLPenalty,
        EntropyBonus,
        ModeMarginal,
        Hold,
        Defer,
        Quarantine,
        Anchor,
        Winsorise,
        ResetReference,
        Stop,
        RollBack,
    )
}


def known_actions(more: Iterable[type[Intervention]] = ()) -> Mapping[str, type[Intervention]]:
    """By the word after ``do:``, what comes with rlmon and ``more``. Raises ``ConfigError`` for what is none."""
    found = dict(ACTIONS)
    for kind in more:
        problem = problem_of(kind)
        if problem is None and found.get(kind.name, kind) is not kind:
            problem = f"there is another action of the name {kind.name}"
        if problem is not None:
            raise ConfigError(f"actions: {getattr(kind, '__name__', repr(kind)[:80])} cannot be one: {problem}.")
        found[kind.name] = kind
    return found


def problem_of(action: object) -> str | None:
    """Why ``action`` can be no action of a policy, and what to write; ``None`` where it can."""
    if not (isinstance(action, type) and issubclass(action, Intervention)):
        return "it is no subclass of rlmon.interventions.Intervention"
    name = getattr(action, "name", None)
    if not isinstance(name, str) or not re.fullmatch(r"[a-z]+(_[a-z0-9]+)*", name):
        return 'it needs a name in small letters and underscores, the word after do: (name = "halve_long")'
    if "__dataclass_params__" not in action.__dict__ or not action.__dataclass_params__.frozen:  # type: ignore[attr-defined]
        return "it is no frozen dataclass. Write @dataclass(frozen=True, kw_only=True) above it"
    fields = [field.name for field in dataclasses.fields(action)]
    bare = [field.name for field in dataclasses.fields(action) if "help" not in field.metadata]
    if bare:
        return f"its field {bare[0]} says neither its default nor what it means. Write {bare[0]}: ... = setting(...)"
    try:
        get_type_hints(action)
    except Exception as error:
        return f"the types of its fields cannot be read ({type(error).__name__}: {error})"
    if action.starts_at is not None and not {action.starts_at, "bounds"} <= {*fields}:
        return f"starts_at names {action.starts_at!r}, and it has no fields {action.starts_at} and bounds"
    asks, knob, by = _said(action, "asks"), _said(action, "knob_name"), _said(action, "measured_by")
    if asks not in (None, "before", "after"):
        return f'it asks {asks!r}. Write asks = "before" or asks = "after"'
    if not (knob is None or isinstance(knob, str)):
        return f"its knob_name is {knob!r}, and no text"
    if not (
        by is None or (isinstance(by, tuple) and len(by) == 2 and isinstance(by[0], str) and by[1] in ("up", "down"))
    ):
        return f'it is measured_by {by!r}. Write measured_by = ("rlmon/health/length_mean", "down"), or the like'
    return _turns_what_it_cannot(action)


def _said(action: type[Intervention], name: str) -> Any:
    return getattr(action, name)


DERIVED: Mapping[Turns, type[Intervention]] = {
    "loss": Anchor,
    "reference": ResetReference,
    "stop": Stop,
    "roll_back": RollBack,
}
"""What a class that turns these is derived from: a loop knows how to do that, and no other way."""


def _turns_what_it_cannot(action: type[Intervention]) -> str | None:
    turns = action.turns
    if turns not in get_args(Turns):
        return f"it turns {turns!r}; an intervention turns one of {', '.join(get_args(Turns))}"
    parent = DERIVED.get(turns)
    if parent is not None and not issubclass(action, parent):
        said = f"what turns {turns} is a subclass of {parent.__name__}"
        return f"{said}. Write class {action.__name__}({parent.__name__}), from {parent.__module__}"
    if turns in ("beta", "entropy_coef") and action.next_level is Intervention.next_level:
        return f"it turns {turns}, and does not say to which value. Give it next_level, which returns (value, None)"
    if turns == "draws" and action.blocked is Intervention.blocked:
        return "it turns draws, and does not say what is not to be drawn. Give it blocked, or derive it from Defer"
    return None
