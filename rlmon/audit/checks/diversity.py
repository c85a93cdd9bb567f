"""Do texts and answers keep their variety?"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from rlmon.audit.checks.question import Ends, Question, between, question, sizes
from rlmon.audit.contrast import Difference
from rlmon.audit.result import Check
from rlmon.detectors.catalog import WIDEN
from rlmon.records import Status

RIGHT_WARN, RIGHT_FAIL = 0.6, 0.4
"""Of the base's templates among right answers to a prompt."""


@question(
    "correct-diversity",
    "Are there still several ways to be right?",
    needs=("completions", "successes", "keys"),
    about="narrowing",
    told="correct answers to one prompt followed {base} templates, now {now}",
    warn="templates among correct completions of a prompt below .6 of base",
    fail=".4",
)
def correct_diversity(ask: Question, ends: Ends) -> Check:
    assert ends.contrast is not None
    found = ends.contrast.mean(ends.groups["templates_correct"])
    if found is None:
        return ask.skip("too few prompts have two rewarded completions at both ends of the run")
    return narrowing(
        ask, "rlmon/text/effective_templates_within_correct", "templates", found, RIGHT_WARN, RIGHT_FAIL,
        WIDEN + " Later training can only choose among right answers that are still given.",
    )  # fmt: skip


@question(
    "answer-diversity",
    "Do answers narrow only by getting right?",
    needs=("completions", "keys"),
    about="narrowing",
    told="one prompt got {base} different answers, now {now}",
    warn="distinct answers per prompt below .6 of base while reward did not rise",
)
def answer_diversity(ask: Question, ends: Ends) -> Check:
    assert ends.contrast is not None
    found = ends.contrast.mean(ends.groups["answers"])
    if found is None:
        return ask.skip("too few prompts have two completions with an answer at both ends of the run")
    reward = ends.contrast.ratio(ends.groups["reward"], ends.groups["scored"])
    right = ends.contrast.mean(ends.groups["answers_correct"])
    check = narrowing(
        ask, "rlmon/text/effective_answers_within", "answers", found, 0.6, None,
        WIDEN + " It agrees with itself without being right more often: look at answers with `rlmon show`.",
        {"reward_change": None if reward is None else reward.change,
         "correct_only_base": None if right is None else right.base,
         "correct_only_last": None if right is None else right.last},
    )  # fmt: skip
    if check.status == "warn" and reward is not None and reward.low > 0:
        said = f"{check.message}; reward rose by {reward.change:.3g}, so this is learning"
        return dataclasses.replace(check, status="pass", message=said, advice="", threshold=None)
    return check


@question(
    "near-duplicates",
    "Do completions to different prompts differ?",
    doubt="formats",
    needs=("completions",),
    about="narrowing",
    told="{now} of completions to different prompts are near copies of each other, at the base {base}",
    warn="share of near-duplicate pairs across prompts up by .2",
    fail=".5",
)
def near_duplicates(ask: Question, ends: Ends) -> Check:
    name = "rlmon/text/near_duplicate_across"
    if (reason := _no_words(ends, name)) is not None:
        return ask.skip(reason)
    assert ends.wording is not None
    found = ends.wording.ends[name]
    status: Status = "fail" if found.low > 0.5 else "warn" if found.low > 0.2 else "pass"
    evidence = sizes(found)
    if ends.case.series("exact duplicate share") is not None:
        evidence |= {"exact_duplicate_share_base": ends.case.base_mean("exact duplicate share"),
                     "exact_duplicate_share_last": ends.case.last_mean("exact duplicate share")}  # fmt: skip
    return ask.says(
        status=status, metric=name, unit="share of pairs",
        value=found.last, baseline=found.base, threshold=found.base + (0.5 if status == "fail" else 0.2),
        interval=(found.base + found.low, found.base + found.high), message=between(found), evidence=evidence,
        advice=WIDEN,
    )  # fmt: skip


@question(
    "word-diversity",
    "Does the wording keep its variety?",
    doubt="formats",
    needs=("completions",),
    about="narrowing",
    told="{now} of all word pairs are distinct, at the base {base}",
    warn="distinct word pairs at a fixed budget below .6 of base",
    fail=".3",
)
def word_diversity(ask: Question, ends: Ends) -> Check:
    name = "rlmon/text/distinct_2"
    if (reason := _no_words(ends, name)) is not None:
        return ask.skip(reason)
    assert ends.wording is not None
    packed = ends.wording.ends.get("rlmon/text/compression_ratio")
    evidence = {} if packed is None else {"compression_ratio_base": packed.base, "compression_ratio_last": packed.last}
    return narrowing(ask, name, "distinct word pairs of all", ends.wording.ends[name], 0.6, 0.3, WIDEN, evidence)


@question(
    "sentence-openings",
    "Do sentences still begin in many ways?",
    doubt="formats",
    needs=("completions",),
    about="narrowing",
    told="sentences began in {base} ways, now in {now}",
    warn="ways to begin a sentence in use below .6 of base",
    fail=".3",
)
def sentence_openings(ask: Question, ends: Ends) -> Check:
    if (reason := _no_words(ends, "sentence openings")) is not None:
        return ask.skip(reason)
    assert ends.wording is not None
    return narrowing(
        ask, "sentence openings", "ways in use",
        ends.wording.ends["sentence openings"], 0.6, 0.3, WIDEN,
    )  # fmt: skip


def _no_words(ends: Ends, name: str) -> str | None:
    if ends.wording is None:
        return "the text of the completions was not stored; store it (rlmon_store_text: full) to have this check"
    if name not in ends.wording.ends:
        return "the ends of the run hold too few words to compare (at least 8 prompts with 256 words in each part)"
    return None


def fallen(found: Difference, warn: float, fail: float | None) -> Status:
    """FAIL or WARN where the whole interval lies below that share of the base."""
    if fail is not None and found.high < -(1.0 - fail) * found.base:
        return "fail"
    return "warn" if found.high < -(1.0 - warn) * found.base else "pass"


def narrowing(
    ask: Question, metric: str, unit: str, found: Difference, warn: float, fail: float | None, advice: str,
    evidence: Mapping[str, Any] | None = None,
) -> Check:  # fmt: skip
    status = fallen(found, warn, fail)
    return ask.says(
        status=status,
        metric=metric,
        unit=unit,
        value=found.last,
        baseline=found.base,
        threshold=found.base * (fail if status == "fail" and fail is not None else warn),
        interval=(max(0.0, found.last + found.low - found.change), found.last + found.high - found.change),
        message=between(found),
        evidence=dict(evidence or {}) | sizes(found),
        advice=advice,
    )
