"""Series per step and the records that detectors fold, against slow definitions."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import scipy.stats
from audit_rows import ABOVE_HALF, TableShard, draw, opened, table
from hypothesis import given, settings
from hypothesis import strategies as st

from rlmon.audit import engine
from rlmon.audit.partial import BLOCK_STATISTICS, Partial, partial
from rlmon.audit.rows import Settings
from rlmon.audit.timeline import Timeline, _before, records, sums_of_steps, timeline
from rlmon.keys import source_key
from rlmon.metrics.catalog import METRICS
from rlmon.metrics.families import OF_ROWS
from rlmon.metrics.family import MODE
from rlmon.metrics.formats import ModeSet
from rlmon.metrics.ledger import CREDIBILITY, HARD_SOLVE_RATE, PRIOR_ATTEMPTS
from rlmon.metrics.step import Families
from rlmon.statistics import effective_number, js_distance

MODES = ModeSet.build(None)
RANGES = {metric.name: (metric.low, metric.high) for metric in METRICS}


def counted(rows: Any) -> Partial:
    return partial(
        TableShard((rows,)),
        Settings(modes=MODES, templates=frozenset(), group_size=None, sample_rows=64, success=ABOVE_HALF),
    )


def line_of(rows: Any, scalars: Any = None, base_steps: int = 8) -> Timeline:
    return timeline(counted(rows), MODES.names, scalars or {}, base_steps)


# --- formulas -----------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 6), st.integers(0, 9)), min_size=1, max_size=40))
def test_before_sums_what_came_at_earlier_steps(entries: list[tuple[int, int, int]]) -> None:
    key, at, values = (np.array(column) for column in zip(*entries, strict=True))
    found = _before(key, at, values.astype(np.float64))
    for i, (own_key, own_at, _) in enumerate(entries):
        assert found[i] == sum(value for k, step, value in entries if k == own_key and step < own_at)


def slow_lone_weight(rows: list[dict[str, Any]]) -> dict[int, float]:
    """Step by step, with a dictionary of attempts and SciPy's beta distribution."""
    attempts: dict[str, list[int]] = {}
    sources: dict[str, list[int]] = {}
    shares = {}
    for step in sorted({row["step"] for row in rows}):
        now = [row for row in rows if row["step"] == step]
        groups: dict[str, list[dict[str, Any]]] = {}
        for row in now:
            groups.setdefault(row["group"], []).append(row)
        top = bottom = 0.0
        for members in groups.values():
            bottom += sum(abs(row["advantage"]) for row in members)
            winners = [row for row in members if row["reward"] > 0.5]
            n, k = attempts.get(members[0]["prompt"], [0, 0])
            source_n, source_k = sources.get(members[0]["source"], [0, 0])
            mean = (source_k - k + 1) / (source_n - n + 2)
            below = scipy.stats.beta.cdf(
                HARD_SOLVE_RATE, PRIOR_ATTEMPTS * mean + k, PRIOR_ATTEMPTS * (1 - mean) + n - k
            )
            if n > 0 and len(winners) == 1 and below >= CREDIBILITY:
                top += abs(winners[0]["advantage"])
        for row in now:
            for table_, name in ((attempts, row["prompt"]), (sources, row["source"])):
                entry = table_.setdefault(name, [0, 0])
                entry[0] += 1
                entry[1] += row["reward"] > 0.5
        shares[step] = top / bottom
    return shares


def test_weight_of_lone_successes_against_a_slow_loop() -> None:
    rng = np.random.default_rng(3)
    rows = []
    for step in range(1, 25):
        for drawn in range(6):
            prompt = int(rng.integers(12))
            wins = rng.random(8) < (0.03 if prompt < 8 else 0.6)
            for win in wins.tolist():
                rows.append(
                    {
                        "step": step, "prompt": f"p{prompt}", "completion": "7", "group": f"{drawn}",
                        "source": "hard" if prompt < 6 else "mixed", "reward": float(win),
                        "advantage": float(rng.normal()),
                    }
                )  # fmt: skip
    expected = slow_lone_weight(rows)
    line = line_of(table(rows))
    found = line.series["rlmon/group/lone_success_weight"].tolist()
    assert found == pytest.approx([expected[step] for step in line.steps.tolist()])
    assert max(found) > 0.02, "there are such successes"
    assert found[0] == 0.0, "nothing is known of any prompt before the first step"


