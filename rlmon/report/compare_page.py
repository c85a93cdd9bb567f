"""A comparison of runs as one HTML file that needs nothing else."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape as escape_markup
from pathlib import Path
from typing import Any

import rlmon.report.compare_words as words
import rlmon.report.page as page
from rlmon.audit.compared import Comparison, MetricDifference, SideFacts
from rlmon.audit.settings import SettingDifference
from rlmon.metrics.catalog import lookup
from rlmon.printable import one_line
from rlmon.report.as_json import plain
from rlmon.report.charts import ITEM_CHARACTERS, ITEMS_SHOWN, bucketed, coded, metric_title, stacked

CHART_POINTS = 60_000
"""Points of the curves that come first, all together; of longer ones the extremes of each bucket are kept."""
FURTHER_POINTS = 60_000
LEAST_POINTS = 60
FURTHER_CHARTS = 100
RUNS_DRAWN = 8
"""Runs of a side that are drawn; the mean is over all of them."""
SHARE_POINTS = 2_400
"""Points of the stacked shares of all runs together."""


def html(result: Comparison) -> str:
    """The page as text, below 3 MB."""
    word = words.result_word(result)
    a, b = words.side_labels(result)
    body = page.fill(
        (page.HERE / "assets" / "compare.html").read_text(encoding="utf-8"),
        {"word": escape_markup(word), "headline": escape_markup(one_line(result.headline))},
    )
    return page.render(
        title=f"rlmon compare: {a} and {b}",
        body=body,
        data=plain({"word": word, **_data(result)}),
        styles=("vendor/uPlot.min.css", "assets/page.css", "assets/audit.css", "assets/compare.css"),
        scripts=("vendor/uPlot.iife.min.js", "assets/page.js", "assets/figure.js", "assets/compare.js"),
    )


def _data(result: Comparison) -> dict[str, Any]:
    steps = [step for run in result.curves.steps.values() for step in run]
    chosen, rest = words.chosen_metrics(result)
    charts, further = ([] if result.same else chosen), ([*chosen, *rest] if result.same else rest)
    return {
        "headline": result.headline[:2_000],
        "same": result.same,
        "base": result.base[:ITEM_CHARACTERS],
        "sides": [_side(letter, side) for letter, side in (("A", result.a), ("B", result.b))],
        "settings": _setting_rows(result.settings),
        "other_settings": _setting_rows(result.other_settings),
        "settings_note": words.settings_words(result),
        "steps": [min(steps), max(steps)] if steps else None,
        "charts": _charts(result, charts, CHART_POINTS),
        "further": _charts(result, further[:FURTHER_CHARTS], FURTHER_POINTS),
        "further_total": len(further),
        "runs_left_out": max(0, len(result.a.runs) - RUNS_DRAWN) + max(0, len(result.b.runs) - RUNS_DRAWN),
        "metrics": [_metric(row) for row in [*chosen, *rest][:ITEMS_SHOWN]],
        "metrics_first": len(chosen),
        "metrics_total": len(result.metrics),
        "modes": [[row.mode[:ITEM_CHARACTERS], row.base, row.last_a, row.last_b] for row in result.modes[:ITEMS_SHOWN]],
        "shares": _shares(result),
        "checks": [
            {
                "id": check.id[:ITEM_CHARACTERS],
                "title": check.title[:ITEM_CHARACTERS],
                "differs": check.differs,
                "sides": [words.status_words(check.a, check.onsets_a), words.status_words(check.b, check.onsets_b)],
            }
            for check in result.checks
        ],
        "correction": result.correction,
        "notes": [note[:ITEM_CHARACTERS] for note in result.notes],
    }


def _side(letter: str, side: SideFacts) -> dict[str, Any]:
    return {
        "letter": letter,
        "name": side.name,
        "runs": [run[:ITEM_CHARACTERS] for run in side.runs[:ITEMS_SHOWN]],
        "readers": sorted(set(side.readers)),
        "verdicts": words.verdict_words(side),
        "steps": words.each_of(side.steps),
        "completions": words.each_of(side.completions),
        "kept": side.kept_formats,
        "distance": side.format_distance,
    }


def _setting_rows(rows: Sequence[SettingDifference]) -> list[list[Any]]:
    return [[row.key, list(row.a), list(row.b)] for row in rows[:ITEMS_SHOWN]]


def _metric(row: MetricDifference) -> dict[str, Any]:
    """What a table holds. ``scaled`` is the effect with its interval, where there are both."""
    scaled = None
    if row.effect is not None and row.low is not None and row.high is not None and row.difference != 0.0:
        noise = row.difference / row.effect
        scaled = [row.effect, row.low / noise, row.high / noise]
    return {
        "name": row.name[:ITEM_CHARACTERS],
        "title": metric_title(row.name)[:ITEM_CHARACTERS],
        "unit": row.unit[:ITEM_CHARACTERS],
        "base": [row.base_a, row.base_b],
        "last": [row.last_a, row.last_b],
        "difference": words.difference_words(row),
        "scaled": scaled,
        "effect": row.effect,
        "p": row.p,
        "distinct": row.distinct,
        "departure": row.departure_step,
    }


def _drawn(result: Comparison) -> list[tuple[int, str]]:
    """Side (0, 1) and label of the runs that are drawn; the curves hold the runs of A first."""
    labels = list(result.curves.steps)
    sides = (labels[: len(result.a.runs)], labels[len(result.a.runs) :])
    return [(side, label) for side, of_side in enumerate(sides) for label in of_side[:RUNS_DRAWN]]


def _run_titles(result: Comparison) -> dict[str, str]:
    """The last part of each run's path by its label, or the label where that does not tell the runs apart."""
    labels = list(result.curves.steps)
    last = [Path(run).name for run in (*result.a.runs, *result.b.runs)]
    return dict(zip(labels, last if len(set(last)) == len(labels) and all(last) else labels, strict=True))


