"""The fold of the rules: when a knob moves, by how much, what is measured, and what survives a checkpoint."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from round_tables import round_table

from rlmon.interventions import fold
from rlmon.interventions.policy import Policy
from rlmon.interventions.row_effect import RowEffect
from rlmon.interventions.rows import MODE_KINDS, RoundTable
from rlmon.records import Action, Finding, StepRecord

KL = "rlmon/kl/mean"
EFFECTIVE = "rlmon/format/effective"


def record(step: int, **metrics: float | None) -> StepRecord:
    named = {"kl": KL, "effective": EFFECTIVE, "good": "rlmon/group/all_good", "bad": "rlmon/group/all_bad"}
    named |= {"entropy": "rlmon/entropy/mean", "correct": "rlmon/format/effective_correct"}
    return StepRecord(
        attempt=0, step=step, time_unix_seconds=0.0, rounds=(step,), completions=64, prompts=8, tokens=1,
        metrics={named[name]: value for name, value in metrics.items()},
    )  # fmt: skip


def finding(step: int, severity: Any = "warn") -> Finding:
    return Finding(
        finding_id=f"f{step}", detector="format-collapse", severity=severity, step=step, metric=EFFECTIVE, value=2.0,
        baseline=4.0, threshold=3.0, source=None, message="", advice="", baseline_kind="early_rounds",
        baseline_prompts=32, benign_sharpening=None,
    )  # fmt: skip


def policy(**rules: dict[str, Any]) -> Policy:
    return Policy.from_dict({"rules": {name.replace("_", "-"): rule for name, rule in rules.items()}})


def run(
    rules: Policy, records: Sequence[StepRecord], found: dict[int, Finding] | None = None, beta: float = 0.0
) -> tuple[fold.RulesState, list[Action]]:
    state = fold.start(rules, {"beta": beta, "entropy_coef": 0.0})
    actions: list[Action] = []
    for each in records:
        findings = [found[each.step]] if found and each.step in found else []
        state, new = fold.on_step(rules, state, each, findings)
        actions += new
    return state, actions


def moves(actions: Sequence[Action], phase: str = "decided") -> list[tuple[int, Any, Any]]:
    return [(a.step, a.old, a.new) for a in actions if a.phase == phase]


ACT = Action(
    action_id="a-20", phase="decided", step=20, knob="beta", old=0.0, new=0.02, reason="", finding_id=None,
    rule="always",
)  # fmt: skip


def ar1(rng: np.random.Generator, phi: float, count: int, steps: int) -> np.ndarray:
    """``count`` series of unit variance whose neighbours correlate by ``phi`` [count, steps]."""
    values = rng.standard_normal((count, steps))
    for at in range(1, steps):
        values[:, at] = phi * values[:, at - 1] + math.sqrt(1 - phi * phi) * values[:, at]
    return values


BUDGET = {
    "when": {"metric": KL, "above": 0.3, "smooth_steps": 1},
    "do": {"action": "kl_penalty", "start": 0.02, "factor": 2.0, "bounds": [0.0, 0.06]},
    "cool_off_steps": 2,
    "hysteresis": 0.1,
    "measure_after_steps": 4,
}


def test_beta_rises_within_its_bounds_waits_between_changes_and_comes_down_again() -> None:
    # Above .3 from step 2 on. Cool-off 2: raised at 2 (.02), 4 (.04), 6 (.06 = the bound), then no more.
    # Released below .3 - 10 % = .27 at step 9: halved at 9 (.03), and below the start it is off at 11.
    values = [0.1, 0.4, 0.4, 0.4, 0.4, 0.4, 0.4, 0.29, 0.2, 0.2, 0.2, 0.2]
    _, actions = run(policy(budget=BUDGET), [record(i, kl=v) for i, v in enumerate(values, start=1)])
    assert moves(actions) == [
        (2, 0.0, 0.02), (4, 0.02, 0.04), (6, 0.04, 0.06), (9, 0.06, 0.03), (11, 0.03, 0.0),
    ]  # fmt: skip
    assert actions[0].reason == "rlmon/kl/mean 0.4 is above 0.3"
    assert [a.reason.startswith("released") for a in actions if a.phase == "decided"] == [False] * 3 + [True] * 2
    assert len({a.action_id for a in actions if a.phase == "decided"}) == 5


def test_a_run_with_a_beta_of_its_own_is_never_taken_below_it() -> None:
    values = [0.4, 0.4, 0.1, 0.1, 0.1, 0.1, 0.1]
    _, actions = run(policy(budget=BUDGET), [record(i, kl=v) for i, v in enumerate(values, start=1)], beta=0.05)
    assert moves(actions) == [(1, 0.05, 0.06), (3, 0.06, 0.05)]


def test_a_beta_of_the_user_s_own_above_the_bounds_stays() -> None:
    rule = {"when": "always", "do": {"action": "kl_penalty", "start": 0.05, "bounds": [0.0, 0.05]}}
    _, actions = run(policy(near=rule), [record(i) for i in range(1, 30)], beta=0.1)
    assert moves(actions) == []
    _, actions = run(policy(near=rule), [record(i) for i in range(1, 30)])
    assert moves(actions) == [(1, 0.0, 0.05)]


def test_a_metric_that_is_not_measured_moves_nothing_of_its_own() -> None:
    # KL every other step: the answer between is the last one.
    values = [0.1, None, 0.4, None, 0.1, None]
    _, actions = run(policy(budget=BUDGET), [record(i, kl=v) for i, v in enumerate(values, start=1)])
    assert moves(actions) == [(3, 0.0, 0.02), (5, 0.02, 0.0)]


def test_the_penalty_is_off_while_rewards_have_no_variance_and_returns() -> None:
    silent = [(0.1, 0.1)] * 3 + [(0.6, 0.4)] * 4 + [(0.2, 0.2)] * 4
    records = [record(i, kl=0.4, good=good, bad=bad) for i, (good, bad) in enumerate(silent, start=1)]
    state, actions = run(policy(budget=BUDGET | {"cool_off_steps": 100}), records)
    # Means of three: at step 6 (1 + 1 + 1) / 3 >= .9, at step 8 (1 + 1 + .4) / 3 = .8 < .85.
    assert moves(actions) == [(1, 0.0, 0.02), (6, 0.02, 0.0), (8, 0.0, 0.02)]
    assert "100% of groups have no reward variance" in moves_reason(actions, 6)
    assert state.rules["budget"].level == 0.02


def moves_reason(actions: Sequence[Action], step: int) -> str:
    return next(a.reason for a in actions if a.step == step and a.phase == "decided")


def test_entropy_bonus_goes_up_and_down_by_its_increment() -> None:
    rule = {
        "when": {"metric": "rlmon/entropy/mean", "below": 0.5, "of": "base", "smooth_steps": 1},
        "do": {"action": "entropy_bonus", "increment": 0.01, "bounds": [0.0, 0.02]},
        "cool_off_steps": 0,
        "hysteresis": 0.0,
    }
    values = [1.0] * 5 + [0.4, 0.4, 0.4, 0.6, 0.6, 0.6]
    _, actions = run(policy(entropy=rule), [record(i, entropy=v) for i, v in enumerate(values, start=1)])
    assert moves(actions) == [(6, 0.0, 0.01), (7, 0.01, 0.02), (9, 0.02, 0.01), (10, 0.01, 0.0)]


def test_trl_s_own_entropy_controller_is_given_a_target_of_this_run_s_initial_entropy() -> None:
    rules = policy(entropy={
        "when": {"metric": "rlmon/entropy/mean", "below": 0.5, "of": "base", "smooth_steps": 1},
        "do": {"action": "entropy_bonus", "target": 0.7},
    })  # fmt: skip
    state = fold.start(rules, {"beta": 0.0, "entropy_coef": 0.01, "entropy_target": 0.2})
    actions: list[Action] = []
    for i, value in enumerate([2.0] * 5 + [0.5, 0.5], start=1):
        state, new = fold.on_step(rules, state, record(i, entropy=value), [])
        actions += new
    assert moves(actions) == [(6, 0.2, 1.4)]  # .7 x H0, H0 = 2 nats


@pytest.mark.parametrize("action", ["stop", "roll_back", "reset_reference"])
def test_what_happens_once_happens_once(action: str) -> None:
    rules = policy(end={"when": {"finding": "format-collapse"}, "do": action, "cool_off_steps": 0})
    _, actions = run(rules, [record(i) for i in range(1, 9)], {3: finding(3), 5: finding(5)})
    words = {"stop": "stop", "roll_back": "roll back", "reset_reference": "the present policy"}
    assert moves(actions) == [(3, None, words[action])]
    assert actions[0].finding_id == "f3"


def test_a_rule_that_is_suspended_has_no_effect_to_be_measured_until_it_is_back() -> None:
    """The penalty acts from step 1, all groups are silent from step 11: KL rises since nothing holds it. That is no
    harm done by the rule, neither by what it did before nor by its rest."""
    always = {"when": "always", "do": {"action": "kl_penalty", "bounds": [0.0, 0.02]}, "measure_after_steps": 8}
    silent = [(0.0, 0.0)] * 10 + [(0.6, 0.4)] * 20
    records = [
        record(i, kl=(0.1 if i <= 16 else 0.6) + UNEVEN[i % 8], good=good, bad=bad)
        for i, (good, bad) in enumerate(silent, start=1)
    ]
    state, actions = run(policy(always=always), records)
    (began, _, _), (rested, _, off) = moves(actions)
    assert (began, off) == (1, 0.0)
    assert state.pending == ()
    assert [a for a in actions if a.phase == "measured" and a.action_id.endswith(f"-{rested}")] == []
    always["measure_after_steps"] = 40
    _, actions = run(policy(always=always), records)
    (effect,) = [a for a in actions if a.phase == "measured"]
    assert (effect.step, effect.effect) == (rested, "not_measured")
    assert effect.effect_reason == "the rule was suspended meanwhile"


MEASURED = BUDGET | {"cool_off_steps": 100, "measure_after_steps": 8}
UNEVEN = [0.01, -0.01, 0.02, -0.02, -0.01, 0.01, -0.02, 0.02]


def effect_of(values: Sequence[float | None]) -> Action:
    """The one effect that is measured of the rule's first act."""
    _, actions = run(policy(budget=MEASURED), [record(i, kl=v) for i, v in enumerate(values, start=1)])
    (effect,) = [a for a in actions if a.phase == "measured"]
    return effect


