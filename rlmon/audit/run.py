"""What a reader makes of a path: where the rows are, what the trainer logged, and what cannot be known.

A reader never judges. It says what a run left behind in one form, so that the engine and the checks never ask
which tool wrote it. Rows are read later, shard by shard, perhaps in another process: a shard is a small picklable
object and the same shards come out whatever the number of processes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

import pyarrow as pa

from rlmon.records import Severity

Piece = TypeVar("Piece")
ROWS: pa.Schema = pa.schema(
    [
        pa.field("step", pa.int64(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("prompt", pa.string()),
        pa.field("completion", pa.string()),
        pa.field("prompt_id", pa.string()),
        pa.field("source", pa.string()),
        pa.field("group", pa.string()),
        pa.field("reward", pa.float64()),
        pa.field("rewards", pa.map_(pa.string(), pa.float64())),
        pa.field("advantage", pa.float64()),
        pa.field("completion_tokens", pa.int64()),
        pa.field("truncated", pa.bool_()),
        pa.field("trained", pa.bool_()),
    ]
)
"""One completion a row, in the order of sampling. All but ``step`` and ``split`` may be null.

``split``: ``train`` or ``eval``. ``prompt``, ``completion``: as text (conversations rendered one message per
paragraph, tool results left out of completions). ``prompt_id``: the source's own identity of a prompt; null: the hash
of the prompt is taken. ``source``: stratum of the data mix; null: prompts are stratified by template where that is
possible. ``group``: the source's own identity of a group of completions of one draw of one prompt, unique within its
step; null: inferred from the order of rows
(``rlmon.audit.grouping``). ``reward``: what the trainer maximised, the weighted sum of ``rewards``.
NaN and infinities are kept in ``reward`` and ``rewards`` (a check counts them); null is a reward that was not given.
``trained``: false where the completion was sampled and scored, but not trained on; null: it was.
"""

Lack = Literal[
    "completions", "prompts", "rewards", "advantages", "groups", "tokens", "truncation", "entropy", "kl", "eval"
]
"""What a check may need and a run may not have."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RowBatch:
    """Some rows of a shard, and what was passed over to get them."""

    rows: pa.Table
    """In the schema ``ROWS`` (columns that are all null may be left out)."""
    duplicates: int = 0
    """Rows that the tool had written again and that were passed over."""
    damaged: int = 0
    """Rows or lines that could not be read."""
    blank: int = 0
    """Of the damaged: rows of a step that have neither a completion nor a reward."""
    blank_from: int | None = None
    """First step of those."""
    went_back: Sequence[tuple[int, int]] = ()
    """Where the steps of a file's training rows go back: the step before, and the step at which they go on."""
    unreadable: Mapping[str, str] = field(default_factory=dict)
    """Files that could not be read (relative to the run), and why."""


def stretches(
    pieces: Iterable[Piece],
    size: Callable[[Piece], float],
    *,
    most: float,
    most_pieces: int = sys.maxsize,
    may_cut: Callable[[Piece, Piece], bool] = lambda _a, _b: True,
) -> Iterator[tuple[Piece, ...]]:
    """Consecutive pieces of ``most`` in ``size`` together, one that is larger alone; cut only where two neighbours
    let it be."""
    group: list[Piece] = []
    held = 0.0
    for piece in pieces:
        full = held + size(piece) > most or len(group) >= most_pieces
        if group and full and may_cut(group[-1], piece):
            yield tuple(group)
            group, held = [], 0.0
        group.append(piece)
        held += size(piece)
    if group:
        yield tuple(group)


class Shard(Protocol):
    """A part of a run's rows. Picklable; no step lies in two shards where the source can tell steps apart."""

    @property
    def bytes(self) -> int:
        """Size on disk, to share out work."""
        ...

    def read(self) -> Iterator[RowBatch]:
        """The rows in order. Raises nothing for damaged content: that is counted in the batches."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Rows:
    """A shard that one call gives: ``Rows(read_table=functools.partial(read_mine, path), bytes=...)``."""

    read_table: Callable[[], pa.Table]
    """The rows in the schema ``ROWS``. Picklable where a run has several shards: a function of a module, or a
    ``functools.partial`` of one."""
    bytes: int = 0

    def read(self) -> Iterator[RowBatch]:
        """Everything at once."""
        yield RowBatch(rows=self.read_table())


@dataclass(frozen=True, kw_only=True, slots=True)
class Remark:
    """One thing that a monitor said while the run was on."""

    detector: str
    severity: Severity
    step: int | None


@dataclass(frozen=True, kw_only=True, slots=True)
class OwnWord:
    """What a run says of itself: the verdict of a monitor that watched it, and what that rests on."""

    verdict: Literal["pass", "warn", "fail"]
    remarks: Sequence[Remark] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class OpenedRun:
    """A run as its reader found it. Making one is cheap: no row has been read."""

    reader: str
    """Name of the reader, for example ``trl``."""
    run_id: str
    path: Path
    shards: Sequence[Shard]
    """In the order of time; empty where the source holds no completions."""
    scalars: Mapping[str, Sequence[tuple[int, float]]] = field(default_factory=dict)
    """What the trainer logged while training, by its own key (``entropy``, ``actor/entropy``): (step, value) in
    order of step; the last value of a step counts. Non-finite values are kept."""
    eval_scalars: Mapping[str, Sequence[tuple[int, float]]] = field(default_factory=dict)
    """The same of evaluations, keys without their ``eval_`` or ``eval/``."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """The trainer's settings, where the source has them, as JSON types."""
    group_size: int | None = None
    """Completions per prompt where the source says so; ``None``: inferred from the rows."""
    reward_weights: Mapping[str, float] = field(default_factory=dict)
    """Weight of each function in ``reward``, where the source says so; 1 for the others."""
    lacks: Mapping[Lack, str] = field(default_factory=dict)
    """What this source does not hold, why, and how to log it next time: the reason of every SKIP."""
    passed_over: Sequence[str] = ()
    """Columns of a file of curves that hold no numbers."""
    own_word: OwnWord | None = None
    """What the run says of itself; ``None`` where nobody watched it, or the source does not hold it."""
    notes: Sequence[str] = ()
    """What a person should know about how the source was read (re-written batches, guesses)."""

    def __repr__(self) -> str:
        holds = f"{len(self.shards)} shards of completions, {len(self.scalars)} curves"
        return f"<OpenedRun {str(self.path)!r}, read as {self.reader}: {holds}>"


class Reader(Protocol):
    """What makes a run of a path: an object, or a module, with a name and two functions (docs/extending.md)."""

    @property
    def NAME(self) -> str:
        """What ``--reader`` takes, and results name."""
        ...

    def recognises(self, path: Path, /) -> bool:
        """Whether a run of this kind lies at ``path``, by names and a few bytes only."""
        ...

    def open_run(self, path: Path, /) -> OpenedRun:
        """The run at ``path``, without reading its rows. Raises ``ReadError`` where there is none."""
        ...
