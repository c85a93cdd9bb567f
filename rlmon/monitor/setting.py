"""What a monitor is told of the run, of the other ranks, and of the checkpoint that the run goes on from."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlmon.exchange import Places
from rlmon.records import RunHeader
from rlmon.restored import Restored
from rlmon.statistics import Floats


@dataclass(frozen=True, kw_only=True)
class About:
    """What the log says of the run, and its size; nothing of it is needed. Alike on all ranks."""

    trainer: str = "manual"
    trainer_config: Mapping[str, Any] = field(default_factory=dict)
    total_steps: int | None = None
    """Optimizer steps planned, if known: detectors divide their error rate over them."""
    capabilities: Sequence[Mapping[str, str]] = ()
    packages: Mapping[str, str] = field(default_factory=dict)
    git_commit: str | None = None
    vocabulary: Sequence[str] | None = None
    """Decoded text of every token id: with it, moves are measured too."""
    rows_per_round: int | None = None
    """Completions of one generation over all ranks. Needed only where several ranks sample more than 2,048 a step: then
    groups that are evenly spread over the round are compared, the same on every rank."""
    rounds_per_step: int = 1
    """Generations whose rows one optimizer step can train on."""
    critic: bool = False
    """The loop trains a value function and hands it to ``observe_values``: every record then has ``rlmon/value/*``."""

    def header(self, *, resumed: bool, **run: Any) -> RunHeader:
        """The log's header of a run; ``run`` are the fields that this does not know."""
        return RunHeader(
            run_id=secrets.token_hex(8),
            attempt=0,
            attempt_kind="resumed" if resumed else "fresh",
            created_unix_seconds=time.time(),
            trainer=self.trainer,
            total_steps=self.total_steps,
            trainer_config=dict(self.trainer_config),
            packages=dict(self.packages),
            git_commit=self.git_commit,
            capabilities=tuple(dict(row) for row in self.capabilities),
            **run,
        )

    def places(self, ranks: Ranks, group_size: int) -> Places:
        """Where rows of a step enter the exchange."""
        return Places(
            rank=ranks.rank,
            world_size=ranks.world_size,
            group_size=max(1, group_size),
            rows_per_round=self.rows_per_round,
            rounds_per_step=max(1, self.rounds_per_step),
        )


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """This process among those that train together. Each callable holds a collective."""

    rank: int = 0
    world_size: int = 1
    reduce: Callable[[Floats], Floats] | None = None
    """Sum of a float64 vector over ranks; needed with ``world_size`` over 1."""
    share: Callable[[Any], Any] | None = None
    """Rank 0's value on every rank; needed with ``world_size`` over 1."""
    gather: Callable[[NDArray[np.int64]], NDArray[np.int64]] | None = None
    """An int64 matrix of every rank stacked in rank order; needed with a policy and ``world_size`` over 1."""

    def of_rank_0(self, value: Any) -> Any:
        """Rank 0's value, on every rank."""
        return value if self.share is None else self.share(value)

    def sum(self, vector: Floats) -> Floats:
        """Over all ranks."""
        return vector if self.reduce is None else self.reduce(vector)


@dataclass(frozen=True, kw_only=True)
class Resume:
    """Where the run goes on from."""

    step: int | None = None
    """``global_step`` of the checkpoint; ``None`` for a run that begins, also where it goes on with a log
    (``continues``)."""
    state: Mapping[str, Any] | None = None
    """What ``shared_state`` and ``rank_state`` gave there, under ``shared`` (the same on all ranks) and ``rank``. What
    of it cannot be used begins anew, and log and console say so."""
    restored: Restored = field(default_factory=Restored)
    """What of the checkpoint was found to be unreadable before; alike on all ranks."""
    continues: bool = False
    """What the directory's log shows stays shown, as that of a resumed run does."""
