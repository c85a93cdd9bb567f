"""What of a run is known before its first step, as far as the rules of a policy depend on it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from rlmon.baseline import Baseline


@dataclass(frozen=True, kw_only=True, slots=True)
class MetricFacts:
    """What is known of one metric (of all modes where its name ends in ``<mode>``)."""

    low: float | None
    """Least possible value; ``None``: unbounded."""
    high: float | None
    missing: str | None = None
    """Why this run never measures it; ``None`` where it does."""
    every_steps: int = 1
    """Steps between two measurements."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DetectorFacts:
    """What is known of one detector."""

    severities: tuple[str, ...]
    """Those that it has."""
    silent: str | None = None
    """Why it cannot fire with this trainer; ``None`` where it can."""
    compares: bool = False
    """With the baseline: it cannot fire before that is complete."""
    of_training: bool = False
    """What it looks at only training shows, and no sample of the base."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """A trainer, its data and rlmon's own settings, in what rules depend on."""

    metrics: Mapping[str, MetricFacts]
    detectors: Mapping[str, DetectorFacts]
    modes: tuple[str, ...]
    """Names of the format modes."""
    beta: float = 0.0
    beta_name: str = "beta"
    """The trainer's own name of the weight that is called ``beta`` here."""
    entropy_coef: float = 0.0
    moved: frozenset[str] = frozenset()
    """Of ``beta`` and ``entropy_coef`` those that the trainer itself turns."""
    critic: bool = False
    group_size: int = 8
    round_completions: int = 64
    """Over all ranks."""
    steps: int | None = None
    """Of the whole run; ``None`` where it is not known yet."""
    rounds: int | None = None
    """Of the whole run; ``None`` where it is not known yet."""
    prompt_attempts: int | None = None
    """Completions that each prompt gets in the run; ``None`` where it is not known yet."""
    most_advantage: float | None = None
    """No advantage is larger; ``None`` where there is no such bound."""
    first_checkpoint: int | None = None
    """Step of the first checkpoint; ``None`` where it is not known."""
    lacks: Mapping[str, str] = field(default_factory=dict)
    """By what an intervention turns (``Intervention.turns``), why this trainer cannot, and what to change."""
    base_sample: int = 0
    """Completions of the base that are sampled before the first update; 0: the first rounds are the baseline."""
    penalised: bool = False
    """``beta`` is above 0, or a rule may raise it: there is a reference."""

    @property
    def run_completions(self) -> int | None:
        """Sampled in the whole run; ``None`` where it is not known yet."""
        return None if self.rounds is None else self.rounds * self.round_completions

    def within_baseline(self, *, of_training: bool) -> bool:
        """Whether the run ends before anything could be compared with its baseline; arguments as ``first_rounds``."""
        return self.rounds is not None and self.rounds <= self.first_rounds(of_training=of_training)

    @property
    def baseline_records(self) -> int:
        """Rounds that the baseline of what only training shows takes."""
        return self.first_rounds(of_training=True)

    def first_rounds(self, *, of_training: bool) -> int:
        """Rounds of training that the baseline takes: of what only training shows, or of what a sample of the base
        measures as well; 0 where that is all of it."""
        group_size, baseline, rounds = max(1, self.group_size), Baseline(), 0
        if self.base_sample and not of_training:
            size = math.ceil(self.base_sample / max(1, self.round_completions)) * self.round_completions
            baseline = baseline.with_round(prompts=size / group_size, completions=size)
        if baseline.complete:
            return 0
        prompts = self.round_completions / group_size
        needed = Baseline.rounds_needed(prompts=prompts, completions=self.round_completions)
        while rounds < needed and not baseline.complete:
            baseline, rounds = baseline.with_round(prompts=prompts, completions=self.round_completions), rounds + 1
        return rounds
