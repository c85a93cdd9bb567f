"""What is read out of each completion of a round, once: format, template, answer, opening, moves, sketches, words."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

import rlmon.metrics.moves as moves
import rlmon.metrics.text as text
from rlmon.metrics.formats import ModeSet, final_answer, mask_template, opening_of_masked, split_reasoning
from rlmon.records import RolloutBatch
from rlmon.statistics import codes_of

_REMEMBERED_CHARS = 8_192
_MASK_63 = (1 << 63) - 1


@dataclass(frozen=True)
class RowFeatures:
    """Columns of length B in the row order of the batch."""

    mode: list[str]
    """Format mode of the part after the reasoning block."""
    mode_code: NDArray[np.int64]
    """The same as an index into ``ModeSet.names``."""
    reasoning_mode: list[str | None]
    """Format mode inside the reasoning block; ``None`` without one."""
    reasoning_code: NDArray[np.int64]
    """-1 without a reasoning block."""
    template_key: NDArray[np.int64]
    answer_key: list[int | None]
    answer_code: NDArray[np.int64]
    """``answer_key`` with -1 for ``None``."""
    opening_key: NDArray[np.int64]
    row_key: NDArray[np.int64]
    """Keyed hash of the completion (of its ends and length beyond 8,192 characters)."""
    openers: list[NDArray[np.int32]] | None
    """Opener buckets of each row, heaviest first, at most 64; ``None`` where moves are not measured."""
    opener_weights: list[NDArray[np.float32]] | None
    moves: moves.Openers | None
    moves_reason: str | None
    """Why ``moves`` is ``None``."""
    sketch: NDArray[np.uint32]
    """Bottom-128 sketches of 4-grams [B, 128]."""
    distinct_grams: NDArray[np.float64]
    grams: NDArray[np.float64]
    tokens: NDArray[np.float64] | None
    """Completion tokens of each row; ``None`` where ids were not captured."""
    words: text.WordStats

    @property
    def repetition_B(self) -> NDArray[np.float64]:
        """1 - distinct / all 4-grams of each row; 1 where it has none."""
        return 1.0 - self.distinct_grams / np.maximum(self.grams, 1.0)


class Featurizer:
    """Turns the rows of a round into features; remembers texts it has seen (bounded) and example openers (bounded)."""

    def __init__(
        self,
        modes: ModeSet,
        secret: bytes,
        vocabulary: Sequence[str] | None = None,
        *,
        text_tokens: int = 20_000,
        remembered_texts: int = 4_096,
    ) -> None:
        """``secret`` keys the hashes (the same on all ranks); ``vocabulary`` is the decoded text of each token id,
        ``None`` leaves moves unmeasured; ``text_tokens`` is the word budget of a round."""
        self.modes = modes
        self.text_tokens = text_tokens
        self._secret = secret if 0 < len(secret) <= 64 else hashlib.blake2b(secret).digest()
        self._vocabulary = None if vocabulary is None else moves.Vocabulary(vocabulary)
        self._remembered: OrderedDict[bytes, tuple[int, int, int, int, int, int]] = OrderedDict()
        self._remembered_most = remembered_texts
        self._mode_index = {name: i for i, name in enumerate(modes.names)}
        self._example_first = np.full(moves.OPENER_BUCKETS, -1, dtype=np.int32)
        self._example_second = np.full(moves.OPENER_BUCKETS, -1, dtype=np.int32)

    def key(self, value: str) -> int:
        """Keyed 63-bit hash of a text; lone surrogates are allowed."""
        return self._key(value.encode("utf-8", "surrogatepass"))

    def _key(self, data: bytes) -> int:
        digest = hashlib.blake2b(data, digest_size=8, key=self._secret).digest()
        return int.from_bytes(digest, "little") & _MASK_63

    def features(self, batch: RolloutBatch) -> RowFeatures:
        """The features of every row. Never raises on the content of texts; raises ``ValueError`` when columns have
        different lengths."""
        rows = len(batch)
        for name in ("completions", "prompts", "prompt_id", "source"):
            if len(getattr(batch, name)) != rows:
                raise ValueError(f"batch.{name} has {len(getattr(batch, name))} entries, global_row has {rows}.")
        table = np.empty((rows, 6), dtype=np.int64)
        for i, completion in enumerate(batch.completions):
            table[i] = self._row(completion)
        names = self.modes.names
        mode_code, reasoning_code = table[:, 0].copy(), table[:, 1].copy()
        row_key = table[:, 5].copy()

        tokens = None
        if batch.completion_ids is not None:
            ids, start = moves.concatenate_ids(batch.completion_ids)
            if start.size - 1 != rows:
                raise ValueError(f"batch.completion_ids has {start.size - 1} entries, global_row has {rows}.")
            tokens = np.diff(start).astype(np.float64)
            sketched = self._vocabulary
        else:
            ids, start = moves.concatenate_ids(text.word_ids(batch.completions))
            sketched = None
        sketch, distinct, grams = moves.sketches(ids, start, sketched)
        opener_table, reason = self._moves(batch, ids, start)
        buckets: list[NDArray[np.int32]] | None = None
        weights: list[NDArray[np.float32]] | None = None
        if opener_table is not None:
            bucket = opener_table.bucket_N.astype(np.int32)
            weight = opener_table.weight_N.astype(np.float32)
            begin = opener_table.start_B[:-1]
            end = np.minimum(opener_table.start_B[1:], begin + moves.STORED_OPENERS)
            spans = list(zip(begin.tolist(), end.tolist(), strict=True))
            buckets = [bucket[a:b] for a, b in spans]
            weights = [weight[a:b] for a, b in spans]
        answers = table[:, 3].tolist()
        return RowFeatures(
            mode=[names[code] for code in mode_code],
            mode_code=mode_code,
            reasoning_mode=[None if code < 0 else names[code] for code in reasoning_code],
            reasoning_code=reasoning_code,
            template_key=table[:, 2].copy(),
            answer_key=[None if key < 0 else key for key in answers],
            answer_code=table[:, 3].copy(),
            opening_key=table[:, 4].copy(),
            row_key=row_key,
            openers=buckets,
            opener_weights=weights,
            moves=opener_table,
            moves_reason=reason,
            sketch=sketch,
            distinct_grams=distinct,
            grams=grams,
            tokens=tokens,
            words=text.word_stats(batch.completions, row_key.tolist(), self.text_tokens),
        )

    def _row(self, completion: str) -> tuple[int, int, int, int, int, int]:
        # Long texts seldom repeat, and hashing all of one costs more than parsing the part that is read.
        remember = len(completion) <= _REMEMBERED_CHARS
        seen = completion if remember else f"{len(completion)}\x00{completion[:2048]}\x00{completion[-2048:]}"
        data = seen.encode("utf-8", "surrogatepass")
        digest = hashlib.blake2b(data, digest_size=16, key=self._secret).digest()
        known = self._remembered.get(digest) if remember else None
        if known is not None:
            self._remembered.move_to_end(digest)
            return known
        reasoning, answer_part = split_reasoning(completion)
        mode = self._mode_index[self.modes.parse_part(answer_part)]
        reasoning_mode = -1 if reasoning is None else self._mode_index[self.modes.parse_part(reasoning)]
        masked = mask_template(completion)
        answer = final_answer(answer_part)
        row = (
            mode,
            reasoning_mode,
            self.key(masked),
            -1 if answer is None else self.key(answer),
            self.key("\x00".join(opening_of_masked(masked))),
            int.from_bytes(digest[:8], "little") & _MASK_63,
        )
        if not remember:
            return row
        self._remembered[digest] = row
        if len(self._remembered) > self._remembered_most:
            self._remembered.popitem(last=False)
        return row

    def _moves(
        self, batch: RolloutBatch, ids: NDArray[np.int32], start: NDArray[np.int64]
    ) -> tuple[moves.Openers | None, str | None]:
        if self._vocabulary is None:
            return None, "no vocabulary was given, so break tokens are not known"
        if batch.completion_ids is None:
            return None, "token ids were not captured"
        prompt_rows = None
        code = None
        if batch.prompt_ids is not None:
            code = codes_of(np.array(batch.prompt_id, dtype=object))
            first = np.unique(code, return_index=True)[1]
            prompt_rows = [() if batch.prompt_ids[i] is None else batch.prompt_ids[i] for i in first]
        table = moves.openers(ids, start, self._vocabulary, prompt_rows, code)
        seen = table.example_first >= 0
        self._example_first[seen] = table.example_first[seen]
        self._example_second[seen] = table.example_second[seen]
        return table, None

    def opener_words(self) -> list[str | None]:
        """The text of an opener seen in each of the 4,096 buckets on this rank, ``None`` where none was."""
        if self._vocabulary is None:
            return [None] * moves.OPENER_BUCKETS
        words: list[str | None] = []
        for first, second in zip(self._example_first.tolist(), self._example_second.tolist(), strict=True):
            if first < 0:
                words.append(None)
            elif second < 0:
                words.append(self._vocabulary.word(first))
            else:
                words.append(self._vocabulary.word(first) + self._vocabulary.word(second))
        return words
