"""Properties of the audit: how rows were shared out to shards, or stood inside their step, changes nothing."""

from __future__ import annotations

import itertools
import json
import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from audit_rows import audited, draw, opened, table, told
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from rlmon.audit import counting
from rlmon.audit.result import Audit
from rlmon.metrics.formats import ModeSet

# A seed says all there is to say: nothing is gained by looking for a smaller one.
PHASES = (Phase.explicit, Phase.reuse, Phase.generate)
FEW = settings(max_examples=12, phases=PHASES)
STEPS = 10


def small(seed: int) -> pa.Table:
    """Ten steps of four prompts and four completions, with rewards in quarters (their sums are exact), some missing,
    some not finite, advantages, lengths and two sources."""

    def score(rng: np.random.Generator, t: float, prompt: int, text: str) -> float | None:
        drawn = int(rng.integers(40))
        return {0: None, 1: math.nan, 2: math.inf}.get(drawn, (drawn % 5) / 4)

    def columns(rng: np.random.Generator, t: float, prompt: int, text: str) -> dict[str, Any]:
        return {
            "source": "ab"[prompt % 2],
            "advantage": int(rng.integers(-8, 8)) / 4,
            "completion_tokens": len(text) // 4,
            "truncated": bool(rng.random() < 0.2),
        }

    return draw(seed, steps=STEPS, prompts=4, group=4, pool=12, score=score, columns=columns)


def without_texts(audit: Audit) -> dict[str, Any]:
    """What does not rest on the sample of texts: series, findings, formats and checks of them."""
    sampled = ("/text/distinct", "/text/compression", "/text/near", "sentence openings")
    words = ("near-duplicates", "word-diversity", "sentence-openings", "shortcut")
    return {
        "series": {name: values for name, values in audit.series.items() if not any(part in name for part in sampled)},
        "mode_shares": audit.mode_shares,
        "findings": audit.findings,
        "modes": [(one.mode, one.fate, one.base_share, one.last_share, one.last_seen_step) for one in audit.modes],
        "heat": audit.heat,
        "checks": sorted(
            (c.id, c.status, c.value, c.baseline, c.first_step) for c in audit.checks if c.id not in words
        ),
        "prompts": audit.run.prompts,
        "baseline": audit.run.baseline,
    }


def same(found: Any, expected: Any, exactly: bool = False) -> None:
    """Equal; but for the order in which floats were added, where it is not ``exactly``."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for name in expected:
            same(found[name], expected[name], exactly)
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected)
        for mine, other in zip(found, expected, strict=True):
            same(mine, other, exactly)
    elif isinstance(expected, float) and not exactly:
        assert found == pytest.approx(expected, rel=1e-9, abs=1e-12)
    else:
        assert found == expected


@FEW
@given(st.integers(0, 50), st.sets(st.integers(1, STEPS - 1)))
def test_a_split_at_steps_changes_nothing_but_the_sample(seed: int, cuts: set[int]) -> None:
    rows = small(seed)
    edges = [0, *(16 * cut for cut in sorted(cuts)), rows.num_rows]
    parts = [rows.slice(begin, end - begin) for begin, end in itertools.pairwise(edges)]
    whole, split = audited(rows), audited(opened(*parts))
    same(without_texts(split), without_texts(whole), exactly=True)
    # 160 rows are within the sample whatever the number of shards, so that even the texts are the same here.
    same(split.series, whole.series, exactly=True)


@FEW
@given(st.integers(0, 50), st.randoms(use_true_random=False))
def test_the_order_inside_a_step_changes_nothing(seed: int, random: Any) -> None:
    rows = small(seed)
    order = list(range(rows.num_rows))
    for begin in range(0, rows.num_rows, 16):
        step = order[begin : begin + 16]
        random.shuffle(step)
        order[begin : begin + 16] = step
    same(without_texts(audited(rows.take(order))), without_texts(audited(rows)))


@FEW
@given(st.integers(0, 50), st.randoms(use_true_random=False))
def test_the_order_of_whole_groups_changes_nothing_where_the_source_names_none(seed: int, random: Any) -> None:
    rows = small(seed)
    rows = rows.set_column(rows.column_names.index("group"), "group", pa.nulls(rows.num_rows, pa.string()))
    order = []
    for begin in range(0, rows.num_rows, 16):
        groups = [range(at, at + 4) for at in range(begin, begin + 16, 4)]
        random.shuffle(groups)
        order += [row for group in groups for row in group]
    # A prompt may be drawn twice in one step; side by side the two are told apart by the size of a group.
    same(
        without_texts(audited(opened(rows.take(order), group_size=4))),
        without_texts(audited(opened(rows, group_size=4))),
    )


@FEW
@given(st.integers(0, 50))
def test_an_audit_is_repeatable(seed: int) -> None:
    once, again = audited(small(seed)), audited(small(seed))
    assert json.dumps(told(once)) == json.dumps(told(again))
    assert once.samples == again.samples


text = st.text(st.characters(codec="utf-8"), max_size=12)
value = st.one_of(st.none(), st.floats(width=32), st.sampled_from([0.0, 1.0, 1e300, -1e300]))
any_row = st.fixed_dictionaries(
    {"step": st.integers(-2, 4), "split": st.sampled_from(["train", "train", "eval"])},
    optional={
        "prompt": st.one_of(st.none(), text),
        "completion": st.one_of(st.none(), text, st.sampled_from(["\\boxed{1}", "{}", "<a>1</a>", "```\nx\n```"])),
        "prompt_id": st.one_of(st.none(), text),
        "source": st.one_of(st.none(), text),
        "group": st.one_of(st.none(), st.sampled_from(["a", "b"])),
        "reward": value,
        "rewards": st.dictionaries(text, value, max_size=2),
        "advantage": value,
        "completion_tokens": st.one_of(st.none(), st.integers(0, 2**40)),
        "truncated": st.one_of(st.none(), st.booleans()),
    },
)


@settings(max_examples=60)
@given(st.lists(any_row, min_size=1, max_size=14), st.integers(0, 14))
def test_any_rows_are_audited_and_the_result_is_json(rows: list[dict[str, Any]], cut: int) -> None:
    whole = table(rows)
    if not any(row["split"] == "train" for row in rows):
        return  # nothing was trained: refused elsewhere
    audit = audited(opened(whole.slice(0, cut), whole.slice(cut)))
    json.dumps(told(audit), allow_nan=False)
    assert [check.reason for check in audit.checks if check.status == "error"] == []
    assert audit.run.completions == len(rows)
    counted = counting.count(opened(whole), ModeSet.build(None))
    assert counted.groups["rows"].sum() == len(rows), "every row is in one group"
