"""Which format completions are in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

import rlmon.metrics.text as text
from rlmon.metrics.family import (
    MODE,
    NO_BASE,
    NO_ROUND,
    Entries,
    MetricFamily,
    Numbers,
    RankRows,
    RoundRows,
    Shape,
    StepSums,
    Sums,
)
from rlmon.statistics import effective_number, js_distance, ratio

SURE = 0.01
"""A mode is extinct (newborn) only when its share at the other time would have shown it with probability 1 - SURE."""
HILL = "Hill 1973, order 1; Echo Chamber, arXiv 2504.07912"
_ECHO = "arXiv 2504.07912"
_entry = Entries(family="format", needs="completions")


class Format(MetricFamily):
    name = "format"
    about = "Parsed format modes of the part after the reasoning block."
    base = ("mode_count",)
    entries = (
        _entry(
            "effective", "modes", 1, None, "down", "exp(-sum p ln p) over format modes; `other` is one mode",
            source=HILL,
        ),
        _entry(
            "effective_correct", "modes", 1, None, "down", "the same over rewarded completions",
            source=HILL, needs="rewards", of_successes=True,
        ),
        _entry(
            "effective_within", "modes", 1, None, "down",
            "mean over prompts with 2 or more completions of exp(-sum p ln p) among its completions", source=HILL,
        ),
        _entry("effective_ratio_to_base", "ratio", 0, None, "down", "effective / effective of the baseline"),
        _entry("top_share", "share", 0, 1, "up", "share of the largest mode", source=_ECHO),
        _entry("other_share", "share", 0, 1, "up", "share of completions that no parser claims"),
        _entry(f"share/{MODE}", "share", 0, 1, "none", "share of completions in this mode", source=_ECHO),
        _entry(
            f"reward/{MODE}", "reward", None, None, "none", "mean reward of completions in this mode", needs="rewards",
        ),
        _entry(
            "top_reward_gap", "reward", 0, None, "up", "mean reward of the best mode - mean reward of the largest mode",
            source="arXiv 2504.07912 (the winner need not be the best)", needs="rewards",
        ),
        _entry("reasoning_share", "share", 0, 1, "none", "share of completions with a reasoning block"),
        _entry(
            "reasoning_effective", "modes", 1, None, "down",
            "exp(-sum p ln p) over the format modes inside reasoning blocks", source=HILL,
        ),
        _entry(
            "js_to_base", "distance", 0, 1, "up",
            "sqrt of the Jensen-Shannon divergence in bits between mode shares and the baseline's",
            source="Endres and Schindelin 2003",
        ),
        _entry(
            "extinct", "modes", 0, None, "up",
            "modes without a completion whose baseline share s gives (1 - s)^N <= 0.01",
        ),
        _entry(
            "newborn", "modes", 0, None, "none",
            "modes absent from the baseline whose share s gives (1 - s)^N_base <= 0.01",
        ),
    )  # fmt: skip

    def fields(self, modes: Sequence[str]) -> Mapping[str, Shape]:
        names = ("mode_count", "mode_count_correct", "mode_reward", "mode_rewarded", "reasoning_count")
        return {**dict.fromkeys(names, (len(modes),)), "within": (), "within_prompts": ()}

    def add_rows(self, sums: Sums, seen: RankRows) -> None:
        code_B, modes = seen.features.mode_code, sums["mode_count"].size
        finite = np.isfinite(seen.reward_B)
        sums["mode_count"] += np.bincount(code_B, minlength=modes)
        self.add_successes(sums, code_B[seen.groups.won_B])
        sums["mode_reward"] += np.bincount(code_B[finite], weights=seen.reward_B[finite], minlength=modes)
        sums["mode_rewarded"] += np.bincount(code_B[finite], minlength=modes)
        reasoning_B = seen.features.reasoning_code
        sums["reasoning_count"] += np.bincount(reasoning_B[reasoning_B >= 0], minlength=modes)

    @staticmethod
    def add_successes(sums: Sums, mode_code_N: NDArray[np.int64]) -> None:
        """The modes of completions that are known to be successes: with a round, or later."""
        sums["mode_count_correct"] += np.bincount(mode_code_N, minlength=sums["mode_count_correct"].size)

    def add_round(self, sums: Sums, seen: RoundRows) -> None:
        total, prompts = text.effective_numbers(seen.rows["mode"].astype(np.int64), seen.prompt_B)
        sums["within"] += total
        sums["within_prompts"] += prompts

    def finish(self, out: Numbers, sums: Sums, step: StepSums) -> None:
        counts = sums["mode_count"]
        rows = counts.sum(axis=-1)
        effective = out.effective("format/effective", counts, NO_ROUND)
        out.effective("format/effective_correct", sums["mode_count_correct"], "no completion of this step was rewarded")
        out.ratio("format/effective_within", sums["within"], sums["within_prompts"], "no prompt has two completions")
        out.ratio("format/top_share", counts.max(axis=-1), rows, NO_ROUND)
        out.ratio("format/other_share", counts[..., -1], rows, NO_ROUND)
        reward, rewarded = sums["mode_reward"], sums["mode_rewarded"]
        for m, mode in enumerate(step.modes):
            out.ratio(f"format/share/{mode}", counts[..., m], rows, NO_ROUND)
            absent = "no completion in this mode has a finite reward"
            out.ratio(f"format/reward/{mode}", reward[..., m], rewarded[..., m], absent)
        mean = ratio(reward, rewarded)
        top = np.take_along_axis(mean, counts.argmax(axis=-1)[..., None], axis=-1)[..., 0]
        unpaid = "no finite reward in the largest mode"
        out.put("format/top_reward_gap", np.fmax.reduce(mean, axis=-1) - top, unpaid, known=~np.isnan(top))
        reasoning = sums["reasoning_count"]
        out.ratio("format/reasoning_share", reasoning.sum(axis=-1), rows, NO_ROUND)
        out.effective("format/reasoning_effective", reasoning, "no completion has a reasoning block")
        base = None if step.base is None else step.base["mode_count"]
        distance = extinct = newborn = base_effective = None
        if base is not None and base.sum() > 0:
            base_rows, base_effective = float(base.sum()), effective_number(base)
            distance = js_distance(counts, base)
            gone = (counts == 0) & ((1.0 - base / base_rows) ** rows[..., None] <= SURE)
            new = (base == 0) & ((1.0 - ratio(counts, rows[..., None])) ** base_rows <= SURE)
            extinct, newborn = gone.sum(axis=-1), new.sum(axis=-1)
        out.put("format/js_to_base", distance, NO_BASE, known=rows > 0)
        out.put("format/extinct", extinct, NO_BASE, known=rows > 0)
        out.put("format/newborn", newborn, NO_BASE, known=rows > 0)
        out.ratio("format/effective_ratio_to_base", effective, base_effective, NO_BASE)
