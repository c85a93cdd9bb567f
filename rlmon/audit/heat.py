"""Prompts over time: how often each was solved, and what became of it."""

from __future__ import annotations

from typing import Any

import numpy as np

from rlmon.audit.case import Case
from rlmon.audit.checks.solving import prompt_halves
from rlmon.audit.features import Floats, Ints
from rlmon.audit.result import Heat, HeatRow
from rlmon.metrics.ledger import hard
from rlmon.statistics import ratio

HEAT_BINS = 64
HEAT_ROWS = 200


def heat(case: Case) -> Heat | None:
    """Solve rates of prompts that were sampled at two steps or more, worst first; ``None`` where there are none."""
    groups = case.counted.groups
    if not groups or not groups["known"].any():
        return None
    mine = ~groups["eval"] & (groups["known"] > 0)
    steps = np.unique(groups["step"][mine])
    keys, code = np.unique(groups["prompt"][mine], return_inverse=True)
    visits = np.bincount(_pairs(code, np.searchsorted(steps, groups["step"][mine])), minlength=keys.size)
    several = visits >= 2
    if not several.any():
        return None
    bins = min(HEAT_BINS, steps.size)
    place = np.searchsorted(steps, groups["step"][mine]) * bins // steps.size
    n = np.zeros((keys.size, bins))
    k = np.zeros((keys.size, bins))
    np.add.at(n, (code, place), groups["known"][mine])
    np.add.at(k, (code, place), groups["successes"][mine])
    halves = prompt_halves(case)
    at = np.searchsorted(np.unique(groups["prompt"][~groups["eval"]]), keys)
    fates = _fates(*(half[at] for half in halves))
    source = np.zeros(keys.size, dtype=np.int64)
    source[code] = groups["source"][mine]
    rank = {"forgotten": 0, "lucky": 1, "impossible": 2, "mixed": 3, "learned": 4, "solved": 5}
    chosen = sorted(np.flatnonzero(several).tolist(), key=lambda p: (rank[fates[p]], -n[p].sum(), keys[p]))[:HEAT_ROWS]
    edges = [steps[np.flatnonzero(np.arange(steps.size) * bins // steps.size == b)] for b in range(bins)]
    rows = []
    for p in chosen:
        identity, text = case.counted.prompts.get(int(keys[p]), (f"{int(keys[p]):016x}", None))
        rates = [float(k[p, b] / n[p, b]) if n[p, b] else None for b in range(bins)]
        rows.append(
            HeatRow(
                prompt_id=identity,
                prompt=text,
                source=case.counted.sources[source[p]],
                rates=rates,
                attempts=int(n[p].sum()),
                fate=fates[p],
            )
        )
    return Heat(
        bins=[(int(edge[0]), int(edge[-1])) for edge in edges],
        rows=rows,
        prompts=int(several.sum()),
        note=f"{len(rows)} of {int(several.sum())} prompts that were sampled at two steps or more, worst first",
    )


def _pairs(code: Ints, step: Ints) -> Ints:
    """The code of every distinct (code, step), so that counting them counts visits."""
    width = int(step.max()) + 1 if step.size else 1
    return np.asarray(np.unique(code * width + step) // width, dtype=np.int64)


def _fates(early_n: Floats, early_k: Floats, late_n: Floats, late_k: Floats) -> list[Any]:
    n, k = early_n + late_n, early_k + late_k
    below = hard(k + 1.0, n - k + 1.0)
    early, late = ratio(early_k, early_n), ratio(late_k, late_n)
    fates = []
    for p in range(n.size):
        if below[p]:
            fates.append("lucky" if k[p] else "impossible")
        elif early[p] >= 0.5 and late[p] < 0.25 and min(early_n[p], late_n[p]) >= 4:
            fates.append("forgotten")
        elif k[p] == n[p]:
            fates.append("solved")
        elif late[p] >= 0.9 and early[p] < 0.9:
            fates.append("learned")
        else:
            fates.append("mixed")
    return fates
