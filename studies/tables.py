"""What the pages of the studies share: intervals over seeds, tables, and with what the runs were made."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlmon.report.markup import table
from rlmon.statistics import t_quantile


@dataclass(frozen=True, kw_only=True, slots=True)
class Interval:
    """Mean of n values (of differences: paired) and half the width of its 95 % interval; ``None`` for one value."""

    mean: float
    half: float | None
    n: int

    def __str__(self) -> str:
        return f"{self.mean:.3f}" if self.half is None else f"{self.mean:.3f} ± {self.half:.3f}"

    @property
    def signed(self) -> str:
        return f"{self.mean:+.3f}" if self.half is None else f"{self.mean:+.3f} ± {self.half:.3f}"


def interval(values: Sequence[float]) -> Interval:
    """Student's t, 95 %. Raises ``ValueError`` for no values."""
    if not values:
        raise ValueError("An interval needs at least one value.")
    n = len(values)
    half = None if n == 1 else t_quantile(0.975, n - 1) * statistics.stdev(values) / math.sqrt(n)
    return Interval(mean=statistics.fmean(values), half=half, n=n)


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A table, the first row its heading."""
    return "\n".join(table(rows[0], rows[1:])[:-1])


def mean_of(values: Sequence[float]) -> float | None:
    """``None`` for no values."""
    return statistics.fmean(values) if values else None


def made_with(results: Sequence[Mapping[str, Any]]) -> str:
    """The libraries and the machine."""
    packages = results[0]["packages"]
    versions = ", ".join(f"{name} {version}" for name, version in packages.items() if version is not None)
    return f"## Made with\n\n{versions}; {results[0]['machine']['system']}, one thread a run."


def cpu_seconds(results: Sequence[Mapping[str, Any]]) -> float:
    """Of training and of evaluating."""
    return float(sum(result["train_cpu_seconds"] + result["evaluate_cpu_seconds"] for result in results))


def compact(value: Any) -> Any:
    """The same with floats of six digits: the files are read by people and kept in a repository."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, Mapping):
        return {name: compact(each) for name, each in value.items() if name not in ("samples", "machine", "packages")}
    return [compact(each) for each in value] if isinstance(value, list | tuple) else value
