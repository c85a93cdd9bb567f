"""An audit as Markdown for a pull request comment or a CI job summary.

Completions stand in code fences that are longer than any run of backticks inside; ``rlmon.report.markup`` neutralises
everything else.
"""

from __future__ import annotations

import re

import rlmon.report.phrases as phrases
from rlmon.acts import Entry, entries, fold, summary
from rlmon.audit.incidents import Incident, incidents
from rlmon.audit.result import Audit, Check, Example
from rlmon.printable import one_line
from rlmon.report.markup import MAX_CHARACTERS, STATUS_SIGNS, cut, details, escape, escape_html, table

VERDICT_SIGNS = {"fail": "🔴", "warn": "🟡", "pass": "🟢", "insufficient": "⚪"}
HEAD_CHARACTERS, TAIL_CHARACTERS = 300, 600
ACTS_SHOWN = 20


def render(*audits: Audit) -> str:
    """The audits one below the other; at most 60,000 characters, after which it says what is missing."""
    text = "\n".join(_one(audit) for audit in audits)
    if len(text) <= MAX_CHARACTERS:
        return text
    # Without the details nothing is open that a cut could leave open; the tables alone always fit or are cut by rows.
    return cut("\n".join(_summary(audit) for audit in audits), "rlmon audit --html")


def fence(example: Example) -> str:
    """Both ends of a completion in a code fence that it cannot close; control characters as escapes, lines kept."""
    head, characters, tail = example.ends(HEAD_CHARACTERS, TAIL_CHARACTERS)
    shown = f"{head}\n{phrases.left_out(characters)}\n{tail}" if characters else head
    body = "\n".join(one_line(line, TAIL_CHARACTERS + 1) for line in shown.split("\n"))
    longest = max((len(run) for run in re.findall(r"`+", body)), default=0)
    mark = "`" * max(3, longest + 1)
    return f"{mark}text\n{body}\n{mark}"


def _one(audit: Audit) -> str:
    parts = [_summary(audit)]
    parts += [_incident(incident, audit) for incident in incidents(audit)]
    told = ("error", "note") if audit.verdict == "fail" else ("error", "unsure", "note")
    parts += [_detail(check) for check in audit.checks if check.status in told]
    if audit.actions:
        parts.append(_acts(audit))
    parts.append(_table(audit))
    if groups := phrases.skipped(audit):
        lines = [f"- {', '.join(escape(name) for name in ids)}: {escape(reason)}" for reason, ids in groups]
        parts.append("\n".join(details(f"Not judged ({sum(len(ids) for _, ids in groups)})", [*lines, ""])))
    facts = [("Baseline", phrases.baseline_line(audit)), ("Read", phrases.coverage_line(audit))]
    facts += [("Alarms", audit.correction), *(("Note", note) for note in audit.run.notes)]
    lines = [f"{label}: {escape(text)}  " for label, text in facts if text]
    parts.append("\n".join([*lines, ""]))
    return "\n".join(parts)


def _incident(incident: Incident, audit: Audit) -> str:
    """One event: who saw it and since when, the setting to change, and how answers looked before and look now."""
    sign = STATUS_SIGNS[incident.severity]
    lines = [f"{sign}: **{escape(incident.sentence)}**  ", f"{escape(phrases.seen_by(incident))}  "]
    if openings := phrases.openings(incident, audit):
        lines.append(f"{escape(openings)}  ")
    if incident.setting:
        lines.append(f"Change first: {escape(incident.setting)}")
    if incident.pair:
        shown = [line for example in incident.pair for line in (*_example(example), "")]
        return "\n".join([*lines, "", *details("How answers looked and look now", shown)])
    return "\n".join([*lines, ""])


def _acts(audit: Audit) -> str:
    """What the policy did, newest first; acts of one rule on rows are one line."""
    acts = fold(audit.actions)
    shown = entries(acts)
    lines = table(["", "step", "rule", "what was done", "effect", "why"], map(_act, shown[:ACTS_SHOWN]), frozenset({1}))
    if len(shown) > ACTS_SHOWN:
        lines += [f"{len(shown) - ACTS_SHOWN:,} more.", ""]
    return "\n".join(details(f"Interventions: {escape_html(summary(acts))}", lines))


def _act(entry: Entry) -> list[str]:
    act = entry.newest
    times = f"{entry.count:,} times" if entry.count > 1 else ""
    return [
        phrases.outcome(act.outcome),
        phrases.act_steps(entry).removeprefix("step "),
        escape(act.rule, 64),
        escape(" ".join(part for part in (act.change.replace(" -> ", " → "), times) if part), 120),
        escape(entry.effect, 60),
        escape(act.reason, 200),
    ]


def _summary(audit: Audit) -> str:
    lines = [
        f"## {VERDICT_SIGNS[audit.verdict]} rlmon: {phrases.verdict(audit)}",
        "",
        f"**{escape(audit.headline)}**",
        "",
        *(f"{escape(line, 2_000)}  " for line in phrases.missing(audit)),
        f"{escape(audit.run.source, 200)}: {escape(phrases.run_line(audit))}",
        "",
    ]
    return "\n".join(lines)


def _table(audit: Audit) -> str:
    shown = [check for check in audit.checks if check.status != "skip"]
    if not shown:
        return ""
    lines = table(["", "check", "base → now", "line", "began", ""], map(_row, shown), frozenset({3, 4}))
    return "\n".join(details(f"Checks: {escape_html(phrases.counts(audit))}", lines))


def _row(check: Check) -> list[str]:
    return [
        STATUS_SIGNS[check.status],
        escape(check.id, 60),
        escape(phrases.base_to_now(check)),
        "" if check.threshold is None else phrases.number(check.threshold),
        check.began,
        escape(phrases.said(check), 200),
    ]


def _detail(check: Check) -> str:
    lines = [escape(phrases.said(check)), ""]
    if where := phrases.where(check):
        lines += [escape(where), ""]
    if check.advice:
        lines += [f"**What to do:** {escape(check.advice)}", ""]
    sign = STATUS_SIGNS[check.status]
    return "\n".join(details(f"{sign} {escape_html(check.id, 60)}: {escape_html(check.title, 120)}", lines))


def _example(example: Example) -> list[str]:
    head = escape(phrases.example_head(example))
    if example.completion is None:
        return [f"{head}: the text was not stored"]
    return [f"{head}:", "", fence(example)]
