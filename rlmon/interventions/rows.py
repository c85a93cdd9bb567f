"""The rows of one training round over all ranks: how ranks exchange them, and how rules see them."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

ModeKind = Literal["format", "template", "opening", "moves"]
MODE_KINDS: tuple[ModeKind, ...] = get_args(ModeKind)
KEYS = ("prompt", "source", *MODE_KINDS, "answer", "scorer", "truncated", "parsed")
NUMBERS = ("tokens", "numbers", "reward", "advantage", "logp_base", "success")
ROW = np.dtype([("ok", np.int64), *((name, np.int64) for name in KEYS), *((name, np.float64) for name in NUMBERS)])
"""One row as ranks exchange it. A rank whose rows could not be made enters with zeros, ``ok`` among them."""
FIELDS = ROW.itemsize // 8
Wide = Literal["openers", "sketch"]
OPENERS = 64
SKETCH = 128
_WIDE: Mapping[Wide, tuple[Any, int]] = {"openers": (np.int64, OPENERS), "sketch": (np.uint32, SKETCH)}
"""Columns of half a kilobyte a row, exchanged only where a rule compares completions by them."""


def wide_fields(reads: Collection[Wide]) -> list[tuple[str, Any, tuple[int]]]:
    """The wide columns among ``reads``, as fields of a dtype, in one order."""
    return [(name, kind, (width,)) for name, (kind, width) in _WIDE.items() if name in reads]


def row_type(reads: Collection[Wide] = ()) -> np.dtype[Any]:
    """``ROW``, with the wide columns among ``reads``: one row as ranks exchange it for rules that read those."""
    return np.dtype([*((name, kind[0]) for name, kind in (ROW.fields or {}).items()), *wide_fields(reads)])


@dataclass(frozen=True, kw_only=True)
class RoundTable:
    """Every row of one training generation over all ranks, in the order of ``global_row``; the same on every rank. It
    can be read only.

    Groups are ``group_size`` consecutive rows. Keys are opaque integers (hashes), equal on all ranks.
    """

    round: int
    step: int
    """``global_step`` after the update that first trains it."""
    group_size: int
    prompt_N: NDArray[np.int64]
    source_N: NDArray[np.int64]
    modes_N: Mapping[str, NDArray[np.int64]]
    """Mode key of each row, by kind (``format``, ``template``, ``opening``, ``moves``); -1 where unknown."""
    answer_N: NDArray[np.int64]
    """-1 where the completion has no answer that could be read."""
    tokens_N: NDArray[np.float64]
    """Completion tokens of the model's own."""
    numbers_N: NDArray[np.float64]
    """Numbers written in the completion."""
    reward_N: NDArray[np.float64]
    """NaN where no reward function scored the row."""
    success_N: NDArray[np.float64]
    """1.0 for a success, 0.0 for none, NaN where that is not known."""
    advantage_N: NDArray[np.float64]
    """As the trainer computed it."""
    logp_base_N: NDArray[np.float64]
    """Mean log-probability per token under TRL's reference; NaN where there is none."""
    truncated_N: NDArray[np.int64]
    """1 where the completion was cut at the token limit; 0 where not, or where that is not known."""
    parsed_N: NDArray[np.int64]
    """0 where its format is ``other``: none that is known; else 1."""
    openers_NK: NDArray[np.int64] | None = None
    """Its heaviest openers [N, 64] as bucket << 32 | share of its openers in 2^-31, 0 where it has fewer, or
    where moves are not measured; ``None`` where no rule ``reads`` them."""
    sketch_NK: NDArray[np.uint32] | None = None
    """Bottom-128 sketch of its 4-grams [N, 128], padded with 2^32 - 1; ``None`` where no rule ``reads`` it."""

    def __post_init__(self) -> None:
        # Rules look at one table: what one of them wrote into it, the next would take for the round.
        for field in dataclasses.fields(self):
            values = getattr(self, field.name)
            if isinstance(values, np.ndarray):
                object.__setattr__(self, field.name, _read_only(values))
        modes = {kind: _read_only(keys) for kind, keys in self.modes_N.items()}
        object.__setattr__(self, "modes_N", MappingProxyType(modes))

    def __len__(self) -> int:
        return len(self.prompt_N)

    @classmethod
    def of(cls, row_N: NDArray[np.void], *, round: int, step: int, group_size: int) -> RoundTable:
        """The table of rows of dtype ``row_type``."""
        column = {name: np.ascontiguousarray(row_N[name]) for name in row_N.dtype.names or ()}
        return cls(
            round=round,
            step=step,
            group_size=group_size,
            modes_N={kind: column[kind] for kind in MODE_KINDS},
            **{f"{name}_N": column[name] for name in ("prompt", "source", "answer", "truncated", "parsed", *NUMBERS)},
            **{f"{name}_NK": column[name] for name in _WIDE if name in column},
        )


def _read_only(values: NDArray[Any]) -> NDArray[Any]:
    seen: NDArray[Any] = values.view()
    seen.setflags(write=False)
    return seen


def exchanged(row_n: NDArray[np.void]) -> NDArray[np.int64]:
    """Rows as the int64 matrix [n, fields] that a collective takes; ``as_rows`` is the way back."""
    return np.ascontiguousarray(row_n).view(np.int64).reshape(len(row_n), row_n.dtype.itemsize // 8)


def as_rows(matrix_NK: NDArray[np.int64], dtype: np.dtype[Any] = ROW) -> NDArray[np.void]:
    """What ``exchanged`` gave, of any number of ranks."""
    row_N: NDArray[Any] = np.ascontiguousarray(matrix_NK, dtype=np.int64).view(dtype).reshape(-1)
    return row_N


def row_key(text: str) -> int:
    """63-bit hash of a text: the same on every rank, in every process, on every resume."""
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little") & (1 << 63) - 1
