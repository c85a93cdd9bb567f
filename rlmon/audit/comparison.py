"""Two runs, or two groups of seeds, side by side: what differs in their settings, where they part, and how much.

Pure functions on finished audits. The runs of a group are seeds of one arm. Steps are matched, never interpolated: only
steps that every run has are compared.

*Differences at the end* are means over the last tenth of the common steps. With one run a side their interval comes
from the steps, with the autocorrelation of the gap taken into account: it covers the noise of sampling, not of seeds.
With two runs or more on both sides it is Welch's, over runs.

*The first sustained departure* is the first step from which the 5-step mean of the gap B - A stays beyond its early
band, on one side, until the end. The band is the mean of the first steps, plus or minus ``BAND`` standard errors with
the gap's long-run spread. On pairs of runs with the same AR(1) law (2,000 pairs, 200 steps, by
``benchmarks/departure_alarms.py``) it is found in .2 % or fewer, and p falls below .05 in 3 % or fewer, whatever the
correlation between 0 and .9. Short and slow series mislead: at a correlation of .9 it is 6 % and 17 % with 60
steps, 7 % and 36 % with 30.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rlmon.audit.contrast import LAST_SHARE, LAST_STEPS
from rlmon.audit.features import Floats, Ints
from rlmon.audit.result import Audit
from rlmon.audit.settings import SettingDifference, differing_settings
from rlmon.errors import ConfigError
from rlmon.records import WORST_FIRST
from rlmon.series import LEVEL, independent
from rlmon.statistics import js_distance, t_quantile, t_two_sided_p

COMPARISON_VERSION = 1
SMOOTHING_STEPS = 5
EARLY_SHARE = 0.1
EARLY_STEPS = 8
BAND = 2.5
LEAST_STEPS = 20
"""A departure is looked for where at least this many steps are common."""
ENOUGH_STEPS = 90
"""With fewer the band is wider in proportion: a short series says too little about its own slowness."""
LEAST_STAY = 0.1
"""It must last for this share of the common steps."""
FIRST_METRICS = (
    "rlmon/collision/mode_across_effective",
    "rlmon/format/effective",
    "rlmon/format/top_share",
    "rlmon/health/reward_mean",
    "rlmon/entropy/mean",
    "rlmon/kl/mean",
    "rlmon/collision/template_across_effective",
    "rlmon/text/effective_templates_within_correct",
    "rlmon/text/effective_answers_within",
    "rlmon/group/silent",
    "rlmon/health/length_mean",
    "rlmon/health/truncated",
)
"""Shown first, in this order, and tested as a family of their own: what one compares runs for should not pay for fifty
other curves."""
_LEFT_OUT = ("rlmon/format/share/", "rlmon/format/reward/", "rlmon/entropy/mode/", "rlmon/kl/mode/", "rlmon/moves/")
TOTAL_REWARD = "rlmon/health/reward_mean"
OF_FUNCTIONS = "rewards/"
_IN_USE = ("rlmon/collision/mode_across_effective", "rlmon/format/effective")
"""Formats in use: what the audit tells, or the nearest to it."""
_FAMILIES: Sequence[tuple[str, str]] = (
    (r"rlmon/(format|collision/mode)", "formats"),
    (r"rlmon/(collision/template|text/effective_templates|collision/opening)", "templates"),
    (r"rlmon/(collision/answer|text/(effective_answers|answer))", "answers"),
    (r"rlmon/(collision/(similarity|moves)|moves/|text/(similarity|near_dup))|sentence openings|exact dup", "likeness"),
    (r"rlmon/(text|wording)/", "wording"),
    (r"rlmon/entropy/", "entropy"),
    (r"rlmon/kl/", "distance"),
    (r"rlmon/health/length|completion characters", "length"),
    (r"rlmon/group/", "groups"),
    (r"rlmon/health/reward|reward", "reward"),
)
"""Metrics that say nearly the same, by the beginning of their names."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MetricDifference:
    """One metric on both sides."""

    name: str
    unit: str
    base_a: float | None
    base_b: float | None
    last_a: float
    last_b: float
    difference: float
    """``last_b - last_a``."""
    low: float | None
    """95 % interval of the difference; ``None`` where there are too few steps for one."""
    high: float | None
    p: float | None
    """Two-sided, before Holm's correction; ``None`` without an interval, and where nothing varies or differs."""
    distinct: bool
    """Different at .05 after Holm's correction over the metrics of its family (``FIRST_METRICS``, or the others)."""
    effect: float | None
    """The difference in units of one step's noise at the base; ``None`` where that is zero or not known."""
    departure_step: int | None
    """First step of the first sustained departure."""
    common_steps: int
    method: str
    """``steps`` (one run a side) or ``runs`` (Welch over runs)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModeDifference:
    """One format's share at the base and at the end of both sides."""

    mode: str
    base: float | None
    last_a: float
    last_b: float


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckDifference:
    """One check on both sides."""

    id: str
    title: str
    a: Sequence[str]
    """A status per run."""
    b: Sequence[str]
    onsets_a: Sequence[int | None]
    onsets_b: Sequence[int | None]

    @property
    def differs(self) -> bool:
        """Whether the sides do not have the same statuses."""
        return sorted(self.a) != sorted(self.b)