def test_effect_is_the_mean_after_against_the_mean_before_in_the_good_direction() -> None:
    # Below the line of .3 until step 8, where it rises above the line; measured over 9 to 16.
    # Before: (.26 + .24 + .27 + .23 + .24 + .26 + .23 + .31) / 8 = .255.
    before = [0.25 + d for d in UNEVEN[:7]] + [0.31]
    helped = effect_of(before + [0.1 + d for d in UNEVEN])
    assert (helped.effect, helped.step) == ("helped", 16)
    assert helped.effect_reason is not None
    assert "0.255 -> 0.1 over 8 steps" in helped.effect_reason
    assert effect_of(before + [0.9 + d for d in UNEVEN]).effect == "harmed"
    assert effect_of(before + [0.26 + d for d in UNEVEN]).effect == "no_effect"


def test_an_effect_without_numbers_is_not_measured_and_says_so() -> None:
    effect = effect_of([0.4] + [None] * 9)
    assert effect.effect == "not_measured"
    assert "6 each are needed" in str(effect.effect_reason)


def test_a_series_whose_values_hardly_move_on_is_too_short_to_judge() -> None:
    # A slow climb: every value is near the one before, and the mean after is above the mean before by itself.
    effect = effect_of([0.2 + 0.013 * i for i in range(17)])
    assert effect.effect == "not_measured"
    assert "too short to judge" in str(effect.effect_reason)


