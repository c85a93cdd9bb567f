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
from rlmon.trl.ppo.config import PPOConfig
from rlmon.trl.ppo.trainer import PPOTrainer
from rlmon.trl.probe import probe
from rlmon.trl.trainers import MonitoredGRPOTrainer, MonitoredPPOTrainer, MonitoredRLOOTrainer

__all__ = [
    "MonitoredGRPOTrainer",
    "MonitoredPPOTrainer",
    "MonitoredRLOOTrainer",
    "PPOConfig",
    "PPOTrainer",
    "RLMon",
    "RLMonConfig",
    "probe",
]
