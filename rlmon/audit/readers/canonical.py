"""Columns of any file as the columns of ``ROWS``, and which of the rows can be judged."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

import rlmon.audit.readers.columns as columns
import rlmon.audit.readers.messages as messages
import rlmon.audit.readers.shapes as shapes
from rlmon.audit.readers.layout import PART, STEP_LIMIT, Part, Spec
from rlmon.audit.readers.parsing import single
from rlmon.audit.run import RowBatch

EVAL_WORDS = frozenset({"eval", "evaluation", "val", "valid", "validation", "test", "dev"})
CUT_WORDS = frozenset({"length", "max_tokens", "max_length", "truncated", "max_new_tokens", "true", "1"})


def column_of(name: str, values: Sequence[Any]) -> pa.Array:
    """A canonical column of Python values."""
    if name in ("prompt", "completion"):
        texts = columns.strings([messages.rendered(value, completion=name == "completion") for value in values])
        return columns.written_out(texts, completion=name == "completion")
    if name == "step":
        return pa.array([columns.step_number(single(value)) for value in values], pa.float64())
    if name in ("reward", "advantage") or name.startswith(PART):
        return pa.array([columns.number(single(value)) for value in values], pa.float64())
    if name == "tool_calls":
        return columns.strings([messages.rendered_calls(value) for value in values])
    if name == "completion_tokens":
        return pa.array([len(v) if isinstance(v, list) else columns.number(v) for v in values], pa.float64())
    return columns.strings([_word(value) for value in values])


def _word(value: Any) -> str | None:
    return str(value).lower() if isinstance(value, bool) else columns.label(value)


def typed(name: str, column: pa.Array) -> pa.Array:
    """A canonical column of an Arrow column of any type."""
    if name in ("prompt", "completion"):
        return columns.text_column(column, completion=name == "completion")
    if pa.types.is_nested(column.type):
        return column_of(name, column.to_pylist())
    if name == "step":
        return columns.number_column(column, columns.step_number)
    if name in ("reward", "advantage", "completion_tokens") or name.startswith(PART):
        return columns.number_column(column)
    if name == "tool_calls":
        return column_of(name, column.to_pylist())
    if pa.types.is_boolean(column.type):
        return column.cast(pa.string())
    return columns.label_column(column)


def rows_of(
    made: Mapping[str, pa.Array], count: int, part: Part, spec: Spec, held_out: Sequence[bool] | None, damaged: int
) -> RowBatch:
    """The rows that have a step and anything to look at; the others are counted."""
    if not count:
        return RowBatch(rows=no_rows(), damaged=damaged)
    if part.step is not None:
        step = np.full(count, float(part.step))
    elif "step" in spec.columns:
        step = made["step"].to_numpy(zero_copy_only=False) if "step" in made else np.full(count, np.nan)
    else:
        step = np.zeros(count)
    with np.errstate(invalid="ignore"):
        good = np.isfinite(step) & (step >= 0) & (step < STEP_LIMIT) & (np.floor(step) == step)
    content = [
        made[name].is_valid().to_numpy(zero_copy_only=False) for name in ("completion", "reward") if name in made
    ]
    blank = good & ~np.logical_or.reduce(content) if content else np.zeros(count, bool)
    good &= ~blank
    of_eval = _held_out(made.get("split"), part, spec, held_out, count)
    parts = {path: made[PART + path] for path in spec.rewards if PART + path in made}
    if parts and "reward" not in made:
        made = {**made, "reward": columns.weighted_sum(parts, spec.rewards, count)}
    rows: dict[str, pa.Array | None] = {
        "step": pa.array(np.where(good, step, 0).astype(np.int64)),
        "split": pc.if_else(pa.array(of_eval), "eval", "train"),
        "reward": made.get("reward"),
        "rewards": columns.rewards_map({shapes.short(path): part for path, part in parts.items()}, count)
        if parts
        else None,
        "advantage": made.get("advantage"),
        "prompt": made.get("prompt"),
        "completion": _with_calls(made.get("completion"), made.get("tool_calls")),
        "prompt_id": made.get("prompt_id"),
        "source": made.get("source"),
        "group": _group(made.get("group"), made.get("prompt"), spec),
        "truncated": _cut(made.get("truncated")),
        "completion_tokens": _counts(made.get("completion_tokens")),
    }
    table = columns.table({name: column for name, column in rows.items() if column is not None})
    lost = int(count - good.sum())
    return RowBatch(
        rows=table.filter(pa.array(good)) if lost else table,
        damaged=damaged + lost,
        blank=int(blank.sum()),
        blank_from=int(step[blank].min()) if blank.any() else None,
    )


def _with_calls(completion: pa.Array | None, calls: pa.Array | None) -> pa.Array | None:
    """What was written with the tool calls that stand beside it, where it does not hold them itself."""
    if completion is None or calls is None:
        return completion
    apart = pc.and_(calls.is_valid(), pc.invert(pc.fill_null(pc.match_substring(completion, "<tool_call>"), False)))
    both = pc.binary_join_element_wise(completion, calls, "\n", null_handling="skip")
    return pc.if_else(apart, pc.utf8_ltrim(both, characters="\n"), completion)


def no_rows() -> pa.Table:
    return columns.table({"step": pa.array([], pa.int64()), "split": pa.array([], pa.string())})


def _held_out(
    split: pa.Array | None, part: Part, spec: Spec, held_out: Sequence[bool] | None, count: int
) -> np.ndarray[Any, np.dtype[np.bool_]]:
    if spec.eval_from_name and re.search(spec.eval_from_name, part.name):
        return np.ones(count, bool)
    of_eval = np.zeros(count, bool) if held_out is None else np.array(held_out, bool)
    if split is not None:
        words = pc.fill_null(pc.utf8_lower(split), "")
        first = pc.list_element(pc.split_pattern_regex(words, r"[^a-z]"), 0)
        of_eval |= pc.is_in(first, pa.array(sorted(EVAL_WORDS))).to_numpy(zero_copy_only=False)
    return of_eval


def _group(group: pa.Array | None, prompt: pa.Array | None, spec: Spec) -> pa.Array | None:
    if group is None and prompt is not None and spec.group_by_prompt:
        return columns.prompt_names(prompt)
    if group is None or not spec.group_rsplit:
        return group
    return pc.list_element(pc.split_pattern(group, spec.group_rsplit, max_splits=2, reverse=True), 0)


def _cut(reason: pa.Array | None) -> pa.Array | None:
    """Whether a completion was cut, from a truth value or from why it stopped."""
    if reason is None:
        return None
    cut = pc.is_in(pc.utf8_lower(reason), pa.array(sorted(CUT_WORDS)))
    return pc.if_else(reason.is_valid(), cut, pa.scalar(None, pa.bool_()))


def _counts(tokens: pa.Array | None) -> pa.Array | None:
    if tokens is None:
        return None
    values = pc.fill_null(tokens, -1.0).to_numpy(zero_copy_only=False)
    with np.errstate(invalid="ignore"):
        good = np.isfinite(values) & (values >= 0) & (values < STEP_LIMIT)
    return pa.array(np.where(good, values, 0).astype(np.int64), mask=~good)
