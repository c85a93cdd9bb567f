"""Tables of completions as a tracker keeps them, and what their columns mean."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rlmon.audit.readers.parsing import loads
from rlmon.errors import ReadError
from rlmon.metrics.prompts import SOURCE_COLUMNS

Split = Literal["train", "eval"]
MAX_TABLE_BYTES = 256 << 20
"""A larger table is not read: it is parsed as a whole."""
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
        return loads(text, parse_constant=_CONSTANTS.__getitem__)
    except (ValueError, RecursionError, MemoryError, ReadError) as error:
        raise UnreadableTable(f"damaged JSON: {error or type(error).__name__}") from error


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


def _first(wanted: Iterable[str], names: Sequence[str]) -> str | None:
    return next((name for name in wanted if name in names), None)
