"""Which completions were drawn together for one prompt, where a source does not say it: by the order of its rows."""

from __future__ import annotations

import numpy as np

from rlmon.audit.features import Bools, Ints
from rlmon.statistics import codes_of

NEIGHBOURS = 0.5
"""Share of a step's rows that stand beside as many of their prompt as a group has, from which on order means groups."""
ORDERLY = 0.9
"""Share of steps that are runs of one length, from which on such runs are groups even where prompts come in turn."""


def named(step: Ints, evaluation: Bools, name: Ints, prompt: Ints) -> Ints:
    """A code from 0 per row, equal inside a group that the source names; ``name`` is -1 where it does not.

    Rows without a group are grouped by their prompt: they must not make one group of all.
    """
    own = np.where(name >= 0, name, name.max(initial=0) + 1 + codes_of(prompt))
    _, code = np.unique(np.stack([step, own, evaluation.astype(np.int64)]), axis=1, return_inverse=True)
    return np.asarray(code, dtype=np.int64).reshape(-1)


def inferred(step: Ints, evaluation: Bools, prompt: Ints, group_size: int | None) -> tuple[Ints, Bools]:
    """A code from 0 per row, equal inside a group, and whether the rows allow another reading.

    Inside a step: prompts that come in turn (1 to 4, then 1 to 4 again) are draws side by side; neighbours of one
    prompt are a group, cut where a run of them is several groups long; scattered rows of one prompt are a group. That
    is ambiguous where a prompt has a multiple of the rows of the others: it may have been drawn twice.
    """
    order = np.lexsort((np.arange(step.size), evaluation, step))
    ordered, side = codes_of(prompt)[order], evaluation[order].astype(np.int64)
    fresh = np.ones(step.size, dtype=bool)
    fresh[1:] = (step[order][1:] != step[order][:-1]) | (side[1:] != side[:-1])
    change = fresh.copy()
    change[1:] |= ordered[1:] != ordered[:-1]
    stretch, run = np.cumsum(fresh) - 1, np.cumsum(change) - 1
    begins = np.flatnonzero(change)
    lengths = np.diff(np.append(begins, step.size))
    told = bool(group_size and group_size > 1)
    size = np.full(2, group_size) if told else _usual_rows(stretch, side, ordered)
    several = (size[side[begins]] > 1) & (lengths % size[side[begins]] == 0)
    # Runs of neighbours. A prompt may be drawn twice in a row; a group has no more rows than the trainer samples.
    cut = change | ((several | told)[run] & ((np.arange(step.size) - begins[run]) % size[side] == 0))
    ordered_code = np.cumsum(cut) - 1
    ambiguous = np.zeros(step.size, dtype=bool)
    # Elsewhere prompts recur after others: one step after the other is looked at.
    runs = np.bincount(stretch[begins])
    prompts = np.bincount(np.unique(np.stack([stretch, ordered]), axis=1)[0])
    orderly = _orderly(lengths, stretch[begins])
    starts = np.flatnonzero(fresh)
    ends = np.append(starts[1:], step.size)
    for at in np.flatnonzero(runs != prompts).tolist():
        rows = slice(int(starts[at]), int(ends[at]))
        mine = run[rows.start], run[rows.stop - 1] + 1
        found = _of_step(
            ordered[rows], lengths[slice(*mine)], several[slice(*mine)], int(size[side[rows.start]]), told, orderly
        )
        if found is not None:
            ordered_code[rows], ambiguous[rows] = step.size + rows.start + found[0], found[1]
    code = np.empty(step.size, dtype=np.int64)
    code[order] = codes_of(ordered_code)
    doubtful = np.empty(step.size, dtype=bool)
    doubtful[order] = ambiguous
    return code, doubtful


def _orderly(lengths: Ints, stretch: Ints) -> bool:
    """Whether nearly all steps are runs of one length; rows that were dealt out are that by chance only."""
    count = int(stretch[-1]) + 1 if stretch.size else 0
    least, most = np.full(count, np.iinfo(np.int64).max), np.zeros(count, dtype=np.int64)
    np.minimum.at(least, stretch, lengths)
    np.maximum.at(most, stretch, lengths)
    return count > 0 and float(np.mean((least == most) & (least > 1))) >= ORDERLY


def _usual_rows(stretch: Ints, side: Ints, prompt: Ints) -> Ints:
    """How many rows of a prompt a step usually has, the smaller of two; of training and of evaluation."""
    _, first, rows = np.unique(np.stack([stretch, prompt]), axis=1, return_index=True, return_counts=True)
    mine = [rows[side[first] == one] for one in (0, 1)]
    return np.array([int(np.bincount(rows).argmax()) if rows.size else 1 for rows in mine])


def _of_step(
    prompt: Ints, lengths: Ints, several: Bools, size: int, told: bool, orderly: bool
) -> tuple[Ints, Bools] | None:
    """Codes of the rows of one step and side in which prompts recur, and whether they are ambiguous.

    ``None``: its runs are groups. ``size``: rows of a group, as ``told`` or as a prompt usually has; ``several``: runs
    that are as long as that, or a multiple.
    """
    count = prompt.size
    _, distinct, rows_of = np.unique(prompt, return_inverse=True, return_counts=True)
    even = bool((rows_of == rows_of[0]).all())
    if orderly and bool((lengths == lengths[0]).all()):
        return None
    if not even and bool(lengths[several].sum() >= NEIGHBOURS * count):
        return None
    turn = _turn(prompt)
    if turn and count // turn == size:
        return np.arange(count) % turn, np.zeros(count, dtype=bool)
    least = size if told else int(rows_of.min())
    twice = (rows_of > least) & (rows_of % least == 0) if least > 1 else np.zeros(rows_of.size, dtype=bool)
    of_prompt = np.asarray(distinct, dtype=np.int64).reshape(-1)
    return of_prompt, twice[of_prompt]


def _turn(prompt: Ints) -> int:
    """After how many rows the prompts come again in the same order, to the end; 0: they do not."""
    for turn in (np.flatnonzero(prompt[1:] == prompt[0]) + 1).tolist():
        if prompt.size % turn == 0 and bool((prompt[turn:] == prompt[:-turn]).all()):
            return int(turn)
    return 0