def _charts(result: Comparison, rows: Sequence[MetricDifference], budget: int) -> list[dict[str, Any]]:
    drawn = _drawn(result)
    points = max(LEAST_POINTS, budget // max(1, len(rows) * (len(drawn) + 2)))
    charts = []
    for row in rows:
        found = lookup(row.name)
        charts.append(
            {
                "name": row.name[:ITEM_CHARACTERS],
                "title": metric_title(row.name)[:ITEM_CHARACTERS],
                "unit": row.unit[:ITEM_CHARACTERS],
                "low": None if found is None else found.low,
                "high": None if found is None else found.high,
                "departure": row.departure_step,
                "distinct": row.distinct,
                "last": [row.last_a, row.last_b],
                "lines": [
                    _line(side, False, result.curves.steps[label], result.curves.series[row.name][label], points)
                    for side, label in drawn
                ]
                + [_line(side, True, *_mean(result, row.name, side), points) for side in (0, 1)],
            }
        )
    return charts


def _line(side: int, mean: bool, steps: Sequence[int], values: Sequence[float | None], points: int) -> dict[str, Any]:
    kept, thinned = coded(steps, values, points)
    return {"side": side, "mean": mean, "steps": kept, "values": thinned}


def _mean(result: Comparison, name: str, side: int) -> tuple[list[int], list[float | None]]:
    """Steps at which every run of a side was measured, and the mean over these runs."""
    labels = list(result.curves.steps)
    here = labels[: len(result.a.runs)] if side == 0 else labels[len(result.a.runs) :]
    runs: list[Mapping[int, float]] = []
    for label in here:
        pairs = zip(result.curves.steps[label], result.curves.series[name][label], strict=True)
        runs.append({step: value for step, value in pairs if value is not None})
    common = sorted(set.intersection(*(set(run) for run in runs))) if runs else []
    return common, [math.fsum(run[step] for run in runs) / len(runs) for step in common]


def _shares(result: Comparison) -> dict[str, Any] | None:
    """Stacked shares of every run: means of buckets of steps, the same order and colours of formats for all."""
    drawn = _drawn(result)
    titles = _run_titles(result)
    points = max(LEAST_POINTS, SHARE_POINTS // max(1, len(drawn)))
    runs = [
        bucketed(titles[label], result.curves.steps[label], result.curves.mode_shares[label], points)[0]
        for _, label in drawn
    ]
    layers, values = stacked(runs)
    rows = [
        {"side": side, "label": run.title[:ITEM_CHARACTERS], "steps": list(run.steps), "values": rows}
        for (side, _), run, rows in zip(drawn, runs, values, strict=True)
    ]
    return {"modes": layers, "runs": rows} if layers else None