def test_evaluations_are_no_attempts_and_a_prompt_of_two_sources_counts_in_each() -> None:
    def visit(step: int, source: str, wins: int, split: str = "train") -> list[dict[str, Any]]:
        return [
            {
                "step": step, "split": split, "prompt": "p", "completion": "7", "group": f"{split}{source}",
                "source": source, "reward": float(i < wins), "advantage": 1.0,
            }
            for i in range(8)
        ]  # fmt: skip

    # Three visits without a success, then a lone one: hard in its source by then, whatever an evaluation says.
    hard = [row for step in (1, 2, 3) for row in visit(step, "a", 0)] + visit(4, "a", 1)
    line = line_of(table(hard))
    assert line.series["rlmon/group/lone_success_weight"].tolist() == [0.0, 0.0, 0.0, 0.125]
    solved_in_eval = line_of(table([*hard, *visit(3, "a", 8, "eval")]))
    assert solved_in_eval.series["rlmon/group/lone_success_weight"].tolist() == [0.0, 0.0, 0.0, 0.125]
    # In another source it was never tried.
    elsewhere = line_of(table([*hard[:-8], *visit(4, "b", 1)]))
    assert elsewhere.series["rlmon/group/lone_success_weight"].tolist() == [0.0] * 4


def test_without_advantages_there_is_no_weight() -> None:
    series = line_of(draw(0, steps=3)).series
    assert "rlmon/group/lone_success" in series
    assert not {"rlmon/group/lone_success_weight", "rlmon/group/lone_weight"} & series.keys()


# --- series -------------------------------------------------------------------------------------------------------

ROWS = [
    # Step 1: two prompts; formats bare, bare, boxed | bare, json.
    *[
        {"step": 1, "prompt": "a", "completion": text, "reward": reward, "completion_tokens": tokens, "truncated": cut}
        for text, reward, tokens, cut in (("7", 1.0, 2, False), ("8", 0.0, 4, True), ("\\boxed{7}", None, None, None))
    ],
    *[{"step": 1, "prompt": "b", "completion": text, "reward": 1.0} for text in ("9", '{"answer": 9}')],
    # Step 4: one prompt, all wrong.
    *[{"step": 4, "prompt": "a", "completion": "7", "reward": 0.0} for _ in range(2)],
    {"step": 4, "split": "eval", "prompt": "e", "completion": "7", "reward": 1.0},
]


