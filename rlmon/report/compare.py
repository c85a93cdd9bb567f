"""A comparison of runs on a terminal, as Markdown, as JSON and as one HTML file that needs nothing else."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from itertools import takewhile
from json import dumps
from pathlib import Path

from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

import rlmon.report.phrases as phrases
from rlmon.audit.comparison import (
    OF_FUNCTIONS,
    TOTAL_REWARD,
    CheckDifference,
    Comparison,
    MetricDifference,
    SideFacts,
    family,
    matters,
)
from rlmon.audit.incidents import listed
from rlmon.printable import one_line
from rlmon.records import WORST_FIRST
from rlmon.report.as_json import plain
from rlmon.report.audit import CHARTS
from rlmon.report.markdown import MAX_CHARACTERS, STATUS_SIGNS, cut, escape
from rlmon.report.terminal import STATUS_STYLES

METRICS_SHOWN = 12
SETTINGS_SHOWN = 20
MODES_SHOWN = 8
RUNS_SHOWN = 6
LEAST_SHARE = 0.005
"""Formats that differ by less are not shown on a terminal."""
STATUSES: tuple[str, ...] = (*WORST_FIRST, "absent")
SIDE_STYLES = ("dark_orange", "dodger_blue1")
EFFECT_WORDS = "effect: the difference in units of one step's noise at the base"

ITEMS_SHOWN = 300
ITEM_CHARACTERS = 500


def side_names(a: Sequence[Path], b: Sequence[Path]) -> tuple[str, str]:
    """Names of the sides from the last part of their paths that differs; ``("A", "B")`` where none is short and plain.

    Seeds of one arm share a name: ``kl-seed0`` and ``kl-seed1`` are ``kl``.
    """
    for left, right in zip(reversed(_parts_in_common(a)), reversed(_parts_in_common(b)), strict=False):
        if left == right:
            continue
        # Names go into labels like "kl 2": without spaces none can be taken for another.
        fine = all(re.fullmatch(r"[A-Za-z0-9][\w.+=-]{0,23}", name, re.ASCII) for name in (left, right))
        return (left, right) if fine and not {left, right} & {"A", "B"} else ("A", "B")
    return "A", "B"


def _parts_in_common(paths: Sequence[Path]) -> list[str]:
    """The parts that all paths begin with, and what the first differing ones begin with."""
    split = [path.absolute().parts for path in paths]
    common: list[str] = []
    for parts in zip(*split, strict=False):
        if len(set(parts)) > 1:
            start = "".join(
                letters[0] for letters in takewhile(lambda one: len(set(one)) == 1, zip(*parts, strict=False))
            )
            start = re.sub(r"[-_.]?(seed|run|s)?[-_.]?\d*$", "", start, flags=re.IGNORECASE)
            return [*common, start] if start else common
        common.append(parts[0])
    return common


def json(result: Comparison) -> str:
    """One object, everything but the curves; strict JSON in ASCII."""
    return dumps(plain(result.to_json()), allow_nan=False, indent=2) + "\n"


# --- words and numbers --------------------------------------------------------------------------------------------


def result_word(result: Comparison) -> str:
    if not result.metrics:
        return "NOTHING IN COMMON"
    if result.same:
        return "EQUAL"
    return "DIFFERENT" if any(row.distinct for row in result.metrics) else "NO CLEAR DIFFERENCE"


def _short(name: str) -> str:
    return one_line(name.removeprefix("rlmon/"), 60)


def _said(name: str) -> str:
    """The title of a metric, as charts have it."""
    return one_line(metric_title(name), 60)


def metric_title(name: str) -> str:
    """The title of the audit's chart of this metric, or its name in words."""
    for title, _, curves in CHARTS:
        for known, label in curves:
            if known == name:
                return title if len(curves) == 1 or label == "all" else f"{title}, {label}"
    if not name.startswith("rlmon/"):
        return name
    words = name.removeprefix("rlmon/").replace("_", " ").replace("/", ": ", 1)
    return words[:1].upper() + words[1:]


def _signed(value: float) -> str:
    return f"{'+' if value > 0 else ''}{phrases.number(value)}"


def difference_words(row: MetricDifference) -> str:
    """``+3.20 ± 0.33``: two digits of the interval's reach; the difference alone where there is no interval."""
    if row.low is None or row.high is None:
        return _signed(row.difference)
    reach = (row.high - row.low) / 2.0
    if reach == 0.0:
        return f"{_signed(row.difference)} ± 0" if row.difference else "0"
    decimals = 1 - math.floor(math.log10(reach))
    if decimals > 6:
        return f"{row.difference:+.1e} ± {reach:.1e}"
    decimals = max(0, decimals)
    return f"{row.difference:+,.{decimals}f} ± {reach:,.{decimals}f}"


