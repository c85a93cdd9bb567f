"""Two runs, or two groups of seeds, side by side: what differs in their settings, where they part, and how much.

Pure functions on finished audits. The runs of a group are seeds of one arm. Steps are matched, never interpolated: only
steps that every run has are compared (``rlmon.audit.parting``).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

from rlmon.audit.compared import CheckDifference, Comparison, Curves, MetricDifference, ModeDifference, SideFacts
from rlmon.audit.parting import (
    ENOUGH_STEPS,
    FIRST_METRICS,
    OF_FUNCTIONS,
    TOTAL_REWARD,
    common_steps,
    equal,
    holm,
    matters,
    metric_difference,
)
from rlmon.audit.result import Audit
from rlmon.audit.settings import differing_settings
from rlmon.errors import ConfigError
from rlmon.records import WORST_FIRST
from rlmon.statistics import js_distance

_LEFT_OUT = ("rlmon/format/share/", "rlmon/format/reward/", "rlmon/entropy/mode/", "rlmon/kl/mode/", "rlmon/moves/")
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


def compare(
    a: Sequence[Audit], b: Sequence[Audit], base: Audit | None = None, names: tuple[str, str] = ("A", "B")
) -> Comparison:
    """What differs between the runs of A and the runs of B.

    ``base``: a run whose base both sides are measured from; by default each run's own base. Raises ``ConfigError``
    where a side has no run.
    """
    if not a or not b:
        raise ConfigError("rlmon compare needs at least one run on each side: rlmon compare A B.")
    metrics = holm([found for name in _metric_names(a, b) if (found := metric_difference(name, a, b)) is not None])
    settings, other, note = differing_settings(a, b)
    sides = tuple(_side(name, runs, base) for name, runs in zip(names, (a, b), strict=True))
    same = bool(metrics) and all(equal(name, a, b) for name in _metric_names(a, b))
    steps = common_steps([*a, *b])
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
    sampled = [run.run.baseline.get("kind") == "base_sample" for run in (*a, *b)]
    if base is None and any(sampled) and not all(sampled):
        notes.append(
            "Only some of these runs sampled their base: their shares of formats and their checks are measured from "
            "that, those of the others from their first steps, which may differ where the runs do not."
        )
    own = "each run's own first steps" + (", or the sample of its base" if any(sampled) else "")
    first = sum(matters(row.name) for row in metrics)
    return Comparison(
        headline=_headline(names, same, metrics, (a, b)),
        same=same,
        a=sides[0],
        b=sides[1],
        base=own if base is None else f"the first steps of {base.run.source}",
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


def family(name: str) -> str:
    """What a metric is about: of one family, metrics say nearly the same. A reward function is a family of its own."""
    if name.startswith(OF_FUNCTIONS):
        return name
    return next((found for start, found in _FAMILIES if re.match(start, name)), name)


def _functions(runs: Sequence[Audit]) -> list[set[str]]:
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
            distance = float(js_distance([last.get(m, 0.0) for m in modes], [first.get(m, 0.0) for m in modes]))
            distances.append(None if math.isnan(distance) else distance)
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
        noise = "" if reward.distinct else ", which may be noise"
        word = "lower" if reward.difference < 0 else "higher"
        parts.append(f"{right}'s reward ends {abs(reward.difference):.3f} {word}{noise}")
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
