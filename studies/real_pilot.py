"""Whether a task is worth days of training: what the base does on it, and what a step costs on this machine.

A task *qualifies* where the base's reward is .2 to .7 and at least three formats, or three openings, have more than
5 % of the right answers each: with fewer there is nothing to lose, with less reward nothing to learn from.
"""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rlmon.lab.libraries import versions
from studies.real_cell import RealArm, RealCell, Sitting, load_model, sampled, told_by_the_log, train
from studies.real_measures import Row, shares
from studies.real_tasks import RealTask

PROMPTS = 16
SAMPLES = 8
TIMED_STEPS = 2
REWARD_FROM_TO = (0.2, 0.7)
WAYS, LEAST_SHARE = 3, 0.05
PILOT_SEED = 100
"""Not a seed that is reported."""


_OPERATOR = re.compile(r"[-*/]")


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
        # "7 + 8 = 15" and "7 - 8 = -1" are one way to answer two questions.
        openings_right=shares([_OPERATOR.sub("+", row.kind("opening")) for row in right]),
    )


def pilot(task: RealTask, dtype: str) -> Iterator[str]:
    """What the base does on training prompts of ``task``, and then the seconds of a step, line by line.

    ``PROMPTS`` prompts x ``SAMPLES`` samples, then ``TIMED_STEPS`` unprotected steps of which the last is timed.
    """
    from transformers import AutoTokenizer

    yield f"{task.name}: {task.about}"
    began = time.process_time()
    model = load_model(task, dtype).eval()
    asked = list({repr(question.prompt): question for question in task.questions()[0]}.values())[:PROMPTS]
    tokenizer = AutoTokenizer.from_pretrained(task.model)
    rows_PG = sampled(model, model, tokenizer, task, asked, samples=SAMPLES, scored=0)
    found, package = qualified(rows_PG), versions()
    rows = [row for group in rows_PG for row in group]
    yield (
        f"  {len(asked)} training prompts x {SAMPLES} samples of the base, {time.process_time() - began:.0f} s of CPU; "
        f"{dtype}, torch {package['torch']}, trl {package['trl']}, transformers {package['transformers']}"
    )
    yield (
        f"  reward {found.reward:.3f}, silent prompts {found.silent:.2f}, "
        f"tokens {sum(row.tokens for row in rows) / len(rows):.1f}"
    )
    yield f"  formats, all:             {_told(found.formats)}"
    yield f"  formats, right answers:   {_told(found.formats_right)}"
    yield f"  openings, right answers:  {_told(found.openings_right)}"
    yield from (f"    {row.text!r}" for row in [row for row in rows if row.right][:6])
    against = found.reasons_against
    yield f"  qualifies: {'yes' if not against else 'no, ' + '; '.join(against)}"
    timed = time_steps(task, dtype)
    yield (
        f"  a step of {task.prompts_per_step} x {task.group_size}: {timed.wall_seconds:.1f} s, "
        f"{timed.cpu_seconds:.1f} s of CPU; entropy in the first step {timed.first_entropy_nats:.2f} nats a token"
    )


def _told(found: Mapping[str, float]) -> str:
    return ", ".join(f"{name!r} {share:.2f}" for name, share in found.items()) or "none"


@dataclass(frozen=True, kw_only=True, slots=True)
class Timed:
    """Of the last of ``TIMED_STEPS`` steps of real training, the monitor included."""

    wall_seconds: float
    cpu_seconds: float
    first_entropy_nats: float


def time_steps(task: RealTask, dtype: str) -> Timed:
    """Trains unprotected, in a folder that is thrown away."""
    ends: list[tuple[float, float]] = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        sitting = Sitting(steps=TIMED_STEPS, work=folder, results=folder)
        cell = RealCell(task=task, arm=RealArm(name="unprotected", about=""), seed=PILOT_SEED, dtype=dtype)
        train(cell, folder, sitting, lambda: ends.append((time.perf_counter(), time.process_time())))
        (first, *_) = told_by_the_log(folder)["trajectory"]["entropy_nats"]
    (wall, cpu), (wall_end, cpu_end) = ends[-2:]
    return Timed(wall_seconds=wall_end - wall, cpu_seconds=cpu_end - cpu, first_entropy_nats=first)
