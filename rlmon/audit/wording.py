"""Metrics of the words of a run: on a sample of its completions at a fixed budget, so that neither length nor number
of completions moves them."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

import rlmon.metrics.moves as moves
import rlmon.metrics.text as text
from rlmon.audit.contrast import Difference, Windows
from rlmon.audit.features import Floats, Ints
from rlmon.metrics.collision import overlap_pairs, sampled_pairs
from rlmon.metrics.families.text import NEAR_DUPLICATE
from rlmon.metrics.family import SKETCH_PAIRS
from rlmon.statistics import t_quantile

BINS = 32
"""Parts of equal length into which the run is cut for the curves."""
WORDS = 8_192
"""Word budget of a part."""
COMPARED_ROWS = 32
"""Completions of a part that are compared with each other."""
CHUNKS = 8
"""Disjoint parts of an end of the run, from whose spread the standard error comes."""
ENDS_ROWS = 512
NAMES = (
    "rlmon/text/distinct_2",
    "rlmon/text/compression_ratio",
    "rlmon/text/near_duplicate_across",
    "sentence openings",
)
UNITS = ("share", "ratio", "share", "ways in use")
_TOKEN = re.compile(r"\S+|\n+")
_COMPARED_CHARACTERS = 4_000


@dataclass(frozen=True, kw_only=True)
class Wording:
    """What the words of the sample show."""

    steps: Ints
    """Last step of each part [P]."""
    series: Mapping[str, Floats]
    """Name to one value per part [P], NaN where it could not be measured."""
    ends: Mapping[str, Difference]
    """Name to the difference between the ends of the run; a name is absent where it could not be measured."""
    rows: int
    words: int
    """Rows of the sample and words that the budget covered."""


def wording(
    samples: pa.Table,
    base: pa.Table | None,
    steps: Ints,
    windows: Windows | None,
    alpha: float,
    sources: frozenset[str] | None = None,
) -> Wording:
    """``samples``: the uniform sample of the training rows, by step and rank; ``base``: that of another run, where one
    is the base. ``alpha``: error rate of one interval. ``sources``: those that the ends are compared in, all by
    default."""
    at = np.searchsorted(steps, samples["step"].to_numpy())
    parts = min(BINS, max(1, steps.size))
    part = at * parts // max(1, steps.size)
    texts = samples["completion"].to_pylist()
    keys = samples["text_key"].to_numpy()
    prompts = samples["prompt_key"].to_numpy()
    members = [np.flatnonzero(part == p) for p in range(parts)]
    budget = _common_budget([_supply(texts, keys, rows) for rows in members])
    series = {name: np.full(parts, np.nan) for name in NAMES}
    words = 0
    for p, rows in enumerate(members):
        if rows.size:
            found, used = _measure(texts, keys, prompts, rows, budget, COMPARED_ROWS)
            words += used
            for name, value in found.items():
                series[name][p] = value
    ends_of_parts = [math.ceil((p + 1) * steps.size / parts) - 1 for p in range(parts)]
    ends: dict[str, Difference] = {}
    if windows is not None:
        own = samples["step"].to_numpy()
        first = base if base is not None else samples.filter(pa.array(np.isin(own, windows.base)))
        last = samples.filter(pa.array(np.isin(own, windows.last)))
        if sources is not None:
            named = pa.array(sorted(sources), pa.string())
            first, last = (end.filter(pc.is_in(end["source"], named)) for end in (first, last))
        ends = _ends(first, last, alpha)
    return Wording(
        steps=steps[ends_of_parts],
        series={name: values for name, values in series.items() if np.isfinite(values).any()},
        ends=ends,
        rows=len(texts),
        words=words,
    )


def usable(samples: Sequence[pa.Table]) -> pa.Table | None:
    """The uniform sample of training rows that have a text, by step and rank; ``None`` where there is none."""
    if not samples:
        return None
    table = pa.concat_tables(samples)
    kept = pc.and_(pc.and_(pc.equal(table["split"], "train"), pc.greater_equal(table["rank"], 0)),
                   pc.is_valid(table["completion"]))  # fmt: skip
    table = table.filter(kept)
    if not table.num_rows:
        return None
    return table.sort_by([("step", "ascending"), ("rank", "ascending"), ("text_key", "ascending")])


def _supply(texts: Sequence[str], keys: Ints, rows: Ints) -> int:
    total = 0
    for row in rows.tolist():
        total += len(text.row_words(texts[row], int(keys[row])))
        if total >= WORDS:
            break
    return total


def _common_budget(supplies: Sequence[int]) -> int:
    """The largest power of two that nearly every part can fill: a part in ten may be too small and goes without."""
    known = sorted(supply for supply in supplies if supply)
    if not known:
        return 0
    least = known[len(known) // 10]
    return int(min(WORDS, 1 << (least.bit_length() - 1)))


def _measure(
    texts: Sequence[str], keys: Ints, prompts: Ints, rows: Ints, budget: int, compared: int
) -> tuple[dict[str, float], int]:
    chosen = [texts[row] for row in rows.tolist()]
    stats = text.word_stats(chosen, keys[rows].tolist(), budget) if budget >= text.LEAST_WORDS else None
    found: dict[str, float] = {}
    used = 0
    if stats is not None and stats.words == budget:
        used = stats.words
        if stats.total[1]:  # completions of one word have no pair
            found["rlmon/text/distinct_2"] = float(stats.distinct[1] / stats.total[1])
        found["rlmon/text/compression_ratio"] = stats.raw_bytes / stats.compressed_bytes
    few = rows[:compared]
    found |= _compare([texts[row][:_COMPARED_CHARACTERS] for row in few.tolist()], prompts[few])
    return found, used


def _compare(texts: Sequence[str], prompts: Ints) -> dict[str, float]:
    """Near-duplicate share and effective number of sentence openings over pairs of different prompts."""
    if len(texts) < 2:
        return {}
    tokens = [_TOKEN.findall(one) for one in texts]
    index = {token: code for code, token in enumerate(dict.fromkeys(itertools.chain.from_iterable(tokens)))}
    vocabulary = moves.Vocabulary(list(index))
    ids, start = moves.concatenate_ids(
        [np.fromiter(map(index.__getitem__, row), dtype=np.int32, count=len(row)) for row in tokens]
    )
    if not ids.size:
        return {}
    found: dict[str, float] = {}
    prompt_B = np.unique(prompts, return_inverse=True)[1]
    sketch, _, _ = moves.sketches(ids, start, vocabulary)
    i, j, _, _ = sampled_pairs(prompt_B, SKETCH_PAIRS)
    similarity = moves.jaccard(sketch, i, j)
    similarity = similarity[np.isfinite(similarity)]
    if similarity.size:
        found["rlmon/text/near_duplicate_across"] = float((similarity >= NEAR_DUPLICATE).mean())
    openers = moves.openers(ids, start, vocabulary)
    pairs = overlap_pairs(
        openers.row_N,
        openers.bucket_N,
        openers.weight_N,
        prompt_B,
        np.zeros(len(texts), dtype=np.int64),
        1,
        moves.OPENER_BUCKETS,
    )
    if pairs["across_sum"][0] > 0:
        found["sentence openings"] = float(pairs["across_pairs"][0] / pairs["across_sum"][0])
    return found


def _ends(base: pa.Table, last: pa.Table, alpha: float) -> dict[str, Difference]:
    sides = []
    for table in (base, last):
        table = table.slice(0, table.num_rows)
        order = np.lexsort([table["text_key"].to_numpy(), table["rank"].to_numpy()])[:ENDS_ROWS]
        texts = table["completion"].to_pylist()
        keys, prompts = table["text_key"].to_numpy(), table["prompt_key"].to_numpy()
        # Chunks share no prompt, so that they are independent.
        codes = np.unique(prompts[order], return_inverse=True)[1] if order.size else np.zeros(0, dtype=np.int64)
        chunks = [order[codes % CHUNKS == c] for c in range(CHUNKS)]
        sides.append((texts, keys, prompts, [chunk for chunk in chunks if chunk.size >= 2]))
    if min(len(side[3]) for side in sides) < 4:
        return {}
    budget = _common_budget([_supply(side[0], side[1], chunk) for side in sides for chunk in side[3]])
    measured = [
        [_measure(texts, keys, prompts, chunk, budget, COMPARED_ROWS)[0] for chunk in chunks]
        for texts, keys, prompts, chunks in sides
    ]
    ends: dict[str, Difference] = {}
    for name in NAMES:
        before, after = ([found[name] for found in side if name in found] for side in measured)
        if min(len(before), len(after)) < 4:
            continue
        errors = [float(np.std(values, ddof=1)) / math.sqrt(len(values)) for values in (before, after)]
        base_mean, last_mean = float(np.mean(before)), float(np.mean(after))
        reach = t_quantile(1.0 - alpha / 2.0, min(len(before), len(after)) - 1) * math.hypot(*errors)
        ends[name] = Difference(
            base=base_mean,
            last=last_mean,
            low=last_mean - base_mean - reach,
            high=last_mean - base_mean + reach,
            prompts_base=int(np.unique(sides[0][2]).size),
            prompts_last=int(np.unique(sides[1][2]).size),
            paired=0,
        )
    return ends
