"""Stacked format shares over training, and what held them, as plain SVG: the picture of a collapse."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal

from rlmon.statistics import trailing_mean

COLOURS: Mapping[str, str] = {
    "python": "#285ed9",
    "boxed": "#d87008",
    "prose": "#21abf5",
    "json": "#e4d432",
    "xml": "#970870",
    "list": "#72e0ec",
    "steps": "#21de9f",
    "bare": "#6f5310",
    "fenced": "#bd5d61",
}
"""One colour for a format, in every figure. Chosen so that any two, and the grey of others, are at least 16 apart
(CIEDE2000) for normal sight, protanopia and deuteranopia alike."""
OTHER_COLOUR = "#8a8f98"
SMOOTHING_ROUNDS = 5
PANEL_WIDTH, PANEL_HEIGHT = 350.0, 230.0
STEP_ROOM = 34.0
"""Of the word that names the axis of steps."""

_LANE_LABEL, _LANE_HEIGHT, _LANE_GAP = 15.0, 20.0, 7.0
LEFT, _RIGHT, _TOP, _BOTTOM = 38.0, 10.0, 42.0, 24.0
_STYLE = {"warn": ("mark-warn", "4 3", "WARN"), "fail": ("mark-fail", "none", "FAIL")}


@dataclass(frozen=True, kw_only=True, slots=True)
class Shares:
    """Format shares of one run: ``shares[mode][i]`` belongs to ``steps[i]`` and is between 0 and 1."""

    title: str
    steps: Sequence[int]
    shares: Mapping[str, Sequence[float]]
    marks: Sequence[tuple[str, int]] = ()
    """(``warn`` or ``fail``, step)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Lane:
    """One thing that a policy turned: ``values[i]`` belongs to the figure's ``steps[i]``, ``None`` where unknown."""

    label: str
    values: Sequence[float | None]
    kind: Literal["level", "ticks"]
    """A level holds until the next value; ticks stand alone, one for each value above 0."""
    top: float
    """Value at the upper edge of the lane."""


def colours(order: Sequence[str]) -> dict[str, str]:
    """A colour for every mode in ``order``: its own for those that are known, for the others what is left, in turn;
    ``other`` is always grey."""
    strange = [mode for mode in order if mode not in COLOURS and mode != "other"]
    free = [colour for mode, colour in COLOURS.items() if mode not in order] or list(COLOURS.values())
    given = {mode: free[at % len(free)] for at, mode in enumerate(strange)}
    return {mode: COLOURS.get(mode) or given[mode] for mode in order if mode != "other"} | {"other": OTHER_COLOUR}


def draw_order(runs: Sequence[Shares]) -> list[str]:
    """All modes seen in ``runs``: the largest at any run's end first, then by their share at the start."""
    modes = {mode for run in runs for mode, values in run.shares.items() if any(values)}
    if not modes:
        return []

    def last(mode: str) -> float:
        return max((run.shares[mode][-1] for run in runs if run.shares.get(mode)), default=0.0)

    def first(mode: str) -> float:
        return sum(sum(run.shares[mode][:8]) for run in runs if run.shares.get(mode))

    winner = max(sorted(modes), key=last)
    rest = sorted(modes - {winner}, key=lambda mode: (mode == "other", -first(mode), mode))
    return [winner, *rest]


def panel(run: Shares, order: Sequence[str]) -> str:
    """What is in an SVG of ``PANEL_WIDTH`` x ``PANEL_HEIGHT``: title, stacked areas (5-round means), axes, marks."""
    palette = colours(order)
    right, bottom = PANEL_WIDTH - _RIGHT, PANEL_HEIGHT - _BOTTOM
    parts = [f'<text class="title" x="{LEFT}" y="15">{escape(run.title)}</text>']
    if run.steps:
        first, last = run.steps[0], max(run.steps[-1], run.steps[0] + 1)

        def x(step: float) -> float:
            return LEFT + (right - LEFT) * (step - first) / (last - first)

        def y(share: float) -> float:
            return bottom - (bottom - _TOP) * min(1.0, max(0.0, share))

        floor = [0.0] * len(run.steps)
        for mode in order:
            values = trailing_mean(run.shares.get(mode, [0.0] * len(run.steps)), SMOOTHING_ROUNDS).tolist()
            if not any(values):
                continue
            ceiling = [low + value for low, value in zip(floor, values, strict=True)]
            outline = [f"{x(s):.1f},{y(v):.1f}" for s, v in zip(run.steps, ceiling, strict=True)]
            outline += [f"{x(s):.1f},{y(v):.1f}" for s, v in reversed(list(zip(run.steps, floor, strict=True)))]
            parts.append(
                f'<polygon points="{" ".join(outline)}" fill="{palette[mode]}" class="area">'
                f"<title>{escape(mode)}</title></polygon>"
            )
            floor = ceiling
        for share in (0.0, 0.25, 0.5, 0.75, 1.0):
            parts.append(f'<line class="grid" x1="{LEFT}" x2="{right}" y1="{y(share):.1f}" y2="{y(share):.1f}"/>')
            if share in (0.0, 0.5, 1.0):
                parts.append(text_at(LEFT - 6, y(share) + 4, "axis", "end", f"{share:.0%}"))
        for step in _ticks(last):
            if step >= first and x(step) < right - STEP_ROOM:
                parts.append(text_at(x(step), bottom + 16, "axis", "middle", str(step)))
        parts.append(text_at(right, bottom + 16, "axis", "end", "step"))
        for severity, step in run.marks:
            kind, dash, word = _STYLE[severity]
            at = x(step)
            # WARN reads leftwards and FAIL rightwards: they are often close together.
            side, shift = ("end", -5) if severity == "warn" else ("start", 5)
            where = f'x1="{at:.1f}" x2="{at:.1f}" y1="{_TOP - 4}" y2="{bottom}"'
            parts.append(f'<line class="halo" {where}/><line class="at" {where} stroke-dasharray="{dash}"/>')
            parts.append(text_at(at + shift, _TOP - 8, f"mark {kind}", side, f"{word} {step}"))
    return "".join(parts)


