"""GRPO with the monitor built in.

    python trainers/train_grpo.py --config configs/grpo.yaml
    python trainers/train_grpo.py --config configs/grpo.yaml --beta 0.1 --rlmon_dir out/with-kl

Every setting of TRL's ``GRPOConfig`` and ``ModelConfig`` and of rlmon may stand in one YAML file or on the command
line.
"""

from __future__ import annotations

import sys

from trl import GRPOConfig

from rlmon.lab.program import Program
from rlmon.trl import MonitoredGRPOTrainer

program = Program(MonitoredGRPOTrainer, GRPOConfig)
parser, main = program.parser, program.main

if __name__ == "__main__":
    sys.exit(main())
