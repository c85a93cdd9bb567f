"""What a wrapper sees of a call must not depend on how the caller or the subclass wrote it."""

from __future__ import annotations

import functools
from typing import Any

import pytest

pytestmark = pytest.mark.trl
NAMES = ("inputs", "prompts", "completions", "completion_ids_list")
FOUR = {"inputs": 1, "prompts": 2, "completions": 3, "completion_ids_list": 4}


class Trls:
    def score(self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any) -> None: ...


class Renamed:
    def score(self, rows: Any, prompts: Any, texts: Any, ids: Any, weight: float = 0.5) -> None: ...


class Passing:
    def score(self, *args: Any, **kwargs: Any) -> None: ...


class HalfNamed:
    def score(self, inputs: Any, *args: Any, verbose: bool = False, **kwargs: Any) -> None: ...


class Decorated:
    @functools.wraps(Trls.score)
    def score(self, *args: Any, **kwargs: Any) -> None: ...


@pytest.mark.parametrize(
    ("kind", "args", "kwargs", "extra"),
    [
        (Trls, (1, 2, 3, 4), {}, {}),
        (Trls, (1,), {"completion_ids_list": 4, "prompts": 2, "completions": 3}, {}),
        (Renamed, (1, 2, 3, 4), {}, {"weight": 0.5}),
        (Renamed, (1, 2), {"ids": 4, "texts": 3, "weight": 2.0}, {"weight": 2.0}),
        (Passing, (1, 2, 3, 4), {}, {}),
        (Passing, (), {"inputs": 1, "prompts": 2, "completions": 3, "completion_ids_list": 4, "more": 5}, {"more": 5}),
        (HalfNamed, (1, 2, 3), {"completion_ids_list": 4}, {"verbose": False}),
        (Decorated, (1, 2, 3), {"completion_ids_list": 4}, {}),
    ],
)
def test_one_view_of_every_way_to_call(kind: Any, args: Any, kwargs: Any, extra: dict[str, Any]) -> None:
    from rlmon.trl.wrapping import bound_arguments

    assert bound_arguments(kind().score, args, kwargs, NAMES) == FOUR | extra


def test_what_is_not_given_is_absent_and_a_wrong_call_is_said() -> None:
    from rlmon.trl.wrapping import bound_arguments

    assert bound_arguments(Passing().score, (1,), {}, NAMES) == {"inputs": 1}
    with pytest.raises(TypeError, match="completion_ids_list"):
        bound_arguments(Trls().score, (1, 2, 3), {}, NAMES)
