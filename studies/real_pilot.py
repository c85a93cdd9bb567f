"""Whether a task is worth days of training: what the base does on it, and what a step costs on this machine.

A task *qualifies* where the base's reward is .2 to .7 and at least three formats, or three openings, have more than
5 % of the right answers each: with fewer there is nothing to lose, with less reward nothing to learn from.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rlmon.lab.libraries import versions
from studies.real_cell import RealArm, RealCell, Sitting, load_model, sampled, train
from studies.real_measures import Row, shares
from studies.real_tasks import RealTask

PROMPTS = 16
SAMPLES = 8
TIMED_STEPS = 2
REWARD_FROM_TO = (0.2, 0.7)
WAYS, LEAST_SHARE = 3, 0.05
PILOT_SEED = 100
"""Not a seed that is reported."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Qualified:
    """The judgement, with its reasons."""

    reward: float
    silent: float
    """Share of prompts whose samples are all right or all wrong."""
    formats: dict[str, float]
    formats_right: dict[str, float]
    openings_right: dict[str, float]

    @property
    def reasons_against(self) -> list[str]:
        low, high = REWARD_FROM_TO
        reasons = [] if low <= self.reward <= high else [f"reward {self.reward:.2f} is not within {low} to {high}"]
        ways = max(_ways(self.formats_right), _ways(self.openings_right))
        if ways < WAYS:
            reasons.append(f"{ways} of {WAYS} formats or openings have over {LEAST_SHARE:.0%} of the right answers")
        return reasons


def _ways(found: Mapping[str, float]) -> int:
    return sum(share > LEAST_SHARE for share in found.values())


def qualified(rows_PG: Sequence[Sequence[Row]]) -> Qualified:
    rows = [row for group in rows_PG for row in group]
    right = [row for row in rows if row.right]
    return Qualified(
        reward=len(right) / len(rows),
        silent=sum(len({row.right for row in group}) == 1 for group in rows_PG) / len(rows_PG),
        formats=shares([row.kind("format") for row in rows]),
        formats_right=shares([row.kind("format") for row in right]),
        openings_right=shares([row.kind("opening") for row in right]),
    )


def pilot(task: RealTask, dtype: str) -> str:
    """What the base does on training prompts of ``task``, and the seconds of a step, in words.

    ``PROMPTS`` prompts x ``SAMPLES`` samples, then ``TIMED_STEPS`` unprotected steps of which the last is timed.
    """
    from transformers import AutoTokenizer

    began = time.perf_counter()
    model = load_model(task, dtype).eval()
    asked = list({repr(question.prompt): question for question in task.questions()[0]}.values())[:PROMPTS]
    tokenizer = AutoTokenizer.from_pretrained(task.model)
    rows_PG = sampled(model, model, tokenizer, asked, task.most_tokens, samples=SAMPLES, scored=0)
    found = qualified(rows_PG)
    sampling = time.perf_counter() - began
    wall, cpu = step_seconds(task, dtype)
    against = found.reasons_against
    package = versions()
    lines = [
        f"{task.name}: {task.about}",
        f"  {len(asked)} training prompts x {SAMPLES} samples of the base, {sampling:.0f} s; {dtype}, torch "
        f"{package['torch']}, trl {package['trl']}, transformers {package['transformers']}",
        f"  a step of {task.prompts_per_step} x {task.group_size}: {wall:.1f} s, {cpu:.1f} s of CPU",
        f"  reward {found.reward:.3f}, silent prompts {found.silent:.2f}, tokens "
        f"{sum(row.tokens for group in rows_PG for row in group) / (len(asked) * SAMPLES):.1f}",
        f"  formats, all:             {_told(found.formats)}",
        f"  formats, right answers:   {_told(found.formats_right)}",
        f"  openings, right answers:  {_told(found.openings_right)}",
        *(f"    {row.text!r}" for row in [row for group in rows_PG for row in group if row.right][:6]),
        f"  qualifies: {'yes' if not against else 'no, ' + '; '.join(against)}",
    ]
    return "\n".join(lines)


def _told(found: Mapping[str, float]) -> str:
    return ", ".join(f"{name!r} {share:.2f}" for name, share in found.items()) or "none"


def step_seconds(task: RealTask, dtype: str) -> tuple[float, float]:
    """Wall and CPU seconds of the last of ``TIMED_STEPS`` steps of real training, the monitor included."""
    arm = RealArm(name="unprotected", about="")
    ends: list[tuple[float, float]] = []
    with tempfile.TemporaryDirectory() as scratch:
        sitting = Sitting(steps=TIMED_STEPS, work=Path(scratch), results=Path(scratch))
        cell = RealCell(task=task, arm=arm, seed=PILOT_SEED, dtype=dtype)
        train(cell, Path(scratch), sitting, lambda: ends.append((time.perf_counter(), time.process_time())))
    (wall, cpu), (wall_end, cpu_end) = ends[-2:]
    return wall_end - wall, cpu_end - cpu