def _effect(row: MetricDifference) -> str:
    return "" if row.effect is None else f"{row.effect:+.1f}"


def _share(value: float | None) -> str:
    """Per cent without decimals from 10 on: ``26 %``, ``3.1 %``."""
    if value is None:
        return phrases.NOT_MEASURED
    percent = 100.0 * value
    return f"{percent:.0f} %" if percent >= 9.95 or percent == 0.0 else f"{percent:.1f} %"


def each_of(values: Sequence[int]) -> str:
    """``180``, ``180 each`` or ``180, 175``."""
    if len(set(values)) == 1:
        return f"{values[0]:,}" + (" each" if len(values) > 1 else "")
    rest = f", {len(values) - RUNS_SHOWN} more" if len(values) > RUNS_SHOWN else ""
    return ", ".join(f"{value:,}" for value in values[:RUNS_SHOWN]) + rest


def _label(letter: str, side: SideFacts) -> str:
    return letter if side.name == letter else f"{letter} {one_line(side.name, 40)}"


def side_labels(result: Comparison) -> tuple[str, str]:
    return _label("A", result.a), _label("B", result.b)


def status_words(statuses: Sequence[str], onsets: Sequence[int | None]) -> list[tuple[str, str]]:
    """``[("fail", "2 FAIL at 53, 62"), ("pass", "1 PASS")]``, worst first; no counts for one run."""
    found = []
    for status in STATUSES:
        here = [at for at, one in enumerate(statuses) if one == status]
        if not here:
            continue
        known = sorted(step for at in here if (step := onsets[at]) is not None)
        words = f"{len(here)} {status.upper()}" if len(statuses) > 1 else status.upper()
        shown = ", ".join(str(step) for step in known[:RUNS_SHOWN]) + (", ..." if len(known) > RUNS_SHOWN else "")
        found.append((status, f"{words} at {shown}" if known else words))
    return found


def verdict_words(side: SideFacts) -> list[tuple[str, str]]:
    known = [verdict if verdict in WORST_FIRST else "skip" for verdict in side.verdicts]
    found = status_words(known, [None] * len(known))
    return [(status, text.replace("SKIP", "UNSURE")) for status, text in found]


def _values(values: Sequence[str], limit: int = 60) -> str:
    return " | ".join(one_line(value, limit) for value in values) if values else "not set"


def chosen_metrics(result: Comparison) -> tuple[list[MetricDifference], list[MetricDifference]]:
    """The metrics for the table, and the others: of each family the one that matters most, the important families
    first, then those that are distinct by their effect."""
    important = [row for row in result.metrics if matters(row.name)]
    others = [row for row in result.metrics if not matters(row.name)]
    others.sort(key=lambda row: (not row.distinct, -abs(row.effect or 0.0)))
    one_function = sum(row.name.startswith(OF_FUNCTIONS) for row in important) == 1
    total = any(row.name == TOTAL_REWARD for row in important)
    shown: dict[str, MetricDifference] = {}
    for row in [*important, *others]:
        # One function alone is the total under another name.
        alike = one_function and total and row.name.startswith(OF_FUNCTIONS)
        if not alike and (matters(row.name) or row.difference != 0.0):
            shown.setdefault(family(row.name), row)
    first = list(shown.values())[:METRICS_SHOWN]
    names = {row.name for row in first}
    return first, [row for row in [*important, *others] if row.name not in names]


def _rest(rows: Sequence[MetricDifference]) -> list[tuple[str, str]]:
    """The metrics outside the table in words: of those that differ the strongest of each family."""
    distinct = [row for row in rows if row.distinct]
    equal = [row for row in rows if row.difference == 0.0 and not row.distinct]
    noise = [row for row in rows if row.difference != 0.0 and not row.distinct]
    said = []
    if distinct:
        kinds: dict[str, list[MetricDifference]] = {}
        for row in distinct:
            kinds.setdefault(family(row.name), []).append(row)
        alike = [f" and {len(found) - 1} like it" if len(found) > 1 else "" for found in kinds.values()]
        strongest = [max(found, key=lambda row: abs(row.effect or 0.0)) for found in kinds.values()]
        names = [f"{_named(row)}{more}" for row, more in zip(strongest, alike, strict=True)]
        said.append((f"Also distinct ({len(distinct)})", ", ".join(names[:ITEMS_SHOWN])))
    for title, part in (("Not distinct", noise), ("Same mean", equal)):
        if part:
            kinds_of = listed(list(dict.fromkeys(_short(family(row.name)) for row in part)), len(part))
            said.append((f"{title} ({len(part)})", f"metrics of {kinds_of}"))
    return said


