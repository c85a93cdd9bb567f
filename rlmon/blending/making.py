"""``rlmon.blend``: a folder with a model, or an adapter, between a base and what was trained from it."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import rlmon.blending.writing as writing
from rlmon.blending.adapters import match_adapter, scaled_config
from rlmon.blending.folders import ADAPTER_CONFIG, CONFIG, Folder, open_checkpoint, open_model
from rlmon.blending.matching import Piece, match_models
from rlmon.errors import ConfigError
from rlmon.lab.libraries import versions
from rlmon.printable import one_line, several

SPARE_BYTES = 2**26
"""That a disk should have left."""


@dataclass(frozen=True)
class Blended:
    """What was written."""

    out: Path
    alpha: float
    kind: str
    """``model`` or ``adapter``."""
    tensors: int
    bytes: int
    notes: tuple[str, ...]
    """What a user should know, in sentences."""


@dataclass(frozen=True)
class Pair:
    """A base and its checkpoint, opened, with what goes with what."""

    base: Folder
    checkpoint: Folder
    pieces: Mapping[str, Piece]
    notes: Sequence[str]

    @property
    def kind(self) -> str:
        return "model" if self.checkpoint.adapter is None else "adapter"

    @property
    def bytes(self) -> int:
        return sum(shard.bytes for shard in self.checkpoint.shards)

    @property
    def home_of_tokenizer(self) -> Folder:
        """The checkpoint, where it has a tokenizer."""
        return self.checkpoint if self.checkpoint.tokenizer() else self.base


def open_pair(base: str | os.PathLike[str], checkpoint: str | os.PathLike[str]) -> Pair:
    """Raises ``WeightsError`` where one of the two cannot be read, or they do not fit."""
    below, above = Path(base), Path(checkpoint)
    if os.path.realpath(below) == os.path.realpath(above):
        raise ConfigError(f"BASE and CHECKPOINT are one folder, {one_line(str(below))}: give the two that lie apart.")
    trained = open_checkpoint(above)
    model = open_model(below)
    match = match_models if trained.adapter is None else match_adapter
    return Pair(model, trained, *match(model, trained))


def blend(
    base: str | os.PathLike[str],
    checkpoint: str | os.PathLike[str],
    alpha: float,
    out: str | os.PathLike[str],
    *,
    progress: Callable[[int, int], None] | None = None,
) -> Blended:
    """Write to the folder ``out`` the model ``base + alpha (checkpoint - base)``, or the adapter whose update is
    ``alpha`` times that of ``checkpoint``, with configuration, tokenizer and ``blend.json``, which says what it is made
    of.

    0 is the base, 1 the checkpoint bit for bit. Weights are read and written a stretch at a time: less than 100 MB of
    memory, whatever the size of the model. ``progress`` is called with bytes done and in all. ``out`` is new or empty,
    or an earlier blend, which is replaced once the new one is whole.

    Raises ``ConfigError`` for an ``alpha`` that is no finite number and an ``out`` that is taken, ``WeightsError``
    where weights cannot be read, do not fit together or cannot be written; nothing is left behind then.
    """
    number = checked(alpha)
    return write(open_pair(base, checkpoint), number, Path(out), progress)


def checked(alpha: Any) -> float:
    """A finite number, or ``ConfigError``."""
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise ConfigError(
            f"alpha has to be a number, 0 for the base and 1 for the checkpoint, got {alpha!r}: type 0.3."
        )
    return float(alpha)


def write(
    pair: Pair, alpha: float, out: Path, progress: Callable[[int, int], None] | None = None, *, note: bool = True
) -> Blended:
    """The blend of a pair as the folder ``out``: see ``blend``. Without ``note`` there is no ``blend.json``, for which
    the base is read once more."""
    base, checkpoint = pair.base, pair.checkpoint
    target = Path(os.path.realpath(out))
    for folder in (base, checkpoint):
        if Path(os.path.realpath(folder.path)).is_relative_to(target):
            raise ConfigError(
                f"--out is {folder.role}, or a folder that it lies in, and would replace it. Type another --out."
            )
    writing.refuse_occupied(target)
    # What has gone in of the base's weights is read once more for its hash: of an adapter little, if anything.
    read = {piece.base.file for piece in pair.pieces.values() if piece.base is not None and note}
    hashed = [shard for shard in base.shards if shard.file in read]
    writing.refuse_full(target, pair.bytes + SPARE_BYTES)
    left = writing.unfinished(target)
    total, done = pair.bytes + sum(shard.bytes for shard in hashed), 0

    def tell(more: int) -> None:
        nonlocal done
        done += more
        if progress is not None:
            progress(min(done, total), total)

    differ: set[str] = set()
    files: dict[str, str] = {}
    sources: dict[str, str] = {}
    with writing.new_folder(target) as made:
        with writing.Reader() as reader:
            for shard in checkpoint.shards:
                name = shard.file.name
                sources[name], files[name] = writing.write_shard(
                    shard, made / name, pair.pieces, alpha, reader, tell, differ
                )
        if checkpoint.index is not None:
            files[checkpoint.index.name] = writing.copy(checkpoint.index, made)
        if checkpoint.adapter is not None:
            files[ADAPTER_CONFIG] = writing.write_text(made / ADAPTER_CONFIG, scaled_config(checkpoint.adapter, alpha))
        notes = [*pair.notes, *_said(pair, alpha, differ)]
        for file in _beside_the_weights(pair, notes):
            files[file.name] = writing.copy(file, made)
        hashes = {}
        for shard in hashed:
            hashes[shard.file.name] = writing.sha256(shard.file)
            tell(shard.bytes)
        if left:
            shown = several([one_line(str(folder)) for folder in left], 2)
            notes.append(f"An earlier blend was stopped and left {shown}: remove it, unless it is still being written.")
        if note:
            told = {
                "tool": writing.TOOL,
                "schema_version": 1,
                "packages": versions(),
                "created_unix_seconds": time.time(),
                "kind": pair.kind,
                "alpha": alpha,
                "weights": "base + alpha * (checkpoint - base)",
                "base": {"path": str(base.path), "sha256": hashes},
                "checkpoint": {"path": str(checkpoint.path), "sha256": sources},
                "files": files,
                "notes": notes,
            }
            writing.write_text(made / writing.NOTE, json.dumps(told, indent=2, allow_nan=False) + "\n")
    return Blended(out, alpha, pair.kind, len(pair.pieces), pair.bytes, tuple(notes))


def _said(pair: Pair, alpha: float, differ: set[str]) -> list[str]:
    """What is to be said of a blend once it is computed."""
    said = []
    if not 0.0 <= alpha <= 1.0:
        where = "beyond the checkpoint" if alpha > 1.0 else "on the other side of the base"
        said.append(f"A = {alpha:g} is {where} (extrapolation): nothing there was trained.")
    if differ:
        shown = several([one_line(name, 80) for name in sorted(differ)], 4)
        said.append(f"Tensors that are no floats were copied from CHECKPOINT, and differ from BASE's: {shown}.")
    code = sorted(file.name for file in pair.checkpoint.path.glob("*.py")) if pair.kind == "model" else []
    if code and "auto_map" in pair.checkpoint.config:
        said.append(f"Code is neither run nor copied: {several(code, 3)}. Copy it yourself where you trust it.")
    return said


def _beside_the_weights(pair: Pair, notes: list[str]) -> list[Path]:
    """Configuration and tokenizer: the checkpoint's, and the base's tokenizer where a model has none."""
    found = pair.checkpoint.copied()
    if pair.kind == "model" and not pair.checkpoint.tokenizer():
        kept = {CONFIG, "generation_config.json", *(file.name for file in found)}
        lent = [file for file in pair.base.copied() if file.name not in kept]
        if lent:
            notes.append("CHECKPOINT has no tokenizer: BASE's was copied.")
        found += lent
    return found
