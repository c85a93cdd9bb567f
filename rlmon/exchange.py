"""What the ranks tell each other at the end of a step: one float64 vector, added over ranks, with named fields.

Its length depends on settings alone. Sums, counts and faults are added; a row, a name or a vote is entered by one rank
in a place of its own, so that the sum is the table of all of them. Every rank then judges the same table: nothing that
is made from it depends on how many ranks there are, or on which of them saw what.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlmon.keys import content_key, source_label
from rlmon.metrics.family import Sums
from rlmon.metrics.rows import Rows
from rlmon.statistics import Floats

ROWS_A_STEP = 2_048
"""Rows over all ranks that enter: 0.9 MB. Of more, whole groups are taken, evenly spread over the round."""
NAMES_A_STEP = 64
"""Names of sources that can be told in one step, shared out among the ranks, one each at least."""
NAMES_KEPT = 1_024
_NAME_BYTES = 84
_BYTES_PER_FLOAT = 6

HEAD = np.dtype([(name, "f8") for name in ("completions", "prompts", "tokens", "rounds", "shed")])
_NAME = np.dtype([("key_plus_one", "f8"), ("text", "f8", (_NAME_BYTES // _BYTES_PER_FLOAT,))])
_OPINION = np.dtype([(name, "f8") for name in ("folds_plus_one", "state", "definition", "bytes")])
_POWERS = 256.0 ** np.arange(_BYTES_PER_FLOAT)


@dataclass(frozen=True)
class Places:
    """Which rows of a step enter the table, and where.

    With at most ``ROWS_A_STEP`` rows a step all do, each rank's behind one another in its own part of the table. With
    more the place follows from the row's number alone: of the groups of a round, those that are evenly spread over it.
    """

    rank: int
    world_size: int
    group_size: int
    rows_per_round: int | None
    """Completions of one generation over all ranks; ``None``: not known before, then each rank has its share."""
    rounds_per_step: int
    """Generations whose rows one step can meet."""

    @property
    def _declared(self) -> int:
        return 0 if self.rows_per_round is None else self.rows_per_round * self.rounds_per_step

    @property
    def _own(self) -> int:
        """Places of each rank, where all rows enter. Twice what is declared: a subclass may generate again."""
        most = min(2 * self._declared, ROWS_A_STEP) if self._declared else ROWS_A_STEP
        return max(1, -(-most // self.world_size))

    @property
    def _groups(self) -> int:
        """Groups of each round that enter, where not all do."""
        return max(1, ROWS_A_STEP // (self.rounds_per_step * self.group_size))

    @property
    def covers_all(self) -> bool:
        """Whether every row of a step has a place."""
        return self._declared <= ROWS_A_STEP

    @property
    def count(self) -> int:
        if self.covers_all:
            return self._own * self.world_size
        return self._groups * self.group_size * self.rounds_per_step

    def of(self, rows: Rows) -> tuple[Rows, NDArray[np.int64]]:
        """The rows that enter, and their places."""
        number, group_size = rows["global_row"].astype(np.int64), self.group_size
        if self.covers_all:
            if len(rows) > self._own:  # more than was declared, or nothing was: whole groups of this rank's own
                group = np.unique(np.stack([rows["round"], number // group_size]), axis=1, return_inverse=True)[1]
                rows = rows[_spread(group.reshape(-1), int(group.max()) + 1, self._own // group_size or 1)[0]]
                rows = rows[: self._own]
            return rows, self.rank * self._own + np.arange(len(rows))
        assert self.rows_per_round is not None
        groups = max(1, self.rows_per_round // group_size)
        chosen, place = _spread(number // group_size, groups, self._groups)
        chosen &= number < groups * group_size
        at_round = rows["round"].astype(np.int64) % self.rounds_per_step
        at = (at_round * self._groups + place) * group_size + number % group_size
        return rows[chosen], at[chosen]


def _spread(group_N: NDArray[np.int64], groups: int, wanted: int) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Which of ``groups`` groups are among ``wanted`` evenly spread ones, and the place of each among them."""
    wanted = min(wanted, groups)
    place = (group_N + 1) * wanted // groups - 1
    return (group_N + 1) * wanted // groups > group_N * wanted // groups, place


@dataclass(frozen=True, kw_only=True)
class Step:
    """What one rank enters, or the sum over all of them."""

    sums: Sums
    head: Mapping[str, float]
    faults: Mapping[str, int]
    """Where a part of the monitor failed on some rank, and how often over all of them."""
    rows: Rows
    """Of the sum: those of all ranks, in the order of rounds and of ``global_row``."""
    collided: int
    """Numbers (round and ``global_row``) that several rows came with: none of those rows is known."""
    names: Mapping[int, str]
    """Key and name of sources."""
    votes: Floats
    scorers: Mapping[int, str]
    """Names of the functions that rewards of several ranks are of, by ``metrics.success.scorer``."""
    opinions: Any
    """What each rank holds a success to be [W]: see ``Opinion``."""


@dataclass(frozen=True)
class Opinion:
    """What one rank holds a success to be. A rank that missed a round would go on with another than the others."""

    state: bytes
    definition: bytes
    folds: int
    """Rounds that went into it."""

    @property
    def entry(self) -> tuple[float, ...]:
        """As a slot of the vector holds it: digests of 48 bits."""
        digests = (float(content_key(text.decode())) for text in (self.state, self.definition))
        return (self.folds + 1.0, *digests, float(len(self.state)))


