"""Is something answered, and do the completions of one prompt differ at all?"""

from __future__ import annotations

from typing import Any

import numpy as np

from rlmon.audit.checks.question import Ends, Question, between, question, sizes
from rlmon.audit.checks.signal import silence
from rlmon.audit.curves import LEAST_POINTS, last_points, smooth_since
from rlmon.audit.result import Check
from rlmon.detectors.catalog import WIDEN
from rlmon.records import Status


@question(
    "empty-answers",
    "Is there an answer in every completion?",
    needs=("completions",),
    about="narrowing",
    warn=".1 more completions answer nothing (no text, or an answer's tags with nothing between them)",
    fail=".5",
)
def empty_answers(ask: Question, ends: Ends) -> Check:
    assert ends.contrast is not None
    groups = ends.groups
    if not groups["empty_known"].any():
        return ask.skip("the text of the completions was not stored; store it (rlmon_store_text: full)")
    found = ends.contrast.ratio(groups["empty"], groups["empty_known"])
    if found is None:
        return ask.skip("an end of the run has fewer than two prompts")
    low = found.last - found.change + found.low
    status: Status = "fail" if found.low > 0.5 else "warn" if found.low > 0.1 or low > 0.5 else "pass"
    steps, share = ends.over_steps(groups["empty"], groups["empty_known"])
    line = found.base + 0.1 if found.low > 0.1 else 0.5
    return ask.says(
        status=status, metric="share of empty answers", unit="share", value=found.last, baseline=found.base,
        threshold=found.base + 0.5 if status == "fail" else line if status == "warn" else found.base + 0.1,
        interval=(low, found.base + found.high), evidence=sizes(found),
        first_step=None if status == "pass" else smooth_since(steps, share, line, upward=True),
        message=("an empty answer (no text, or its tags with nothing between them) took over: "
        if found.low > 0.1 else "empty answers: ") + between(found),
        advice="Look at them with `rlmon show`, and at what the reward function pays for "
        "an empty string: it must pay nothing. Then raise beta, or go back to a checkpoint from before.",
    )  # fmt: skip


IDENTICAL = 0.9
"""Of the groups: with more than this many of identical completions, sampling gives nothing to compare."""


ALL = 0.98
"""Share of groups that is called all of them."""


def _one_answer(ends: Ends) -> tuple[float, int | None]:
    """Share of the last groups whose completions all give one answer, and the step since which that is all of them."""
    several = ends.groups["answered"] >= 2
    one = several & (ends.groups["answers"] < 1.0 + 1e-9)
    steps, share = ends.over_steps(one.astype(np.float64), several.astype(np.float64))
    known = np.isfinite(share)
    if known.sum() < LEAST_POINTS:
        return 0.0, None
    return float(share[known][-last_points(int(known.sum())) :].mean()), smooth_since(steps, share, ALL, upward=True)


@question(
    "identical-completions",
    "Do the completions of one prompt differ?",
    needs=("completions",),
    about="narrowing",
    warn="in .9 of the groups all completions are one text, or one answer where no rewards are known",
    fail="in all of them, and they are not solved",
)
def identical_completions(ask: Question, ends: Ends) -> Check:
    groups = ends.groups
    known = np.isfinite(groups["identical"])
    if not known.any():
        return ask.skip("no group has two completions whose text is known")
    steps, share = ends.over_steps(np.where(known, groups["identical"], 0.0), known.astype(np.float64))
    right = ends.over_steps(groups["all_good"].astype(np.float64), groups["classified"].astype(np.float64))[1]
    last = last_points(steps.size)
    now, first = float(np.nanmean(share[-last:])), float(np.nanmean(share[: min(3, share.size)]))
    facts: dict[str, Any] = {
        "metric": "share of groups whose completions are all identical", "unit": "share of groups", "value": now,
        "baseline": first, "evidence": {"steps": int(steps.size), "groups": int(known.sum())},
    }  # fmt: skip
    if steps.size < LEAST_POINTS:
        return ask.skip(f"{steps.size} steps have groups; {LEAST_POINTS} are needed", **facts)
    solved = float(np.nan_to_num(right[-last:]).mean())
    if now < IDENTICAL:
        message = f"in {now:.0%} of the groups all completions are one text"
        one, since = _one_answer(ends)
        # Where rewards are known they tell whether a group has something to compare.
        if one > ALL and silence(ends) is None:
            return ask.says(
                **facts | {"value": one, "baseline": None, "metric": "share of groups with one answer"}, status="warn",
                threshold=ALL, first_step=since,
                message=f"{message}, and in {one:.0%} all of them give one answer: where the answer is rewarded, "
                "a group has nothing to compare",
                advice="Raise temperature or num_generations; look whether the prompt gives the answer away.",
            )  # fmt: skip
        return ask.says(status="pass", message=message, **facts)
    always = first >= IDENTICAL
    said = f"in {now:.0%} of the groups all completions are identical"
    return ask.says(
        status="fail" if now > 0.99 and solved < 0.5 else "warn", threshold=IDENTICAL,
        first_step=None if always else smooth_since(steps, share, IDENTICAL, upward=True),
        message=f"{said}, from the first step on: they are sampled without chance, so that no group can teach"
        if always else f"{said} ({first:.0%} at the start): a group has nothing left to compare",
        advice="Sample with temperature=1.0 (0 or do_sample=False gives one text), and look at top_k and top_p."
        if always else WIDEN, **facts,
    )  # fmt: skip
