"""The safetensors format, as far as blending needs it: which tensors lie where in a file, floats of 2 to 8
bytes, and what lies between two of them.

A file is 8 bytes (the length of the header, little-endian), the header (JSON: of each tensor its type, shape and
place), and the values. A header is read with suspicion: a file may come from anybody.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlmon.errors import WeightsError
from rlmon.printable import one_line, several

MOST_HEADER_BYTES = 100_000_000
"""As in the reference implementation."""
BYTES: Mapping[str, int] = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2,
    "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1,
}  # fmt: skip
"""Of one value, by the name of its type."""
FLOATS = ("F64", "F32", "F16", "BF16")
Values = NDArray[Any]


@dataclass(frozen=True)
class Tensor:
    """A tensor in a file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    begin: int
    """Byte of the file at which its values begin."""

    @property
    def count(self) -> int:
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        return self.count * BYTES[self.dtype]

    @property
    def is_float(self) -> bool:
        return self.dtype in FLOATS

    def __str__(self) -> str:
        return f"{one_line(self.name, 120)} {self.dtype} {list(self.shape)}"


@dataclass(frozen=True)
class Shard:
    """One safetensors file."""

    file: Path
    head: bytes = field(repr=False)
    """All that stands before the values."""
    tensors: tuple[Tensor, ...]
    """In the order of their values, which fill the rest of the file."""

    @property
    def bytes(self) -> int:
        return sum(tensor.bytes for tensor in self.tensors)


def read_shard(file: Path) -> Shard:
    """What a file holds, its values aside. Raises ``WeightsError`` for one that cannot be read or is malformed."""
    try:
        with open(file, "rb") as stream:
            size = file.stat().st_size
            length = int.from_bytes(stream.read(8), "little")
            if size < 8 or length > min(MOST_HEADER_BYTES, size - 8):
                raise ValueError("its header is longer than the file")
            text = stream.read(length)
        return Shard(file, length.to_bytes(8, "little") + text, _tensors(file, text, size))
    except WeightsError:
        raise
    except OSError as error:
        raise unreadable(file, error) from error
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise WeightsError(
            f"{one_line(str(file))} is no whole safetensors file: {one_line(str(error), 200)}. It may have been cut "
            "off: write or copy it again."
        ) from error


def names(found: Iterable[str]) -> str:
    """The first of some names of tensors, as they are shown."""
    return several([one_line(name, 120) for name in found], 4)


def unreadable(file: Path, error: OSError) -> WeightsError:
    return WeightsError(f"cannot read {one_line(str(file))}: {error.strerror or error}.")


def _tensors(file: Path, text: bytes, size: int) -> tuple[Tensor, ...]:
    """The tensors of a header, in order; their values have to fill the file, each byte once."""
    header = json.loads(text, object_pairs_hook=_no_name_twice)
    if not isinstance(header, dict):
        raise ValueError("its header is no mapping")
    placed = []
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        dtype, shape = entry["dtype"], entry["shape"]
        begin, end = entry["data_offsets"]
        if not all(type(number) is int and number >= 0 for number in (*shape, begin, end)):
            raise ValueError(f"{name} has no shape and place of whole numbers")
        if dtype not in BYTES:
            raise WeightsError(
                f"{one_line(str(file))}: {one_line(name, 120)} has values of the type {one_line(str(dtype), 40)}, and "
                f"those that can be blended are {', '.join(BYTES)}. Give the model in one of the types of 16 bits or "
                "more that it was trained in."
            )
        tensor = Tensor(name, dtype, tuple(shape), file, 8 + len(text) + begin)
        if end - begin != tensor.bytes:
            raise ValueError(f"{tensor} takes {tensor.bytes} bytes and has {end - begin}")
        placed.append(tensor)
    placed.sort(key=lambda tensor: (tensor.begin, tensor.bytes))
    at = 8 + len(text)
    for tensor in placed:
        if tensor.begin != at:
            raise ValueError(f"the values of {tensor.name} do not begin where those before it end")
        at += tensor.bytes
    if at != size:
        raise ValueError(f"its tensors end at byte {at} and the file at {size}")
    return tuple(placed)


def _no_name_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name stands in its header twice")
    return found


def decoded(data: bytes | bytearray, dtype: str) -> Values:
    """Values of a float type as float32 (of ``F64`` as float64); exact."""
    if dtype == "BF16":
        upper: NDArray[np.uint32] = np.frombuffer(data, dtype="<u2").astype(np.uint32) << np.uint32(16)
        return upper.view(np.float32)
    if dtype == "F16":
        return np.frombuffer(data, dtype="<f2").astype(np.float32)
    return np.frombuffer(data, dtype="<f8" if dtype == "F64" else "<f4")


def encoded(values: Values, dtype: str) -> bytes:
    """The nearest values of a float type, ties to even; what is too large becomes infinite."""
    if dtype != "BF16":
        with np.errstate(over="ignore"):
            return bytes(values.astype({"F16": "<f2", "F32": "<f4", "F64": "<f8"}[dtype]).tobytes())
    with np.errstate(over="ignore"):
        bits: NDArray[np.uint32] = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
        odd = (bits >> np.uint32(16)) & np.uint32(1)
        upper = ((bits + np.uint32(0x7FFF) + odd) >> np.uint32(16)).astype("<u2")
    # A NaN whose mark is in the lower half would become infinite.
    upper[np.isnan(bits.view(np.float32))] = 0x7FC0
    return bytes(upper.tobytes())


def blended(base: bytes, checkpoint: bytes, alpha: float, base_dtype: str, dtype: str) -> bytes:
    """``base + alpha (checkpoint - base)`` as values of ``dtype``, which is the checkpoint's.

    Computed in float32 (in float64 where one of them is), rounded once. At 1 it is the checkpoint bit for bit, at 0 the
    base as values of ``dtype``. Where both are equal, infinite values too, they stay what they are. Raises
    ``ValueError`` where anything else would not be finite.
    """
    if alpha == 1.0:
        return checkpoint
    if alpha == 0.0 and base_dtype == dtype:
        return base
    b, c = decoded(base, base_dtype), decoded(checkpoint, dtype)
    wide = np.result_type(b, c)
    with np.errstate(over="ignore", invalid="ignore"):
        mixed = b.astype(wide) if alpha == 0.0 else b + wide.type(alpha) * (c - b)
    data = encoded(mixed, dtype)
    lost = ~np.isfinite(decoded(data, dtype))
    if not lost.any():
        return data
    same = b == c
    if not (lost & ~same).any():
        return encoded(np.where(same, c, mixed), dtype)
    for name, values in (("CHECKPOINT", c), ("BASE", b)):
        if not np.isfinite(values[lost & ~same]).all():
            raise ValueError(f"has values in {name} that are no finite numbers, so that nothing lies between")
    raise ValueError(f"has values at A = {alpha:g} that are too large for {dtype}: type an A nearer to 1")
