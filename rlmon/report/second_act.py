"""The demo's second act as a plain SVG: how the reward went on from each start, after the requirement had changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from rlmon.report.figure import LEFT, PANEL_HEIGHT, PANEL_WIDTH, text_at
from rlmon.statistics import trailing_mean

WORDS: Mapping[str, str] = {
    "base": "the base",
    "unprotected": "unprotected",
    "kl": "with KL",
    "protect": "with protect",
}
_WINDOW_STEPS = 5
_LINE = 0.9
_RIGHT, _TOP, _BOTTOM = 48.0, 30.0, 24.0
_LABEL_HEIGHT = 14.0


def panels(acts: Sequence[Mapping[str, Any]]) -> str:
    """One picture for each seed, as trusted markup."""
    last = max((len(act["rewards"]) for act in acts), default=0)
    by_seed: dict[int, list[Mapping[str, Any]]] = {}
    for act in acts:
        by_seed.setdefault(act["seed"], []).append(act)
    return "".join(
        f'<figure class="arm"><svg viewBox="0 0 {PANEL_WIDTH:.0f} {PANEL_HEIGHT:.0f}" role="img" '
        f'aria-label="{escape(_said(seed, of), quote=True)}" class="went-on">{panel(seed, of, last)}</svg></figure>'
        for seed, of in by_seed.items()
    )


def panel(seed: int, acts: Sequence[Mapping[str, Any]], last: int) -> str:
    """What is in an SVG of ``PANEL_WIDTH`` x ``PANEL_HEIGHT``: 5-step means of the reward over ``last`` steps, and the
    step at which each start had learned, at the right."""
    right, bottom = PANEL_WIDTH - _RIGHT, PANEL_HEIGHT - _BOTTOM

    def x(step: float) -> float:
        return LEFT + (right - LEFT) * (step - 1) / max(1, last - 1)

    def y(reward: float) -> float:
        return bottom - (bottom - _TOP) * reward

    parts = [f'<text class="title" x="{LEFT}" y="15">seed {seed}</text>']
    for reward in (0.0, 0.5, 1.0):
        parts.append(f'<line class="rule" x1="{LEFT}" x2="{right}" y1="{y(reward):.1f}" y2="{y(reward):.1f}"/>')
        parts.append(text_at(LEFT - 6, y(reward) + 4, "axis", "end", f"{reward:g}"))
    parts.append(f'<line class="asked" x1="{LEFT}" x2="{right}" y1="{y(_LINE):.1f}" y2="{y(_LINE):.1f}"/>')
    parts += [text_at(x(step), bottom + 16, "axis", "middle", str(step)) for step in range(20, last + 1, 20)]
    parts.append(text_at(right + 18, bottom + 16, "axis", "start", "step"))
    ends: list[tuple[float, str, str]] = []
    for act in acts:
        means = trailing_mean(act["rewards"], _WINDOW_STEPS).tolist()
        if not means:
            continue
        points = " ".join(f"{x(step):.1f},{y(mean):.1f}" for step, mean in enumerate(means, start=1))
        colour = f"var(--arm-{escape(act['arm'], quote=True)}, var(--dim))"
        parts.append(f'<polyline class="went" points="{points}" style="stroke:{colour}"/>')
        parts.append(f'<circle cx="{x(len(means)):.1f}" cy="{y(means[-1]):.1f}" r="3.2" style="fill:{colour}"/>')
        steps = act["steps_to_90"]
        ends.append((y(means[-1]), "never" if steps is None else str(steps), colour))
    for at, (label, colour) in _apart(ends):
        parts.append(
            f'<text class="end" x="{right + 8:.1f}" y="{at + 4:.1f}" style="fill:{colour}">{escape(label)}</text>'
        )
    return "".join(parts)


def _apart(ends: Sequence[tuple[float, str, str]]) -> list[tuple[float, tuple[str, str]]]:
    """Labels beside the ends of their lines, from top to bottom, none on another."""
    placed: list[tuple[float, tuple[str, str]]] = []
    for at, label, colour in sorted(ends):
        lowest = placed[-1][0] + _LABEL_HEIGHT if placed else at
        placed.append((max(at, lowest), (label, colour)))
    return placed


def _said(seed: int, acts: Sequence[Mapping[str, Any]]) -> str:
    starts = "; ".join(
        f"from {WORDS.get(act['arm'], act['arm'])} "
        + ("never learned" if act["steps_to_90"] is None else f"learned at step {act['steps_to_90']}")
        for act in acts
    )
    return f"Reward by step after the requirement changed, seed {seed}: {starts}. Numbers in the table below."
