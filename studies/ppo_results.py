"""What the runs of the study of PPO came to, as numbers."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from studies.ppo_arms import ARMS, Plan, Run
from studies.tables import Interval, interval

Results = dict[str, dict[str, Any]]
"""Name of a run to its result."""


def chosen_rate(accuracies: Mapping[float, Sequence[float]]) -> float:
    """The learning rate with the highest mean of ``accuracies`` (learning rate to one per seed); of equals the
    smallest. Raises ``ValueError`` for none."""
    return min(accuracies, key=lambda rate: (-statistics.fmean(accuracies[rate]), rate))


def difference(arm: Mapping[int, float], reference: Mapping[int, float]) -> Interval:
    """``arm`` less ``reference`` (seed to value), paired over the seeds that both have: mean and 95 % interval."""
    return interval([arm[seed] - reference[seed] for seed in sorted(arm.keys() & reference.keys())])


def lower_end(found: Interval) -> float | None:
    """Of the two-sided 95 % interval; ``None`` for a single seed."""
    return None if found.half is None else found.mean - found.half


def tuned(runs: Sequence[Run], results: Mapping[str, Any]) -> dict[str, dict[float, list[float]]]:
    """Arm to learning rate to final held-out accuracies, one per seed that is done."""
    found: dict[str, dict[float, list[float]]] = {}
    for run in runs:
        if run.name in results:
            rates = found.setdefault(run.arm.name, {})
            rates.setdefault(run.task.learning_rate, []).append(results[run.name]["evaluation"]["accuracy"])
    return found


def by_seed(results: Mapping[str, Any], arm: str, name: str = "accuracy") -> dict[int, float]:
    """Seed to a number of the final evaluation of ``arm``."""
    return {r["seed"]: float(r["evaluation"][name]) for r in results.values() if r["arm"] == arm}


def along_the_way(result: Mapping[str, Any]) -> float:
    """Mean held-out accuracy over the points of the curve after the start: higher is faster."""
    return statistics.fmean(point["accuracy"] for point in result["curve"] if point["round"] > 0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Study:
    """What was run and what came of it."""

    plan: Plan
    rates: Mapping[str, float]
    tuned: Results
    varied: Results
    compared: Results
    base: Mapping[str, Any]

    def of(self, arm: str) -> list[dict[str, Any]]:
        return [result for result in self.compared.values() if result["arm"] == arm]

    @property
    def arms(self) -> list[str]:
        return [arm for arm in ARMS if self.of(arm)]

    @property
    def tuning(self) -> dict[str, dict[float, list[float]]]:
        return tuned(self.plan.tuning(), self.tuned)

    @property
    def claim(self) -> Interval:
        """Held-out accuracy of PPO less GRPO, over seeds."""
        return difference(by_seed(self.compared, "ppo"), by_seed(self.compared, "grpo"))