def test_series_by_hand() -> None:
    line = line_of(table(ROWS), base_steps=1)
    assert line.steps.tolist() == [1, 4]
    got = {name: values.tolist() for name, values in line.series.items()}
    # Shares 3/5, 1/5, 1/5; then one format.
    shares = np.array([3, 1, 1])
    assert got["rlmon/format/effective"] == pytest.approx([float(effective_number(shares)), 1.0])
    assert got["rlmon/format/top_share"] == [0.6, 1.0]
    assert got["rlmon/format/share/json"] == [0.2, 0.0]
    assert "rlmon/format/share/python" not in got
    assert line.mode_shares["boxed"].tolist() == [0.2, 0.0]
    # Rewarded: bare, bare, json; then none.
    assert got["rlmon/format/effective_correct"][0] == pytest.approx(float(effective_number(np.array([2, 1]))))
    assert math.isnan(got["rlmon/format/effective_correct"][1])
    assert got["rlmon/health/reward_mean"] == [0.75, 0.0]
    assert got["rlmon/health/reward_missing"] == [1.0, 0.0]
    assert got["rlmon/health/length_mean"][0] == 3.0
    assert math.isnan(got["rlmon/health/length_mean"][1])
    assert got["rlmon/health/truncated"][0] == 0.5
    # Two scored groups: a has 1 and 0, b is all good.
    assert got["rlmon/group/all_good"] == [0.5, 0.0]
    assert got["rlmon/group/all_bad"] == [0.0, 1.0]
    assert got["rlmon/group/silent"] == [0.5, 1.0]
    assert got["rlmon/group/lone_success"] == [0.5, 0.0]
    # Standard deviations of (1, 0) and (1, 1): sqrt(1/2) and 0.
    assert got["rlmon/group/reward_std"] == pytest.approx([math.sqrt(0.5) / 2, 0.0])
    assert got["rlmon/format/js_to_base"][0] == 0.0
    assert got["rlmon/format/js_to_base"][1] == pytest.approx(js_distance(np.array([1, 0, 0]), shares))
    # Formats across prompts: 3 x 2 pairs, 2 agree; within: 4 pairs, 1 agrees.
    assert got["rlmon/collision/mode_across"][0] == pytest.approx(2 / 6)
    assert got["rlmon/collision/mode_within"] == pytest.approx([1 / 4, 1.0])
    assert got["rlmon/collision/mode_across_effective"][0] == pytest.approx(3.0)
    assert math.isnan(got["rlmon/collision/mode_across"][1]), "one prompt has no pair across"
    assert got["exact duplicate share"] == [0.0, 0.5]


def test_js_distance_is_to_the_pooled_base() -> None:
    rows = draw(2, steps=12)
    found = line_of(rows, base_steps=3)
    counts = counted(rows).groups["modes"]
    step = counted(rows).groups["step"]
    by_step = np.stack([counts[step == s].sum(axis=0) for s in range(1, 13)])
    expected = [js_distance(now, by_step[:3].sum(axis=0)) for now in by_step]
    assert found.series["rlmon/format/js_to_base"].tolist() == pytest.approx(expected)


def test_scalars_have_steps_of_their_own_and_rows_win() -> None:
    scalars = {
        "rlmon/health/reward_mean": [(1, 99.0), (4, 99.0)],
        "rlmon/entropy/mean": [(2, 1.5), (4, math.nan), (9, 0.5)],
    }
    line = line_of(table(ROWS), scalars)
    assert line.steps.tolist() == [1, 2, 4, 9]
    assert line.series["rlmon/health/reward_mean"].tolist()[0] == 0.75
    entropy = line.series["rlmon/entropy/mean"].tolist()
    assert (entropy[1], entropy[3]) == (1.5, 0.5)
    assert math.isnan(entropy[0])
    assert math.isnan(entropy[2]), "a value that is not finite is not measured; a check counts it"
    assert math.isnan(line.series["rlmon/format/effective"][1])


def test_a_run_of_evaluations_only_has_no_training_series() -> None:
    line = line_of(table([{"step": 1, "split": "eval", "prompt": "a", "completion": "7", "reward": 1.0}]))
    assert line.series == {}
    assert line.steps.size == 0


def test_rows_and_monitor_finish_alike() -> None:
    """Of several steps at once the same as of one after the other, null for null."""
    found, families = (
        counted(draw(6, steps=5, score=lambda r, t, p, x: [0.0, 1.0, None][int(r.integers(3))])),
        Families(OF_ROWS, MODES.names),
    )
    _, sums = sums_of_steps(found, families)
    base = dict(families.of_base(sums[0]))
    at_once = families.finish_steps(sums, base)
    for at, one in enumerate(sums):
        metrics, missing = families.finish(one, base)
        for name, value in metrics.items():
            told = at_once.get(name)
            assert (None if told is None or np.isnan(told[at]) else told[at]) == value, name
            assert (value is None) == (name in missing)
    measured = {name for name, values in at_once.items() if np.isfinite(values).any()}
    assert {"rlmon/collision/answer_within", "rlmon/format/reward/json", "rlmon/format/extinct"} <= measured
    # What the rows of a log do not hold is no zero.
    unknown = ("format/reasoning_share", "health/non_finite", "health/length_p5", "group/coverage", "text/repetition")
    assert not measured & {f"rlmon/{name}" for name in unknown}