@pytest.mark.parametrize("phi", [0.5, 0.95])
def test_an_act_that_does_nothing_is_rarely_judged(phi: float) -> None:
    """By the fold, windows of the default 20: at two plain standard errors .27 and .72 of them were."""
    rng = np.random.default_rng(3)
    rule = {"when": "always", "do": "kl_penalty", "cool_off_steps": 1000}
    rules, judged, runs = policy(always=rule), 0, 200
    for _ in range(runs):
        values = ar1(rng, phi, 1, 40)[0]
        state = fold.start(rules, {"beta": 0.0, "entropy_coef": 0.0})
        pending = fold.Pending(action=ACT, metric=KL, good="down", due_step=40)
        history = {KL: tuple(enumerate(values.tolist(), start=1))}
        _, (effect,) = fold._measure(dataclasses.replace(state, history=history, pending=(pending,)), 40)
        judged += effect.effect in ("helped", "harmed")
    # Binomial(200, .1): 32 or more has a chance of .005.
    assert judged < 32


def test_a_dry_run_decides_the_same_and_holds_nothing_out() -> None:
    values = [0.1, 0.4, 0.4, 0.4, 0.4, 0.4]
    records = [record(i, kl=v) for i, v in enumerate(values, start=1)]
    wet_state, wet = run(policy(budget=BUDGET), records)
    dry_state, dry = run(policy(budget=BUDGET | {"dry_run": True}), records)
    assert moves(dry) == moves(wet)
    assert all(a.dry_run for a in dry)
    assert fold.take_waiting(dry_state)[1] == ()
    assert [a.new for a in fold.take_waiting(wet_state)[1]] == [0.02, 0.04, 0.06]
    assert dry_state.pending == ()


def test_a_rule_that_was_given_up_acts_no_more() -> None:
    rules = policy(budget=BUDGET)
    state, _ = run(rules, [record(1, kl=0.4)])
    state = fold.give_up(state, ["budget"], "broken")
    for step in range(2, 8):
        state, actions = fold.on_step(rules, state, record(step, kl=0.4), [])
        assert not [a for a in actions if a.phase == "decided"]