@dataclass(frozen=True, kw_only=True, slots=True)
class SideFacts:
    """One side: its runs and how far they went from the base."""

    name: str
    runs: Sequence[str]
    readers: Sequence[str]
    verdicts: Sequence[str]
    steps: Sequence[int]
    completions: Sequence[int]
    kept_formats: float | None
    """Formats in use at the end over those of the base, mean over runs."""
    format_distance: float | None
    """Jensen-Shannon distance of the format shares at the end to those of the base, mean over runs, in [0, 1]."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Curves:
    """What a page draws: one line per run."""

    steps: Mapping[str, Sequence[int]]
    """By run label (``A``, ``A 2``, ``B``, ...)."""
    series: Mapping[str, Mapping[str, Sequence[float | None]]]
    """By metric, then by run label."""
    mode_shares: Mapping[str, Mapping[str, Sequence[float | None]]]
    """By run label, then by mode."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """Everything that differs between A and B."""

    headline: str
    same: bool
    """Every common value of every common metric is equal."""
    a: SideFacts
    b: SideFacts
    base: str
    """What the distances are measured from, in words."""
    settings: Sequence[SettingDifference]
    other_settings: Sequence[SettingDifference]
    """Seeds, folders and names: differing, but no reason for a difference."""
    settings_note: str
    metrics: Sequence[MetricDifference]
    modes: Sequence[ModeDifference]
    checks: Sequence[CheckDifference]
    correction: str
    notes: Sequence[str]
    curves: Curves = field(repr=False)

    def to_json(self) -> dict[str, Any]:
        """The object that ``--format json`` prints: everything but the curves."""
        values = dataclasses.asdict(self)
        del values["curves"]
        return {"schema_version": COMPARISON_VERSION, "tool": "rlmon", **values}


def compare(
    a: Sequence[Audit], b: Sequence[Audit], base: Audit | None = None, names: tuple[str, str] = ("A", "B")
) -> Comparison:
    """What differs between the runs of A and the runs of B.

    ``base``: a run whose base both sides are measured from; by default each run's own base. Raises ``ConfigError``
    where a side has no run.
    """
    if not a or not b:
        raise ConfigError("rlmon compare needs at least one run on each side: rlmon compare A B.")
    metrics = _holm([found for name in _metric_names(a, b) if (found := _metric(name, a, b)) is not None])
    settings, other, note = differing_settings(a, b)
    sides = tuple(_side(name, runs, base) for name, runs in zip(names, (a, b), strict=True))
    same = bool(metrics) and all(_equal(name, a, b) for name in _metric_names(a, b))
    steps = _common_steps([*a, *b])
    notes = []
    if not metrics:
        notes.append("No metric was measured on both sides at the same steps.")
    longest = max(len(run.steps) for run in (*a, *b))
    if steps.size < longest:
        notes.append(f"{steps.size} steps are common to all runs; the longest run has {longest}.")
    if steps.size < ENOUGH_STEPS and (len(a) == 1 or len(b) == 1):
        notes.append(f"{steps.size} steps are few: where a metric moves slowly its interval is too narrow.")
    defined = {str(run.run.success.get("says")) for run in (*a, *b)}
    if len(defined) > 1:
        notes.append(f"A success is not the same in all runs: {'; '.join(sorted(defined))}. Give them one: --success.")
    if len(a) == 1 or len(b) == 1:
        notes.append(
            "With one run on a side the intervals cover the noise of sampling, not that of seeds: give several seeds "
            "(A1,A2 B1,B2) to know whether a difference would come back."
        )
    first = sum(matters(row.name) for row in metrics)
    return Comparison(
        headline=_headline(names, same, metrics, (a, b)),
        same=same,
        a=sides[0],
        b=sides[1],
        base="each run's own first steps" if base is None else f"the first steps of {base.run.source}",
        settings=settings,
        other_settings=other,
        settings_note=note,
        metrics=metrics,
        modes=_modes(a, b, base),
        checks=_checks(a, b),
        correction=(
            f"Holm's correction in two families, {first} metrics that matter most and {len(metrics) - first} others: "
            "in each at most one chance in 20 that any of those called distinct is not, as far as steps (or runs) "
            "behave as the intervals assume. Intervals themselves are 95 % each, uncorrected."
        ),
        notes=notes,
        curves=_curves(a, b, names),
    )


# --- metrics ------------------------------------------------------------------------------------------------------


def _metric_names(a: Sequence[Audit], b: Sequence[Audit]) -> list[str]:
    """Metrics that every run has, the important ones first."""
    shared = set.intersection(*(set(run.series) for run in (*a, *b)))
    kept = [name for name in shared if not name.startswith(_LEFT_OUT)]
    if any(alone(a, b)):
        kept = [name for name in kept if name != TOTAL_REWARD]  # a sum of other things on either side
    rank: dict[str, float] = {name: place for place, name in enumerate(FIRST_METRICS)}
    of_functions = rank[TOTAL_REWARD] + 0.5
    rank |= {name: of_functions for name in kept if matters(name)} | rank
    return sorted(kept, key=lambda name: (rank.get(name, len(rank)), name))


def matters(name: str) -> bool:
    """Whether a metric is one of those that one compares runs for: ``FIRST_METRICS`` and each reward function."""
    return name in FIRST_METRICS or (name.startswith(OF_FUNCTIONS) and not name.endswith("/std"))


def family(name: str) -> str:
    """What a metric is about: of one family, metrics say nearly the same. A reward function is a family of its own."""
    if name.startswith(OF_FUNCTIONS):
        return name
    return next((found for start, found in _FAMILIES if re.match(start, name)), name)


def _functions(runs: Sequence[Audit]) -> list[set[str]]:
    """The reward functions of each run, as far as they were logged."""
    return [
        {
            name.removeprefix(OF_FUNCTIONS)
            for name, values in run.series.items()
            if name.startswith(OF_FUNCTIONS) and matters(name) and any(value is not None for value in values)
        }
        for run in runs
    ]


def alone(a: Sequence[Audit], b: Sequence[Audit]) -> tuple[list[str], list[str]]:
    """Reward functions that only runs of A, and that only runs of B have; none where a run has logged none."""
    known = _functions(a), _functions(b)
    if not all(functions for side in known for functions in side):
        return [], []
    left, right = set.union(*known[0]), set.union(*known[1])
    return sorted(left - right), sorted(right - left)


def _common_steps(runs: Sequence[Audit]) -> Ints:
    common = set.intersection(*(set(run.steps) for run in runs))
    return np.array(sorted(common), dtype=np.int64)


def _values(name: str, runs: Sequence[Audit], steps: Ints) -> Floats:
    """[R, S] values of a metric at some steps, NaN where it was not measured; the last of a repeated step counts."""
    rows = []
    for run in runs:
        known = {step: value for step, value in zip(run.steps, run.series[name], strict=True) if value is not None}
        rows.append([known.get(int(step), math.nan) for step in steps])
    return np.array(rows, dtype=np.float64).reshape(len(runs), steps.size)


def _equal(name: str, a: Sequence[Audit], b: Sequence[Audit]) -> bool:
    steps = _common_steps([*a, *b])
    left, right = _values(name, a, steps), _values(name, b, steps)
    return left.shape == right.shape and bool(np.array_equal(left, right, equal_nan=True))


def _metric(name: str, a: Sequence[Audit], b: Sequence[Audit]) -> MetricDifference | None:
    steps = _common_steps([*a, *b])
    if not steps.size:
        return None
    left, right = _values(name, a, steps), _values(name, b, steps)
    known = np.isfinite(left).all(axis=0) & np.isfinite(right).all(axis=0)
    steps, left, right = steps[known], left[:, known], right[:, known]
    count = steps.size
    if count < 2:
        return None
    last = min(max(LAST_STEPS, round(LAST_SHARE * count)), count)
    ends_a, ends_b = left[:, -last:].mean(axis=1), right[:, -last:].mean(axis=1)
    difference = float(ends_b.mean() - ends_a.mean())
    gap = right.mean(axis=0) - left.mean(axis=0)
    several = len(a) >= 2 and len(b) >= 2
    error, degrees = _welch(ends_a, ends_b) if several else _of_steps(gap, last)
    reach = None if error is None else t_quantile(0.5 + LEVEL / 2.0, degrees) * error
    p = None if difference == 0.0 and error == 0.0 else _p(difference, error, degrees)
    early = _early(count)
    noise = float(np.sqrt(np.mean([_noise(values[:early]) ** 2 for values in (*left, *right)])))
    any_run = a[0].metrics.get(name)
    return MetricDifference(
        name=name,
        unit="" if any_run is None else any_run.unit,
        base_a=float(left[:, :early].mean()),
        base_b=float(right[:, :early].mean()),
        last_a=float(ends_a.mean()),
        last_b=float(ends_b.mean()),
        difference=difference,
        low=None if reach is None else difference - reach,
        high=None if reach is None else difference + reach,
        p=p,
        distinct=False,
        effect=difference / noise if noise > 0 else None,
        # The mean gap of few runs drifts with its seeds: a departure counts where the runs differ in the end.
        departure_step=departure(steps, gap) if not several or (p is not None and p < 1.0 - LEVEL) else None,
        common_steps=int(count),
        method="runs" if several else "steps",
    )


def _early(count: int) -> int:
    return min(count, max(EARLY_STEPS, round(EARLY_SHARE * count)))


def _noise(values: Floats) -> float:
    """Spread of one step around its neighbours, from differences of consecutive steps: a trend does not add to it."""
    return float(np.std(np.diff(values)) / math.sqrt(2.0)) if values.size >= 3 else 0.0


def _welch(a: Floats, b: Floats) -> tuple[float | None, int]:
    """Standard error of the difference of two means over runs, and degrees of freedom (Welch and Satterthwaite)."""
    parts = [values.var(ddof=1) / values.size for values in (a, b)]
    total = float(sum(parts))
    if total == 0.0:
        return 0.0, a.size + b.size - 2
    degrees = total**2 / sum(part**2 / (values.size - 1) for part, values in zip(parts, (a, b), strict=True))
    return math.sqrt(total), max(1, int(degrees))


def _of_steps(gap: Floats, last: int) -> tuple[float | None, int]:
    """Standard error of the mean of the last steps of a gap, with its autocorrelation, and degrees of freedom."""
    if gap.size < LAST_STEPS:
        return None, 1
    spread, correlation = _long_run(gap)
    effective = max(2.0, independent(last, correlation))
    return spread / math.sqrt(effective), max(3, int(effective) - 1)


def _long_run(gap: Floats) -> tuple[float, float]:
    """Spread and lag-one correlation (0 to .95) of a gap around its slow course (a running median of a fifth of it).

    A median keeps the edge of a jump: what a mean smears of it would count as noise, and hide the jump itself.
    """
    width = max(5, gap.size // 5) | 1
    padded = np.pad(gap, width // 2, mode="reflect") if gap.size > width // 2 else np.pad(gap, width // 2, mode="edge")
    # At about 400 places, so that a long run takes no longer than the sum of its steps.
    every = max(1, gap.size // 400)
    windows = np.lib.stride_tricks.sliding_window_view(padded, width)[: gap.size : every]
    course = np.interp(np.arange(gap.size), np.arange(0, gap.size, every), np.median(windows, axis=1))
    rest = gap - course
    spread = float(rest.std())
    if spread == 0.0:
        return 0.0, 0.0
    correlation = float((rest[1:] * rest[:-1]).mean() / rest.var())
    # Taking the course off makes neighbours look less alike than they are: by about this much.
    corrected = correlation + (1.0 + 3.0 * max(0.0, correlation)) / width
    inflation = 1.0 / math.sqrt(max(0.2, 1.0 - 1.0 / width * (1 + corrected) / max(0.05, 1 - corrected)))
    return spread * inflation, min(0.95, max(0.0, corrected))


def _p(difference: float, error: float | None, degrees: int) -> float | None:
    """Two-sided p of a t statistic."""
    if error is None:
        return None
    if error == 0.0:
        return 1.0 if difference == 0.0 else 0.0
    return t_two_sided_p(difference / error, degrees)


def _holm(found: Sequence[MetricDifference]) -> list[MetricDifference]:
    """The same metrics with ``distinct`` set by Holm's step-down procedure at .05, in each of the two families."""
    distinct = set()
    for important in (True, False):
        tested = sorted(
            (row.p, at) for at, row in enumerate(found) if row.p is not None and matters(row.name) is important
        )
        for rank, (p, at) in enumerate(tested):
            if p > (1.0 - LEVEL) / (len(tested) - rank):
                break
            distinct.add(at)
    return [dataclasses.replace(row, distinct=at in distinct) for at, row in enumerate(found)]


