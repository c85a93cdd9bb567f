"""The audit's page: an ``Audit`` becomes one HTML file that needs nothing else."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import rlmon.report.phrases as phrases
from rlmon.acts import entries, fold, summary
from rlmon.audit.incidents import incidents
from rlmon.audit.result import EXAMPLE_CHARACTERS, EXAMPLE_HEAD, Audit, Check, Event, Example, ends
from rlmon.errors import RLMonError
from rlmon.metrics.catalog import lookup
from rlmon.printable import one_line
from rlmon.report.charts import CHARTS, ITEM_CHARACTERS, ITEMS_SHOWN, bucketed, coded, stacked
from rlmon.report.page import HERE, fill, json_for_html, render
from rlmon.report.still import still

CHART_POINTS = 2_000
"""Points of a curve at most; of a longer one the extremes of each bucket are kept."""
FURTHER_POINTS = 60_000
"""The same for all curves behind the disclosure together."""
SHARE_POINTS = 600
FURTHER_CHARTS = 160
EVENTS_SHOWN = 300
RECORDS_SHOWN = 300
TEXT_BUDGET_BYTES = 1_500_000
"""Prompts and completions together, as JSON. Over it, each is cut shorter, to one of ``TEXT_CUTS``."""
TEXT_CUTS = (4_000, 2_500, 1_600, 1_000, 600, 350, 200)
HEAT_PROMPT_CHARACTERS = 160
HOME = '<a class="quiet home" href="/">← All runs</a>'
FOLLOW = (
    '<p class="follow small" id="served-said"></p>'
    '<button type="button" id="served-pause" class="quiet" aria-pressed="false">Pause</button>'
)
"""What the head of a served page has beside that of a file: the way back, and what became of looking for news."""
SERVED_STYLES = ("assets/served.css",)
SERVED_SCRIPTS = ("assets/served.js",)


@dataclass(frozen=True, kw_only=True, slots=True)
class Served:
    """What a page that is served knows beside its audit: the rest of it is the same page."""

    version: str
    """Of the run's files, as the server names it: a page of another version is a newer one."""
    changed_unix_seconds: float
    """When the run's files last changed."""


def build_page(audit: Audit, served: Served | None = None) -> str:
    """The page as text: ASCII but for what this package itself writes, below 3 MB."""
    texts = _Texts()
    data = {
        "run": _run(audit),
        "verdict": audit.verdict,
        "verdict_word": phrases.verdict(audit),
        "missing": phrases.missing(audit),
        "headline": _line(audit.headline),
        "incidents": _incidents(audit, texts),
        "checks": [_check(check, texts) for check in audit.checks],
        "steps": [audit.steps[0], audit.steps[-1]] if audit.steps else None,
        **_charts(audit),
        "shares": _shares(audit),
        "events": [dataclasses.asdict(event) for event in _chosen_events(audit.events)],
        "events_total": len(audit.events),
        "modes": [
            {
                **_fields(story),
                "became": phrases.fate(story),
                "examples": [texts.example(example) for example in story.examples],
            }
            for story in audit.modes
        ],
        "heat": _heat(audit),
        "samples": [texts.example(example) for example in audit.samples],
        "findings": [_pairs(finding) for finding in audit.findings[:RECORDS_SHOWN]],
        "findings_total": len(audit.findings),
        **_acts(audit),
        "correction": audit.correction,
        "timing": _pairs(audit.timing_seconds),
    }
    data["text_cut"], data["texts"] = texts.cut()
    if served is not None:
        data["served"] = dataclasses.asdict(served)
    body = fill(
        (HERE / "assets" / "audit.html").read_text(encoding="utf-8"),
        {"still": still(audit), "home": HOME if served else "", "follow": FOLLOW if served else ""},
    )
    return render(
        title=f"rlmon audit: {phrases.verdict(audit)}, {one_line(audit.run.id, 60)}",
        body=body,
        data=_plain(data),
        styles=("vendor/uPlot.min.css", "assets/page.css", "assets/audit.css", *(SERVED_STYLES if served else ())),
        scripts=(
            "vendor/uPlot.iife.min.js", "assets/page.js", "assets/figure.js", "assets/audit.js",
            *(SERVED_SCRIPTS if served else ()),
        ),
        asks_its_server=served is not None,
    )  # fmt: skip


