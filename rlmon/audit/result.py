"""The one result of an audit. Every output (terminal, JSON, Markdown, JUnit, annotations, page) is made from it."""

from __future__ import annotations

import dataclasses
import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from rlmon.printable import one_line
from rlmon.records import VERDICT_WORDS, Severity, Status, Verdict

if TYPE_CHECKING:
    import pyarrow as pa

RESULT_VERSION = 3
"""Version of the JSON object; raised when a key changes its meaning, takes a new word or goes away. 2: ``note``, a
status of checks and a severity of findings. 3: a pass needs an answer to every core question (``coverage``); checks
can be ``unsure`` and name their ``core`` question."""

EXAMPLE_CHARACTERS = 4_000
"""Of a completion that is shown: the beginning and the end of a longer one."""
EXAMPLE_HEAD = 1_200
"""Of these from the beginning; the answer stands at the end."""

Core = Literal["formats", "entropy", "reward", "groups", "length", "non-finite"]
"""The questions without which nobody can say that a run is well. ``formats``: of answers, or their templates; asked
where completions were read. ``groups``: the spread of reward inside groups, or the share of silent ones. ``length``:
length or truncation."""
Method = Literal["fold", "hindsight", "exact"]
Kind = Literal["numbers", "record", "narrowing", "reward", "length", "drift", "other"]
"""What a check is about: checks of one kind that began together saw one event."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """What one check says of the run."""

    id: str
    """Kebab-case, stable: ``format-collapse``, ``mode-extinction``, ..."""
    title: str
    """The question that PASS answers with yes: ``Do answers keep their formats?``"""
    status: Status
    """``pass | note | warn | fail | unsure | skip | error``. A note costs compute and not capability: never in the
    verdict. Unsure: the value stands past its line and the evidence does not suffice."""
    method: Method
    """``fold``: a detector that looked at every step. ``hindsight``: one look at the whole run. ``exact``: a count."""
    message: str
    """One line for a person: what was seen. Holds no text of the run except through ``repr``."""
    core: Core | None = None
    """The core question that an answer to this check answers."""
    about: Kind = "other"
    told: str = ""
    """The message as a clause of a story, with ``{base}`` and ``{now}`` in it; empty: the message tells it."""
    metric: str | None = None
    """Catalogue name of what ``value``, ``baseline`` and ``threshold`` measure, or a name in words without a slash."""
    unit: str | None = None
    value: float | None = None
    baseline: float | None = None
    threshold: float | None = None
    interval: tuple[float, float] | None = None
    """Confidence interval of ``value`` (or of its difference to the baseline; ``message`` says which)."""
    first_step: int | None = None
    """Onset: the first step from which the metric stays past where damage begins; ``None`` where it never does."""
    at_latest: bool = False
    """It may have begun before ``first_step``: until then the metric lay within the error of its base."""
    alarm_step: int | None = None
    """Step at which the evidence sufficed for ``status``, for detectors."""
    source: str | None = None
    """Stratum of the data with most of the evidence; ``None`` when the run has one."""
    evidence: Mapping[str, Any] = field(default_factory=dict)
    """JSON types; numbers and names only, never completions."""
    examples: Sequence[Example] = ()
    """Completions that show it."""
    advice: str = ""
    """The setting to change, and how. Empty for PASS, UNSURE and SKIP."""
    reason: str | None = None
    """For SKIP: what is missing and how to log it next time. For UNSURE: why the evidence does not suffice. For ERROR:
    what failed."""

    @property
    def began(self) -> str:
        """Since when: ``66``, ``by 66``, or nothing."""
        return "" if self.first_step is None else f"{'by ' if self.at_latest else ''}{self.first_step}"

    def __repr__(self) -> str:
        since = "" if self.first_step is None else f" {'by' if self.at_latest else 'since'} step {self.first_step}"
        said = self.reason if self.status in ("skip", "error") and self.reason else self.message
        return f"<Check {one_line(self.id, 60)}: {self.status.upper()}{since}, {one_line(said, 120)}>"


FOR_THE_STORY = frozenset({"about", "told"})
"""Fields of a check that its headline is told from, which no output shows."""


def ends(text: str, left_out: int, head: int, tail: int) -> tuple[str, int, str]:
    """The first ``head`` characters of a text, how many are left out, and the last ``tail``; all of it and an empty
    tail where it is no longer than that. ``left_out``: how many are missing after its first 1,200 already."""
    if len(text) <= head + tail and not left_out:
        return text, 0, ""
    if left_out:
        head, tail = min(head, EXAMPLE_HEAD), min(tail, len(text) - EXAMPLE_HEAD)
    return text[:head], left_out + len(text) - head - tail, text[len(text) - tail :]


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    """One completion. Hostile text: renderers must escape it."""

    step: int
    split: str
    prompt_id: str
    prompt: str | None
    completion: str | None
    """4,000 characters at most: of a longer one its first 1,200 and its last 2,800, see ``ends``."""
    mode: str
    template: str
    """Short name of the masked template, equal for equal templates."""
    source: str
    reward: float | None
    advantage: float | None
    truncated: bool | None = None
    label: str = ""
    """Why it is shown: ``base``, ``now``, ``first``, ``last``, ``lucky``, ... Empty in the sample browser."""
    left_out: int = 0
    """Characters left out of the middle of ``completion``."""

    def ends(self, head: int = EXAMPLE_HEAD, tail: int = EXAMPLE_CHARACTERS - EXAMPLE_HEAD) -> tuple[str, int, str]:
        """Both ends of the completion, see ``ends``."""
        return ends(self.completion or "", self.left_out, head, tail)


@dataclass(frozen=True, kw_only=True, slots=True)
class ModeStory:
    """What became of one format mode."""

    mode: str
    fate: Literal["extinct", "shrunk", "steady", "grown", "newborn"]
    base_share: float
    last_share: float
    base_reward: float | None
    last_reward: float | None
    last_seen_step: int | None
    examples: Sequence[Example] = ()
    """Labelled ``base``, ``first`` (after the onset, what the winning mode writes to the same prompt where possible)
    and ``last``: shown side by side."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OpeningStory:
    """What became of one way to open an answer, in a sample of the texts."""

    opening: str
    """The first words with numbers as ``#``, at most 60 characters. Hostile text: renderers must escape it."""
    fate: Literal["gone", "nearly gone", "took over"]
    base_share: float
    last_share: float