def agree(opinions: Any, rank: int, own: bytes, reduce: Callable[[Floats], Floats]) -> bytes | None:
    """The state that all ranks go on with, where theirs differ: that of the rank that folded most rounds.

    Whether there is a second sum over ranks for it, and how long, follows from ``opinions``, the same on all ranks.
    """
    leader = int(np.argmax(opinions["folds_plus_one"]))
    size = int(opinions["bytes"][leader])
    given = opinions["folds_plus_one"] > 0  # a rank that could not say what it holds is no reason for a second sum
    if size == 0 or (opinions["state"][given] == opinions["state"][leader]).all():
        return None
    told = np.zeros(-(-size // _BYTES_PER_FLOAT))
    if rank == leader:
        told = _packed(own)
    return _unpacked(reduce(told))[:size]


class Exchange:
    """The layout of the vector, and which names of sources all ranks know."""

    def __init__(
        self,
        places: Places,
        *,
        sums: np.dtype[Any],
        row: np.dtype[Any],
        faults: Sequence[str],
        votes: int,
        names: dict[str, str],
    ) -> None:
        self.places = places
        self.names = names
        """Names of sources by key, as all ranks have learned them; it grows."""
        self._own_names = max(1, NAMES_A_STEP // places.world_size)
        self._untold: dict[int, str] = {}
        self._layout = np.dtype(
            [
                ("sums", sums),
                ("head", HEAD),
                ("faults", [(place, "f8") for place in faults]),
                ("rows", row, (places.count,)),
                ("names", _NAME, (self._own_names * places.world_size,)),
                ("votes", "f8", (votes,)),
                ("scorers", _NAME, (places.world_size,)),
                ("opinions", _OPINION, (places.world_size,)),
            ]
        )

    def meet(self, names: Iterable[str]) -> None:
        """Sources of this rank's rows: those that are not known yet are told with the next step."""
        for name in set(names):
            key = content_key(name)
            if len(self._untold) < NAMES_KEPT and source_label(key) not in self.names:
                self._untold.setdefault(key, name)

    def empty(self) -> Any:
        """A share of zeros: what a rank enters that failed."""
        return np.zeros(1, dtype=self._layout)

    def fill(self, share: Any, *, sums: Sums, head: Mapping[str, float], rows: Rows, scorer: str = "") -> None:
        """Put this rank's part of a step into ``share``."""
        mine = share[0]
        mine["sums"] = sums
        for name, value in head.items():
            mine["head"][name] = value
        entered, at = self.places.of(rows)
        mine["rows"][at] = entered
        begin = self.places.rank * self._own_names
        for slot, (key, name) in zip(
            mine["names"][begin : begin + self._own_names], self._untold.items(), strict=False
        ):
            slot["key_plus_one"], slot["text"] = key + 1, _as_floats(name)
        if scorer:
            slot = mine["scorers"][self.places.rank]
            slot["key_plus_one"], slot["text"] = content_key(scorer) + 1, _as_floats(scorer)

    @staticmethod
    def vector(share: Any) -> Floats:
        """``share`` as the float64 vector that is added over ranks."""
        flat: Floats = share.view(np.float64)
        return flat

    def read(self, vector: Floats) -> Step:
        """The sum over ranks, by name. Sources that it names are known from here on."""
        whole = np.ascontiguousarray(vector).view(self._layout)[0]
        rows = whole["rows"][whole["rows"]["present"] == 1.0]
        rows = rows[np.lexsort((rows["global_row"], rows["round"]))]
        # Ranks that have places of their own can still give one number to several rows.
        number = np.stack([rows["round"], rows["global_row"]])
        again = np.concatenate([[False], (number[:, 1:] == number[:, :-1]).all(axis=0), [False]])[: len(rows) + 1]
        collided = int(np.count_nonzero(whole["rows"]["present"] > 1.0) + np.count_nonzero(again[1:] & ~again[:-1]))
        named = whole["names"][whole["names"]["key_plus_one"] > 0]
        return Step(
            sums=np.array(whole["sums"]),
            head={name: float(whole["head"][name]) for name in HEAD.names or ()},
            faults={name: int(count) for name, count in _items(whole["faults"]) if count},
            rows=rows[~(again[1:] | again[:-1])],
            collided=collided,
            names={int(slot["key_plus_one"]) - 1: _as_text(slot["text"]) for slot in named},
            votes=whole["votes"],
            scorers={int(slot["key_plus_one"]): _as_text(slot["text"]) for slot in whole["scorers"] if slot[0] > 0},
            opinions=whole["opinions"],
        )

    def learn(self, names: Mapping[int, str]) -> dict[str, str]:
        """Take the names that a step told; those that are new, by key."""
        new = {source_label(key): name for key, name in names.items() if source_label(key) not in self.names}
        new = dict(list(new.items())[: NAMES_KEPT - len(self.names)])
        self.names |= new
        self._untold = {key: name for key, name in self._untold.items() if key not in names}
        return new


def _items(fields: Any) -> Iterable[tuple[str, float]]:
    return ((name, fields[name]) for name in fields.dtype.names)


def _as_floats(text: str) -> Floats:
    return _packed(text.encode("utf-8", "replace")[:_NAME_BYTES].ljust(_NAME_BYTES, b"\0"))


def _as_text(floats: Floats) -> str:
    return _unpacked(floats).rstrip(b"\0").decode("utf-8", "ignore")


def _packed(data: bytes) -> Floats:
    whole = data.ljust(-(-len(data) // _BYTES_PER_FLOAT) * _BYTES_PER_FLOAT, b"\0")
    return np.frombuffer(whole, dtype=np.uint8).reshape(-1, _BYTES_PER_FLOAT) @ _POWERS


def _unpacked(floats: Floats) -> bytes:
    return b"".join(int(value).to_bytes(_BYTES_PER_FLOAT, "little") for value in floats)
