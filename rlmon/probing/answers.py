"""What one model answered, laid out by prompts: the kinds that completions are of, and numbers of each."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from rlmon.lab.rewards import Rewards
from rlmon.metrics.formats import ModeSet, mask_template, opening_of_masked
from rlmon.probing.sampling import Sampled
from rlmon.statistics import Floats

Kind = Literal["format", "template", "opening"]
"""What makes two completions alike: the parsed format; all of the text but numbers, names and quotes; its first eight
words."""
Texts = NDArray[np.object_]


@dataclass(frozen=True, eq=False)
class Answers:
    """Completions of one model [P, N]."""

    text: Texts
    format: Texts
    template: Texts
    opening: Texts
    right: Floats
    """1.0, 0.0, or NaN where that is not known."""
    reward: Floats
    tokens: Floats
    cut: Floats
    entropy_nats: Floats
    kl_nats: Floats

    @classmethod
    def of(cls, sampled: Sampled, right_B: Floats, rewards: Rewards | None, samples: int) -> Answers:
        def grid(values: Any, kind: type = float) -> NDArray[Any]:
            return np.array(values, dtype=kind).reshape(-1, samples)

        masked = [mask_template(text) for text in sampled.texts]
        parse = ModeSet.build(None).parse
        return cls(
            text=grid(sampled.texts, object),
            format=grid([parse(text) for text in sampled.texts], object),
            template=grid(masked, object),
            opening=grid([" ".join(opening_of_masked(one)) for one in masked], object),
            right=grid(right_B),
            reward=grid([None] * len(masked) if rewards is None else rewards),
            tokens=grid([len(ids) for ids in sampled.ids]),
            cut=grid(sampled.cut),
            entropy_nats=grid(sampled.entropy_nats),
            kl_nats=grid(sampled.kl_nats),
        )

    def alike_P(self, kind: Kind, *, right: bool = False) -> Floats:
        """The chance that two of a prompt's completions (of its right ones) are of one kind, without bias; NaN where
        there are no two."""
        kept = self.right == 1.0 if right else np.ones(self.right.shape, dtype=bool)
        rows = zip(getattr(self, kind), kept, strict=True)
        return np.array([_alike(row[mine].tolist()) for row, mine in rows], dtype=np.float64)

    def a_token_P(self, sums: Floats) -> Floats:
        """Sums over the tokens of each completion, by the token."""
        return np.asarray(sums.sum(1) / self.tokens.sum(1))


def _alike(kinds: Sequence[str]) -> float:
    pairs = math.comb(len(kinds), 2)
    return sum(math.comb(count, 2) for count in Counter(kinds).values()) / pairs if pairs else math.nan
