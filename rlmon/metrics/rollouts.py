"""Everything about one generation round on one rank: features of its rows, additive sums, and blocks for detectors.

The order is ``Featurizer.features`` -> ``round_sums`` (+ ``token_sums_by_mode``, ``kl_sums``) -> add over micro-batches
and ranks -> ``finish``. Every sum is additive; nothing here is a mean.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlmon.metrics import moves, text
from rlmon.metrics.collision import PairSums, equality_pairs, overlap_pairs, sampled_pairs
from rlmon.metrics.formats import ModeSet, _opening_of_masked, final_answer, mask_template, split_reasoning
from rlmon.metrics.groups import GroupStats, column, group_statistics
from rlmon.metrics.layout import (
    ADVANTAGE_EDGES,
    GROUP_FIELDS,
    LENGTH_EDGES_TOKENS,
    TEXT_FIELDS,
    Sums,
    SumsLayout,
    add_sums,
)
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
    "token_blocks",
    "token_sums_by_mode",
]

MAX_BLOCKS = 8
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
            prompt_rows = [batch.prompt_ids[i] for i in first]
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
) -> Sums:
    """Additive sums of the rows of one round on one rank.

    ``group_stats`` from :func:`rlmon.metrics.groups.group_statistics` (it carries what the ledger knew before this
    round); by default made here from the batch, without a ledger. Pairs are pairs of completions on this rank. The
    order of the rows does not matter.
    """
    sums = layout.zeros()
    rows = len(batch)
    if rows == 0:
        return sums
    order = np.lexsort((features.row_key, np.asarray(batch.global_row, dtype=np.int64)))
    if group_stats is None:
        group_stats = default_group_stats(batch)
    prompt_B = codes(batch.prompt_id)
    reward_B = column(batch.reward, rows)
    finite = np.isfinite(reward_B)
    correct_B = group_stats.success_B
    modes = len(layout.mode_names)

    sums["rows"][0] = rows
    sums["prompts"][0] = int(prompt_B.max()) + 1
    sums["mode_count"][:] = np.bincount(features.mode_code, minlength=modes)
    sums["mode_count_correct"][:] = np.bincount(features.mode_code[correct_B], minlength=modes)
    sums["mode_reward"][:, 0] = np.bincount(features.mode_code[finite], weights=reward_B[finite], minlength=modes)
    sums["mode_reward"][:, 1] = np.bincount(features.mode_code[finite], minlength=modes)
    sums["mode_within"][:] = text.effective_numbers(features.mode_code, prompt_B)
    inside = features.reasoning_code >= 0
    sums["reasoning_count"][:] = np.bincount(features.reasoning_code[inside], minlength=modes)
    sums["templates_within"][:] = text.effective_numbers(features.template_key, prompt_B)
    sums["templates_within_correct"][:] = text.effective_numbers(features.template_key, prompt_B, correct_B)
    answered = features.answer_code >= 0
    sums["answers_within"][:] = text.effective_numbers(features.answer_code, prompt_B, answered)
    sums["answer_known"][0] = answered.sum()

    for kernel, pairs in _equality_kernels(features, correct_B, prompt_B, np.zeros(rows, dtype=np.int64), 1).items():
        sums[f"pairs_{kernel}"][:] = pairs.total()
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
    repetition_B = _repetition(features)
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
    sums["group"][:] = _group_fields(group_stats, features, repetition_B)
    advantage = np.abs(group_stats.advantage_B[np.isfinite(group_stats.advantage_B)])
    sums["advantage_hist"][:] = _histogram(advantage, ADVANTAGE_EDGES)
    return sums


def default_group_stats(batch: RolloutBatch, hard_B: NDArray[np.bool_] | None = None) -> GroupStats:
    """Group statistics of a batch; ``hard_B`` is what the ledger knew before this round."""
    return group_statistics(
        batch.global_row,
        batch.reward,
        batch.group_size,
        advantages=batch.advantages,
        hard_B=hard_B,
        round_reward=batch.round_reward,
    )


def _repetition(features: RowFeatures) -> NDArray[np.float64]:
    return 1.0 - features.distinct_grams / np.maximum(features.grams, 1.0)


def _histogram(values: NDArray[np.float64], edges: NDArray[np.float64]) -> NDArray[np.float64]:
    bins = np.searchsorted(edges[1:-1], values, side="right")
    return np.bincount(bins, minlength=edges.size - 1).astype(np.float64)


def _equality_kernels(
    features: RowFeatures,
    correct_B: NDArray[np.bool_],
    prompt_B: NDArray[np.int64],
    block_B: NDArray[np.int64],
    blocks: int,
) -> dict[str, PairSums]:
    return {
        "mode": equality_pairs(features.mode_code, prompt_B, block_B, blocks),
        "mode_correct": equality_pairs(features.mode_code, prompt_B, block_B, blocks, correct_B),
        "template": equality_pairs(features.template_key, prompt_B, block_B, blocks),
        # A change in how often an answer can be read must not look like concentration: only rows that have one.
        "answer": equality_pairs(features.answer_code, prompt_B, block_B, blocks, features.answer_code >= 0),
        "opening": equality_pairs(features.opening_key, prompt_B, block_B, blocks),
    }


def _add_moves(sums: Sums, table: moves.Openers, prompt_B: NDArray[np.int64]) -> None:
    rows = prompt_B.size
    pairs = overlap_pairs(
        table.row_N, table.bucket_N, table.weight_N, prompt_B, np.zeros(rows, np.int64), 1, moves.OPENER_BUCKETS
    )
    sums["pairs_moves"][:] = pairs.total()
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


def _in_judged_group(stats: GroupStats) -> NDArray[np.bool_]:
    """Rows whose group has two finite rewards or more."""
    inside = stats.group_B >= 0
    inside[inside] = stats.size_P[stats.group_B[inside]] >= 2
    return inside


def _group_fields(stats: GroupStats, features: RowFeatures, repetition_B: NDArray[np.float64]) -> list[float]:
    fields = dict.fromkeys(GROUP_FIELDS, 0.0)
    judged = stats.size_P >= 2
    known_std = np.isfinite(stats.reward_std_P) & judged
    weight_B = np.where(np.isfinite(stats.advantage_B), np.abs(stats.advantage_B), 0.0)
    in_group = _in_judged_group(stats)
    fields.update(
        whole=float(stats.whole),
        partial=float(stats.partial),
        judged=float(judged.sum()),
        all_good=float(stats.all_good_P.sum()),
        all_bad=float(stats.all_bad_P.sum()),
        lone=float(stats.lone_P.sum()),
        std_sum=float(stats.reward_std_P[known_std].sum()),
        std_groups=float(known_std.sum()),
        weight=float(weight_B[in_group].sum()),
        weight_lone=float(weight_B[stats.lone_B].sum()),
    )
    if stats.hard_B is not None:
        fields["weight_known"] = fields["weight"]
        fields["weight_lone_hard"] = float(weight_B[stats.lone_B & stats.hard_B].sum())
        fields["hard_rows"] = float(stats.hard_B.sum())
        fields["ledger_rows"] = float(stats.hard_B.size)
    lone_group_B = np.zeros(in_group.size, dtype=bool)
    lone_group_B[in_group] = stats.lone_P[stats.group_B[in_group]]
    other_B = lone_group_B & ~stats.lone_B
    fields["lone_winner_rows"] = float(stats.lone_B.sum())
    fields["lone_other_rows"] = float(other_B.sum())
    fields["lone_winner_repetition"] = float(repetition_B[stats.lone_B].sum())
    fields["lone_other_repetition"] = float(repetition_B[other_B].sum())
    if features.tokens is not None:
        fields["lone_winner_tokens"] = float(features.tokens[stats.lone_B].sum())
        fields["lone_other_tokens"] = float(features.tokens[other_B].sum())
    return [fields[name] for name in GROUP_FIELDS]


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


def _block_codes(source: Sequence[str], prompt_id: Sequence[str]) -> tuple[NDArray[np.int64], list[str]]:
    """Block of each row and source of each block: min(8, P // 2) prompt-disjoint blocks per source, by sorted id."""
    prompts: dict[str, list[str]] = {}
    for stratum, prompt in sorted(set(zip(source, prompt_id, strict=True))):
        prompts.setdefault(stratum, []).append(prompt)
    block_of: dict[tuple[str, str], int] = {}
    sources: list[str] = []
    for stratum, ids in prompts.items():
        blocks = max(1, min(MAX_BLOCKS, len(ids) // 2))
        for at, prompt in enumerate(ids):
            block_of[stratum, prompt] = len(sources) + at * blocks // len(ids)
        sources.extend([stratum] * blocks)
    return np.array([block_of[pair] for pair in zip(source, prompt_id, strict=True)], dtype=np.int64), sources


def _block_prompts(source: Sequence[str], prompt_id: Sequence[str]) -> NDArray[np.int64]:
    return codes(list(zip(source, prompt_id, strict=True)))


def _mean_by(
    block_B: NDArray[np.int64], value_B: NDArray[np.float64], blocks: int
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    finite = np.isfinite(value_B)
    count = np.bincount(block_B[finite], minlength=blocks)
    total = np.bincount(block_B[finite], weights=value_B[finite], minlength=blocks)
    return total / np.maximum(count, 1), count


def round_blocks(batch: RolloutBatch, features: RowFeatures, group_stats: GroupStats | None = None) -> list[Block]:
    """The round's rows as prompt-disjoint blocks inside one source each, with every statistic that can be computed.

    Statistics: the pair means of every kernel (``mode_collision``, ``template_collision``, ``answer_collision``,
    ``opening_collision``, ``move_collision`` over pairs of different prompts, ``*_within`` over pairs of one prompt,
    ``mode_collision_correct`` over rewarded completions), ``completion_tokens``, ``reward``, ``all_good``,
    ``all_bad``, ``lone_success_weight``. One that cannot be computed is absent. Row order does not matter.
    """
    rows = len(batch)
    if rows == 0:
        return []
    if group_stats is None:
        group_stats = default_group_stats(batch)
    block_B, sources = _block_codes(batch.source, batch.prompt_id)
    prompt_B = _block_prompts(batch.source, batch.prompt_id)
    blocks = len(sources)
    stats: list[dict[str, float]] = [{} for _ in range(blocks)]

    def put(name: str, values: NDArray[Any], count: NDArray[Any]) -> None:
        for b in np.flatnonzero(count > 0):
            stats[b][name] = float(values[b])

    kernels = _equality_kernels(features, group_stats.success_B, prompt_B, block_B, blocks)
    if features.moves is not None:
        table = features.moves
        kernels["move"] = overlap_pairs(
            table.row_N, table.bucket_N, table.weight_N, prompt_B, block_B, blocks, moves.OPENER_BUCKETS
        )
    for kernel, pairs in kernels.items():
        name = "mode_collision_correct" if kernel == "mode_correct" else f"{kernel}_collision"
        put(name, pairs.across_sum / np.maximum(pairs.across_pairs, 1.0), pairs.across_pairs)
        put(f"{name}_within", pairs.within_sum / np.maximum(pairs.within_pairs, 1.0), pairs.within_pairs)
    if features.tokens is not None:
        put("completion_tokens", *_mean_by(block_B, features.tokens, blocks))
    put("reward", *_mean_by(block_B, column(batch.reward, rows), blocks))

    in_group = group_stats.group_B >= 0
    block_of_group = np.zeros(group_stats.size_P.size, dtype=np.int64)
    block_of_group[group_stats.group_B[in_group]] = block_B[in_group]
    judged = group_stats.size_P >= 2
    count = np.bincount(block_of_group[judged], minlength=blocks)
    for name, flags in (("all_good", group_stats.all_good_P), ("all_bad", group_stats.all_bad_P)):
        put(name, np.bincount(block_of_group, weights=flags, minlength=blocks) / np.maximum(count, 1), count)
    if group_stats.hard_B is not None:
        counted = np.isfinite(group_stats.advantage_B) & _in_judged_group(group_stats)
        weight = np.where(counted, np.abs(group_stats.advantage_B), 0.0)
        total = np.bincount(block_B, weights=weight, minlength=blocks)
        lone = np.bincount(block_B, weights=weight * (group_stats.lone_B & group_stats.hard_B), minlength=blocks)
        with np.errstate(invalid="ignore", divide="ignore"):
            put("lone_success_weight", lone / total, total)
    return _as_blocks(stats, sources, block_B, prompt_B)


def _as_blocks(
    stats: list[dict[str, float]], sources: list[str], block_B: NDArray[np.int64], prompt_B: NDArray[np.int64]
) -> list[Block]:
    completions = np.bincount(block_B, minlength=len(sources))
    pairs = np.unique(np.stack([block_B, prompt_B]), axis=1)
    prompts = np.bincount(pairs[0], minlength=len(sources))
    return [
        Block(source=source, prompts=int(prompts[b]), completions=int(completions[b]), stats=stats[b])
        for b, source in enumerate(sources)
    ]


def token_blocks(
    source: Sequence[str],
    prompt_id: Sequence[str],
    *,
    tokens_B: NDArray[np.float64] | None = None,
    entropy_sum_B: NDArray[np.float64] | None = None,
    kl_sum_B: NDArray[np.float64] | None = None,
    kl_tokens_B: NDArray[np.float64] | None = None,
    completion_tokens_B: NDArray[np.float64] | None = None,
) -> list[Block]:
    """Blocks of rows that a step trained on: ``entropy_nats`` (token-weighted), ``kl_nats`` (mean exact KL per token)
    and ``kl_seq_nats`` (the same times the mean completion tokens of the block's rows), each where its columns are
    given. ``kl_sum_B`` and ``kl_tokens_B`` are weighted sums over the sampled tokens of a row, 0 where it has none in
    the sample; ``completion_tokens_B`` is known of every row. Blocks without any statistic are left out."""
    if not len(source):
        return []
    block_B, sources = _block_codes(source, prompt_id)
    prompt_B = _block_prompts(source, prompt_id)
    blocks = len(sources)
    stats: list[dict[str, float]] = [{} for _ in range(blocks)]

    def ratio(name: str, numerator_B: NDArray[np.float64], denominator_B: NDArray[np.float64]) -> None:
        top = np.bincount(block_B, weights=numerator_B, minlength=blocks)
        bottom = np.bincount(block_B, weights=denominator_B, minlength=blocks)
        for b in np.flatnonzero((bottom > 0) & np.isfinite(top)):
            stats[b][name] = float(top[b] / bottom[b])

    if entropy_sum_B is not None and tokens_B is not None:
        ratio("entropy_nats", entropy_sum_B, tokens_B)
    if kl_sum_B is not None and kl_tokens_B is not None:
        ratio("kl_nats", kl_sum_B, kl_tokens_B)
        length_B = tokens_B if completion_tokens_B is None else completion_tokens_B
        if length_B is not None:
            lengths = np.bincount(block_B, weights=length_B, minlength=blocks)
            rows = np.bincount(block_B, weights=length_B > 0, minlength=blocks)
            for of_block, total, count in zip(stats, lengths, rows, strict=True):
                if "kl_nats" in of_block and count:
                    of_block["kl_seq_nats"] = float(of_block["kl_nats"] * total / count)
        if entropy_sum_B is None:  # counted are the rows that were looked at
            seen = kl_tokens_B > 0
            block_B, prompt_B = block_B[seen], prompt_B[seen]
    return [block for block in _as_blocks(stats, sources, block_B, prompt_B) if block.stats]
