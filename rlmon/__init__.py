"""rlmon: see which outputs your RL run is killing, while there is still time to stop it.

::

    from rlmon.trl import RLMon          # drop-in for TRL's GRPOTrainer and RLOOTrainer
    RLMon(trainer)

    import rlmon
    rlmon.audit("outputs/grpo")          # what happened to any run, whoever logged it
    run = rlmon.open_run("out/rlmon")    # read a run log
    rlmon.blend(base, trained, .3, out)  # weights between a base and what was trained from it
    rlmon.Monitor                        # any other training loop

Importing this package is light: the names below are loaded at first use, and TRL and torch only by
``rlmon.trl``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlmon.audit import audit
    from rlmon.blending import blend
    from rlmon.config import RLMonConfig
    from rlmon.monitor import Monitor
    from rlmon.runlog import open_run

__version__ = "0.1.0"

__all__ = ["Monitor", "RLMonConfig", "__version__", "audit", "blend", "open_run"]

_HOMES = {
    "Monitor": "rlmon.monitor",
    "RLMonConfig": "rlmon.config",
    "audit": "rlmon.audit",
    "blend": "rlmon.blending",
    "open_run": "rlmon.runlog",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'rlmon' has no attribute {name!r}; it has {', '.join(sorted(_HOMES))}.")
    import importlib

    home = importlib.import_module(_HOMES[name])
    # The package rlmon.audit is what it is named after: calling it audits.
    value = home if name == "audit" else getattr(home, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
