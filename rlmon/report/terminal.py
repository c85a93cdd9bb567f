"""An audit on a terminal: what was read, the checks, what happened and what to change, and last the verdict."""

from __future__ import annotations

from collections.abc import Iterator

from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

import rlmon.report.phrases as phrases
from rlmon.acts import entries, fold, summary
from rlmon.audit.clauses import percent
from rlmon.audit.incidents import Incident, incidents
from rlmon.audit.result import Audit, Check, Example
from rlmon.printable import one_line
from rlmon.records import VERDICT_WORDS, Status
from rlmon.report.screen import STATUS_STYLES, VERDICT_STYLES, WIDE, act_lines, columns, hanging, labelled

FATE_STYLES = {"extinct": "red", "shrunk": "yellow", "grown": "cyan", "newborn": "cyan", "steady": "dim"}
MODES_SHOWN = 8
ACTS_SHOWN = 6
MAX_EXAMPLE_CHARACTERS = 4_096


def render(audit: Audit, *, width: int = 80, page: str | None = None) -> Group:
    """The screen for a console of ``width`` columns, drawn as literal text (nothing in it is markup).

    ``page``: where the HTML page of this audit is, if there is one.
    """
    return Group(*_parts(audit, width, page))


def _parts(audit: Audit, width: int, page: str | None) -> Iterator[RenderableType]:
    blank = Text("")
    yield Text(f"{one_line(audit.run.source, 200)}: {phrases.run_line(audit)}", style="dim")
    yield _facts(audit, page)
    yield blank
    if table := _checks(audit, width):
        yield table
    yield from _folded(audit)
    yield blank
    for incident in incidents(audit):
        yield from _incident(incident, audit, width)
        yield blank
    for check in audit.checks:
        # What may have gone wrong is of no interest where something has: it is in the table.
        if check.status in ("error", "note") or (check.status == "unsure" and audit.verdict != "fail"):
            yield from _detail(check)
            yield blank
    if audit.actions:
        yield from _acts(audit)
        yield blank
    # Last, where the eye is when the command has ended.
    verdict = Text(f" {VERDICT_WORDS[audit.verdict]} ", style=VERDICT_STYLES.get(audit.verdict, "reverse"))
    for line in phrases.missing(audit):
        yield hanging("  ", Text(line))
    yield labelled([(verdict, Text(one_line(audit.headline), style="bold"))])


def _checks(audit: Audit, width: int) -> Table | None:
    shown = [check for check in audit.checks if check.status not in ("pass", "skip")]
    if not shown:
        return None
    rows = [_row(check, 24 if width >= WIDE else 16) for check in shown]
    heads = ("", "check", "base", "→ now", "line", "began")
    table = columns(heads, frozenset({2, 4, 5}))
    taken = sum(max(cell_len(head), *(row[i].cell_len for row in rows)) + 2 for i, head in enumerate(heads))
    if width >= WIDE and width - taken >= 20:
        table.add_column("", no_wrap=True)
        for check, row in zip(shown, rows, strict=True):
            said = Text(phrases.said(check), style="dim")
            said.truncate(width - taken, overflow="ellipsis")
            row.append(said)
    for row in rows:
        table.add_row(*row)
    return table


def _row(check: Check, unit_characters: int) -> list[Text]:
    base, now = phrases.base_and_now(check, unit_characters)
    return [
        Text(check.status.upper(), style=STATUS_STYLES[check.status]),
        Text(one_line(check.id, 40), style="bold" if check.status == "fail" else ""),
        Text(base),
        Text(f"→ {now}" if base else f"  {now}"),
        Text("" if check.threshold is None else phrases.number(check.threshold), style="dim"),
        Text(check.began),
    ]


def _folded(audit: Audit) -> Iterator[RenderableType]:
    """What passed and what could not be judged: names only, the rest is in the page and in JSON."""
    words: tuple[tuple[Status, str], ...] = (("pass", "passed"), ("skip", "not judged"))
    for status, word in words:
        if ids := phrases.folded(audit, status):
            yield hanging(f"{len(ids)} {word}  ", Text(", ".join(ids), style="dim"))


