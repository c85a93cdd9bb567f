"""Which ways to open an answer died out and which took over, in the words of the run, where its texts were stored.

Found in the sample of texts, and told beside checks that saw the outputs narrow: a check says that something was lost,
this says what.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from rlmon.audit.clauses import GONE
from rlmon.audit.contrast import Windows
from rlmon.audit.result import OpeningStory
from rlmon.metrics.formats import NUMBER, OPENING_TOKEN, OPENING_TOKENS

LEAST_TOKENS = 2
"""One word opens too many different answers (``The``); an answer of one word is whole, and its end counts."""
OPENING_CHARACTERS = 60
MOST = 3
"""Told of those that died out, and of those that took over."""
LOST_BASE_SHARE, LOST = 0.05, 0.1
"""Less of the base is chance; below this part of its share it is nearly gone."""
TOOK_OVER = 0.2
"""By how much the share of one that took over grew."""
LEAST_EXPECTED = 5.0
"""Completions that there would be at the other end if nothing had changed: of fewer, none may be there by chance."""
LEAST_PROMPTS = 3
"""One prompt may be asked so that it is answered in a way of its own."""
SAME = 0.8
"""A longer opening that as many of the answers share says more."""
_BEGINNING = 400
_NAME = re.compile(r"\b[^\W\d_a-z]\w*")
Row = tuple[str | None, int]
"""A text and a number of its prompt."""
_END = ""
"""Stands after the last token of an answer that is no longer than an opening."""


class _Opened(NamedTuple):
    """How one answer opens."""

    key: tuple[str, ...]
    """Its first tokens with numbers as ``#`` and capitalised words as ``N``: names open sentences."""
    shown: tuple[str, ...]
    """The text up to each of them, with numbers as ``#``."""
    prompt: int


def stories(
    samples: pa.Table | None, base: pa.Table | None, windows: Windows | None, sources: frozenset[str] | None = None
) -> Sequence[OpeningStory]:
    """At most three openings that died out, the most common first, and three that took over.

    ``samples``, ``base``, ``sources``: as in ``rlmon.audit.wording``.
    """
    if samples is None or windows is None:
        return ()
    first = _rows(samples, windows.base, sources) if base is None else _rows(base, None, sources)
    return between(first, _rows(samples, windows.last, sources))[0]


def between(first: Sequence[Row], last: Sequence[Row]) -> tuple[Sequence[OpeningStory], int, int]:
    """The stories of two samples, and of how many texts of each the shares are."""
    before, after = _Ends(_opened(first)), _Ends(_opened(last))
    told = (*_lost(before, after), *_grown(before, after)) if before.rows and after.rows else ()
    return told, before.rows, after.rows


class _Ends:
    """The openings at one end of the run."""

    def __init__(self, opened: Sequence[_Opened]) -> None:
        self.rows = len(opened)
        self._opened = opened
        prefixes = [(one.key[:length], one.prompt) for one in opened for length in _lengths(one.key)]
        self.count = Counter(key for key, _ in prefixes)
        self._prompts = Counter(key for key, _ in set(prefixes))

    def share(self, key: tuple[str, ...]) -> float:
        return self.count[key] / self.rows

    def common(self, least: float) -> Iterator[tuple[str, ...]]:
        """Those with at least this share, of several prompts; the most common first, of two as common the shorter."""
        for key, count in sorted(self.count.items(), key=lambda item: (-item[1], len(item[0]), item[0])):
            if count >= least * self.rows and self._prompts[key] >= LEAST_PROMPTS:
                yield key

    def longest(self, key: tuple[str, ...]) -> tuple[str, ...]:
        """The longest opening that most of the answers which open like that share."""
        while len(key) < OPENING_TOKENS:
            longer = Counter(one.key[: len(key) + 1] for one in self._opened if one.key[: len(key)] == key)
            best, count = longer.most_common(1)[0]
            if len(best) == len(key) or count < SAME * self.count[key]:
                break
            key = best
        return key

    def words(self, key: tuple[str, ...]) -> str:
        """The opening as it is written: where names differ, with ``N`` in their place."""
        tokens = len(key) - (key[-1] == _END)
        written = Counter(one.shown[tokens - 1] for one in self._opened if one.key[: len(key)] == key)
        best, count = written.most_common(1)[0]
        if count < SAME * written.total():
            masked = Counter(_named(one.shown[tokens - 1]) for one in self._opened if one.key[: len(key)] == key)
            best = masked.most_common(1)[0][0]
        return best if len(best) <= OPENING_CHARACTERS else best[: OPENING_CHARACTERS - 1] + "…"


def _lost(before: _Ends, after: _Ends) -> Iterator[OpeningStory]:
    least = max(LOST_BASE_SHARE, LEAST_EXPECTED / after.rows)
    found = (key for key in before.common(least) if after.share(key) < LOST * before.share(key))
    for key in itertools.islice(_apart(found), MOST):
        longest = before.longest(key)
        last = after.share(longest)
        yield OpeningStory(
            opening=before.words(longest), fate="gone" if last < GONE else "nearly gone",
            base_share=before.share(longest), last_share=last,
        )  # fmt: skip


def _grown(before: _Ends, after: _Ends) -> Iterator[OpeningStory]:
    least = max(TOOK_OVER, LEAST_EXPECTED / before.rows)
    found = (key for key in after.common(least) if after.share(key) - before.share(key) >= least)
    for key in itertools.islice(_apart(found), MOST):
        longest = after.longest(key)
        yield OpeningStory(
            opening=after.words(longest), fate="took over",
            base_share=before.share(longest), last_share=after.share(longest),
        )  # fmt: skip


def _apart(keys: Iterator[tuple[str, ...]]) -> Iterator[tuple[str, ...]]:
    """Without those that go on from one before."""
    taken: set[tuple[str, ...]] = set()
    for key in keys:
        if not any(key[:length] in taken for length in _lengths(key)):
            taken.add(key)
            yield key


def _lengths(key: tuple[str, ...]) -> range:
    return range(LEAST_TOKENS, len(key) + 1)


def _rows(table: pa.Table, steps: np.ndarray | None, sources: frozenset[str] | None) -> list[Row]:
    kept = np.ones(table.num_rows, dtype=bool) if steps is None else np.isin(table["step"].to_numpy(), steps)
    if sources is not None:
        kept &= np.array([source in sources for source in table["source"].to_pylist()], dtype=bool)
    chosen = table.filter(pa.array(kept))
    return list(zip(chosen["completion"].to_pylist(), chosen["prompt_key"].to_pylist(), strict=True))


def _opened(rows: Sequence[Row]) -> list[_Opened]:
    return [opened for text, prompt in rows if text and (opened := _opening(text, prompt)) is not None]


def _opening(text: str, prompt: int) -> _Opened | None:
    plain = NUMBER.sub("#", " ".join(text[:_BEGINNING].split()))
    found = list(itertools.islice(OPENING_TOKEN.finditer(plain), OPENING_TOKENS + 1))
    if not found:
        return None
    key = [_named(token.group()) for token in found[:OPENING_TOKENS]]
    if len(found) < OPENING_TOKENS:
        key.append(_END)
    return _Opened(tuple(key), tuple(plain[: token.end()] for token in found[:OPENING_TOKENS]), prompt)


def _named(text: str) -> str:
    return _NAME.sub(lambda found: "N" if found[0][0].isupper() else found[0], text)
