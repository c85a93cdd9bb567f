"""Tables of completions that a trainer handed to its tracker, as rows: what W&B and trackio have in common.

TRL logs its last generation batch again and again: the deque behind its table is shared by training and evaluation
and never cleared. A tracker keeps every one of these tables, and beside them the metrics of the same log call, which
say whether anything was generated since the table before. So each row is counted once, on its own side.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

import rlmon.audit.readers.columns as columns
import rlmon.audit.readers.shapes as shapes
from rlmon.audit.run import ROWS, Lack, RowBatch
from rlmon.errors import ReadError
from rlmon.metrics.prompts import SOURCE_COLUMNS, prompt_identity

MAX_TABLE_BYTES = 256 << 20
"""A larger table is not read: it is parsed as a whole."""
SHARD_BYTES = 8 << 20
SHARD_TABLES = 64

Split = Literal["train", "eval"]

EVAL_PREFIXES = ("eval/", "eval_", "val/", "val-", "test/")
NO_TABLE = (
    "no table of completions was logged; set log_completions=True (TRL) or trainer.log_val_generations (verl), or "
    "watch with RLMon(trainer)"
)

_PROMPTS = ("prompt", "input", "question", "query")
_COMPLETIONS = ("completion", "response", "output", "answer", "generation", "text")
_REWARDS = ("reward", "score")
_STEPS = ("step", "global_step", "train/global_step")
_NOT_REWARDS = {"advantage", "step", "round", "completion_tokens", "prompt_tokens"}
_CONSTANTS = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


@dataclass(frozen=True, kw_only=True, slots=True)
class Logged:
    """One table as the tracker has it."""

    place: str
    """Where its cells are: a path in the run, or a row of the data base."""
    step: int
    split: Split
    """Side of the log call."""
    bytes: int
    rows: int | None = None
    """As the tracker counts them, where it does."""
    fresh: bool | None = None
    """Whether completions were generated since the last train table; ``None``: not known."""
    incremental: bool = False
    """Holds the rows since the table before, by the tracker's word."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """Which column means what."""

    step: str | None = None
    prompt: str | None = None
    completion: str | None = None
    reward: str | None = None
    """Column of the total, where there is one."""
    rewards: Mapping[str, float]
    """Columns of single rewards and their weights."""
    advantage: str | None = None
    source: str | None = None
    group: str | None = None
    truncated: str | None = None
    completion_tokens: str | None = None
    wide: Sequence[tuple[str, str, str | None]] = ()
    """(prompt, completion, reward) of each sample, where a row of the table holds several."""
    window: bool = False
    """The table is TRL's deque of the last completions."""
    group_size: int | None = None
    eval_rows: int | None = None
    """Rows that one evaluation appends to TRL's deque."""


Cells = tuple[list[str], list[list[Any]]]
Load = Callable[[Logged], Cells]


class UnreadableTable(Exception):
    """One table cannot be read; the run can."""


def layout_of(
    names: Sequence[str], sample: Sequence[Any], config: Mapping[str, Any], rewards: set[str]
) -> Layout | None:
    """What the names of a table mean, ``None`` where they hold no completions.

    ``sample``: a row. ``rewards``: names of reward functions, where the trainer's metrics name them.
    """
    wide = []
    for i in range(1, len(names)):
        if f"input_{i}" not in names or f"output_{i}" not in names:
            break
        wide.append((f"input_{i}", f"output_{i}", f"score_{i}" if f"score_{i}" in names else None))
    step = _first(_STEPS, names)
    if wide:
        return Layout(step=step, rewards={}, wide=tuple(wide))
    prompt, completion = _first(_PROMPTS, names), _first(_COMPLETIONS, names)
    reward = _first(_REWARDS, names)
    if completion is None or (prompt is None and reward is None):
        return None
    window = prompt == "prompt" and completion == "completion" and "advantage" in names and "mode" not in names
    single: dict[str, float] = {}
    if window:
        given = [name for name in names if name in rewards and name not in (prompt, completion, *_STEPS)]
        if not given:
            values = dict(zip(names, sample, strict=False))
            given = [name for name in names if _is_number(values.get(name)) and name not in _NOT_REWARDS]
        single = dict(zip(given, reward_weights(config, len(given)), strict=True))
        reward = None if single else reward
    return Layout(
        step=step,
        prompt=prompt,
        completion=completion,
        reward=reward,
        rewards=single,
        advantage=_first(("advantage",), names),
        source=_first(SOURCE_COLUMNS if window else ("source", *SOURCE_COLUMNS), names),
        group=_first(("group_id", "group"), names),
        truncated=_first(("truncated",), names),
        completion_tokens=_first(("completion_tokens",), names),
        window=window,
        group_size=group_size(config),
    )


