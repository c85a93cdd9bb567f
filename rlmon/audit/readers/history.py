"""What a tracker's log calls add up to: scalars by the trainer's own step, and tables by the call before them."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import rlmon.audit.aliases as aliases
from rlmon.audit.readers.table_layout import Logged, Split
from rlmon.audit.readers.tables import EVAL_PREFIXES
from rlmon.audit.run import Lack

STEP_KEYS = (
    "train/global_step",
    "training/global_step",
    "trainer/global_step",
    "global_step",
    "train/step",
    "train_step",
    "progress/batch",
    "step",
)
"""The trainer's own step, by descending claim."""
NOT_MEASURED = frozenset(
    {"epoch", "train_runtime", "train_samples_per_second", "train_steps_per_second", "train_loss", "total_flos"}
)
"""The clock, and what transformers logs once, when training ends."""

_COUNTERS = {"train/global_step", "eval/global_step", "training/global_step", "trainer/global_step"}
_NOT_OF_TRAINING = ("_", "profiling/", "system/")
_OF_THE_VALUE_MODEL = frozenset({"val/clipfrac_avg", "val/ratio", "val/ratio_var", "val/num_eos_tokens"})
"""TRL's PPOTrainer has these while training: no evaluation."""
_MAX_STEP = 2**53


Series = dict[str, list[tuple[int, float]]]
"""Key to (step, value) in order of step, one value a step."""


@dataclass(kw_only=True, slots=True)
class History:
    """Log calls, folded in their order."""

    step_key: str | None
    """The trainer's step; ``None``: the tracker's own counter is taken."""
    scalars: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    eval_scalars: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    tables: dict[str, list[Logged]] = field(default_factory=dict)
    step: int = 0
    """Forward-filled: not every call names it."""
    split: Split = "train"
    """Side of the last call that held the trainer's own metrics."""
    generations: int | None = None
    """Train calls that told of new completions; ``None`` before the first train call."""
    seen: dict[str, int] = field(default_factory=dict)
    """``generations`` at the last train table of a key."""

    def add(self, numbers: Mapping[str, float], own_step: int) -> None:
        """Takes the numbers of one call. Steps beyond 2**53 are no steps."""
        if self.step_key is None:
            self.step = own_step
        else:
            step = numbers.get("eval/global_step", numbers.get(self.step_key))
            if step is not None and abs(step) < _MAX_STEP:
                self.step = int(step)
        trainers = [key for key in numbers if key.startswith(("train/", "eval/")) and key not in _COUNTERS]
        if any(key.startswith("eval/") for key in trainers):
            self.split = "eval"
        elif trainers:
            self.split = "train"
            self.generations = (self.generations or 0) + ("train/reward" in numbers)
        for key, value in numbers.items():
            if key.startswith(_NOT_OF_TRAINING) or key in _COUNTERS or key == self.step_key:
                continue
            name = key.removeprefix("train/")
            if name in NOT_MEASURED:
                continue
            if is_evaluation(key):
                name = key.removeprefix("eval/").removeprefix("eval_")
                self.eval_scalars.setdefault(name, []).append((self.step, value))
            else:
                self.scalars.setdefault(name, []).append((self.step, value))

    def series(self) -> tuple[Series, Series, list[str]]:
        """Curves of training and of evaluations in order of step, and what to say of steps that go back."""
        return all_series(self.scalars), all_series(self.eval_scalars), list(went_back(self.scalars))

    def add_table(self, key: str, place: str, size: int, rows: int | None, incremental: bool = False) -> None:
        """Takes a table of the last call, or of one behind it."""
        fresh = None if self.generations is None else self.generations > self.seen.get(key, 0)
        if self.split == "train":
            self.seen[key] = self.generations or 0
        self.tables.setdefault(key, []).append(
            Logged(
                place=place,
                step=self.step,
                split=self.split,
                bytes=size,
                rows=rows,
                fresh=fresh,
                incremental=incremental,
            )
        )


