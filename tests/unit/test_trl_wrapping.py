"""Wrapped methods: called once with what came, and as they were afterwards."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

from rlmon.trl.wrapping import Original, wrap


class Owner:
    def add(self, a: int, b: int = 2) -> int:
        if a < 0:
            raise ValueError("as it was")
        return a + b


def doubled(original: Original, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return 2 * original(*args, **kwargs)


def test_a_call_becomes_what_is_around_it_and_looks_as_before() -> None:
    owner, other = Owner(), Owner()
    undo = wrap(owner, "add", doubled)
    assert (owner.add(1), owner.add(1, b=4), other.add(1)) == (6, 10, 3), "on the instance alone"
    assert inspect.signature(owner.add) == inspect.signature(other.add)
    with pytest.raises(ValueError, match=r"^as it was$"):
        owner.add(-1)
    undo()
    assert "add" not in vars(owner)
    assert owner.add(1) == 3


def test_what_the_instance_had_comes_back() -> None:
    owner = Owner()
    owner.add = lambda a: 7 * a  # type: ignore[method-assign, assignment, misc]
    before = vars(owner)["add"]
    inner = wrap(owner, "add", doubled)
    outer = wrap(owner, "add", doubled)
    assert owner.add(1) == 28
    outer()
    assert owner.add(1) == 14
    inner()
    assert vars(owner)["add"] is before