@dataclass(frozen=True, kw_only=True, slots=True)
class HeatRow:
    """One prompt's solve rate over the bins of the strip."""

    prompt_id: str
    prompt: str | None
    source: str
    rates: Sequence[float | None]
    """Share of rewarded completions per bin; ``None`` where the prompt was not sampled."""
    attempts: int
    fate: Literal["impossible", "forgotten", "lucky", "solved", "learned", "mixed"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Heat:
    """Solve rate per prompt and time: at most 64 bins and 200 prompts, worst first."""

    bins: Sequence[tuple[int, int]]
    """First and last step of each bin."""
    rows: Sequence[HeatRow]
    prompts: int
    """Prompts of the run that had at least two visits; ``rows`` are some of them."""
    note: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """A mark on the timeline."""

    step: int
    kind: Literal["finding", "action", "onset", "note", "fault"]
    severity: Severity | Literal["info"]
    check: str | None
    """Id of the check or detector it belongs to; of an act of the policy, its rule."""
    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class MetricSummary:
    """One metric over the run; base and last are means over the baseline and the last tenth (5 steps at least)."""

    unit: str
    base: float | None
    first: float | None
    last: float | None
    min: float | None
    max: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class RunFacts:
    """What was read."""

    id: str
    source: str
    """The path as it was given."""
    reader: str
    steps: int
    """Steps with rows or scalars."""
    first_step: int | None
    last_step: int | None
    completions: int
    prompts: int
    eval_completions: int
    group_size: int | None
    coverage: Mapping[str, Any]
    """What the numbers rest on: rows read, re-written rows passed over, damaged rows, unreadable files, steps without
    rows, and the token budget of the text metrics with the rows and words that it covered."""
    baseline: Mapping[str, Any]
    """``kind``, ``prompts``, ``completions``, ``steps``."""
    config: Mapping[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()
    success: Mapping[str, Any] = field(default_factory=dict)
    """What counts as a success: ``above`` (reward function to what a success has more than; "" is the total),
    ``optional``, ``reason`` where it is not known, and all of it in words under ``says``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Coverage:
    """How much of what is asked has an answer."""

    judged: int
    """Checks that came to PASS, NOTE, WARN or FAIL."""
    checks: int
    outputs: bool
    """Whether completions were read. Without them a pass is one of curves only."""
    missing: Mapping[Core, str]
    """Core questions without an answer, and why: what to log next time, or what the evidence lacks."""

    def __str__(self) -> str:
        return f"{self.judged} of {self.checks} judged"


@dataclass(frozen=True, kw_only=True, slots=True)
class Audit:
    """Everything an audit found."""

    run: RunFacts
    verdict: Verdict
    coverage: Coverage
    headline: str
    """The verdict in one sentence."""
    checks: Sequence[Check]
    """Worst first: ``records.WORST_FIRST``."""
    actions: Sequence[Mapping[str, Any]]
    """Interventions recorded in an rlmon log (``records.Action`` as mappings)."""
    findings: Sequence[Mapping[str, Any]]
    """What the detectors said, step by step (``records.Finding`` as mappings)."""
    metrics: Mapping[str, MetricSummary]
    correction: str
    """How several checks and many looks are accounted for, in words."""
    steps: Sequence[int]
    """The steps of ``series`` and ``mode_shares``."""
    series: Mapping[str, Sequence[float | None]]
    """Metric name to one value per step; ``None``: not measured."""
    mode_shares: Mapping[str, Sequence[float | None]]
    modes: Sequence[ModeStory]
    openings: Sequence[OpeningStory] = ()
    """Where the outputs narrowed and their texts were stored: which openings died out, and which took over."""
    heat: Heat | None
    samples: Sequence[Example]
    """For the sample browser: spread over time, at most 500."""
    events: Sequence[Event]
    timing_seconds: Mapping[str, float]
    """Wall and processor time; the only part that differs between two audits of the same run."""

    def __repr__(self) -> str:
        word = VERDICT_WORDS[self.verdict]
        return f"<Audit of {one_line(repr(self.run.source), 200)}: {word}. {one_line(self.headline, 200)}>"

    def _repr_html_(self) -> str:
        spoken = [one for one in self.checks if one.status not in ("pass", "skip")]
        rows = "".join(
            f"<tr>{''.join(f'<td>{html.escape(one_line(cell, 300))}</td>' for cell in cells)}</tr>"
            for cells in ((one.status.upper(), one.id, one.began, one.message) for one in spoken)
        )
        table = f"<table><tr><th></th><th>check</th><th>began</th><th></th></tr>{rows}</table>" if rows else ""
        return f"<div><b>{VERDICT_WORDS[self.verdict]}</b>: {html.escape(one_line(self.headline))}{table}</div>"

    def table(self) -> pa.Table:
        """Every curve, a row a step: ``step``, then ``series`` by name, null where nothing was measured."""
        import pyarrow as pa

        columns = {name: pa.array(values, pa.float64()) for name, values in self.series.items()}
        return pa.table({"step": pa.array(self.steps, pa.int64()), **columns})

    def to_json(self) -> dict[str, Any]:
        """The object that ``--format json`` prints: everything but the series and the texts of the page."""
        run = dataclasses.asdict(self.run)
        checks = [
            {name: value for name, value in dataclasses.asdict(check).items() if name not in FOR_THE_STORY}
            for check in self.checks
        ]
        for check in checks:
            check["interval"] = None if check["interval"] is None else list(check["interval"])
        return {
            "schema_version": RESULT_VERSION,
            "tool": "rlmon",
            "run": run,
            "verdict": self.verdict,
            "coverage": dataclasses.asdict(self.coverage),
            "headline": self.headline,
            "checks": checks,
            "metrics": {name: dataclasses.asdict(summary) for name, summary in self.metrics.items()},
            "modes": [
                {key: value for key, value in dataclasses.asdict(mode).items() if key != "examples"}
                for mode in self.modes
            ],
            "openings": [dataclasses.asdict(story) for story in self.openings],
            "findings": [dict(finding) for finding in self.findings],
            "actions": [dict(action) for action in self.actions],
            "correction": self.correction,
            "timing_seconds": dict(self.timing_seconds),
        }
