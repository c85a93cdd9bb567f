"""Diversity of the words of a round at a fixed budget, so that length and number of completions do not move it."""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rlmon.statistics import effective_number_of_each

WORDS_PER_ROW = 64
"""At most this many consecutive words are taken from one completion."""
LEAST_WORDS = 256
_CHARS_PER_WORD = 12
_ROW_CHARS = 20_000


@dataclass(frozen=True)
class WordStats:
    """Counts of one round on one rank at a budget of ``words``."""

    words: int
    """Words used: the largest power of two within budget and supply; 0 when there are under ``LEAST_WORDS``."""
    distinct: NDArray[np.float64]
    """Distinct 1-, 2- and 3-grams [3]."""
    total: NDArray[np.float64]
    """All 1-, 2- and 3-grams [3]; none crosses a row."""
    raw_bytes: int
    compressed_bytes: int
    """zlib, level 1."""


def row_words(text: str, key: int, words_per_row: int = WORDS_PER_ROW) -> list[str]:
    """At most ``words_per_row`` consecutive words of a text, from a place chosen by ``key``.

    Where white space is rare (Chinese, Japanese, one endless word) single characters stand for words.
    """
    text = text[:_ROW_CHARS]
    reach = _CHARS_PER_WORD * words_per_row
    begin = key % (len(text) - reach + 1) if len(text) > reach else 0
    piece = text[begin : begin + reach]
    words = piece.split()
    if len(piece) > 24 * max(len(words), 1):
        return [mark for mark in piece if not mark.isspace()][:words_per_row]
    if begin and len(words) > words_per_row:
        return words[1 : words_per_row + 1]
    return words[:words_per_row]


def word_stats(texts: Sequence[str], keys: Sequence[int], budget: int) -> WordStats:
    """Distinct n-grams and compression over at most ``budget`` words.

    Rows enter in the order of ``keys`` (a hash of the row), so that row order does not matter; words are used up to
    the largest power of two that budget and supply allow, so that values are comparable between rounds of the same
    tier. Texts are only split and counted.
    """
    order = sorted(range(len(texts)), key=lambda i: (keys[i], texts[i][:64]))
    taken: list[list[str]] = []
    supply = 0
    for i in order:
        if supply >= budget:
            break
        words = row_words(texts[i], keys[i])
        if words:
            taken.append(words)
            supply += len(words)
    used = 1 << (min(supply, budget).bit_length() - 1) if min(supply, budget) > 0 else 0
    if used < LEAST_WORDS:
        return WordStats(0, np.zeros(3), np.zeros(3), 0, 0)
    kept = list(itertools.chain.from_iterable(taken))[:used]
    codes = {known: at for at, known in enumerate(dict.fromkeys(kept))}
    word = np.fromiter(map(codes.__getitem__, kept), dtype=np.int64, count=used)
    owner = np.repeat(np.arange(len(taken)), [len(words) for words in taken])[:used]
    distinct = np.zeros(3)
    total = np.zeros(3)
    gram = word
    # Codes are below 2^15 x 2 at most, so three of them fit one integer exactly.
    for n in range(1, 4):
        if n > 1:
            gram = gram[:-1] * len(codes) + word[n - 1 :]
        inside = np.sort(gram[owner[: gram.size] == owner[n - 1 :]])
        distinct[n - 1] = np.count_nonzero(inside[1:] != inside[:-1]) + (inside.size > 0)
        total[n - 1] = inside.size
    raw = " ".join(kept).encode("utf-8", "surrogatepass")
    return WordStats(used, distinct, total, len(raw), len(zlib.compress(raw, 1)))


def word_ids(texts: Sequence[str], chars: int = _ROW_CHARS) -> list[NDArray[np.int32]]:
    """Words as integers, numbered by first appearance, for rows without token ids. Equal words have equal numbers
    within one call only."""
    rows = [text[:chars].split() for text in texts]
    codes = {known: at for at, known in enumerate(dict.fromkeys(itertools.chain.from_iterable(rows)))}
    return [np.fromiter(map(codes.__getitem__, row), dtype=np.int32, count=len(row)) for row in rows]


def effective_numbers(
    value_B: NDArray[np.int64], prompt_B: NDArray[np.int64], keep_B: NDArray[np.bool_] | None = None
) -> tuple[float, int]:
    """Sum over prompts of ``effective_number_of_each`` of their kept rows, and the number of prompts with 2 or more."""
    if keep_B is not None:
        value_B, prompt_B = value_B[keep_B], prompt_B[keep_B]
    each = effective_number_of_each(value_B, prompt_B, int(prompt_B.max(initial=-1)) + 1)
    several = ~np.isnan(each)
    return float(each[several].sum()), int(several.sum())
