"""The figures of docs/real-runs.md: what training showed, arm by arm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from studies.cells import Result
from studies.drawing import DIM, FAIL, STYLE, band, percent, save, trailing

COLOURS: Mapping[str, str] = {
    "unprotected": "#e4572e",
    "kl-0.1": "#4f83cc",
    "kl-0.5": "#8e7cc3",
    "adaptive-entropy": "#e6a532",
    "protect": "#3fa796",
    "hold": "#7a8b3c",
}
OTHER = "#8c959f"
PANELS: Mapping[str, str] = {
    "reward": "Right answers",
    "entropy_nats": "Entropy, nats a token",
    "templates": "Templates among 8",
    "kl_nats": "KL to the base, nats a token",
}
"""Of a cell's trajectory, and what it is called."""
SMOOTH_STEPS = 5


def draw(cells: Sequence[Result], path: Path) -> str | None:
    """A panel a metric, a line an arm, a cross where a run had its first FAIL. What it shows, in words; ``None``
    without matplotlib."""
    try:
        import matplotlib
    except ImportError:
        return None
    matplotlib.use("agg")
    with matplotlib.rc_context(STYLE):
        _draw(cells, path)
    return (
        f"Training, trailing means over {SMOOTH_STEPS} steps. Lines: mean over seeds; bands: lowest to highest seed; "
        "crosses: first FAIL of a run"
    )


def _draw(cells: Sequence[Result], path: Path) -> None:
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(PANELS), figsize=(14.6, 3.7))
    figure.set_layout_engine("constrained", w_pad=0.06)
    for axis, (name, title) in zip(axes, PANELS.items(), strict=True):
        for arm in dict.fromkeys(cell["arm"] for cell in cells):
            mine = [cell for cell in cells if cell["arm"] == arm]
            lines = [smoothed(cell["trajectory"][name]) for cell in mine]
            colour = COLOURS.get(arm, OTHER)
            sparse = name == "kl_nats"
            band(axis, lines, colour, arm, marker="o" if sparse else None, markersize=4.2)
            for cell, (steps, values) in zip(mine, lines, strict=True):
                fails = [step for step, severity, _ in cell["findings"] if severity == "fail"]
                before = [at for at, step in enumerate(steps) if fails and step <= min(fails)]
                if before and not sparse:
                    axis.plot(steps[before[-1]], values[before[-1]], "X", color=FAIL, markersize=8.5, zorder=4,
                              markeredgecolor="white", markeredgewidth=1.1)  # fmt: skip
        axis.set(title=title, xlabel="step", xlim=(0, None), ylim=(0, None))
        axis.tick_params(colors=DIM)
    percent(axes[0])
    axes[0].legend(loc="lower right", fontsize=9.5)
    save(figure, path)


def smoothed(values: Sequence[Any]) -> tuple[list[float], list[float]]:
    """Steps, from 1, in which it was measured, and the mean of what was measured in ``SMOOTH_STEPS`` up to each."""
    measured = {float(step): value for step, value in enumerate(values, start=1) if value is not None}
    return trailing(measured, measured, SMOOTH_STEPS)
