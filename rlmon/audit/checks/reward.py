"""Is there a reward, does it hold, and does every function that makes it up say something?"""

from __future__ import annotations

from typing import Any

import numpy as np

from rlmon.audit.checks.question import Ends, Question, between, question, sizes
from rlmon.audit.checks.signal import REWARD, SAME, constant
from rlmon.audit.curves import LEAST_POINTS, known, last_points, smooth_since
from rlmon.audit.features import Floats
from rlmon.audit.result import Check
from rlmon.audit.timeline import SMOOTHING_STEPS
from rlmon.records import Status
from rlmon.statistics import ByKey, trailing_mean

LOST_WARN = 0.3
LOST_FAIL = 0.6
"""Share of the reward that is lost at the end."""


@question(
    "reward-loss",
    "Does the reward hold?",
    core="reward",
    about="reward",
    told="the reward fell from {base} to {now}",
    warn=".3 of the reward is lost, against the base or against a level that was reached",
    fail=".6",
)
def reward_loss(ask: Question, ends: Ends) -> Check:
    values = ends.case.series(REWARD)
    if values is None:
        return ask.skip(ends.case.run.lacks.get("rewards", "no reward was logged"), metric=REWARD)
    facts: dict[str, Any] = {"metric": REWARD, "unit": "reward"}
    rows = ends.contrast.ratio(ends.groups["reward"], ends.groups["scored"]) if ends.contrast is not None else None
    if rows is not None:
        base, last, high = rows.base, rows.last, rows.base + rows.high
        facts |= {"interval": (rows.base + rows.low, high), "evidence": sizes(rows)}
        told = between(rows)
    else:
        if not ends.same_data and ends.strata is not None:
            return ask.skip(f"{ends.strata.said}: no source is at both ends of the run", **facts)
        found = ends.move(REWARD, relative=False)
        if found is None:
            return ask.skip(f"the reward of {known(values).size} steps is known; {LEAST_POINTS} are needed", **facts)
        base, last, high = found.base, found.last, found.high
        facts |= {"interval": (found.low, high)}
        told = found.within()
    scale = _scale(ends, values, base)
    facts |= {"value": last, "baseline": base, "threshold": base - LOST_WARN * scale}
    steps = ends.case.line.steps
    for status, lost in (("fail", LOST_FAIL), ("warn", LOST_WARN)):
        if scale > 0 and high < base - lost * scale:
            return ask.says(
                **facts | {"threshold": base - lost * scale}, status=status, message=f"the reward fell: {told}",
                first_step=smooth_since(steps, values, base - LOST_WARN * scale, upward=False), advice=_FALLEN,
            )  # fmt: skip
    if (peak := _lost_again(ends, values)) is not None:
        best, at, now, status = peak
        line = best - LOST_WARN * _scale(ends, values, best)
        return ask.says(
            **facts | {"threshold": line}, status=status, advice=_FALLEN,
            first_step=smooth_since(steps, values, line, upward=False),
            message=f"the reward rose to {best:.3g} by step {at} and was lost again: {now:.3g} at the end",
        )  # fmt: skip
    return ask.says(status="pass", message=told, **facts)


_FALLEN = (
    "Go back to a checkpoint from before the fall. Lower learning_rate, raise beta or set max_grad_norm; if the data "
    "became harder there, compare like with like (log a task or source column)."
)


def _scale(ends: Ends, values: Floats, level: float) -> float:
    """What a reward of this level has to lose: itself where rewards are never negative, else their spread too."""
    if known(values).min() >= 0 and not any(part["min"].min() < 0 for part in ends.case.counted.functions.values()):
        return abs(level)
    spread = [known(ends.case.series(name)) for name in ("rlmon/group/reward_std", "reward_std")]
    of_groups = max(float(one.mean()) if one.size else 0.0 for one in spread)
    return max(abs(level), of_groups or float(np.ptp(known(values))))


