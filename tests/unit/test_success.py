"""What counts as a success: decided once, from the rewards that all ranks have in common."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import rlmon
from rlmon.criterion import Criterion
from rlmon.errors import ConfigError
from rlmon.metrics.step import OF_SUCCESSES
from rlmon.metrics.success import GRADED, WAITING, Deciding, Success
from rlmon.monitor import Resume
from rlmon.records import RolloutBatch, StepRecord

Columns = Mapping[str, Sequence[float | None]]
G = 4
SOME = [0.0, 1.0, 1.0, 0.0, 0.0, 0.0, 1.0, 1.0]
GRADES = [0.1 * i for i in range(8)]


def totals(rewards: Columns, weights: Mapping[str, float] | None = None) -> list[float | None]:
    """As TRL weighs them: what did not score is left out, and a row that nothing scored has no total."""
    weigh = weights or {}
    rows = zip(*rewards.values(), strict=True)
    return [
        None
        if all(value is None for value in row)
        else sum(weigh.get(name, 1.0) * value for name, value in zip(rewards, row, strict=True) if value is not None)
        for row in rows
    ]


def decide(*rounds: Columns, criterion: object = None, weights: Mapping[str, float] | None = None) -> Deciding:
    deciding = Deciding.start(Criterion.parse(criterion))
    for rewards in rounds:
        total = totals(rewards, weights)
        deciding = deciding.with_round(total, rewards, prompts=len(total) / G, weights=weights)
        # A resumed run goes on as if it had never stopped.
        assert Deciding.from_json(json.loads(json.dumps(deciding.to_json()))) == deciding
    return deciding


# -- the rule ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rewards", "above"),
    [
        ({"a": SOME}, {"a": 0.5}),
        ({"a": [2 * v - 1 for v in SOME]}, {"a": 0.5}),  # -1 and +1
        ({"a": [0.0] * 8}, {"a": 0.5}),  # as today: nothing was solved
        ({"a": [1.0] * 8}, {"a": 0.5}),  # as today: all was solved
        ({"a": [-1.0] * 8, "f": [1.0] * 8}, {"a": 0.5, "f": 0.5}),
        ({"accuracy": [0.0] * 8, "format": [1.0] * 8}, {"accuracy": 0.5, "format": 0.5}),
        ({"accuracy": SOME, "length": GRADES}, {"accuracy": 0.5}),
        ({"accuracy": SOME, "penalty": [-v for v in SOME]}, {"accuracy": 0.5}),  # it only ever takes off
        ({"accuracy": SOME, "soft_overlong_punishment_reward": [0.0] * 8}, {"accuracy": 0.5}),
    ],
)
def test_one_round_of_plain_rewards_decides(rewards: Columns, above: dict[str, float]) -> None:
    deciding = decide(rewards)
    assert deciding.decided
    assert dict(deciding.definition.above) == above


def test_a_pair_of_other_values_waits_for_the_baseline() -> None:
    """{0, .3} may be two of many: only the complete baseline (8 rounds) says that these are all. Midpoint .15."""
    rounds = [{"a": [0.3 * v for v in SOME]}] * 8
    assert str(decide(*rounds[:7]).definition) == WAITING
    assert dict(decide(*rounds).definition.above) == {"a": 0.15}
    assert decide(*rounds[:7], {"a": GRADES}).definition == Success(reason=GRADED)


def test_graded_rewards_have_no_success() -> None:
    definition = decide({"a": GRADES, "b": GRADES}).definition
    assert definition == Success(reason=GRADED)
    assert np.isnan(definition.of(GRADES, {"a": GRADES, "b": GRADES})).all()


def test_weights_of_nothing_and_less_are_no_part() -> None:
    rewards = {"accuracy": SOME, "probe": [1.0] * 8, "hack": SOME}
    weights = {"probe": 0.0, "hack": -0.5}
    assert dict(decide(rewards, weights=weights).definition.above) == {"accuracy": 0.5}
    # A single function with a small weight: its own value counts, not the total (which never passes .5).
    small = decide({"a": SOME}, weights={"a": 0.2}).definition
    assert small.of([0.2 * v for v in SOME], {"a": SOME}).tolist() == SOME


def test_what_had_to_be_assumed_is_settled_by_the_first_value_that_differs() -> None:
    first = decide({"accuracy": SOME, "extra": [0.0] * 8})
    assert dict(first.definition.above) == {"accuracy": 0.5, "extra": 0.5}, "a goal that was never met"
    # It goes below 0: it was a penalty. Then it is known, whatever comes.
    later = decide({"accuracy": SOME, "extra": [0.0] * 8}, {"accuracy": SOME, "extra": [-0.4 * v for v in SOME]})
    assert dict(later.definition.above) == {"accuracy": 0.5}
    # What was decided from two values never moves: a grade of .75 is no success of a 0/1 function's.
    after = decide({"a": SOME}, {"a": GRADES})
    assert dict(after.definition.above) == {"a": 0.5}
    # A function that scores for the first time after the decision joins for the rows that it scores.
    late = decide({"math": SOME, "code": [None] * 8}, {"math": [None] * 8, "code": SOME})
    assert dict(late.definition.above) == {"math": 0.5, "code": 0.5}


def test_rows_that_functions_leave_out() -> None:
    both = {"math": [1.0, 0.0, None, None, None, 1.0], "code": [None, None, 1.0, 0.0, None, 0.0]}
    definition = decide(both).definition
    # Each row by what scored it; a row that nothing scored stays unknown; one failure is a failure.
    np.testing.assert_array_equal(definition.of(totals(both), both), [1.0, 0.0, 1.0, 0.0, np.nan, 0.0])
    # Rows that nothing scored (a subclass that drops some) are no sign that functions share rows out.
    dropped = {"accuracy": [1.0, None, 0.0], "format": [1.0, None, 1.0]}
    assert decide(dropped).definition == Success({"accuracy": 0.5, "format": 0.5})
    # Accuracy that could not be checked is not known, however well it is formatted.
    checked = {"accuracy": [1.0, None, 0.0, None], "format": [1.0, 1.0, 1.0, 0.0]}
    definition = decide(checked).definition
    np.testing.assert_array_equal(definition.of(totals(checked), checked), [1.0, np.nan, 0.0, 0.0])


rounds_of_rewards = st.lists(
    st.lists(
        st.tuples(st.sampled_from([0.0, 1.0, None]), st.sampled_from([0.0, 0.3, 1.0, -1.0, None])),
        min_size=4,
        max_size=12,
    ),
    min_size=1,
    max_size=9,
)


@settings(max_examples=60)
@given(rounds_of_rewards, st.randoms(use_true_random=False))
def test_the_order_of_rows_decides_nothing(rounds: list[list[tuple[Any, Any]]], random: Any) -> None:
    def columns(rows: list[tuple[Any, Any]]) -> Columns:
        return {"a": [a for a, _ in rows], "b": [b for _, b in rows]}

    mixed = [random.sample(rows, len(rows)) for rows in rounds]
    assert decide(*map(columns, rounds)) == decide(*map(columns, mixed))


# -- the setting -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "function", "above"),
    [(0.5, None, 0.5), ("0.5", None, 0.5), (1, None, 1.0), ("accuracy_reward", "accuracy_reward", None),
     (" accuracy_reward > 0.9 ", "accuracy_reward", 0.9), ("-0.5", None, -0.5)],
)  # fmt: skip
def test_a_threshold_a_name_or_both(given: object, function: str | None, above: float | None) -> None:
    criterion = Criterion.parse(given)
    assert criterion is not None
    assert (criterion.function, criterion.above) == (function, above)
    assert Criterion.parse(str(criterion)) == criterion


@pytest.mark.parametrize("wrong", ["nan", "inf", "accuracy>nan", "accuracy>", "accuracy>=1", "", True, math.inf])
def test_a_setting_that_says_nothing_is_refused(wrong: Any) -> None:
    with pytest.raises(ConfigError, match="rlmon_success is"):
        rlmon.RLMonConfig(rlmon_success=wrong)


def test_a_setting_decides_at_once_or_by_its_own_function() -> None:
    rewards = {"accuracy": GRADES, "format": [1.0] * 8}
    total = totals(rewards)
    threshold = decide(rewards, criterion=1.35).definition
    assert threshold.of(total, rewards).tolist() == [0.0] * 4 + [1.0] * 4
    both = decide(rewards, criterion="accuracy>0.35").definition
    assert both.of(total, rewards).tolist() == [0.0] * 4 + [1.0] * 4
    assert decide(rewards, criterion="format").definition.of(total, rewards).tolist() == [1.0] * 8
    # One that logs only counts where it is asked for by name.
    assert dict(decide(rewards, criterion="format", weights={"format": 0.0}).definition.above) == {"format": 0.5}
    graded = decide(rewards, criterion="accuracy").definition
    assert graded.reason is not None
    assert "rlmon_success: accuracy>0.9" in graded.reason
    wrong = decide(rewards, criterion="acuracy").definition
    assert wrong.reason is not None
    assert "Did you mean accuracy?" in wrong.reason


# -- a run -------------------------------------------------------------------------------------------------------------


def batch(number: int, rewards: Columns, rank: int = 0, ranks: int = 1, **changes: Any) -> RolloutBatch:
    total = totals(rewards)
    rows = len(total) // ranks
    mine = range(rank * rows, (rank + 1) * rows)
    columns: dict[str, Any] = {
        "round": number,
        "split": "train",
        "step": number + 1,
        "group_size": G,
        "global_row": mine,
        "prompt_id": [f"p{row // G}" for row in mine],
        "source": ["all"] * rows,
        "prompts": ["7+9?"] * rows,
        "completions": ["print(7+9)", "16"] * (rows // 2),
        "rewards": {name: [values[i] for i in mine] for name, values in rewards.items()},
        "reward": [total[i] for i in mine],
        "advantages": [0.5, -0.5] * (rows // 2),
    }
    return RolloutBatch(**(columns | changes))


def watched(folder: Any, *rounds: Columns, config: dict[str, Any] | None = None, **changes: Any) -> list[StepRecord]:
    monitor = rlmon.Monitor(
        rlmon.RLMonConfig(rlmon_console=False, **(config or {})), directory=folder, group_size=G, **changes
    )
    records = []
    for rewards in rounds:
        number = monitor.next_round("train")
        monitor.observe(batch(number, rewards))
        record = monitor.end_step(number + 1)
        assert record is not None
        assert not record.faults
        records.append(record)
    monitor.close()
    return records


def test_a_run_whose_format_is_right_and_whose_answers_are_wrong_is_not_solved(tmp_path: Any) -> None:
    (record,) = watched(tmp_path, {"accuracy_reward": [0.0] * 8, "format_reward": [1.0] * 8})
    assert record.metrics["rlmon/group/all_bad"] == 1.0
    assert record.metrics["rlmon/group/all_good"] == 0.0
    assert record.metrics["rlmon/format/effective_correct"] is None
    assert record.missing["rlmon/format/effective_correct"] == "no completion of this step was rewarded"
    (event,) = [event for event in rlmon.open_run(tmp_path).events if event.kind == "success"]
    assert event.payload["says"] == "accuracy_reward above 0.5 and format_reward above 0.5"
    assert Success.from_json(event.payload) == Success({"accuracy_reward": 0.5, "format_reward": 0.5})


def test_graded_rewards_leave_null_what_reads_successes(tmp_path: Any) -> None:
    silent = [0.4] * 4 + [0.1, 0.2, 0.3, 0.3]
    for record in watched(tmp_path, {"a": GRADES}, {"a": silent}):
        for name in OF_SUCCESSES:
            assert record.metrics[name] is None, name
            assert record.missing[name] == GRADED, name
        stats = [set(block.stats) for block in record.blocks]
        assert not any(one & {"all_good", "all_bad", "lone_success_weight"} for one in stats)
    assert record.metrics["rlmon/group/silent"] == 0.5, "a group without spread gives no gradient, good or bad"


def test_minus_one_and_one_read_as_zero_and_one(tmp_path: Any) -> None:
    """Group 0 is 0 1 1 0, group 1 is 1 1 1 1; with -1 for 0 all that reads successes is the same."""
    plain = watched(tmp_path / "a", {"a": [*SOME[:4], 1, 1, 1, 1]})[0].metrics
    signed = watched(tmp_path / "b", {"a": [*(2 * v - 1 for v in SOME[:4]), 1, 1, 1, 1]})[0].metrics
    assert {name: plain[name] for name in OF_SUCCESSES} == {name: signed[name] for name in OF_SUCCESSES}
    assert plain["rlmon/group/all_good"] == 0.5


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_ranks_decide_alike(ranks: int) -> None:
    """Each rank sees other rows: rank 0 of 2 has only zeros. What is decided is that of the whole round."""
    rewards = {"a": [0.0] * 8 + SOME, "b": [1.0] * 16}
    total = totals(rewards)
    seen = [
        Deciding().observe(batch(0, rewards, rank, ranks, round_reward=total, round_rewards=rewards), ranks)
        for rank in range(ranks)
    ]
    alone, expected = Deciding().observe(batch(0, rewards), 1)
    assert all(deciding == alone for deciding, _ in seen)
    np.testing.assert_array_equal(np.concatenate([rows.success_B for _, rows in seen]), expected.success_B)


def test_ranks_that_do_not_see_each_others_rewards_say_so() -> None:
    deciding, rows = Deciding().observe(batch(0, {"a": SOME, "b": SOME}, 0, 2), 2)
    assert np.isnan(rows.success_B).all()
    assert deciding.definition.reason is not None
    assert "round_rewards" in deciding.definition.reason
    given = Deciding.start(Criterion.parse(0.5))
    assert given.observe(batch(0, {"a": SOME}, 0, 2), 2)[1].success_B.tolist() == SOME[:4]


def test_a_change_of_what_was_assumed_is_said_and_solve_rates_begin_anew(
    tmp_path: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """An unnamed penalty is 0 at first and reads as a goal that was never met: all prompts look impossible. It goes
    below 0 in round 9: from then on half of the completions succeed, and no prompt is hard."""
    monitor = rlmon.Monitor(rlmon.RLMonConfig(), directory=tmp_path, group_size=G)
    hard = []
    for number in range(12):
        extra = [-0.4 * v for v in SOME] if number >= 9 else [0.0] * 8
        monitor.observe(batch(monitor.next_round("train"), {"accuracy": SOME, "extra": extra}))
        record = monitor.end_step(number + 1)
        assert record is not None
        hard.append(record.metrics["rlmon/group/hard_share"])
    monitor.close()
    assert (hard[0], hard[8], hard[-1]) == (0.0, 1.0, 0.0)
    said = [event.payload["says"] for event in rlmon.open_run(tmp_path).events if event.kind == "success"]
    assert said == ["accuracy above 0.5 and extra above 0.5", "accuracy above 0.5"]
    assert "rlmon: a success is now accuracy above 0.5\n" in capsys.readouterr().err


def test_a_resumed_run_keeps_its_definition_and_a_changed_setting_is_said(
    tmp_path: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    def monitor(name: str, state: Any = None, **config: Any) -> rlmon.Monitor:
        return rlmon.Monitor(
            rlmon.RLMonConfig(**config), directory=tmp_path / name, group_size=G,
            resume=None if state is None else Resume(step=1, state=state),
        )  # fmt: skip

    before = monitor("run")
    before.observe(batch(before.next_round("train"), {"accuracy": [0.0] * 8, "format": [1.0] * 8}))
    before.end_step(1)
    assert capsys.readouterr().err.count("rlmon: a success is accuracy above 0.5 and format above 0.5") == 1
    state = {"shared": json.loads(json.dumps(before.shared_state())), "rank": before.rank_state()}
    before.close()
    # Decided anew from these rewards it would be `accuracy above 0.15` and wait for the baseline.
    after = monitor("run", state)
    after.observe(batch(after.next_round("train"), {"accuracy": [0.3 * v for v in SOME], "format": [1.0] * 8}))
    record = after.end_step(2)
    assert record is not None
    assert record.metrics["rlmon/group/all_good"] == 0.0
    after.close()
    said = [event.payload for event in rlmon.open_run(tmp_path / "run").events if event.kind == "success"]
    assert {payload["says"] for payload in said[:2]} == {"accuracy above 0.5 and format above 0.5"}
    changed = monitor("changed", state, rlmon_success="format")
    changed.close()
    assert "rlmon_success was unset at the checkpoint and is format" in capsys.readouterr().err
