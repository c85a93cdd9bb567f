"""The interventions that come with rlmon, by the word after ``do:``, and those that people add."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import get_args

from rlmon.errors import ConfigError
from rlmon.interventions.anchor import Anchor
from rlmon.interventions.deferral import Defer
from rlmon.interventions.entropy_bonus import EntropyBonus
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
        problem = _problem(kind)
        if problem is None and found.get(kind.name, kind) is not kind:
            problem = f"there is another action of the name {kind.name}"
        if problem is not None:
            raise ConfigError(f"actions: {getattr(kind, '__name__', repr(kind)[:80])} cannot be one: {problem}.")
        found[kind.name] = kind
    return found


def _problem(kind: object) -> str | None:
    if not (isinstance(kind, type) and issubclass(kind, Intervention)):
        return "it is no subclass of rlmon.interventions.Intervention"
    name = getattr(kind, "name", None)
    if not isinstance(name, str) or not re.fullmatch(r"[a-z]+(_[a-z0-9]+)*", name):
        return 'it needs a name in small letters and underscores, the word after do: (name = "halve_long")'
    if "__dataclass_params__" not in kind.__dict__ or not kind.__dataclass_params__.frozen:  # type: ignore[attr-defined]
        return "it is no frozen dataclass. Write @dataclass(frozen=True, kw_only=True) above it"
    bare = [field.name for field in dataclasses.fields(kind) if "help" not in field.metadata]
    if bare:
        return f"its field {bare[0]} says neither its default nor what it means. Write {bare[0]}: ... = setting(...)"
    if kind.turns not in get_args(Turns):
        return f"it turns {kind.turns!r}; an intervention turns one of {', '.join(get_args(Turns))}"
    if kind.turns == "loss" and not issubclass(kind, Anchor):
        return "what turns the loss is a subclass of Anchor"
    return None
