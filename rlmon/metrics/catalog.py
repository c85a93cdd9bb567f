"""The catalogue of metrics, from which ``docs/metrics.md`` is generated: what the families say of themselves."""

from __future__ import annotations

from rlmon.metrics.families import FAMILIES
from rlmon.metrics.family import MODE, Bound, Metric

METRICS: tuple[Metric, ...] = tuple(metric for family in FAMILIES for metric in family.entries)
"""Every metric of a StepRecord, by family; some only in a run with a critic, or with a policy."""

_BY_NAME = {metric.name: metric for metric in METRICS}


def lookup(name: str) -> Metric | None:
    """The entry of a metric name as it occurs in a StepRecord; ``None`` when the catalogue has none."""
    found = _BY_NAME.get(name)
    if found is None and "/" in name:
        found = _BY_NAME.get(f"{name.rsplit('/', 1)[0]}/{MODE}")
    return found


def local_metrics() -> dict[str, str]:
    """The metrics that depend on how many ranks there are, and beside each the nearest one that does not."""
    return {metric.name: metric.instead for metric in METRICS if metric.kind == "local"}


_DIRECTIONS = {"up": "rising", "down": "falling", "both": "both ways", "none": "-"}


def render_markdown() -> str:
    """The page ``docs/metrics.md``."""
    lines = [
        "# Metrics",
        "",
        "Generated from `rlmon/metrics/families` by `python scripts/pages.py`; do not edit.",
        "",
        "A metric that was not measured is null with a reason beside it, never 0. *exact*: from sums over all ranks, "
        "or, for pairs and groups, from the rows of all ranks together (2,048 a step; of more, whole groups evenly "
        "spread over the round). *sketch*: approximate, within the stated error. *local*: what one rank has, added "
        "over ranks, so that it depends on how many there are: no rule can read it. "
        "*Bad* is the direction that means damage.",
    ]
    for family in FAMILIES:
        lines += [
            "",
            f"## {family.name}",
            "",
            family.about,
            "",
            "| name | unit | range | bad | kind | needs | formula | source |",
        ]
        lines.append("|---|---|---|---|---|---|---|---|")
        for metric in family.entries:
            cells = (
                f"`{metric.name}`",
                metric.unit,
                f"{_bound(metric.low, '-inf')} .. {_bound(metric.high, 'inf')}",
                _DIRECTIONS[metric.direction],
                metric.kind,
                metric.needs,
                metric.formula,
                metric.source,
            )
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _bound(value: Bound, unbounded: str) -> str:
    return unbounded if value is None else f"{value:g}"
