"""What a rule may do: one settings dataclass per action, and the rows that row actions see.

The fields are what a policy file may say, under the same names; their ``help`` and ``low``/``high`` metadata are what
the parser checks and what the documentation prints. Nothing here acts: each action has a module of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

ModeKind = Literal["format", "template", "opening", "moves"]


def setting(default: Any, help: str, *, low: float | None = None, high: float | None = None) -> Any:
    """A field of an action: its default, what it means, and the closed range of its number (or of both bounds)."""
    return field(default=default, metadata={"help": help, "low": low, "high": high})


@dataclass(frozen=True, kw_only=True, slots=True)
class KLPenalty:
    """Raise ``beta`` while the condition holds, lower it again when it is released."""

    start: float = setting(0.02, "beta that the first raise from 0 sets", low=0.0)
    bounds: tuple[float, float] = setting((0.0, 0.3), "least and most beta", low=0.0)
    factor: float = setting(1.5, "beta is multiplied (or divided) by this at each change", low=1.0, high=10.0)
    off_when_silent: float = setting(
        0.9,
        "share of groups without reward variance from which beta is 0: there the penalty speeds up template collapse "
        "(not under a critic, to which such a group still teaches something)",
        low=0.0,
        high=1.0,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class EntropyBonus:
    """Raise ``entropy_coef`` while the condition holds; with TRL's adaptive entropy, set its target instead."""

    increment: float = setting(0.005, "entropy_coef is raised (or lowered) by this at each change", low=0.0)
    bounds: tuple[float, float] = setting((0.0, 0.05), "least and most entropy_coef", low=0.0)
    target: float = setting(
        0.7, "share of the run's initial entropy that TRL's own controller is told to hold, where that is on", low=0.0
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class ModeMarginal:
    """Hold the distribution over modes to the base's: kappa * (log p0(mode) - log p(mode)) on every advantage."""

    modes: ModeKind = setting("format", "what counts as a mode")
    kappa: float = setting(1.0, "strength when the rule begins to act, in units of normalised advantage", low=0.0)
    bounds: tuple[float, float] = setting((0.25, 1.5), "least and most kappa while it acts", low=0.0)
    floor: float = setting(
        0.9,
        "share of the base's effective number (of rewarded completions) that kappa is steered to",
        low=0.0,
        high=1.0,
    )
    within: float = setting(
        2.0,
        "weight of the pressure inside each prompt beside that across prompts, once prompts narrow",
        low=0.0,
        high=4.0,
    )
    bound: float = setting(3.0, "most that one completion's log ratio may be, either way", low=0.0)
    memory_completions: int = setting(320, "completions that the running shares remember", low=8)


@dataclass(frozen=True, kw_only=True, slots=True)
class Defer:
    """Draw no more of the prompts (or sources) that are credibly not solvable now; try them again later."""

    by: Literal["prompt", "source"] = setting("prompt", "what is deferred")
    solve_rate_below: float = setting(0.02, "deferred when the solve rate is credibly below this", low=0.0, high=1.0)
    credibility: float = setting(0.95, "posterior probability that counts as credible", low=0.5, high=1.0)
    after_attempts: int = setting(16, "least attempts at a prompt before it is deferred", low=1)
    source_after_attempts: int = setting(1024, "least attempts at a source before it is judged as a whole", low=1)
    guesses: bool = setting(
        False,
        "also defer sources that are solved no more often than by the answers to their other prompts (by a constant, "
        "for example); not for multiple choice, where learning begins at chance",
    )
    retry_after_rounds: int = setting(50, "rounds until a deferred prompt is drawn again", low=1)
    share: float = setting(0.5, "most of the known prompts that may be deferred at once", low=0.0, high=0.95)
    random: bool = setting(False, "a control: defer as many random prompts at the same times instead")


@dataclass(frozen=True, kw_only=True, slots=True)
class Quarantine:
    """Neutralise the groups of nearly impossible prompts whose success looks like a shortcut."""

    solve_rate_below: float = setting(0.125, "the prompt's solve rate is credibly below this", low=0.0, high=1.0)
    credibility: float = setting(0.95, "posterior probability that counts as credible", low=0.5, high=1.0)
    signs: int = setting(1, "how many signs of a shortcut are needed", low=1, high=4)
    answer_share: float = setting(
        0.15, "sign: the winner's answer has at least this share of all answers in its source", low=0.0, high=1.0
    )
    answer_growth: float = setting(2.0, "and at least so many times the share that it had at first", low=0.0)
    win_share: float = setting(
        0.25, "or: the answer took this share of the source's wins, on several prompts", low=0.0, high=1.0
    )
    most_successes: float = setting(
        0.9, "groups with several successes are looked at up to this share of the group", low=0.0, high=1.0
    )
    shorter_than: float = setting(
        0.35, "sign: the winner is shorter than this share of its prompt's (or source's) usual length", low=0.0
    )
    fewer_numbers_than: float = setting(
        0.35, "sign: the winner shows fewer numbers than this share of the usual (missing computation)", low=0.0
    )
    base_improbable_nats: float = setting(
        3.0, "sign: the base's mean log-probability of the winner is so far below its group's, where known", low=0.0
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Anchor:
    """A small supervised loss on the base's own verified completions of modes that are dying."""

    modes: ModeKind = setting("format", "what counts as a mode")
    weight: float = setting(0.05, "weight of the supervised loss when it begins", low=0.0, high=1.0)
    decay: float = setting(0.98, "the weight is multiplied by this every step after it began", low=0.0, high=1.0)
    below: float = setting(0.3, "a mode is dying below this share of its base share", low=0.0, high=1.0)
    per_mode: int = setting(16, "verified completions kept for each mode, on each rank", low=1, high=1024)
    batch: int = setting(8, "completions in one step's loss, on each rank", low=1, high=256)


@dataclass(frozen=True, kw_only=True, slots=True)
class Winsorise:
    """Bound the size of every advantage."""

    limit: float = setting(2.5, "advantages are clipped to plus or minus this", low=0.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class ResetReference:
    """Make the present policy TRL's reference of the KL penalty; KL to the initial base is measured on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Stop:
    """End training at this step, on all ranks, with a checkpoint."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RollBack:
    """Stop, and go on once from the last checkpoint before the alarm."""

    beta: float | None = setting(None, "beta after the return; unset: as it was then", low=0.0)


ActionSettings = (
    KLPenalty | EntropyBonus | ModeMarginal | Defer | Quarantine | Anchor | Winsorise | ResetReference | Stop | RollBack
)

ACTIONS: Mapping[str, type[Any]] = {
    "kl_penalty": KLPenalty,
    "entropy_bonus": EntropyBonus,
    "mode_marginal": ModeMarginal,
    "defer": Defer,
    "quarantine": Quarantine,
    "anchor": Anchor,
    "winsorise": Winsorise,
    "reset_reference": ResetReference,
    "stop": Stop,
    "roll_back": RollBack,
}
"""The word after ``do:`` and its settings."""


@dataclass(frozen=True, kw_only=True)
class RoundTable:
    """Every row of one training generation over all ranks, in the order of ``global_row``; the same on every rank.

    Groups are ``group_size`` consecutive rows. Keys are opaque integers (hashes), equal on all ranks.
    """

    round: int
    step: int
    """``global_step`` after the update that first trains it."""
    group_size: int
    prompt_N: NDArray[np.int64]
    source_N: NDArray[np.int64]
    modes_N: Mapping[str, NDArray[np.int64]]
    """Mode key of each row, by kind (``format``, ``template``, ``opening``, ``moves``); -1 where unknown."""
    answer_N: NDArray[np.int64]
    """-1 where the completion has no answer that could be read."""
    tokens_N: NDArray[np.float64]
    """Completion tokens of the model's own."""
    numbers_N: NDArray[np.float64]
    """Numbers written in the completion."""
    reward_N: NDArray[np.float64]
    """NaN where no reward function scored the row."""
    success_N: NDArray[np.float64]
    """1.0 for a success, 0.0 for none, NaN where that is not known."""
    advantage_N: NDArray[np.float64]
    """As the trainer computed it."""
    logp_base_N: NDArray[np.float64]
    """Mean log-probability per token under TRL's reference; NaN where there is none."""

    def __len__(self) -> int:
        return len(self.prompt_N)
