"""Every notion of the base in the rules begins and closes with ``rlmon.baseline.Baseline``."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from round_tables import round_table

from rlmon.baseline import Baseline
from rlmon.interventions import base_mean, conditions, fold, saved
from rlmon.interventions.anchor import Anchor
from rlmon.interventions.mode_marginal import ModeMarginal
from rlmon.interventions.policy import OnMetric, Policy
from rlmon.interventions.rows import MODE_KINDS, RoundTable
from rlmon.records import StepRecord
from rlmon.trl.anchor import AnchorStore

ENTROPY = "rlmon/entropy/mean"


def record(step: int, prompts: int, completions: int, **metrics: float | None) -> StepRecord:
    return StepRecord(
        attempt=0, step=step, time_unix_seconds=0.0, rounds=(step,) if completions else (), completions=completions,
        prompts=prompts, tokens=1, metrics={ENTROPY: metrics.get("entropy")},
    )  # fmt: skip


def table(step: int, prompts: int, completions: int) -> RoundTable:
    keys = np.arange(completions, dtype=np.int64)
    # The same few prompts come again and again: a round's prompts count in each round.
    return round_table(
        np.ones(completions), round=step, step=step, group_size=completions // prompts, answer=np.zeros(completions),
        prompt=keys // (completions // prompts), modes=dict.fromkeys(MODE_KINDS, keys % 2),
    )  # fmt: skip


def one_row() -> dict[str, Any]:
    ones = torch.ones((1, 2), dtype=torch.long)
    return {"prompt_ids": ones, "prompt_mask": ones, "completion_ids": ones, "completion_mask": ones}


@pytest.mark.parametrize(
    ("prompts", "completions"),
    [(8, 64), (2, 8), (16, 32), (4, 128), (40, 400)],
    ids=["32 prompts", "8 rounds", "2 rounds", "256 completions", "one round"],
)
def test_all_close_with_the_same_round(prompts: int, completions: int) -> None:
    rules = Policy.from_dict({"rules": {"hold": {"when": "always", "do": "mode_marginal"}}})
    state = fold.start(rules, {"beta": 0.0, "entropy_coef": 0.0, "entropy_target": 0.1})
    condition = OnMetric(metric=ENTROPY, below=0.5, of="base")
    ratio: Any = conditions.start(condition)
    anchors = AnchorStore(Anchor(per_mode=100))
    baseline = Baseline()
    for step in range(1, 12):
        stored = anchors.collect(
            one_row(), np.ones(1), np.zeros(1, dtype=np.int64), prompts=prompts, completions=completions
        )
        assert stored == (not baseline.complete), "what is stored is of the rounds of the baseline"
        baseline = baseline.with_round(prompts=prompts, completions=completions)
        state, *_ = fold.on_round(rules, state, table(step, prompts, completions), {})
        now = record(step, prompts, completions, entropy=float(step))
        state, _ = fold.on_step(rules, state, now, [])
        ratio, *_ = conditions.step(condition, ratio, now, [], 0.0)
        marginal = state.rules["hold"].inner
        assert marginal.baseline == ratio.base.baseline == state.entropy_nats.baseline == baseline
        assert marginal.complete == baseline.complete
        closed = [state.entropy_nats.mean is not None, ratio.base.mean is not None]
        assert closed == [baseline.complete] * 2
    assert state.entropy_nats.mean == pytest.approx((1 + baseline.rounds) / 2)  # of 1, 2, ..., rounds


def test_a_metric_that_is_measured_now_and_then_counts_the_rounds_that_it_was_measured_on() -> None:
    base = base_mean.BaseMean()
    for step in range(1, 30):
        # A round of 8 prompts every second step; the metric on every third step, 1, 4, 7, ...
        rounds = (8, 16) if step % 2 else (0, 0)
        base = base.after(record(step, *rounds), float(step) if step % 3 == 1 else None)
        # Step 4 is measured on the round of step 3, 7 on its own, 10 on that of 9: four rounds at step 10.
        assert (base.mean is not None) == (step >= 10)
    assert base.baseline == Baseline(prompts=32, completions=64, rounds=4)
    assert base.mean == (1 + 4 + 7 + 10) / 4


def test_two_steps_on_one_round_count_it_once() -> None:
    base = base_mean.BaseMean()
    for step in range(1, 8):
        base = base.after(record(step, *((8, 16) if step % 2 else (0, 0))), 1.0)
    assert base.baseline.rounds == 4
    assert base.values == 7


def test_checkpoints_of_the_version_before_are_read() -> None:
    full, part = base_mean.BaseMean.from_json([1.0, 2.0, 3.0, 4.0, 5.0]), base_mean.BaseMean.from_json([1.0, 2.0])
    assert full.mean == 3.0
    assert (part.mean, part.values, part.baseline.rounds) == (None, 2, 2)
    before = saved.to_json(ModeMarginal().fresh())
    del before["baseline"]
    before |= {"base_prompts": [3, 4], "base_rounds": 2, "complete": False}
    begun = ModeMarginal().load(json.loads(json.dumps(before)))
    assert begun.baseline == Baseline(prompts=2, completions=0, rounds=2)
    done = ModeMarginal().load(before | {"base_prompts": [], "base_rounds": 4, "complete": True})
    assert done.complete
    store = AnchorStore(Anchor())
    store.load({"rows": [], "rounds": 3, "closed": True})
    assert store.collect(one_row(), np.ones(1), np.zeros(1, dtype=np.int64), prompts=1, completions=1) == 0
