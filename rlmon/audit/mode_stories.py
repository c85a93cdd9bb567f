"""What became of each format: its share and reward at both ends, and completions that show it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from rlmon.audit.case import Case, values_of
from rlmon.audit.examples import Samples
from rlmon.audit.features import Bools
from rlmon.audit.result import Check, ModeStory
from rlmon.statistics import ratio

Fate = Literal["extinct", "shrunk", "steady", "grown", "newborn"]


def mode_stories(case: Case, checks: Sequence[Check], samples: Samples) -> list[ModeStory]:
    """What became of the formats that were seen at an end of the run, those that died out first."""
    groups, is_base, is_last = case.ends()
    if not groups or not is_base.any() or not is_last.any() or case.windows is None:
        return []
    counts = groups["modes"].astype(np.float64)
    base_counts, last_counts = counts[is_base].sum(axis=0), counts[is_last].sum(axis=0)
    if not base_counts.sum() or not last_counts.sum():
        return []
    base, last = base_counts / base_counts.sum(), last_counts / last_counts.sum()
    base_reward = _mode_reward(groups, is_base)
    last_reward = _mode_reward(groups, is_last)
    winner = int(last.argmax())
    onsets = [check.first_step for check in checks if check.first_step is not None and check.status in ("warn", "fail")]
    since = min(onsets, default=int(case.windows.last[0]))
    judged = next((check for check in checks if check.id == "mode-extinction" and check.status != "skip"), None)
    stories = []
    for code, mode in enumerate(case.modes):
        if base[code] == 0 and last[code] == 0:
            continue
        values = case.line.mode_shares.get(mode)
        seen = np.zeros(0, dtype=np.int64) if values is None else np.flatnonzero(np.nan_to_num(values) > 0)
        fate = _fate(float(base[code]), float(last[code]))
        if fate == "extinct" and judged is not None and mode not in judged.evidence["modes"]:
            fate = "shrunk"  # too few completions to be sure: one count of what died out
        stories.append(
            ModeStory(
                mode=mode,
                fate=fate,
                base_share=float(base[code]),
                last_share=float(last[code]),
                base_reward=base_reward[code],
                last_reward=last_reward[code],
                last_seen_step=int(case.line.steps[seen[-1]]) if seen.size else None,
                examples=samples.of_lost(code, winner, since) if fate != "steady" else [],
            )
        )
    order = {"extinct": 0, "shrunk": 1, "newborn": 2, "grown": 3, "steady": 4}
    return sorted(stories, key=lambda story: (order[story.fate], -story.base_share))


def _mode_reward(groups: Mapping[str, Any], mine: Bools) -> list[float | None]:
    means = ratio(
        groups["modes_reward"][mine].sum(axis=0).astype(np.float64),
        groups["modes_scored"][mine].sum(axis=0).astype(np.float64),
    )
    return values_of(means)


def _fate(base: float, last: float) -> Fate:
    if base >= 0.02 and last < 0.1 * base:
        return "extinct"
    if base < 0.01 and last >= 0.05:
        return "newborn"
    if last < 0.67 * base and base - last > 0.02:
        return "shrunk"
    return "grown" if last > 1.5 * base and last - base > 0.02 else "steady"
