"""The words and numbers that every rendering of an audit shares. All texts come out as one printable line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rlmon.acts import Entry
from rlmon.audit.clauses import GONE, percent, short
from rlmon.audit.incidents import Incident, listed
from rlmon.audit.result import Audit, Check, Example, ModeStory, OpeningStory
from rlmon.audit.verdict import QUESTIONS
from rlmon.printable import one_line, quoted
from rlmon.records import VERDICT_WORDS, WORST_FIRST, Status

NOT_MEASURED = "-"
BAD: tuple[Status, ...] = ("fail", "warn", "error")
"""Statuses of what went wrong, worst first."""
MOST_OPENING_CHARACTERS = 80
"""Of an opening as it is printed: escapes take more room than what they stand for."""
OUTCOME_WORDS = {"applied": "APPLIED", "failed": "FAILED", "dry run": "WOULD", "decided": "DECIDED"}


def verdict(audit: Audit) -> str:
    """The verdict in a word, and what a pass does not speak of."""
    word = VERDICT_WORDS[audit.verdict]
    return f"{word} (curves only: outputs not seen)" if audit.verdict == "pass" and not audit.coverage.outputs else word


def missing(audit: Audit) -> list[str]:
    """What keeps an unsure run from a pass, a line each: the question, and what to log or to wait for."""
    if audit.verdict != "insufficient":
        return []
    lines = [
        f"No answer about {QUESTIONS[core]}: {reason.rstrip('.')}." for core, reason in audit.coverage.missing.items()
    ]
    return [one_line(line) for line in lines]


def unsure(audits: Sequence[Audit], *, each: bool) -> list[str]:
    """What is said beside the results, where a pass was not earned: a line for each run, or one for all."""
    found = [audit for audit in audits if audit.verdict == "insufficient"]
    if found and not each:
        return [f"rlmon: {len(found)} of {len(audits)} runs are unsure; --verbose says what is missing"]
    return [f"rlmon: {audit.run.source}: unsure, {audit.coverage}. {' '.join(missing(audit))}" for audit in found]


def number(value: float | None) -> str:
    """Three significant digits, thousands set apart, ``-`` for not measured."""
    return NOT_MEASURED if value is None else short(value)


def base_and_now(check: Check, unit_characters: int = 24) -> tuple[str, str]:
    """``("4.84", "1.11 modes")``; an empty string where nothing was measured."""
    base = "" if check.baseline is None else number(check.baseline)
    # A check of several metrics names all their units, the one of its numbers first.
    unit = f" {one_line(check.unit.split(';')[0], unit_characters)}" if check.unit else ""
    return base, "" if check.value is None and not base else f"{number(check.value)}{unit}"


def base_to_now(check: Check) -> str:
    """``4.84 → 1.11 modes``; empty where the check measured nothing."""
    return " → ".join(part for part in base_and_now(check) if part)


def step(value: int | None) -> str:
    """A step, or nothing."""
    return "" if value is None else str(value)


def run_line(audit: Audit) -> str:
    """What was read, in one line: completions, prompts, group size, steps, reader."""
    run = audit.run
    parts = [f"{run.completions:,} completions of {run.prompts:,} prompts" if run.completions else "no completions"]
    if run.group_size is not None and run.completions:
        parts[0] += f" in groups of {run.group_size}"
    if run.first_step is not None and run.last_step is not None:
        parts.append(f"steps {run.first_step} to {run.last_step}")
    else:
        parts.append("no steps")
    if run.eval_completions:
        parts.append(f"{run.eval_completions:,} eval completions")
    parts.append(f"read as {one_line(run.reader, 40)}")
    if run.success.get("above"):
        parts.append(f"a success is {one_line(str(run.success['says']), 120)}")
    return ", ".join(parts)


def baseline_line(audit: Audit) -> str:
    """``early rounds: 32 prompts, 256 completions, steps 1 to 4``; of curves alone only the steps. Of a sample of the
    base: ``base sample: 32 prompts, 256 completions; what only training shows: early rounds``."""
    baseline = dict(audit.run.baseline)
    kind = facts_key(baseline.pop("kind", "none"))
    steps = baseline.pop("steps", None)
    parts = [f"{facts_value(value)} {facts_key(key)}" for key, value in baseline.items() if value]
    if isinstance(steps, (list, tuple)) and len(steps) > 1:
        parts.append(f"steps {facts_value(steps[0])} to {facts_value(steps[-1])}")
    elif steps:
        parts.append(f"step {facts_value(steps)}")
    told = f"{kind}: {', '.join(parts)}" if parts else kind
    return f"{told}; what only training shows: early rounds" if kind == "base sample" else told


def coverage_line(audit: Audit) -> str:
    """What the numbers rest on; what is zero or empty is left out, but never all of it."""
    return ", ".join(f"{key} {value}" for key, value in coverage_facts(audit)) or "nothing"


def coverage_facts(audit: Audit) -> list[tuple[str, str]]:
    """Names and values of what was read, in words, without what is zero or empty."""
    facts = {key: value for key, value in audit.run.coverage.items() if value not in (None, 0, "", [], {}, ())}
    if isinstance(columns := facts.get("columns"), Mapping):
        facts["columns"] = ", ".join(f"{len(names)} {facts_key(how)}" for how, names in columns.items() if names)
    if isinstance(budget := facts.pop("text_budget", None), Mapping) and budget["rows"] < audit.run.coverage["rows"]:
        facts["words compared on"] = f"{facts_value(budget['rows'])} of them"
    return [(facts_key(key), facts_value(value)) for key, value in facts.items()]


def facts_key(key: Any) -> str:
    """A key of a free-form mapping in words."""
    return one_line(str(key).replace("_", " "), 60)


def facts_value(value: Any) -> str:
    """A value of a free-form mapping in words."""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: NOT_MEASURED}[value]
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return number(value)
    if isinstance(value, Mapping):
        inner = [f"{facts_key(key)} {facts_value(item)}" for key, item in list(value.items())[:6]]
        return "(" + ", ".join(inner) + (f", {len(value) - 6} more" if len(value) > 6 else "") + ")"
    if isinstance(value, (list, tuple)):
        return ", ".join(facts_value(item) for item in value[:6]) + (" ..." if len(value) > 6 else "")
    return one_line(str(value), 120)


def skipped(audit: Audit) -> list[tuple[str, list[str]]]:
    """Reasons, each with the ids of the checks that it keeps from running."""
    groups: dict[str, list[str]] = {}
    for check in audit.checks:
        if check.status == "skip":
            groups.setdefault(one_line(check.reason or "no reason was given"), []).append(one_line(check.id, 60))
    return list(groups.items())


def spoken(audit: Audit) -> list[Check]:
    """What a person should read about, worst first: what went wrong, what may have, then what only costs compute."""
    return [check for status in (*BAD, "unsure", "note") for check in audit.checks if check.status == status]


def said(check: Check) -> str:
    """The message, or for SKIP and ERROR the reason; for UNSURE both."""
    if check.status == "unsure":
        return one_line(f"{check.message}: {check.reason}")
    return one_line(check.reason if check.status in ("skip", "error") and check.reason else check.message)


def where(check: Check) -> str:
    """``began at step 66, confirmed at step 88, in source 'sums'``; empty where nothing is known."""
    parts = []
    if check.first_step is not None:
        parts.append(began(check.first_step, at_latest=check.at_latest))
    if check.alarm_step is not None:
        parts.append(f"confirmed at step {check.alarm_step}")
    if check.source is not None:
        parts.append(f"mostly in source {one_line(repr(check.source), 62)}")
    return ", ".join(parts)


def began(step: int, *, at_latest: bool) -> str:
    """``began at step 66``, or ``began by step 66`` where it may have begun before."""
    return f"began {'by' if at_latest else 'at'} step {step}"


def seen_by(incident: Incident) -> str:
    """``began at step 46, confirmed at step 70, seen by format-collapse and template-collapse``."""
    parts = [] if incident.began is None else [began(incident.began, at_latest=incident.at_latest)]
    parts += [] if incident.confirmed is None else [f"confirmed at step {incident.confirmed}"]
    parts.append(f"seen by {listed([one_line(check.id, 60) for check in incident.checks], len(incident.checks))}")
    return ", ".join(parts)


def fate(mode: ModeStory) -> str:
    """What became of a format, in plain words."""
    if mode.fate == "extinct" or (mode.fate == "shrunk" and mode.last_share < GONE):
        return "gone" if mode.last_share < GONE else "nearly gone"
    return {"shrunk": "fewer", "grown": "more", "newborn": "new"}.get(mode.fate, "as before")


def openings(incident: Incident, audit: Audit) -> str:
    """What it says of openings: `Sure, let's` (12 % of the base's answers) is gone; `# + # = #` has 94 % (was 3 %).
    Empty where the event is no narrowing, and where nothing is known."""
    stories: Sequence[OpeningStory] = audit.openings if incident.kind == "narrowing" else ()
    parts = []
    for fate in ("gone", "nearly gone"):
        lost = [story for story in stories if story.fate == fate]
        of = " of the base's answers"
        named = [
            f"{quoted(one.opening, MOST_OPENING_CHARACTERS)} ({percent(one.base_share)}{'' if at else of})"
            for at, one in enumerate(lost)
        ]
        if named:
            parts.append(f"{listed(named)} {'is' if len(named) == 1 else 'are'} {fate}")
    parts += [
        f"{quoted(one.opening, MOST_OPENING_CHARACTERS)} has {percent(one.last_share)} (was {percent(one.base_share)})"
        for one in stories
        if one.fate == "took over"
    ]
    return f"openings: {'; '.join(parts)}" if parts else ""


def left_out(characters: int) -> str:
    """What stands between the two ends of a long text."""
    return f"… {characters:,} characters left out …"


def examples(check: Check) -> Sequence[Example]:
    """At most two examples: the first and the last of what the check chose."""
    chosen = list(check.examples)
    return chosen if len(chosen) <= 2 else [chosen[0], chosen[-1]]


def folded(audit: Audit, status: Status) -> list[str]:
    """The ids of the checks with this status."""
    return [one_line(check.id, 60) for check in audit.checks if check.status == status]


def example_head(example: Example) -> str:
    """``base, step 1, prose, reward 1``."""
    parts = [one_line(example.label, 20)] if example.label else []
    parts += [f"step {example.step}", one_line(example.mode, 30)]
    if example.reward is not None:
        parts.append(f"reward {number(example.reward)}")
    return ", ".join(parts)


def counts(audit: Audit) -> str:
    """``1 fail, 2 warn, 1 note, 9 pass, 3 skip``."""
    words = []
    for status in WORST_FIRST:
        amount = sum(check.status == status for check in audit.checks)
        if amount:
            words.append(f"{amount} {status}")
    return ", ".join(words) or "no checks"


def outcome(name: str) -> str:
    """What became of an act, in one word; a dry run ``WOULD`` have done it."""
    return OUTCOME_WORDS.get(name, "?")


def act_steps(entry: Entry) -> str:
    """``step 120``, or ``40 to 118`` for several acts."""
    return f"step {entry.newest.step}" if entry.count == 1 else f"{entry.first_step} to {entry.newest.step}"
