"""Openers, sketches and word statistics on paper and against sets."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from rlmon.metrics import moves, text

STRINGS = [".", "\n", " so", " we", " add", " 7", " wait", " no", "?", " x", " figs", ". "]
VOCABULARY = moves.Vocabulary(STRINGS)


def build(rows, prompts=None, codes=None):
    ids, start = moves.concatenate_ids(rows)
    return moves.openers(ids, start, VOCABULARY, prompts, codes)


def test_breaks_and_digits_are_read_from_the_vocabulary() -> None:
    assert np.flatnonzero(VOCABULARY.is_break).tolist() == [0, 1, 8, 11]
    assert VOCABULARY.canonical[5] == len(STRINGS)
    assert VOCABULARY.word(2) == " so"
    assert VOCABULARY.word(len(STRINGS)) == "…"


def test_openers_are_the_two_tokens_after_each_break() -> None:
    # so we . \n wait no ? wait no  -> (so we), (wait no) x 2; ". \n" is one break.
    table = build([[2, 3, 0, 1, 6, 7, 8, 6, 7]])
    assert table.counts.sum() == 3
    assert table.weight_N.tolist() == pytest.approx([2 / 3, 1 / 3])
    words = {(int(a), int(b)) for a, b in zip(table.example_first, table.example_second, strict=True) if a >= 0}
    assert words == {(2, 3), (6, 7)}
    assert table.start_B.tolist() == [0, 2]


def test_digits_and_tokens_of_the_prompt_are_masked() -> None:
    # "x add" with x in the first prompt and "figs add" with figs in the second are the same move.
    table = build([[9, 4, 0], [10, 4, 0], [5, 4, 0]], [[9], [10], [3]], np.array([0, 1, 2]))
    assert (table.counts > 0).sum() == 1
    assert (build([[9, 4, 0], [10, 4, 0]]).counts > 0).sum() == 2


def test_masking_is_the_same_when_the_table_would_be_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    rows = [rng.integers(0, 12, 40).tolist() for _ in range(6)]
    prompts = [rng.integers(0, 12, 3).tolist() for _ in range(3)]
    codes = np.array([0, 0, 1, 1, 2, 2])
    dense = build(rows, prompts, codes)
    monkeypatch.setattr(moves, "_TABLE_CELLS", 0)
    np.testing.assert_array_equal(build(rows, prompts, codes).counts, dense.counts)


def test_histograms_against_a_loop() -> None:
    rng = np.random.default_rng(2)
    rows = [rng.integers(-2, 15, size=n).tolist() for n in (0, 1, 2, 30, 77)]
    table = build(rows)
    total = 0
    for i, row in enumerate(rows):
        known = [token if 0 <= token < 12 else 12 for token in row]
        starts = [
            p for p in range(len(row))
            if p == 0 or (VOCABULARY.is_break[known[p - 1]] and not VOCABULARY.is_break[known[p]])
        ]  # fmt: skip
        mine = table.row_N == i
        assert table.weight_N[mine].sum() == pytest.approx(1.0 if row else 0.0)
        assert (np.diff(table.weight_N[mine]) <= 1e-12).all()
        deciles = {p * 10 // len(row) for p in starts}
        assert set((table.decile_cell_M[table.decile_cell_M // 10 == i] % 10).tolist()) == deciles
        total += len(starts)
    assert table.counts.sum() == total


def test_ids_of_any_type_and_range_are_taken() -> None:
    rows = [[1, 2], np.array([3, 4], dtype=np.int64), (5,), [2**40, -7], np.array([2**40])]
    ids, start = moves.concatenate_ids(rows)
    assert ids.tolist() == [1, 2, 3, 4, 5, -1, -1, -1]
    assert start.tolist() == [0, 2, 4, 5, 7, 8]
    assert moves.concatenate_ids([])[0].size == 0


def grams(row) -> set:
    return set(zip(*(row[i:] for i in range(4)), strict=False))


def test_sketches_of_short_rows_are_exact() -> None:
    rng = np.random.default_rng(0)
    rows = [rng.integers(0, 4, n) for n in (3, 4, 20, 60, 60)]
    rows.append(rows[3].copy())
    sketch, distinct, total = moves.sketches(*moves.concatenate_ids(rows), None)
    assert distinct.tolist() == [len(grams(row.tolist())) for row in rows]
    assert total.tolist() == [0, 1, 17, 57, 57, 57]
    pairs = list(itertools.combinations(range(1, 6), 2))
    i, j = np.array(pairs).T
    got = moves.jaccard(sketch, i, j)
    sets = [grams(row.tolist()) for row in rows]
    np.testing.assert_allclose(got, [len(sets[a] & sets[b]) / len(sets[a] | sets[b]) for a, b in pairs])
    assert got[pairs.index((3, 5))] == 1.0
    assert np.isnan(moves.jaccard(sketch, np.array([0]), np.array([1]))[0])


def test_sketches_of_long_rows_estimate_within_the_stated_error() -> None:
    rng = np.random.default_rng(1)
    shared = rng.integers(0, 1_000, 6_000)
    rows = [np.concatenate([shared, rng.integers(0, 1_000, 2_000)]) for _ in range(20)]
    repeated = np.tile(rng.integers(0, 1_000, 2_000), 4)
    sketch, distinct, total = moves.sketches(*moves.concatenate_ids([*rows, repeated]), None)
    i, j = np.triu_indices(20, 1)
    # Jaccard of the sets: 6,000 / (6,000 + 2 x 2,000) = .6 within .044 / sqrt(about 10 independent pairs).
    assert moves.jaccard(sketch, i, j).mean() == pytest.approx(0.6, abs=0.06)
    np.testing.assert_allclose(distinct[:20] / total[:20], 1.0, atol=0.01)
    # 2,000 distinct of 7,997: .25 within the 3 % of sampling by hash.
    assert distinct[20] / total[20] == pytest.approx(0.25, abs=0.03)


def test_a_short_row_inside_a_long_one_is_not_biased() -> None:
    rng = np.random.default_rng(3)
    rows = []
    for _ in range(60):
        long = rng.integers(0, 10_000, 603)
        rows += [long, long[:100]]
    sketch = moves.sketches(*moves.concatenate_ids(rows), None)[0]
    got = moves.jaccard(sketch, np.arange(0, 120, 2), np.arange(1, 120, 2))
    # 97 grams inside of 600: .162; sd of one estimate sqrt(.162 x .838 / 128) = .033, of the mean of 60 .004.
    assert got.mean() == pytest.approx(97 / 600, abs=0.017)


def test_a_row_of_one_token_is_one_gram() -> None:
    _, distinct, total = moves.sketches(*moves.concatenate_ids([np.zeros(8_192, dtype=np.int32)]), None)
    assert distinct.tolist() == [1.0]
    assert total.tolist() == [8_189.0]


def test_changed_openers_are_the_largest_changes_in_words() -> None:
    now, base = np.zeros(4096), np.zeros(4096)
    now[3], base[3] = 30.0, 2.0
    now[7], base[7] = 1.0, 1.0
    words: list[str | None] = [None] * 4096
    words[3] = " Wait, no"
    changes = moves.changed_openers(now, 1_000.0, base, 2_000.0, words)
    # Bucket 3: 30 against 1 per 1,000 tokens; bucket 7: 1 against .5.
    assert [(c.opener, c.now_per_1000_tokens, c.base_per_1000_tokens) for c in changes] == [
        (" Wait, no", 30.0, 1.0),
        ("(not seen here)", 1.0, 0.5),
    ]
    assert moves.changed_openers(now, 0.0, base, 1.0, words) == ()


def test_word_stats_on_paper() -> None:
    # 128 rows of "a b a b": 512 words; unigrams {a, b} of 512; bigrams {ab, ba} of 3 x 128 = 384; trigrams of 256.
    stats = text.word_stats(["a b a b"] * 128, list(range(128)), 20_000)
    assert stats.words == 512
    assert stats.distinct.tolist() == [2.0, 2.0, 2.0]
    assert stats.total.tolist() == [512.0, 384.0, 256.0]
    assert stats.raw_bytes == 1_023


def test_word_budget_is_a_power_of_two_and_needs_256() -> None:
    assert text.word_stats(["one two"] * 100, [0] * 100, 20_000).words == 0
    assert text.word_stats(["one two three"] * 100, [0] * 100, 20_000).words == 256
    assert text.word_stats(["w " * 64] * 1_000, list(range(1_000)), 20_000).words == 16_384
    assert text.word_stats([], [], 20_000).words == 0
    assert text.word_stats(["a b"] * 500, [0] * 500, 0).words == 0


def test_length_and_number_of_rows_do_not_move_distinct_n() -> None:
    rng = np.random.default_rng(0)

    def page(words: int) -> str:
        return " ".join(f"w{int(i)}" for i in rng.integers(0, 400, words))

    short = text.word_stats([page(80) for _ in range(80)], list(range(80)), 4_096)
    long = text.word_stats([page(2_000) for _ in range(160)], list(range(160)), 4_096)
    assert short.words == long.words == 4_096
    assert short.distinct[1] / short.total[1] == pytest.approx(long.distinct[1] / long.total[1], abs=0.01)


def test_texts_without_spaces_are_counted_in_characters() -> None:
    assert text.row_words("安有十六个无花果因为七加九等于十六" * 20, 5) != []
    assert len(text.row_words("安" * 5_000, 5)) == 64
    assert len(text.row_words("x" * 1_000_000, 12_345)) == 64


def test_effective_numbers_on_paper() -> None:
    # Prompt 0: values 1 1 2 2 -> exp(ln 2) = 2. Prompt 1: 3 3 -> 1. Prompt 2 has one row and does not count.
    total, prompts = text.effective_numbers(np.array([1, 1, 2, 2, 3, 3, 9]), np.array([0, 0, 0, 0, 1, 1, 2]))
    assert (total, prompts) == (pytest.approx(3.0), 2)
