"""Auditing a run after the fact, whoever wrote it: readers, one engine, checks, one result.

::

    from rlmon.audit import audit
    result = audit("outputs/grpo")
    result.verdict, result.headline, result.checks

Imports neither torch nor TRL; W&B's protobuf only when the path is a W&B run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlmon.audit.comparison import compare
    from rlmon.audit.engine import audit

__all__ = ["audit", "compare"]

_HOMES = {"audit": "rlmon.audit.engine", "compare": "rlmon.audit.comparison"}


def __getattr__(name: str) -> Any:
    # At first use: whoever needs only the result's type should not pay for the engine.
    if name not in __all__:
        raise AttributeError(f"module 'rlmon.audit' has no attribute {name!r}; it has {', '.join(__all__)}.")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)
