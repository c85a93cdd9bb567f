"""The baseline: the stretch of a run that everything later is compared with."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

PROMPTS = 32
COMPLETIONS = 256
ROUNDS = 8


def complete(prompts: Any, completions: Any, rounds: Any) -> Any:
    """Whether so much is a whole baseline; elementwise for arrays."""
    return (prompts >= PROMPTS) | (completions >= COMPLETIONS) | (rounds >= ROUNDS)


@dataclass(frozen=True)
class Baseline:
    """How much of the baseline has been seen. Shares, means and examples that are "of the base" cover exactly this.

    The baseline is the first training rounds until 32 prompts or 256 completions were seen, 8 rounds at most. Round 0
    is the base itself, the next few are a few updates away. What is met later (a source that a curriculum adds, a
    metric that is measured now and then) has a baseline of its own by the same rule, counted over the rounds in which
    it was measured. The same on all ranks: counts are those of all ranks together.
    """

    prompts: float = 0.0
    completions: float = 0.0
    rounds: float = 0.0

    @property
    def complete(self) -> bool:
        """Whether it is closed: nothing is added to a complete baseline."""
        return bool(complete(self.prompts, self.completions, self.rounds))

    def with_round(self, *, prompts: float, completions: float) -> Baseline:
        """The baseline with one more round, of all ranks together; unchanged by a round without completions and once it
        is complete."""
        if self.complete or not completions:
            return self
        return Baseline(self.prompts + prompts, self.completions + completions, self.rounds + 1)

    @staticmethod
    def rounds_needed(*, prompts: float, completions: float) -> int:
        """Rounds of this size after which it is complete."""
        return min(ROUNDS, math.ceil(PROMPTS / max(1, prompts)), math.ceil(COMPLETIONS / max(1, completions)))

    def to_json(self) -> dict[str, float]:
        """The counts, for a checkpoint."""
        return {"prompts": self.prompts, "completions": self.completions, "rounds": self.rounds}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Baseline:
        """What ``to_json`` gave. Raises ``KeyError`` or ``ValueError`` where it is something else."""
        return cls(**{name: float(data[name]) for name in ("prompts", "completions", "rounds")})
