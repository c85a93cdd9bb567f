"""Metrics of words: at one budget for all parts, so that neither length nor number of completions moves them."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pyarrow as pa
import pytest
import scipy.stats
from audit_rows import ABOVE_HALF, TableShard, draw, prose

from rlmon.audit import wording as words_of
from rlmon.audit.contrast import Windows
from rlmon.audit.partial import partial
from rlmon.audit.rows import Settings
from rlmon.audit.wording import BINS, NAMES, Wording, usable, wording
from rlmon.metrics.formats import ModeSet
from rlmon.metrics.text import LEAST_WORDS

MODES = ModeSet.build(None)
DISTINCT, PACKED, NEAR, OPENINGS = NAMES
Rng = np.random.Generator


def sampled(rows: pa.Table, sample: int = 8_192) -> pa.Table:
    settings = Settings(modes=MODES, templates=frozenset(), group_size=None, sample_rows=sample, success=ABOVE_HALF)
    found = usable(partial(TableShard((rows,)), settings).samples)
    assert found is not None
    return found


def measured(rows: pa.Table, steps: int, ends: int = 8) -> Wording:
    numbers = np.arange(1, steps + 1)
    return wording(sampled(rows), None, numbers, Windows(base=numbers[:ends], last=numbers[-ends:]), 0.001)


def plain(words: int = 30):
    def write(rng: Rng, t: float, prompt: int) -> str:
        return prose(rng, prompt % 97, words=words)

    return write


def fixed(rng: Rng, t: float, prompt: int) -> str:
    if t < 0.5:
        return prose(rng, prompt % 97)
    return f"look at the quiet lamp, carry one stone over a bridge, then wait for songs. The answer is {prompt % 97}."


def test_a_run_that_keeps_its_words() -> None:
    found = measured(draw(1, steps=40, write=plain()), 40)
    assert set(found.series) == set(NAMES)
    assert found.steps.size == BINS
    assert found.steps[-1] == 40
    for name in NAMES:
        difference = found.ends[name]
        assert difference.low < 0 < difference.high or name == NEAR, name
    # Random words: nearly all pairs of words are new, no two completions are alike.
    assert found.ends[DISTINCT].base > 0.7
    assert found.ends[NEAR].last < 0.05
    assert found.rows == 40 * 64
    assert found.words % LEAST_WORDS == 0


def test_one_text_for_all_prompts_is_seen_in_every_metric() -> None:
    found = measured(draw(1, steps=40, write=fixed), 40)
    assert found.ends[NEAR].low > 0.9
    assert found.ends[DISTINCT].last < 0.1
    assert found.ends[PACKED].last > 3 * found.ends[PACKED].base
    assert found.ends[OPENINGS].last < 3
    # The curve turns where the text does.
    near = found.series[NEAR]
    assert near[:15].max() < 0.1
    assert near[17:].min() > 0.9


def test_longer_completions_do_not_move_the_share_of_distinct_pairs() -> None:
    def longer(rng: Rng, t: float, prompt: int) -> str:
        return prose(rng, prompt % 97, words=30 if t < 0.5 else 60)

    rows = draw(1, steps=40, write=longer)
    twice = measured(rows, 40).ends[DISTINCT]
    # The closing "The answer is" is a smaller part of a longer text; nothing else changes.
    assert 0 <= twice.change < 0.06
    # Without a budget the share falls: 60 words have 3,600 pairs, and the more are drawn the more are old.
    base, last = (unbudgeted(rows.slice(at, 512)) for at in (0, rows.num_rows - 512))
    assert last < 0.7 * base


def unbudgeted(rows: pa.Table) -> float:
    """Distinct word pairs of all word pairs."""
    texts = [text.split() for text in rows["completion"].to_pylist()]
    pairs = [pair for words in texts for pair in itertools.pairwise(words)]
    return len(set(pairs)) / len(pairs)


def test_more_completions_do_not_move_it_either() -> None:
    few, many = (measured(draw(1, steps=40, write=plain(), group=group), 40) for group in (4, 16))
    assert few.ends[DISTINCT].last == pytest.approx(many.ends[DISTINCT].last, abs=0.25)
    assert np.isfinite(many.series[DISTINCT]).all()


def test_a_part_that_cannot_fill_the_budget_is_not_measured() -> None:
    texts = [prose(np.random.default_rng(seed), seed, words=30) for seed in range(12)]  # 33 words or so each
    keys, rows = np.arange(12), np.arange(12)
    found, used = words_of._measure(texts, keys, keys, rows, 256, 8)
    assert DISTINCT in found
    assert used == 256
    found, used = words_of._measure(texts, keys, keys, rows, 512, 8)
    assert DISTINCT not in found
    assert used == 0


def test_the_interval_is_that_of_two_means_of_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    sample = sampled(draw(1, steps=20, prompts=16, group=2))
    base, last = (sample.filter(pa.compute.equal(sample["step"], step)) for step in (1, 20))
    rng = np.random.default_rng(0)
    values = iter([*rng.normal(1.0, 0.1, 8), *rng.normal(3.0, 0.4, 8)])
    seen: list[float] = []

    def measure(*_: object) -> tuple[dict[str, float], int]:
        seen.append(float(next(values)))
        return {DISTINCT: seen[-1]}, 256

    monkeypatch.setattr(words_of, "_measure", measure)
    found = words_of._ends(base, last, 0.01)[DISTINCT]
    chunks = len(seen) // 2
    before, after = np.array(seen[:chunks]), np.array(seen[chunks:])
    assert 4 <= chunks <= 8
    error = math.sqrt(before.var(ddof=1) / chunks + after.var(ddof=1) / chunks)
    reach = scipy.stats.t.ppf(0.995, chunks - 1) * error
    assert (found.base, found.last) == pytest.approx((before.mean(), after.mean()))
    assert found.high - found.change == pytest.approx(reach, rel=0.02)
    assert found.change - found.low == pytest.approx(reach, rel=0.02)


def test_too_few_words_are_not_measured() -> None:
    found = measured(draw(1, steps=40, prompts=2, group=2, write=lambda rng, t, prompt: str(prompt)), 40)
    assert DISTINCT not in found.ends
    assert DISTINCT not in found.series
    assert found.words == 0


def test_completions_of_one_prompt_are_never_near_duplicates_across() -> None:
    rows = draw(1, steps=10, prompts=1, write=lambda rng, t, prompt: "the same six words for it all")
    found = measured(rows.set_column(2, "prompt", pa.array(["one prompt"] * rows.num_rows)), 10, ends=2)
    assert NEAR not in found.series


def test_the_order_of_the_rows_does_not_matter() -> None:
    rows = draw(1, steps=20, write=plain())
    sample = sampled(rows)
    shuffled = sample.take(np.random.default_rng(0).permutation(sample.num_rows))
    again = usable([shuffled])
    assert again is not None
    numbers = np.arange(1, 21)
    ends = Windows(base=numbers[:4], last=numbers[-5:])
    one, two = (wording(table, None, numbers, ends, 0.001) for table in (sample, again))
    assert one.ends == two.ends
    for name in NAMES:
        np.testing.assert_array_equal(one.series[name], two.series[name])


def test_another_run_as_the_base() -> None:
    numbers = np.arange(1, 41)
    ends = Windows(base=numbers[:8], last=numbers[-8:])
    collapsed = sampled(draw(1, steps=40, write=lambda rng, t, prompt: fixed(rng, 1.0, prompt)))
    other = sampled(draw(2, steps=8, write=plain()))
    alone, against = (wording(collapsed, base, numbers, ends, 0.001).ends[NEAR] for base in (None, other))
    assert alone.base == pytest.approx(1.0)
    assert against.base < 0.05
    assert against.last == alone.last


def test_only_trained_rows_with_a_text_are_used() -> None:
    rows = draw(1, steps=2)
    evaluated = rows.set_column(1, "split", pa.array(["eval"] * rows.num_rows))
    settings = Settings(modes=MODES, templates=frozenset(), group_size=None, sample_rows=64, success=ABOVE_HALF)
    assert usable(partial(TableShard((evaluated,)), settings).samples) is None
    silent = rows.set_column(3, "completion", pa.nulls(rows.num_rows, pa.string()))
    assert usable(partial(TableShard((silent,)), settings).samples) is None
    assert usable([]) is None


def test_the_budget_is_a_power_of_two_that_nearly_all_parts_fill() -> None:
    assert words_of._common_budget([1_000] * 9 + [300]) == 512, "one part in ten goes without"
    assert words_of._common_budget([300, 300, 300]) == 256
    assert words_of._common_budget([100_000] * 4) == words_of.WORDS
    assert words_of._common_budget([0, 0]) == 0


def test_hostile_texts_are_measured_like_any_other() -> None:
    nasty = ["\x00" * 50, "\ud7ff\u200b " * 40, "a" * 20_000, "\n" * 300, "( " * 300]

    def write(rng: Rng, t: float, prompt: int) -> str:
        return nasty[int(rng.integers(len(nasty)))] + prose(rng, prompt)

    found = measured(draw(1, steps=10, write=write), 10, ends=2)
    assert all(math.isfinite(value) for values in found.series.values() for value in values[np.isfinite(values)])