def departure(steps: Ints, gap: Floats) -> int | None:
    """First step from which the 5-step mean of the gap stays beyond its early band, on one side, until the end.

    ``None`` where it does not, or where fewer than 20 steps are common.
    """
    count = gap.size
    if count < LEAST_STEPS:
        return None
    early = _early(count)
    spread, correlation = _long_run(gap)
    long_run = spread * math.sqrt((1.0 + correlation) / (1.0 - correlation))
    middle = float(gap[:early].mean())
    band = BAND * max(1.0, ENOUGH_STEPS / count) * long_run * math.sqrt(1.0 / SMOOTHING_STEPS + 1.0 / early)
    sums = np.concatenate([[0.0], np.cumsum(gap - middle)])
    ends = np.arange(1, count + 1)
    begins = np.maximum(0, ends - SMOOTHING_STEPS)
    smooth = (sums[ends] - sums[begins]) / (ends - begins)
    # Equal runs have a gap of zero and a band of zero: rounding is no departure.
    band = max(band, 1e-12 * max(1.0, float(np.abs(gap).max())))
    side = np.where(smooth > band, 1, np.where(smooth < -band, -1, 0))
    if side[-1] == 0:
        return None
    other = np.flatnonzero(side != side[-1])
    start = int(other[-1]) + 1 if other.size else 0
    return int(steps[start]) if count - start >= LEAST_STAY * count else None


