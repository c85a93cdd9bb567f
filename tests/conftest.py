"""What every test gets before anything heavy is imported: one thread, no network, no telemetry, no progress bars."""

from __future__ import annotations

import gc
import os

from hypothesis import HealthCheck, settings

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


# A busy machine is slow, and what is drawn at random is now and then large: neither is a fault of what is tested.
settings.register_profile(
    "any-machine", deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
settings.load_profile("any-machine")


def pytest_collection_finish() -> None:
    """As in ``tiny``: what the tests and their fixtures imported is not looked through again before every training."""
    gc.collect()
    gc.freeze()
