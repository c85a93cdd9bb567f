"""States as JSON and back, by their fields."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest

from rlmon.interventions.saved import from_json, to_json


@dataclass(frozen=True)
class Inner:
    share: float
    name: str | None = None
    value: float | str | None = None


@dataclass(frozen=True)
class State:
    counts: Mapping[int, float] = field(default_factory=dict)
    nested: Mapping[int, Mapping[int, float]] = field(default_factory=dict)
    named: Mapping[str, tuple[tuple[int, float], ...]] = field(default_factory=dict)
    last: tuple[Inner, ...] = ()
    pair: tuple[int, float] = (0, 0.0)
    maybe: Inner | None = None


FULL = State(
    counts={-(2**62): 0.1 + 0.2, 3: 1.0},
    nested={7: {}, 8: {1: 1 / 3}},
    named={"a": ((1, 0.5), (2, 0.25))},
    last=(Inner(0.1), Inner(1e-300, "x", "on"), Inner(1.0, None, 2.5)),
    pair=(4, 5.0),
    maybe=Inner(0.0),
)


@pytest.mark.parametrize("state", [State(), FULL], ids=["empty", "full"])
def test_it_survives_exactly(state: State) -> None:
    assert from_json(State, json.loads(json.dumps(to_json(state), allow_nan=False))) == state


def test_the_form_by_hand() -> None:
    assert to_json(State(counts={3: 1.0}, named={"a": ((1, 0.5),)}, maybe=Inner(0.5))) == {
        "counts": [[3, 1.0]], "nested": [], "named": {"a": [[1, 0.5]]}, "last": [], "pair": [0, 0.0],
        "maybe": {"share": 0.5, "name": None, "value": None},
    }  # fmt: skip


@pytest.mark.parametrize("found", [{}, {**to_json(FULL), "pair": [1]}, {**to_json(FULL), "counts": [["x", 1.0]]}, 3])
def test_what_is_something_else_raises(found: object) -> None:
    with pytest.raises((KeyError, ValueError, TypeError)):
        from_json(State, found)
