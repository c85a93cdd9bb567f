"""An audit as Markdown for a pull request comment or a CI job summary.

Every text of the run is neutralised: Markdown and HTML are escaped, mentions, issue numbers and addresses are broken
up by an invisible space so that nobody is notified and nothing is linked, and completions stand in code fences that
are longer than any run of backticks inside.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import rlmon.report.phrases as phrases
from rlmon.acts import entries, fold, summary
from rlmon.audit.incidents import Incident, incidents
from rlmon.audit.result import Audit, Check, Example
from rlmon.printable import one_line

STATUS_SIGNS: Mapping[str, str] = {
    "fail": "🔴 FAIL",
    "warn": "🟡 WARN",
    "error": "🟣 ERROR",
    "unsure": "🟠 UNSURE",
    "note": "🔵 NOTE",
    "pass": "🟢 PASS",
    "skip": "⚪ SKIP",
}
VERDICT_SIGNS = {"fail": "🔴", "warn": "🟡", "pass": "🟢", "insufficient": "⚪"}
MAX_CHARACTERS = 60_000
"""A comment on GitHub may hold 65,536; a longer one is refused as a whole."""
HEAD_CHARACTERS, TAIL_CHARACTERS = 300, 600
ACTS_SHOWN = 20

_INVISIBLE = "\u200b"
_SPECIAL = re.compile(r"([\\`*_\[\]|~$!])")
_BLOCK = re.compile(r"^(\d{0,9})([-+#=.)])")
"""What would begin a list, a heading or a rule at the start of a line."""
_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
_LINKING = re.compile(r"([@#:]|www|GH-)(?=[\w./-])", re.IGNORECASE)


def render(*audits: Audit) -> str:
    """The audits one below the other; at most 60,000 characters, after which it says what is missing."""
    text = "\n".join(_one(audit) for audit in audits)
    if len(text) <= MAX_CHARACTERS:
        return text
    # Without the details nothing is open that a cut could leave open; the tables alone always fit or are cut by rows.
    return cut("\n".join(_summary(audit) for audit in audits), "rlmon audit --html")


def cut(summary: str, command: str) -> str:
    """The lines of a summary that fit, and what shows the rest."""
    lines: list[str] = []
    size = 0
    for line in summary.split("\n"):
        size += len(line) + 1
        if size > MAX_CHARACTERS:
            break
        lines.append(line)
    return "\n".join([*lines, "", f"The details are left out: too long for a comment. `{command}` has them.", ""])


def escape(text: str, limit: int = 600) -> str:
    """``text`` as one line of Markdown that shows it literally, also inside a table cell."""
    shown = _SPECIAL.sub(r"\\\1", one_line(text, limit).strip())
    shown = _BLOCK.sub(r"\1\\\2", shown)
    shown = re.sub(r"[&<>]", lambda match: _ENTITIES[match[0]], shown)
    return _LINKING.sub(rf"\1{_INVISIBLE}", shown)


def escape_html(text: str, limit: int = 600) -> str:
    """``text`` as one line inside an HTML block, where Markdown's own escapes would be shown."""
    shown = re.sub(r"[&<>]", lambda match: _ENTITIES[match[0]], one_line(text, limit))
    return _LINKING.sub(rf"\1{_INVISIBLE}", shown)


def fence(example: Example) -> str:
    """Both ends of a completion in a code fence that it cannot close; control characters as escapes, lines kept."""
    head, characters, tail = example.ends(HEAD_CHARACTERS, TAIL_CHARACTERS)
    cut = f"{head}\n{phrases.left_out(characters)}\n{tail}" if characters else head
    body = "\n".join(one_line(line, TAIL_CHARACTERS + 1) for line in cut.split("\n"))
    longest = max((len(run) for run in re.findall(r"`+", body)), default=0)
    mark = "`" * max(3, longest + 1)
    return f"{mark}text\n{body}\n{mark}"


