"""Bounded advantages."""

from __future__ import annotations

import math

import numpy as np

from rlmon.interventions.winsorise import winsorise


def test_both_sides_and_how_many() -> None:
    given = np.array([3.75, -0.25, -3.0, 2.5, -2.5, math.nan])
    clipped, count = winsorise(given, 2.5)
    np.testing.assert_array_equal(clipped, [2.5, -0.25, -2.5, 2.5, -2.5, math.nan])
    assert count == 2, "3.75 and -3.0; what equals the limit is not clipped"
    assert given[0] == 3.75, "what came in is left as it was"


def test_a_lone_success_of_eight_is_left_and_one_of_sixteen_is_bounded() -> None:
    for G, expected in ((8, 0), (16, 1)):
        advantage = np.full(G, -1 / math.sqrt(G))
        advantage[0] = (G - 1) / math.sqrt(G)  # 2.47 and 3.75
        assert winsorise(advantage, 2.5)[1] == expected


def test_nothing() -> None:
    clipped, count = winsorise(np.zeros(0), 1.0)
    assert clipped.shape == (0,)
    assert count == 0