def group_size(config: Mapping[str, Any]) -> int | None:
    """Completions per prompt as TRL, verl or OpenRLHF name it in their settings."""
    for path in ("num_generations", "actor_rollout_ref.rollout.n", "n_samples_per_prompt", "rlmon.group_size"):
        value: Any = config.get(path)
        if value is None:
            value = config
            for name in path.split("."):
                value = value.get(name) if isinstance(value, Mapping) else None
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    return None


def reward_weights(config: Mapping[str, Any], count: int) -> list[float]:
    """TRL's ``reward_weights``; ones where they are not set or do not fit."""
    weights = config.get("reward_weights")
    if isinstance(weights, list) and len(weights) == count and all(_is_number(weight) for weight in weights):
        return [float(weight) for weight in weights]
    return [1.0] * count


def parse_cells(content: bytes | str) -> Cells:
    """Columns and rows of a ``.table.json``. Raises ``UnreadableTable`` where it is none."""
    table = parse_json(content)
    if (
        not isinstance(table, dict)
        or not isinstance(table.get("columns"), list)
        or not isinstance(table.get("data"), list)
    ):
        raise UnreadableTable("not a table: no columns and data in it")
    return [str(column) for column in table["columns"]], table["data"]


def parse_json(content: bytes | str) -> Any:
    """JSON with NaN and infinities. Raises ``UnreadableTable`` where it is none."""
    try:
        text = content if isinstance(content, str) else content.decode("utf-8", "replace")
        # One object for every NaN, so that equal rows compare as equal.
        return columns.loads(text, parse_constant=_CONSTANTS.__getitem__)
    except (ValueError, RecursionError, MemoryError, ReadError) as error:
        raise UnreadableTable(f"damaged JSON: {error or type(error).__name__}") from error


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
            before, now = (_content(*load(table), layout) for table in pair)
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
    group: list[Logged] = []
    size = 0
    for table in tables:
        full = size >= SHARD_BYTES or len(group) >= SHARD_TABLES
        if group and full and table.step != group[-1].step:
            yield before, tuple(group)
            before, group, size = group[-1], [], 0
        group.append(table)
        size += table.bytes
    if group:
        yield before, tuple(group)


def read_tables(tables: Sequence[Logged], before: Logged | None, layout: Layout, load: Load) -> Iterator[RowBatch]:
    """One batch a table: the rows that no table before it held."""
    previous: list[Any] | None = None
    after_train = before is not None and before.split == "train"
    if before is not None and not tables[0].incremental:
        try:
            previous = _content(*load(before), layout)
        except UnreadableTable:
            previous = None
    for number, table in enumerate(tables):
        try:
            names, rows = load(table)
        except UnreadableTable as error:
            previous, after_train = None, False
            yield RowBatch(rows=ROWS.empty_table(), unreadable={table.place: str(error)})
            continue
        content = _content(names, rows, layout)
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
    """The layout of the first tables that can be read."""
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
    """What the tables do not say of a completion."""
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


def _content(names: list[str], rows: list[Any], layout: Layout) -> list[Any]:
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
    """Rows of one table in the schema ``ROWS``."""
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
    texts = columns.strings([columns.rendered(value, completion=completion) for value in values])
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


def number_of(value: Any) -> float | None:
    """A number, also when it came as the word ``NaN`` or ``Infinity``; ``None`` for anything else."""
    if isinstance(value, str):
        return _CONSTANTS.get(value)
    if isinstance(value, bool):
        return float(value)
    if not isinstance(value, (int, float)):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def is_count(value: Any) -> bool:
    """A whole number that fits a column."""
    return isinstance(value, int) and not isinstance(value, bool) and -(2**63) <= value < 2**63


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _step(value: Any, default: int) -> int:
    if is_count(value):
        return int(value)
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)
    if isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) < 16:
        return int(value)  # TRL before 0.20 wrote words
    return default


def _first(wanted: Iterable[str], names: Sequence[str]) -> str | None:
    return next((name for name in wanted if name in names), None)
