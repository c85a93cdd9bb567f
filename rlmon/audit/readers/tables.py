"""Tables of completions that a trainer handed to its tracker, as rows: what W&B and trackio have in common.

TRL logs its last generation batch again and again: the deque behind its table is shared by training and evaluation
and never cleared. A tracker keeps every one of these tables, and beside them the metrics of the same log call, which
say whether anything was generated since the table before. So each row is counted once, on its own side.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rlmon.audit.readers.table_layout import Layout, Load, Logged, Split, UnreadableTable, layout_of
from rlmon.audit.readers.table_rows import TableShard, content_of, overlap
from rlmon.audit.run import Lack, stretches

SHARD_BYTES = 8 << 20
SHARD_TABLES = 64


EVAL_PREFIXES = ("eval/", "eval_", "val/", "val-", "test/")
NO_TABLE = (
    "no table of completions was logged; set log_completions=True (TRL) or trainer.log_val_generations (verl), or "
    "watch with RLMon(trainer)"
)


def path_inside(root: Path, relative: str) -> Path | None:
    """``root/relative`` as a regular file; ``None`` where that would leave ``root`` or follow a symbolic link."""
    if not relative or "\0" in relative or Path(relative).is_absolute():
        return None
    try:
        base = root.resolve(strict=True)
        wanted = base / relative
        return wanted if wanted.resolve(strict=True) == wanted and wanted.is_file() else None
    except (OSError, RuntimeError, ValueError):
        return None


def without_superseded(tables: Iterable[Logged]) -> tuple[list[Logged], int]:
    """The tables of the newest line of training, and how many were logged before a restart went back behind them."""
    kept: list[Logged] = []
    dropped = 0
    for table in tables:
        if kept and kept[-1].step > table.step:
            while kept and kept[-1].step >= table.step:
                kept.pop()
                dropped += 1
        kept.append(table)
    return kept, dropped


def eval_rows(tables: Sequence[Logged], layout: Layout, load: Load) -> int | None:
    """Rows that one evaluation appends to TRL's deque, from at most four tables; ``None`` where they do not tell.

    Between the train table and the eval table of the same step only evaluation appends. Without such a pair, two
    evaluations ask the same prompts in the same order at the end of their tables.
    """
    pairs = itertools.pairwise(tables)
    pair = next(((a, b) for a, b in pairs if a.step == b.step and a.split == "train" and b.split == "eval"), None)
    try:
        if pair is not None:
            before, now = (content_of(*load(table), layout) for table in pair)
            return len(now) - overlap(before, now)
        evals = [table for table in tables if table.split == "eval"][:2]
        if len(evals) < 2 or layout.prompt is None:
            return None
        prompts = []
        for table in evals:
            names, rows = load(table)
            at = names.index(layout.prompt)
            prompts.append([row[at] for row in reversed(rows)])
    except (UnreadableTable, ValueError, IndexError, TypeError):
        return None
    same = 0
    for one, other in zip(*prompts, strict=False):
        if one != other:
            break
        same += 1
    return same or None


def shard_tables(tables: Sequence[Logged]) -> Iterator[tuple[Logged | None, tuple[Logged, ...]]]:
    """Groups of about ``SHARD_BYTES``, cut where the step changes, each with the table before it."""
    before: Logged | None = None
    for group in stretches(
        tables,
        lambda table: table.bytes,
        most=SHARD_BYTES,
        most_pieces=SHARD_TABLES,
        may_cut=lambda one, next_one: one.step != next_one.step,
    ):
        yield before, group
        before = group[-1]


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """Which tables are read, and what they do not say."""

    shards: Sequence[TableShard]
    lacks: Mapping[Lack, str]
    notes: Sequence[str]


def plan(logged: Mapping[str, Sequence[Logged]], load: Load, config: Mapping[str, Any], rewards: set[str]) -> Plan:
    """TRL's completions, else the largest table of training and the largest of evaluation.

    Other tables hold the same completions again. ``rewards``: names of reward functions.
    """
    found: list[tuple[bool, int, str, Layout, list[Logged]]] = []
    notes: list[str] = []
    for key, tables in logged.items():
        layout = _first_layout(tables, load, config, rewards)
        if layout is None:
            continue
        side: Split = "eval" if key.startswith(EVAL_PREFIXES) else "train"
        kept, superseded = without_superseded(
            tables if layout.window else [replace(table, split=side) for table in tables]
        )
        if superseded:
            notes.append(f"table {key!r}: {superseded} tables of steps that a restart made again were passed over")
        if _grows(kept, layout):
            kept = kept[-1:]
            notes.append(f"table {key!r} was logged again as a whole each time: the last one was read")
        found.append((layout.window, sum(table.bytes for table in kept), key, layout, kept))
    found.sort(key=lambda item: item[:3], reverse=True)
    shards: list[TableShard] = []
    layouts: list[Layout] = []
    sides: set[str] = set()
    for window, _, key, layout, tables in found:
        mine = {"train", "eval"} if window else {tables[0].split}
        if mine & sides:
            notes.append(f"table {key!r} was not read: it holds completions of the same run once more")
            continue
        sides |= mine
        if window:
            layout = replace(layout, eval_rows=eval_rows(tables, layout, load))
            notes += _window_notes(tables, layout, config)
        layouts.append(layout)
        shards += [
            TableShard(tables=part, before=before, layout=layout, load=load) for before, part in shard_tables(tables)
        ]
    return Plan(shards=shards, lacks=_lacks(layouts, config), notes=notes)


def _window_notes(tables: Sequence[Logged], layout: Layout, config: Mapping[str, Any]) -> Iterator[str]:
    """What TRL's deque has lost, and what had to be guessed."""
    every = config.get("logging_steps")
    if isinstance(every, (int, float)) and every > 1:
        yield (
            f"logging_steps={every:g}: TRL kept only the last generation batch before each log; set logging_steps=1 to "
            "keep all of them"
        )
    if layout.eval_rows is None and any(table.split == "eval" for table in tables):
        yield (
            "how many rows of an evaluation's table are the evaluation's could not be told: all that are new are taken "
            "as held out"
        )


