"""C = mean k(y, y') over pairs of completions, for several ways in which two completions can be alike."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

import rlmon.metrics.moves as moves
from rlmon.metrics.blocks import Dealt
from rlmon.metrics.collision import PAIRS, PairSums, equality_pairs, overlap_pairs
from rlmon.metrics.family import (
    Entries,
    Kind,
    Metric,
    MetricFamily,
    Numbers,
    RankRows,
    RoundRows,
    Shape,
    StepSums,
    Sums,
    add_to,
)
from rlmon.statistics import Bools, Ints

LEINSTER = "Leinster and Cobbold 2012, order 2"
NEEDS_IDS = "moves need token ids and a vocabulary"
_MODE, _TEMPLATE, _OPENING = (
    "same parsed mode", "same text after masking numbers, names and quotes", "same first 8 masked tokens",
)  # fmt: skip


def _among_right(meaning: str) -> tuple[str, str, Kind, str]:
    return f"{meaning}, among rewarded completions", "rewards", "exact", "rewarded completions"


_MEANING: Mapping[str, tuple[str, str, Kind, str]] = {
    "mode": (_MODE, "completions", "exact", "completions"),
    "mode_correct": _among_right(_MODE),
    "template": (_TEMPLATE, "completions", "exact", "completions"),
    "template_correct": _among_right(_TEMPLATE),
    "answer": ("same final answer, among completions with one", "completions", "exact", "completions with an answer"),
    "opening": (_OPENING, "completions", "exact", "completions"),
    "opening_correct": _among_right(_OPENING),
    "moves": (
        "sum_b min(h(b), h'(b)) of opener histograms, the 64 heaviest of each completion", "token ids, vocabulary",
        "sketch", "completions",
    ),
    "similarity": (
        "Jaccard similarity of 4-grams by bottom-128 sketches, at most 1,000 pairs a rank", "completions", "local",
        "completions with 4-grams",
    ),
}  # fmt: skip
"""Of a kernel: k, what it needs, how exact it is, and which completions it compares."""
_CORRECT = "_correct"
"""After the name of a kernel: among rewarded completions."""
_EQUAL = ("mode", "mode_correct", "template", "template_correct", "answer", "opening", "opening_correct")
"""Kernels that are 1 where a column of the rows has one value."""
TALLIED = ("mode", "template", "answer")
"""Kernels whose baseline is taken from tallies."""


def _entries() -> Iterator[Metric]:
    for kernel, (meaning, needs, kind, _) in _MEANING.items():
        entry = Entries(family="collision", needs=needs, source=LEINSTER, kind=kind)
        for side, pairs in (("across", "different prompts"), ("within", "one prompt")):
            near = f"collision/template_{side}" if kind == "local" else ""
            formula = f"mean of k over pairs of completions of {pairs}; k: {meaning}"
            of = kernel.endswith(_CORRECT)
            yield entry(f"{kernel}_{side}", "share", 0, 1, "up", formula, instead=near, of_successes=of)
            near = near and f"{near}_effective"
            yield entry(
                f"{kernel}_{side}_effective", "in use", 1, None, "down", "1 / the above", instead=near, of_successes=of
            )


def equal_values(rows: Any) -> dict[str, tuple[Ints, Bools]]:
    """By kernel: the value that two completions are compared by, and which of them take part; of those whose columns
    there are."""
    names = rows.dtype.names if isinstance(rows, np.ndarray) else rows
    found = {}
    for kernel in _EQUAL:
        column = kernel.removesuffix(_CORRECT)
        if column in names:
            # A change in how often an answer can be read must not look like concentration: only rows that have one.
            value_B = np.asarray(rows[column]).astype(np.int64, copy=False)
            taking_part = value_B >= 0
            found[kernel] = value_B, taking_part if column == kernel else taking_part & (rows["success"] > 0)
    return found


def equal_pairs(rows: Any, prompt_B: Ints, block_B: Ints, blocks: int) -> dict[str, PairSums]:
    """By kernel of ``equal_values``: its pairs inside each block."""
    return {
        kernel: equality_pairs(value_B, prompt_B, block_B, blocks, keep_B)
        for kernel, (value_B, keep_B) in equal_values(rows).items()
    }


def _moves(seen: RoundRows, prompt_B: Ints, block_B: Ints, blocks: int) -> PairSums:
    row_N, bucket_N, weight_N = seen.openers
    return overlap_pairs(row_N, bucket_N, weight_N, prompt_B, block_B, blocks, moves.OPENER_BUCKETS)


class Collision(MetricFamily):
    name = "collision"
    about = (
        "C = mean k(y, y') over pairs of completions, across prompts and within one; 1/C is an effective number. "
        "Unbiased; over pairs of all ranks' completions."
    )
    entries = tuple(_entries())

    def fields(self, modes: Sequence[str]) -> Mapping[str, Shape]:
        return dict.fromkeys(_MEANING, PAIRS)

    def add_rows(self, sums: Sums, seen: RankRows) -> None:
        similarity = sums["similarity"]
        for side, found in zip(("across", "within"), seen.sketch_similarity, strict=True):
            similarity[f"{side}_sum"] += found.sum()
            similarity[f"{side}_pairs"] += found.size

    def add_round(self, sums: Sums, seen: RoundRows) -> None:
        one = np.zeros(len(seen.rows), dtype=np.int64), 1
        for kernel, pairs in equal_pairs(seen.rows, seen.prompt_B, *one).items():
            add_to(sums[kernel], pairs)
        add_to(sums["moves"], _moves(seen, seen.prompt_B, *one))

    def put_round(self, into: Dealt, seen: RoundRows) -> None:
        """The pair means of every kernel: ``mode_collision``, ``template_collision``, ``answer_collision``,
        ``opening_collision``, ``move_collision`` over pairs of different prompts, ``*_within`` over pairs of one
        prompt, ``*_correct`` and ``*_correct_within`` over rewarded completions; and their tallies."""
        dealt = into.prompt_B, into.block_B, into.count
        found = equal_pairs(seen.rows, *dealt) | {"moves": _moves(seen, *dealt)}
        for kernel, pairs in found.items():
            put_pairs(into, kernel, pairs)
        put_tallies(into, seen.rows)

    def finish(self, out: Numbers, sums: Sums, step: StepSums) -> None:
        for kernel, (*_, compared) in _MEANING.items():
            for kind, where in (("across", "different prompts"), ("within", "one prompt")):
                reason = f"no pair of {compared} of {where} to compare"
                if step.why and kernel == "moves" and step.of("moves", "tokens") <= 0:
                    reason = NEEDS_IDS
                pairs = sums[kernel]
                name = f"collision/{kernel}_{kind}"
                value = out.ratio(name, pairs[f"{kind}_sum"], pairs[f"{kind}_pairs"], reason)
                if step.why and value is not None and value <= 0.0:
                    reason = "no pair agreed: the effective number is beyond what this many completions show"
                out.ratio(f"{name}_effective", 1.0, value, reason)


def put_pairs(into: Dealt, kernel: str, pairs: PairSums) -> None:
    """The statistics of blocks of one kernel."""
    of = kernel.removesuffix(_CORRECT)
    name = ("move" if of == "moves" else of) + "_collision" + kernel[len(of) :]
    into.put(name, pairs["across_sum"], pairs["across_pairs"])
    into.put(f"{name}_within", pairs["within_sum"], pairs["within_pairs"])


def put_tallies(into: Dealt, rows: Any) -> None:
    """The tallies of the kernels that have some."""
    values = equal_values(rows)
    for kernel in TALLIED:
        into.tally(f"{kernel}_collision", *values[kernel])
