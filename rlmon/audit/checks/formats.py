"""Do answers keep their formats, and did the best one win?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from rlmon.audit.case import Case
from rlmon.audit.checks.question import Ends, Question, between, question
from rlmon.audit.clauses import GONE, percent
from rlmon.audit.result import Check
from rlmon.audit.timeline import SMOOTHING_STEPS
from rlmon.detectors.catalog import WIDEN
from rlmon.records import Status
from rlmon.statistics import trailing_mean

EXTINCT_SHARE = 0.1
EXTINCT_BASE_SHARE = 0.02
DIED_WARN, DIED_FAIL = 0.05, 0.4
"""Of the base's completions, in formats that died out."""


@question(
    "mode-extinction",
    "Is every answer format of the base still written?",
    core="formats",
    needs=("completions",),
    about="narrowing",
    warn="formats with .05 of the base died out (below a tenth of their share)",
    fail=".4 of the base",
)
def mode_extinction(ask: Question, ends: Ends) -> Check:
    contrast = ends.contrast
    assert contrast is not None
    counts = ends.groups["modes"].astype(np.float64)
    rows = counts.sum(axis=1)
    gone: dict[str, dict[str, float]] = {}
    known = 0
    for code, mode in enumerate(ends.case.modes):
        found = contrast.ratio(counts[:, code], rows)
        if found is None:
            continue
        known += 1
        if (
            found.base >= EXTINCT_BASE_SHARE
            and found.last < EXTINCT_SHARE * found.base
            and found.high < -found.base / 2
        ):
            gone[mode] = {"base_share": found.base, "last_share": found.last}
    if not known:
        return ask.skip("an end of the run has fewer than two prompts")
    lost = sum(entry["base_share"] for entry in gone.values())
    status: Status = "fail" if lost >= DIED_FAIL else "warn" if lost >= DIED_WARN else "pass"
    return ask.says(
        status=status,
        metric="share of the base in formats that died out",
        unit="share",
        value=lost,
        baseline=0.0,
        threshold=DIED_FAIL if status == "fail" else DIED_WARN,
        first_step=_died(ends.case, gone) if gone else None,
        message=_gone(gone) if gone else "every format of the base is still written",
        evidence={"modes": gone},
        advice=WIDEN,
    )


def _gone(lost: Mapping[str, Mapping[str, float]]) -> str:
    """``this format is no longer written: prose (was 25 %); this format is nearly gone: json (10 % to 0.8 %)``."""
    gone = [f"{mode} (was {percent(one['base_share'])})" for mode, one in lost.items() if one["last_share"] < GONE]
    nearly = [
        f"{mode} ({percent(one['base_share'])} to {percent(one['last_share'])})"
        for mode, one in lost.items()
        if one["last_share"] >= GONE
    ]
    parts = [
        f"{'this format is' if len(names) == 1 else 'these formats are'} {what}: {', '.join(names)}"
        for what, names in (("no longer written", gone), ("nearly gone", nearly))
        if names
    ]
    return "; ".join(parts)


def _died(case: Case, gone: Mapping[str, Any]) -> int | None:
    """First step from which one of the modes stays below a tenth of its base share."""
    steps = []
    for mode, entry in gone.items():
        values = case.line.mode_shares.get(mode)
        if values is None:
            continue
        known = np.flatnonzero(np.isfinite(values))
        over = np.flatnonzero(trailing_mean(values[known], SMOOTHING_STEPS) >= EXTINCT_SHARE * entry["base_share"])
        if not over.size or over[-1] + 1 < known.size:
            steps.append(int(case.line.steps[known[over[-1] + 1 if over.size else 0]]))
    return min(steps, default=None)


@question(
    "format-winner",
    "Did the best format win?",
    needs=("completions", "rewards"),
    about="narrowing",
    warn="the format that took over earned .05 less than another at the base",
)
def format_winner(ask: Question, ends: Ends) -> Check:
    contrast = ends.contrast
    assert contrast is not None
    counts = ends.groups["modes"].astype(np.float64)
    rows = counts.sum(axis=1)
    shares = [contrast.ratio(counts[:, code], rows) for code in range(counts.shape[1])]
    known = [(code, share) for code, share in enumerate(shares) if share is not None]
    if not known:
        return ask.skip("an end of the run has fewer than two prompts")
    winner, share = max(known, key=lambda pair: pair[1].last)
    name = ends.case.modes[winner]
    table = _rewards_by_mode(ends)
    if share.low < 0.15:
        return ask.says(
        status="pass", metric=f"share of {name}", unit="share",
            value=share.last, baseline=share.base, message=f"no format took over; the largest is {name}, "
            + between(share), evidence={"reward_by_mode": table},
        )  # fmt: skip
    rewards = np.stack([ends.groups["modes_reward"], ends.groups["modes_scored"]], axis=2)
    gaps: dict[str, tuple[float, float]] = {}
    for code, other in known:
        scored = table.get(ends.case.modes[code], {}).get("base_scored") or 0.0
        if code == winner or other.base < EXTINCT_BASE_SHARE or scored < 20:
            continue
        columns = np.concatenate([rewards[:, code], rewards[:, winner]], axis=1)
        lead = contrast.at_base(columns, lambda s: s[..., 0] / s[..., 1] - s[..., 2] / s[..., 3])
        if lead is not None:
            gaps[ends.case.modes[code]] = lead
    if not gaps:
        return ask.skip("the base has too few rewarded completions of other formats to compare")
    best, (gap, error) = max(gaps.items(), key=lambda item: item[1][0])
    low, high = gap - contrast.z * error, gap + contrast.z * error
    status: Status = "warn" if low > 0.05 else "pass"
    return ask.says(
        status=status,
        metric="base reward of the best other format minus the winner's",
        unit="reward",
        value=gap,
        baseline=0.0,
        threshold=0.05,
        interval=(low, high),
        message=f"{name} grew from {share.base:.2f} to {share.last:.2f}; at the base {best} earned {gap:+.3f} against "
        f"it (interval {low:+.3f} to {high:+.3f})",
        evidence={"winner": name, "reward_by_mode": table},
        advice=WIDEN + " What won was the worse format.",
    )


def _rewards_by_mode(ends: Ends) -> dict[str, dict[str, float | None]]:
    _, is_base, is_last = ends.case.ends()
    table: dict[str, dict[str, float | None]] = {}
    for code, mode in enumerate(ends.case.modes):
        entry: dict[str, float | None] = {}
        for label, mine in (("base", is_base), ("last", is_last)):
            scored = float(ends.groups["modes_scored"][mine, code].sum())
            total = float(ends.groups["modes_reward"][mine, code].sum())
            entry |= {f"{label}_scored": scored, f"{label}_reward": total / scored if scored else None}
        if entry["base_scored"] or entry["last_scored"]:
            table[mode] = entry
    return table
