"""A comparison of runs as Markdown for a pull request comment or a CI job summary."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import rlmon.report.compare_words as words
import rlmon.report.phrases as phrases
from rlmon.audit.compared import Comparison, MetricDifference
from rlmon.printable import one_line
from rlmon.report.charts import ITEMS_SHOWN
from rlmon.report.markup import MAX_CHARACTERS, STATUS_SIGNS, cut, details, escape, table


def render(result: Comparison) -> str:
    """The comparison for a comment on a pull request; at most 60,000 characters, then it says what is missing."""
    summary, details = "\n".join(_summary(result)), "\n".join(_details(result))
    if len(summary) + len(details) < MAX_CHARACTERS:
        return f"{summary}\n{details}"
    return cut(summary, "rlmon compare --html")


def _summary(result: Comparison) -> Iterator[str]:
    word = words.result_word(result)
    signs = {"DIFFERENT": "🟡", "EQUAL": "🟢"}
    a, b = (escape(label) for label in words.side_labels(result))
    yield f"## {signs.get(word, '⚪')} rlmon compare: {word}"
    yield from ("", f"**{escape(result.headline)}**", "")
    rows = [
        ("runs", "<br>".join(escape(line, 200) for line in words.run_lines(result.a)),
         "<br>".join(escape(line, 200) for line in words.run_lines(result.b))),
        ("verdict", *(", ".join(text for _, text in words.verdict_words(side)) for side in (result.a, result.b))),
        ("steps", words.each_of(result.a.steps), words.each_of(result.b.steps)),
        ("completions", words.each_of(result.a.completions), words.each_of(result.b.completions)),
        ("formats kept", words.share(result.a.kept_formats), words.share(result.b.kept_formats)),
        ("distance from base", phrases.number(result.a.format_distance), phrases.number(result.b.format_distance)),
    ]  # fmt: skip
    yield from table(["", a, b], rows)
    if result.settings:
        yield from ("**Settings that differ**", "")
        shown = [
            [escape(row.key, 60), escape(words.setting_values(row.a), 200), escape(words.setting_values(row.b), 200)]
            for row in result.settings[: words.SETTINGS_SHOWN]
        ]
        more = len(result.settings) - words.SETTINGS_SHOWN
        yield from table(["setting", a, b], shown + ([[f"{more} more", "", ""]] if more > 0 else []))
    if result.metrics and not result.same:
        chosen, _ = words.chosen_metrics(result)
        yield from ("**At the end** (mean of the last tenth; * distinct after correction)", "")
        yield from _metrics(chosen)
    if moved := words.moved_formats(result)[: words.MODES_SHOWN]:
        yield from ("**Formats at the end**", "")
        cells = [[escape(row.mode, 60), *map(words.share, (row.base, row.last_a, row.last_b))] for row in moved]
        yield from table(["format", "base", a, b], cells, frozenset({1, 2, 3}))
    differing = [check for check in result.checks if check.differs]
    if differing:
        yield from ("**Checks that differ**", "")
        signed = [
            [escape(check.id, 60), _signs(check.a, check.onsets_a), _signs(check.b, check.onsets_b)]
            for check in differing
        ]
        yield from table(["check", a, b], signed)


def _signs(statuses: Sequence[str], onsets: Sequence[int | None]) -> str:
    signs = {status: sign.split()[0] for status, sign in STATUS_SIGNS.items()}
    return ", ".join(f"{signs.get(status, '⚪')} {told}" for status, told in words.status_words(statuses, onsets))


def _metrics(rows: Sequence[MetricDifference]) -> list[str]:
    cells = [["\\*" if row.distinct else "", escape(words.said(row.name)), *words.at_the_end(row)] for row in rows]
    return table(["", "metric", "A", "B", "B - A", "effect", "part at step"], cells, frozenset(range(2, 7)))


def _details(result: Comparison) -> Iterator[str]:
    _, rest = words.chosen_metrics(result)
    if rest and not result.same:
        yield from details(f"{len(rest)} further metrics", _metrics(rest[:ITEMS_SHOWN]))
    facts = [(f"Alike, {word}", ids) for word, ids in words.agreeing(result.checks)]
    facts += [] if result.settings else [("Settings", words.settings_words(result))]
    if result.other_settings:
        facts.append(("Settings that are no reason for a difference", words.other_settings(result)))
    facts += [("Base", one_line(result.base, 200)), ("Effect", words.EFFECT_WORDS.partition(": ")[2])]
    facts += [] if result.same else [("Correction", result.correction)]
    for label, text in [*facts, *(("Note", note) for note in result.notes)]:
        yield f"{label}: {escape(text)}  "
    yield ""
