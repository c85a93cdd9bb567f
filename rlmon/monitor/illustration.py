"""What a finding looks like: formats that lost and won most since the baseline, with an example of each."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

import rlmon.metrics.moves as moves
from rlmon.metrics.family import Sums
from rlmon.restored import mapping
from rlmon.statistics import Floats

SAMPLE_ROWS = 32
EXAMPLE_CHARACTERS = 500
ILLUSTRATED = (("format", "mode_count"), ("moves", "openers"), ("moves", "tokens"))
"""Family and field of the sums that a finding is illustrated by."""
RECENT_STEPS = 8
"""Steps whose counts are pooled as "now" when a finding is illustrated."""


class Illustration:
    """Examples of completions (on rank 0) and the counts of the newest steps; bounded.

    Args:
        modes: names of the format modes.
        keeps_text: whether texts of the run may be shown.
    """

    def __init__(self, modes: Sequence[str], *, keeps_text: bool) -> None:
        self.modes, self.keeps_text = modes, keeps_text
        self.samples: list[dict[str, Any]] = []
        """Rows of the newest round, with the field names of ``records.Rollout``."""
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
        base: bool,
    ) -> None:
        """An even spread of a round for tables, without a random draw; ``base``: the baseline is still growing."""
        rows = len(completions)
        kept = np.unique(np.linspace(0, rows - 1, min(SAMPLE_ROWS, rows)).astype(int))
        self.samples = [{name: None if column is None else column[i] for name, column in columns.items()} for i in kept]
        if self.keeps_text:
            newest = {of: text[:EXAMPLE_CHARACTERS] for of, text in zip(mode, completions, strict=True)}
            self._now_examples |= newest
            if base:
                self.base_examples = newest | self.base_examples

    def sample_rows(self, count: int) -> list[dict[str, Any]]:
        """At most ``count`` of ``samples``."""
        return self.samples[:count]

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
