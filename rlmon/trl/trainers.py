"""TRL's trainers with the monitor built in."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trl import GRPOTrainer, RLOOTrainer

from rlmon.config import RLMonConfig
from rlmon.errors import ConfigError
from rlmon.trl.callback import RLMon
from rlmon.trl.ppo.trainer import PPOTrainer
from rlmon.trl.wrapping import bound_arguments

if TYPE_CHECKING:
    from rlmon.monitor import Monitor


class _Monitored:
    """Attaches ``RLMon`` to the trainer that it is mixed into."""

    rlmon: RLMon

    def __init__(self, *args: Any, rlmon: RLMonConfig | RLMon | None = None, **kwargs: Any) -> None:
        settings = {name: kwargs.pop(name) for name in list(kwargs) if name.startswith("rlmon_")}
        if isinstance(rlmon, RLMon) and settings:
            raise ConfigError(
                f"{', '.join(settings)} came beside an RLMon that has settings already. Give them to it: "
                f"rlmon=RLMon({', '.join(f'{name}=...' for name in settings)})."
            )
        # What is wrong with the settings is said before a model is loaded.
        monitor = rlmon if isinstance(rlmon, RLMon) else RLMon(config=rlmon, **settings)
        super().__init__(*args, **kwargs)
        self.rlmon = monitor
        self.rlmon.attach(self)

    @property
    def monitor(self) -> Monitor | None:
        """The monitor of the current ``train()`` call; ``None`` before the first."""
        return self.rlmon.monitor

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        # Before super(): what a hub push uploads is what the folder holds at that moment.
        original = super()._save_checkpoint  # type: ignore[misc]
        trial = bound_arguments(original, args, kwargs, ("model", "trial")).get("trial")
        state = self.state  # type: ignore[attr-defined]
        run_dir = self._get_output_dir(trial=trial)  # type: ignore[attr-defined]
        self.rlmon.save_state(Path(os.path.join(run_dir, f"checkpoint-{state.global_step}")))
        original(*args, **kwargs)


class MonitoredGRPOTrainer(_Monitored, GRPOTrainer):
    """``trl.GRPOTrainer`` that watches its own output distribution.

    Takes everything that ``GRPOTrainer`` takes, and ``rlmon``, an ``RLMonConfig``, or settings by keyword
    (``rlmon_policy="protect"``), which win over it; or as ``rlmon`` an ``RLMon`` with all that it is to have.
    """


class MonitoredRLOOTrainer(_Monitored, RLOOTrainer):
    """``trl.RLOOTrainer`` that watches its own output distribution.

    Takes everything that ``RLOOTrainer`` takes, and ``rlmon``, an ``RLMonConfig``, or settings by keyword
    (``rlmon_policy="protect"``), which win over it; or as ``rlmon`` an ``RLMon`` with all that it is to have.
    """


class MonitoredPPOTrainer(_Monitored, PPOTrainer):
    """``rlmon.trl.PPOTrainer`` that watches its own output distribution, and its critic.

    Takes everything that ``PPOTrainer`` takes, and ``rlmon``, an ``RLMonConfig``, or settings by keyword
    (``rlmon_policy="protect"``), which win over it; or as ``rlmon`` an ``RLMon`` with all that it is to have.
    """