# --- records ------------------------------------------------------------------------------------------------------


def test_records_carry_blocks_and_scalars() -> None:
    rows = draw(3, steps=4, prompts=4, group=4)
    scalars = {
        "rlmon/entropy/mean": [(1, 1.5), (3, math.inf)],
        "rlmon/kl/mean": [(2, 0.25)],
        "rlmon/health/length_mean": [(2, 80.0), (5, 90.0)],
    }
    found = counted(rows)
    line = timeline(found, MODES.names, scalars, 8)
    folded = records(found, line, scalars, characters=False)
    assert [record.step for record in folded] == [1, 2, 3, 4, 5]
    # Two blocks of two prompts, and one of what was logged with the size of the whole step.
    first = folded[0].blocks
    assert [(block.prompts, block.completions) for block in first] == [(2, 8), (2, 8), (4, 16)]
    assert first[2].stats == {"entropy_nats": 1.5}
    assert folded[1].blocks[2].stats == {"kl_nats": 0.25, "completion_tokens": 80.0}
    assert folded[4].blocks[0].stats == {"completion_tokens": 90.0}
    assert [record.metrics["rlmon/health/non_finite"] for record in folded] == [0.0, 0.0, 1.0, 0.0, 0.0]
    for record in folded:
        assert record.sources == {source_key("all"): "all"}
        for block in record.blocks:
            assert block.source == source_key("all")
            assert all(math.isfinite(value) for value in block.stats.values())


def test_lengths_in_characters_stand_in_only_where_they_are_asked_for() -> None:
    rows = table([{"step": 1, "prompt": "a", "completion": text, "reward": 1.0} for text in ("four", "eight888")])
    found = counted(rows)
    line = timeline(found, MODES.names, {}, 8)
    (with_characters,) = records(found, line, {}, characters=True)
    assert with_characters.blocks[0].stats["completion_tokens"] == 6.0
    (without,) = records(found, line, {}, characters=False)
    assert "completion_tokens" not in without.blocks[0].stats
    # Tokens of the rows win over the logged mean.
    tokens = table([{"step": 1, "prompt": "a", "completion": "7", "completion_tokens": 3}] * 2)
    scalars = {"rlmon/health/length_mean": [(1, 99.0)]}
    counted_tokens = counted(tokens)
    (record,) = records(counted_tokens, timeline(counted_tokens, MODES.names, scalars, 8), scalars, characters=False)
    assert [block.stats.get("completion_tokens") for block in record.blocks] == [3.0]


def test_the_engine_takes_characters_only_where_nothing_counts_tokens() -> None:
    rows = draw(3, steps=12)
    assert engine._case(opened(rows), None, 1, None).characters
    tokens = [(step, 30.0) for step in range(1, 13)]
    assert not engine._case(opened(rows, scalars={"completions/mean_length": tokens}), None, 1, None).characters


@settings(max_examples=20)
@given(st.integers(0, 10_000))
def test_step_values_lie_in_their_ranges(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = draw(
        seed, steps=3, prompts=int(rng.integers(1, 5)), group=int(rng.integers(1, 5)),
        score=lambda r, t, prompt, text: [0.0, 1.0, None, math.nan, -2.5][int(r.integers(5))],
    )  # fmt: skip
    found = counted(rows)
    for name, values in timeline(found, MODES.names, {}, 8).series.items():
        known = values[np.isfinite(values)]
        of_mode = name.rpartition("/")[2] in MODES.names
        low, high = RANGES.get(f"{name.rpartition('/')[0]}/{MODE}" if of_mode else name, (None, None))
        assert low is None or (known >= low - 1e-12).all(), name
        assert high is None or (known <= high).all(), name
    stats = found.blocks["stats"]
    for name in BLOCK_STATISTICS.names:
        if "collision" in name or name.startswith("all_"):
            known = stats[name][np.isfinite(stats[name])]
            assert ((known >= 0) & (known <= 1)).all()
