"""Do rewards differ, so that something can be learned from them, and does a gradient arrive?

A group whose rewards are all equal gives no gradient. Where all groups are like that, nothing is learned, whatever the
curves look like; where that is so from the first step, nothing ever was.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from rlmon.audit.checks.question import Ends, Question, question
from rlmon.audit.curves import LEAST_POINTS, known, last_points, since, smooth_since
from rlmon.audit.features import Bools, Floats, Ints
from rlmon.audit.result import Check
from rlmon.records import Status

REWARD = "rlmon/health/reward_mean"
SAME = 1e-6
"""Rewards that differ by no more, relative to their size (of at least 1), are the same: the spread of equal rewards is
not 0 but that of float32, and trainers add more than this to the spread that they divide by."""


def constant(values: Floats) -> float | None:
    """The one value of a curve, ``None`` where it has several or none."""
    if not values.size or np.ptp(values) > SAME * max(1.0, float(np.abs(values).max())):
        return None
    return round(float(values[0]), 6)


SILENT_SHARE = 0.9
"""Of the groups: with more than this many silent, hardly anything is learned."""
SOLVED = 0.8
"""Share of groups that are right as a whole from which silence is that of solved prompts."""
MOST_STEPS = 0.95
"""Share of the steps that is called all of them: a single odd step does not bring a dead run to life."""
STILL = 1e-8
"""A gradient whose norm is no larger moves nothing: each of its parts is below the epsilon of Adam."""


@dataclass(frozen=True, kw_only=True)
class Silence:
    """The steps at which rewards did not differ inside groups."""

    steps: Ints
    silent: Bools
    share: Floats
    """Share of silent groups at each of the steps."""
    metric: str
    """What says so."""

    @property
    def always(self) -> bool:
        """From the first step to the last."""
        return self.steps.size >= LEAST_POINTS and float(self.silent.mean()) >= MOST_STEPS and bool(self.silent[0])


def silence(ends: Ends) -> Silence | None:
    """Where rewards did not differ, by the best of what was logged; ``None`` where nothing tells."""
    for name in ("rlmon/group/silent", "rlmon/group/reward_std", "reward_std", "reward_range", "grad_norm"):
        values = ends.case.series(name)
        at = np.zeros(0, dtype=np.int64) if values is None else np.flatnonzero(np.isfinite(values))
        if values is None or not at.size:
            continue
        if name == "rlmon/group/silent":
            share = values[at]
        else:
            share = (np.abs(values[at]) <= (STILL if name == "grad_norm" else _tolerance(ends))).astype(np.float64)
        found = Silence(steps=ends.case.line.steps[at], silent=share >= SILENT_SHARE, share=share, metric=name)
        # A gradient that lives tells of no group; one that is zero tells enough.
        if name != "grad_norm" or found.always:
            return found
    reward = ends.case.series(REWARD)
    if reward is not None and constant(known(reward)) is not None and known(reward).size >= LEAST_POINTS:
        at = np.flatnonzero(np.isfinite(reward))
        every = np.ones(at.size)
        return Silence(steps=ends.case.line.steps[at], silent=every > 0, share=every, metric=REWARD)
    return None


def _tolerance(ends: Ends) -> float:
    """Spread up to which rewards of this size are the same."""
    reward = known(ends.case.series(REWARD))
    return SAME * max(1.0, float(np.abs(reward).max()) if reward.size else 0.0)


def _zero(gradient_norms: Floats) -> str:
    """How near to 0 these gradient norms are, which are as good as 0."""
    most = float(gradient_norms.max())
    return f"as good as 0 (a norm of {most:.2g} at most)" if most > 0 else "exactly 0"


@question(
    "reward-signal",
    "Do rewards differ, so that something can be learned?",
    core="groups",
    about="reward",
    warn="NOTE: rewards differ in less than .1 of the groups, at the best reward of the run; WARN: at another",
    fail="in hardly any group, or in none from the first step on: nothing can be learned",
)
def reward_signal(ask: Question, ends: Ends) -> Check:
    found = silence(ends)
    if found is None:
        lacks = ends.case.run.lacks
        return ask.skip(
            lacks.get("rewards", "neither the share of groups without reward spread nor the spread itself was logged "
            "(TRL: frac_reward_zero_std, reward_std)")
        )  # fmt: skip
    last = last_points(found.steps.size)
    now, first = float(found.share[-last:].mean()), float(found.share[:3].mean())
    facts: dict[str, Any] = {
        "metric": found.metric, "unit": "share of groups without reward spread", "value": now, "baseline": first,
        "evidence": {"steps": int(found.steps.size), "silent_steps": int(found.silent.sum())},
    }  # fmt: skip
    if found.steps.size < LEAST_POINTS:
        return ask.skip(f"rewards of {found.steps.size} steps are known; {LEAST_POINTS} are needed", **facts)
    if found.always:
        return _never(ask, ends, found, facts)
    start = since(found.steps, found.silent)
    if now < SILENT_SHARE or start is None or int((found.steps >= start).sum()) < min(5, last):
        where = "of the groups" if found.metric.startswith("rlmon/group/") else "of the last batches"
        return ask.says(status="pass", message=f"rewards differ in {1.0 - now:.0%} {where}", **facts)
    where = "in every group" if now > 0.99 else f"in {now:.0%} of the groups"
    facts |= {"threshold": SILENT_SHARE, "first_step": start}
    reward = ends.case.series(REWARD)
    levels = known(reward)
    level = "" if reward is None or not levels.size else f"; the reward is {float(levels[-last:].mean()):.3g}"
    if _solved(ends, start):
        # Where groups are known to be right as a whole, silent-groups-good says so, once.
        told = any(f.detector == "silent-groups-good" for f in ends.case.fold.findings)
        return ask.says(
            **facts | ({"threshold": None, "first_step": None} if told else {}), status="pass" if told else "note",
            message=f"all completions of a group earn the same {where}{level}, the best of the run: it is learned, and "
            "what is left teaches nothing",
            advice="" if told else "Move to harder prompts, drop solved ones, or stop.",
        )  # fmt: skip
    return ask.says(
        status="fail" if now > 0.99 else "warn",
        message=f"all completions of a group earn the same {where}{level}: from there on nothing is learned, or next "
        "to nothing",
        advice=_ADVICE, **facts,
    )  # fmt: skip


_ADVICE = (
    "Look at what reward_funcs returns for a few completions (a parser that rejects everything, or a constant, looks "
    "like this); raise num_generations or temperature; drop prompts that are never or always solved."
)


def _solved(ends: Ends, start: int) -> bool:
    """Whether the silence is that of solved prompts: the reward stands at the top of what it ever was, above where it
    began."""
    steps = ends.case.line.steps
    good = ends.case.series("rlmon/group/all_good")
    if good is not None and np.isfinite(good[steps >= start]).any():
        return bool(np.nanmean(good[steps >= start]) > SOLVED)
    reward = ends.case.series(REWARD)
    if reward is None or not np.isfinite(reward[steps >= start]).any():
        return False
    level, begin = float(np.nanmean(reward[steps >= start])), float(known(reward)[:3].mean())
    best = float(known(reward).max())
    return level > begin and best - level <= 0.1 * max(best - begin, SAME)


def _never(ask: Question, ends: Ends, found: Silence, facts: dict[str, Any]) -> Check:
    """No step at which rewards differed inside groups."""
    rewards = known(ends.case.series(REWARD))
    one = constant(rewards)
    gradient = known(ends.case.series("grad_norm"))
    dead = gradient.size > 0 and bool(gradient.max() <= STILL)
    still = f" The gradient was {_zero(gradient)}." if dead else ""
    facts |= {"threshold": SILENT_SHARE}
    steps = f"in all {found.steps.size} steps" if found.silent.all() else f"in nearly all of {found.steps.size} steps"
    if one == 1.0:
        return ask.says(
            status="warn", message=f"the reward is 1 for every completion {steps}: all of it was solved before the run "
            f"began, or the reward cannot fail; either way nothing can be learned.{still}",
            advice="Check that a wrong completion earns less; if it does, take harder prompts.", **facts,
        )  # fmt: skip
    what = "all completions of a group earn the same"
    if one is not None:
        what = f"the reward is {one:.6g} for every completion" if one else "the reward is 0 for every completion"
    elif found.metric == "grad_norm":
        what, still = f"the gradient was {_zero(gradient[gradient <= STILL])}", ""
    return ask.says(status="fail", message=f"{what} {steps}: nothing can be learned.{still}", advice=_ADVICE, **facts)


@question(
    "gradient",
    "Does a gradient of a sane size arrive?",
    about="reward",
    told="the gradient norm rose from {base} to {now}",
    warn="as good as 0 (a norm up to 1e-8) since some step, or ten times as large as at the base",
    fail="the same throughout",
)
def gradient(ask: Question, ends: Ends) -> Check:
    name = "grad_norm"
    values = ends.case.series(name)
    if values is None or known(values).size < LEAST_POINTS:
        return ask.skip("the gradient norm was not logged (grad_norm, with logging_steps=1)", metric=name)
    at = np.flatnonzero(np.isfinite(values))
    steps, zero = ends.case.line.steps[at], values[at] <= STILL
    facts: dict[str, Any] = {"metric": name, "unit": "norm", "value": float(values[at][-last_points(at.size) :].mean())}
    if zero.mean() >= MOST_STEPS:
        return ask.says(
            status="warn" if constant(known(ends.case.series(REWARD))) == 1.0 else "fail", threshold=STILL,
            advice=_ADVICE, **facts,
            message=f"the gradient was {_zero(values[at][zero])} in {int(zero.sum())} of {at.size} steps: nothing can "
            "be learned",
        )  # fmt: skip
    start = since(steps, zero)
    if start is not None and int((steps >= start).sum()) >= max(5, last_points(at.size)):
        return ask.says(
            status="note" if _solved(ends, start) else "warn", first_step=start, advice=_ADVICE,
            message=f"the gradient is {_zero(values[at][zero & (steps >= start)])}: nothing is learned from there on",
            **facts,
        )  # fmt: skip
    found = ends.move_of(values[at][~zero], relative=True)
    if found is None:
        return ask.skip(f"the gradient norm is above 0 at fewer than {LEAST_POINTS} steps", **facts)
    facts |= {"value": found.last, "baseline": found.base, "threshold": 10.0 * found.base,
              "interval": (found.low, found.high)}  # fmt: skip
    status: Status = "warn" if found.low > 10.0 * found.base else "pass"
    onset = smooth_since(ends.case.line.steps, values, 10.0 * found.base, upward=True)
    return ask.says(
        status=status, message=found.within(), first_step=None if status == "pass" else onset, **facts,
        advice="Set max_grad_norm (0.1 to 1), lower learning_rate; a rising norm is often "
        "the first sign of sampler and trainer drifting apart.",
    )  # fmt: skip


def nothing_ever_differed(ends: Ends) -> bool:
    """Rewards were the same inside every group from the first step on: whoever says "learned" is wrong."""
    found = silence(ends)
    return found is not None and found.always and not math.isnan(float(found.share.mean()))
