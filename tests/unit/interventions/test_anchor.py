"""Which modes are dying, what the anchor weighs, which rows a step takes."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest

from rlmon.interventions.anchor import Anchor, dying, picks, weight


def test_a_mode_below_its_share_of_the_base_is_dying_and_the_most_lost_comes_first() -> None:
    base = {0: 0.5, 1: 0.3, 2: 0.1, 3: 0.1}
    # Ratios: 1.78, .33, .2 and 0; the line is .3.
    assert dying(Anchor(), base, {0: 0.89, 1: 0.1, 2: 0.02}) == (3, 2)
    assert dying(Anchor(below=0.5), base, {0: 0.89, 1: 0.1, 2: 0.02}) == (3, 2, 1)
    assert dying(Anchor(), base, base) == ()


def test_what_is_no_mode_or_not_known_does_not_die() -> None:
    assert dying(Anchor(), {-2: 0.2, -1: 0.3, 4: 0.5}, {4: 1.0}) == ()
    assert dying(Anchor(), {4: 0.5, 5: 0.5}, {}) == (), "nothing was measured yet"
    assert dying(Anchor(), {4: 0.999, 5: 0.001}, {4: 1.0}) == (), "too rare to know"


def test_the_weight_begins_and_decays() -> None:
    settings = Anchor(weight=0.1, decay=0.9)
    assert [weight(settings, step, 5) for step in (4, 5, 6, 15)] == pytest.approx([0.0, 0.1, 0.09, 0.1 * 0.9**10])
    assert weight(settings, 7, None) == 0.0


def test_picks_are_even_over_dying_modes_and_none_twice() -> None:
    stored = {1: 16, 2: 16, 3: 16, 9: 16}
    taken = picks(Anchor(batch=8), (3, 1, 2), stored, step=4)
    # 8 over 3 modes: 3, 3, 2.
    assert sorted(Counter(mode for mode, _ in taken).values()) == [2, 3, 3]
    assert len(set(taken)) == 8
    assert all(mode in (1, 2, 3) and 0 <= i < 16 for mode, i in taken)


def test_a_mode_with_few_rows_leaves_its_place_to_the_others() -> None:
    taken = picks(Anchor(batch=8), (1, 2), {1: 2, 2: 16}, step=4)
    assert Counter(mode for mode, _ in taken) == {1: 2, 2: 6}
    assert len(picks(Anchor(batch=8), (1, 2), {1: 2, 2: 3}, step=4)) == 5
    assert picks(Anchor(), (1, 2), {3: 5}, step=4) == ()
    assert picks(Anchor(), (), {3: 5}, step=4) == ()


def test_over_the_steps_every_row_and_every_mode_has_its_turn() -> None:
    settings, stored = Anchor(batch=4), dict.fromkeys(range(6), 8)
    steps = [picks(settings, tuple(stored), stored, step) for step in range(400)]
    seen = Counter(pick for taken in steps for pick in taken)
    # 1,600 picks over 48 rows: 33 each, standard deviation about 5.7.
    assert len(seen) == 48
    assert max(abs(n - 1600 / 48) for n in seen.values()) < 5 * 5.7


def test_picks_are_a_function_of_the_arguments_alone() -> None:
    python, numpy = random.getstate(), np.random.get_state()[1].copy()
    one = picks(Anchor(), (1, 2), {1: 9, 2: 9}, step=3)
    assert one == picks(Anchor(), (2, 1), {2: 9, 1: 9}, step=3)
    assert one != picks(Anchor(), (1, 2), {1: 9, 2: 9}, step=4)
    assert random.getstate() == python
    assert (np.random.get_state()[1] == numpy).all()
