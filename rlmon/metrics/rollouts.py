"""The rows of one generation round on one rank: their features and additive sums.

The order is ``Featurizer.features`` -> ``round_sums`` (+ ``token_sums_by_mode``, ``kl_sums``) -> add over micro-batches
and ranks, with what ``blocks`` makes of the rows of all ranks together -> ``finish``. Every sum is additive; nothing
here is a mean.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlmon.keys import source_key
from rlmon.metrics import moves, text
from rlmon.metrics.blocks import pair_and_group_sums, rollout_blocks
from rlmon.metrics.collision import overlap_pairs, sampled_pairs
from rlmon.metrics.formats import ModeSet, _opening_of_masked, final_answer, mask_template, split_reasoning
from rlmon.metrics.groups import GroupStats, column, group_statistics
from rlmon.metrics.layout import (
    ADVANTAGE_EDGES,
    LENGTH_EDGES_TOKENS,
    TEXT_FIELDS,
    Sums,
    SumsLayout,
    add_sums,
)
from rlmon.metrics.rows import rows_of
from rlmon.metrics.success import Deciding, RowSuccess
from rlmon.metrics.summary import finish
from rlmon.metrics.tokens import TokenSums, kl_terms
from rlmon.records import Block, RolloutBatch

__all__ = [
    "Featurizer",
    "RowFeatures",
    "Sums",
    "SumsLayout",
    "add_sums",
    "default_group_stats",
    "finish",
    "kl_sums",
    "round_blocks",
    "round_sums",
    "token_sums_by_mode",
]

SKETCH_PAIRS = 500
"""Of each kind: across prompts and within."""
NEAR_DUPLICATE = 0.8
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
            self.key("\x00".join(_opening_of_masked(masked))),
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
            code = codes(batch.prompt_id)
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


def codes(values: Sequence[Any]) -> NDArray[np.int64]:
    """Integers from 0 for the distinct values in sorted order, so that row order does not matter."""
    index = {value: i for i, value in enumerate(sorted(set(values)))}
    return np.array([index[value] for value in values], dtype=np.int64)


# --- additive sums --------------------------------------------------------------------------------------------


def round_sums(
    layout: SumsLayout,
    batch: RolloutBatch,
    features: RowFeatures,
    *,
    group_stats: GroupStats | None = None,
    whole: bool = True,
) -> Sums:
    """Additive sums of the rows of one round on one rank.

    ``group_stats`` from :func:`rlmon.metrics.groups.group_statistics` (it carries what the ledger knew before this
    round); by default made here from the batch, without a ledger. The order of the rows does not matter.

    ``whole``: these are all rows of the round, so that pairs and groups are counted too. Otherwise they are left at
    zero for :func:`rlmon.metrics.blocks.pair_and_group_sums` of all ranks' rows, but for what is only ever taken on one
    rank: moves by decile, sketches, and words.
    """
    sums = layout.zeros()
    rows = len(batch)
    if rows == 0:
        return sums
    if group_stats is None:
        group_stats = default_group_stats(batch)
    if whole:
        sums |= pair_and_group_sums(rows_of(batch, features, group_stats.success_B), group_stats)
    order = np.lexsort((features.row_key, np.asarray(batch.global_row, dtype=np.int64)))
    prompt_B = codes(batch.prompt_id)
    reward_B = column(batch.reward, rows)
    finite = np.isfinite(reward_B)
    correct_B = group_stats.won_B
    modes = len(layout.mode_names)

    sums["rows"][0] = rows
    sums["groups"][0] = np.count_nonzero(np.asarray(batch.global_row) % max(1, batch.group_size) == 0)
    sums["mode_count"][:] = np.bincount(features.mode_code, minlength=modes)
    sums["mode_count_correct"][:] = np.bincount(features.mode_code[correct_B], minlength=modes)
    sums["mode_reward"][:, 0] = np.bincount(features.mode_code[finite], weights=reward_B[finite], minlength=modes)
    sums["mode_reward"][:, 1] = np.bincount(features.mode_code[finite], minlength=modes)
    inside = features.reasoning_code >= 0
    sums["reasoning_count"][:] = np.bincount(features.reasoning_code[inside], minlength=modes)
    sums["answer_known"][0] = (features.answer_code >= 0).sum()

    if features.moves is not None:
        _add_moves(sums, features.moves, prompt_B)
        if features.tokens is not None:
            sums["opener_tokens"][0] = features.tokens.sum()
    _add_sketches(sums, features, prompt_B, order)

    words = features.words
    part = dict.fromkeys(TEXT_FIELDS, 0.0)
    if words.words:
        part.update(words=float(words.words), ranks=1.0, raw_bytes=float(words.raw_bytes))
        part["compressed_bytes"] = float(words.compressed_bytes)
        for n in range(3):
            part[f"distinct_{n + 1}"] = words.distinct[n]
            part[f"total_{n + 1}"] = words.total[n]
    repetition_B = features.repetition_B
    has_grams = features.grams > 0
    part["repetition"] = float(repetition_B[has_grams].sum())
    part["repetition_rows"] = float(has_grams.sum())
    sums["text"][:] = [part[name] for name in TEXT_FIELDS]

    if features.tokens is not None:
        sums["length"][:] = features.tokens.sum(), rows
        sums["length_hist"][:] = _histogram(features.tokens, LENGTH_EDGES_TOKENS)
    if batch.truncated is not None:
        known = [flag for flag in batch.truncated if flag is not None]
        sums["truncated"][:] = sum(map(bool, known)), len(known)
    sums["reward"][:] = reward_B[finite].sum(), finite.sum()
    if batch.reward is not None:
        sums["reward_missing"][0] = sum(value is None for value in batch.reward)
        sums["reward_non_finite"][0] = float((~finite).sum()) - sums["reward_missing"][0]
    for values in batch.rewards.values():
        sums["reward_non_finite"][0] += sum(value is not None for value in values) - float(
            np.isfinite(column(values, len(values))).sum()
        )
    advantage = np.abs(group_stats.advantage_B[np.isfinite(group_stats.advantage_B)])
    sums["advantage_hist"][:] = _histogram(advantage, ADVANTAGE_EDGES)
    return sums


def default_group_stats(
    batch: RolloutBatch,
    hard_B: NDArray[np.bool_] | None = None,
    success: RowSuccess | None = None,
) -> GroupStats:
    """Group statistics of a batch; ``hard_B`` is what the ledger knew before this round, ``success`` what is known of
    its rows: by default what its own rewards decide."""
    if success is None:
        success = Deciding().observe(batch, 1)[1]
    return group_statistics(
        batch.global_row,
        batch.reward,
        batch.group_size,
        advantages=batch.advantages,
        hard_B=hard_B,
        success=success.success_B,
        round_reward=batch.round_reward,
        round_success=success.round_N,
        trained_B=batch.trained,
    )


def _histogram(values: NDArray[np.float64], edges: NDArray[np.float64]) -> NDArray[np.float64]:
    bins = np.searchsorted(edges[1:-1], values, side="right")
    return np.bincount(bins, minlength=edges.size - 1).astype(np.float64)


def _add_moves(sums: Sums, table: moves.Openers, prompt_B: NDArray[np.int64]) -> None:
    rows = prompt_B.size
    decile = np.tile(np.arange(moves.DECILES), rows)
    by_decile = overlap_pairs(
        table.decile_cell_M,
        table.decile_bucket_M,
        table.decile_weight_M,
        np.repeat(prompt_B, moves.DECILES) * moves.DECILES + decile,
        decile,
        moves.DECILES,
        moves.OPENER_BUCKETS,
    )
    sums["pairs_moves_decile"][:] = np.stack(
        [by_decile.across_sum, by_decile.across_pairs, by_decile.within_sum, by_decile.within_pairs], axis=1
    )
    sums["openers"][:] = table.counts


def _add_sketches(sums: Sums, features: RowFeatures, prompt_B: NDArray[np.int64], order: NDArray[np.int64]) -> None:
    # Pairs are drawn by position, so rows are put in the order of their identity first.
    chosen = sampled_pairs(prompt_B[order], SKETCH_PAIRS)
    i = order[np.concatenate([chosen[0], chosen[2]])]
    j = order[np.concatenate([chosen[1], chosen[3]])]
    similarity = moves.jaccard(features.sketch, i, j)
    split = chosen[0].size
    for offset, part in ((0, similarity[:split]), (2, similarity[split:])):
        part = part[np.isfinite(part)]
        sums["pairs_similarity"][offset : offset + 2] = part.sum(), part.size
        sums["pairs_near_duplicate"][offset : offset + 2] = (part >= NEAR_DUPLICATE).sum(), part.size


def token_sums_by_mode(layout: SumsLayout, tokens: TokenSums, mode_code_B: NDArray[np.int64] | None) -> Sums:
    """The token sums of a step in the layout; ``mode_code_B`` is the mode of each row (-1: unknown), ``None`` leaves
    the entropy by mode unmeasured."""
    sums = layout.zeros()
    modes = len(layout.mode_names)
    sums["entropy"][:] = tokens.entropy_sum_B.sum(), tokens.tokens_B.sum()
    sums["entropy_first"][:] = tokens.first5_entropy_sum_B.sum(), tokens.first5_tokens_B.sum()
    sums["entropy_hist"][:] = tokens.entropy_hist
    sums["logp"][:] = tokens.logp_sum_B.sum(), tokens.logp_tokens_B.sum()
    sums["cov"][:] = tokens.cov_sums
    sums["token_non_finite"][0] = tokens.non_finite
    if mode_code_B is not None:
        known = mode_code_B >= 0
        code = mode_code_B[known]
        sums["entropy_mode"][:, 0] = np.bincount(code, weights=tokens.entropy_sum_B[known], minlength=modes)
        sums["entropy_mode"][:, 1] = np.bincount(code, weights=tokens.tokens_B[known], minlength=modes)
    return sums


def kl_sums(
    layout: SumsLayout,
    *,
    kl_T: NDArray[np.float64],
    reverse_T: NDArray[np.float64],
    entropy_base_T: NDArray[np.float64],
    row_T: NDArray[np.int64],
    tokens_B: NDArray[np.float64],
    weight_T: NDArray[np.float64] | None = None,
    mode_code_B: NDArray[np.int64] | None = None,
    prompt_B: NDArray[np.int64] | None = None,
    logp_pi_T: NDArray[np.floating[Any]] | None = None,
    logp_base_T: NDArray[np.floating[Any]] | None = None,
) -> Sums:
    """KL sums of the sampled tokens T of rows B, in the layout.

    ``row_T`` is each token's row in ``tokens_B``, the number of completion tokens of every row that the sample stands
    for, whether it is in it or not; ``weight_T`` how many of those tokens each sampled one stands for
    (``metrics.sampling``; 1 where it is not given). Means per token are weighted (Hajek), and the mean sequence KL is
    the mean per token times the mean length of all rows, which is known. ``prompt_B`` is a code per row: the cluster
    of the estimators' standard errors (the row itself where it is not given). Tokens with a non-finite value are
    counted in ``token_non_finite`` and left out.
    """
    sums = layout.zeros()
    if weight_T is None:
        weight_T = np.ones(kl_T.size)
    finite = np.isfinite(kl_T) & np.isfinite(reverse_T) & np.isfinite(entropy_base_T)
    sums["token_non_finite"][0] = (~finite).sum()
    row, weight = row_T[finite], weight_T[finite]
    kl = weight * kl_T[finite]
    rows = tokens_B.size
    stands_for = float(weight.sum())
    sums["kl"][:] = stands_for, kl.sum(), weight @ reverse_T[finite], weight @ entropy_base_T[finite]
    if stands_for > 0:
        sums["kl_rows"][:] = kl.sum() / stands_for * tokens_B.sum(), (tokens_B > 0).sum()
    if mode_code_B is not None:
        modes = len(layout.mode_names)
        code = mode_code_B[row]
        known = np.asarray(code >= 0)
        sums["kl_mode"][:, 0] = np.bincount(code[known], weights=kl[known], minlength=modes)
        sums["kl_mode"][:, 1] = np.bincount(code[known], weights=weight[known], minlength=modes)
    if logp_pi_T is not None and logp_base_T is not None:
        terms = kl_terms(logp_pi_T, logp_base_T)
        finite = np.asarray(np.isfinite(terms).all(axis=0))
        cluster_T = (np.arange(rows) if prompt_B is None else prompt_B)[row_T[finite]]
        weight = weight_T[finite]
        clusters = int(cluster_T.max()) + 1 if cluster_T.size else 0
        count = np.bincount(cluster_T, weights=weight, minlength=clusters)
        # n, clusters, sum n_c^2, then for each of k1, k2, k3: sum k, sum_c S_c^2, sum_c S_c n_c; all weighted.
        packed = [float(weight.sum()), float((count > 0).sum()), float((count**2).sum())]
        for values in weight * terms[:, finite]:
            total = np.bincount(cluster_T, weights=values, minlength=clusters)
            packed += [float(values.sum()), float(total @ total), float(total @ count)]
        sums["kl_estimators"][:] = packed
    return sums


# --- blocks ---------------------------------------------------------------------------------------------------


def round_blocks(batch: RolloutBatch, features: RowFeatures, group_stats: GroupStats | None = None) -> list[Block]:
    """``blocks.rollout_blocks`` of a round that is whole on this rank, with sources by name and in their order."""
    if group_stats is None:
        group_stats = default_group_stats(batch)
    names = {source_key(name): name for name in batch.source}
    found = rollout_blocks(rows_of(batch, features, group_stats.success_B), group_stats)
    return sorted((replace(block, source=names[block.source]) for block in found), key=lambda block: block.source)
