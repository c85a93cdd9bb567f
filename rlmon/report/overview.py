"""Several audits on a terminal: a line and a sparkline a run, worst first, and last what they come to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from rich.cells import cell_len, set_cell_size
from rich.console import Group
from rich.text import Text

import rlmon.report.phrases as phrases
from rlmon.audit.overview import WORST_FIRST, Line
from rlmon.printable import one_line
from rlmon.records import VERDICT_WORDS
from rlmon.report.screen import VERDICT_STYLES, sparkline

WIDE = 120
"""Columns from which what happened stands beside the numbers, else below them."""
_SHORT = {
    "rlmon/health/reward_mean": "reward",
    "rlmon/health/truncated": "truncated",
    "rlmon/format/effective": "formats",
    "rlmon/entropy/mean": "entropy",
    "rlmon/kl/mean": "KL",
    "rlmon/health/length_mean": "tokens",
}
Cell = tuple[str, str]
"""Text and style."""


def render(lines: Sequence[Line], *, width: int = 80) -> Group:
    """The screen for a console of ``width`` columns, drawn as literal text (nothing in it is markup)."""
    wide = width >= WIDE
    rows = [_cells(line, wide) for line in lines]
    widths = [max((cell_len(row[column][0]) for row in rows), default=0) for column in range(5)]
    rest = width - sum(widths[:1] + widths[2:]) - 2 * len(widths) - (30 if wide else 0)
    widths[1] = min(widths[1], max(12, rest))
    drawn = []
    for line, row in zip(lines, rows, strict=True):
        text = Text(no_wrap=True, overflow="ellipsis")
        for (content, style), size in zip(row, widths, strict=True):
            text.append(_sized(content, size), style=style).append("  ")
        said = one_line(line.said, 300)
        if wide:
            text.append(said, style="dim")
        drawn.append(text)
        if not wide:
            drawn.append(Text(f"  {_judged(line)}. {said}", style="dim", no_wrap=True, overflow="ellipsis"))
    counts = Counter(line.audit.verdict for line in lines)
    tally = ", ".join(f"{counts[name]} {VERDICT_WORDS[name]}" for name in WORST_FIRST if counts[name])
    return Group(*drawn, Text(""), Text(f"{len(lines)} runs: {tally}. --verbose shows all of each."))


def _cells(line: Line, wide: bool) -> list[Cell]:
    """Verdict, name, how much was read and judged, the curve, and its ends."""
    audit = line.audit
    numbers = ""
    if line.metric is not None:
        name = _SHORT.get(line.metric, one_line(line.metric.split("/", 1)[-1], 24))
        numbers = f"{name} {phrases.number(line.values[0])} → {phrases.number(line.values[-1])}"
    return [
        (VERDICT_WORDS[audit.verdict], VERDICT_STYLES.get(audit.verdict, "reverse")),
        (one_line(line.name, 200), "bold"),
        (f"{audit.run.steps:,} steps, {_judged(line)}" if wide else f"{audit.run.steps:,}", ""),
        (sparkline(line.values, 20 if wide else 12), "cyan"),
        (numbers, ""),
    ]


def _judged(line: Line) -> str:
    return f"{line.audit.coverage.judged} of {line.audit.coverage.checks} judged"


def _sized(text: str, size: int) -> str:
    """The text in so many cells; the end of a longer one, since names of runs differ there."""
    if cell_len(text) <= size:
        return set_cell_size(text, size)
    while cell_len(text) > size - 1:
        text = text[1:]
    return f"…{text}"