def _one(audit: Audit) -> str:
    parts = [_summary(audit)]
    parts += [_incident(incident) for incident in incidents(audit)]
    told = ("error", "note") if audit.verdict == "fail" else ("error", "unsure", "note")
    parts += [_detail(check) for check in audit.checks if check.status in told]
    if audit.actions:
        parts.append(_acts(audit))
    parts.append(_table(audit))
    if groups := phrases.skipped(audit):
        amount = sum(len(ids) for _, ids in groups)
        lines = [f"<details><summary>Not judged ({amount})</summary>", ""]
        lines += [f"- {', '.join(escape(name) for name in ids)}: {escape(reason)}" for reason, ids in groups]
        parts.append("\n".join([*lines, "", "</details>", ""]))
    facts = [("Baseline", phrases.baseline_line(audit)), ("Read", phrases.coverage_line(audit))]
    facts += [("Alarms", audit.correction), *(("Note", note) for note in audit.run.notes)]
    lines = [f"{label}: {escape(text)}  " for label, text in facts if text]
    parts.append("\n".join([*lines, ""]))
    return "\n".join(parts)


def _incident(incident: Incident) -> str:
    """One event: who saw it and since when, the setting to change, and how answers looked before and look now."""
    sign = STATUS_SIGNS[incident.severity]
    lines = [f"{sign}: **{escape(incident.sentence)}**  ", f"{escape(phrases.seen_by(incident))}  "]
    if incident.setting:
        lines.append(f"Change first: {escape(incident.setting)}")
    if incident.pair:
        lines += ["", "<details><summary>How answers looked and look now</summary>", ""]
        for example in incident.pair:
            lines += [*_example(example), ""]
        lines.append("</details>")
    return "\n".join([*lines, ""])


def _acts(audit: Audit) -> str:
    """What the policy did, newest first; acts of one rule on rows are one line."""
    acts = fold(audit.actions)
    shown = entries(acts)
    lines = [f"<details><summary>Interventions: {escape_html(summary(acts))}</summary>", ""]
    lines += ["| | step | rule | what was done | effect | why |", "| --- | ---: | --- | --- | --- | --- |"]
    for entry in shown[:ACTS_SHOWN]:
        act = entry.newest
        done = " ".join(part for part in (act.change.replace(" -> ", " → "),
                                          f"{entry.count:,} times" if entry.count > 1 else "") if part)  # fmt: skip
        cells = [
            phrases.outcome(act.outcome),
            phrases.act_steps(entry).removeprefix("step "),
            escape(act.rule, 64),
            escape(done, 120),
            escape(entry.effect, 60),
            escape(act.reason, 200),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    if len(shown) > ACTS_SHOWN:
        lines += ["", f"{len(shown) - ACTS_SHOWN:,} more."]
    return "\n".join([*lines, "", "</details>", ""])


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
    lines = [f"<details><summary>Checks: {escape_html(phrases.counts(audit))}</summary>", ""]
    lines += ["| | check | base → now | line | began | |", "| --- | --- | --- | ---: | ---: | --- |"]
    return "\n".join([*lines, *map(_row, shown), "", "</details>", ""])


def _row(check: Check) -> str:
    cells = [
        STATUS_SIGNS[check.status],
        escape(check.id, 60),
        escape(phrases.base_to_now(check)),
        "" if check.threshold is None else phrases.number(check.threshold),
        phrases.step(check.first_step),
        escape(phrases.said(check), 200),
    ]
    return f"| {' | '.join(cells)} |"


def _detail(check: Check) -> str:
    sign = STATUS_SIGNS[check.status]
    lines = [
        f"<details><summary>{sign} {escape_html(check.id, 60)}: {escape_html(check.title, 120)}</summary>",
        "",
        escape(phrases.said(check)),
        "",
    ]
    if where := phrases.where(check):
        lines += [escape(where), ""]
    if check.advice:
        lines += [f"**What to do:** {escape(check.advice)}", ""]
    return "\n".join([*lines, "</details>", ""])


def _example(example: Example) -> list[str]:
    head = escape(phrases.example_head(example))
    if example.completion is None:
        return [f"{head}: the text was not stored"]
    return [f"{head}:", "", fence(example)]
