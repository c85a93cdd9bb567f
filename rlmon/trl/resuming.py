"""What a checkpoint keeps of a watched run, and what a resumed run takes up of it: the monitor's state, the strata of
the data, the base, and what the rules hold."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlmon.restored import Restored, describe, mapping
from rlmon.trl.actuators import TrainerActuators
from rlmon.trl.checkpoint import SHARED_FILE, STATE_FOLDER, rank_file, read_state, write_json
from rlmon.trl.ranks import agree
from rlmon.trl.watched import Watched

if TYPE_CHECKING:
    from rlmon.monitor import Monitor


def save(checkpoint: Path, watched: Watched, monitor: Monitor, held: TrainerActuators | None) -> None:
    """Write what a resumed run needs into ``checkpoint/rlmon``."""
    folder = checkpoint / STATE_FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    accelerator = watched.trainer.accelerator
    own = monitor.rank_state() | ({} if held is None else held.rank_state())
    write_json(folder / rank_file(accelerator.process_index), own)
    if accelerator.is_main_process:
        shared = monitor.shared_state() | {"source_map": watched.sources.state()}
        if held is not None:
            held.save(folder)
        if watched.base is not None:
            shared["base_fingerprint"] = watched.base.fingerprint
            watched.base.save(folder)
        write_json(folder / SHARED_FILE, shared)


def restore(
    checkpoint: Path | None, watched: Watched, held: TrainerActuators | None, *, resumed: bool
) -> tuple[dict[str, Any] | None, Restored]:
    """What the checkpoint that the run resumes from gives back; what cannot be read begins anew.

    The same on every rank, which all come here: whether there is a checkpoint is the trainer's own knowledge.
    """
    restored, saved, base = Restored(), None, watched.base
    folder = checkpoint / STATE_FOLDER if resumed and checkpoint is not None else None
    if folder is not None:
        saved = read_state(folder, watched.trainer, restored)
    elif resumed:
        restored.lost["all of rlmon's state"] = "rlmon was attached too late to see which checkpoint was loaded"
    if resumed and base is not None:
        fingerprint = None if saved is None else saved["shared"].get("base_fingerprint")
        try:
            base.resume(folder, fingerprint if isinstance(fingerprint, str) else None)
        except Exception as error:
            restored.lost["snapshot of the base"] = describe(error)
            base.give_up(f"the checkpoint's snapshot of the base cannot be read ({describe(error)})")
    if saved is not None and saved["shared"].get("source_map") is not None:
        with restored.part("strata of the data"):
            watched.sources.load(mapping(saved["shared"]["source_map"]))
    if held is not None:
        held.prepare(folder, None if saved is None else saved["rank"], restored)
    if folder is not None:
        agree(restored, watched.trainer)
    return saved, restored
