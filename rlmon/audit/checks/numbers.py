"""Which numbers of a run are NaN or infinite, and whether that was only a scale that was still looked for."""

from __future__ import annotations

import math

import numpy as np

from rlmon.audit.case import Case
from rlmon.audit.curves import LEAST_POINTS
from rlmon.printable import one_line, several

NAMED = 4
"""Numbers that are named in a message; of the others it says how many there are."""
FIRST_STEPS = 3
"""In which numbers may be infinite while a scale is still looked for (fp16 loss scaling)."""


def steps_without_numbers(case: Case) -> dict[str, set[int]]:
    """The steps at which curves of the trainer are NaN or infinite, of those that are anywhere."""
    bad = {
        key: {step for step, value in points if not math.isfinite(value)} for key, points in case.run.scalars.items()
    }
    return {key: steps for key, steps in bad.items() if steps}


def only_at_the_start(case: Case) -> bool:
    """Only the first few steps of the trainer's curves are not finite, the loss is at these too, and the run went on:
    a scale that was still looked for (of fp16 losses, whose steps are passed over), and no damage."""
    bad = set().union(*steps_without_numbers(case).values())
    told = {finding.step for finding in case.fold.findings if finding.detector == "non-finite"}
    loss, steps = case.series("loss"), case.line.steps
    if loss is None or not bad or not told <= bad or steps.size < FIRST_STEPS + LEAST_POINTS:
        return False
    rewards = case.series("rlmon/health/reward_non_finite")
    if rewards is not None and (rewards > 0).any():
        return False
    return bad <= set(steps[:FIRST_STEPS].tolist()) and bool(np.isfinite(loss[np.isin(steps, list(bad))]).all())


def not_numbers(case: Case) -> str:
    """Which numbers are NaN or infinite, and in how many steps."""
    bad = steps_without_numbers(case)
    rewards = case.series("rlmon/health/reward_non_finite")
    if rewards is not None and (rewards > 0).any():
        bad["rewards of completions"] = set(case.line.steps[rewards > 0].tolist())
    if not bad:
        counts = case.series("rlmon/health/non_finite")
        bad["numbers of the run"] = set() if counts is None else set(case.line.steps[counts > 0].tolist())
    named = [one_line(key, 60) for key in sorted(bad, key=lambda key: (-len(bad[key]), key))]
    steps = len(set().union(*bad.values()))
    where = f" in {steps} of {case.line.steps.size} steps" if steps else ""
    return f"{several(named, NAMED)}: NaN or infinite{where}"
