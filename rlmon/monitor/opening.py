"""Rank 0 opens the log, and the others join its attempt."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from rlmon.config import RLMonConfig
from rlmon.errors import RLMonError, RunLogError
from rlmon.monitor.setting import Ranks, Resume
from rlmon.records import RunHeader
from rlmon.runlog import RunLogWriter, next_attempt, peek


def open_log(directory: Path, header: RunHeader, config: RLMonConfig, ranks: Ranks, resume: Resume) -> RunLogWriter:
    """The writer of this rank. What keeps rank 0 from opening it is raised on all ranks."""
    settings: dict[str, Any] = {
        "world_size": ranks.world_size,
        "store_text": config.rlmon_store_text,
        "text_sample": config.rlmon_text_sample_per_round,
        "fsync": config.rlmon_fsync,
        "resume": resume.step is not None,
        "from_step": resume.step,
    }
    writer: RunLogWriter | None = None
    news: tuple[RunHeader, bytes, bool, RLMonError | None] | None = None
    if ranks.rank == 0:
        try:
            settings["resume"] = (resume.step is not None or resume.continues) and peek(directory) is not None
            header = dataclasses.replace(header, attempt=next_attempt(directory))
            writer = RunLogWriter.open(directory, header, rank=0, **settings)
            news = (writer.header, writer.secret, settings["resume"], None)
        except RLMonError as error:
            news = (header, b"", False, error)
        except Exception as error:  # whatever it is, the others wait for what rank 0 says
            failed = RunLogError(f"the log in {directory} could not be opened: {type(error).__name__}: {error}")
            news = (header, b"", False, failed)
    header, secret, settings["resume"], failure = ranks.of_rank_0(news)
    if failure is not None:
        raise failure
    if writer is None:
        writer = RunLogWriter.open(directory, header, rank=ranks.rank, secret=secret, **settings)
    return writer
