"""The audit's page without its scripts: what happened, in markup that is readable where scripts are blocked."""

from __future__ import annotations

from html import escape

import rlmon.report.phrases as phrases
from rlmon.audit.incidents import Incident, incidents
from rlmon.audit.result import Audit, Check, Example
from rlmon.printable import one_line
from rlmon.report.charts import MODES_DRAWN, bucketed
from rlmon.report.figure import FIGURE_STYLE, colours, draw_order, inline_svg

STEPS_DRAWN = 300
HEAD_CHARACTERS, TAIL_CHARACTERS = 400, 800


def still(audit: Audit) -> str:
    """Trusted markup: verdict, events with their examples, the format shares and a table of the checks. Every text of
    the run in it is escaped, and none is part of an attribute but as the name of a format in a label."""
    parts = [f"<h1>{_text(phrases.verdict(audit))}: {_text(audit.headline)}</h1>"]
    parts += [f"<p>{_text(line)}</p>" for line in (*phrases.missing(audit), phrases.run_line(audit))]
    parts.append(_shares(audit))
    parts += [_incident(incident, audit) for incident in incidents(audit)]
    parts.append(_checks(audit))
    parts += [f"<p>{_text(note)}</p>" for note in audit.run.notes]
    return "".join(parts)


def _text(text: str, limit: int = 2_000) -> str:
    return escape(one_line(text, limit))


def _shares(audit: Audit) -> str:
    """The picture of a collapse; nothing where no format is known."""
    run, _ = bucketed("Share of each answer format", audit.steps, audit.mode_shares, STEPS_DRAWN)
    if len(run.steps) < 2:
        return ""
    order = draw_order([run])[:MODES_DRAWN]
    palette = colours(order)
    names = " ".join(f'<span style="color:{palette[mode]}">■</span> {_text(mode, 40)}' for mode in order)
    return (
        f"<style>{FIGURE_STYLE}</style>{inline_svg(run, order, 'Share of each answer format over steps')}"
        f"<p>From below: {names}</p>"
    )


def _incident(incident: Incident, audit: Audit) -> str:
    parts = [f"<h2>{_text(incident.sentence)}</h2><p>{_text(phrases.seen_by(incident))}</p>"]
    if openings := phrases.openings(incident, audit):
        parts.append(f"<p>{_text(openings)}</p>")
    if incident.setting:
        parts.append(f"<p>Change first: {_text(incident.setting)}</p>")
    parts += [_example(example) for example in incident.pair]
    return "".join(parts)


def _example(example: Example) -> str:
    head, characters, tail = example.ends(HEAD_CHARACTERS, TAIL_CHARACTERS)
    shown = head if not characters else f"{head}\n{phrases.left_out(characters)}\n{tail}"
    if example.completion is None:
        shown = "the text was not stored"
    lines = "\n".join(_text(line) for line in shown.split("\n"))
    return f"<p>{_text(phrases.example_head(example))}</p><pre>{lines}</pre>"


def _checks(audit: Audit) -> str:
    heads = "".join(f"<th>{head}</th>" for head in ("", "check", "base → now", "line", "began", "what was seen"))
    return f"<table><thead><tr>{heads}</tr></thead><tbody>{''.join(map(_row, audit.checks))}</tbody></table>"


def _row(check: Check) -> str:
    line = "" if check.threshold is None else phrases.number(check.threshold)
    cells = (check.status.upper(), check.id, phrases.base_to_now(check), line, check.began,
             phrases.said(check))  # fmt: skip
    return f"<tr>{''.join(f'<td>{_text(cell)}</td>' for cell in cells)}</tr>"