def _first_layout(tables: Sequence[Logged], load: Load, config: Mapping[str, Any], rewards: set[str]) -> Layout | None:
    for table in tables[:3]:
        try:
            names, rows = load(table)
        except UnreadableTable:
            continue
        sample = next((row for row in rows if isinstance(row, list)), [])
        return layout_of(names, sample, config, rewards)
    return None


def _grows(tables: Sequence[Logged], layout: Layout) -> bool:
    """Whether each table holds all rows of the one before and tells their steps, so that the last one is enough."""
    counts = [table.rows for table in tables]
    if layout.window or layout.step is None or len(tables) < 2 or any(table.incremental for table in tables):
        return False
    return all(a is not None and b is not None and a < b for a, b in itertools.pairwise(counts)) and bool(
        tables[-1].bytes
    )


def _lacks(layouts: Sequence[Layout], config: Mapping[str, Any]) -> dict[Lack, str]:
    lacks: dict[Lack, str] = {}
    if not layouts:
        return no_completions(NO_TABLE)
    if not any(layout.prompt or layout.wide for layout in layouts):
        lacks["prompts"] = "the table holds prompt and completion in one text"
        lacks["groups"] = "without prompts the groups of completions are not known"
    elif config.get("log_unique_prompts") is True:
        lacks["groups"] = "one completion of each prompt was logged; set log_unique_prompts=False"
    if not any(layout.reward or layout.rewards or layout.wide for layout in layouts):
        lacks["rewards"] = "the table has no column of rewards"
    if not any(layout.advantage for layout in layouts):
        lacks["advantages"] = "the table has no advantages; TRL's completions table and RLMon(trainer) log them"
    if not any(layout.completion_tokens for layout in layouts):
        lacks["tokens"] = "the table has no token counts; RLMon(trainer) logs them with every completion"
    if not any(layout.truncated for layout in layouts):
        lacks["truncation"] = (
            "the table does not say which completions were cut off; RLMon(trainer) logs it, and TRL's mean is "
            "completions/clipped_ratio"
        )
    return lacks


def no_completions(reason: str) -> dict[Lack, str]:
    """Everything that is known of completions only."""
    parts: tuple[Lack, ...] = (
        "completions", "prompts", "rewards", "advantages", "groups", "tokens", "truncation",
    )  # fmt: skip
    return dict.fromkeys(parts, reason)