def _named(row: MetricDifference) -> str:
    place = "" if row.departure_step is None else f" from step {row.departure_step}"
    return f"{_said(row.name)} {phrases.number(row.last_a)} / {phrases.number(row.last_b)}{place}"


def _agreeing(checks: Sequence[CheckDifference]) -> list[tuple[str, str]]:
    """``("PASS", "length-collapse, ...")``: what both sides say alike, by the status of the first run."""
    groups: dict[str, list[str]] = {}
    for check in checks:
        if not check.differs:
            status = next(status for status in STATUSES if status in check.a) if check.a else "absent"
            groups.setdefault(status, []).append(one_line(check.id, 60))
    return [(status.upper(), ", ".join(groups[status])) for status in STATUSES if status in groups]


def settings_words(result: Comparison) -> str:
    """What is said where no table of settings stands."""
    note = one_line(result.settings_note)
    none = not result.settings and note.endswith("compared")
    return f"{note}, none differs" if none else note


def _other_settings(result: Comparison) -> str:
    names = ", ".join(one_line(row.key, 60) for row in result.other_settings[:SETTINGS_SHOWN])
    more = len(result.other_settings) - SETTINGS_SHOWN
    return f"{names}, {more} more" if more > 0 else names


# --- terminal -----------------------------------------------------------------------------------------------------


def terminal(result: Comparison, *, width: int = 80) -> Group:
    """The screen for a console of ``width`` columns, drawn as literal text (nothing in it is markup)."""
    return Group(*_screen(result, width))


def _screen(result: Comparison, width: int) -> Iterator[RenderableType]:
    blank = Text("")
    styles = {"DIFFERENT": "bold black on yellow", "EQUAL": "bold black on green"}
    word = result_word(result)
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
        chosen, rest = chosen_metrics(result)
        yield Text.assemble(("At the end", "bold"), ("  mean of the last tenth, 95 % intervals", "dim"))
        yield _metrics(chosen, width)
        yield Text(f"* distinct after correction · {EFFECT_WORDS}", style="dim")
        yield blank
        if rest:
            yield _facts([(title, Text(names)) for title, names in _rest(rest)])
            yield blank
    if modes := _modes(result, width):
        yield Text("Formats at the end", style="bold")
        yield modes
        yield blank
    if any(check.differs for check in result.checks):
        yield Text("Checks that differ", style="bold")
        yield _checks(result)
        yield blank
    yield _facts(_closing(result))


def _closing(result: Comparison) -> list[tuple[str, Text]]:
    rows = [
        ("" if at else "Alike", Text.assemble((word, _style(word.lower())), f" {ids}"))
        for at, (word, ids) in enumerate(_agreeing(result.checks))
    ]
    if not result.settings:
        rows.append(("Settings", Text(settings_words(result))))
    if result.other_settings:
        rows.append(("Not counted", Text(f"settings that are no reason for a difference: {_other_settings(result)}")))
    rows.append(("Base", Text(one_line(result.base, 200))))
    if not result.same:
        rows.append(("Correction", Text(one_line(result.correction))))
    return rows + [("Note", Text(one_line(note))) for note in result.notes]


def _facts(rows: Sequence[tuple[str, Text]]) -> Table:
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for label, text in rows:
        table.add_row(Text(label, style="dim"), text)
    return table


def _table(heads: Sequence[Text | str], right: frozenset[int], *, fold: frozenset[int] = frozenset()) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", pad_edge=False)
    for at, head in enumerate(heads):
        folded = at in fold
        table.add_column(
            head,
            justify="right" if at in right else "left",
            no_wrap=not folded,
            overflow="fold" if folded else "ellipsis",
        )
    return table


def _heads(result: Comparison) -> list[Text]:
    return [Text(label, style=f"bold {style}") for label, style in zip(side_labels(result), SIDE_STYLES, strict=True)]


def _coloured(parts: Sequence[tuple[str, str]]) -> Text:
    text = Text()
    for status, words in parts:
        if text:
            text.append(", ", style="dim")
        text.append(words, style=_style(status))
    return text


def _style(status: str) -> str:
    return next((style for known, style in STATUS_STYLES.items() if known == status), "dim")


