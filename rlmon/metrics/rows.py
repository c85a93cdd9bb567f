"""The rows of a step as one table of numbers: all that pairs, groups and blocks need to know of a completion.

Every field is a float64, so that the tables of the ranks can be added: each row is entered by one rank, zeros by all
others. Keys are 48-bit integers, which a float64 holds exactly.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rlmon.keys import KEY_MASK, content_key
from rlmon.metrics.features import RowFeatures
from rlmon.metrics.groups import column
from rlmon.metrics.moves import STORED_OPENERS, Openers
from rlmon.records import RolloutBatch

_BUCKET_BITS = 12
_COUNT_BITS = 14
_ENTRY_BITS = _BUCKET_BITS + _COUNT_BITS
_PER_FLOAT = 2
"""Openers packed in one float64: 2 x 26 bits."""

ROW = np.dtype(
    [
        ("present", "f8"),
        ("fresh", "f8"),
        ("round", "f8"),
        ("global_row", "f8"),
        ("group_size", "f8"),
        ("prompt", "f8"),
        ("source", "f8"),
        ("scorer", "f8"),
        ("mode", "f8"),
        ("template", "f8"),
        ("answer", "f8"),
        ("opening", "f8"),
        ("tokens", "f8"),
        ("reward", "f8"),
        ("advantage", "f8"),
        ("trained", "f8"),
        ("success", "f8"),
        ("repetition", "f8"),
        ("openers_in_all", "f8"),
        ("openers", "f8", (STORED_OPENERS // _PER_FLOAT,)),
        ("trained_tokens", "f8"),
        ("entropy_nats", "f8"),
        ("kl_nats", "f8"),
        ("kl_tokens", "f8"),
        ("kl_completion_tokens", "f8"),
    ]
)
"""One completion. ``present`` is 1; ``scorer`` is ``metrics.success.scorer`` of its batch; ``fresh``: 1 where it was
sampled for this step; of one sampled before, the fields up to ``openers`` are what was known of it then. Keys and the
mode are -1 and numbers NaN where they are not known. The last five are sums over its tokens in this step: those of its
first pass, and of a comparison with the base that it is part of (weighted; 0 where the row was not drawn for it) with
its completion tokens."""
OF_ONE_STEP = ("fresh", "trained_tokens", "entropy_nats", "kl_nats", "kl_tokens", "kl_completion_tokens")
"""Fields that each step begins anew."""

Rows = NDArray[Any]
"""[N] of ``ROW``."""


def rows_of(
    batch: RolloutBatch,
    features: RowFeatures | None = None,
    success_B: NDArray[np.float64] | None = None,
    dtype: np.dtype[Any] = ROW,
) -> Rows:
    """The rows of a batch in its order, fresh where their features are known; ``dtype`` is ``ROW`` or ends in more."""
    count = len(batch)
    rows = np.zeros(count, dtype=dtype)
    rows["present"] = 1.0
    rows["round"] = batch.round
    rows["global_row"] = batch.global_row
    rows["group_size"] = max(1, batch.group_size)
    rows["mode"] = -1.0
    keys: dict[str, int] = {}
    for name, values in (("prompt", batch.prompt_id), ("source", batch.source)):
        rows[name] = [keys[value] if value in keys else keys.setdefault(value, content_key(value)) for value in values]
    if features is None:
        return rows
    rows["fresh"] = 1.0
    rows["mode"] = features.mode_code
    for name, key_B in (
        ("template", features.template_key),
        ("answer", features.answer_code),
        ("opening", features.opening_key),
    ):
        rows[name] = np.where(key_B < 0, -1, key_B & KEY_MASK)
    rows["tokens"] = np.nan if features.tokens is None else features.tokens
    rows["reward"] = column(batch.reward, count)
    rows["advantage"] = column(batch.advantages, count)
    rows["trained"] = 1.0 if batch.trained is None else batch.trained
    rows["success"] = np.nan if success_B is None else success_B
    rows["repetition"] = features.repetition_B
    if features.moves is not None:
        rows["openers_in_all"] = features.moves.in_all_B
        rows["openers"] = _packed(features.moves, count)
    return rows


def _packed(table: Openers, count: int) -> NDArray[np.float64]:
    """The 64 heaviest openers of each row as bucket and count."""
    place_N = np.arange(table.row_N.size) - table.start_B[table.row_N]
    kept = place_N < STORED_OPENERS
    row_N, place_N = table.row_N[kept], place_N[kept]
    times_N = np.rint(table.weight_N[kept] * table.in_all_B[row_N]).astype(np.int64)
    entry = np.zeros((count, STORED_OPENERS), dtype=np.int64)
    entry[row_N, place_N] = table.bucket_N[kept] << _COUNT_BITS | np.minimum(times_N, (1 << _COUNT_BITS) - 1)
    return (entry[:, 0::2] | entry[:, 1::2] << _ENTRY_BITS).astype(np.float64)


class OpenerEntries(NamedTuple):
    """Opener histograms as sparse entries: row, bucket, and share of the row's openers."""

    row_N: NDArray[np.int64]
    bucket_N: NDArray[np.int64]
    weight_N: NDArray[np.float64]


def opener_entries(rows: Rows) -> OpenerEntries:
    """The 64 heaviest openers of every row."""
    packed = rows["openers"].astype(np.int64)
    entry = np.stack([packed & (1 << _ENTRY_BITS) - 1, packed >> _ENTRY_BITS], axis=2).reshape(len(rows), -1)
    times = entry & (1 << _COUNT_BITS) - 1
    row_N, place_N = np.nonzero(times)
    return OpenerEntries(
        row_N=row_N,
        bucket_N=entry[row_N, place_N] >> _COUNT_BITS,
        weight_N=times[row_N, place_N] / rows["openers_in_all"][row_N],
    )