# --- settings, modes, checks --------------------------------------------------------------------------------------


def _base_shares(run: Audit, base: Audit | None) -> dict[str, float]:
    return {story.mode: story.base_share for story in (run if base is None else base).modes}


def _last_shares(run: Audit) -> dict[str, float]:
    return {story.mode: story.last_share for story in run.modes}


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _side(name: str, runs: Sequence[Audit], base: Audit | None) -> SideFacts:
    kept: list[float | None] = []
    distances: list[float | None] = []
    for run in runs:
        for metric in _IN_USE:
            reference, own = (base or run).metrics.get(metric), run.metrics.get(metric)
            if reference is not None and own is not None and reference.base and own.last is not None:
                kept.append(own.last / reference.base)
                break
        first, last = _base_shares(run, base), _last_shares(run)
        modes = sorted({*first, *last})
        if modes:
            distances.append(
                js_distance(np.array([last.get(m, 0.0) for m in modes]), np.array([first.get(m, 0.0) for m in modes]))
            )
    return SideFacts(
        name=name,
        runs=[run.run.source for run in runs],
        readers=[run.run.reader for run in runs],
        verdicts=[run.verdict for run in runs],
        steps=[run.run.steps for run in runs],
        completions=[run.run.completions for run in runs],
        kept_formats=_mean(kept),
        format_distance=_mean(distances),
    )


