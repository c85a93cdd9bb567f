"""A family of metrics with sums of its own: prompts of which all completions have one format."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rlmon.metrics import Metric, MetricFamily, Numbers, RoundRows, StepSums


class Unanimous(MetricFamily):
    """Counted over the rows of all ranks together, since a prompt's completions may lie on several of them."""

    name = "unanimous"
    entries = (
        Metric(
            name="unanimous/share",
            unit="share of prompts",
            low=0,
            high=1,
            direction="up",  # this way is bad
            source="",
            formula="prompts whose completions all have one format, over prompts with two completions or more",
            kind="exact",  # it does not depend on how many ranks there are
            needs="completions",
        ),
    )

    def fields(self, modes: Sequence[str]) -> Mapping[str, Any]:
        return {"prompts": (), "unanimous": ()}  # a shape each: one number

    def add_round(self, sums: Any, seen: RoundRows) -> None:
        for prompt in np.unique(seen.prompt_B):
            mode = seen.rows["mode"][seen.prompt_B == prompt]
            if mode.size >= 2:
                sums["prompts"] += 1
                sums["unanimous"] += bool((mode == mode[0]).all())

    def finish(self, out: Numbers, sums: Any, step: StepSums) -> None:
        why = step.few("no prompt has two completions")  # said where it is null
        out.ratio("unanimous/share", sums["unanimous"], sums["prompts"], why)


UNANIMOUS = Unanimous()