def _sides(result: Comparison) -> Table:
    sides = (result.a, result.b)
    table = _table(["", *_heads(result)], frozenset(), fold=frozenset({1, 2}))

    def add(label: str, *cells: Text) -> None:
        table.add_row(Text(label, style="dim"), *cells)

    add("runs", *(Text("\n".join(_run_lines(side))) for side in sides))
    add("verdict", *(_coloured(verdict_words(side)) for side in sides))
    add("steps", *(Text(each_of(side.steps)) for side in sides))
    add("completions", *(Text(each_of(side.completions)) for side in sides))
    add("formats kept", *(Text(_share(side.kept_formats), style="bold") for side in sides))
    add("distance from base", *(Text(phrases.number(side.format_distance), style="bold") for side in sides))
    return table


def _run_lines(side: SideFacts) -> list[str]:
    lines = [one_line(run, 200) for run in side.runs[:RUNS_SHOWN]]
    more = len(side.runs) - RUNS_SHOWN
    return [*lines, f"{more} more"] if more > 0 else lines


def _settings(result: Comparison) -> Table:
    table = _table(["", *_heads(result)], frozenset(), fold=frozenset({0, 1, 2}))
    for row in result.settings[:SETTINGS_SHOWN]:
        table.add_row(Text(one_line(row.key, 60)), Text(_values(row.a)), Text(_values(row.b)))
    more = len(result.settings) - SETTINGS_SHOWN
    if more > 0:
        table.add_row(Text(f"{more} more", style="dim"), "", "")
    return table


def _metrics(rows: Sequence[MetricDifference], width: int) -> Table:
    heads = [Text("A", style=f"bold {SIDE_STYLES[0]}"), Text("B", style=f"bold {SIDE_STYLES[1]}"), Text("B - A")]
    heads += [Text("effect"), Text("part at")]
    cells = [
        [
            phrases.number(row.last_a),
            phrases.number(row.last_b),
            difference_words(row),
            _effect(row),
            phrases.step(row.departure_step),
        ]
        for row in rows
    ]
    kept = [0, 1, 2, 3, 4] if width >= 76 else [0, 1, 2, 4] if width >= 64 else [0, 1, 2]
    taken = sum(max(cell_len(heads[at].plain), *(cell_len(row[at]) for row in cells)) + 2 for at in kept)
    # A long name goes on below: a number is never cut, and neither is what tells two metrics apart.
    room = max(10, width - taken - 4)
    table = _table(["", *(heads[at] for at in kept)], frozenset(range(1, len(kept) + 1)))
    for row, numbers in zip(rows, cells, strict=True):
        name = Text("* " if row.distinct else "  ", style="bold yellow")
        name.append("\n  ".join(_broken(_said(row.name), room)), style=_weight(row))
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
    moved = [row for row in result.modes if abs(row.last_b - row.last_a) >= LEAST_SHARE]
    if not moved:
        return None
    cells = 20 if width >= 100 else 10
    table = _table(["", "base", *_heads(result)], frozenset({1}))
    for row in moved[:MODES_SHOWN]:
        bars = [
            Text.assemble(f"{_share(share):>6} ", (_bar(share, cells), style))
            for share, style in zip((row.last_a, row.last_b), SIDE_STYLES, strict=True)
        ]
        table.add_row(Text(one_line(row.mode, 24)), Text(_share(row.base), style="dim"), *bars)
    more = len(moved) - MODES_SHOWN
    if more > 0:
        table.add_row(Text(f"{more} more", style="dim"), "", "", "")
    return table