def _incident(incident: Incident, audit: Audit, width: int) -> Iterator[RenderableType]:
    """One event: what happened, who saw it, how answers looked before and look now, and the setting to change."""
    style = STATUS_STYLES[incident.severity]
    yield hanging(Text(f"{incident.severity.upper()} ", style=style), Text(one_line(incident.sentence), style="bold"))
    yield hanging("  ", Text(phrases.seen_by(incident), style="dim"))
    if incident.kind == "narrowing" and (modes := _modes(audit)):
        yield hanging("  ", modes)
    if openings := phrases.openings(incident, audit):
        yield hanging("  ", Text(openings))
    for example in incident.pair:
        yield from _example(example, max(width - 4, 20))
    if incident.setting:
        yield hanging("  → ", Text(one_line(incident.setting), style="cyan"))


def _example(example: Example, room: int) -> Iterator[Text]:
    """A mark before the text and one line for each end of it: no completion can pass for a line of ours."""
    yield Text(f"  {phrases.example_head(example)}", style="dim", no_wrap=True, overflow="ellipsis")
    if example.completion is None:
        yield Text("  │ the text was not stored", style="dim")
        return
    whole = one_line(example.completion, MAX_EXAMPLE_CHARACTERS)
    if len(whole) <= room and not example.left_out:
        yield Text(f"  │ {whole or '(empty)'}", no_wrap=True, overflow="ellipsis")
        return
    if len(whole) <= 2 * room and not example.left_out:
        yield from (Text(f"  │ {part}", no_wrap=True, overflow="ellipsis") for part in (whole[:room], whole[room:]))
        return
    head, characters, tail = example.ends(room, room)
    # The ends as they are printed may be longer than they are: escapes take more room.
    characters = characters or len(whole) - 2 * room
    tail = tail or whole
    yield Text(f"  │ {one_line(head, room)}", no_wrap=True, overflow="ellipsis")
    yield Text(f"  │ {phrases.left_out(characters)}", style="dim", no_wrap=True, overflow="ellipsis")
    yield Text(f"  │ {one_line(tail)[-room:]}", no_wrap=True, overflow="ellipsis")


def _detail(check: Check) -> Iterator[RenderableType]:
    """A check that is part of no event."""
    style = STATUS_STYLES[check.status]
    head = Text.assemble((check.status.upper(), style), " ", (one_line(check.id, 60), "bold"))
    head.append(f"  {one_line(check.title, 120)}", style="dim")
    yield head
    yield hanging("  ", Text(phrases.said(check)))
    if where := phrases.where(check):
        yield hanging("  ", Text(where, style="dim"))
    if check.advice:
        yield hanging("  → ", Text(one_line(check.advice), style="cyan"))


def _modes(audit: Audit) -> Text | None:
    moved = [mode for mode in audit.modes if mode.fate != "steady"]
    if not moved:
        return None
    moved.sort(key=lambda mode: -abs(mode.last_share - mode.base_share))
    line = Text("formats: ")
    for at, mode in enumerate(moved[:MODES_SHOWN]):
        line.append(" · " if at else "", style="dim")
        line.append(f"{one_line(mode.mode, 30)} {percent(mode.base_share)} → {percent(mode.last_share)} ")
        line.append(phrases.fate(mode), style=FATE_STYLES[mode.fate])
    if len(moved) > MODES_SHOWN:
        line.append(f" · {len(moved) - MODES_SHOWN} more", style="dim")
    return line


def _acts(audit: Audit) -> Iterator[RenderableType]:
    """What the policy did, newest first; acts of one rule on rows are one line."""
    acts = fold(audit.actions)
    shown = entries(acts)
    yield Text.assemble(("Interventions", "bold"), f"  {summary(acts)}")
    yield from act_lines(shown[:ACTS_SHOWN])
    if len(shown) > ACTS_SHOWN:
        yield Text(f"{len(shown) - ACTS_SHOWN:,} more: --html and --format json have all", style="dim")


def _facts(audit: Audit, page: str | None) -> Table:
    rows: list[tuple[str | Text, Text]] = [
        ("Baseline", Text(phrases.baseline_line(audit))),
        ("Read", Text(phrases.coverage_line(audit))),
    ]
    rows += [("Note", Text(one_line(note))) for note in audit.run.notes]
    if page is not None:
        rows.append(("Page", Text(one_line(page, 400), style="cyan")))
    return labelled([(label, text) for label, text in rows if text.plain])
