"""One stateful object per training loop and rank; see ``rlmon.monitor.monitor``."""

from rlmon.monitor.faults import PLACES
from rlmon.monitor.monitor import Monitor, StrictError
from rlmon.monitor.setting import About, Ranks, Resume

__all__ = ["PLACES", "About", "Monitor", "Ranks", "Resume", "StrictError"]