def by_key(values: Iterable[tuple[str, int, float]]) -> tuple[Series, Series]:
    """Curves of training and of evaluations, whose keys lose their ``eval/`` or ``eval_``, from (key, step, value) in
    any order; the last value of a step counts."""
    sides: tuple[dict[str, dict[int, float]], dict[str, dict[int, float]]] = ({}, {})
    for key, step, value in values:
        prefix = next((prefix for prefix in ("eval/", "eval_") if key.startswith(prefix)), "")
        sides[bool(prefix)].setdefault(key[len(prefix) :], {})[step] = value
    train, held_out = ({key: sorted(points.items()) for key, points in side.items()} for side in sides)
    return train, held_out


def is_evaluation(key: str) -> bool:
    """Whether a tracker's key is of an evaluation."""
    return key.startswith(EVAL_PREFIXES) and key not in _OF_THE_VALUE_MODEL


def step_key_of(calls: Iterable[Iterable[str]]) -> str | None:
    """The trainer's step among the keys of some log calls; ``None`` where none of them has one."""
    seen: set[str] = set()
    for keys in calls:
        seen.update(key for key in keys if key in STEP_KEYS)
        if STEP_KEYS[0] in seen:
            break
    return next((key for key in STEP_KEYS if key in seen), None)


def series(points: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """The points in order of step. The last value of a step counts; a restart supersedes what it goes back behind, and
    where steps go back time and again they were never in order and are sorted."""
    if _is_shuffled(points):
        return sorted(dict(points).items())
    kept: list[tuple[int, float]] = []
    for point in points:
        while kept and kept[-1][0] >= point[0]:
            kept.pop()
        kept.append(point)
    return kept


def _falls(points: Sequence[tuple[int, float]]) -> list[tuple[int, int]]:
    return [(a[0], b[0]) for a, b in itertools.pairwise(points) if b[0] < a[0]]


def _is_shuffled(points: Sequence[tuple[int, float]]) -> bool:
    falls = len(_falls(points))
    return falls > 1 and falls > 0.2 * len(points)


def all_series(scalars: Mapping[str, Sequence[tuple[int, float]]]) -> Series:
    """``series`` of every key."""
    return {key: series(points) for key, points in scalars.items()}


def went_back(scalars: Mapping[str, Sequence[tuple[int, float]]]) -> Iterator[str]:
    """What to say where the steps of the longest curve go back."""
    points = max(scalars.values(), key=len, default=())
    falls = _falls(points)
    if _is_shuffled(points):
        yield "the steps were not in order: they were sorted"
    elif falls:
        shown = ", ".join(f"after step {last} it goes on at {first}" for last, first in falls[:4])
        more = f" and {len(falls) - 4} times more" if len(falls) > 4 else ""
        yield f"the log goes back in steps: {shown}{more}; from there on the later attempt counts"


def reward_functions(history: History) -> set[str]:
    """Names of TRL's reward functions: the keys ``rewards/<name>/mean``."""
    keys = (*history.scalars, *history.eval_scalars)
    return {
        key[len("rewards/") : -len("/mean")] for key in keys if key.startswith("rewards/") and key.endswith("/mean")
    }


def beside_curves(
    lacks: Mapping[Lack, str], scalars: Mapping[str, aliases.Points], evals: Mapping[str, object]
) -> dict[Lack, str]:
    """What completions would have told and what was not logged, less what the curves say."""
    unlogged = {**lacks, **scalar_lacks(scalars, evals)}
    if "rlmon/health/truncated" in aliases.chosen(scalars):
        unlogged.pop("truncation", None)
    return unlogged


def scalar_lacks(scalars: Mapping[str, aliases.Points], evals: Mapping[str, object]) -> dict[Lack, str]:
    """What the trainer did not log as numbers, and how to have it."""
    found = aliases.chosen(scalars)
    lacks: dict[Lack, str] = {}
    if "rlmon/entropy/mean" not in found:
        lacks["entropy"] = "the trainer logged no entropy; TRL 0.18 and later logs it, RLMon(trainer) measures it"
    if not found.keys() & {"rlmon/kl/mean", "rlmon/kl/seq"}:
        lacks["kl"] = (
            "no KL to the base was logged; TRL logs it with beta > 0, RLMon(trainer) measures it with beta=0 too"
        )
    if not evals:
        lacks["eval"] = "no evaluation was logged; set eval_strategy='steps' and an eval_dataset"
    return lacks
