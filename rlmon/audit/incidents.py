"""What happened, told once: checks that saw one event are one incident, with one sentence and one setting to change.

Pure functions of checks and of what the audit tells beside them (formats, metrics): every output says the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from rlmon.audit.clauses import clause, effective, short
from rlmon.audit.result import Audit, Check, Example, Kind, MetricSummary, ModeStory
from rlmon.printable import several

_RANK: Sequence[Kind] = ("numbers", "narrowing", "reward", "length", "drift", "other", "record")
"""Of two incidents of one severity, the earlier here is told first: what makes other numbers meaningless leads."""
LEAD: Sequence[str] = (
    "entropy-explosion", "format-collapse", "template-collapse", "mode-extinction", "move-collapse",
    "answer-concentration",
    "near-duplicates", "correct-diversity", "answer-diversity", "word-diversity", "sentence-openings",
    "entropy-collapse", "format-winner", "shortcut", "pass-at-k", "identical-completions", "reward-signal", "gradient",
    "reward-loss", "reward-functions", "reward-missing", "empty-answers", "groups-known", "forgotten-prompts",
    "impossible-prompts", "eval-gap", "length-growth", "rows-complete", "replay", "monitor-faults",
)  # fmt: skip
"""Of checks that saw one event the earlier one here tells it; those that are not here come after."""
WINDOW_SHARE = 0.25
"""Of one kind, what begins within this share of the run after the one before is one event."""
WINDOW_STEPS = 5
TOOK_OVER = 0.5
"""Share from which a format is said to have replaced others."""
NAMED = 3
REWARD_MOVED = 0.02
"""Less is not worth a word: a share of the base, or of 1 where the base is below."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Incident:
    """One event, seen by one check or by several."""

    kind: Kind
    severity: Literal["fail", "warn"]
    checks: Sequence[Check]
    """All that saw it, the one that leads first."""
    began: int | None
    """Earliest onset among them."""
    at_latest: bool
    """It may have begun before ``began``."""
    confirmed: int | None
    """Earliest step at which the evidence sufficed for ``severity``."""
    sentence: str
    """What happened since when, in one sentence. Holds names of formats, and no other text of the run."""
    setting: str
    """The one setting to change first; empty where no check has advice."""

    @property
    def pair(self) -> Sequence[Example]:
        """A completion of the base and one of now; fewer where they were not kept."""
        shown = next((check.examples for check in self.checks if check.examples), ())
        return [example for label in ("base", "now") for example in shown if example.label == label][:2]


def incidents(audit: Audit) -> list[Incident]:
    """The incidents of an audit, the gravest first; none where nothing failed or warned."""
    return among(audit.checks, audit.modes, audit.metrics, (audit.run.first_step, audit.run.last_step))


def among(
    checks: Sequence[Check],
    modes: Sequence[ModeStory],
    metrics: Mapping[str, MetricSummary],
    steps: tuple[int | None, int | None],
) -> list[Incident]:
    """The same from the parts of an audit; ``steps``: the first and the last of the run."""
    first, last = steps
    window = max(WINDOW_STEPS, WINDOW_SHARE * (last - first)) if first is not None and last is not None else 0.0
    bad = [check for check in checks if check.status in ("fail", "warn")]
    clusters = [(kind, cluster) for kind in _RANK for cluster in _clusters([c for c in bad if c.about == kind], window)]
    broken = next((cluster for kind, cluster in clusters if kind == "numbers"), None)
    narrow = next((cluster for kind, cluster in clusters if kind == "narrowing"), None)

    def belongs(kind: Kind, cluster: Sequence[Check]) -> Sequence[Check] | None:
        """The event that this one is a part of."""
        began = _began(cluster)
        # Numbers that broke break what is written, and that moves everything else.
        if broken is not None and cluster is not broken and kind != "record" and began is not None:
            return broken if 0 <= began - (_began(broken) or 0) <= window else None
        # A narrowing moves the model away from its base: the distance is no second event.
        near = kind == "drift" and narrow is not None and _together(narrow, cluster, window)
        return narrow if near else None

    parts = [(belongs(kind, cluster), cluster) for kind, cluster in clusters]
    found = []
    for (kind, cluster), (whole, _) in zip(clusters, parts, strict=True):
        if whole is None:
            with_it = [check for owner, other in parts if owner is cluster for check in other]
            found.append(_incident(kind, cluster, with_it, modes, metrics))
    return sorted(found, key=lambda one: (one.severity != "fail", _RANK.index(one.kind)))


