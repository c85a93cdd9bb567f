"""The vector that ranks add: who enters what where, and what comes out of the sum."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rlmon import exchange
from rlmon.exchange import Exchange, Places
from rlmon.keys import content_key, source_label
from rlmon.metrics.rows import ROW

SUMS = np.dtype([("format", [("modes", "f8", (3,))])])


def places(rank: int = 0, world_size: int = 1, group_size: int = 4, **settings: Any) -> Places:
    given = {"rows_per_round": None, "rounds_per_step": 1} | settings
    return Places(rank=rank, world_size=world_size, group_size=group_size, **given)


def rows(numbers: Any, round_: int = 0) -> Any:
    made = np.zeros(len(numbers), dtype=ROW)
    made["present"], made["round"], made["global_row"] = 1.0, round_, numbers
    return made


def summed(ranks: list[Exchange], *parts: Any) -> exchange.Step:
    vectors = []
    for one, part in zip(ranks, parts, strict=True):
        share = one.empty()
        one.fill(share, sums=np.ones((), dtype=SUMS), head={"tokens": 2.0}, rows=part)
        vectors.append(one.vector(share))
    assert len({len(vector) for vector in vectors}) == 1
    return ranks[0].read(np.sum(vectors, axis=0))


def ranks(world: int, **settings: Any) -> list[Exchange]:
    return [
        Exchange(places(rank, world, **settings), sums=SUMS, row=ROW, faults=("a", "b"), votes=1, names={})
        for rank in range(world)
    ]


def test_the_sum_is_the_table_of_all_rows_in_their_order() -> None:
    whole = summed(ranks(3), rows([4, 5, 0]), rows([3, 1]), rows([], 0))
    assert whole.rows["global_row"].tolist() == [0, 1, 3, 4, 5]
    assert whole.sums["format"]["modes"].tolist() == [3.0] * 3
    assert whole.head["tokens"] == 6.0
    assert whole.collided == 0


def test_the_length_depends_on_settings_alone() -> None:
    # 64 rows, twice: a subclass may generate again. 54 numbers a row, so 54 x 128.
    assert places(rows_per_round=64).count == 128
    assert places(world_size=4, rows_per_round=64).count == 128
    assert places(rows_per_round=64, rounds_per_step=2).count == 256
    assert places().count == places(world_size=8).count == places(rows_per_round=2_048).count == exchange.ROWS_A_STEP
    # More rows than enter: 512 groups of 4, however many ranks.
    assert {places(world_size=world, rows_per_round=10_000).count for world in (1, 7, 64, 4_096)} == {2_048}


@pytest.mark.parametrize("world", [1, 2, 5])
def test_of_more_rows_whole_groups_enter_that_are_evenly_spread(world: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "ROWS_A_STEP", 12)
    numbers = np.array_split(np.arange(40), world)
    whole = summed(ranks(world, rows_per_round=40), *[rows(part) for part in numbers])
    # Three of ten groups: where 3 (g + 1) / 10 reaches the next integer, g = 3, 6 and 9.
    assert whole.rows["global_row"].tolist() == [*range(12, 16), *range(24, 28), *range(36, 40)]


def test_a_loop_that_declared_nothing_keeps_whole_groups_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "ROWS_A_STEP", 8)
    whole = summed(ranks(1), np.concatenate([rows(range(12), 5), rows(range(4), 6)]))
    assert whole.rows["round"].tolist() == [5.0] * 4 + [6.0] * 4
    assert whole.rows["global_row"].tolist() == [4, 5, 6, 7, 0, 1, 2, 3]


def test_two_ranks_in_one_place_are_counted_and_neither_is_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "ROWS_A_STEP", 8)
    # Of four groups the second and the fourth enter; both ranks say that they hold row 4.
    whole = summed(ranks(2, rows_per_round=16), rows([4, 5, 6, 7]), rows([4, 12, 13, 14, 15]))
    assert whole.collided == 1
    assert whole.rows["global_row"].tolist() == [5, 6, 7, 12, 13, 14, 15]


def test_rows_of_one_number_are_counted_and_none_is_believed_where_all_have_places() -> None:
    for first, second in ((rows([0, 1, 2, 3]), rows([2, 3, 4])), (rows([0, 1, 2, 2, 3, 3, 3, 4]), rows([]))):
        whole = summed(ranks(2), first, second)
        assert whole.collided == 2
        assert whole.rows["global_row"].tolist() == [0, 1, 4]
    assert summed(ranks(2), rows([0, 1], 3), rows([0, 1], 4)).collided == 0, "of other rounds"
    assert summed(ranks(2), rows([]), rows([])).collided == 0


def test_names_are_told_until_all_know_them() -> None:
    pair = ranks(2)
    long = "ü" * 60
    pair[0].meet([f"task {i}" for i in range(40)])
    pair[1].meet(["other", long, "task 3", "\ud800"])
    first = summed(pair, rows([]), rows([]))
    # 32 slots a rank: eight of rank 0's names wait for the next step.
    assert len(first.names) == 32 + 4 - (content_key("task 3") in [*first.names][:32])
    assert first.names[content_key("other")] == "other"
    assert first.names[content_key(long)] == "ü" * 42, "84 bytes"
    new = [one.learn(first.names) for one in pair]
    assert new[0] == new[1]
    second = summed(pair, rows([]), rows([]))
    late = [one.learn(second.names) for one in pair]
    assert late[0].keys() == {source_label(content_key(f"task {i}")) for i in range(40)} - new[0].keys()
    assert not summed(pair, rows([]), rows([])).names
    pair[0].meet(["other"])
    assert not summed(pair, rows([]), rows([])).names, "known to all by now"


def test_a_rank_that_failed_enters_with_zeros() -> None:
    pair = ranks(2)
    share = pair[0].empty()
    pair[0].fill(share, sums=np.ones((), dtype=SUMS), head={}, rows=rows([1, 2]))
    whole = pair[0].read(pair[0].vector(share) + pair[1].vector(pair[1].empty()))
    assert whole.rows["global_row"].tolist() == [1, 2]
