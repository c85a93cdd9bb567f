"""The columns of some rows of a run that everything is counted from: who was asked what, in which group, for what
reward. What a source does not say is found in its rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

import rlmon.audit.grouping as grouping
from rlmon.audit.aliases import LARGEST
from rlmon.audit.features import UNKNOWN, Bools, Features, Floats, Ints, Reader, codes, column, floats, key_of_each
from rlmon.metrics.formats import ModeSet
from rlmon.metrics.prompts import template_name
from rlmon.metrics.success import TOTAL, Success
from rlmon.statistics import hashed, place_in_run

LISTED_PROMPT_CHARACTERS = 240
"""Of a prompt in the list of prompts, which may have many."""
GROUPED = ("named", "inferred", "ambiguous")
"""How a group is known: the source names it; from the order of its rows; from that, and another reading is possible
(``rlmon.audit.grouping``). Indices of it are the column ``grouped`` of the groups."""
MAX_PROMPTS = 4_096


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a worker needs to know beside its shard."""

    modes: ModeSet
    templates: frozenset[str]
    """Prompt templates that are strata of their own; empty: all prompts are one stratum where no source is given."""
    group_size: int | None
    sample_rows: int
    """Rows of a shard whose text is kept."""
    success: Success
    """What counts as a success in this run."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Rows:
    """Columns of length B."""

    table: pa.Table
    read: Features
    step: Ints
    evaluation: Bools
    prompt: Ints
    """A key, equal for equal prompts."""
    prompts: Mapping[int, tuple[str, str | None]]
    """Identity and text of the prompts by key, those with the smallest keys."""
    source: Ints
    """Index into ``sources``."""
    sources: Sequence[str]
    group: Ints
    """A code from 0, equal inside a group."""
    grouped: Ints
    """How it is known, by the indices of ``GROUPED``."""
    reward: Floats
    """NaN where missing or not finite."""
    missing: Bools
    non_finite: Floats
    """How many values were not finite."""
    success: Floats
    """1.0 for a success, 0.0 for none, NaN where that is not known."""

    @classmethod
    def of(cls, table: pa.Table, settings: Settings) -> Rows:
        """The columns of a table of rows."""
        step = np.asarray(table["step"].to_numpy(), dtype=np.int64)
        evaluation = np.asarray(pc.equal(table["split"], "eval").to_numpy(), dtype=bool)
        prompt, prompts = _prompts(table, step)
        source, sources = _sources(table, settings)
        group, grouped = _groups(table, step, evaluation, prompt, settings.group_size)
        reward, missing, non_finite = _rewards(table)
        return cls(
            table=table,
            read=Reader(settings.modes).features(table),
            step=step,
            evaluation=evaluation,
            prompt=prompt,
            prompts=prompts,
            source=source,
            sources=sources,
            group=group,
            grouped=grouped,
            reward=reward,
            missing=missing,
            non_finite=non_finite,
            success=np.where(np.isfinite(reward), success_of(table, settings.success), np.nan),
        )


def _prompts(rows: pa.Table, step: Ints) -> tuple[Ints, dict[int, tuple[str, str | None]]]:
    """A key per row, equal for equal prompts, and identity and text by key."""
    names: dict[int, tuple[str, str | None]] = {}
    identity, text = column(rows, "prompt_id"), column(rows, "prompt")
    if identity is None and text is None:
        return _keys_without_prompts(rows, step), names
    given = text if identity is None else identity if text is None else pc.coalesce(identity, text)
    code, values = codes(given)
    key = key_of_each([str(value) for value in values])
    first = np.full(len(values), -1, dtype=np.int64)
    known = code >= 0
    first[code[known][::-1]] = np.flatnonzero(known)[::-1]
    smallest = np.argsort(key, kind="stable")[:MAX_PROMPTS]
    at = pa.array(np.maximum(first[smallest], 0))
    labels, shown = (
        [None] * smallest.size if found is None else found.take(at).to_pylist() for found in (identity, text)
    )
    for place, label, cut in zip(key[smallest].tolist(), labels, shown, strict=True):
        named = f"{place:016x}" if label is None else str(label)
        names[place] = named[:200], None if cut is None else cut[:LISTED_PROMPT_CHARACTERS]
    return np.append(key, UNKNOWN)[code], names


def _keys_without_prompts(rows: pa.Table, step: Ints) -> Ints:
    """Rows of one group of a step have a key in common; without groups every row has its own."""
    group = column(rows, "group")
    if group is None:
        own = place_in_run(step)
    else:
        code, values = codes(group)
        own = np.append(key_of_each([str(value) for value in values]), UNKNOWN)[code]
    mixed = hashed(hashed(step.astype(np.uint64), 7) + own.astype(np.uint64), 8)
    return np.asarray(mixed >> np.uint64(1), dtype=np.int64)


def _sources(rows: pa.Table, settings: Settings) -> tuple[Ints, list[str]]:
    given = column(rows, "source")
    if given is not None:
        code, values = codes(pc.fill_null(given, "unnamed"))
        return code, [str(value)[:80] for value in values]
    text = column(rows, "prompt")
    if text is None or not settings.templates:
        return np.zeros(rows.num_rows, dtype=np.int64), ["all"]
    code, values = codes(text)
    names: dict[str, int] = {}
    of_value = []
    for value in values:
        name = template_name(value)
        of_value.append(names.setdefault(name if name in settings.templates else "other", len(names)))
    other = names.setdefault("other", len(names))
    return np.array([*of_value, other], dtype=np.int64)[code], list(names)


def _groups(rows: pa.Table, step: Ints, evaluation: Bools, prompt: Ints, group_size: int | None) -> tuple[Ints, Ints]:
    """A code from 0 per row, equal inside a group, and how it is known, by the indices of ``GROUPED``."""
    given = column(rows, "group")
    if given is not None:
        own, _ = codes(given)
        return grouping.named(step, evaluation, own, prompt), np.where(own >= 0, 0, 1)
    code, ambiguous = grouping.inferred(step, evaluation, prompt, group_size)
    return code, np.where(ambiguous, 2, 1)


def _rewards(rows: pa.Table) -> tuple[Floats, Bools, Floats]:
    """Reward (NaN where missing or not finite), whether it is missing, and how many values were not finite."""
    reward = floats(rows, "reward")
    found = column(rows, "reward")
    missing = np.ones(reward.size, dtype=bool) if found is None else np.asarray(pc.is_null(found).to_numpy())
    finite = np.abs(reward) <= LARGEST
    bad = (~finite & ~missing).astype(np.float64)
    parts = column(rows, "rewards")
    if parts is not None:
        array = parts.combine_chunks()
        array = array if isinstance(array, pa.MapArray) else array.chunk(0)
        items = np.asarray(pc.fill_null(array.items, 0.0).to_numpy(zero_copy_only=False), dtype=np.float64)
        offsets = np.asarray(array.offsets.to_numpy())
        wrong = np.concatenate([[0], np.cumsum(~(np.abs(items) <= LARGEST))])
        bad = np.maximum(bad, (wrong[offsets[1:]] - wrong[offsets[:-1]]).astype(np.float64))
    return np.where(finite, reward, np.nan), missing, bad


def success_of(rows: pa.Table, success: Success) -> Floats:
    """1.0 for a success, 0.0 for none, NaN where that is not known, per row."""
    parts = rewards_by_function(rows, [name for name in success.above if name != TOTAL])
    return success.of(floats(rows, "reward"), parts, rows.num_rows)


def rewards_by_function(rows: pa.Table, names: Sequence[str] | None = None) -> dict[str, Floats]:
    """The column ``rewards`` as a column per function, NaN where it did not score; all functions by default."""
    found = column(rows, "rewards")
    if found is None or not rows.num_rows:
        return {}
    array = found.combine_chunks()
    array = array if isinstance(array, pa.MapArray) else array.chunk(0)
    offsets = np.asarray(array.offsets.to_numpy())
    keys = array.keys.slice(offsets[0], offsets[-1] - offsets[0])
    items = array.items.slice(offsets[0], offsets[-1] - offsets[0])
    values = np.asarray(pc.cast(items, pa.float64()).to_numpy(zero_copy_only=False), dtype=np.float64)
    row = np.repeat(np.arange(rows.num_rows), np.diff(offsets))
    wanted = [name for name in pc.unique(keys).to_pylist() if name is not None] if names is None else names
    columns: dict[str, Floats] = {}
    for name in wanted:
        mine = np.asarray(pc.fill_null(pc.equal(keys, name), False).to_numpy(zero_copy_only=False), dtype=bool)
        columns[name] = np.full(rows.num_rows, np.nan)
        columns[name][row[mine]] = values[mine]
    return columns
