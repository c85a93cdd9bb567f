"""The catalogues of metrics and detectors as text and Markdown: all of one, or one entry explained."""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import rlmon.audit.aliases as aliases
from rlmon.audit.checks.folds import FOLDS
from rlmon.detectors import DETECTORS, DetectorSpec, catalogue
from rlmon.errors import ConfigError
from rlmon.extensions import installed
from rlmon.metrics.catalog import METRICS, lookup
from rlmon.metrics.family import Metric
from rlmon.printable import nearest

_DIRECTIONS = {"up": "when it rises", "down": "when it falls", "both": "both ways", "none": "context for other numbers"}


def metrics_named(name: str | None) -> list[Metric]:
    """All metrics, those of a family (``entropy``), or the one of a name (``rlmon/entropy/mean``, ``entropy/mean``, or
    what a trainer calls it). Raises ``ConfigError`` where there is none, with the nearest."""
    own = [metric for one in installed("rlmon.metrics") for metric in one.entries]
    every = [*METRICS, *own]
    families = list(dict.fromkeys(family(metric.name) for metric in every))
    if name is None:
        return every
    if name in families:
        return [metric for metric in every if family(metric.name) == name]
    full = name if name.startswith("rlmon/") else f"rlmon/{name}"
    known = [full, *(one for one, keys in aliases.table().items() if name in [alias.key for alias in keys])]
    found = [metric for one in known if (metric := lookup(one)) is not None]
    found += [metric for metric in own if metric.name == name]
    if not found:
        names = [metric.name for metric in every]
        hint = nearest(name, [*families, *names, *(one.removeprefix("rlmon/") for one in names)], 0.6)
        raise ConfigError(
            f"There is no metric family {name!r}; there are {', '.join(families)}, and no metric is called so.{hint}"
        )
    return found[:1]


def family(metric: str) -> str:
    """``entropy`` of ``rlmon/entropy/mean``, ``emoji`` of a user's ``emoji/share``."""
    return metric.removeprefix("rlmon/").split("/")[0]


def fields(metric: Metric) -> dict[str, Any]:
    """What the catalogue prints of a metric."""
    return {
        name: value for name, value in dataclasses.asdict(metric).items() if name not in ("of_successes", "instead")
    }


def _specs() -> tuple[DetectorSpec, ...]:
    return (*DETECTORS, *installed("rlmon.detectors"))


def detectors_named(name: str | None) -> list[dict[str, Any]]:
    """Rows of all detectors, or of one. Raises ``ConfigError`` where there is none, with the nearest."""
    rows = catalogue(_specs())
    if name is None:
        return rows
    ids = [row["id"] for row in rows]
    if name not in ids:
        raise ConfigError(f"There is no detector {name!r}; there are {', '.join(ids)}.{nearest(name, ids, 0.4)}")
    return [row for row in rows if row["id"] == name]


def metric_lesson(metric: Metric) -> Iterator[str]:
    """One metric explained, a line each."""
    bounds = [
        *([f"at least {metric.low:g}"] if metric.low is not None else []),
        *([f"at most {metric.high:g}"] if metric.high is not None else []),
    ]
    yield metric.name
    yield from _fields(
        ("what it is", metric.formula),
        ("unit", ", ".join([metric.unit, *bounds])),
        ("bad", _DIRECTIONS[metric.direction]),
        ("needs", metric.needs),
        ("from", metric.source),
        ("watched by", ", ".join(spec.id for spec in _specs() if metric.name in spec.metrics)),
        ("trainers call it", ", ".join(
            f"{alias.key} ({alias.tool})" for alias in aliases.table().get(metric.name, ()) if alias.tool != "rlmon"
        )),
    )  # fmt: skip


def detector_lesson(row: Mapping[str, Any]) -> Iterator[str]:
    """One detector explained, a line each."""
    spec = next(spec for spec in _specs() if spec.id == row["id"])
    yield spec.id
    yield from _fields(
        ("asks", next((asked.title for asked in FOLDS if asked.id == spec.id), spec.question)),
        ("means", spec.meaning),
        ("reads", "; ".join(_read(spec))),
        ("line", spec.line + (" (a prior from practice, not from this run's base)" if spec.prior else "")),
        ("speaks when", _evidence(spec)),
        ("then", spec.advice),
        ("false fail", price(row["false_fail"])),
        ("false warn", price(row["false_warn"])),
    )
    yield f"    its metric: rlmon metrics {spec.metrics[0]}"


def _read(spec: DetectorSpec) -> Iterator[str]:
    for name in spec.metrics:
        metric = lookup(name)
        yield name if metric is None else f"{name}, {metric.formula}"


def _evidence(spec: DetectorSpec) -> str:
    if spec.rule == "immediate":
        return "at once: it counts, so one is enough"
    parts = [
        "the evidence suffices (each block of prompts is a bet that the line is passed; looking at every step does not "
        "raise the chance of a false alarm) and the smoothed value is past the line now"
    ]
    if spec.every and len(spec.metrics) > 1:
        parts.append("all that was measured of them has to be past its line")
    if spec.agreement:
        parts.append("FAIL needs a second detector that has warned")
    return "; ".join(parts)


def _fields(*fields: tuple[str, str]) -> Iterator[str]:
    wrap = textwrap.TextWrapper(
        100, initial_indent=" " * 4, subsequent_indent=" " * 6, break_long_words=False, break_on_hyphens=False
    )
    return ("\n".join(wrap.wrap(f"{name}: {value}")) for name, value in fields if value)


def price(measured: Mapping[str, Any] | None) -> str:
    """A measured false-alarm rate in words."""
    if measured is None:
        return "not measured"
    return (
        f"{measured['rate']:.2%} of {measured['runs']} healthy runs of {measured['looks']} looks "
        f"(95 % interval {measured['low']:.2%} to {measured['high']:.2%})"
    )


def priced(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of detectors with their false-alarm rates in words."""
    return [row | {rung: price(row[rung]) for rung in ("false_fail", "false_warn")} for row in rows]


def lines(rows: Sequence[Mapping[str, Any]], *, markdown: bool) -> Iterator[str]:
    """Every entry with all its fields, an empty line after each."""
    for row in rows:
        (_, title), *rest = row.items()
        yield f"### `{title}`\n" if markdown else title
        for key, value in rest:
            if value is not None and value != "":
                name = key.replace("_", " ")
                yield f"- {name}: {_said(value)}" if markdown else f"    {name}: {_said(value)}"
        yield ""


def _said(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_said(inner)}" for key, inner in value.items() if inner is not None)
    if isinstance(value, (list, tuple)):
        return ", ".join(_said(inner) for inner in value)
    return f"{value:g}" if isinstance(value, float) else str(value)
