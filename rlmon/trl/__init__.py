"""The monitor for TRL: a drop-in callback, monitored trainers, and a probe for YAML-only users.

::

    from rlmon.trl import RLMon

    trainer = GRPOTrainer(model, reward_funcs=reward, args=args, train_dataset=dataset)
    RLMon(trainer)
    trainer.train()

This is the only room that imports TRL and Transformers.
"""

from rlmon.config import RLMonConfig
from rlmon.trl.callback import RLMon
from rlmon.trl.probe import probe
from rlmon.trl.trainers import MonitoredGRPOTrainer, MonitoredRLOOTrainer

__all__ = ["MonitoredGRPOTrainer", "MonitoredRLOOTrainer", "RLMon", "RLMonConfig", "probe"]
