"""What is asked of a run. Each check is a ``Question``; together the checks share one error rate.

Two families. *Folds* are the detectors: they looked at every step and bring their own false-alarm rate. *Hindsight*
checks look once, at the two ends of the run, with intervals whose error is shared out evenly over all of them
(Bonferroni). Both test "not damaged" rather than "unchanged": a check speaks only where the whole interval lies past
its line.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

import rlmon.audit.openings as openings
from rlmon.audit.case import Case
from rlmon.audit.checks.advice import as_run
from rlmon.audit.checks.answers import empty_answers, identical_completions
from rlmon.audit.checks.diversity import (
    answer_diversity,
    correct_diversity,
    near_duplicates,
    sentence_openings,
    word_diversity,
)
from rlmon.audit.checks.folds import FOLDS, own_folds
from rlmon.audit.checks.formats import format_winner, mode_extinction
from rlmon.audit.checks.groups import groups_known
from rlmon.audit.checks.length import length_growth, truncation
from rlmon.audit.checks.log import monitor_faults, replay, rows_complete
from rlmon.audit.checks.own_word import agreement
from rlmon.audit.checks.question import LEAST_PROMPTS, Ends, Question, question
from rlmon.audit.checks.reward import reward_functions, reward_loss, reward_missing
from rlmon.audit.checks.second_look import SECOND_LOOKS
from rlmon.audit.checks.signal import gradient, reward_signal
from rlmon.audit.checks.solving import eval_gap, forgotten_prompts, impossible_prompts, pass_at_k, shortcut
from rlmon.audit.contrast import Contrast
from rlmon.audit.result import Check, OpeningStory
from rlmon.audit.strata import strata
from rlmon.audit.wording import Wording, usable, wording
from rlmon.errors import ConfigError
from rlmon.records import WORST_FIRST

__all__ = [
    "ABOUT_ROWS", "ABOUT_THE_MONITOR", "FOLDS", "HINDSIGHT", "HINDSIGHT_ALPHA", "Ends", "Judged", "Question", "judge",
    "question", "questions",
]  # fmt: skip

HINDSIGHT_ALPHA = 0.01
"""Chance of any false FAIL or WARN among all hindsight checks."""
HINDSIGHT: tuple[Question, ...] = (
    mode_extinction,
    format_winner,
    correct_diversity,
    answer_diversity,
    near_duplicates,
    word_diversity,
    sentence_openings,
    pass_at_k,
    shortcut,
    forgotten_prompts,
    impossible_prompts,
    truncation,
    length_growth,
    eval_gap,
    reward_signal,
    reward_loss,
    reward_functions,
    reward_missing,
    gradient,
    empty_answers,
    identical_completions,
)
"""Their number shares out the error rate."""
ABOUT_ROWS: tuple[Question, ...] = (rows_complete, groups_known)
ABOUT_THE_MONITOR: tuple[Question, ...] = (replay, monitor_faults)
"""Only an rlmon log allows these."""


@dataclass(frozen=True, kw_only=True)
class Judged:
    """The checks and what they were computed from."""

    checks: Sequence[Check]
    wording: Wording | None
    openings: Sequence[OpeningStory]
    correction: str


def questions(case: Case, more: Sequence[object] = ()) -> tuple[Question, ...]:
    """Everything that is asked of this run; ``more``: checks of somebody else's, where what is none, or has the id of
    another, is an ERROR of its own."""
    asked = FOLDS + own_folds(case) + HINDSIGHT + ABOUT_ROWS + (() if case.fold.live is None else ABOUT_THE_MONITOR)
    for one in more:
        ids = {other.id for other in asked}
        if not isinstance(one, Question):
            asked += (_defect("not-a-check", ids, f"{one!r:.100} was given as a check, and is no Question"),)
        elif one.id in ids:
            asked += (_defect(f"{one.id}-again", ids, f"{one.home} brings a second check with the id {one.id!r}"),)
        else:
            asked += (one,)
    return asked


def _defect(check_id: str, taken: Collection[str], why: str) -> Question:
    while check_id in taken:
        check_id += "-again"

    def judge(ask: Question, ends: Ends) -> Check:
        raise ConfigError(why)

    return Question(id=check_id, title="Can this check be asked?", method="exact", judge=judge)


def judge(case: Case, more: Sequence[object] = ()) -> Judged:
    """Every check of the run, worst first. A check that fails itself is an ERROR and the others go on.

    ``more``: checks of somebody else's; those that look once, at the two ends, take their part of the error rate.
    """
    asked = questions(case, more)
    looks = len(HINDSIGHT) + sum(one.method == "hindsight" for one in asked if any(one is x for x in more))
    alpha = HINDSIGHT_ALPHA / (looks + SECOND_LOOKS)
    groups, is_base, is_last = case.ends()
    contrast = mixture = None
    if min(np.unique(groups["prompt"][end]).size if groups else 0 for end in (is_base, is_last)) >= LEAST_PROMPTS:
        mixture = strata(groups, case.sources, is_base, is_last)
        contrast = Contrast(groups["prompt"], is_base, is_last, alpha, mixture.weight_G)
    texts = usable(case.counted.samples)
    words, base = None, usable(case.base.samples) if case.base is not None else None
    sources = mixture.names if mixture is not None and mixture.moved else None
    if texts is not None:
        words = wording(texts, base, case.line.steps, case.windows, alpha, sources)
    ends = Ends(case=case, groups=groups, contrast=contrast, wording=words, strata=mixture, alpha=alpha)
    found = [as_run(one.ask(ends), case) for one in asked]
    if (own := agreement(case, found)) is not None:
        found.append(own)
    # Where numbers are not numbers, that comes first: what follows from it is no finding of its own.
    found.sort(key=lambda check: (WORST_FIRST.index(check.status), check.id != "non-finite"))
    narrowed = any(check.about == "narrowing" and check.status in ("warn", "fail") for check in found)
    opened = openings.stories(texts, base, case.windows, sources) if narrowed else ()
    return Judged(checks=found, wording=words, openings=opened, correction=_correction(case, looks))


def _correction(case: Case, looks: int) -> str:
    return (
        f"Detectors looked at {case.fold.looks} steps each; theirs is a betting e-process at level "
        f"{case.fold.alpha:g} over all looks, split over the detectors: measured, not proved, at most that share of "
        "runs has a false FAIL while it stays at .8 of its base or above. "
        f"The {looks} hindsight checks and {SECOND_LOOKS} second looks at what the detectors saw look once; "
        "their intervals have level "
        f"{1 - HINDSIGHT_ALPHA / (looks + SECOND_LOOKS):.3%} each, so that the chance of any false FAIL, WARN or NOTE "
        f"among them is at most {HINDSIGHT_ALPHA:g} (Bonferroni), as far as a bootstrap over prompts (for curves: an "
        "autoregressive noise of order 1) holds its level."
    )
