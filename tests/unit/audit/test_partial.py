"""What is counted of a shard: by hand on a few rows, and against the live metrics on many."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import one_round
import pyarrow as pa
import pytest
from audit_rows import ABOVE_HALF, TableShard, draw, table

from rlmon.audit import partial as counting
from rlmon.audit import sampled
from rlmon.audit.partial import BLOCK_STATISTICS, Partial, merge, partial
from rlmon.audit.rows import LISTED_PROMPT_CHARACTERS, Settings
from rlmon.metrics.features import Featurizer
from rlmon.metrics.formats import ModeSet
from rlmon.metrics.prompts import template_name
from rlmon.records import RolloutBatch

MODES = ModeSet.build(None)
BOXED, BARE, JSON = (MODES.names.index(name) for name in ("boxed", "bare", "json"))


def counted(
    *tables: pa.Table, templates: frozenset[str] = frozenset(), group_size: int | None = None, sample: int = 64
) -> Partial:
    settings = Settings(modes=MODES, templates=templates, group_size=group_size, sample_rows=sample, success=ABOVE_HALF)
    return partial(TableShard(tables), settings)


def rows_of(step: int, prompt: str, texts: list[str], rewards: list[Any], **more: Any) -> list[dict[str, Any]]:
    return [
        {"step": step, "prompt": prompt, "completion": text, "reward": reward} | more
        for text, reward in zip(texts, rewards, strict=True)
    ]


# --- groups -------------------------------------------------------------------------------------------------------


def test_columns_of_a_group_by_hand() -> None:
    texts = ["\\boxed{7}", "7", "7", '{"answer": 8}']
    found = counted(
        table(
            [
                row | {"advantage": advantage, "completion_tokens": tokens, "truncated": truncated}
                for row, advantage, tokens, truncated in zip(
                    rows_of(3, "a", texts, [1.0, 0.0, None, 0.25]),
                    [1.5, -0.5, None, -1.0],
                    [4, 1, None, 7],
                    [False, True, None, True],
                    strict=True,
                )
            ]
        )
    ).groups
    assert {name: values.shape[0] for name, values in found.items()} == dict.fromkeys(found, 1), "one group"
    one = {name: values[0] for name, values in found.items()}
    assert (one["step"], one["eval"], one["rows"]) == (3, False, 4)
    # Three of four are scored; above one half: the first.
    assert (one["scored"], one["missing"], one["non_finite"], one["successes"]) == (3, 1, 0, 1)
    assert one["reward"] == 1.25
    # 1, 0, 1/4: mean 5/12, squares (7/12)^2 + (5/12)^2 + (2/12)^2 = 78/144, over 2: 39/144.
    assert one["reward_std"] == pytest.approx(math.sqrt(39 / 144))
    assert (one["silent"], one["lone"]) == (False, True)
    # |advantages| 1.5 + 0.5 + 1; the lone success carries 1.5 of them.
    assert (one["weight"], one["weight_lone"]) == (3.0, 1.5)
    assert (one["modes"][BOXED], one["modes"][BARE], one["modes"][JSON]) == (1, 2, 1)
    assert one["modes"].sum() == 4
    assert one["modes_correct"].sum() == one["modes_correct"][BOXED] == 1
    assert one["modes_scored"][BARE] == 1, "the third has no reward"
    assert (one["modes_reward"][BOXED], one["modes_reward"][JSON]) == (1.0, 0.25)
    # Answers 7, 7, 7, 8: exp of the entropy of (3/4, 1/4).
    assert one["answered"] == 4
    assert one["answers"] == pytest.approx(math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25))))
    assert math.isnan(one["answers_correct"]), "one success has no diversity"
    # Templates: boxed, bare twice, JSON.
    assert one["templates"] == pytest.approx(math.exp(-(0.5 * math.log(0.5) + 0.5 * math.log(0.25))))
    assert one["characters"] == sum(map(len, texts))
    assert one["characters_correct"] == len(texts[0])
    assert (one["tokens"], one["tokens_known"]) == (12, 3)
    assert (one["truncated"], one["truncated_known"]) == (2, 3)


@pytest.mark.parametrize(
    ("rewards", "silent", "lone"),
    [
        ([1.0, 1.0], True, False),
        ([0.0, 0.0], True, False),
        ([1.0, 0.0], False, True),
        ([1.0, None], False, False),
        ([1.0, math.nan], False, False),
        ([1e6, 1e6 + 1e-4], True, False),  # 1e-10 of the reward is no spread
    ],
)
def test_silent_and_lone_groups(rewards: list[Any], silent: bool, lone: bool) -> None:
    groups = counted(table(rows_of(1, "a", ["7", "8"], rewards))).groups
    assert (groups["silent"][0], groups["lone"][0]) == (silent, lone)


def test_values_that_are_not_finite_are_counted_once_per_row_at_least() -> None:
    rows = rows_of(1, "a", ["7"] * 4, [math.nan, math.inf, 1.0, None])
    # The third row's own reward is finite, but two of its parts are not; a part that is null is not given.
    rows[2]["rewards"] = {"f": math.nan, "g": -math.inf, "h": None}
    groups = counted(table(rows)).groups
    assert groups["non_finite"].tolist() == [4.0]
    assert groups["missing"].tolist() == [1.0]
    assert groups["scored"].tolist() == [1.0]
    assert groups["reward"].tolist() == [1.0]


def test_groups_are_runs_of_equal_prompts() -> None:
    rows = [
        *rows_of(1, "a", ["1", "2"], [0, 1]),
        *rows_of(1, "b", ["1", "2", "3"], [0, 1, 1]),
        *rows_of(1, "a", ["1", "3"], [1, 1]),
        *rows_of(2, "a", ["1", "2"], [0, 1]),
        *rows_of(2, "a", ["1", "2"], [0, 1], split="eval"),
    ]
    groups = counted(table(rows)).groups
    assert groups["rows"].tolist() == [2, 3, 2, 2, 2]
    assert groups["step"].tolist() == [1, 1, 1, 2, 2]
    assert groups["eval"].tolist() == [False] * 4 + [True]
    assert len(set(groups["prompt"].tolist())) == 2


def test_the_group_size_parts_a_prompt_that_was_drawn_twice_in_a_row() -> None:
    rows = table(rows_of(1, "a", ["1"] * 8, [1] * 8))
    assert counted(rows).groups["rows"].tolist() == [8]
    assert counted(rows, group_size=4).groups["rows"].tolist() == [4, 4]


def test_the_sources_own_groups_count_inside_a_step() -> None:
    rows = [
        *rows_of(1, "a", ["1", "2"], [0, 1], group="x"),
        *rows_of(1, "b", ["1"], [0], group="y"),
        *rows_of(1, "a", ["3"], [1], group="x"),
        *rows_of(2, "a", ["1"], [1], group="x"),
    ]
    assert sorted(counted(table(rows)).groups["rows"].tolist()) == [1, 1, 3]


def test_rows_without_a_group_are_grouped_by_prompt_not_thrown_together() -> None:
    rows = [
        *rows_of(1, "a", ["1", "2"], [0, 1], group="x"),
        *rows_of(1, "b", ["1", "2"], [0, 1]),
        *rows_of(1, "c", ["1"], [0]),
    ]
    assert sorted(counted(table(rows)).groups["rows"].tolist()) == [1, 2, 2]


# --- prompts and sources ------------------------------------------------------------------------------------------


def test_a_prompts_own_identity_counts_and_its_text_where_it_has_none() -> None:
    rows = [
        {"step": 1, "prompt": "same words", "prompt_id": "p1", "completion": "1"},
        {"step": 1, "prompt": "same words", "prompt_id": "p2", "completion": "1"},
        {"step": 1, "prompt": "other words", "prompt_id": None, "completion": "1"},
        {"step": 1, "prompt": "third words", "prompt_id": None, "completion": "1"},
    ]
    found = counted(table(rows))
    assert len(set(found.groups["prompt"].tolist())) == 4
    shown = sorted(found.prompts.values())
    assert ("p1", "same words") in shown
    assert ("p2", "same words") in shown
    assert {text for _, text in shown} == {"same words", "other words", "third words"}
    # Where there is no identity the name is the key.
    assert all(name == f"{key:016x}" for key, (name, text) in found.prompts.items() if text == "other words")


def test_without_prompts_rows_of_different_steps_and_shards_are_different_prompts() -> None:
    first = table([{"step": 1, "completion": "1"}, {"step": 1, "completion": "2"}, {"step": 2, "completion": "3"}])
    second = table([{"step": 3, "completion": "1"}, {"step": 3, "completion": "2"}])
    keys = np.concatenate([counted(first).groups["prompt"], counted(second).groups["prompt"]])
    assert np.unique(keys).size == 5
    grouped = table([{"step": step, "completion": "1", "group": name} for step in (1, 2) for name in "aab"])
    assert np.unique(counted(grouped).groups["prompt"]).size == 4
    # A pair inside group a of each step: 1 + 1.
    assert counted(grouped).steps["pairs_mode"]["within_pairs"].tolist() == [1.0, 1.0]


def test_long_prompts_are_cut_and_the_smallest_keys_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counting, "MAX_PROMPTS", 3)
    rows = table([{"step": 1, "prompt": f"{n} " * 2_000, "completion": "1"} for n in range(10)])
    found = counted(rows)
    assert list(found.prompts) == sorted(set(found.groups["prompt"].tolist()))[:3]
    assert all(text is not None and len(text) == LISTED_PROMPT_CHARACTERS for _, text in found.prompts.values())


def test_sources_are_given_or_frequent_templates() -> None:
    given = table([{"step": 1, "prompt": "a", "completion": "1", "source": name} for name in ("x", None, "y", "x")])
    assert counted(given).sources == ["x", "unnamed", "y"]
    sums, words = "3 + 4 = ?", "spell the word"
    rows = table([{"step": 1, "prompt": prompt, "completion": "1"} for prompt in (sums, "5 + 6 = ?", words)])
    frequent = template_name(sums)
    found = counted(rows, templates=frozenset([frequent]))
    assert [found.sources[code] for code in found.groups["source"]] == [frequent, frequent, "other"]
    assert counted(rows).sources == ["all"]


# --- pairs and blocks ---------------------------------------------------------------------------------------------


def test_pairs_of_a_step_by_hand() -> None:
    rows = [*rows_of(1, "a", ["7", "\\boxed{7}"], [1, 0]), *rows_of(1, "b", ["8", "7"], [1, 1])]
    steps = counted(table([*rows, *rows_of(1, "e", ["7"] * 9, [1] * 9, split="eval")])).steps
    # Bare, boxed | bare, bare. Across: 4 pairs, 2 bare-bare; within: 2 pairs, the second agrees.
    assert steps["pairs_mode"].tolist() == [(2.0, 4.0, 1.0, 2.0)]
    # Rewarded: bare | bare, bare. Across: 2 pairs that agree; within: 1 that agrees.
    assert steps["pairs_mode_correct"].tolist() == [(2.0, 2.0, 1.0, 1.0)]
    # Answers 7, 7 | 8, 7: across 2 of 4, within 1 of 2.
    assert steps["pairs_answer"].tolist() == [(2.0, 4.0, 1.0, 2.0)]
    assert (steps["distinct_texts"].tolist(), steps["texts"].tolist()) == ([3.0], [4.0])


def as_batch(rows: pa.Table, step: int, source: str = "all") -> RolloutBatch:
    """The rows of a step as the live monitor would see them; groups are whole and stand together."""
    mine = rows.filter(pa.compute.equal(rows["step"], step))
    size = mine.num_rows
    return RolloutBatch(
        round=step,
        split="train",
        step=step,
        group_size=4,
        global_row=range(size),
        prompt_id=mine["prompt"].to_pylist(),
        source=[source] * size,
        prompts=mine["prompt"].to_pylist(),
        completions=mine["completion"].to_pylist(),
        reward=mine["reward"].to_pylist(),
    )


LIVE = ("mode_collision", "mode_collision_within", "mode_collision_correct", "template_collision",
        "template_collision_within", "template_collision_correct_within", "answer_collision", "reward", "all_good",
        "all_bad")  # fmt: skip


def test_a_block_is_the_live_block() -> None:
    # Three prompts make one block, so that it does not matter in which order prompts are dealt.
    rows = draw(4, steps=6, prompts=3, group=4, score=lambda rng, t, prompt, text: float(rng.integers(4)) / 4)
    blocks = counted(rows).blocks
    assert blocks["step"].tolist() == [1, 2, 3, 4, 5, 6]
    featurizer = Featurizer(MODES, b"secret")
    for at, step in enumerate(range(1, 7)):
        batch = as_batch(rows, step)
        (live,) = one_round.blocks(batch, featurizer.features(batch), success_B=ABOVE_HALF.of(batch.reward, {}))
        own = dict(zip(BLOCK_STATISTICS.names, blocks["stats"][at].tolist(), strict=True))
        # What the live block leaves out, since nothing measures it, is NaN here: here token counts.
        for name in (*LIVE, "completion_tokens"):
            assert own[name] == pytest.approx(live.stats.get(name, math.nan), nan_ok=True), name
        assert (blocks["prompts"][at], blocks["completions"][at]) == (live.prompts, live.completions) == (3, 12)


def test_pair_sums_of_a_step_are_the_live_ones() -> None:
    rows = draw(5, steps=4, prompts=20, group=4)
    steps = counted(rows).steps
    featurizer = Featurizer(MODES, b"secret")
    for at, step in enumerate(range(1, 5)):
        batch = as_batch(rows, step)
        pairs = one_round.sums(batch, featurizer.features(batch))["collision"]
        for kernel in ("mode", "mode_correct", "template", "template_correct", "answer"):
            assert steps[f"pairs_{kernel}"][at].item() == pytest.approx(pairs[kernel].item())


@pytest.mark.parametrize(
    ("prompts", "expected"), [(1, [1]), (3, [3]), (4, [2, 2]), (5, [3, 2]), (20, [3, 3, 2] * 2 + [2, 2])]
)
def test_prompts_are_dealt_to_at_most_eight_blocks(prompts: int, expected: list[int]) -> None:
    # min(8, P // 2) blocks; the first of them get the larger halves.
    rows = [row for n in range(prompts) for row in rows_of(1, f"p{n}", ["7", "8"], [1, 0])]
    blocks = counted(table(rows)).blocks
    assert sorted(blocks["prompts"].tolist(), reverse=True) == sorted(expected, reverse=True)
    assert blocks["completions"].tolist() == [2 * n for n in blocks["prompts"].tolist()]


def test_blocks_hold_one_source_each_and_no_evaluation() -> None:
    rows = [
        row for n in range(8) for row in rows_of(1, f"p{n}", ["7"], [n % 2], source="even" if n % 2 == 0 else "odd")
    ]
    found = counted(table([*rows, *rows_of(1, "e", ["7"], [1], split="eval")]))
    names = [found.sources[code] for code in found.blocks["source"]]
    assert sorted(names) == ["even", "even", "odd", "odd"]
    for name, stats in zip(names, found.blocks["stats"], strict=True):
        assert stats["reward"] == (0.0 if name == "even" else 1.0)


# --- pieces, merging, samples -------------------------------------------------------------------------------------


def test_pieces_end_where_a_step_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = draw(6, steps=12, prompts=4, group=4)
    whole = counted(rows)
    monkeypatch.setattr(counting, "WORKING_BYTES", 1_000)  # about five rows
    cut = [rows.slice(at, 7) for at in range(0, rows.num_rows, 7)]  # batches that end inside groups
    assert_same(counted(*cut), whole)


def test_a_step_larger_than_a_piece_is_counted_as_a_whole_up_to_its_own_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counting, "WORKING_BYTES", 1_000)
    rows = draw(6, steps=1, prompts=8, group=8)
    batches = [rows.slice(at, 5) for at in range(0, rows.num_rows, 5)]
    assert_same(counted(*batches), counted(rows))
    monkeypatch.setattr(counting, "STEP_BYTES", 1_000)
    found = counted(*batches)
    assert found.groups["rows"].size > 8, "groups are cut"
    assert found.groups["rows"].sum() == 64, "no row is lost"


def assert_same(found: Partial, expected: Partial) -> None:
    for kind in ("groups", "steps", "blocks"):
        mine, other = getattr(found, kind), getattr(expected, kind)
        assert mine.keys() == other.keys()
        for name in other:
            # NaN equals itself only in plain arrays.
            tables = [one.view(np.float64) if one.dtype.names else one for one in (mine[name], other[name])]
            np.testing.assert_array_equal(*tables, err_msg=f"{kind} {name}")
    assert found.prompts == expected.prompts
    assert (found.rows, found.sources) == (expected.rows, expected.sources)


def test_merging_keeps_the_order_and_renames_sources() -> None:
    one = counted(table(rows_of(1, "a", ["7"], [1], source="x")))
    two = counted(table([*rows_of(2, "b", ["7"], [1], source="y"), *rows_of(2, "c", ["7"], [0], source="x")]))
    whole = merge([one, two])
    assert whole.sources == ["x", "y"]
    assert [whole.sources[code] for code in whole.groups["source"]] == ["x", "y", "x"]
    assert whole.groups["step"].tolist() == [1, 2, 2]
    assert whole.rows == 3
    assert_same(merge([merge([one]), two]), whole)
    assert merge([]).groups == {}


def test_what_a_shard_passed_over_is_counted_once() -> None:
    rows = table(rows_of(1, "a", ["7"], [1]))
    settings = Settings(modes=MODES, templates=frozenset(), group_size=None, sample_rows=8, success=ABOVE_HALF)
    found = partial(TableShard((rows, rows), duplicates=2, damaged=3), settings)
    assert (found.rows, found.duplicates, found.damaged) == (2, 2, 3)
    empty = partial(TableShard((rows.slice(0, 0),), damaged=1), settings)
    assert (empty.rows, empty.damaged, empty.groups) == (0, 1, {})


def test_the_sample_is_spread_over_the_steps_and_bounded() -> None:
    rows = draw(7, steps=16, prompts=8, group=8)
    (sample,) = counted(rows, sample=64).samples
    ranked = sample.filter(pa.compute.greater_equal(sample["rank"], 0))
    # 64 over 16 steps: four of each, the ranks 0 to 3.
    assert ranked["step"].to_pylist().count(9) == 4
    assert ranked.num_rows == 64
    assert sorted(set(ranked["rank"].to_pylist())) == [0, 1, 2, 3]
    # And of every mode two from both ends.
    by_mode = sample.filter(pa.compute.equal(sample["mode"], JSON))
    first = rows["completion"].to_pylist()
    written = [text for text in first if MODES.parse(text) == "json"]
    assert set(written[:2] + written[-2:]) <= set(by_mode["completion"].to_pylist())


def test_sampled_texts_are_cut() -> None:
    rows = table([{"step": 1, "prompt": "p" * 9_000, "completion": "é" * 9_000, "reward": 1.0}])
    (sample,) = counted(rows).samples
    assert sample["completion"].to_pylist() == ["é" * sampled.COMPLETION_CHARACTERS]
    assert sample["prompt"].to_pylist() == ["p" * sampled.PROMPT_CHARACTERS]


def test_rows_without_texts_are_counted_without_features() -> None:
    found = counted(table([{"step": 1, "prompt": "a", "reward": 1.0}, {"step": 1, "prompt": "a", "reward": 0.0}]))
    assert found.groups["modes"].sum() == 0
    assert found.groups["scored"].tolist() == [2.0]
    assert found.groups["lone"].tolist() == [True]
    assert not found.steps, "no row has a format, so there are no pairs"
