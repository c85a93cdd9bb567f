"""rlmon's part of a checkpoint: files written whole or not at all, and read so that every rank knows the same."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rlmon.restored import Restored, mapping
from rlmon.trl.ranks import of_rank_0

STATE_FOLDER = "rlmon"
SHARED_FILE = "state.json"


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A path beside ``path`` to write to; it takes the name of ``path`` once the block ends without an exception."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def write_json(path: Path, value: Any) -> None:
    with whole(path) as temporary:
        temporary.write_text(json.dumps(value), encoding="utf-8")


def rank_file(rank: int) -> str:
    return f"rank{rank}.json"


def read_state(folder: Path, trainer: Any, restored: Restored) -> dict[str, Any] | None:
    """What ``RLMon.save_state`` wrote into ``folder``: under ``shared`` rank 0's reading on every rank, under ``rank``
    this rank's own part or ``None``. ``None`` where the checkpoint has no state of rlmon or none that can be read.

    Every rank calls this; it holds a collective.
    """
    accelerator = trainer.accelerator
    shared: Mapping[str, Any] | None = None
    if accelerator.is_main_process and (folder / SHARED_FILE).exists():
        with restored.part("all of rlmon's state"):
            shared = read_json(folder / SHARED_FILE)
    shared = of_rank_0(shared, trainer)
    own: Mapping[str, Any] | None = None
    if shared is not None:
        with restored.part(f"what rank {accelerator.process_index} keeps for itself"):
            own = read_json(folder / rank_file(accelerator.process_index))
    return None if shared is None else {"shared": shared, "rank": own}


def read_json(path: Path) -> Mapping[str, Any]:
    """The object in a JSON file. Raises where there is none."""
    # Bytes first: what is no UTF-8 is damage as well, whatever the locale.
    return mapping(json.loads(path.read_bytes().decode("utf-8")))
