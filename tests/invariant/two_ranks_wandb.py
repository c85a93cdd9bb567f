"""One of two ranks that train with ``report_to: wandb``; see test_wandb_whole.py."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import tiny

from rlmon.trl import RLMon, RLMonConfig


def main(out: Path) -> None:
    warnings.simplefilter("ignore")  # the trackers' own
    trained = tiny.trainer(out / "run", report_to="wandb", max_steps=4)
    RLMon(trained, RLMonConfig(rlmon_base_kl_every=2, rlmon_table_every=2, rlmon_strict=True))
    trained.train()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
