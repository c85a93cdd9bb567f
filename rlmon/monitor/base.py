"""The sums of the baseline that findings and metrics are compared with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from rlmon.baseline import Baseline
from rlmon.metrics.family import Sums
from rlmon.metrics.step import Families
from rlmon.restored import mapping
from rlmon.statistics import Floats

_VERSION_2 = {
    "mode_count": ("format/mode_count",),
    "openers": ("moves/openers",),
    "opener_tokens": ("moves/tokens",),
    "entropy": ("entropy/nats", "entropy/tokens"),
}
"""Names of sums before they were those of families."""


class BaseSums:
    """What the baseline of the run was, as sums over all ranks; round 0 *is* the base."""

    def __init__(self, families: Families) -> None:
        self.baseline = Baseline()
        self.sums: dict[str, Floats] | None = None
        """``Families.of_base`` by name; ``None`` before the first completions."""
        self._families = families
        self._sampled: frozenset[str] = frozenset()
        """Names of the sums that a sample of the base completed; the others grow by the first rounds."""
        self._late = Baseline()
        """How far the others have grown."""

    def take_sample(self, sums: Sums, *, prompts: float, completions: float) -> None:
        """Add a sample of the base, before the first step. Where it is a whole baseline of what it measured, only what
        it could not measure (token entropies) grows by the first rounds."""
        self.grow(sums, prompts=prompts, completions=completions)
        if self.baseline.complete and self.sums is not None:
            measured = self._families.of_completions()
            self._sampled = frozenset(name for name, value in self.sums.items() if name in measured or np.any(value))

    def grow(self, sums: Sums, *, prompts: float, completions: float) -> None:
        """Add a step while the baseline is still growing."""
        late = self.baseline.complete
        if not completions or (late and (not self._sampled or self._late.complete)):
            return
        # A family that joined while it grows has what came since; one that failed in a round, the others.
        grown = dict(self.sums or {})
        for name, value in self._families.of_base(sums):
            if not late or name not in self._sampled:
                grown[name] = np.asarray(value + grown.get(name, 0.0))
        self.sums = grown
        if late:
            self._late = self._late.with_round(prompts=prompts, completions=completions)
        else:
            self.baseline = self.baseline.with_round(prompts=prompts, completions=completions)

    def state(self) -> dict[str, Any]:
        """For a checkpoint, as JSON types."""
        return {
            "baseline": self.baseline.to_json(),
            "base_sums": None if self.sums is None else {name: value.tolist() for name, value in self.sums.items()},
            **(
                {"base_sampled": {"sums": sorted(self._sampled), "others": self._late.to_json()}}
                if self._sampled
                else {}
            ),
        }

    def load(self, shared: Mapping[str, Any]) -> None:
        """Go on from what ``state`` gave. Raises where it is something else, and has taken up nothing then."""
        saved = shared["base_sums"]
        if "baseline" in shared:
            counts = Baseline.from_json(mapping(shared["baseline"]))
        else:  # version 1
            prompts, completions, rounds = (float(count) for count in shared["base_counts"])
            counts = Baseline(prompts=prompts, completions=completions, rounds=rounds)
            saved = None if saved is None else _of_version_1(np.array(saved, dtype=np.float64), self._families.modes)
        taken: dict[str, Floats] | None = None
        if saved is not None:
            given = _named(mapping(saved))
            taken = {}
            for name, zero in self._families.of_base(self._families.zeros()):
                if name not in given and self._families.is_added(name):
                    continue  # it was not there at the checkpoint
                value = np.array(given[name], dtype=np.float64)
                if value.shape != zero.shape and self._families.is_added(name):
                    continue  # it has other sums now: its base is gone, and no reason to begin that of the others anew
                if value.shape != zero.shape:
                    raise ValueError(f"{name} has shape {value.shape}, not {zero.shape}")
                taken[name] = value
        sampled, late = frozenset[str](), Baseline()
        if "base_sampled" in shared:
            told = mapping(shared["base_sampled"])
            sampled, late = frozenset(map(str, told["sums"])), Baseline.from_json(mapping(told["others"]))
        self.baseline, self.sums, self._sampled, self._late = counts, taken, sampled, late


def _named(saved: Mapping[str, Any]) -> Mapping[str, Any]:
    """Sums by their names of today."""
    if not _VERSION_2.keys() <= saved.keys():
        return saved
    found: dict[str, Any] = {}
    for old, names in _VERSION_2.items():
        values = np.array(saved[old], dtype=np.float64)
        found |= {names[0]: values} if len(names) == 1 and values.size > 1 else dict(zip(names, values, strict=True))
    return found


def _of_version_1(vector: Floats, modes: tuple[str, ...]) -> dict[str, Floats]:
    """What is read of the one vector that version 1 kept all sums in."""
    count, openers = len(modes), 4_096
    opened = 2 + 5 * count + 2 + 7 + 8 * 4 + 10 * 4
    lengths, advantages = 212, 161
    entropy = opened + openers + 1 + 12 + 2 + lengths + 2 + 2 + 2 + 20 + advantages
    return {
        "mode_count": vector[2 : 2 + count],
        "openers": vector[opened : opened + openers],
        "opener_tokens": vector[opened + openers : opened + openers + 1],
        "entropy": vector[entropy : entropy + 2],
    }
