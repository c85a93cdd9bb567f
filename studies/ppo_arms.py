"""What the study of PPO compares: arms, runs, and which runs are needed."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rlmon.lab.demo import TRAINING
from rlmon.lab.task import Question, split_questions
from studies.arms import Arm, Task
from studies.cells import MAX_COMPLETION_TOKENS, SEEDS, Cell, evaluation_settings

TUNING_SEEDS = (100, 101)
LEARNING_RATES = (2.5e-4, 4e-4, 6.5e-4, 1e-3, 1.6e-3, 2.5e-3, 4e-3)
MARGIN = 0.01
"""Most accuracy by which PPO may lie under GRPO at the lower end of the 95 % interval."""
ROUND_COMPLETIONS = 64
CURVE_EVERY_ROUNDS = 20
CURVE_SEED = 20_261
CURVE_PROMPTS = 256
CURVE_SAMPLES = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class PairArm(Arm):
    """How it is trained on rounds of 32 prompts x 2 completions."""

    ppo: Mapping[str, Any] | None = field(default_factory=dict)
    """What differs from ``PPOConfig``'s defaults and the study's; ``None``: TRL's ``GRPOTrainer`` as it is."""
    updates_per_round: int = 1
    """Optimizer steps on each round; its batches are as many times smaller as there are in one pass."""
    rate_factor: float = 1.0
    """Its learning rate over the one that was chosen for ``ppo``."""


ARMS: Mapping[str, PairArm] = {
    arm.name: arm
    for arm in (
        PairArm(name="grpo", ppo=None, about="TRL's GRPO: advantages by groups of two, beta 0"),
        PairArm(name="ppo", about="PPO: the value head reads the policy's hidden states and does not train them"),
        PairArm(name="ppo-shared", ppo={"critic": "shared"}, about="the value loss trains the policy's trunk too"),
        PairArm(name="ppo-separate", ppo={"critic": "separate"}, about="the critic has a trunk of its own"),
        PairArm(name="ppo-kl", ppo={"kl_coef": 0.05}, about="kl_coef 0.05: a KL penalty to the base in the reward"),
        PairArm(
            name="ppo-epochs",
            ppo={"num_iterations": 4, "steps_per_generation": 4, "gradient_accumulation_steps": 1},
            updates_per_round=16,
            rate_factor=0.1,
            about="four passes over each round in four batches: 16 updates a round, at a tenth of the rate",
        ),
        PairArm(
            name="ppo-protect",
            policy="protect",
            about="the policy `protect`: mode-marginal KL by token, KL in the reward, quarantine, deferral",
        ),
    )
}
"""Arms of the comparison by name; the claim is about the first two."""
CLAIMED = ("grpo", "ppo")

VARIATIONS: Mapping[str, PairArm] = {
    arm.name: arm
    for arm in (
        PairArm(name="value-rate-3e-3", ppo={"value_learning_rate": 3e-3}, about="`value_learning_rate` 3e-3"),
        PairArm(name="value-rate-1e-2", ppo={"value_learning_rate": 1e-2}, about="`value_learning_rate` 1e-2"),
        PairArm(name="lam-1", ppo={"lam": 1.0}, about="`lam` 1"),
        PairArm(name="not-whitened", ppo={"whiten_advantages": False}, about="`whiten_advantages` false"),
    )
}
"""Other settings of PPO, tried on the tuning seeds at PPO's learning rate."""
TRIED_FASTER = ("not-whitened",)
"""Those tried at the higher learning rates, too."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Run(Cell):
    """One training run."""

    arm: PairArm
    curve: bool = True
    """Whether held-out accuracy is measured along the way; it changes nothing else."""

    @property
    def name(self) -> str:
        return f"{self.arm.name}-{self.task.learning_rate:g}-seed{self.seed}"

    def settings(self) -> dict[str, Any]:
        return {
            **Cell.settings(self),
            "training": training(self),
            "evaluation": evaluation_settings()[:3],
            "curve": [CURVE_SEED, CURVE_PROMPTS, CURVE_SAMPLES, CURVE_EVERY_ROUNDS] if self.curve else None,
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What is run: the study, or a small part of it."""

    rounds: int = 180
    rates: tuple[float, ...] = LEARNING_RATES
    tuning_seeds: tuple[int, ...] = TUNING_SEEDS
    seeds: tuple[int, ...] = SEEDS
    more_seeds: tuple[int, ...] = SEEDS[:3]
    """Of the arms that the claim is not about."""
    arms: tuple[str, ...] = tuple(ARMS)
    variations: tuple[str, ...] = tuple(VARIATIONS)

    def task(self, rate: float) -> Task:
        return Task(
            name="pairs", base="arithmetic", steps=self.rounds, learning_rate=rate,
            prompts_per_round=ROUND_COMPLETIONS // 2, group_size=2, about="the demo's task, two completions a prompt",
        )  # fmt: skip

    def tuning(self) -> list[Run]:
        return [
            Run(task=self.task(rate), arm=ARMS[arm], seed=seed)
            for seed in self.tuning_seeds
            for rate in self.rates
            for arm in CLAIMED
        ]

    def varied(self, rates: Mapping[str, float]) -> list[Run]:
        return [
            Run(task=self.task(rate), arm=VARIATIONS[name], seed=seed)
            for seed in self.tuning_seeds
            for name in self.variations
            for rate in self.rates
            if rate == rates["ppo"] or (name in TRIED_FASTER and rate > rates["ppo"])
        ]

    def compared(self, rates: Mapping[str, float]) -> list[Run]:
        """Seed by seed, so that a stopped study leaves whole comparisons; the arms of the claim first."""
        more = tuple(arm for arm in self.arms if arm not in CLAIMED)
        return [
            Run(
                task=self.task(rates["grpo" if arm == "grpo" else "ppo"] * ARMS[arm].rate_factor),
                arm=ARMS[arm],
                seed=seed,
            )
            for arms, seeds in ((CLAIMED, self.seeds), (more, self.more_seeds))
            for seed in seeds
            for arm in arms
        ]


QUICK = Plan(
    rounds=3,
    rates=(4e-4, 1e-3),
    tuning_seeds=(100,),
    seeds=(0, 1),
    more_seeds=(0,),
    arms=("grpo", "ppo", "ppo-epochs", "ppo-protect"),
    variations=(),
)


def training(run: Run) -> dict[str, Any]:
    """Settings of ``GRPOConfig`` or ``PPOConfig``: those of the demo, but for what the study is about."""
    task, arm = run.task, run.arm
    shared = {
        **TRAINING,
        "max_steps": task.steps * arm.updates_per_round,
        "per_device_train_batch_size": task.prompts_per_round * task.group_size,
        "num_generations": task.group_size,
        "max_completion_length": MAX_COMPLETION_TOKENS,
        "learning_rate": task.learning_rate,
        "loss_type": "bnpo",
        "logging_steps": arm.updates_per_round,
    }
    if arm.ppo is None:
        return {**shared, "beta": 0.0}
    # TRAINING's scaling by groups is GRPO's.
    del shared["scale_rewards"]
    shared["per_device_train_batch_size"] //= arm.ppo.get("steps_per_generation", 1)
    return {**shared, "kl_coef": 0.0, "critic": "shared_detached", **arm.ppo}


def curve_questions() -> list[Question]:
    """Held-out questions of the curve; the final evaluation draws its own."""
    return random.Random(CURVE_SEED).sample(split_questions()[1], CURVE_PROMPTS)


def round_of(step: int, updates_per_round: int) -> int:
    """The round, from 1 on, that optimizer step ``step`` trains on."""
    return (step - 1) // updates_per_round + 1
