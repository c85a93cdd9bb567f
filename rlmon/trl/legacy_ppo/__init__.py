"""The door to TRL's own ``PPOTrainer``, which TRL dropped in 1.13; ``rlmon.trl.kinds`` alone knows of it."""

from rlmon.trl.legacy_ppo.capture import LegacyPPOCapture

__all__ = ["LegacyPPOCapture"]
