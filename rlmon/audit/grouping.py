"""Which completions were drawn together for one prompt, where a source does not say it: by the order of its rows."""

from __future__ import annotations

import numpy as np

from rlmon.audit.features import Bools, Ints
from rlmon.metrics.blocks import codes_of

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
    ordered = codes_of(prompt)[order]
    fresh = np.ones(step.size, dtype=bool)
    fresh[1:] = (step[order][1:] != step[order][:-1]) | (evaluation[order][1:] != evaluation[order][:-1])
    starts = np.flatnonzero(fresh)
    ends = np.append(starts[1:], step.size)
    stretch = np.cumsum(fresh) - 1
    change = fresh.copy()
    change[1:] |= ordered[1:] != ordered[:-1]
    orderly = _orderly(change, stretch)
    usual = _usual_rows(step, evaluation, codes_of(prompt))
    code = np.empty(step.size, dtype=np.int64)
    ambiguous = np.zeros(step.size, dtype=bool)
    used = 0
    for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
        rows = order[start:end]
        size = group_size if group_size and group_size > 1 else usual[int(evaluation[rows[0]])]
        told = bool(group_size and group_size > 1)
        own, doubtful = _of_step(ordered[start:end], change[start:end], size, told, orderly)
        code[rows], ambiguous[rows] = own + used, doubtful
        used += int(own.max()) + 1
    return code, ambiguous


def _orderly(change: Bools, stretch: Ints) -> bool:
    """Whether nearly all steps are runs of one length; rows that were dealt out are that by chance only."""
    begins = np.flatnonzero(change)
    length, of = np.diff(np.append(begins, change.size)), stretch[begins]
    count = int(stretch[-1]) + 1 if stretch.size else 0
    least, most = np.full(count, change.size), np.zeros(count, dtype=np.int64)
    np.minimum.at(least, of, length)
    np.maximum.at(most, of, length)
    return count > 0 and float(np.mean((least == most) & (least > 1))) >= ORDERLY


def _usual_rows(step: Ints, evaluation: Bools, prompt: Ints) -> tuple[int, int]:
    """How many rows of a prompt a step usually has, the smaller of two; of training and of evaluation."""
    _, first, rows = np.unique(np.stack([step, evaluation, prompt]), axis=1, return_index=True, return_counts=True)
    found = []
    for side in (False, True):
        mine = rows[evaluation[first] == side]
        found.append(int(np.bincount(mine).argmax()) if mine.size else 1)
    return found[0], found[1]


def _of_step(prompt: Ints, change: Bools, size: int, told: bool, orderly: bool) -> tuple[Ints, Bools]:
    """Codes of the rows of one step and side; ``size``: rows of a group, as ``told`` or as a prompt usually has."""
    count = prompt.size
    certain = np.zeros(count, dtype=bool)
    begins = np.flatnonzero(change)
    lengths = np.diff(np.append(begins, count))
    _, distinct, rows_of = np.unique(prompt, return_inverse=True, return_counts=True)
    run = np.cumsum(change) - 1
    together = begins.size == rows_of.size
    several = lengths % size == 0 if size > 1 else np.zeros(lengths.size, dtype=bool)
    even = bool((rows_of == rows_of[0]).all())
    neighbours = orderly and bool((lengths == lengths[0]).all())
    neighbours |= (together or not even) and bool(lengths[several].sum() >= NEIGHBOURS * count)
    if together or neighbours:
        # A prompt may be drawn twice in a row; a group has no more rows than the trainer samples.
        cut = (several | told)[run] & ((np.arange(count) - begins[run]) % size == 0)
        return np.cumsum(change | cut) - 1, certain
    turn = _turn(prompt)
    if turn and count // turn == size:
        return np.arange(count) % turn, certain
    least = size if told else int(rows_of.min())
    twice = (rows_of > least) & (rows_of % least == 0) if least > 1 else np.zeros(rows_of.size, dtype=bool)
    return np.asarray(distinct, dtype=np.int64).reshape(-1), twice[np.asarray(distinct).reshape(-1)]


def _turn(prompt: Ints) -> int:
    """After how many rows the prompts come again in the same order, to the end; 0: they do not."""
    for turn in (np.flatnonzero(prompt[1:] == prompt[0]) + 1).tolist():
        if prompt.size % turn == 0 and bool((prompt[turn:] == prompt[:-turn]).all()):
            return int(turn)
    return 0
