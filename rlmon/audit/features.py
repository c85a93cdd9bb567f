"""What is read out of each completion, once: format, template, answer, opening, and keys to compare them by.

Rows with stored features (an rlmon log) keep those, so that a log without text is audited as well.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from rlmon.metrics.empty import empty_answer
from rlmon.metrics.formats import ModeSet, final_answer, mask_template, split_reasoning

UNKNOWN = -1
"""Code of a mode and key of an answer, template or text that is not known."""
_REMEMBERED_CHARACTERS = 512
_MASK_63 = (1 << 63) - 1

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Features:
    """Columns of length B; keys are 63-bit hashes, ``UNKNOWN`` where there is nothing to hash."""

    mode: Ints
    """Index into ``ModeSet.names``."""
    template: Ints
    answer: Ints
    text: Ints
    """Of the whole completion: equal only for exact duplicates."""
    characters: Floats
    """Length of the completion; NaN where it is not stored."""
    empty: Floats
    """1 where nothing was answered: no text at all, none after the reasoning was closed, or an answer's marks with
    nothing between them; NaN where the text is not stored."""


def text_key(text: str) -> int:
    """63-bit hash of a text."""
    return _key(text.encode("utf-8", "surrogatepass"))


def _key(data: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little") & _MASK_63


class Reader:
    """Reads the features of rows; remembers short texts of the rows at hand, since a collapsed run repeats them."""

    def __init__(self, modes: ModeSet) -> None:
        self.modes = modes
        self._index = {name: code for code, name in enumerate(modes.names)}
        self._remembered: dict[str, tuple[int, int, int, int, int]] = {}
        self._answers: dict[str, int] = {}

    def features(self, rows: pa.Table) -> Features:
        """Never raises on the content of a text."""
        count = rows.num_rows
        stored = "mode" in rows.column_names
        table = np.full((count, 5), UNKNOWN, dtype=np.int64)
        completions = rows["completion"] if "completion" in rows.column_names else pa.nulls(count, pa.string())
        characters = _floats(pc.utf8_length(completions), count)
        if not stored:
            self._remembered.clear()
            self._answers.clear()
            for i, completion in enumerate(completions.to_pylist()):
                if completion is not None:
                    table[i] = self._row(completion)
        else:
            names = rows["mode"].to_pylist()
            table[:, 0] = [self._index.get(name, UNKNOWN) for name in names]
            for at, name in ((1, "template_key"), (2, "answer_key")):
                table[:, at] = _keys(rows, name, count)
            for i, completion in enumerate(completions.to_pylist()):
                if completion is not None:
                    table[i, 3] = text_key(completion)
                    table[i, 4] = table[i, 2] == UNKNOWN and empty_answer(completion)
        mode, template, answer, text, empty = (table[:, at].copy() for at in range(5))
        return Features(
            mode=mode,
            template=template,
            answer=answer,
            text=text,
            characters=characters,
            empty=np.where(empty == UNKNOWN, np.nan, empty),
        )

    def _row(self, completion: str) -> tuple[int, int, int, int, int]:
        short = len(completion) <= _REMEMBERED_CHARACTERS
        if short and completion in self._remembered:
            return self._remembered[completion]
        answer_part = split_reasoning(completion)[1]
        masked = mask_template(completion)
        answer = final_answer(answer_part)
        row = (
            self._index[self.modes.parse_part(answer_part)],
            text_key(masked),
            UNKNOWN if answer is None else self._answer_key(answer),
            text_key(completion),
            int(answer is None and empty_answer(completion)),
        )
        if short:
            self._remembered[completion] = row
        return row

    def _answer_key(self, answer: str) -> int:
        key = self._answers.get(answer)
        if key is None:
            key = self._answers[answer] = text_key(answer)
        return key


def column(rows: pa.Table, name: str) -> pa.ChunkedArray | None:
    """The column, or ``None`` where it is absent or all null."""
    if name not in rows.column_names or rows[name].null_count == rows.num_rows:
        return None
    return rows[name]


def floats(rows: pa.Table, name: str) -> Floats:
    """The column as float64 [B], NaN for null and where it is absent."""
    found = column(rows, name)
    if found is None:
        return np.full(rows.num_rows, math.nan)
    return _floats(found, rows.num_rows)


def codes(values: pa.ChunkedArray) -> tuple[Ints, list[Any]]:
    """Integers from 0 for the distinct values in order of appearance, -1 for null, and the values."""
    encoded = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
    encoded = pc.dictionary_encode(encoded)
    if isinstance(encoded, pa.ChunkedArray):
        encoded = encoded.unify_dictionaries().combine_chunks()
    if isinstance(encoded, pa.ChunkedArray):  # no chunk at all
        return np.zeros(0, dtype=np.int64), []
    indices = pc.fill_null(encoded.indices, -1).to_numpy(zero_copy_only=False).astype(np.int64)
    return indices, encoded.dictionary.to_pylist()


def key_of_each(values: Sequence[str]) -> Ints:
    """63-bit hash of each text."""
    return np.fromiter((text_key(value) for value in values), dtype=np.int64, count=len(values))


def _floats(values: Any, count: int) -> Floats:
    if not count:
        return np.zeros(0)
    found = pc.cast(values, pa.float64(), safe=False)
    # An array with nulls refuses to be had without a copy; chunks never do.
    numbers = found.to_numpy(zero_copy_only=False) if isinstance(found, pa.Array) else found.to_numpy()
    return np.array(numbers, dtype=np.float64)


def _keys(rows: pa.Table, name: str, count: int) -> Ints:
    found = column(rows, name)
    if found is None:
        return np.full(count, UNKNOWN, dtype=np.int64)
    return np.asarray(pc.fill_null(found, UNKNOWN).to_numpy(), dtype=np.int64)
