"""A comparison of runs on a terminal."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

import rlmon.report.compare_words as words
import rlmon.report.phrases as phrases
from rlmon.audit.compared import Comparison, MetricDifference
from rlmon.printable import one_line
from rlmon.report.screen import STATUS_STYLES, bar, columns, labelled

SIDE_STYLES = ("dark_orange", "dodger_blue1")


def render(result: Comparison, *, width: int = 80) -> Group:
    """The screen for a console of ``width`` columns, drawn as literal text (nothing in it is markup)."""
    return Group(*_screen(result, width))


def _screen(result: Comparison, width: int) -> Iterator[RenderableType]:
    blank = Text("")
    styles = {"DIFFERENT": "bold black on yellow", "EQUAL": "bold black on green"}
    word = words.result_word(result)
    head = Table.grid(padding=(0, 2, 0, 0))
    head.add_column(no_wrap=True)
    head.add_column(overflow="fold")
    head.add_row(Text(f" {word} ", style=styles.get(word, "reverse")), Text(one_line(result.headline), style="bold"))
    yield head
    yield blank
    yield _sides(result)
    yield blank
    if result.settings:
        yield Text("Settings that differ", style="bold")
        yield _settings(result)
        yield blank
    if result.metrics and not result.same:
        chosen, rest = words.chosen_metrics(result)
        yield Text.assemble(("At the end", "bold"), ("  mean of the last tenth, 95 % intervals", "dim"))
        yield _metrics(chosen, width)
        yield Text(f"* distinct after correction · {words.EFFECT_WORDS}", style="dim")
        yield blank
        if rest:
            yield labelled([(title, Text(names)) for title, names in words.rest_words(rest)])
            yield blank
    if modes := _modes(result, width):
        yield Text("Formats at the end", style="bold")
        yield modes
        yield blank
    if any(check.differs for check in result.checks):
        yield Text("Checks that differ", style="bold")
        yield _checks(result)
        yield blank
    yield labelled(_closing(result))


def _closing(result: Comparison) -> list[tuple[str, Text]]:
    rows = [
        ("" if at else "Alike", Text.assemble((word, STATUS_STYLES.get(word.lower(), "dim")), f" {ids}"))
        for at, (word, ids) in enumerate(words.agreeing(result.checks))
    ]
    if not result.settings:
        rows.append(("Settings", Text(words.settings_words(result))))
    if result.other_settings:
        rows.append(
            ("Not counted", Text(f"settings that are no reason for a difference: {words.other_settings(result)}"))
        )
    rows.append(("Base", Text(one_line(result.base, 200))))
    if not result.same:
        rows.append(("Correction", Text(one_line(result.correction))))
    return rows + [("Note", Text(one_line(note))) for note in result.notes]


def _heads(result: Comparison) -> list[Text]:
    return [
        Text(label, style=f"bold {style}") for label, style in zip(words.side_labels(result), SIDE_STYLES, strict=True)
    ]


def _coloured(parts: Sequence[tuple[str, str]]) -> Text:
    text = Text()
    for status, told in parts:
        if text:
            text.append(", ", style="dim")
        text.append(told, style=STATUS_STYLES.get(status, "dim"))
    return text


def _sides(result: Comparison) -> Table:
    sides = (result.a, result.b)
    table = columns(["", *_heads(result)], frozenset(), fold=frozenset({1, 2}))

    def add(label: str, *cells: Text) -> None:
        table.add_row(Text(label, style="dim"), *cells)

    add("runs", *(Text("\n".join(words.run_lines(side))) for side in sides))
    add("verdict", *(_coloured(words.verdict_words(side)) for side in sides))
    add("steps", *(Text(words.each_of(side.steps)) for side in sides))
    add("completions", *(Text(words.each_of(side.completions)) for side in sides))
    add("formats kept", *(Text(words.share(side.kept_formats), style="bold") for side in sides))
    add("distance from base", *(Text(phrases.number(side.format_distance), style="bold") for side in sides))
    return table


def _settings(result: Comparison) -> Table:
    table = columns(["", *_heads(result)], frozenset(), fold=frozenset({0, 1, 2}))
    for row in result.settings[: words.SETTINGS_SHOWN]:
        table.add_row(Text(one_line(row.key, 60)), Text(words.setting_values(row.a)), Text(words.setting_values(row.b)))
    more = len(result.settings) - words.SETTINGS_SHOWN
    if more > 0:
        table.add_row(Text(f"{more} more", style="dim"), "", "")
    return table


def _metrics(rows: Sequence[MetricDifference], width: int) -> Table:
    heads = [Text("A", style=f"bold {SIDE_STYLES[0]}"), Text("B", style=f"bold {SIDE_STYLES[1]}"), Text("B - A")]
    heads += [Text("effect"), Text("part at")]
    cells = [words.at_the_end(row) for row in rows]
    kept = [0, 1, 2, 3, 4] if width >= 76 else [0, 1, 2, 4] if width >= 64 else [0, 1, 2]
    taken = sum(max(cell_len(heads[at].plain), *(cell_len(row[at]) for row in cells)) + 2 for at in kept)
    # A long name goes on below: a number is never cut, and neither is what tells two metrics apart.
    room = max(10, width - taken - 4)
    table = columns(["", *(heads[at] for at in kept)], frozenset(range(1, len(kept) + 1)))
    for row, numbers in zip(rows, cells, strict=True):
        name = Text("* " if row.distinct else "  ", style="bold yellow")
        name.append("\n  ".join(_broken(words.said(row.name), room)), style=_weight(row))
        # The values that a difference is made of are plain; the difference says by its weight whether it counts.
        table.add_row(name, *(Text(numbers[at], style=_weight(row) if at in (2, 3) else "") for at in kept))
    return table


def _broken(name: str, room: int) -> list[str]:
    """The name in lines of at most ``room`` cells, broken after an underscore or a slash where there is one."""
    lines = [""]
    for part in re.findall(r"[^_/ ]*[_/ ]?", name):
        if cell_len(lines[-1] + part) > room and lines[-1]:
            lines.append("")
        for letter in part:
            if cell_len(lines[-1] + letter) > room:
                lines.append("")
            lines[-1] += letter
    return lines


def _weight(row: MetricDifference) -> str:
    return "bold" if row.distinct else "dim"


def _modes(result: Comparison, width: int) -> Table | None:
    moved = words.moved_formats(result)
    if not moved:
        return None
    cells = 20 if width >= 100 else 10
    table = columns(["", "base", *_heads(result)], frozenset({1}))
    for row in moved[: words.MODES_SHOWN]:
        bars = [
            Text.assemble(f"{words.share(value):>6} ", (bar(value, cells), style))
            for value, style in zip((row.last_a, row.last_b), SIDE_STYLES, strict=True)
        ]
        table.add_row(Text(one_line(row.mode, 24)), Text(words.share(row.base), style="dim"), *bars)
    more = len(moved) - words.MODES_SHOWN
    if more > 0:
        table.add_row(Text(f"{more} more", style="dim"), "", "", "")
    return table


def _checks(result: Comparison) -> Table:
    table = columns(["", *_heads(result)], frozenset(), fold=frozenset({1, 2}))
    for check in result.checks:
        if check.differs:
            table.add_row(
                Text(one_line(check.id, 40)),
                _coloured(words.status_words(check.a, check.onsets_a)),
                _coloured(words.status_words(check.b, check.onsets_b)),
            )
    return table
