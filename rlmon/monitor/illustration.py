"""What a finding looks like: formats that lost and won most since the baseline, by an example of each and in words."""

from __future__ import annotations

import dataclasses
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

import rlmon.metrics.moves as moves
from rlmon.metrics.family import Sums
from rlmon.printable import one_line, quoted
from rlmon.restored import mapping
from rlmon.statistics import Floats

SAMPLE_ROWS = 32
DYING_SHARE = 0.5
"""A format below this part of its share in the baseline is shown as one that dies."""
EXAMPLE_CHARACTERS = 500
ILLUSTRATED = (("format", "mode_count"), ("moves", "openers"), ("moves", "tokens"))
"""Family and field of the sums that a finding is illustrated by."""
RECENT_STEPS = 8
"""Steps whose counts are pooled as "now" when a finding is illustrated."""
IN_WORDS = ("format-collapse", "template-collapse", "move-collapse")
"""Findings that are also told in words."""
WORDS_CHARACTERS = 300
FORMAT_MOVED = 0.05
"""Less of a share is not worth a word; nor are openers that did not change by this factor:"""
OPENER_MOVED = 2.0
OPENERS_TOLD = 3


class Illustration:
    """Examples of completions (on rank 0) and the counts of the newest steps; bounded.

    Args:
        modes: names of the format modes.
        keeps_text: whether texts of the run may be shown.
    """

    def __init__(self, modes: Sequence[str], *, keeps_text: bool) -> None:
        self.modes, self.keeps_text = modes, keeps_text
        self.samples: list[dict[str, Any]] = []
        """Rows of the newest round: the field names of ``records.Rollout``, and ``mode_change``."""
        self.base_examples: dict[str, str] = {}
        """A completion of the baseline by mode."""
        self._now_examples: dict[str, str] = {}
        self._recent: deque[dict[str, Floats]] = deque(maxlen=RECENT_STEPS)

    def load(self, saved: Any) -> None:
        """Examples of the base, from a checkpoint. Raises where it is something else."""
        examples = {str(mode): str(text) for mode, text in mapping(saved).items()}
        self.base_examples = examples if self.keeps_text else {}

    def keep(
        self,
        columns: Mapping[str, Sequence[Any] | None],
        mode: Sequence[str],
        completions: Sequence[str],
        *,
        base: Mapping[str, Floats] | None,
    ) -> None:
        """Rows of a round for tables, without a random draw: some of formats that the baseline did not have, some of
        those that lost most of their share, and an even spread of all. ``base``: sums over the whole baseline; ``None``
        while it grows."""
        change_B = np.full(len(mode), "", dtype=object) if base is None else self._changes(mode, base)
        kept = {
            int(i): change
            for change, most in (("new", SAMPLE_ROWS // 4), ("dying", SAMPLE_ROWS // 4), ("", SAMPLE_ROWS // 2))
            for i in _spread(np.flatnonzero(change_B == change), most)
        }
        for i in _spread(np.flatnonzero([row not in kept for row in range(len(mode))]), SAMPLE_ROWS - len(kept)):
            kept[int(i)] = change_B[i]
        order = sorted(kept, key=lambda i: (not kept[i], kept[i] == "dying", i))
        self.samples = [
            {name: None if column is None else column[i] for name, column in columns.items()} | {"mode_change": kept[i]}
            for i in order
        ]
        if self.keeps_text:
            newest = {of: text[:EXAMPLE_CHARACTERS] for of, text in zip(mode, completions, strict=True)}
            self._now_examples |= newest
            if base is None:
                self.base_examples = newest | self.base_examples

    def keep_base(self, mode: Sequence[str], completions: Sequence[str]) -> None:
        """Examples of a sample of the base."""
        if self.keeps_text:
            sampled = {of: text[:EXAMPLE_CHARACTERS] for of, text in zip(mode, completions, strict=True)}
            self.base_examples = sampled | self.base_examples

    def _changes(self, mode: Sequence[str], base: Mapping[str, Floats]) -> NDArray[np.object_]:
        """``new``, ``dying`` (less than half of the share that it had) or nothing, for the format of each row."""
        then = dict(zip(self.modes, base["format/mode_count"] / max(1.0, base["format/mode_count"].sum()), strict=True))
        now = {one: count / len(mode) for one, count in Counter(mode).items()}
        said = {
            one: "new" if not then.get(one) else "dying" if now[one] < DYING_SHARE * then[one] else "" for one in now
        }
        return np.array([said[one] for one in mode], dtype=object)

    def add(self, sums: Sums) -> None:
        """The counts of a step that had completions."""
        self._recent.append({f"{family}/{field}": sums[family][field].copy() for family, field in ILLUSTRATED})

    def of(
        self, finding_id: str, base: Mapping[str, Floats] | None, opener_words: Callable[[], Sequence[str | None]]
    ) -> dict[str, Any] | None:
        """What belongs to a finding, as JSON types; ``None`` where there is nothing to compare.

        An event of its own in the log, since a finding must come out the same from a replay, which has no texts.
        """
        if base is None or not self._recent:
            return None
        recent = {name: np.sum([step[name] for step in self._recent], axis=0) for name in self._recent[0]}
        then, now = base["format/mode_count"], recent["format/mode_count"]
        if not then.sum() or not now.sum():
            return None
        base_share, now_share = then / then.sum(), now / now.sum()
        change = now_share - base_share
        order = np.argsort(change, kind="stable").tolist()

        def entry(index: int) -> dict[str, Any]:
            mode = self.modes[index]
            return {
                "mode": mode,
                "base_share": float(base_share[index]),
                "now_share": float(now_share[index]),
                "base_example": self.base_examples.get(mode),
                "now_example": self._now_examples.get(mode),
            }

        openers: Sequence[moves.OpenerChange] = ()
        if self.keeps_text:
            openers = moves.changed_openers(
                recent["moves/openers"], float(recent["moves/tokens"]),
                base["moves/openers"], float(base["moves/tokens"]), opener_words(),
            )  # fmt: skip
        return {
            "finding_id": finding_id,
            "losers": [entry(index) for index in order[:3] if change[index] < 0],
            "gainers": [entry(index) for index in order[::-1][:3] if change[index] > 0],
            "openers": [dataclasses.asdict(opener) for opener in openers],
        }


def in_words(shown: Mapping[str, Any] | None) -> str:
    """What ``Illustration.of`` found, as one printable line: formats that lost and won, and where the run keeps its
    texts how sentences begin. Empty where nothing moved much."""
    if shown is None:
        return ""
    moved = [entry for entry in shown["losers"] if entry["base_share"] - entry["now_share"] >= FORMAT_MOVED]
    moved += [entry for entry in shown["gainers"][:1] if entry["now_share"] - entry["base_share"] >= FORMAT_MOVED]
    told = [f"{one_line(one['mode'], 24)} {one['base_share']:.0%} to {one['now_share']:.0%}" for one in moved]
    parts = [f"formats: {', '.join(told)}"] if told else []
    openers = [
        f"{quoted(' '.join(one['opener'].split()), 40)} "
        f"{one['base_per_1000_tokens']:.0f} to {one['now_per_1000_tokens']:.0f}"
        for one in shown["openers"]
        if one["opener"] != moves.NOT_SEEN and _apart(one["base_per_1000_tokens"], one["now_per_1000_tokens"])
    ]
    if openers:
        parts.append(f"sentences begin, per 1,000 tokens: {', '.join(openers[:OPENERS_TOLD])}")
    return one_line(" · ".join(parts), WORDS_CHARACTERS)


def _apart(base: float, now: float) -> bool:
    return max(base, now) >= OPENER_MOVED * min(base, now) and max(base, now) >= 1.0


def _spread(indices: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """At most so many of them, evenly."""
    if not indices.size or most <= 0:
        return indices[:0]
    kept = np.unique(np.linspace(0, indices.size - 1, min(most, indices.size)).astype(int))
    return np.asarray(indices[kept])
