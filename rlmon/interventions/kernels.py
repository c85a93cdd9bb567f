"""How alike two completions are, in [0, 1], from what all ranks know of their rows: the kernels of the detectors'
collision (``rlmon.metrics.families.collision``), pair by pair."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from rlmon.interventions.rows import RoundTable, Wide, wide_fields

Kernel = Literal["format", "template", "opening", "moves", "sketch"]
READS: Mapping[Kernel, Wide] = {"moves": "openers", "sketch": "sketch"}
"""The wide column that a kernel reads."""
_KEYS = ("prompt", "source", "format", "template", "opening", "answer")
_NUMBERS = ("tokens", "numbers")
_PAD = np.uint32(0xFFFFFFFF)
_CHUNK = 4_096
"""Hashes whose incidence is multiplied out at once."""

Facts = NDArray[Any]
"""[n] of ``facts_type``: what of each row a kernel may read."""
Floats = NDArray[np.float64]


def facts_type(reads: Collection[Wide]) -> np.dtype[Any]:
    """Keys (int64, -1 where unknown), ``tokens``, ``numbers``, and the wide columns that are read."""
    keys = [*((name, np.int64) for name in _KEYS), *((name, np.float64) for name in _NUMBERS)]
    return np.dtype([*keys, *wide_fields(reads)])


def facts_of(table: RoundTable, row_n: NDArray[np.int64], reads: Collection[Wide]) -> Facts:
    """The facts of some rows of a round."""
    found = np.zeros(len(row_n), dtype=facts_type(reads))
    for name in found.dtype.names or ():
        column: Any = table.modes_N.get(name)
        if column is None:
            column = getattr(table, f"{name}_NK" if name in reads else f"{name}_N", None)
        found[name] = -1 if column is None else column[row_n]
    return found


def alike(kernel: Kernel, one: Facts, other: Facts) -> Floats:
    """k of each pair [n, m]. A completion without openers, or too short for a 4-gram, is compared by its template."""
    if kernel == "moves":
        return _else_by_template(_overlap(one, other), one, other, ~one["openers"].any(1), ~other["openers"].any(1))
    if kernel == "sketch":
        empty_n, empty_m = one["sketch"][:, 0] == _PAD, other["sketch"][:, 0] == _PAD
        return _else_by_template(_jaccard(one["sketch"], other["sketch"]), one, other, empty_n, empty_m)
    return _same(kernel, one, other)


def _same(key: str, one: Facts, other: Facts) -> Floats:
    return np.asarray((one[key][:, None] == other[key][None, :]) & (one[key] != -1)[:, None], dtype=np.float64)


def _else_by_template(k_nm: Floats, one: Facts, other: Facts, empty_n: Any, empty_m: Any) -> Floats:
    return np.where(empty_n[:, None] | empty_m[None, :], _same("template", one, other), k_nm)


def _overlap(one: Facts, other: Facts) -> Floats:
    """sum_b min(h(b), h'(b)) of each pair, bucket by bucket: only those that both sides have."""
    k_nm = np.zeros((len(one), len(other)))
    (row_n, bucket_n, share_n), (row_m, bucket_m, share_m) = _entries(one), _entries(other)
    for bucket in np.intersect1d(bucket_n, bucket_m):
        of_n = slice(*np.searchsorted(bucket_n, (bucket, bucket + 1)))
        of_m = slice(*np.searchsorted(bucket_m, (bucket, bucket + 1)))
        k_nm[np.ix_(row_n[of_n], row_m[of_m])] += np.minimum.outer(share_n[of_n], share_m[of_m])
    return np.minimum(k_nm, 1.0)


def _entries(facts: Facts) -> tuple[NDArray[np.int64], NDArray[np.int64], Floats]:
    """Row, bucket and share of each opener, by bucket."""
    packed = facts["openers"]
    row, place = np.nonzero(packed)
    entry = packed[row, place]
    bucket, share = entry >> 32, (entry & (1 << 32) - 1) / float(1 << 31)
    order = np.argsort(bucket, kind="stable")
    return row[order], bucket[order], share[order]


def _jaccard(sketch_n: NDArray[np.uint32], sketch_m: NDArray[np.uint32]) -> Floats:
    """Estimated Jaccard similarity of each pair's sets of 4-grams; 0 where either has none.

    As ``rlmon.metrics.moves.jaccard`` counts it, by the hashes up to the smaller of the two sketches' reach, for all
    pairs at once: a hash that both have is within both reaches.
    """
    shared = np.intersect1d(sketch_n, sketch_m)
    shared = shared[shared != _PAD]
    both_nm = np.zeros((len(sketch_n), len(sketch_m)))
    for start in range(0, len(shared), _CHUNK):
        hashes = shared[start : start + _CHUNK]
        # Of single precision, in which whole numbers this small are exact: the same on every machine.
        both_nm += _incidence(sketch_n, hashes) @ _incidence(sketch_m, hashes).T
    union_nm = _within_reach(sketch_n, sketch_m) + _within_reach(sketch_m, sketch_n).T - both_nm
    return np.asarray(both_nm / np.maximum(union_nm, 1.0), dtype=np.float64)


def _incidence(sketch_n: NDArray[np.uint32], hashes: NDArray[np.uint32]) -> NDArray[np.float32]:
    place = np.minimum(np.searchsorted(hashes, sketch_n), len(hashes) - 1)
    row, column = np.nonzero(hashes[place] == sketch_n)
    found = np.zeros((len(sketch_n), len(hashes)), dtype=np.float32)
    found[row, place[row, column]] = 1.0
    return found


def _within_reach(sketch_n: NDArray[np.uint32], sketch_m: NDArray[np.uint32]) -> NDArray[np.int64]:
    """How many hashes of each row [n] are no larger than the last of each of the others [m]."""
    reach_m = np.minimum(sketch_m[:, -1], _PAD - 1)
    found = np.zeros((len(sketch_n), len(sketch_m)), dtype=np.int64)
    for row, sketch in enumerate(sketch_n):
        found[row] = np.searchsorted(sketch, reach_m, side="right")
    return found
