"""What is drawn alike on a terminal: colours, tables without rules, labelled facts, acts of a policy, small curves."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence

from rich.table import Table
from rich.text import Text

import rlmon.report.phrases as phrases
from rlmon.acts import Entry
from rlmon.printable import one_line

STATUS_STYLES: Mapping[str, str] = {
    "fail": "bold red",
    "warn": "yellow",
    "error": "magenta",
    "unsure": "magenta",
    "note": "cyan",
    "pass": "green",
    "skip": "dim",
}
VERDICT_STYLES = {"fail": "bold white on red", "warn": "bold black on yellow", "pass": "bold black on green"}
OUTCOME_STYLES = {"applied": "cyan", "failed": "bold red", "dry run": "dim cyan"}
EFFECT_STYLES = {"helped": "green", "harmed": "yellow"}
WIDE = 110
"""Columns from which a check's message fits beside its numbers."""
SPARKS = "▁▂▃▄▅▆▇█"


def columns(heads: Sequence[Text | str], right: frozenset[int], *, fold: frozenset[int] = frozenset()) -> Table:
    """A table without rules; ``right``: columns of numbers, ``fold``: those whose text goes on below."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", pad_edge=False)
    for at, head in enumerate(heads):
        table.add_column(
            head,
            justify="right" if at in right else "left",
            no_wrap=at not in fold,
            overflow="fold" if at in fold else "ellipsis",
        )
    return table


def labelled(rows: Sequence[tuple[str | Text, Text]]) -> Table:
    """Facts behind their labels."""
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for label, text in rows:
        table.add_row(Text(label, style="dim") if isinstance(label, str) else label, text)
    return table


def hanging(indent: str | Text, text: Text) -> Table:
    """A text whose further lines stand under its first."""
    table = Table.grid()
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row(indent, text)
    return table


def act_lines(shown: Sequence[Entry]) -> Iterator[Text]:
    """One line for each entry: what became of it, when, by which rule, what was turned, what it did, and why."""
    steps = [phrases.act_steps(entry) for entry in shown]
    wide, names = (max((len(text) for text in texts), default=0) for texts in (steps, [e.newest.rule for e in shown]))
    for entry, when in zip(shown, steps, strict=True):
        act = entry.newest
        line = Text(no_wrap=True, overflow="ellipsis")
        line.append(f"{phrases.outcome(act.outcome):<7} ", style=OUTCOME_STYLES.get(act.outcome, ""))
        line.append(f"{when:<{wide}}  ", style="dim")
        line.append(f"{one_line(act.rule, 24):<{min(names, 24)}}  ", style="bold")
        parts = [(one_line(act.change.replace(" -> ", " → "), 60), "")]
        parts.append((f"{entry.count:,} times" if entry.count > 1 else "", ""))
        parts.append((one_line(entry.effect, 60), EFFECT_STYLES.get(entry.effect, "")))
        parts.append((one_line(act.reason), "dim"))
        for at, (text, style) in enumerate(part for part in parts if part[0]):
            line.append(" · " if at else "", style="dim")
            line.append(text, style=style)
        yield line


def sparkline(values: Sequence[float], width: int) -> str:
    """At most ``width`` block characters from the smallest (lowest block) to the largest value; empty for none."""
    if not values:
        return ""
    columns = min(width, len(values))
    edges = [round(i * len(values) / columns) for i in range(columns + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in itertools.pairwise(edges)]
    low, span = min(means), max(means) - min(means)
    if span <= 1e-9 * max(map(abs, means)):
        span = 0.0  # what the rounding of means left is no change
    top = len(SPARKS) - 1
    return "".join(SPARKS[round((mean - low) / span * top) if span > 0 else 0] for mean in means)


def bar(share: float, cells: int) -> str:
    """A bar of block characters, in eighths of a cell."""
    eighths = round(min(1.0, max(0.0, share)) * cells * 8)
    return "█" * (eighths // 8) + ("", "▏", "▎", "▍", "▌", "▋", "▊", "▉")[eighths % 8]
