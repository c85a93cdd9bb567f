"""The header of a run that only its settings matter of."""

from __future__ import annotations

from typing import Any

from rlmon.config import RLMonConfig
from rlmon.records import RunHeader


def made_header(**settings: Any) -> RunHeader:
    """``made_header(rlmon_table_every=2)`` is complete, of a run whose settings have that one changed."""
    return RunHeader(
        run_id="a-run",
        attempt=0,
        attempt_kind="fresh",
        created_unix_seconds=0.0,
        trainer="manual",
        group_size=8,
        world_size=1,
        total_steps=100,
        config=RLMonConfig(**settings).to_dict(),
        trainer_config={},
        detectors={},
        packages={},
        git_commit=None,
        capabilities=(),
    )
