"""The sums of the baseline that findings and metrics are compared with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlmon.baseline import Baseline
from rlmon.metrics.layout import SumsLayout
from rlmon.restored import mapping

Vector = NDArray[np.float64]

ILLUSTRATED = ("mode_count", "openers", "opener_tokens")
"""Sums that a finding is illustrated by."""
OF_BASE = (*ILLUSTRATED, "entropy")
"""Sums that are read of the baseline too."""


class BaseSums:
    """What the baseline of the run was, as sums over all ranks; round 0 *is* the base."""

    def __init__(self) -> None:
        self.baseline = Baseline()
        self.sums: dict[str, Vector] | None = None
        """``OF_BASE`` by name; ``None`` before the first completions."""

    def grow(self, sums: Mapping[str, Vector], *, prompts: float, completions: float) -> None:
        """Add a step while the baseline is still growing."""
        if self.baseline.complete or not completions:
            return
        before = self.sums
        self.sums = {name: sums[name] + (0.0 if before is None else before[name]) for name in OF_BASE}
        self.baseline = self.baseline.with_round(prompts=prompts, completions=completions)

    def state(self) -> dict[str, Any]:
        """For a checkpoint, as JSON types."""
        return {
            "baseline": self.baseline.to_json(),
            "base_sums": None if self.sums is None else {name: value.tolist() for name, value in self.sums.items()},
        }

    def load(self, shared: Mapping[str, Any], layout: SumsLayout) -> None:
        """Go on from what ``state`` gave. Raises where it is something else, and has taken up nothing then."""
        if "baseline" in shared:
            counts, sums = Baseline.from_json(mapping(shared["baseline"])), shared["base_sums"]
        else:  # version 1
            prompts, completions, rounds = (float(count) for count in shared["base_counts"])
            counts, sums = Baseline(prompts=prompts, completions=completions, rounds=rounds), shared["base_sums"]
            if sums is not None:  # sums that came later stand at the end of the layout
                kept = np.array(sums, dtype=np.float64)
                sums = layout.unflatten(np.pad(kept, (0, max(0, layout.size - kept.size))))
        taken: dict[str, Vector] | None = None
        if sums is not None:
            taken = {name: np.array(mapping(sums)[name], dtype=np.float64) for name in OF_BASE}
            for name, value in taken.items():
                if value.shape != layout.keys[name]:
                    raise ValueError(f"{name} has shape {value.shape}, not {layout.keys[name]}")
        self.baseline, self.sums = counts, taken
