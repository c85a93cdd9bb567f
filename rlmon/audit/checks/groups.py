"""Which completions were drawn together: what every advantage relative to a group rests on."""

from __future__ import annotations

from typing import Any

import numpy as np

from rlmon.audit.checks.question import Ends, Question, question
from rlmon.audit.result import Check
from rlmon.audit.rows import GROUPED
from rlmon.statistics import codes_of

MOST = 0.5
"""Share of the groups that is called most of them."""
SOME = 0.1
WITHOUT = (
    "--map prompt=...,completion=...,reward=...,step=... (without group) takes equal prompts of a step as one group"
)


@question("groups-known", "Is it known which completions belong together?", method="exact", about="reward")
def groups_known(ask: Question, ends: Ends) -> Check:
    case = ends.case
    groups = case.counted.groups
    train = ~groups["eval"] if groups else np.zeros(0, dtype=bool)
    if not train.any():
        return ask.skip(case.run.lacks.get("completions", "there are no completions"))
    rows, grouped = groups["rows"][train], groups["grouped"][train]
    alone = rows == 1
    # How many groups of its step have the prompt of this one.
    _, of, count = np.unique(
        codes_of(groups["step"][train], groups["prompt"][train]), return_inverse=True, return_counts=True
    )
    beside = count[np.asarray(of).reshape(-1)]
    named = grouped == GROUPED.index("named")
    parted = alone & named & (beside > 1)
    doubtful = grouped == GROUPED.index("ambiguous")
    usual = int(np.median(rows))
    facts: dict[str, Any] = {
        "metric": "share of groups of one completion", "unit": "share of groups", "value": float(alone.mean()),
        "evidence": {"groups": int(rows.size), "groups_of_one": int(alone.sum()), "named": int(named.sum()),
                     "of_one_with_a_prompt_that_recurs": int(parted.sum()), "ambiguous": int(doubtful.sum())},
    }  # fmt: skip
    if parted.mean() >= MOST:
        size = int(np.median(beside[parted]))
        return ask.says(
            status="warn", threshold=MOST,
            first_step=int(groups["step"][train][parted].min()),
            message=f"each of the {size} completions of a prompt carries a group id of its own: these are groups of 1, "
            "in which nothing is compared, and an advantage relative to the group is 0 or wrong",
            advice="If the trainer groups by this id, give the completions of one prompt the same (repeat the prompt "
            f"before the id is made). If it only numbers rows, {WITHOUT}.",
            **facts,
        )  # fmt: skip
    mixed = named & (groups["prompts"][train] > 1)
    if mixed.mean() >= MOST:
        held = int(np.median(groups["prompts"][train][mixed]))
        return ask.says(
            status="note",
            message=f"most groups hold several prompts ({held} is usual): what names them may be no group of "
            "completions of one prompt",
            advice=f"If that is another kind of group, {WITHOUT}.",
            **facts,
        )  # fmt: skip
    if doubtful.mean() >= SOME:
        return ask.says(
            status="unsure", message=f"{doubtful.mean():.0%} of the groups could be several",
            reason="a prompt has several times the rows of the others of its step, in no order: it may have been drawn "
            "twice, and nothing says which rows belong together; name the column of groups with --map group=...",
            **facts,
        )  # fmt: skip
    if alone.mean() < MOST or case.fold.live is not None:  # the monitor saw what was drawn together
        return ask.says(status="pass", message=f"groups of {usual}", **facts)
    if case.run.group_size is not None and case.run.group_size > 1 and not named.any():
        return ask.says(
            status="warn", threshold=MOST,
            message=f"the settings say {case.run.group_size} completions a prompt, but most prompts have one in a "
            "step: these are groups of 1",
            advice="Log all completions of a prompt (log_unique_prompts=False), with the prompt as it was asked, or "
            "name the column of groups with --map group=...",
            **facts,
        )  # fmt: skip
    if "groups" in case.run.lacks:
        return ask.skip(case.run.lacks["groups"], **facts)
    return ask.says(
        status="note", message="most prompts have one completion in a step: groups of 1, so groups cannot be judged",
        advice="With one sample a prompt (PPO, REINFORCE) that is as it should be. Else name the column of groups "
        "with --map group=...",
        **facts,
    )  # fmt: skip
