"""How figures of the studies look: one style, lines over seeds with a band, equal files for equal numbers."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

INK, DIM, GRID, WARN, FAIL = "#1b1f24", "#5b6470", "#dfe3e8", "#9a6a00", "#c0271a"

STYLE: dict[Any, Any] = {
    "font.size": 10.5, "text.color": INK, "axes.edgecolor": GRID, "axes.labelcolor": DIM, "axes.titlecolor": INK,
    "axes.titlesize": 12, "axes.titleweight": "bold", "axes.titlelocation": "left", "axes.titlepad": 12.0,
    "axes.spines.top": False, "axes.spines.right": False, "axes.spines.left": False, "axes.grid": True,
    "axes.grid.axis": "y", "axes.axisbelow": True, "grid.color": GRID, "xtick.color": DIM, "ytick.color": DIM,
    "xtick.labelcolor": DIM, "ytick.labelcolor": DIM, "ytick.major.size": 0, "legend.frameon": False,
    "figure.facecolor": "white", "savefig.dpi": 160, "lines.solid_capstyle": "round",
}  # fmt: skip
"""For ``matplotlib.rc_context``."""

Lines = list[tuple[list[float], list[float]]]
"""(rounds, values) of each seed."""


def trailing(
    measured: Mapping[float, float],
    rounds: Iterable[float],
    window: int,
    middle: Callable[[Sequence[float]], float] = statistics.fmean,
) -> tuple[list[float], list[float]]:
    """(rounds, values): ``middle`` of what was ``measured``, by round, in the ``window`` rounds up to each of
    ``rounds``; those without anything are left out."""
    recent = {at: [value for before, value in measured.items() if 0 <= at - before < window] for at in rounds}
    smooth = {at: middle(values) for at, values in recent.items() if values}
    return list(smooth), list(smooth.values())


def band(
    axis: Any,
    lines: Lines,
    colour: str,
    label: str,
    middle: Callable[[Sequence[float]], float] = statistics.fmean,
    *,
    most_apart: float = math.inf,
    **line: Any,
) -> None:
    """``middle`` over the seeds that were measured at a round, and the band from the lowest to the highest of them; no
    line across more than ``most_apart`` rounds without a measurement."""
    found: dict[float, list[float]] = {}
    for rounds, values in lines:
        for x, value in zip(rounds, values, strict=True):
            found.setdefault(x, []).append(value)
    at = sorted(found)
    breaks = [before + 0.5 for before, after in itertools.pairwise(at) if after - before > most_apart]
    at = sorted([*at, *breaks])
    columns = [found.get(x, [math.nan]) for x in at]
    axis.fill_between(at, [min(c) for c in columns], [max(c) for c in columns], color=colour, alpha=0.16, linewidth=0)
    axis.plot(at, [middle(c) for c in columns], color=colour, linewidth=2.2, label=label, **line)


def percent(axis: Any, decimals: int = 0) -> None:
    from matplotlib.ticker import PercentFormatter

    axis.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=decimals))


def save(figure: Any, path: Path) -> None:
    from matplotlib import pyplot

    figure.savefig(path, metadata={"Software": None})
    pyplot.close(figure)
