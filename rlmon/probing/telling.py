"""A probe in words and numbers: for a terminal, as Markdown, as JSON. The page is told from the same."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict

from rich.console import RenderableType
from rich.text import Text

from rlmon.audit.checks import HINDSIGHT_ALPHA
from rlmon.audit.clauses import short
from rlmon.printable import one_line, quoted
from rlmon.probing.judging import Moved
from rlmon.probing.probe import Probe
from rlmon.probing.statements import Statement
from rlmon.records import VERDICT_WORDS
from rlmon.report.as_json import plain
from rlmon.report.markup import STATUS_SIGNS, escape, table
from rlmon.report.screen import STATUS_STYLES, VERDICT_STYLES, columns, hanging, labelled

HEADS = ("", "base", "checkpoint", "of the base, or change", "")
INTERVALS = (
    "In brackets: intervals over prompts (paired, Student's t) that all hold at once, but for "
    f"{HINDSIGHT_ALPHA:.0%} of such probes. Formats, templates and openings: the answers to a prompt are as varied as "
    "so many equally common ones. Entropy and KL: nats a token, each model on what it wrote itself."
)


def facts(found: Probe) -> list[tuple[str, str]]:
    """What was asked of which models."""
    setting = found.setting
    asked = (
        f"{found.prompts} prompts, {setting.samples} completions of each, at most {setting.max_new_tokens} tokens, "
        f"temperature {setting.temperature:g}, seed {setting.seed}"
    )
    return [
        ("base", one_line(found.base)),
        ("checkpoint", one_line(found.checkpoint) + (", a LoRA adapter" if found.kind == "adapter" else "")),
        ("asked", asked),
        ("success", one_line(found.success or "not known")),
        ("samples", one_line(found.samples)),
    ]


def rows(found: Probe) -> list[tuple[Statement, tuple[str, ...]]]:
    """The cells of each statement; a reward that says what pass@1 says is left out."""
    first = next(one for one in found.judged.statements if one.id == "pass-at-1")
    return [
        (one, (one.title, _number(one.base), _number(one.checkpoint), _change(one), _came_out(one)))
        for one in found.judged.statements
        if one.id != "reward" or (one.base, one.checkpoint) != (first.base, first.checkpoint)
    ]


def _number(value: float | None) -> str:
    return "" if value is None else short(value)


def _came_out(one: Statement) -> str:
    return f"{one.status.upper()} {one.word}" if one.status in ("fail", "warn", "note") else one.word


def _change(one: Statement) -> str:
    """``32% (25% to 41%)`` of the base's, or ``+0.2 (-0.1 to +0.5)``; why, where there is none."""
    form = ".0%" if one.change == "kept" or one.interval is None else ".3g" if one.id.startswith("kl-") else "+.3g"
    said = [] if one.value is None else [f"{one.value:{form}}"]
    if one.interval is not None and said:
        low, high = one.interval
        said.append(f"({low:{form}} to {'any' if high is None else f'{high:{form}}'})")
    return " ".join(said + ([one.reason] if one.reason else []))


def moved(one: Moved) -> str:
    """``format prose is gone: 31 of 64 of the base's completions, 0 of 64 of the checkpoint's``."""
    name = f"format {one_line(one.name, 40)}" if one.kind == "format" else f"opening {quoted(one.name, 80)}"
    became = "took over" if one.fate == "took over" else f"is {one.fate}"
    (before, all_before), (after, all_after) = one.base, one.checkpoint
    return f"{name} {became}: {before} of {all_before} of the base's completions, {after} of {all_after} now"


def advice(found: Probe) -> str:
    """What to do next; empty where nothing narrowed."""
    if not any(one.narrowing and one.status in ("warn", "fail") for one in found.judged.statements):
        return ""
    return (
        "What was lost can be had back in part: rlmon blend BASE CHECKPOINT --prompts FILE says how much for which "
        'share of the training. To keep it, train with rlmon_policy="protect".'
    )


def screen(found: Probe) -> Iterator[RenderableType]:
    """For a terminal."""
    yield labelled([(name, Text(text)) for name, text in facts(found)])
    yield Text("")
    drawn = columns(HEADS, frozenset({1, 2}), fold=frozenset({3}))
    absent: dict[str, list[str]] = {}
    for stated, (title, base, checkpoint, change, word) in rows(found):
        if stated.status == "skip":
            absent.setdefault(change, []).append(title)
        else:
            style = STATUS_STYLES.get(stated.status or "", "")
            drawn.add_row(title, base, checkpoint, Text(change), Text(word, style=style))
    yield drawn
    for reason, titles in absent.items():
        yield hanging("Not measured: ", Text(f"{', '.join(titles)}: {reason}", style="dim"))
    yield Text("")
    for one in found.judged.moved:
        yield hanging("  ", Text(moved(one)))
    yield hanging("", Text(INTERVALS, style="dim"))
    if said := advice(found):
        yield hanging("→ ", Text(said, style="cyan"))
    reached = found.judged.verdict
    said_loud = Text(f" {VERDICT_WORDS[reached]} ", style=VERDICT_STYLES.get(reached, "reverse"))
    yield labelled([(said_loud, Text(one_line(found.judged.headline), style="bold"))])


def markdown(found: Probe) -> str:
    """For a comment on a pull request."""
    judged = found.judged
    sign = STATUS_SIGNS["unsure" if judged.verdict == "insufficient" else judged.verdict]
    lines = [f"## {sign.split()[0]} rlmon probe: {VERDICT_WORDS[judged.verdict]}", "", f"**{escape(judged.headline)}**"]
    lines += ["", *(f"- {name}: {escape(text)}" for name, text in facts(found)), ""]
    lines += table(HEADS, [[escape(cell) for cell in cells] for _, cells in rows(found)], frozenset({1, 2}))
    lines += [f"- {escape(moved(one))}" for one in judged.moved]
    lines += ["", INTERVALS] + ([advice(found)] if advice(found) else [])
    return "\n".join(lines) + "\n"


def as_json(found: Probe) -> str:
    """One object; completions are in the folder of the samples."""
    judged = found.judged
    told = {
        "schema_version": 1,
        "tool": "rlmon",
        **{name: value for name, value in asdict(found).items() if name != "judged"},
        "verdict": judged.verdict,
        "headline": judged.headline,
        "statements": [{**asdict(one), "word": one.word} for one in judged.statements],
        "moved": [asdict(one) for one in judged.moved],
        "formats": judged.formats,
        "pass_at_k": judged.pass_at_k,
    }
    return json.dumps(plain(told), allow_nan=False, indent=2) + "\n"
