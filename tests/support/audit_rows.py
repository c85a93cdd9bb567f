"""Runs for the audit that are drawn, not trained: tables of rows, and opened runs that read them from memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pyarrow as pa

from rlmon.audit import engine
from rlmon.audit.result import Audit, Check
from rlmon.audit.run import ROWS, OpenedRun, RowBatch
from rlmon.metrics.success import TOTAL, Success

ABOVE_HALF = Success({TOTAL: 0.5})
WORDS = (
    "apple", "river", "stone", "quiet", "lamp", "seven", "paper", "green", "window", "falls", "music", "north",
    "table", "cloud", "bread", "sings", "silver", "gate", "over", "under", "carry", "small", "house", "wind", "light",
    "field", "horse", "glass", "water", "garden", "road", "slow", "winter", "early", "song", "metal", "door",
    "yellow", "leaf", "bridge", "corner", "story", "morning", "salt", "deep", "rope", "shell", "candle", "market",
    "tower", "forest", "pocket", "ring", "thread", "copper", "flame",
)  # fmt: skip
MODES = ("prose", "boxed", "python", "json", "xml")

Write = Callable[[np.random.Generator, float, int], str]
"""A completion, from the generator, how far the run is (0 at the start, below 1) and the number of the prompt."""
Score = Callable[[np.random.Generator, float, int, str], "float | None"]
"""Its reward."""


def prose(rng: np.random.Generator, answer: int, words: int = 30) -> str:
    """Random words in sentences of ten, then the answer."""
    drawn = [WORDS[at] for at in rng.integers(len(WORDS), size=words).tolist()]
    sentences = [" ".join(drawn[at : at + 10]) for at in range(0, words, 10)]
    return ". ".join(sentences) + f". The answer is {answer}."


def in_mode(mode: str, answer: int, rng: np.random.Generator) -> str:
    """The answer in a format that ``ModeSet.parse`` takes for ``mode``."""
    word, other = (WORDS[at] for at in rng.integers(len(WORDS), size=2).tolist())
    return {
        "prose": lambda: prose(rng, answer),
        "boxed": lambda: f"the {word} and the {other} give \\boxed{{{answer}}}",
        "python": lambda: f"{word} = {answer}\nprint({word})",
        "json": lambda: f'{{"{word}": "{other}", "answer": {answer}}}',
        "xml": lambda: f"<{word}>{other}</{word}> <answer>{answer}</answer>",
    }[mode]()


def mixed(shares: Callable[[float], Sequence[float]] = lambda t: (0.4, 0.2, 0.2, 0.1, 0.1)) -> Write:
    """Completions in ``MODES`` by shares that may change with time; answers spread over a hundred numbers."""

    def write(rng: np.random.Generator, t: float, prompt: int) -> str:
        mode = MODES[int(np.searchsorted(np.cumsum(shares(t)), rng.random(), side="right").clip(max=len(MODES) - 1))]
        # Two thirds of the answers are the prompt's own number, the others near it.
        return in_mode(mode, prompt % 97 + max(0, int(rng.integers(-3, 3))), rng)

    return write


def chance(p: float) -> Score:
    """1 with probability ``p``, whatever was written."""
    return lambda rng, t, prompt, text: float(rng.random() < p)


def draw(
    seed: int,
    *,
    write: Write | None = None,
    score: Score | None = None,
    steps: int = 60,
    prompts: int = 8,
    group: int = 8,
    pool: int | None = None,
    columns: Callable[[np.random.Generator, float, int, str], Mapping[str, Any]] = lambda rng, t, prompt, text: {},
) -> pa.Table:
    """A run in ``ROWS``. ``pool``: prompts of the data set, gone through in epochs; ``None``: no prompt comes twice.
    ``columns`` adds to a row."""
    rng = np.random.default_rng(seed)
    write, score = write or mixed(), score or chance(0.5)
    rows = []
    order: list[int] = []
    for step in range(1, steps + 1):
        t = (step - 1) / steps
        for drawn in range(prompts):
            if pool is None:
                prompt = (step - 1) * prompts + drawn
            else:
                if not order:
                    order = rng.permutation(pool).tolist()
                prompt = order.pop()
            for _ in range(group):
                text = write(rng, t, prompt)
                row = {
                    "step": step,
                    "split": "train",
                    "prompt": f"how much is {prompt} and {prompt + 1}?",
                    "completion": text,
                    "group": f"{step}-{drawn}",
                    "reward": score(rng, t, prompt, text),
                }
                rows.append(row | dict(columns(rng, t, prompt, text)))
    return table(rows)


def table(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """Rows in ``ROWS``; what a row leaves out is null (``split``: train)."""
    full = [dict.fromkeys(ROWS.names) | {"split": "train"} | dict(row) for row in rows]
    for row in full:
        if isinstance(row["rewards"], Mapping):
            row["rewards"] = list(row["rewards"].items())
    return pa.Table.from_pylist(full, schema=ROWS)


@dataclass(frozen=True)
class TableShard:
    """A shard that reads tables from memory, one batch each."""

    tables: tuple[pa.Table, ...]
    duplicates: int = 0
    damaged: int = 0

    @property
    def bytes(self) -> int:
        return sum(part.nbytes for part in self.tables)

    def read(self) -> Iterator[RowBatch]:
        for at, part in enumerate(self.tables):
            first = at == 0
            yield RowBatch(rows=part, duplicates=self.duplicates if first else 0, damaged=self.damaged if first else 0)


def opened(*tables: pa.Table, **facts: Any) -> OpenedRun:
    """The tables as the shards of an opened run; ``facts`` are fields of ``OpenedRun``."""
    given: dict[str, Any] = {"reader": "memory", "run_id": "drawn", "path": Path("drawn")}
    return OpenedRun(**given | {"shards": [TableShard((one,)) for one in tables]} | facts)


def audited(run: OpenedRun | pa.Table, *, baseline: OpenedRun | None = None, **how: Any) -> Audit:
    """``engine.audit`` of a run in memory."""
    run = opened(run) if isinstance(run, pa.Table) else run

    def open_source(path: Path, **_: Any) -> OpenedRun:
        if path.name == "baseline":
            assert baseline is not None
            return baseline
        return run

    with patch.object(engine, "open_source", open_source):
        return engine.audit("drawn", baseline=None if baseline is None else "baseline", **how)


def check(audit: Audit, check_id: str) -> Check:
    """The check of that name."""
    return next(one for one in audit.checks if one.id == check_id)


def told(audit: Audit) -> dict[str, Any]:
    """What ``--format json`` prints, without the timing."""
    return {name: value for name, value in audit.to_json().items() if name != "timing_seconds"}


def spoken(audit: Audit) -> dict[str, str]:
    """Status of the checks that are neither pass nor skip."""
    return {one.id: one.status for one in audit.checks if one.status not in ("pass", "skip")}
