"""What the completions of an open baseline were, counted by prompt: its statistics are taken over all pairs."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

import rlmon.detectors.evidence as ev

MAX_TALLIES = 64
"""Parts of the baseline of one source and statistic that are kept apart until it closes; further ones are added to
those of their record, so that a part is then the completions of several prompts."""
TALLIED = frozenset({"mode_collision", "template_collision", "answer_collision"})
"""Statistics that are the mean of "the same code" over pairs of completions of different prompts."""

Part = tuple[int, Mapping[str, int]]
"""The record that a tally came with, and how many completions have which code."""
Tallies = Mapping[str, tuple[Part, ...] | None]
"""By statistic of one source, while that baseline is open: the tallies of its blocks, ``MAX_TALLIES`` at most; ``None``
where a block came without."""


def with_tallies(
    kept: tuple[Part, ...] | None, more: Sequence[Mapping[str, int]] | None, record: int
) -> tuple[Part, ...] | None:
    """With the tallies of a block. Beyond ``MAX_TALLIES`` they are dealt out to parts of their own record; where that
    has none, the baseline is wide enough without them."""
    if kept is None or not more:
        return None
    parts = [(number, Counter(part)) for number, part in kept]
    for tally in more:
        counts = Counter({code: int(count) for code, count in tally.items()})
        if len(parts) < MAX_TALLIES:
            parts.append((record, counts))
            continue
        own = [part for number, part in parts if number == record]
        if own:
            min(own, key=Counter.total).update(counts)
    return tuple((number, dict(part)) for number, part in parts)


def over_all_pairs(parts: Sequence[Part]) -> tuple[ev.Floats, ev.Floats, ev.Floats] | None:
    """What the tallies of a closing baseline say over all their pairs: mean [1], standard error [1], and how many parts
    there were [1]; ``None`` where they are too few."""
    parts = [(number, part) for number, part in parts if part]
    if len(parts) < 3:
        return None
    codes = {code: at for at, code in enumerate(sorted({code for _, part in parts for code in part}))}
    counts = np.zeros((len(parts), len(codes)))
    for row, (_, part) in zip(counts, parts, strict=True):
        row[[codes[code] for code in part]] = list(part.values())
    record = np.array([number for number, _ in parts])
    mean, se = ev.pairs_mean_se((counts @ counts.T)[None], counts.sum(axis=1)[None], record)
    return None if math.isnan(se[0]) else (mean, se, np.array([float(len(parts))]))


def tallies_from_json(data: Mapping[str, Any], sources: Collection[str]) -> dict[str, Tallies]:
    """By source. Raises ``ValueError`` where they are of others."""
    if not data.keys() <= set(sources) or not all(set(of_source) <= TALLIED for of_source in data.values()):
        raise ValueError("its tallies are of sources or statistics that it does not have")
    return {
        str(source): {
            str(statistic): None
            if parts is None
            else tuple((int(number), {str(c): int(n) for c, n in part.items()}) for number, part in parts)
            for statistic, parts in of_source.items()
        }
        for source, of_source in data.items()
    }
