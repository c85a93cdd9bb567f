"""Reads what TRL's GRPO and RLOO trainers, and rlmon's ``PPOTrainer``, compute anyway, without changing it.

The trainer's bound methods are wrapped on the *instance*: nothing in TRL is patched, and ``detach`` restores the
trainer. Every wrapper passes its arguments on as they came and calls the original exactly once, outside its own try:
the user's exceptions pass through untouched, and a failure of ours is a counted fault while the value that TRL computed
is returned.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from trl import GRPOTrainer, RLOOTrainer

import rlmon.trl.base_sample as base_sample
from rlmon.config import RLMonConfig
from rlmon.trl.base import BaseModel
from rlmon.trl.capabilities import plan_of_trainer, refuse
from rlmon.trl.facts import reward_names
from rlmon.trl.generation import Generation
from rlmon.trl.losses import CRITIC, Losses
from rlmon.trl.mirror import add
from rlmon.trl.ppo.config import PPO_SETTINGS
from rlmon.trl.prompts import SourceMap
from rlmon.trl.watched import Watched

if TYPE_CHECKING:
    from rlmon.monitor import Monitor


class Capture(Watched):
    """The hooks on a ``GRPOTrainer``, an ``RLOOTrainer`` or one of their subclasses."""

    def __init__(self, trainer: Any, config: RLMonConfig) -> None:
        super().__init__(trainer, config)
        self.critic = hasattr(trainer, CRITIC)
        self.recorded_settings = PPO_SETTINGS if self.critic else ()
        self._generation = Generation(self)
        self._losses = Losses(self, self._generation)

    @staticmethod
    def takes(trainer: Any) -> bool:
        return isinstance(trainer, GRPOTrainer | RLOOTrainer)

    @staticmethod
    def refuse(trainer: Any, config: RLMonConfig) -> None:
        refuse(trainer)
        base_sample.refuse(trainer, config)
        if config.success is not None:
            config.success.refuse_unknown(reward_names(trainer))

    @property
    def group_size(self) -> int:
        size: int = self.trainer.num_generations
        return size

    def plan(self) -> list[dict[str, str]]:
        assert self.base is not None
        return plan_of_trainer(self.trainer, self.base, self.config)

    def choose_base(self) -> BaseModel:
        return BaseModel.choose(self.trainer, self.config, initial_weights=self.trainer.state.global_step == 0)

    def build_sources(self) -> SourceMap:
        args = self.trainer.args
        prompts = (args.generation_batch_size or 1) // max(1, args.num_generations)
        return SourceMap.build(getattr(self.trainer, "train_dataset", None), self.config.rlmon_source_column, prompts)

    def install(self) -> None:
        for name, around in {**self._generation.hooks, **self._losses.hooks}.items():
            if callable(getattr(self.trainer, name, None)):
                self.hook(name, around)

    def sample_base(self, monitor: Monitor) -> None:
        base_sample.take(self, self._generation, monitor)

    def step_begins(self, global_step: int) -> None:
        self._losses.step_begins(measures_base=global_step % self.config.rlmon_base_kl_every == 0)

    def step_ends(self) -> None:
        self._losses.step_ends()

    def mirror(self, values: Mapping[str, float]) -> None:
        add(self.trainer._metrics["train"], values)

    def join_mid_round(
        self, prompts: Sequence[Any], completions: Sequence[Any], completion_ids: Any, rows: Sequence[Mapping[str, Any]]
    ) -> None:
        """Take a round whose generation began before the hooks were in place."""
        self.step_begins(self.trainer.state.global_step)
        self._generation.join(prompts, completions, completion_ids, rows)
