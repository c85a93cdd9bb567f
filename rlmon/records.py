"""The shared language: every fact that crosses a room boundary is one of these records.

Frozen, keyword-only dataclasses over the standard library alone. Arrow schemas and JSON lines are
rendered from the field annotations, so a column is added in exactly one place: here.

Missing values: ``None`` means *not measured* and has a reason beside it; ``0.0`` is a measured zero; NaN is
never stored.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

SCHEMA_VERSION = 2
"""Version of everything a run directory holds. Readers migrate older versions, writers write only this one."""

Split = Literal["train", "eval", "base"]
"""``base``: a sample of the base before the first update (``rlmon_base_sample``), which nothing is trained on."""
Severity = Literal["note", "warn", "fail"]
"""``note``: what costs compute and not capability. It is said once and is never part of a verdict."""
Status = Literal["pass", "note", "warn", "fail", "unsure", "skip", "error"]
"""``unsure``: what was measured stands past its line, and the evidence does not suffice for an alarm. ``skip``: nothing
could be measured."""
SEVERITIES: tuple[Severity, ...] = ("note", "warn", "fail")
"""Mildest first."""
WORST_FIRST: tuple[Status, ...] = ("fail", "warn", "error", "unsure", "note", "pass", "skip")
"""The order in which a person should read what checks say."""


Verdict = Literal["pass", "warn", "fail", "insufficient"]
"""``insufficient`` is *unsure* to people: nothing bad was seen, and too little to call it a pass."""
VERDICT_WORDS: Mapping[Verdict, str] = {"pass": "PASS", "warn": "WARN", "fail": "FAIL", "insufficient": "UNSURE"}
"""As people are told it."""


def graver(one: Severity, other: Severity | None) -> Severity:
    """The graver of two; ``None``: nothing was said."""
    return one if other is None else max(one, other, key=SEVERITIES.index)


def verdict(spoken: Iterable[Severity | Status]) -> Literal["pass", "warn", "fail"]:
    """What the findings or checks of a run come to: the worst of WARN and FAIL, else a pass."""
    said = set(spoken)
    return "fail" if "fail" in said else "warn" if "warn" in said else "pass"


@dataclass(frozen=True, kw_only=True, slots=True)
class RunHeader:
    """What a run is; written to ``run.json`` at the start of every attempt."""

    run_id: str
    """Random identifier of the run directory; kept when the run is resumed."""
    schema_version: int = SCHEMA_VERSION
    attempt: int
    """0 for the first ``train()`` call, plus one for each later one in the same directory."""
    attempt_kind: Literal["fresh", "resumed"]
    created_unix_seconds: float
    trainer: str
    """Class name of the trainer, or ``manual``."""
    group_size: int
    """Completions per prompt, G."""
    world_size: int
    total_steps: int | None
    """Optimizer steps planned; ``None`` when unknown. The detectors divide their error rate over them."""
    config: Mapping[str, Any]
    """``RLMonConfig`` as resolved."""
    trainer_config: Mapping[str, Any]
    """The trainer's own settings that change how the log is to be read (beta, temperature, ...)."""
    detectors: Mapping[str, Any]
    """Detector versions and parameters; replay folds through exactly these."""
    packages: Mapping[str, str]
    """Installed versions of rlmon, trl, transformers, torch, peft, accelerate, numpy, python."""
    git_commit: str | None
    capabilities: Sequence[Mapping[str, str]]
    """What will be captured: rows of ``{"signal", "status": "yes|skip", "reason"}``."""
    policy: Mapping[str, Any] | None = None
    """The rules that the run acts by, as resolved; ``None`` where it is only watched."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rollout:
    """One sampled completion; one row of ``rollouts/*.parquet``.

    Identity: ``(attempt, round, split, global_row)``.
    """

    attempt: int
    round: int
    """Our own counter of generations (train, eval and base count apart), continued on resume."""
    split: Split
    global_row: int
    """Row in the generation over all ranks, before any shuffling."""
    group: int
    """``global_row // group_size``: completions of one draw of one prompt."""
    step: int
    """``global_step`` after the update that first trains this round; for eval the step it was made at; 0 for base."""
    prompt_id: str
    """Hash of the canonical prompt."""
    source: str
    """Stratum of the data mix that the prompt belongs to."""
    prompt: str | None
    completion: str | None
    prompt_tokens: int | None
    completion_tokens: int
    """The model's own tokens: tool results are not counted."""
    truncated: bool | None
    reward: float | None
    """Weighted sum of the reward functions; ``None`` where every function returned ``None``."""
    rewards: Mapping[str, float | None]
    advantage: float | None
    """``None`` where the row was not trained, or where its advantage is not known."""
    mode: str
    """Format mode of the part after the reasoning block."""
    reasoning_mode: str | None
    """Format mode inside the reasoning block, ``None`` without one."""
    template_key: int
    """Keyed 63-bit hash of the completion after masking numbers, names and quoted spans."""
    answer_key: int | None
    """Keyed 63-bit hash of the normalised final answer."""
    opening_key: int
    """Keyed 63-bit hash of the first 8 masked tokens."""
    openers: Sequence[int] | None
    """Hashed opener buckets, at most 64, heaviest first."""
    opener_weights: Sequence[float] | None
    """Share of the completion's openers that falls in each bucket."""
    segment: str | None = None
    """think, answer, tool or code, where a row is one segment of a longer completion."""
    turn: int | None = None
    policy_version: int | None = None
    staleness: int | None = None
    """Optimizer steps between sampling and training."""
    trained: bool = True
    """False for a completion that was sampled and scored but not trained on (dynamic sampling drops such rows): it
    counts for formats, lengths and texts, and has no advantage. True for every row of a log of schema 1."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pass:
    """One training pass over one completion; one row of ``passes/*.parquet``."""

    attempt: int
    round: int
    split: Split
    global_row: int
    iteration: int
    """Which of the ``num_iterations`` passes, from 0."""
    step: int
    tokens: int
    entropy_mean_nats: float | None
    logp_mean_nats: float | None
    kl_mean_nats: float | None
    """Exact KL to the initial base per token over the sampled tokens of this row, where measured."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Block:
    """Statistics of one block of prompts from one source: the unit that detectors look at.

    A block is formed from whole rows, of all ranks together, so that any statistic of it is exact.
    """

    source: str
    """Key of the source's name (``rlmon.keys``); the name itself in logs of schema 1."""
    prompts: int
    completions: int
    stats: Mapping[str, float]
    """Name to value; a statistic that could not be computed is absent."""
    tallies: Mapping[str, Sequence[Mapping[str, int]]] = field(default_factory=dict)
    """Of statistics that compare completions of different prompts, while their baseline is open: for each prompt (or a
    few together) how many completions have which code. The baseline is taken over all pairs of a record, not only over
    those inside of one block."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BaseSample:
    """What was sampled of the base before the first update (``rlmon_base_sample``), over all ranks."""

    prompts: int
    completions: int
    blocks: Sequence[Block]
    """Detectors compare later blocks with these."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StepRecord:
    """What one optimizer step showed; one line of ``steps.jsonl``."""

    schema_version: int = SCHEMA_VERSION
    attempt: int
    step: int
    """``trainer.state.global_step`` after the update."""
    time_unix_seconds: float
    rounds: Sequence[int]
    """Generations that this step was the first to train; empty when the step reused older ones."""
    completions: int
    """Completions in those rounds, over all ranks."""
    prompts: int
    tokens: int
    """The model's own completion tokens in the rows that this step trained on, over all ranks, before what the trainer
    masks of them (``mask_truncated_completions``)."""
    metrics: Mapping[str, float | None]
    missing: Mapping[str, str] = field(default_factory=dict)
    """Metric name to the reason why it is ``None``."""
    blocks: Sequence[Block] = ()
    sources: Mapping[str, str] = field(default_factory=dict)
    """Names of the sources that all ranks learned in this step, by key: what messages call them."""
    faults: Mapping[str, int] = field(default_factory=dict)
    """Where a part of the monitor failed in this step, and how often, over all ranks."""
    shed_rows: int = 0
    """Rollout rows that could not be written since the run began, over all ranks."""
    overhead_seconds: float | None = None
    """Time spent in the monitor during this step on rank 0 (CPU time of this thread), base forward apart."""
    base_forward_seconds: float | None = None
    """Time spent in forwards of the base model and the exact KL on rank 0; ``None`` on steps without one."""
    base: BaseSample | None = None
    """In the first record of a run that sampled its base: what comes before anything that this record says."""


@dataclass(frozen=True, slots=True)
class Histogram:
    """Counts of a step over all ranks between fixed edges; it is shown and not stored."""

    edges: Sequence[float]
    """K + 1 of them, ascending; what lies outside is in the first or the last bin."""
    counts: Sequence[float]
    """K of them; weights where a sample stands for more."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """A detector's statement about a run; a line of ``events.jsonl``."""

    finding_id: str
    detector: str
    """Kebab-case check id, for example ``format-collapse``."""
    severity: Severity
    step: int
    metric: str
    """Catalogue name of the metric that passed its line."""
    value: float | None
    baseline: float | None
    threshold: float | None
    """The damage line in the unit of ``metric``."""
    source: str | None
    """Stratum with most of the evidence; ``None`` when the run has one source."""
    message: str
    """One line for a person."""
    advice: str
    """The trainer's configuration key to change, and how."""
    baseline_kind: Literal["early_rounds", "base_sample", "first_logged", "given", "none"]
    baseline_prompts: int
    benign_sharpening: bool | None
    """True when accuracy rose and diversity among correct completions held; ``None`` when not known."""
    evidence: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Action:
    """One phase of one act of an intervention; a line of ``events.jsonl``."""

    action_id: str
    phase: Literal["decided", "applied", "failed", "measured"]
    step: int
    knob: str
    old: float | str | None
    new: float | str | None
    reason: str
    finding_id: str | None
    effect: Literal["helped", "no_effect", "harmed", "not_measured"] | None = None
    effect_reason: str | None = None
    rule: str = ""
    """Name of the policy's rule that decided it."""
    dry_run: bool = False
    """True where it was only written down: nothing was changed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Fault:
    """A part of the monitor failed; training went on. A line of ``events.jsonl``, written once per place."""

    place: str
    """Which part failed, for example ``runlog.rollouts`` or ``metrics.formats``."""
    step: int
    rank: int
    error: str
    """``TypeName: message``, cut to 500 characters."""
    count: int
    """How often it had failed when this line was written."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RolloutBatch:
    """The rows of one generation on one rank, as captured: columns of equal length B.

    This is what ``Monitor.observe`` takes from any training loop.
    """

    round: int
    split: Split
    step: int
    group_size: int
    global_row: Sequence[int]
    prompt_id: Sequence[str]
    source: Sequence[str]
    prompts: Sequence[str]
    """Prompts as text (conversations rendered one message per line)."""
    completions: Sequence[str]
    """Completions as text, special tokens stripped, tool results left out."""
    prompt_ids: Sequence[Any] | None = None
    """Token ids of each prompt: a sequence of integers, or (cheapest) an int32 array; ``None`` where not known."""
    completion_ids: Sequence[Any] | None = None
    """The model's own token ids, in the same form."""
    rewards: Mapping[str, Sequence[float | None]] = field(default_factory=dict)
    reward: Sequence[float | None] | None = None
    round_reward: Sequence[float | None] | None = None
    """``reward`` of the whole round over all ranks, by ``global_row``: needed where groups straddle ranks."""
    round_rewards: Mapping[str, Sequence[float | None]] | None = None
    """``rewards`` of the same rows: with several ranks, what a success is can only be decided from these."""
    reward_weights: Mapping[str, float] | None = None
    """Weight of each function in ``reward``; 1 where it is not given."""
    advantages: Sequence[float | None] | None = None
    truncated: Sequence[bool | None] | None = None
    turn: Sequence[int | None] | None = None
    policy_version: Sequence[int | None] | None = None
    staleness: Sequence[int | None] | None = None
    trained: Sequence[bool] | None = None
    """False for rows that were scored but are not trained on; ``None``: all are."""

    def __len__(self) -> int:
        return len(self.global_row)

    def take(self, rows: Sequence[int], *, global_row: Sequence[int]) -> RolloutBatch:
        """Some of the rows in another order, numbered anew; what is known of the whole round is left out."""
        chosen: dict[str, Any] = {}
        for name in (f.name for f in dataclasses.fields(self)):
            column = getattr(self, name)
            if name == "rewards":
                chosen[name] = {key: [values[row] for row in rows] for key, values in column.items()}
            elif name.startswith("round_"):
                chosen[name] = None
            elif isinstance(column, Sequence) and not isinstance(column, str):
                chosen[name] = [column[row] for row in rows]
        return dataclasses.replace(self, **(chosen | {"global_row": list(global_row)}))