def strip_height(lanes: int) -> float:
    """Height of ``strip`` with so many lanes."""
    return lanes * (_LANE_LABEL + _LANE_HEIGHT + _LANE_GAP)


def strip(steps: Sequence[int], lanes: Sequence[Lane], *, width: float = PANEL_WIDTH) -> str:
    """The contents of an SVG as high as ``strip_height``: one lane below the other, on the steps of ``panel``."""
    parts: list[str] = []
    if not steps:
        return ""
    first, last, right = steps[0], max(steps[-1], steps[0] + 1), width - _RIGHT

    def x(step: float) -> float:
        return LEFT + (right - LEFT) * (step - first) / (last - first)

    for number, lane in enumerate(lanes):
        ceiling = strip_height(number) + _LANE_LABEL
        floor = ceiling + _LANE_HEIGHT
        parts.append(text_at(LEFT, ceiling - 4, "axis", "start", lane.label))
        parts.append(f'<line class="rule" x1="{LEFT}" x2="{right}" y1="{floor:.1f}" y2="{floor:.1f}"/>')

        def y(value: float, floor: float = floor, top: float = lane.top) -> float:
            return floor - _LANE_HEIGHT * min(1.0, max(0.0, value / top if top > 0 else 0.0))

        known = [(step, value) for step, value in zip(steps, lane.values, strict=True) if value is not None]
        if lane.kind == "ticks":
            parts += [
                f'<line class="tick" x1="{x(step):.1f}" x2="{x(step):.1f}" y1="{floor:.1f}" y2="{y(value):.1f}"/>'
                for step, value in known
                if value > 0
            ]
        elif known:
            path = f"M{x(known[0][0]):.1f} {y(known[0][1]):.1f}"
            for (_, before), (step, value) in itertools.pairwise(known):
                path += f"H{x(step):.1f}" + (f"V{y(value):.1f}" if value != before else "")
            end = f"V{floor:.1f}H{x(known[0][0]):.1f}Z"
            parts.append(f'<path class="level-area" d="{path}{end}"/><path class="level" d="{path}"/>')
    return "".join(parts)


def text_at(x: float, y: float, kind: str, anchor: str, text: str) -> str:
    """A text of the class ``kind``, at its start, middle or end."""
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _ticks(last: int) -> range:
    for width in (1, 2, 5, 10, 20, 25, 50, 100, 200, 250, 500, 1000, 2000, 5000):
        if last / width <= 6:
            return range(width, last + 1, width)
    return range(last, last + 1)


FIGURE_STYLE = (
    ".title{font-weight:600;font-size:13px;fill:var(--ink,#1b1f24)}"
    ".axis{font-size:11px;fill:var(--dim,#5b6470)}"
    ".halo{stroke:var(--paper,#fff);stroke-width:5;opacity:.6}.at{stroke:var(--ink,#1b1f24);stroke-width:1.8}"
    "svg .mark{font-size:11px;font-weight:700}.mark-warn{fill:var(--warn,#9a6a00)}.mark-fail{fill:var(--bad,#c0271a)}"
    ".grid{stroke:var(--paper,#fff);stroke-width:1;opacity:.28}"
    ".rule{stroke:var(--line,#dfe3e8);stroke-width:1}"
    ".level{fill:none;stroke:var(--arm-protect,#1a8f5f);stroke-width:1.8}"
    ".level-area{fill:var(--arm-protect,#1a8f5f);opacity:.18}"
    ".tick{stroke:var(--arm-protect,#1a8f5f);stroke-width:1.6}"
    ".area{opacity:.92}"
)


def inline_svg(run: Shares, order: Sequence[str], label: str) -> str:
    """``panel`` as an inline SVG for a page that holds ``FIGURE_STYLE``."""
    return _inline(panel(run, order), PANEL_HEIGHT, "stack", label)


def inline_strip(steps: Sequence[int], lanes: Sequence[Lane], label: str) -> str:
    """``strip`` as an inline SVG for a page that holds ``FIGURE_STYLE``."""
    return _inline(strip(steps, lanes), strip_height(len(lanes)), "strip", label)


def _inline(content: str, height: float, kind: str, label: str) -> str:
    return (
        f'<svg viewBox="0 0 {PANEL_WIDTH:.0f} {height:.0f}" role="img" aria-label="{escape(label, quote=True)}" '
        f'class="{kind}">{content}</svg>'
    )
