"""PPO with the monitor built in, on GRPO's engine: for any TRL from 1.8 on.

    python trainers/train_ppo.py --config configs/ppo.yaml
    python trainers/train_ppo.py --config configs/ppo.yaml --kl_coef 0.1 --rlmon_dir out/with-kl

Reward functions, prompts, adapters and generation are those of TRL's GRPO; a critic takes the place of the group's
mean. Every setting of ``PPOConfig``, TRL's ``ModelConfig`` and rlmon may stand in one YAML file or on the command line.
"""

from __future__ import annotations

import sys

from rlmon.lab.program import Program
from rlmon.trl import MonitoredPPOTrainer, PPOConfig

program = Program(MonitoredPPOTrainer, PPOConfig)
parser, main = program.parser, program.main

if __name__ == "__main__":
    sys.exit(main())
