"""PPO on TRL's GRPO engine: ``rlmon.trl.PPOConfig`` and ``rlmon.trl.PPOTrainer``.

TRL removed its own ``PPOTrainer`` in 1.13. This one keeps what GRPO's trainer has (reward functions, chat and plain
prompts, adapters, vLLM, tools, resuming) and puts a critic in the place of the group's mean.
"""
