"""Moves: how completions open their sentences, from token ids alone, in any script.

A *break* is a token with a newline or a sentence end. The *openers* of a completion are the two tokens after each
break (and the first two of all), hashed to 4,096 buckets and normalised: h_y. k_moves(y, y') = sum_b min(h_y(b),
h_y'(b)). Tokens with digits and tokens copied from the prompt are masked, so that the same move on another problem is
the same opener. Beside it stand bottom-128 sketches (Broder 1997) of hashed 4-grams, for Jaccard similarity and
repetition.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

OPENER_BUCKETS = 4_096
DECILES = 10
SKETCH_SIZE = 128
NGRAM = 4
STORED_OPENERS = 64
NOT_SEEN = "(not seen here)"
"""In the place of an opener's words, on a rank that never saw it."""
_ASCII_DIGIT = re.compile("[0-9]")
_SORT_MOST = 1_024
_PAD = np.uint32(0xFFFFFFFF)
_SENTENCE_ENDS = ".!?\u3002\uff01\uff1f\uff61\u061f\u0964\u0965\u2026"
_CLOSERS = "\"'\u201d\u2019)]}\u00bb\u300d\u300f*_"
_TABLE_CELLS = 1 << 25


def _mixed(values: NDArray[np.uint32]) -> NDArray[np.uint32]:
    # The finalizer of MurmurHash3: every bit of the input moves every bit of the output.
    with np.errstate(over="ignore"):
        x = values + np.uint32(0x9E3779B9)
        x ^= x >> np.uint32(16)
        x *= np.uint32(0x85EBCA6B)
        x ^= x >> np.uint32(13)
        x *= np.uint32(0xC2B2AE35)
        x ^= x >> np.uint32(16)
    return np.asarray(x, dtype=np.uint32)


class Vocabulary:
    """What each token id means to the moves: decoded once, 9 bytes a token beside the strings."""

    def __init__(self, strings: Sequence[str]) -> None:
        """``strings[i]`` is the decoded text of token i."""
        size = len(strings)
        self.strings: Sequence[str] = strings
        self.size = size
        # One entry more, for ids that the vocabulary does not have.
        self.is_break: NDArray[np.bool_] = np.zeros(size + 1, dtype=bool)
        self.canonical: NDArray[np.int32] = np.arange(size + 1, dtype=np.int32)
        for token, text in enumerate(strings):
            bare = text.strip().rstrip(_CLOSERS)
            if "\n" in text or (bare and bare[-1] in _SENTENCE_ENDS):
                self.is_break[token] = True
            if bare and (_ASCII_DIGIT.search(bare) if bare.isascii() else any(mark.isdigit() for mark in bare)):
                self.canonical[token] = size
        self.token_hash: NDArray[np.uint32] = _mixed(self.canonical.view(np.uint32))

    def known(self, ids_N: NDArray[np.int32]) -> NDArray[np.int32]:
        """The ids, those outside the vocabulary replaced by the one entry for all of them."""
        if ids_N.size and (int(ids_N.max()) >= self.size or int(ids_N.min()) < 0):
            return np.where((ids_N < 0) | (ids_N >= self.size), self.size, ids_N).astype(np.int32)
        return ids_N

    def word(self, token: int) -> str:
        """The text of a token for a person; ``…`` for a masked or unknown one."""
        return self.strings[token] if 0 <= token < self.size else "…"


