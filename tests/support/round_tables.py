"""Rows of a round, of which only what a test is about is given."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from rlmon.interventions.rows import NUMBERS, RoundTable


def won(reward_N: Any) -> np.ndarray:
    """What a threshold of .5 makes of rewards."""
    values = np.asarray(reward_N, dtype=np.float64)
    return np.where(np.isfinite(values), values > 0.5, np.nan)


def round_table(
    reward_N: Any,
    *,
    group_size: int,
    round: int = 0,
    step: int | None = None,
    modes: Mapping[str, Any] | None = None,
    openers: Any = None,
    sketch: Any = None,
    **columns: Any,
) -> RoundTable:
    """Prompts of ``group_size`` rows, new ones in each round, of one source; a success is a reward above .5; no answer
    can be read. ``columns``: any of the table's, without ``_N``."""
    rows = len(reward_N)
    usual = {
        "prompt": np.arange(rows) // group_size + 1_000_003 * round, "source": np.zeros(rows),
        "answer": np.full(rows, -1), "tokens": np.ones(rows), "numbers": np.ones(rows), "reward": reward_N,
        "success": won(reward_N), "advantage": np.zeros(rows), "logp_base": np.full(rows, np.nan),
        "truncated": np.zeros(rows), "parsed": np.ones(rows),
    }  # fmt: skip
    assert columns.keys() <= usual.keys()
    made: dict[str, Any] = {
        f"{name}_N": np.asarray(values, dtype=np.float64 if name in NUMBERS else np.int64)
        for name, values in (usual | columns).items()
    }
    modes_N: Any = {kind: np.asarray(keys, dtype=np.int64) for kind, keys in (modes or {}).items()}
    return RoundTable(
        round=round, step=round + 1 if step is None else step, group_size=group_size, modes_N=modes_N,
        openers_NK=openers, sketch_NK=sketch, **made,
    )  # fmt: skip