def _modes(a: Sequence[Audit], b: Sequence[Audit], base: Audit | None) -> list[ModeDifference]:
    """Formats by how differently the sides ended, largest difference first."""
    names = sorted({story.mode for run in (*a, *b) for story in run.modes})
    rows = []
    for mode in names:
        last = [_mean([_last_shares(run).get(mode, 0.0) for run in side if run.modes]) for side in (a, b)]
        if last[0] is None or last[1] is None:
            continue
        first = _mean([_base_shares(run, base).get(mode, 0.0) for run in (*a, *b) if run.modes])
        rows.append(ModeDifference(mode=mode, base=first, last_a=last[0], last_b=last[1]))
    return sorted(rows, key=lambda row: (-abs(row.last_b - row.last_a), row.mode))


def _checks(a: Sequence[Audit], b: Sequence[Audit]) -> list[CheckDifference]:
    """Checks that some run has, those that differ first."""
    titles = {check.id: check.title for run in (*a, *b) for check in run.checks}
    rows = []
    for check_id, title in titles.items():
        sides = [[next((c for c in run.checks if c.id == check_id), None) for run in side] for side in (a, b)]
        rows.append(
            CheckDifference(
                id=check_id,
                title=title,
                a=["absent" if c is None else c.status for c in sides[0]],
                b=["absent" if c is None else c.status for c in sides[1]],
                onsets_a=[None if c is None else c.first_step for c in sides[0]],
                onsets_b=[None if c is None else c.first_step for c in sides[1]],
            )
        )
    order: tuple[str, ...] = (*WORST_FIRST, "absent")
    return sorted(rows, key=lambda row: (not row.differs, min(order.index(s) for s in (*row.a, *row.b)), row.id))


