"""The libraries that the lab's runs use: quiet while they run, their versions kept with what came out."""

from __future__ import annotations

import contextlib
import gc
import importlib.metadata
import logging
import os
import platform
import warnings
from collections.abc import Iterator


def versions() -> dict[str, str | None]:
    """Of Python and of each library; ``None`` for one that is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in ("rlmon", "torch", "trl", "transformers", "accelerate", "datasets", "numpy", "pyarrow"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """One torch thread, no network, no progress bars and no warnings of other libraries, until the block ends."""
    settings = {
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import datasets
        import torch
        import transformers
        import trl.trainer.grpo_trainer  # noqa: F401

        # What the imports made is never garbage: not walking it again and again saves a tenth of the CPU time.
        gc.collect()
        gc.freeze()
        threads = torch.get_num_threads()
        loggers = [logging.getLogger(name) for name in ("trl", "transformers", "accelerate")]
        levels = [logger.level for logger in loggers]
        bars = transformers.utils.logging.is_progress_bar_enabled()
        dataset_bars = datasets.are_progress_bars_disabled()
        try:
            torch.set_num_threads(1)
            transformers.utils.logging.disable_progress_bar()
            datasets.disable_progress_bars()
            for logger in loggers:
                logger.setLevel(logging.ERROR)
            yield
        finally:
            gc.unfreeze()
            torch.set_num_threads(threads)
            if bars:
                transformers.utils.logging.enable_progress_bar()
            if not dataset_bars:
                datasets.enable_progress_bars()
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value
