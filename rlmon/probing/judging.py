"""What happened between two models, from what both answered to the same prompts: a verdict, and what it rests on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

import rlmon.audit.openings as openings
import rlmon.probing.statements as statements
from rlmon.audit.checks.formats import DIED_FAIL, DIED_WARN, EXTINCT_BASE_SHARE, EXTINCT_SHARE
from rlmon.audit.checks.question import LEAST_PROMPTS
from rlmon.probing.answers import Answers
from rlmon.probing.paired import Paired
from rlmon.probing.statements import ALPHA, STATEMENTS, Statement
from rlmon.records import Verdict, verdict

CORE = ("formats", "templates", "openings", "entropy")
"""Without an answer about these nobody can say that nothing narrowed."""
TOLD = 3
"""Of what narrowed, in the headline."""
EXAMPLES, OF_EACH = 4, 3
Fate = Literal["gone", "nearly gone", "took over"]


@dataclass(frozen=True, kw_only=True)
class Moved:
    """A format, or a way to open an answer, that vanished or took over."""

    kind: Literal["format", "opening"]
    name: str
    """Of an opening its words. Hostile text: renderers must escape it."""
    fate: Fate
    base: tuple[int, int]
    """Completions of the base that are so, and all that were looked at."""
    checkpoint: tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Example:
    """What both answered to one prompt: hostile text."""

    prompt: str
    base: Sequence[str]
    checkpoint: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class Judged:
    """What happened between the two."""

    verdict: Verdict
    headline: str
    statements: Sequence[Statement]
    moved: Sequence[Moved]
    formats: Mapping[str, tuple[int, int]]
    """Completions in each format, of the base and of the checkpoint; most frequent at the base first."""
    pass_at_k: Mapping[int, tuple[float, float]]
    examples: Sequence[Example] = field(repr=False)


def judge(base: Answers, checkpoint: Answers, prompts: Sequence[str]) -> Judged:
    """What both answered to ``prompts``, compared prompt by prompt."""
    ways = statements.ways(base, checkpoint)
    formats = _formats(base, checkpoint)
    found = [
        *statements.solved(base, checkpoint),
        *ways,
        _died_out(base, [one for one in formats if one.fate != "took over"]),
        statements.entropy(base, checkpoint, witness=any(one.status in ("warn", "fail") for one in ways)),
        *statements.distances(base, checkpoint),
        *statements.lengths(base, checkpoint),
    ]
    assert len(found) == STATEMENTS
    counts = [Counter(answers.format.flat) for answers in (base, checkpoint)]
    names = sorted(counts[0] | counts[1], key=lambda name: (-counts[0][name], -counts[1][name], name))
    ks = [1 << power for power in range(base.right.shape[1].bit_length())]
    solved = {k: Paired(statements.chances_P(base, k), statements.chances_P(checkpoint, k)) for k in ks}
    return Judged(
        verdict=_reached(found),
        headline=_headline(found, len(prompts)),
        statements=found,
        moved=[*formats, *_openings(base, checkpoint)],
        formats={name: (counts[0][name], counts[1][name]) for name in names},
        pass_at_k={k: (paired.base, paired.checkpoint) for k, paired in solved.items() if paired.prompts},
        examples=_examples(base, checkpoint, prompts),
    )


def _reached(found: Sequence[Statement]) -> Verdict:
    worst = verdict(one.status for one in found if one.status is not None)
    return "insufficient" if worst == "pass" and _open(found) else worst


def _open(found: Sequence[Statement]) -> list[str]:
    return [one.id for one in found if one.id in CORE and one.status in ("unsure", "skip")]


def _headline(found: Sequence[Statement], prompts: int) -> str:
    bad = [one for status in ("fail", "warn") for one in found if one.status == status]
    # Of right answers only where all answers do not say it already.
    ids = {one.id for one in bad}
    narrowed = [one.told for one in bad if one.narrowing and one.id.removesuffix("-right") not in ids - {one.id}]
    rest = "; ".join(one.told for one in bad if not one.narrowing)
    if narrowed:
        more = f"; and {len(narrowed) - TOLD} more" if len(narrowed) > TOLD else ""
        return f"Narrowed: {'; '.join(narrowed[:TOLD])}{more}." + (f" Also: {rest}." if rest else "")
    but = f" But: {rest}." if rest else ""
    if unknown := _open(found):
        return f"Too few to tell whether it narrowed: {prompts} prompts leave open {', '.join(unknown)}.{but}"
    return f"Not narrowed: formats, templates and openings stand on the good side of their lines.{but}"


def _formats(base: Answers, checkpoint: Answers) -> list[Moved]:
    """By the rule of the check ``mode-extinction``, and that of openings for what took over."""
    moved: list[Moved] = []
    if base.format.shape[0] < LEAST_PROMPTS:
        return moved
    for name in sorted({*base.format.flat, *checkpoint.format.flat}):
        before, after = base.format == name, checkpoint.format == name
        paired = Paired(before.mean(1), after.mean(1))
        (low, high), share, last = paired.difference(ALPHA), paired.base, paired.checkpoint
        fate: Fate | None = None
        if share >= EXTINCT_BASE_SHARE and last < EXTINCT_SHARE * share and high < -share / 2:
            fate = "nearly gone" if last else "gone"
        elif last - share >= openings.TOOK_OVER and low > 0:
            fate = "took over"
        if fate is not None:
            first, second = ((int(mine.sum()), mine.size) for mine in (before, after))
            moved.append(Moved(kind="format", name=name, fate=fate, base=first, checkpoint=second))
    return sorted(moved, key=lambda one: (one.fate == "took over", -one.base[0]))


def _died_out(base: Answers, gone: Sequence[Moved]) -> Statement:
    blank = Statement(
        id="formats-gone", title="in formats now gone", unit="share", words=("gone", "none is"),
        line=f"WARN from {DIED_WARN:.0%} on, FAIL from {DIED_FAIL:.0%} (mode-extinction)",
        told=f"formats died out: {', '.join(one.name for one in gone)}",
    )  # fmt: skip
    if (prompts := base.format.shape[0]) < LEAST_PROMPTS:
        return blank.lacking(f"{prompts} prompts can be compared, {LEAST_PROMPTS} are needed")
    lost = sum(one.base[0] for one in gone) / base.format.size
    return replace(blank, status=statements.below((-lost, -lost), -DIED_WARN, -DIED_FAIL), value=lost, prompts=prompts)


def _openings(base: Answers, checkpoint: Answers) -> list[Moved]:
    rows = [
        [(text, prompt) for prompt, texts in enumerate(answers.text.tolist()) for text in texts]
        for answers in (base, checkpoint)
    ]
    stories, first, last = openings.between(*rows)
    return [
        Moved(
            kind="opening", name=one.opening, fate=one.fate, base=(round(one.base_share * first), first),
            checkpoint=(round(one.last_share * last), last),
        )
        for one in stories
    ]  # fmt: skip


def _examples(base: Answers, checkpoint: Answers, prompts: Sequence[str]) -> list[Example]:
    """Prompts whose completions grew most alike first, with the first completions of both."""
    more_P = np.nan_to_num(checkpoint.alike_P("template") - base.alike_P("template"))
    return [
        Example(prompt=prompts[at], base=list(base.text[at, :OF_EACH]), checkpoint=list(checkpoint.text[at, :OF_EACH]))
        for at in np.argsort(-more_P, kind="stable")[:EXAMPLES].tolist()
    ]
