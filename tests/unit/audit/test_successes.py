"""What counts as a success in runs that others left behind: the live rule on their first steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from audit_rows import audited, opened

from rlmon.audit import successes
from rlmon.audit.rows import rewards_by_function
from rlmon.audit.run import ROWS
from rlmon.criterion import Criterion
from rlmon.metrics.success import GRADED


def rows_of(steps: int, **functions: Any) -> pa.Table:
    """Each step has 8 prompts of 4 completions; a function is one value, or one per completion of a step."""
    count = 32 * steps
    columns = {name: np.resize(np.asarray(value, dtype=object), count) for name, value in functions.items()}
    rewards = [[(name, columns[name][i]) for name in columns] for i in range(count)]
    total = [None if all(v is None for _, v in row) else sum(v for _, v in row if v is not None) for row in rewards]
    return pa.table(
        {
            "step": np.repeat(np.arange(1, steps + 1), 32),
            "split": ["train"] * count,
            "prompt": [f"{i // 4 % 8} + {i // 128} = ?" for i in range(count)],
            "completion": ["the answer is 7" if i % 2 else "\\boxed{7}" for i in range(count)],
            "group": [str(i // 4) for i in range(count)],
            "reward": pa.array(total, pa.float64()),
            "rewards": pa.array(rewards, ROWS.field("rewards").type),
            "advantage": [0.5 if i % 2 else -0.5 for i in range(count)],
        }
    )


def checks_of(*tables: pa.Table, **how: Any) -> Mapping[str, Any]:
    return {check.id: check for check in audited(opened(*tables), **how).checks}


def test_functions_of_a_map_column_by_hand() -> None:
    rows = rows_of(1, a=[1.0, None, 0.0, 0.5], b=2.0)
    found = rewards_by_function(rows.slice(1, 4))
    np.testing.assert_array_equal(found["a"], [np.nan, 0.0, 0.5, 1.0])
    np.testing.assert_array_equal(found["b"], [2.0] * 4)
    assert rewards_by_function(rows.drop_columns("rewards")) == {}


def test_right_format_and_wrong_answers_are_not_solved() -> None:
    run = opened(rows_of(12, accuracy=0.0, format=1.0))
    assert str(successes.definition(run, None)) == "accuracy above 0.5 and format above 0.5"
    audit = audited(run)
    assert np.nanmax(np.array(audit.series["rlmon/group/all_bad"], dtype=float)) == 1.0
    assert np.nanmax(np.array(audit.series["rlmon/group/all_good"], dtype=float)) == 0.0
    assert "rlmon/format/effective_correct" not in audit.series
    given = audited(run, success="format")
    assert np.nanmin(np.array(given.series["rlmon/group/all_good"], dtype=float)) == 1.0


def test_graded_rewards_skip_what_reads_successes_and_a_threshold_brings_it_back() -> None:
    graded = rows_of(12, quality=[0.1, 0.9, 0.35, 0.6])
    found = checks_of(graded)
    for check in ("pass-at-k", "forgotten-prompts", "impossible-prompts", "correct-diversity", "silent-groups-bad"):
        assert found[check].status == "skip", check
        assert GRADED in str(found[check].reason), check
        assert "--success" in str(found[check].reason), check
    assert checks_of(graded, success=0.5)["pass-at-k"].status == "pass"


@pytest.mark.parametrize("weights", [{}, {"probe": 0.0}])
def test_weights_and_shards_of_a_run(weights: Mapping[str, float]) -> None:
    """A function that is only logged is no part; one that was never above 0 until the last shard is settled by it."""
    first, last = (
        rows_of(6, accuracy=[0, 1], probe=1.0, extra=0.0),
        rows_of(6, accuracy=[0, 1], probe=1.0, extra=[0, -1]),
    )
    run = opened(first, first, last)
    object.__setattr__(run, "reward_weights", weights)
    above = dict(successes.definition(run, None).above)
    assert above == ({"accuracy": 0.5} if weights else {"accuracy": 0.5, "probe": 0.5})
    assert str(successes.definition(run, Criterion.parse("accuracy"))) == "accuracy above 0.5"


def test_a_run_of_totals_alone() -> None:
    def totals(values: Sequence[float]) -> pa.Table:
        return rows_of(12, r=values).drop_columns("rewards")

    assert str(successes.definition(opened(totals([0.0, 1.0])), None)) == "the total reward above 0.5"
    assert str(successes.definition(opened(totals([-1.0, 1.0])), None)) == "the total reward above 0.5"
    assert successes.definition(opened(totals([0.1, 0.4, 0.9])), None).reason == GRADED
