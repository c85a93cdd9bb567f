"""What every test gets before anything heavy is imported: one thread, no network, no telemetry, no progress bars."""

from __future__ import annotations

import gc
import os

for name, value in {
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "WANDB_MODE": "offline",
    "WANDB_SILENT": "true",
}.items():
    os.environ.setdefault(name, value)


def pytest_collection_finish() -> None:
    """As in ``tiny``: what the tests and their fixtures imported is not looked through again before every training."""
    gc.collect()
    gc.freeze()
