"""The demo's page: ``demo.json`` and the run logs beside it become ``demo.html``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from rlmon.report.figure import (
    FIGURE_STYLE,
    Lane,
    Shares,
    colours,
    draw_order,
    inline_strip,
    inline_svg,
)
from rlmon.report.page import HERE, fill, render
from rlmon.report.second_act import WORDS, panels
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
HELD: Mapping[str, str] = {
    "kappa": "rlmon/intervention/kappa",
    "beta": "rlmon/intervention/beta",
    "neutralised": "rlmon/intervention/neutralised_share",
    "deferred": "rlmon/intervention/deferred_share",
}
"""The same for what a policy turned; only runs with a policy have these."""
_SHARE = "rlmon/format/share/"
_DIGITS = 4
_KAPPA_TOP, _BETA_TOP = 2.0, 0.3
"""Upper edges of the lanes, unless more was reached: the most that the preset allows."""
_COLLAPSE = ("format-collapse", "entropy-collapse")


def series_of(log: Path) -> dict[str, Any]:
    """What the page draws of one run: ``{"steps": [...], "curves": {name: [...]}, "shares": {mode: [...]}}``, and
    ``"held": {name: [...]}`` of what a policy turned.

    Read from the run log; a value that was not measured at a step is ``None``.
    """
    records = open_run(log).step_records()
    modes = dict.fromkeys(
        name.removeprefix(_SHARE) for record in records for name in record.metrics if name.startswith(_SHARE)
    )

    def column(metric: str) -> list[float | None]:
        values = (record.metrics.get(metric) for record in records)
        return [None if value is None else round(value, _DIGITS) for value in values]

    held = {name: column(metric) for name, metric in HELD.items()}
    shares = {mode: [value or 0.0 for value in column(_SHARE + mode)] for mode in modes}
    return {
        "steps": [record.step for record in records],
        "curves": {name: column(metric) for name, metric in CURVES.items()},
        "held": {name: values for name, values in held.items() if any(value is not None for value in values)},
        "shares": {mode: values for mode, values in shares.items() if any(values)},
    }


def build_page(demo: Mapping[str, Any], series: Mapping[str, Mapping[str, Any]]) -> str:
    """The page as text. ``series`` maps ``<arm>-seed<seed>`` to what ``series_of`` returns."""
    runs = demo["runs"]
    figures = [shares_of(run, series[name_of(run)]) for run in runs if name_of(run) in series]
    order = draw_order(figures)
    palette = colours(order)
    legend = "".join(f'<li><i style="background:{palette[mode]}"></i>{escape(mode)}</li>' for mode in order)
    stacks: dict[int, list[str]] = {}
    for run, figure in zip([run for run in runs if name_of(run) in series], figures, strict=True):
        label = (
            f"Format shares over {len(figure.steps)} steps, {figure.title}: ends with {run['top_format']} at "
            f"{run['top_share']:.0%}. Numbers in the table below."
        )
        caption = "".join(f"<p>{escape(line)}</p>" for line in caption_of(demo["base"], run))
        stacks.setdefault(run["seed"], []).append(
            f'<figure class="arm">{inline_svg(figure, order, label)}<figcaption>{caption}</figcaption>'
            f"{_held_html(demo['arms'].get(run['arm'], {}), figure, series[name_of(run)].get('held', {}))}</figure>"
        )
    grid = "".join(
        f'<div class="pair" data-seed="{int(seed)}">{"".join(panels)}</div>' for seed, panels in stacks.items()
    )
    body = fill(
        (HERE / "assets" / "demo.html").read_text(encoding="utf-8"),
        {"stacks": grid, "legend": legend, "acts": panels(demo["second_act"])},
    )
    return render(
        title="rlmon demo: what GRPO did to six answer formats",
        body=body,
        data={"demo": demo, "series": series, "order": order},
        styles=("vendor/uPlot.min.css", "assets/page.css", "assets/demo.css"),
        scripts=("vendor/uPlot.iife.min.js", "assets/page.js", "assets/demo.js"),
    ).replace("/*figure-style*/", FIGURE_STYLE, 1)


def write_page(out: Path) -> Path:
    """Builds ``out/demo.html`` from ``out/demo.json`` and the logs it names; returns its path."""
    demo, series = load(out)
    page = out / "demo.html"
    page.write_text(build_page(demo, series), encoding="utf-8")
    return page


def caption_of(base: Mapping[str, Any], run: Mapping[str, Any]) -> tuple[str, str]:
    """Two lines below the picture of a run."""
    return (
        f"formats in use {base['effective_formats']:.2f} to {run['effective_formats']:.2f}",
        f"accuracy {base['accuracy']:.1%} to {run['accuracy']:.1%}, held out",
    )


def lanes_of(held: Mapping[str, Sequence[float | None]]) -> list[Lane]:
    """What a policy turned in one run, for ``figure.strip``. ``held``: as ``series_of`` gives it."""
    lanes: list[Lane] = []
    for name, label, top in (
        ("kappa", "hold on the formats", _KAPPA_TOP),
        ("beta", "KL on every token, beta", _BETA_TOP),
    ):
        known = [value for value in held.get(name, ()) if value is not None]
        if known:
            said = (
                f"{known[0]:.2g} throughout" if len(set(known)) == 1 else f"ends {known[-1]:.2f}, most {max(known):.2f}"
            )
            lanes.append(
                Lane(label=f"{label}: {said}", values=held[name], kind="level", top=max(top, max(known)))
            )  # fmt: skip
    for name, label in (("neutralised", "taken out as shortcuts"), ("deferred", "prompts put off")):
        known = [value for value in held.get(name, ()) if value is not None]
        if not known:
            continue
        hits = [value for value in known if value > 0]
        times = f"at {len(hits)} step{'s' if len(hits) > 1 else ''}"
        said = f"{times}, most {max(hits):.0%}" if hits else "none"
        lanes.append(Lane(label=f"{label}: {said}", values=held[name], kind="ticks", top=max(known) or 1.0))
    return lanes


def _held_html(arm: Mapping[str, Any], figure: Shares, held: Mapping[str, Sequence[float | None]]) -> str:
    """What held the formats of one run, as trusted markup: a strip for a policy, a sentence otherwise."""
    lanes = lanes_of(held) if arm.get("policy") else []
    if lanes:
        words = "; ".join(lane.label for lane in lanes)
        drawn = [lane for lane in lanes if lane.kind == "level" or any(lane.values)]
        quiet = "".join(f'<p class="held">{escape(lane.label)}</p>' for lane in lanes if lane not in drawn)
        return inline_strip(figure.steps, drawn, f"What the policy did, {figure.title}. {words}.") + quiet
    beta = arm.get("beta") or 0.0
    held_by = f"Held by a KL on every token: beta {beta:g} throughout." if beta else "Held by nothing: beta 0."
    return f'<p class="held">{escape(held_by)}</p>'


def load(out: Path) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """What ``out/demo.json`` holds, and the series of each of its runs by name."""
    demo: dict[str, Any] = json.loads((out / "demo.json").read_text(encoding="utf-8"))
    return demo, {name_of(run): series_of(out / run["log"]) for run in demo["runs"]}


def name_of(run: Mapping[str, Any]) -> str:
    """``protect-seed0``."""
    return f"{run['arm']}-seed{run['seed']}"


def shares_of(run: Mapping[str, Any], series: Mapping[str, Any]) -> Shares:
    """The format shares of one run, with its alarms."""
    return Shares(
        title=f"{WORDS.get(run['arm'], run['arm'])}, seed {run['seed']}",
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
