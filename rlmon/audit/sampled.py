"""The sample of texts that an audit keeps: chosen by hash, so that it is the same however the rows were shared out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rlmon.audit.features import column, floats
from rlmon.audit.rows import Rows, Settings
from rlmon.statistics import hashed, place_in_run

PROMPT_CHARACTERS = 2_000
"""Of the prompt of a sampled completion."""
COMPLETION_CHARACTERS = 8_192
"""Of a sampled completion from its beginning."""
ENDING_CHARACTERS = 4_096
"""Of a longer one from its end, where the answer is."""
FIRST_AND_LAST = 2
"""Completions of every mode kept from both ends of a shard."""

SAMPLE_SCHEMA = pa.schema(
    [
        ("step", pa.int64()),
        ("split", pa.string()),
        ("prompt", pa.string()),
        ("completion", pa.string()),
        ("ending", pa.string()),
        ("characters", pa.int64()),
        ("prompt_key", pa.int64()),
        ("source", pa.string()),
        ("reward", pa.float64()),
        ("advantage", pa.float64()),
        ("truncated", pa.bool_()),
        ("mode", pa.int64()),
        ("template_key", pa.int64()),
        ("answer_key", pa.int64()),
        ("text_key", pa.int64()),
        ("rank", pa.int64()),
    ]
)
"""``ending``: of a completion that is longer than what is kept of its beginning.

``rank``: place of the row in the hash order of its step; the uniform sample of a step is its lowest ranks. Rows
kept only since they are among the first or last of their mode have -1."""


def sample(rows: Rows, settings: Settings) -> pa.Table:
    """The same rows however they were shared out: of each step those of the lowest hashes, and the first and last of
    every mode."""
    read, step, evaluation, prompt = rows.read, rows.step, rows.evaluation, rows.prompt
    identity = read.text.astype(np.uint64) ^ hashed(prompt.astype(np.uint64), 1)
    # Equal rows are drawn one by one: the first, the second, ... of them in its step has a place of its own.
    again = place_in_run(identity, step, evaluation)
    rank = place_in_run(step, evaluation, order_by=hashed(identity + again.astype(np.uint64), 3))
    steps = max(1, np.unique(step).size)
    kept = rank < max(1, -(-settings.sample_rows // steps))
    ends = np.zeros(step.size, dtype=bool)
    for mode in range(len(settings.modes.names)):
        mine = np.flatnonzero(~evaluation & (read.mode == mode))
        ends[mine[:FIRST_AND_LAST]] = True
        ends[mine[max(0, mine.size - FIRST_AND_LAST) :]] = True
    at = np.flatnonzero(kept | ends)
    taken = rows.table.take(pa.array(at))

    def text(name: str, characters: int) -> Any:
        found = column(taken, name)
        return pa.nulls(at.size, pa.string()) if found is None else pc.utf8_slice_codeunits(found, 0, characters)

    truncated = column(taken, "truncated")
    whole = column(taken, "completion")
    characters = pa.nulls(at.size, pa.int64()) if whole is None else pc.cast(pc.utf8_length(whole), pa.int64())
    ending = pa.nulls(at.size, pa.string())
    if whole is not None:
        tail = pc.utf8_slice_codeunits(whole, -ENDING_CHARACTERS, None)
        ending = pc.if_else(pc.greater(characters, COMPLETION_CHARACTERS), tail, pa.scalar(None, pa.string()))
    return pa.table(
        {
            "step": step[at],
            "split": np.where(evaluation[at], "eval", "train"),
            "prompt": text("prompt", PROMPT_CHARACTERS),
            "completion": text("completion", COMPLETION_CHARACTERS),
            "ending": ending,
            "characters": characters,
            "prompt_key": prompt[at],
            "source": pa.array([rows.sources[code] for code in rows.source[at]], pa.string()),
            "reward": pc.cast(taken["reward"], pa.float64()) if "reward" in taken.column_names else pa.nulls(at.size),
            "advantage": floats(taken, "advantage"),
            "truncated": pa.nulls(at.size, pa.bool_()) if truncated is None else truncated,
            "mode": read.mode[at],
            "template_key": read.template[at],
            "answer_key": read.answer[at],
            "text_key": read.text[at],
            "rank": np.where(kept[at], rank[at], -1),
        }
    ).cast(SAMPLE_SCHEMA)


def spread(samples: Sequence[pa.Table], budget: int) -> list[pa.Table]:
    """The samples of one shard cut to its budget: as many of each step, lowest ranks first."""
    if not samples:
        return []
    table = pa.concat_tables(samples)
    rank = table["rank"].to_numpy()
    steps = np.unique(table["step"].to_numpy()).size
    return [table.filter(pa.array(rank < max(1, -(-budget // max(1, steps)))))]