def write_page(audit: Audit, path: str | os.PathLike[str]) -> Path:
    """Writes the page to ``path`` (folders are made) and returns it. Raises ``RLMonError`` where that cannot be."""
    target = Path(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(build_page(audit), encoding="utf-8")
    except OSError as error:
        reason = error.strerror or str(error)
        raise RLMonError(
            f"cannot write the page to {target}: {reason}; give a file name, as in --html out.html"
        ) from error
    return target


class _Texts:
    """Prompts and completions, each kept once; examples hold their index."""

    def __init__(self) -> None:
        self._index: dict[tuple[str, int], int] = {}

    def add(self, text: str | None, left_out: int = 0) -> int | None:
        return None if text is None else self._index.setdefault((text, left_out), len(self._index))

    def example(self, example: Example) -> dict[str, Any]:
        fields = {**_fields(example), "template": example.template[:ITEM_CHARACTERS]}
        completion = self.add(example.completion, example.left_out)
        return {**fields, "prompt": self.add(example.prompt), "completion": completion}

    def cut(self) -> tuple[int, list[list[Any]]]:
        """The characters that each text was cut to, and ``[head, characters left out, tail]`` by index."""
        limit, cut = 0, []
        for limit in TEXT_CUTS:
            head = limit * EXAMPLE_HEAD // EXAMPLE_CHARACTERS
            cut = [list(ends(text, left_out, head, limit - head)) for text, left_out in self._index]
            if sum(len(json_for_html(text)) for text in cut) <= TEXT_BUDGET_BYTES:
                break
        return limit, cut


def _fields(record: Any) -> dict[str, Any]:
    """The fields of a record, not descending into them."""
    return {field.name: getattr(record, field.name) for field in dataclasses.fields(record)}


def _line(text: str) -> str:
    return text[:2_000]


def _run(audit: Audit) -> dict[str, Any]:
    run = _fields(audit.run)
    return {
        **run,
        **{key: _pairs(run[key]) for key in ("coverage", "baseline", "config")},
        "read": phrases.coverage_facts(audit),
        "notes": list(audit.run.notes),
    }


def _check(check: Check, texts: _Texts) -> dict[str, Any]:
    examples = [texts.example(example) for example in check.examples]
    return {**_fields(check), "examples": examples, "evidence": _pairs(check.evidence)}


def _incidents(audit: Audit, texts: _Texts) -> list[dict[str, Any]]:
    place = {id(check): at for at, check in enumerate(audit.checks)}
    return [
        {
            "kind": incident.kind,
            "severity": incident.severity,
            "sentence": _line(incident.sentence),
            "began": incident.began,
            "at_latest": incident.at_latest,
            "confirmed": incident.confirmed,
            "openings": phrases.openings(incident, audit),
            "setting": _line(incident.setting),
            "checks": [place[id(check)] for check in incident.checks],
            "pair": [texts.example(example) for example in incident.pair],
        }
        for incident in incidents(audit)
    ]


def _pairs(mapping: Mapping[Any, Any]) -> list[list[Any]]:
    """Names and values: a mapping whose keys a run may have chosen is no object in the page."""
    items = list(mapping.items())
    rest = [["", f"{len(items) - ITEMS_SHOWN} more"]] if len(items) > ITEMS_SHOWN else []
    return [[str(key)[:ITEM_CHARACTERS], _value(value)] for key, value in items[:ITEMS_SHOWN]] + rest


def _value(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {"pairs": _pairs(value)}
    if isinstance(value, (list, tuple)):
        rest = [f"{len(value) - ITEMS_SHOWN} more"] if len(value) > ITEMS_SHOWN else []
        return [_value(item) for item in value[:ITEMS_SHOWN]] + rest
    return value[:ITEM_CHARACTERS] if isinstance(value, str) else value


def _plain(value: Any) -> Any:
    """``value`` as JSON types. NaN and infinities, which only rewards and evidence can hold, become words."""
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return str(value)


# ---- curves


def _charts(audit: Audit) -> dict[str, Any]:
    """``charts``: the important ones and those that a check complains about. ``further``: one for each other series."""
    series = {name: values for name, values in audit.series.items() if any(value is not None for value in values)}
    complained = {check.metric for check in audit.checks if check.status not in ("pass", "skip") and check.metric}
    charts: list[dict[str, Any]] = []
    taken: set[str] = set()
    for title, unit, curves in CHARTS:
        here = [(name, label) for name, label in curves if name in series]
        # Of two measures of one thing the first is drawn here, the other further down.
        if here and title not in {chart["title"] for chart in charts}:
            # One curve alone has no legend, so its label goes beside the unit.
            alone = f", {here[0][1]}" if len(here) == 1 < len(curves) else ""
            charts.append(_chart(audit, title, unit + alone, here, CHART_POINTS))
            taken |= {name for name, _ in here}
    rest = [name for name in series if name not in taken and not name.startswith("rlmon/format/share/")]
    charts += [_single(audit, name, CHART_POINTS) for name in rest if name in complained]
    rest = [name for name in rest if name not in complained]
    if len(rest) > FURTHER_CHARTS:
        rest.sort(key=lambda name: lookup(name) is not None)  # a run's own are shown nowhere else
    grave = {"fail": 0, "warn": 1}
    worst = [min((grave.get(audit.checks[i].status, 2) for i in chart["checks"]), default=2) for chart in charts]
    charts = [charts[i] for i in sorted(range(len(charts)), key=lambda i: (i > 1, i > 1 and worst[i], i))]
    points = max(100, min(CHART_POINTS, FURTHER_POINTS // max(1, len(rest))))
    return {
        "charts": charts,
        "further": [_single(audit, name, points) for name in rest[:FURTHER_CHARTS]],
        "further_total": len(rest),
        "never": [name[:ITEM_CHARACTERS] for name in audit.series if name not in series][:ITEMS_SHOWN],
        "summary": [
            [name[:ITEM_CHARACTERS], *_fields(summary).values()]
            for name, summary in list(audit.metrics.items())[: 2 * ITEMS_SHOWN]
        ],
    }


def _single(audit: Audit, name: str, points: int) -> dict[str, Any]:
    found = lookup(name)
    summary = audit.metrics.get(name)
    unit = found.unit if found is not None else summary.unit if summary is not None else ""
    title = name.removeprefix("rlmon/").replace("_", " ")
    return _chart(audit, title[:ITEM_CHARACTERS], unit[:ITEM_CHARACTERS], [(name, "value")], points)


def _chart(audit: Audit, title: str, unit: str, curves: Sequence[tuple[str, str]], points: int) -> dict[str, Any]:
    lines = []
    for name, label in curves:
        steps, values = coded(audit.steps, audit.series[name], points)
        summary = audit.metrics.get(name)
        lines.append(
            {
                "name": name[:ITEM_CHARACTERS],
                "label": label,
                "steps": steps,
                "values": values,
                "base": None if summary is None else summary.base,
                "measured": sum(value is not None for value in audit.series[name]),
            }
        )
    found = lookup(curves[0][0])
    names = {name for name, _ in curves}
    return {
        "title": title,
        "unit": unit,
        "low": None if found is None else found.low,
        "high": None if found is None else found.high,
        "lines": lines,
        "checks": [index for index, check in enumerate(audit.checks) if check.metric in names],
    }


# ---- shares, events, prompts


def _shares(audit: Audit) -> dict[str, Any] | None:
    """Stacked shares: the mean of each bucket of steps, formats in the order of drawing, small ones pooled."""
    run, widest = bucketed("", audit.steps, audit.mode_shares, SHARE_POINTS)
    if not run.steps:
        return None
    layers, (values,) = stacked([run])
    rows = [{"mode": mode, "colour": colour, "values": row} for (mode, colour), row in zip(layers, values, strict=True)]
    return {"steps": run.steps, "rows": rows, "pooled_steps": widest}


def _chosen_events(events: Sequence[Event]) -> list[Event]:
    """The gravest, in order of step."""
    grave = {"fail": 0, "warn": 1, "note": 2, "info": 3}
    chosen = sorted(events, key=lambda event: (grave[event.severity], event.step))[:EVENTS_SHOWN]
    return [
        dataclasses.replace(event, text=event.text[:ITEM_CHARACTERS])
        for event in sorted(chosen, key=lambda event: event.step)
    ]


def _acts(audit: Audit) -> dict[str, Any]:
    """What the policy did, newest first; acts of one rule on rows are one entry."""
    acts = fold(audit.actions)
    shown = entries(acts)
    return {
        "acts": [
            {
                "step": entry.newest.step,
                "rule": _item(entry.newest.rule),
                "change": _item(entry.newest.change),
                "outcome": _item(entry.newest.outcome),
                "effect": _item(entry.effect),
                "why": _item(entry.newest.reason),
                "measured": _item(entry.newest.effect_reason or ""),
                "count": entry.count,
                "first_step": entry.first_step,
            }
            for entry in shown[:RECORDS_SHOWN]
        ],
        "acts_total": len(shown),
        "acts_said": summary(acts),
    }


def _item(text: str) -> str:
    return text[:ITEM_CHARACTERS]


def _heat(audit: Audit) -> dict[str, Any] | None:
    if audit.heat is None or not audit.heat.rows:
        return None
    return {
        "bins": audit.heat.bins,
        "prompts": audit.heat.prompts,
        "note": audit.heat.note,
        "rows": [
            {
                **_fields(row),
                "prompt": None if row.prompt is None else row.prompt[:HEAT_PROMPT_CHARACTERS],
                "rates": [None if rate is None else round(rate, 3) for rate in row.rates],
            }
            for row in audit.heat.rows
        ],
    }
