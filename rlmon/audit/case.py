"""Everything that checks look at: the run as it was counted, folded and laid out over time."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from rlmon.audit.contrast import Windows
from rlmon.audit.features import Bools, Floats, Ints
from rlmon.audit.partial import Partial
from rlmon.audit.run import OpenedRun
from rlmon.audit.timeline import Timeline
from rlmon.detectors import DetectorSpec
from rlmon.metrics.success import Success
from rlmon.records import Action, Fault, Finding, StepRecord


@dataclass(frozen=True, kw_only=True)
class Live:
    """What an rlmon log says of itself."""

    findings: Sequence[Finding]
    actions: Sequence[Action]
    faults: Sequence[Fault]
    shed_rows: int
    torn_lines: int
    judged_anew: str | None
    """Why the detectors could not go on as they did in the run, whose findings cannot be compared then."""
    differences: Sequence[str]
    """Where the replay does not give the live findings, or the rows not the live metrics; empty when all agree."""
    stored_text: str
    """``full | hash | off``."""
    base_completions: int = 0
    """Of the sample of the base that the run took before its first update; 0: none."""


@dataclass(frozen=True, kw_only=True)
class Fold:
    """What the detectors made of the run."""

    findings: Sequence[Finding]
    status: Sequence[Mapping[str, Any]]
    """``detectors.status`` after the last step."""
    alpha: float
    looks: int
    """Records that were folded."""
    records: Sequence[StepRecord]
    """Those of the first steps at least: what another run takes as its base."""
    live: Live | None
    """``None``: the run was not watched by rlmon."""
    own: Sequence[DetectorSpec] = ()
    """Detectors of the run's own, beside the built-in ones."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One run, ready to be judged."""

    run: OpenedRun
    modes: Sequence[str]
    counted: Partial
    line: Timeline
    windows: Windows | None
    fold: Fold
    scalars: Mapping[str, Sequence[tuple[int, float]]]
    success: Success
    """What counts as a success."""
    characters: bool
    """Lengths are in characters, since nothing says how many tokens there were."""
    baseline_kind: str
    base: Partial | None = None
    """Counts of the base's own rows, where another run was given, or the run had sampled its base."""
    base_line: Timeline | None = None
    """Metrics of that run at the steps of its base."""

    def with_base(self, other: Case, fold: Fold) -> Case:
        """The case with the first steps of ``other`` as its base."""
        assert other.windows is not None
        keep = np.isin(other.counted.groups["step"], other.windows.base) & ~other.counted.groups["eval"]
        base = dataclasses.replace(
            other.counted, groups={name: values[keep] for name, values in other.counted.groups.items()}
        )
        base.samples = [
            table.filter(pa.array(np.isin(table["step"].to_numpy(), other.windows.base)))
            for table in other.counted.samples
        ]
        first = np.isin(other.line.steps, other.windows.base)
        line = Timeline(
            steps=other.line.steps[first],
            series={name: values[first] for name, values in other.line.series.items()},
        )
        alike = self._numbered_alike(base)
        return dataclasses.replace(self, base=alike, base_line=line, fold=fold, baseline_kind="given")

    def with_sample(self, sampled: Partial) -> Case:
        """The case with a sample of the base, which the run took before its first update, as the base of what rows
        tell; that of curves is still the first steps."""
        return dataclasses.replace(self, base=self._numbered_alike(sampled), baseline_kind="base_sample")

    def _numbered_alike(self, base: Partial) -> Partial:
        """The counts of a base with its sources numbered as here, then those that it alone has."""
        names = list(dict.fromkeys([*self.counted.sources, *base.sources]))
        number = np.array([names.index(name) for name in base.sources], dtype=np.int64)
        groups = {**base.groups, "source": number[base.groups["source"]]}
        return dataclasses.replace(base, groups=groups, sources=names)

    @property
    def sources(self) -> Sequence[str]:
        """Names of the sources by their numbers in the groups of ``ends``."""
        return self.counted.sources if self.base is None else self.base.sources

    def base_mean(self, name: str) -> float | None:
        """Mean of a metric over the steps of the base; ``None`` where it was not measured there."""
        if self.base_line is not None:
            return _mean(self.base_line.series.get(name))
        return None if self.windows is None else self._mean_at(name, self.windows.base)

    def last_mean(self, name: str) -> float | None:
        """Mean of a metric over the last window; ``None`` where it was not measured there."""
        return None if self.windows is None else self._mean_at(name, self.windows.last)

    def _mean_at(self, name: str, steps: Ints) -> float | None:
        values = self.series(name)
        return None if values is None else _mean(values[np.isin(self.line.steps, steps)])

    def series(self, name: str) -> Floats | None:
        """The values of a metric [S], ``None`` where it was never measured."""
        return self.line.series.get(name)

    def ends(self) -> tuple[dict[str, NDArray[Any]], Bools, Bools]:
        """Groups with their columns [G], and which of them belong to the base and to the last window of the run."""
        groups = self.counted.groups
        if not groups or self.windows is None:
            return {}, np.zeros(0, dtype=bool), np.zeros(0, dtype=bool)
        train = ~groups["eval"]
        last = train & np.isin(groups["step"], self.windows.last)
        if self.base is None:
            return groups, train & np.isin(groups["step"], self.windows.base), last
        given = self.base.groups
        both = {name: np.concatenate([given[name], values]) for name, values in groups.items()}
        older = np.arange(len(both["step"])) < len(given["step"])
        return both, older, np.concatenate([np.zeros(len(given["step"]), dtype=bool), last])


def _mean(values: Floats | None) -> float | None:
    known = np.zeros(0) if values is None else values[np.isfinite(values)]
    return float(known.mean()) if known.size else None


def values_of(values: Floats) -> list[float | None]:
    """Values as a result has them: ``None`` where nothing was measured."""
    return [value if math.isfinite(value) else None for value in values.tolist()]
