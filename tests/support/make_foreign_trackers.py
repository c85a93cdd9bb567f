"""Writes tests/golden/foreign/{wandb-trl,tensorboard,trackio}: one tiny TRL run as three trackers keep it.

    python tests/support/make_foreign_trackers.py

Trained with the installed TRL, wandb, torch's SummaryWriter and trackio; ``versions.json`` says which. 8 steps with
``steps_per_generation=2`` and an evaluation of 8 completions every 4th step, so every second table is a re-written one,
and tables of evaluations hold training rows too. ``truth.json`` is what a recording reward function saw: split, prompt
and completion of all that was sampled; ``log_history.json`` is the trainer's own account of its metrics.

Changed afterwards: the ``.wandb`` file keeps only the records of kinds header, run, config, history and exit, framed as
wandb frames them (the others hold the host, its paths and its packages); the data base lost the readings of the
machine's sensors and was vacuumed to pages of 512 bytes; the event file lost the host's name in its own.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import shutil
import sqlite3
import struct
import sys
import tempfile
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "foreign"
BLOCK_BYTES = 32_768


def framed(records: Iterable[bytes]) -> bytes:
    """Records in LevelDB's log format behind W&B's header."""
    out = bytearray(b":W&B" + struct.pack("<HB", 0xBEE1, 0))
    for record in records:
        begun = False
        while True:
            left = BLOCK_BYTES - len(out) % BLOCK_BYTES
            if left < 7:
                out += bytes(left)
                continue
            part, record = record[: left - 7], record[left - 7 :]
            kind = (3 if record else 4) if begun else (2 if record else 1)
            out += struct.pack("<IHB", zlib.crc32(part, zlib.crc32(bytes([kind]))), len(part), kind) + part
            begun = True
            if not record:
                break
    return bytes(out)


def train(folder: Path) -> tuple[list[tuple[str, str, str]], list[dict[str, Any]]]:
    """Trains into ``folder``, which is made the working directory; gives what was sampled and TRL's log history."""
    os.chdir(folder)
    os.environ.update(
        WANDB_MODE="offline",
        WANDB_SILENT="true",
        WANDB_CONSOLE="off",
        WANDB_DISABLE_GIT="true",
        WANDB_RUN_ID="golden",
        WANDB_NAME="golden",
        TENSORBOARD_LOGGING_DIR="tensorboard",
        TRACKIO_DIR=str(folder / "trackio"),
        HF_HUB_OFFLINE="1",
        OMP_NUM_THREADS="1",
    )
    import tiny
    import wandb

    sampled: list[tuple[str, str, str]] = []

    def has_digit(prompts: Sequence[Any], completions: Sequence[Any], **_: Any) -> list[float]:
        split = "train" if trainer.model.training else "eval"
        sampled.extend((split, p, c) for p, c in zip(prompts, completions, strict=True))
        return tiny.has_digit(completions)

    def short(completions: Sequence[Any], **_: Any) -> list[float | None]:
        return [None if c.startswith("the") else -float(len(c)) for c in completions]

    trainer = tiny.trainer(
        "out",
        reward=[has_digit, short],
        policy=tiny.model(),
        report_to=["wandb", "tensorboard", "trackio"],
        run_name="golden",
        max_steps=8,
        steps_per_generation=2,
        per_device_eval_batch_size=4,
        eval_strategy="steps",
        eval_steps=4,
        log_completions=True,
        num_completions_to_print=0,
        reward_weights=[1.0, 0.125],
        extra={"eval_dataset": tiny.dataset(2)},
    )
    trainer.train()
    wandb.finish()
    return sampled, trainer.state.log_history


def main() -> None:
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        sampled, logged = train(folder)
        for name in ("wandb-trl", "tensorboard", "trackio"):
            shutil.rmtree(GOLDEN / name, ignore_errors=True)
            (GOLDEN / name).mkdir(parents=True)
        keep_wandb(next(folder.glob("wandb/offline-run-*")), GOLDEN / "wandb-trl")
        (events,) = folder.glob("tensorboard/**/events.out.tfevents.*")
        shutil.copy(events, GOLDEN / "tensorboard" / f"{'.'.join(events.name.split('.')[:4])}.host.1.0")
        (base,) = folder.glob("trackio/*.db")
        target = GOLDEN / "trackio" / "huggingface.db"
        with contextlib.closing(sqlite3.connect(base)) as source, contextlib.closing(sqlite3.connect(target)) as kept:
            source.backup(kept)
            kept.execute("PRAGMA journal_mode = DELETE")
            kept.execute("DELETE FROM system_metrics")
            kept.commit()
            kept.execute("PRAGMA page_size = 512")
            kept.execute("VACUUM")
    (GOLDEN / "wandb-trl" / "truth.json").write_text(json.dumps(sampled, indent=0) + "\n", encoding="utf-8")
    (GOLDEN / "wandb-trl" / "log_history.json").write_text(json.dumps(logged, indent=0) + "\n", encoding="utf-8")
    versions = {name: importlib.metadata.version(name) for name in ("trl", "transformers", "wandb", "trackio", "torch")}
    (GOLDEN / "wandb-trl" / "versions.json").write_text(json.dumps(versions, indent=1) + "\n", encoding="utf-8")


def keep_wandb(run: Path, target: Path) -> None:
    """The run directory without what tells of the machine."""
    from offline_wandb import records

    kept = []
    for record in records(run / "run-golden.wandb"):
        if record.WhichOneof("record_type") not in ("header", "run", "config", "history", "exit"):
            continue
        if record.HasField("run"):
            for name in ("host", "telemetry", "git", "settings"):
                record.run.ClearField(name)
        kept.append(record.SerializeToString())
    (target / "run-golden.wandb").write_bytes(framed(kept))
    shutil.copytree(run / "files" / "media", target / "files" / "media")


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    sys.path.insert(0, str(Path(__file__).parents[2]))
    main()
