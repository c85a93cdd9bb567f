"""RLOO with the monitor built in.

    python trainers/train_rloo.py --config configs/rloo.yaml
    python trainers/train_rloo.py --config configs/rloo.yaml --beta 0.1 --rlmon_dir out/with-kl

Every setting of TRL's ``RLOOConfig`` and ``ModelConfig`` and of rlmon may stand in one YAML file or on the command
line.
"""

from __future__ import annotations

import sys

from trl import RLOOConfig

from rlmon.lab.program import Program
from rlmon.trl import MonitoredRLOOTrainer

program = Program(MonitoredRLOOTrainer, RLOOConfig)
parser, main = program.parser, program.main

if __name__ == "__main__":
    sys.exit(main())
