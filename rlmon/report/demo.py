"""The demo's page: ``demo.json`` and the run logs beside it become ``demo.html``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from rlmon.report.figure import FIGURE_STYLE, Shares, colours, draw_order, inline_svg, picture
from rlmon.report.page import HERE, fill, render
from rlmon.runlog import open_run

CURVES: Mapping[str, str] = {
    "effective": "rlmon/format/effective",
    "within": "rlmon/collision/mode_within_effective",
    "top_share": "rlmon/format/top_share",
    "entropy": "rlmon/entropy/mean",
    "kl": "rlmon/kl/mean",
    "reward": "rlmon/health/reward_mean",
}
"""Name in the page to catalogue name in the run log."""
_SHARE = "rlmon/format/share/"
_DIGITS = 4
_ARM_WORDS = {"unprotected": "unprotected (beta 0)", "kl": "with KL"}
_COLLAPSE = ("format-collapse", "entropy-collapse")


def series_of(log: Path) -> dict[str, Any]:
    """What the page draws of one run: ``{"steps": [...], "curves": {name: [...]}, "shares": {mode: [...]}}``.

    Read from the run log; a value that was not measured at a step is ``None``.
    """
    records = open_run(log).step_records()
    modes = dict.fromkeys(
        name.removeprefix(_SHARE) for record in records for name in record.metrics if name.startswith(_SHARE)
    )

    def column(metric: str) -> list[float | None]:
        values = (record.metrics.get(metric) for record in records)
        return [None if value is None else round(value, _DIGITS) for value in values]

    shares = {mode: [value or 0.0 for value in column(_SHARE + mode)] for mode in modes}
    return {
        "steps": [record.step for record in records],
        "curves": {name: column(metric) for name, metric in CURVES.items()},
        "shares": {mode: values for mode, values in shares.items() if any(values)},
    }


def build_page(demo: Mapping[str, Any], series: Mapping[str, Mapping[str, Any]]) -> str:
    """The page as text. ``series`` maps ``<arm>-seed<seed>`` to what ``series_of`` returns."""
    runs = demo["runs"]
    figures = [_shares_of(run, series[_name(run)]) for run in runs if _name(run) in series]
    order = draw_order(figures)
    palette = colours(order)
    legend = "".join(f'<li><i style="background:{palette[mode]}"></i>{escape(mode)}</li>' for mode in order)
    stacks: dict[int, list[str]] = {}
    for run, figure in zip([run for run in runs if _name(run) in series], figures, strict=True):
        stacks.setdefault(run["seed"], []).append(
            inline_svg(
                figure,
                order,
                f"Format shares over {len(figure.steps)} steps, {figure.title}: ends with {run['top_format']} at "
                f"{run['top_share']:.0%}. Numbers in the table below.",
            )
        )
    grid = "".join(
        f'<div class="pair" data-seed="{int(seed)}">{"".join(panels)}</div>' for seed, panels in stacks.items()
    )
    body = fill((HERE / "assets" / "demo.html").read_text(encoding="utf-8"), {"stacks": grid, "legend": legend})
    return render(
        title="rlmon demo: what GRPO did to six answer formats",
        body=body,
        data={"demo": demo, "series": series, "order": order},
        styles=("vendor/uPlot.min.css", "assets/page.css", "assets/demo.css"),
        scripts=("vendor/uPlot.iife.min.js", "assets/page.js", "assets/demo.js"),
    ).replace("/*figure-style*/", FIGURE_STYLE, 1)


def write_page(out: Path) -> Path:
    """Builds ``out/demo.html`` from ``out/demo.json`` and the logs it names; returns its path."""
    demo, series = _load(out)
    page = out / "demo.html"
    page.write_text(build_page(demo, series), encoding="utf-8")
    return page


def write_picture(out: Path, path: Path, seed: int | None = None) -> Path:
    """The one picture of a finished demo (both arms, one seed) as an SVG file; returns its path."""
    demo, series = _load(out)
    runs = {(run["arm"], run["seed"]): run for run in demo["runs"]}
    seed = demo["seeds"][0] if seed is None else seed
    left, right = runs["unprotected", seed], runs["kl", seed]
    base = demo["base"]

    def caption(run: Mapping[str, Any]) -> str:
        return (
            f"held out: effective formats {base['effective_formats']:.2f} to {run['effective_formats']:.2f}, "
            f"accuracy {base['accuracy']:.1%} to {run['accuracy']:.1%}"
        )

    headline = "Nothing in the reward asks for a format. Without KL, one of six eats the others."
    path.write_text(
        picture(
            _shares_of(left, series[_name(left)]),
            _shares_of(right, series[_name(right)]),
            (caption(left), caption(right)),
            headline,
        ),
        encoding="utf-8",
    )
    return path


def _load(out: Path) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    demo: dict[str, Any] = json.loads((out / "demo.json").read_text(encoding="utf-8"))
    return demo, {_name(run): series_of(out / run["log"]) for run in demo["runs"]}


def _name(run: Mapping[str, Any]) -> str:
    return f"{run['arm']}-seed{run['seed']}"


def _shares_of(run: Mapping[str, Any], series: Mapping[str, Any]) -> Shares:
    return Shares(
        title=f"{_ARM_WORDS.get(run['arm'], run['arm'])}, seed {run['seed']}",
        steps=series["steps"],
        shares=series["shares"],
        marks=_marks(run["findings"]),
    )


def _marks(findings: Sequence[Mapping[str, Any]]) -> list[tuple[str, int]]:
    """The first format-collapse or entropy-collapse FAIL, and the first WARN where that came before it."""
    marks: list[tuple[str, int]] = []
    for severity in ("warn", "fail"):
        steps = [f["step"] for f in findings if f["detector"] in _COLLAPSE and f["severity"] == severity]
        if steps:
            marks.append((severity, min(steps)))
    if len(marks) == 2 and marks[0][1] >= marks[1][1]:
        del marks[0]
    return marks
