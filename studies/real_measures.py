"""What samples of a real model show: chances to be right, and how many ways of being right there are in one prompt.

Every number is a pure function of the rows; the sums are kept by prompt, so that arms can be compared on the same
prompts.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlmon.metrics.formats import ModeSet, mask_template, opening_of_masked

KINDS = ("template", "opening", "format")
"""What makes two answers one way of answering: equal but for numbers, names and quotes; the first eight words of that;
the parsed format."""
OTHER = "other"

parse = ModeSet.build(None).parse


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One completion of a held-out prompt."""

    text: str
    right: bool
    tokens: int
    cut_off: bool
    """It has no end token."""
    entropy_nats: float | None = None
    """Summed over its tokens; ``None`` where it was not measured."""
    kl_nats: float | None = None

    def kind(self, name: str) -> str:
        """Its way of answering, by one of ``KINDS``."""
        if name == "format":
            return parse(self.text)
        masked = mask_template(self.text)
        return masked if name == "template" else " ".join(opening_of_masked(masked))


def pass_at(k: int, samples: int, right: int) -> float | None:
    """Chance that at least one of ``k`` samples is right, unbiased: 1 - C(n - c, k) / C(n, k) (Chen et al. 2021).

    ``None`` for fewer than ``k`` samples.
    """
    if samples < k:
        return None
    return 1.0 - math.comb(samples - right, k) / math.comb(samples, k)


def equal_pairs(kinds: Sequence[str]) -> int:
    """Pairs of different entries that are equal."""
    return sum(math.comb(count, 2) for count in Counter(kinds).values())


def effective_ways(equal: Sequence[int], pairs: Sequence[int]) -> float | None:
    """1 / (chance that two right answers to one prompt are given in the same way), a Hill number of order 2.

    The chance is the mean over prompts of equal / all pairs of right answers, unbiased in each prompt that has two.
    ``None`` where no prompt has, or no two are equal.
    """
    chances = [same / all_ for same, all_ in zip(equal, pairs, strict=True) if all_ > 0]
    return len(chances) / sum(chances) if any(chances) else None


def measured(rows_PG: Sequence[Sequence[Row]]) -> dict[str, Any]:
    """What the samples of each prompt show, as a file keeps it.

    ``by_prompt`` has for each prompt how many were sampled and right, and how many pairs of right ones are equal by
    each of ``KINDS``.
    """
    rows = [row for group in rows_PG for row in group]
    right_PG = [[row for row in group if row.right] for group in rows_PG]
    right = [row for group in right_PG for row in group]
    by_prompt = {
        "sampled": [len(group) for group in rows_PG],
        "right": [len(group) for group in right_PG],
        **{name: [equal_pairs([row.kind(name) for row in group]) for group in right_PG] for name in KINDS},
    }
    measured_rows = [row for row in rows if row.entropy_nats is not None]
    return {
        "prompts": len(rows_PG),
        "completions": len(rows),
        **scores(by_prompt, range(len(rows_PG))),
        "entropy_nats": _per_token(measured_rows, "entropy_nats"),
        "entropy_nats_right": _per_token([row for row in measured_rows if row.right], "entropy_nats"),
        "kl_nats": _per_token(measured_rows, "kl_nats"),
        "tokens": _mean([row.tokens for row in rows]),
        "cut_off": _mean([row.cut_off for row in rows]),
        "other": _mean([row.kind("format") == OTHER for row in rows]),
        "formats": shares([row.kind("format") for row in rows]),
        "formats_right": shares([row.kind("format") for row in right]),
        "openings_right": shares([row.kind("opening") for row in right]),
        "by_prompt": by_prompt,
    }


def scores(by_prompt: Mapping[str, Sequence[int]], prompts: Sequence[int]) -> dict[str, float | None]:
    """Accuracy, pass@1, pass@8 and effective ways among right answers, over these prompts."""

    def of(name: str) -> list[int]:
        return [by_prompt[name][at] for at in prompts]

    samples, right = of("sampled"), of("right")
    pairs = [math.comb(count, 2) for count in right]
    chances = {k: [pass_at(k, n, c) for n, c in zip(samples, right, strict=True)] for k in (1, 8)}
    return {
        "accuracy": sum(right) / sum(samples) if samples else None,
        **{f"pass_at_{k}": _mean([chance for chance in found if chance is not None]) for k, found in chances.items()},
        **{f"{name}s_within": effective_ways(of(name), pairs) for name in KINDS},
    }


def with_two_right(by_prompts: Sequence[Mapping[str, Sequence[int]]]) -> list[int]:
    """The prompts to which every one of these arms has two right answers or more: where ways can be compared."""
    return [
        at for at, counts in enumerate(zip(*(each["right"] for each in by_prompts), strict=True)) if min(counts) > 1
    ]


def shares(names: Sequence[str], most: int = 8) -> dict[str, float]:
    """Share of each of the most frequent names."""
    return {name: count / len(names) for name, count in Counter(names).most_common(most)}


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _per_token(rows: Sequence[Row], name: str) -> float | None:
    tokens = sum(row.tokens for row in rows)
    return sum(getattr(row, name) for row in rows) / tokens if tokens else None