def _bar(share: float, cells: int) -> str:
    """A bar of block characters, in eighths of a cell."""
    eighths = round(min(1.0, max(0.0, share)) * cells * 8)
    return "█" * (eighths // 8) + ("", "▏", "▎", "▍", "▌", "▋", "▊", "▉")[eighths % 8]


def _checks(result: Comparison) -> Table:
    table = _table(["", *_heads(result)], frozenset(), fold=frozenset({1, 2}))
    for check in result.checks:
        if check.differs:
            table.add_row(
                Text(one_line(check.id, 40)),
                _coloured(status_words(check.a, check.onsets_a)),
                _coloured(status_words(check.b, check.onsets_b)),
            )
    return table


# --- Markdown -----------------------------------------------------------------------------------------------------


def markdown(result: Comparison) -> str:
    """The comparison for a comment on a pull request; at most 60,000 characters, then it says what is missing."""
    summary, details = "\n".join(_summary(result)), "\n".join(_details(result))
    if len(summary) + len(details) < MAX_CHARACTERS:
        return f"{summary}\n{details}"
    return cut(summary, "rlmon compare --html")


def _markdown_table(heads: Sequence[str], right: frozenset[int], rows: Sequence[Sequence[str]]) -> list[str]:
    rules = ["---:" if at in right else "---" for at in range(len(heads))]
    return [f"| {' | '.join(row)} |" for row in (heads, rules, *rows)] + [""]


def _summary(result: Comparison) -> Iterator[str]:
    word = result_word(result)
    signs = {"DIFFERENT": "🟡", "EQUAL": "🟢"}
    a, b = (escape(label) for label in side_labels(result))
    yield f"## {signs.get(word, '⚪')} rlmon compare: {word}"
    yield from ("", f"**{escape(result.headline)}**", "")
    rows = [
        ("runs", "<br>".join(escape(line, 200) for line in _run_lines(result.a)),
         "<br>".join(escape(line, 200) for line in _run_lines(result.b))),
        ("verdict", *(", ".join(text for _, text in verdict_words(side)) for side in (result.a, result.b))),
        ("steps", each_of(result.a.steps), each_of(result.b.steps)),
        ("completions", each_of(result.a.completions), each_of(result.b.completions)),
        ("formats kept", _share(result.a.kept_formats), _share(result.b.kept_formats)),
        ("distance from base", phrases.number(result.a.format_distance), phrases.number(result.b.format_distance)),
    ]  # fmt: skip
    yield from _markdown_table(["", a, b], frozenset(), rows)
    if result.settings:
        yield from ("**Settings that differ**", "")
        shown = [
            [escape(row.key, 60), escape(_values(row.a), 200), escape(_values(row.b), 200)]
            for row in result.settings[:SETTINGS_SHOWN]
        ]
        more = len(result.settings) - SETTINGS_SHOWN
        yield from _markdown_table(
            ["setting", a, b], frozenset(), shown + ([[f"{more} more", "", ""]] if more > 0 else [])
        )
    if result.metrics and not result.same:
        chosen, _ = chosen_metrics(result)
        yield from ("**At the end** (mean of the last tenth; * distinct after correction)", "")
        yield from _metric_rows(chosen)
    moved = [row for row in result.modes if abs(row.last_b - row.last_a) >= LEAST_SHARE][:MODES_SHOWN]
    if moved:
        yield from ("**Formats at the end**", "")
        cells = [[escape(row.mode, 60), *map(_share, (row.base, row.last_a, row.last_b))] for row in moved]
        yield from _markdown_table(["format", "base", a, b], frozenset({1, 2, 3}), cells)
    differing = [check for check in result.checks if check.differs]
    if differing:
        yield from ("**Checks that differ**", "")
        signed = [
            [escape(check.id, 60), _signs(check.a, check.onsets_a), _signs(check.b, check.onsets_b)]
            for check in differing
        ]
        yield from _markdown_table(["check", a, b], frozenset(), signed)


def _signs(statuses: Sequence[str], onsets: Sequence[int | None]) -> str:
    signs = {status: sign.split()[0] for status, sign in STATUS_SIGNS.items()}
    return ", ".join(f"{signs.get(status, '⚪')} {words}" for status, words in status_words(statuses, onsets))


def _metric_rows(rows: Sequence[MetricDifference]) -> list[str]:
    cells = [
        [
            "\\*" if row.distinct else "",
            escape(_said(row.name)),
            phrases.number(row.last_a),
            phrases.number(row.last_b),
            difference_words(row),
            _effect(row),
            phrases.step(row.departure_step),
        ]
        for row in rows
    ]
    return _markdown_table(["", "metric", "A", "B", "B - A", "effect", "part at step"], frozenset(range(2, 7)), cells)


def _details(result: Comparison) -> Iterator[str]:
    _, rest = chosen_metrics(result)
    if rest and not result.same:
        yield from (f"<details><summary>{len(rest)} further metrics</summary>", "", *_metric_rows(rest[:ITEMS_SHOWN]))
        yield from ("</details>", "")
    facts = [(f"Alike, {word}", ids) for word, ids in _agreeing(result.checks)]
    facts += [] if result.settings else [("Settings", settings_words(result))]
    if result.other_settings:
        facts.append(("Settings that are no reason for a difference", _other_settings(result)))
    facts += [("Base", one_line(result.base, 200)), ("Effect", EFFECT_WORDS.partition(": ")[2])]
    facts += [] if result.same else [("Correction", result.correction)]
    for label, text in [*facts, *(("Note", note) for note in result.notes)]:
        yield f"{label}: {escape(text)}  "
    yield ""
