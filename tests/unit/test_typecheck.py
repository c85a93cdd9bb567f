"""What the tests hold every call within ``rlmon.metrics`` against: types, and sizes that one letter stands for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jaxtyping
import numpy as np
import pytest
import typecheck
from beartype.roar import BeartypeCallHintViolation
from jaxtyping import Float, TypeCheckError

from rlmon.metrics.family import Numbers


def checked(function: Callable[..., Any]) -> Any:
    return jaxtyping.jaxtyped(function, typechecker=typecheck.checked)


def without_arrays(value: float, names: list[str]) -> float:
    return value if names else None  # type: ignore[return-value]


def with_arrays(a_NK: Float[np.ndarray, "N K"], b: tuple[Float[np.ndarray, "N K"], int]) -> Float[np.ndarray, "N 2"]:
    return np.zeros((len(a_NK), b[1]))


def test_types_are_held_without_arrays() -> None:
    function = checked(without_arrays)
    assert function(1, ["an int is a float"]) == 1
    for wrong in (("1", ["a"]), (1.0, [2]), (1.0, [])):
        with pytest.raises(BeartypeCallHintViolation):
            function(*wrong)


def test_sizes_are_held_with_arrays() -> None:
    function, zeros = checked(with_arrays), np.zeros
    assert function(zeros((3, 1)), (zeros((3, 1)), 2)).shape == (3, 2)
    for wrong in ((zeros((3, 1)), (zeros((4, 1)), 2)), (zeros((3, 1)), (zeros((3, 1)), 3)), (zeros(3), (zeros(3), 2))):
        with pytest.raises(TypeCheckError):
            function(*wrong)


def test_the_package_is_held() -> None:
    with pytest.raises((BeartypeCallHintViolation, TypeCheckError)):
        Numbers().put("entropy", 1.0, reason=3)  # type: ignore[arg-type]