def _clusters(checks: Sequence[Check], window: float) -> list[list[Check]]:
    """Checks of one kind by when they began; those that looked at the ends only belong to the gravest."""
    dated = sorted((check for check in checks if check.first_step is not None), key=lambda check: check.first_step or 0)
    clusters: list[list[Check]] = []
    for check in dated:
        before = clusters[-1][-1].first_step if clusters else None
        if before is not None and check.first_step is not None and check.first_step - before <= window:
            clusters[-1].append(check)
        else:
            clusters.append([check])
    rest = [check for check in checks if check.first_step is None]
    if rest and not clusters:
        return [rest]
    if rest:
        min(clusters, key=lambda cluster: _severity(cluster) != "fail").extend(rest)
    return clusters


def _together(a: Sequence[Check], b: Sequence[Check], window: float) -> bool:
    begun = _began(a), _began(b)
    return begun[0] is None or begun[1] is None or abs(begun[0] - begun[1]) <= window


def _severity(checks: Sequence[Check]) -> Literal["fail", "warn"]:
    return "fail" if any(check.status == "fail" for check in checks) else "warn"


def _began(checks: Sequence[Check]) -> int | None:
    return min((check.first_step for check in checks if check.first_step is not None), default=None)


def _incident(
    kind: Kind,
    checks: Sequence[Check],
    with_it: Sequence[Check],
    modes: Sequence[ModeStory],
    metrics: Mapping[str, MetricSummary],
) -> Incident:
    def place(check: Check) -> tuple[bool, int]:
        return check.status != "fail", LEAD.index(check.id) if check.id in LEAD else len(LEAD)

    ordered = sorted(checks, key=place)
    began, severity = _began(checks), _severity([*checks, *with_it])
    at_latest = began is not None and all(check.at_latest for check in checks if check.first_step == began)
    alarms = [c.alarm_step for c in checks if c.alarm_step is not None and c.status == _severity(checks)]
    advised = next((check.advice for check in ordered if check.advice), "")
    return Incident(
        kind=kind,
        severity=severity,
        checks=[*ordered, *with_it],
        began=began,
        at_latest=at_latest,
        confirmed=min(alarms, default=None),
        sentence=_sentence(kind, ordered, with_it, began, modes, metrics, at_latest=at_latest),
        setting=first_choice(advised),
    )


def _sentence(
    kind: Kind,
    checks: Sequence[Check],
    with_it: Sequence[Check],
    began: int | None,
    modes: Sequence[ModeStory],
    metrics: Mapping[str, MetricSummary],
    *,
    at_latest: bool,
) -> str:
    replaced = _replaced(checks, modes) if kind == "narrowing" else None
    parts = [replaced or clause(checks[0])]
    if kind == "numbers" and (took_over := _replaced(with_it, modes)):
        parts.append(took_over)
    if kind == "narrowing":
        parts += _reward(metrics)
    told = "; ".join(parts).rstrip(".") + "."
    if began is None:
        return f"{told[:1].upper()}{told[1:]}"
    return f"{'By' if at_latest else 'From'} step {began}{'' if replaced else ':'} {told}"


def _replaced(checks: Sequence[Check], modes: Sequence[ModeStory]) -> str | None:
    """Which format took the place of which others; ``None`` where no check is about formats, or none took over."""
    winner = max(modes, key=lambda mode: mode.last_share, default=None)
    lost = sorted((mode for mode in modes if mode.fate in ("extinct", "shrunk")), key=lambda mode: -mode.base_share)
    about = next((c for c in checks if c.id == "format-collapse"), None)
    named = any(check.id == "mode-extinction" for check in checks)
    if winner is None or winner.fate not in ("grown", "newborn") or winner.last_share < TOOK_OVER or not lost:
        return None
    if about is None and not named:
        return None
    name = "text in no known format" if winner.mode == "other" else winner.mode
    said = f"{name} replaced {listed([mode.mode for mode in lost])}" + (" formats" if len(lost) > NAMED + 1 else "")
    if about is not None and about.baseline is not None and about.value is not None:
        said += f": answers used {effective(about.baseline)} formats, now {effective(about.value)}"
    return said


def _reward(metrics: Mapping[str, MetricSummary]) -> Iterator[str]:
    reward = metrics.get("rlmon/health/reward_mean")
    if reward is None or reward.base is None or reward.last is None:
        return
    if abs(reward.last - reward.base) >= REWARD_MOVED * max(1.0, abs(reward.base)):
        yield f"reward {short(reward.base)} to {short(reward.last)}"


def listed(names: Sequence[str], most: int = NAMED) -> str:
    """``prose, boxed, json and 3 more``; one more than ``most`` is named too."""
    if len(names) > most + 1:
        return several(names, most)
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def first_choice(advice: str) -> str:
    """The first of several things that an advice names, up to a stop outside of brackets."""
    depth = 0
    for at, letter in enumerate(advice):
        depth += (letter == "(") - (letter == ")")
        if depth == 0 and advice.startswith((". ", "; ", ", or "), at):
            return advice[:at] + "."
    return advice
