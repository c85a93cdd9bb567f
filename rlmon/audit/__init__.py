"""Auditing a run after the fact, whoever wrote it: readers, one engine, checks, one result.

::

    import rlmon
    result = rlmon.audit("outputs/grpo")     # or: from rlmon.audit import audit
    result.verdict, result.headline, result.checks
    result.table()                           # every curve, a row a step

Imports neither torch nor TRL; W&B's protobuf only when the path is a W&B run.
"""

from __future__ import annotations

import sys
from types import ModuleType
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


class _Audits(ModuleType):
    """This package as ``rlmon.audit(path)``."""

    def __call__(self, *arguments: Any, **settings: Any) -> Any:
        """``rlmon.audit.audit``."""
        return self.audit(*arguments, **settings)


sys.modules[__name__].__class__ = _Audits