def _lost_again(ends: Ends, values: Floats) -> tuple[float, int, float, Status] | None:
    """A level that was reached and is lost for good: best mean of a window, its last step, level now, and how bad."""
    at = np.flatnonzero(np.isfinite(values))
    window = last_points(at.size)
    if at.size < 2 * LEAST_POINTS or not ends.same_data:
        return None
    smooth = trailing_mean(values[at], window)
    top = int(smooth[window - 1 :].argmax()) + window - 1
    # The best of many windows is the best by chance too: what is compared is the curve from there on, and the error
    # is shared out over the windows that do not overlap.
    rest = values[at[max(0, top - window + 1) :]]
    found = ends.move_of(rest, relative=False, looks=max(1, at.size // window))
    if found is None:
        return None
    best, now = float(smooth[top]), float(smooth[-1])
    scale = _scale(ends, values, best)
    for status, lost in (("fail", LOST_FAIL), ("warn", LOST_WARN)):
        if scale > 0 and max(found.high, now) < best - lost * scale:
            return best, int(ends.case.line.steps[at[top]]), now, "fail" if status == "fail" else "warn"
    return None


@question(
    "reward-functions",
    "Does every reward function tell completions apart?",
    about="reward",
    warn="NOTE: one is constant; WARN: one is 0 for all, or fell to nothing",
)
def reward_functions(ask: Question, ends: Ends) -> Check:
    means = {
        name.removeprefix("rewards/"): values
        for name, values in ends.case.line.series.items()
        if name.startswith("rewards/") and not name.endswith("/std")
    }
    means = {name: values for name, values in means.items() if known(values).size >= LEAST_POINTS}
    if not means:
        return ask.skip(
            "no reward function was logged by itself; with TRL each one is (rewards/<function>/mean)", unit="functions"
        )
    dead: list[tuple[str, float]] = []
    still: list[tuple[str, float]] = []
    lost: list[tuple[str, float]] = []
    for name, values in sorted(means.items()):
        one = constant(known(values))
        if one is not None and not _spreads(ends, name):
            (still if one else dead).append((name, one))
        elif one is None and _died(ends, values):
            lost.append((name, float(known(values)[:3].mean())))
    said = [f"{name!r} gives 0 to every completion in every step: it is dead" for name, _ in dead[:5]]
    said += [f"{name!r} fell from {level:.3g} to nothing" for name, level in lost[:5]]
    said += [f"{name!r} gives {one:.6g} to every completion: it teaches nothing" for name, one in still[:5]]
    status: Status = "warn" if dead or lost else "note" if still else "pass"
    return ask.says(
        status=status, metric="reward functions that are dead or constant", unit=f"of {len(means)}",
        value=float(len(dead) + len(lost) + len(still)), baseline=0.0,
        message="; ".join(said) or f"{len(means)} reward functions: each one varies",
        evidence={"dead": [name for name, _ in dead], "constant": [name for name, _ in still],
                  "lost": [name for name, _ in lost]},
        advice="Call it on a few completions of `rlmon show`: a parser that looks for "
        "another format, or a threshold nobody reaches, looks like this. Take it out, or give it a graded reward.",
    )  # fmt: skip


def _spreads(ends: Ends, name: str) -> bool:
    """Whether single completions differ where the mean does not."""
    parts = ends.case.counted.functions.get(name)
    if parts is not None:
        seen = parts["scored"] > 0
        return bool(seen.any() and parts["max"][seen].max() - parts["min"][seen].min() > SAME)
    spread = known(ends.case.series(f"rewards/{name}/std"))
    return bool(spread.size and spread.max() > SAME)


def _died(ends: Ends, values: Floats) -> bool:
    """A function that gave something and gives nothing in all of the last window."""
    found = ends.move_of(known(values), relative=False)
    window = last_points(known(values).size)
    return found is not None and found.base > 0 and found.high < 0.5 * found.base and not known(values)[-window:].any()


@question(
    "reward-missing",
    "Does every completion get a reward?",
    method="exact",
    needs=("completions",),
    about="reward",
    warn="completions without a reward (NaN, None) in groups where others have one",
    fail="half of a step",
)
def reward_missing(ask: Question, ends: Ends) -> Check:
    groups = ends.case.counted.groups
    train = ~groups["eval"]
    if not groups["scored"][train].any():
        return ask.skip(ends.case.run.lacks.get("rewards", "no completion has a reward"), metric="rewards missing")
    lacking = groups["missing"] + np.where(groups["missing"] > 0, 0.0, groups["non_finite"])
    # A group that is left out as a whole was left out on purpose; a hole in a group never is.
    holes = np.where((lacking > 0) & (lacking < groups["rows"]), lacking, 0.0)
    by_step = ByKey(groups["step"], train)
    share = by_step.ratio(holes, groups["rows"])
    whole = float((lacking - holes)[train].sum() / groups["rows"][train].sum())
    overall = float(holes[train].sum() / groups["rows"][train].sum())
    worst = float(np.nanmax(trailing_mean(share, SMOOTHING_STEPS)))
    began = np.flatnonzero(share > 0)
    start = int(by_step.keys[began[0]]) if began.size else None
    status: Status = "fail" if worst > 0.5 else "warn" if overall > 0.001 else "pass"
    left_out = f"; {whole:.1%} more are of groups that were left out as a whole" if whole else ""
    return ask.says(
        status=status, metric="completions without a reward in groups that have some", unit="share", value=worst,
        baseline=float(share[0]), threshold=0.5 if status == "fail" else 0.001 if status == "warn" else None,
        first_step=start if status != "pass" else None,
        message=f"up to {worst:.0%} of the completions of a step got no reward (NaN or None)"
        f"{left_out}" if status != "pass" else f"all but {overall:.2%} of the completions got one{left_out}",
        evidence={"missing": float(holes[train].sum()), "rows": float(groups["rows"][train].sum())},
        advice="A reward function returned NaN or None for them: find the completions with "
        "`rlmon show` and return a number (0.0 for what cannot be parsed), or None for the whole group.",
    )  # fmt: skip
