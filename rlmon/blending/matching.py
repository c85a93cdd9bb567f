"""Which tensor of a base goes with which of its checkpoint; what has no counterpart is refused by name."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from rlmon.blending.folders import TOKENIZER, Folder, words
from rlmon.blending.tensors import Tensor, names
from rlmon.errors import WeightsError
from rlmon.printable import one_line, several

_EMBEDDING = re.compile(r"(.*\.)?(embed_tokens|wte|embed_in|word_embeddings|tok_embeddings)\.weight\Z")
_HEAD = re.compile(r"((.*\.)?(lm_head|embed_out)|output)\.weight\Z")
_CONSTANT = re.compile(r"\.(attn\.bias|attn\.masked_bias|rotary_emb\.inv_freq)\Z")


@dataclass(frozen=True)
class Piece:
    """A tensor of a blend."""

    tensor: Tensor
    """The checkpoint's, whose name, type and shape it has."""
    base: Tensor | None
    """What it is blended with, value by value from the first on; values that the checkpoint has beyond it are copied.
    ``None``: it is copied. Of a type that is no float: copied, and should be equal."""


Matched = tuple[dict[str, Piece], list[str]]
"""Every tensor of a checkpoint with its counterpart, and what a user should know, in sentences."""


def match_models(base: Folder, checkpoint: Folder) -> Matched:
    """The tensors of two full models. Raises ``WeightsError`` where they do not fit.

    Where one of the two has a head of its own and the other's is its embedding (tied), the head is blended with that
    embedding; rows that the checkpoint's embedding and head have beyond the base's (added tokens) are copied. Names
    may differ by what all of one side begin with (``transformer.``), and constants that older versions stored, such as
    masks, by being there.
    """
    ours = checkpoint.tensors
    theirs = _called_as(ours, base.tensors)
    notes: list[str] = []
    pieces: dict[str, Piece] = {}
    lacking: list[str] = []
    constants: list[str] = []
    unlike: list[tuple[Tensor, Tensor]] = []
    for name, tensor in ours.items():
        other = theirs.get(name) or tied(name, theirs)
        if other is None:
            (constants if is_constant(tensor) else lacking).append(name)
            pieces[name] = Piece(tensor, None)
            continue
        if name not in theirs:
            notes.append(
                f"BASE has no {one_line(name, 80)}, since its head is its embedding: {one_line(other.name, 80)} "
                "stands for it."
            )
        if not fits(other, tensor):
            unlike.append((other, tensor))
        pieces[name] = Piece(tensor, other)
    left = [name for name in theirs if name not in ours and not _same_as_its_embedding(theirs[name], base)]
    constants += [name for name in left if is_constant(theirs[name])]
    _refuse(lacking, [name for name in left if name not in constants], unlike)
    if constants:
        notes.append(f"Constants that only one of the two stores are as CHECKPOINT has them: {names(constants)}.")
    notes += added_tokens(pieces.values(), base, checkpoint)
    return pieces, notes


def _called_as(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """A base's tensors by the names that they have in the checkpoint, where all names of one of the two begin with a
    word that the other leaves out; else as they are."""
    if 2 * len(ours.keys() & theirs.keys()) >= len(ours):
        return theirs
    for name in ours:
        first, _, rest = name.partition(".")
        if rest in theirs:
            longer = {f"{first}.{other}": tensor for other, tensor in theirs.items()}
            return longer if 2 * len(ours.keys() & longer.keys()) >= len(ours) else theirs
    for name in theirs:
        first, _, rest = name.partition(".")
        if rest in ours:
            shorter = {other.removeprefix(f"{first}."): tensor for other, tensor in theirs.items()}
            return shorter if len(shorter) == len(theirs) else theirs
    return theirs


def is_constant(tensor: Tensor) -> bool:
    """A mask, or the frequencies of positions: what a model computes by itself, and older versions stored."""
    return bool(_CONSTANT.search(tensor.name)) and (len(tensor.shape) != 1 or tensor.name.endswith("inv_freq"))


def tied(name: str, tensors: Mapping[str, Tensor]) -> Tensor | None:
    """The embedding that a head of this name is tied to in a model whose files have no head."""
    if not _HEAD.match(name) or any(_HEAD.match(other) for other in tensors):
        return None
    found = [tensor for other, tensor in tensors.items() if _EMBEDDING.match(other)]
    return found[0] if len(found) == 1 else None


def fits(base: Tensor, tensor: Tensor) -> bool:
    """Whether they can be blended: of one shape, or an embedding or head with more rows in the checkpoint."""
    if base.is_float != tensor.is_float or (not tensor.is_float and base.dtype != tensor.dtype):
        return False
    if base.shape == tensor.shape:
        return True
    words = bool(_EMBEDDING.match(tensor.name) or _HEAD.match(tensor.name))
    return words and len(tensor.shape) == 2 and base.shape[1:] == tensor.shape[1:] and base.shape[0] < tensor.shape[0]


def added_tokens(pieces: Iterable[Piece], base: Folder, checkpoint: Folder) -> list[str]:
    """What is to be said of embeddings with more rows in the checkpoint. Raises ``WeightsError`` where tokens of the
    base have other numbers there: then these are no added tokens, and the others are not of the same words. Only where
    both have a ``tokenizer.json``."""
    grown = [
        f"Rows that only CHECKPOINT has (added tokens) are its own at every A: {one_line(piece.tensor.name, 80)} has "
        f"{piece.tensor.shape[0]} of them, and {piece.base.shape[0]} in BASE."
        for piece in pieces
        if piece.base is not None and piece.base.shape != piece.tensor.shape
    ]
    theirs, ours = (words(folder.path / TOKENIZER) if grown else {} for folder in (base, checkpoint))
    moved = next((word for word, number in theirs.items() if ours.get(word, number) != number), None)
    if moved is not None:
        raise WeightsError(
            f"CHECKPOINT has more rows in its embedding, and these are not added tokens: {one_line(moved, 40)!r} is "
            f"token {theirs[moved]} in BASE and {ours[moved]} in CHECKPOINT. Give as BASE the model that CHECKPOINT "
            "was trained from."
        )
    return grown


def _same_as_its_embedding(tensor: Tensor, folder: Folder) -> bool:
    """Whether it is a head that was written beside the embedding that it is tied to."""
    if not _HEAD.match(tensor.name):
        return False
    found = [other for name, other in folder.tensors.items() if _EMBEDDING.match(name)]
    if len(found) != 1 or (found[0].dtype, found[0].shape) != (tensor.dtype, tensor.shape):
        return False
    with open(tensor.file, "rb") as a, open(found[0].file, "rb") as b:
        a.seek(tensor.begin)
        b.seek(found[0].begin)
        sizes = [2**24] * (tensor.bytes >> 24) + [tensor.bytes % 2**24]
        return all(a.read(size) == b.read(size) for size in sizes)


def _refuse(lacking: list[str], left: list[str], unlike: list[tuple[Tensor, Tensor]]) -> None:
    """Raise ``WeightsError`` where anything has no counterpart."""
    said = []
    if lacking:
        said.append(f"in CHECKPOINT only: {names(lacking)}")
    if left:
        said.append(f"in BASE only: {names(left)}")
    if unlike:
        shown = several(
            [f"{base} in BASE, {tensor.dtype} {list(tensor.shape)} in CHECKPOINT" for base, tensor in unlike], 3
        )
        said.append(f"of other shapes or kinds: {shown}")
    if said:
        raise WeightsError(
            f"BASE and CHECKPOINT do not have the same tensors ({'; '.join(said)}). Give as BASE the model that "
            "CHECKPOINT was trained from."
        )