def _curves(a: Sequence[Audit], b: Sequence[Audit], names: tuple[str, str]) -> Curves:
    labelled = {
        name if at == 0 else f"{name} {at + 1}": run
        for name, runs in zip(names, (a, b), strict=True)
        for at, run in enumerate(runs)
    }
    metrics = _metric_names(a, b)
    return Curves(
        steps={label: list(run.steps) for label, run in labelled.items()},
        series={name: {label: list(run.series[name]) for label, run in labelled.items()} for name in metrics},
        mode_shares={label: dict(run.mode_shares) for label, run in labelled.items()},
    )


def _headline(
    names: tuple[str, str],
    same: bool,
    metrics: Sequence[MetricDifference],
    runs: tuple[Sequence[Audit], Sequence[Audit]],
) -> str:
    left, right = names
    if same:
        return (
            f"No difference: every metric that both sides have is equal at every common step ({len(metrics)} metrics)."
        )
    by_name = {row.name: row for row in metrics}
    formats = next((by_name[name] for name in _IN_USE if name in by_name), None)
    reward = by_name.get(TOTAL_REWARD)
    parts = []
    if formats is not None and formats.distinct:
        wide, narrow = (right, left) if formats.difference > 0 else (left, right)
        most, least = max(formats.last_a, formats.last_b), min(formats.last_a, formats.last_b)
        base = _mean([formats.base_a, formats.base_b])
        part = f"they part at step {formats.departure_step}" if formats.departure_step is not None else None
        parts.append(f"{wide} ends with {most:.2f} of {base:.2f} formats in use where {narrow} has {least:.2f}")
        parts += [part] if part else []
    elif formats is not None:
        parts.append(f"Formats in use cannot be told apart ({formats.last_a:.2f} and {formats.last_b:.2f})")
    parts += _rewards(names, by_name, runs)
    if reward is not None:
        word = "" if reward.distinct else ", which may be noise"
        parts.append(f"{right}'s reward ends {reward.difference:+.3f} from {left}'s{word}")
    if not parts:
        distinct = [row.name for row in metrics if row.distinct]
        parts.append(
            f"{len(distinct)} of {len(metrics)} metrics differ: {', '.join(distinct[:3])}"
            if distinct
            else f"None of {len(metrics)} common metrics differs beyond its noise"
        )
    # A side's name is left as it is, also where the sentence begins with it.
    return "; ".join(parts) + "."


def _rewards(
    names: tuple[str, str],
    by_name: Mapping[str, MetricDifference],
    runs: tuple[Sequence[Audit], Sequence[Audit]],
) -> list[str]:
    """Rewards that are sums of different functions are no measure of a difference: those that both have are, and the
    others are named. Nothing where both sides have the same."""
    extra = alone(*runs)
    said = []
    for name, other, side, functions in zip(names, reversed(names), runs, extra, strict=True):
        ends = [_mean([_end(run, f"{OF_FUNCTIONS}{one}") for run in side]) for one in functions]
        told = [
            one if end is None else f"{one} ({end:.3g} at the end)" for one, end in zip(functions, ends, strict=True)
        ]
        if told:
            said.append(f"{name}'s reward has what {other}'s has not: {', '.join(told)}")
    if not said:
        return []
    both = [(key.removeprefix(OF_FUNCTIONS), row) for key, row in by_name.items() if key.startswith(OF_FUNCTIONS)]
    for one, row in both:
        if not matters(row.name):
            continue
        word = "lower" if row.difference < 0 else "higher"
        ends_in = f"ends {word} in {names[1]}" if row.distinct else "cannot be told apart"
        said.append(f"{one}, which both have, {ends_in} ({row.last_a:.3g} and {row.last_b:.3g})")
    return said


def _end(run: Audit, name: str) -> float | None:
    summary = run.metrics.get(name)
    return None if summary is None else summary.last