def concatenate_ids(rows: Sequence[Any]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """All rows' token ids one behind another, [N], and where each row starts and ends, [B + 1].

    Rows may be sequences of int or integer arrays (arrays are about 20 times cheaper). Ids outside int32 become -1.
    """
    arrays = [_as_array(row) for row in rows]
    ends = np.cumsum([0, *(array.size for array in arrays)], dtype=np.int64)
    if not arrays:
        return np.zeros(0, dtype=np.int32), ends
    return np.concatenate(arrays), ends


def _as_array(row: Any) -> NDArray[np.int32]:
    if isinstance(row, np.ndarray):
        if row.dtype == np.int32:
            return row.reshape(-1)
        wide = row.reshape(-1)
    else:
        try:
            return np.fromiter(row, dtype=np.int32, count=len(row))
        except (TypeError, ValueError, OverflowError):
            wide = np.array([int(token) for token in row], dtype=object)
            wide = np.where((wide < 0) | (wide > 2**31 - 1), -1, wide)
            return wide.astype(np.int32)
    return np.where((wide < 0) | (wide > 2**31 - 1), -1, wide).astype(np.int32)


@dataclass(frozen=True)
class Openers:
    """Opener histograms of B rows as sparse entries, sorted by row, heaviest first."""

    row_N: NDArray[np.int64]
    bucket_N: NDArray[np.int64]
    weight_N: NDArray[np.float64]
    """Share of the row's openers in the bucket; sums to 1 over a row."""
    start_B: NDArray[np.int64]
    """[B + 1]: entries of row i are ``start_B[i]:start_B[i + 1]``."""
    in_all_B: NDArray[np.int64]
    """Openers of each row."""
    decile_cell_M: NDArray[np.int64]
    """row * 10 + decile of position, for the entries of the histograms by decile."""
    decile_bucket_M: NDArray[np.int64]
    decile_weight_M: NDArray[np.float64]
    """Share of the openers of that row and decile."""
    counts: NDArray[np.float64]
    """Openers per bucket over all rows [4096]."""
    example_first: NDArray[np.int32]
    """A first token seen in each bucket [4096], -1 where none was."""
    example_second: NDArray[np.int32]


def openers(
    ids_N: NDArray[np.int32],
    start_B: NDArray[np.int64],
    vocabulary: Vocabulary,
    prompt_rows: Sequence[Any] | None = None,
    prompt_code_B: NDArray[np.int64] | None = None,
) -> Openers:
    """Openers of every row of the concatenated ids.

    ``prompt_rows[c]`` are the token ids of the prompt with code c, ``prompt_code_B`` the code of each row; ids of a
    row's own prompt are masked. Without them only digits are masked.
    """
    rows = start_B.size - 1
    lengths = np.diff(start_B)
    size = vocabulary.size
    known = vocabulary.known(ids_N)
    breaks = vocabulary.is_break[known]
    # The position behind a break opens a move unless it is a break itself: "." then "\n\n" is one break.
    opens = np.zeros(breaks.size, dtype=bool)
    np.greater(breaks[:-1], breaks[1:], out=opens[1:])
    opens[start_B[:-1][lengths > 0]] = True
    first = np.flatnonzero(opens)
    row = np.repeat(np.arange(rows), np.diff(np.searchsorted(first, start_B)))
    second_position = first + 1
    has_second = second_position < start_B[row + 1]
    first_token = vocabulary.canonical[known[first]] if first.size else np.zeros(0, dtype=np.int32)
    second_token = np.full(first.size, -1, dtype=np.int32)
    second_token[has_second] = vocabulary.canonical[known[second_position[has_second]]]
    if prompt_rows is not None and prompt_code_B is not None and first.size:
        masked = _copied(prompt_rows, prompt_code_B[row], np.stack([first_token, second_token]), size)
        first_token = np.where(masked[0], np.int32(size), first_token)
        second_token = np.where(masked[1] & has_second, np.int32(size), second_token)
    bucket = _bucket(first_token, second_token)

    counts = np.bincount(bucket, minlength=OPENER_BUCKETS).astype(np.float64)
    example_first = np.full(OPENER_BUCKETS, -1, dtype=np.int32)
    example_second = np.full(OPENER_BUCKETS, -1, dtype=np.int32)
    example_first[bucket] = first_token
    example_second[bucket] = second_token

    entry_row, entry_bucket, entry_weight, entry_start = _histograms(row, bucket, rows)
    position = first - start_B[row]
    decile = np.minimum(position * DECILES // np.maximum(lengths[row], 1), DECILES - 1)
    cell, cell_bucket, cell_weight, _ = _histograms(
        row * DECILES + decile, bucket, rows * DECILES, heaviest_first=False
    )
    return Openers(
        row_N=entry_row,
        bucket_N=entry_bucket,
        weight_N=entry_weight,
        start_B=entry_start,
        in_all_B=np.bincount(row, minlength=rows),
        decile_cell_M=cell,
        decile_bucket_M=cell_bucket,
        decile_weight_M=cell_weight,
        counts=counts,
        example_first=example_first,
        example_second=example_second,
    )


def _copied(
    prompt_rows: Sequence[Any], code_N: NDArray[np.int64], tokens_KN: NDArray[np.int32], size: int
) -> NDArray[np.bool_]:
    prompts = len(prompt_rows)
    copied, starts = concatenate_ids(prompt_rows)
    owner = np.repeat(np.arange(prompts), np.diff(starts))
    inside = (copied >= 0) & (copied < size)
    copied, owner = copied[inside].astype(np.int64), owner[inside]
    width = size + 2
    if prompts * width <= _TABLE_CELLS:
        table = np.zeros(prompts * width, dtype=bool)
        table[owner * width + copied + 1] = True
        return np.asarray(table[code_N * width + tokens_KN + 1])
    keys = np.unique(owner * width + copied + 1)
    wanted = code_N * width + tokens_KN.astype(np.int64) + 1
    if keys.size == 0:
        return np.zeros(wanted.shape, dtype=bool)
    at = np.minimum(np.searchsorted(keys, wanted), keys.size - 1)
    return np.asarray(keys[at] == wanted)


def _bucket(first: NDArray[np.int32], second: NDArray[np.int32]) -> NDArray[np.int64]:
    with np.errstate(over="ignore"):
        x = first.astype(np.uint32) * np.uint32(0x9E3779B1) ^ second.astype(np.uint32) * np.uint32(0x85EBCA77)
        x ^= x >> np.uint32(15)
        x *= np.uint32(0x2C1B3C6D)
        x ^= x >> np.uint32(13)
    return np.asarray(x >> np.uint32(20), dtype=np.int64)


def _histograms(
    owner: NDArray[np.int64], bucket: NDArray[np.int64], owners: int, *, heaviest_first: bool = True
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64], NDArray[np.int64]]:
    key = owner * OPENER_BUCKETS + bucket
    key.sort()
    if key.size:
        begin = np.flatnonzero(np.concatenate([[True], key[1:] != key[:-1]]))
        count = np.diff(np.concatenate([begin, [key.size]]))
        key = key[begin]
    else:
        count = key
    entry_owner, entry_bucket = key >> 12, key & (OPENER_BUCKETS - 1)
    if heaviest_first:
        # Ties by bucket, as one integer sort.
        packed = (entry_owner << 36) | (((1 << 24) - 1 - np.minimum(count, (1 << 24) - 1)) << 12) | entry_bucket
        packed.sort()
        entry_owner, entry_bucket = packed >> 36, packed & (OPENER_BUCKETS - 1)
        count = (1 << 24) - 1 - ((packed >> 12) & ((1 << 24) - 1))
    total = np.bincount(owner, minlength=owners)
    weight = count / np.maximum(total[entry_owner], 1)
    start = np.concatenate([[0], np.cumsum(np.bincount(entry_owner, minlength=owners))])
    return entry_owner, entry_bucket, weight, start


# --- sketches -------------------------------------------------------------------------------------------------


def sketches(
    ids_N: NDArray[np.int32], start_B: NDArray[np.int64], vocabulary: Vocabulary | None
) -> tuple[NDArray[np.uint32], NDArray[np.float64], NDArray[np.float64]]:
    """Bottom-128 sketches of each row's hashed 4-grams, and how many 4-grams are distinct.

    Returns ``(sketch [B, 128] sorted and padded with 2^32 - 1, distinct_B, grams_B)``. With a ``vocabulary``
    tokens with digits are masked. Rows shorter than 4 tokens have no gram. Distinct counts are of 32-bit
    hashes; beyond 1,024 grams they are estimated from about 1,024 grams chosen by hash (about 3 % error).
    """
    rows = start_B.size - 1
    sketch = np.full((rows, SKETCH_SIZE), _PAD, dtype=np.uint32)
    distinct = np.zeros(rows)
    grams = np.maximum(np.diff(start_B) - NGRAM + 1, 0).astype(np.float64)
    if ids_N.size < NGRAM:
        return sketch, distinct, grams
    words = _mixed(ids_N.view(np.uint32)) if vocabulary is None else vocabulary.token_hash[vocabulary.known(ids_N)]
    scratch = np.empty(int(np.diff(start_B).max()), dtype=np.uint32)
    with np.errstate(over="ignore"):
        for i in range(rows):
            begin, end = int(start_B[i]), int(start_B[i + 1])
            count = end - begin - NGRAM + 1
            if count <= 0:
                continue
            w = words[begin:end]
            h = scratch[:count]
            # Token hashes are uniform already, so this polynomial of them is too.
            np.multiply(w[:count], np.uint32(0x85EBCA77), out=h)
            h += w[1 : count + 1]
            h *= np.uint32(0xC2B2AE3D)
            h += w[2 : count + 2]
            h *= np.uint32(0x27D4EB2F)
            h += w[3 : count + 3]
            if count > _SORT_MOST:
                # Grams with small hashes are a fair sample of the distinct ones, and all that the sketch needs.
                sample = h[h < np.uint32((_SORT_MOST << 32) // count)]
                sample.sort()
                new = np.flatnonzero(sample[1:] != sample[:-1])
                if new.size >= SKETCH_SIZE:
                    distinct[i] = count * (new.size + 1) / sample.size
                    sketch[i, 0] = sample[0]
                    sketch[i, 1:] = sample[new[: SKETCH_SIZE - 1] + 1]
                    continue
            h.sort()
            new = np.flatnonzero(h[1:] != h[:-1])
            distinct[i] = new.size + 1
            sketch[i, 0] = h[0]
            kept = min(SKETCH_SIZE - 1, new.size)
            sketch[i, 1 : kept + 1] = h[new[:kept] + 1]
    return sketch, distinct, grams


def jaccard(sketch: NDArray[np.uint32], i_N: NDArray[np.int64], j_N: NDArray[np.int64]) -> NDArray[np.float64]:
    """Estimated Jaccard similarity of each pair's 4-gram sets, [N] in [0, 1], NaN where either row has no gram.

    Counts the hashes up to the smaller of the two sketches' reach: exact for rows with at most 128 distinct grams,
    otherwise with a standard error of at most about 0.5/sqrt(128) = .044.
    """
    if i_N.size == 0:
        return np.zeros(0)
    a, b = sketch[i_N], sketch[j_N]
    reach = np.minimum(a[:, -1], b[:, -1])
    merged = np.concatenate([a, b], axis=1)
    merged.sort(axis=1)
    counted = (merged <= reach[:, None]) & (merged != _PAD)
    both = ((merged[:, 1:] == merged[:, :-1]) & counted[:, 1:]).sum(axis=1)
    union = counted.sum(axis=1) - both
    with np.errstate(invalid="ignore", divide="ignore"):
        similarity = np.asarray(both / union, dtype=np.float64)
    similarity[(a[:, 0] == _PAD) | (b[:, 0] == _PAD)] = np.nan
    return similarity


@dataclass(frozen=True)
class OpenerChange:
    """How often completions open a move in one way, now and at the base."""

    opener: str
    """The two tokens in words."""
    base_per_1000_tokens: float
    now_per_1000_tokens: float


def changed_openers(
    now: NDArray[np.float64],
    now_tokens: float,
    base: NDArray[np.float64],
    base_tokens: float,
    words: Sequence[str | None],
    top: int = 5,
) -> tuple[OpenerChange, ...]:
    """The openers whose rate per 1,000 tokens changed most, largest change first; empty without tokens on both sides.

    ``now`` and ``base`` are counts per bucket, ``words`` the text of an opener seen in each.
    """
    if now_tokens <= 0 or base_tokens <= 0:
        return ()
    now_rate = 1000.0 * now / now_tokens
    base_rate = 1000.0 * base / base_tokens
    order = np.argsort(-np.abs(now_rate - base_rate), kind="stable")[:top]
    return tuple(
        OpenerChange(
            opener=words[b] or NOT_SEEN,
            base_per_1000_tokens=float(base_rate[b]),
            now_per_1000_tokens=float(now_rate[b]),
        )
        for b in order
        if now_rate[b] != base_rate[b]
    )