def test_state_survives_json_in_the_middle_of_everything() -> None:
    rules = policy(
        budget=BUDGET,
        hold={"when": "always", "do": "mode_marginal"},
        shy={"when": {"finding": "format-collapse"}, "do": "winsorise"},
    )
    rng = np.random.default_rng(0)
    records = [record(i, kl=float(v), correct=float(v)) for i, v in enumerate(rng.uniform(0.1, 0.6, 40), start=1)]

    def run_on(state: fold.RulesState, some: Sequence[StepRecord]) -> tuple[fold.RulesState, list[Action]]:
        actions: list[Action] = []
        for each in some:
            state, *_ = fold.on_round(rules, state, table(each.step), {})
            state, new = fold.on_step(rules, state, each, [finding(7)] if each.step == 7 else [])
            actions += new
        return state, actions

    begun = fold.start(rules, {"beta": 0.0})
    middle, first = run_on(begun, records[:17])
    again = fold.from_json(rules, json.loads(json.dumps(fold.to_json(rules, middle))))
    assert again == middle
    whole, every = run_on(begun, records)
    resumed, rest = run_on(again, records[17:])
    assert (resumed, first + rest) == (whole, every)
    assert len(every) > 10


def test_a_rule_that_counts_other_modes_now_begins_anew() -> None:
    by_format, by_opening = (
        policy(modes={"when": "always", "do": {"action": "mode_marginal", "modes": modes}})
        for modes in ("format", "opening")
    )
    state, *_ = fold.on_round(by_format, fold.start(by_format, {}), table(1), {})
    kept = json.loads(json.dumps(fold.to_json(by_format, state)))
    assert fold.from_json(by_format, kept) == state
    assert fold.from_json(by_opening, kept).rules == fold.start(by_opening, {}).rules
    del kept["rules"]["modes"]["remembers"]  # as 0.1 wrote it
    assert fold.from_json(by_format, kept) == state


def table(step: int, rows: int = 32, group_size: int = 8) -> RoundTable:
    rng = np.random.default_rng(step)
    modes = rng.choice(4, size=rows, p=[0.4, 0.3, 0.2, 0.1])
    reward = (rng.random(rows) < 0.6).astype(float)
    group = reward.reshape(-1, group_size)
    spread = group.std(axis=1, ddof=1, keepdims=True)
    keys = np.arange(rows, dtype=np.int64)
    return round_table(
        reward, round=step, step=step, group_size=group_size, prompt=keys // group_size + 1000 * step,
        source=np.ones(rows), modes=dict.fromkeys(MODE_KINDS, modes), answer=keys % 5, tokens=np.full(rows, 10.0),
        numbers=np.full(rows, 2.0),
        advantage=((group - group.mean(axis=1, keepdims=True)) / (spread + 1e-4)).reshape(-1),
    )  # fmt: skip


def test_the_unit_of_the_additions_is_one_for_group_normalised_advantages() -> None:
    normalised = fold._scale(1.0, table(3))
    assert normalised == pytest.approx(1.0, abs=1e-3)
    raw = table(3)
    halved = dataclasses.replace(raw, advantage_N=raw.advantage_N / 2)
    assert fold._scale(1.0, halved) == pytest.approx(0.5, abs=1e-3)
    silent = dataclasses.replace(raw, advantage_N=np.zeros(len(raw)))
    assert fold._scale(0.7, silent) == 0.7


@pytest.mark.parametrize("when", [{"metric": KL, "above": 9.0}, "always"], ids=["at rest", "acting"])
def test_a_shortcut_is_an_act_only_while_the_rule_acts(when: Any) -> None:
    rules = policy(suspect={"when": when, "do": {"action": "quarantine", "shorter_than": 10.0}})
    state = fold.start(rules, {"beta": 0.0})
    state, _ = fold.on_step(rules, state, record(1, kl=0.1), [])
    lone = dataclasses.replace(table(2, rows=8), success_N=np.eye(8)[0], tokens_N=np.arange(1.0, 9.0))
    state, effect, acts = fold.on_round(rules, state, lone, {"suspect": np.full(8, True)})
    assert [(act.knob, act.new) for act in acts] == ([("advantages", "1")] if when == "always" else [])
    assert effect.identity == (when != "always")


def test_rows_are_bounded_first_and_pushed_afterwards() -> None:
    effect = RowEffect(factor_n=np.array([1.0, 0.0, 1.0]), limit=1.0, addition_n=np.array([0.5, 0.0, 0.0]))
    assert effect.on(np.array([3.0, 3.0, -0.2])).tolist() == [1.5, 0.0, -0.2]
    assert not effect.identity


def test_ranks_that_decide_otherwise_have_another_digest() -> None:
    rules = policy(budget=BUDGET)
    low, _ = run(rules, [record(1, kl=0.1)])
    high, _ = run(rules, [record(1, kl=0.4)])
    same, _ = run(rules, [record(1, kl=0.4)])
    assert high.digest == same.digest != low.digest
    assert 0 <= high.digest < 2**48, "exact as a float64, in the sum over ranks"
