"""Rows of tables of completions, each once, on its own side."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

import rlmon.audit.readers.columns as columns
import rlmon.audit.readers.shapes as shapes
from rlmon.audit.readers.messages import rendered
from rlmon.audit.readers.table_layout import Layout, Load, Logged, UnreadableTable, is_count, number_of
from rlmon.audit.run import ROWS, RowBatch
from rlmon.metrics.prompts import prompt_identity


def overlap(before: Sequence[Any], now: Sequence[Any]) -> int:
    """Length of the longest end of ``before`` that is the beginning of ``now`` (Knuth, Morris and Pratt)."""
    failure = [0] * len(now)
    k = 0
    for i in range(1, len(now)):
        while k and now[i] != now[k]:
            k = failure[k - 1]
        k += now[i] == now[k]
        failure[i] = k
    k = 0
    for row in before:
        if k and k == len(now):
            k = failure[k - 1]
        while k and row != now[k]:
            k = failure[k - 1]
        k += bool(now) and row == now[k]
    return k


def read_tables(tables: Sequence[Logged], before: Logged | None, layout: Layout, load: Load) -> Iterator[RowBatch]:
    """One batch a table: the rows that no table before it held."""
    previous: list[Any] | None = None
    after_train = before is not None and before.split == "train"
    if before is not None and not tables[0].incremental:
        try:
            previous = content_of(*load(before), layout)
        except UnreadableTable:
            previous = None
    for number, table in enumerate(tables):
        try:
            names, rows = load(table)
        except UnreadableTable as error:
            previous, after_train = None, False
            yield RowBatch(rows=ROWS.empty_table(), unreadable={table.place: str(error)})
            continue
        content = content_of(names, rows, layout)
        seen = _seen(table, content, previous, after_train, layout)
        guessed = table.split == "train" and table.fresh is not False
        # A table that holds all of the one before, and more, has grown.
        grown = not layout.window and seen == len(previous or ())
        if guessed and not grown and not _could_differ(names, rows[:seen], layout):
            seen = 0
        new = rows[seen:]
        whole = [row for row in new if isinstance(row, list) and len(row) == len(names)]
        asked = 0 if table.split == "train" or not layout.window else len(new) - (layout.eval_rows or len(new))
        parts = ((whole[: max(0, asked)], "train"), (whole[max(0, asked) :], table.split))
        made = [
            _rows(names, part, replace(table, split=split), layout, number)  # type: ignore[arg-type]
            for part, split in parts
            if part
        ]
        yield RowBatch(
            rows=pa.concat_tables(made, promote_options="default") if made else ROWS.empty_table(),
            duplicates=seen,
            damaged=len(new) - len(whole),
        )
        previous, after_train = content, table.split == "train"


@dataclass(frozen=True, kw_only=True, slots=True)
class TableShard:
    """Some consecutive tables of a run."""

    tables: Sequence[Logged]
    before: Logged | None
    """The table before them, whose rows are not new."""
    layout: Layout
    load: Load
    """Picklable."""

    @property
    def bytes(self) -> int:
        return sum(table.bytes for table in self.tables)

    def read(self) -> Iterator[RowBatch]:
        return read_tables(self.tables, self.before, self.layout, self.load)


def content_of(names: list[str], rows: list[Any], layout: Layout) -> list[Any]:
    """What of the rows is the same when TRL logs them again: all but the step, which is that of the log call."""
    if not layout.window or layout.step not in names:
        return rows
    at = names.index(layout.step)
    return [row[:at] + row[at + 1 :] if isinstance(row, list) else row for row in rows]


def _seen(table: Logged, rows: list[Any], previous: list[Any] | None, after_train: bool, layout: Layout) -> int:
    """How many rows at the beginning of a table were in the one before."""
    if previous is None or table.incremental:
        return 0
    if not layout.window:
        return overlap(previous, rows)
    if table.split == "train" and table.fresh and after_train:
        # A generation replaces the deque as a whole, even by equal rows. After an evaluation this cannot be said:
        # the generation may lie before it.
        return 0
    same = overlap(previous, rows)
    if table.split == "eval":
        return 0 if same == len(rows) else same  # an evaluation always appends
    # Training appends a whole deque or nothing: a part that looks the same is chance.
    return same if same == len(rows) else 0


def _could_differ(names: list[str], rows: list[Any], layout: Layout) -> bool:
    """Whether equal rows must be the same ones: sampling again would have shown (``shapes.could_differ``)."""
    at = {
        key: names.index(name)
        for key, name in (("prompt", layout.prompt), ("completion", layout.completion))
        if name in names
    }
    whole = [row for row in rows if isinstance(row, list) and len(row) == len(names)]
    return bool(layout.wide) or shapes.could_differ(
        {"completion": [], **{k: [row[i] for row in whole] for k, i in at.items()}}
    )


def _rows(names: list[str], rows: list[list[Any]], table: Logged, layout: Layout, number: int) -> pa.Table:
    if layout.wide:
        return _wide_rows(names, rows, table, layout)
    at = {name: i for i, name in enumerate(names)}
    count = len(rows)

    def cells(name: str | None) -> list[Any]:
        return [None] * count if name is None or name not in at else [row[at[name]] for row in rows]

    def numbers(name: str | None) -> pa.Array:
        values = [number_of(value) for value in cells(name)]
        # A TRL reward function that returns None for a row leaves NaN: not given, as TRL itself takes it.
        return pa.array(values, pa.float64(), from_pandas=layout.window)

    raw = cells(layout.prompt)
    prompt_texts = _texts(raw)
    prompts = prompt_texts.to_pylist()
    singles = {name: numbers(name) for name in layout.rewards}
    groups = cells(layout.group) if layout.group is not None else _groups(prompts, layout, f"{table.split}-{number}")
    return columns.table(
        {
            "step": pa.array([_step(value, table.step) for value in cells(layout.step)], pa.int64()),
            "split": pa.array([table.split] * count, pa.string()),
            "prompt": prompt_texts,
            "completion": _texts(cells(layout.completion), completion=True),
            "prompt_id": _identities(raw),
            "source": layout.source and columns.strings([columns.label(value) for value in cells(layout.source)]),
            "group": columns.strings([columns.label(value) for value in groups]),
            "reward": numbers(layout.reward) if not singles else columns.weighted_sum(singles, layout.rewards, count),
            "rewards": columns.rewards_map(singles, count),
            "advantage": numbers(layout.advantage),
            "completion_tokens": pa.array(
                [value if is_count(value) else None for value in cells(layout.completion_tokens)], pa.int64()
            ),
            "truncated": pa.array(
                [value if isinstance(value, bool) else None for value in cells(layout.truncated)], pa.bool_()
            ),
        }
    )


def _wide_rows(names: list[str], rows: list[list[Any]], table: Logged, layout: Layout) -> pa.Table:
    """Rows of a table that holds several samples in each of its own."""
    at = {name: i for i, name in enumerate(names)}
    samples = [sample for sample in layout.wide if sample[0] in at and sample[1] in at]
    picked = [(row, sample) for row in rows for sample in samples]
    steps = [_step(row[at[layout.step]] if layout.step in at else None, table.step) for row, _ in picked]
    rewards = [number_of(row[at[reward]]) if reward in at else None for row, (_, _, reward) in picked]
    return columns.table(
        {
            "step": pa.array(steps, pa.int64()),
            "split": pa.array([table.split] * len(picked), pa.string()),
            "prompt": _texts([row[at[prompt]] for row, (prompt, _, _) in picked]),
            "completion": _texts([row[at[completion]] for row, (_, completion, _) in picked], completion=True),
            "reward": pa.array(rewards, pa.float64()),
        }
    )


def _texts(values: list[Any], *, completion: bool = False) -> pa.Array:
    """Prompts or completions as text, also where conversations were written out."""
    texts = columns.strings([rendered(value, completion=completion) for value in values])
    return columns.written_out(texts, completion=completion)


def _identities(prompts: list[Any]) -> pa.Array | None:
    """Hashes of conversations; ``None`` for plain prompts, whose text is hashed later."""
    if all(prompt is None or isinstance(prompt, str) for prompt in prompts):
        return None
    return pa.array([None if prompt is None else prompt_identity(prompt) for prompt in prompts], pa.string())


def _groups(prompts: list[str | None], layout: Layout, prefix: str) -> list[str | None]:
    """Runs of equal prompts, cut where a prompt follows itself; null where the table does not keep whole groups."""
    if not layout.window or layout.group_size is None:
        return [None] * len(prompts)
    names: list[str | None] = []
    group, members = -1, 0
    for i, prompt in enumerate(prompts):
        if i == 0 or prompt != prompts[i - 1] or members == layout.group_size:
            group, members = group + 1, 0
        members += 1
        names.append(f"{prefix}-{group}")
    return names


def _step(value: Any, default: int) -> int:
    if is_count(value):
        return int(value)
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)
    if isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) < 16:
        return int(value)  # TRL before 0.20 wrote words
    return default
