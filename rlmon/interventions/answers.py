"""What an intervention answered, in the types that the fold goes on with; anything else raises, and says what came.

A class of one's own may give a text where a number is needed, a NaN, or one value where there are two: found here, that
stops its rule, and reaches neither training nor a checkpoint nor the step's record.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import numbers
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlmon.interventions.intervention import Intervention, Level, RowAct, RowChange, RuleState, RunSoFar

LARGEST = 1e30
"""No factor, addition, bound or level is larger: well inside of the numbers of 32 bits that trainers compute in."""


def number(value: Any, what: str) -> float:
    """A finite number. Raises ``ValueError`` for anything else."""
    if not isinstance(value, numbers.Real) or not abs(float(value)) <= LARGEST:
        raise ValueError(f"{what} is {_shown(value)}")
    return float(value)


def _from_0(value: Any, what: str) -> float:
    found = number(value, what)
    if found < 0.0:
        raise ValueError(f"{what} is {_shown(value)}")
    return found


def change_of_rows(answer: Any, rows: int) -> tuple[Any, RowChange]:
    """What ``on_round`` gave for a round of so many rows."""
    inner, change = _two(answer, "on_round", "(state, RowChange(...))")
    if not isinstance(change, RowChange):
        raise TypeError(f"on_round returns (state, RowChange(...)), and gave {_shown(change)} as the second")
    factor_N, addition_N = (
        _of_each_row(values, name, rows)
        for name, values in (("factor_N", change.factor_N), ("addition_N", change.addition_N))
    )
    limit = None if change.limit is None else _from_0(change.limit, "limit")
    return inner, RowChange(factor_N=factor_N, limit=limit, addition_N=addition_N, act=_act(change.act))


def _of_each_row(values: Any, name: str, rows: int) -> NDArray[np.float64] | None:
    if values is None:
        return None
    found = np.asarray(values)
    if found.shape != (rows,) or found.dtype.kind not in "biuf" or not (np.abs(found) <= LARGEST).all():
        raise ValueError(f"{name} is not a finite number for each of {rows} rows")
    return found.astype(np.float64)


def _act(act: Any) -> RowAct | None:
    if act is None:
        return None
    if not isinstance(act, RowAct):
        raise TypeError(f"act is {_shown(act)}, and no RowAct(knob=..., count=..., reason=...)")
    if act.knob not in ("advantages", "draws"):
        raise ValueError(f'the act\'s knob is {_shown(act.knob)}. Write knob="advantages" or knob="draws"')
    count: Any = act.count
    if not isinstance(count, int | np.integer) or count < 0:
        raise ValueError(f"the act's count is {_shown(count)}, and no whole number of at least 0")
    return RowAct(knob=act.knob, count=int(count), reason=_text(act.reason, "the act's reason"))


def suspension(action: Intervention, at: RuleState, run: RunSoFar) -> tuple[bool, str | None]:
    """What ``suspends`` says."""
    held, why = _two(action.suspends(at, run), "suspends", "(whether, why)")
    if not isinstance(held, bool | np.bool_):
        raise TypeError(f"suspends returns (whether, why), and gave {_shown(held)} as the first")
    return bool(held), None if why is None else _text(why, "why it is suspended")


def next_level(action: Intervention, at: RuleState, run: RunSoFar) -> tuple[float | None, str | None]:
    """What ``next_level`` says: a level of at least 0."""
    level, why = _two(action.next_level(at, run), "next_level", "(level, why)")
    level = None if level is None else _from_0(level, "its next level")
    return level, None if why is None else _text(why, "why its level changes")


def resting_level(action: Intervention, given: Mapping[str, float]) -> float:
    """What ``resting_level`` says: a level of at least 0."""
    return _from_0(action.resting_level(given), "its resting level")


def change_of_level(action: Intervention, old: float, new: float) -> tuple[Level, Level] | None:
    """What ``change`` says; where a coefficient of the trainer is turned, numbers."""
    answer = action.change(old, new)
    if answer is None:
        return None
    before, after = _two(answer, "change", "(old, new)")
    if action.turns in ("beta", "entropy_coef"):
        return _from_0(before, f"the {action.turns} that it changes"), _from_0(
            after, f"the {action.turns} that it sets"
        )
    return _level(before), _level(after)


def _level(value: Any) -> Level:
    return value if value is None or isinstance(value, str) else number(value, "the level that its act names")


def measures(action: Intervention, at: RuleState, step: int, *, dry_run: bool) -> Mapping[str, float | None]:
    """What ``measures`` says: finite numbers by name, ``None`` where one is not measured."""
    found = action.measures(at, step, dry_run=dry_run)
    if not isinstance(found, Mapping):
        raise TypeError(f"measures returns a mapping of names to numbers, and gave {_shown(found)}")
    for name in found:
        if not isinstance(name, str) or name in ("beta", "entropy_coef"):
            raise ValueError(f"{_shown(name)} is no name for a metric of its own")
    return {name: None if value is None else number(value, name) for name, value in found.items()}


def saved_state(action: Intervention, state: Any) -> Any:
    """What ``save`` gives, as JSON types from which ``load`` makes the same state again."""
    inner = json.loads(json.dumps(action.save(state)))
    again = action.load(inner)
    if not _alike(again, state):
        raise ValueError(f"{_shown(state)} comes back as {_shown(again)}")
    return inner


def _alike(one: Any, other: Any) -> bool:
    """Whether two states are one, where that can be told: types, keys and numbers, NaN like NaN."""
    one, other = (value.item() if isinstance(value, np.generic) else value for value in (one, other))
    if isinstance(one, float) and isinstance(other, float):
        return one == other or (math.isnan(one) and math.isnan(other))
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(_alike(value, other[key]) for key, value in one.items())
    if type(one) is not type(other):
        return False
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(_alike(*pair) for pair in zip(one, other, strict=True))
    if dataclasses.is_dataclass(one):
        with contextlib.suppress(ValueError):  # arrays are not compared as a whole
            if one == other:
                return True
        names = [field.name for field in dataclasses.fields(one) if field.compare]
        return all(_alike(getattr(one, name), getattr(other, name)) for name in names)
    equal: Any = type(one).__eq__
    return equal is object.__eq__ or bool(one == other)


def _two(answer: Any, method: str, form: str) -> tuple[Any, Any]:
    if not isinstance(answer, tuple) or len(answer) != 2:
        raise TypeError(f"{method} returns {form}, and gave {_shown(answer)}")
    return answer


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{what} is {_shown(value)}, and no text")
    return value


def _shown(value: Any) -> str:
    return f"{value}"[:80] if isinstance(value, float | np.floating) else repr(value)[:80]
