"""The queue of actions and what ranks share, without a trainer: two ranks in lockstep are two objects here."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from rlmon.controller import AdvantagesOnly, Controller, load_policy, row_of_each
from rlmon.errors import ConfigError
from rlmon.interventions import fold
from rlmon.interventions.entropy_bonus import EntropyBonus
from rlmon.interventions.kl_penalty import KLPenalty
from rlmon.interventions.policy import Policy
from rlmon.interventions.row_effect import RowEffect
from rlmon.interventions.rows import FIELDS, exchanged, row_key
from rlmon.metrics.features import Featurizer, RowFeatures
from rlmon.metrics.formats import ModeSet
from rlmon.records import Action, RolloutBatch, StepRecord

KL = "rlmon/kl/mean"
OVER = {"metric": KL, "above": 0.3, "smooth_steps": 1}
EVERY_STEP = {"cool_off_steps": 1, "measure_after_steps": 3}
BUDGET = {"when": OVER, "do": {"action": "kl_penalty", "start": 0.1, "factor": 2.0, "bounds": [0.0, 1.0]}, **EVERY_STEP}
BONUS = {"when": "always", "do": {"action": "entropy_bonus", "increment": 0.01, "bounds": [0.0, 1.0]}, **EVERY_STEP}
BOUND = {"when": "always", "do": {"action": "winsorise", "limit": 1.0}, **EVERY_STEP}
HOLD = {"when": "always", "do": "mode_marginal", **EVERY_STEP}
DEFER = {
    "when": "always",
    "do": {"action": "defer", "solve_rate_below": 0.5, "credibility": 0.6, "after_attempts": 4},
    **EVERY_STEP,
}


def policy(**rules: dict[str, Any]) -> Policy:
    return Policy.from_dict({"rules": {name.replace("_", "-"): rule for name, rule in rules.items()}})


def record(step: int, kl: float = 0.5) -> StepRecord:
    return StepRecord(
        attempt=0, step=step, time_unix_seconds=0.0, rounds=(step,), completions=8, prompts=2, tokens=1,
        metrics={KL: kl, "rlmon/entropy/mean": 1.0, "rlmon/group/all_good": 0.0, "rlmon/group/all_bad": 0.0},
    )  # fmt: skip


class Knobs:
    """Actuators that remember what they were asked, and break for the kinds of action they are told to."""

    def __init__(self, *breaks_on: type[Any]) -> None:
        self.breaks_on = breaks_on
        self.beta = self.entropy_coef = 0.0
        self.asked: list[tuple[int, str]] = []
        self.rested: list[str] = []

    def values(self) -> Mapping[str, float]:
        return {"beta": self.beta, "entropy_coef": self.entropy_coef}

    def apply(self, action: Action, settings: Any) -> None:
        self.asked.append((action.step, action.knob))
        if isinstance(settings, self.breaks_on):
            raise ValueError("broken on purpose")
        if isinstance(settings, KLPenalty):
            self.beta = float(action.new or 0.0)
        if isinstance(settings, EntropyBonus):
            self.entropy_coef = float(action.new or 0.0)

    def rest(self, settings: Any) -> None:
        self.rested.append(type(settings).__name__)
        if isinstance(settings, KLPenalty):
            self.beta = 0.0
        if isinstance(settings, EntropyBonus):
            self.entropy_coef = 0.0

    def state(self) -> Mapping[str, Any]:
        return {"beta": self.beta, "entropy_coef": self.entropy_coef}

    def load(self, state: Mapping[str, Any]) -> None:
        self.beta, self.entropy_coef = state["beta"], state["entropy_coef"]


class Ranks:
    """Some ranks of one run, in lockstep: their votes are summed, their rows stacked, as the collectives would."""

    def __init__(self, rules: Policy, *actuators: Knobs, states: Sequence[Any] | None = None) -> None:
        self.actuators = actuators
        self.written: list[list[Action]] = [[] for _ in actuators]
        self.matrices: list[np.ndarray] = []
        self.controllers = [
            Controller(
                rules,
                actuators=one,
                write=self.written[i].append,
                rank=i,
                world_size=len(actuators),
                gather=None if len(actuators) == 1 else self._gather,
                state=None if states is None else states[i],
            )
            for i, one in enumerate(actuators)
        ]

    def _gather(self, matrix: np.ndarray) -> np.ndarray:
        # Ranks are called one after the other: the first call of each learns what all would give.
        self.matrices.append(matrix)
        return np.concatenate(self.planned)

    def step(self, at: StepRecord) -> None:
        votes = np.sum([one.vote() for one in self.controllers], axis=0)
        for one in self.controllers:
            with contextlib.suppress(ValueError):  # "broken on purpose": the monitor's guard counts it
                one.step(at, (), votes)

    def round(self, number: int, rewards: Sequence[float], broken: Sequence[int] = ()) -> list[RowEffect | None]:
        rows = len(rewards) // len(self.actuators)
        batches = [
            batch(number, rewards[i * rows : (i + 1) * rows], first=i * rows) for i in range(len(self.actuators))
        ]
        seen = [features(one) for one in batches]
        won = [np.asarray(one.reward) for one in batches]  # rewards of 0 and 1
        self.planned = [
            np.zeros((rows, FIELDS), dtype=np.int64)
            if i in broken
            else exchanged(row_of_each(batches[i], seen[i], None, won[i]))
            for i in range(len(self.actuators))
        ]
        effects: list[RowEffect | None] = []
        for i, one in enumerate(self.controllers):
            try:
                given = (None, rows, None) if i in broken else (batches[i], rows, seen[i])
                effects.append(one.round(*given, success_n=won[i]))
            except (RuntimeError, ValueError):
                effects.append(None)
        return effects


TEXTS = ("so the sum is 7", '{"answer": 7}', "7", "print ( 7 )")
"""Four modes; from round 9 on, when the base's shares are known, only the first two are left."""


def batch(number: int, rewards: Sequence[float], first: int = 0) -> RolloutBatch:
    rows = len(rewards)
    texts = [TEXTS[i % 4 if number < 9 else int(i % 4 == 0)] for i in range(first, first + rows)]
    names = [f"p{(first + i) // 4}" for i in range(rows)]
    return RolloutBatch(
        round=number, split="train", step=number + 1, group_size=4, global_row=list(range(first, first + rows)),
        prompt_id=names, source=["all"] * rows, prompts=names, completions=texts,
        prompt_ids=[[1]] * rows, completion_ids=[[1, 2]] * rows, rewards={"r": list(rewards)},
        reward=np.array(rewards), round_reward=None,
        advantages=[4.0 * (r - 0.5) for r in rewards], truncated=[False] * rows, policy_version=[number] * rows,
    )  # fmt: skip


def features(of: RolloutBatch) -> RowFeatures:
    return Featurizer(ModeSet.build(), b"secret", None, text_tokens=1000).features(of)


def acts(written: Sequence[Action], rule: str | None = None) -> list[tuple[str, int, Any, Any]]:
    return [(a.phase, a.step, a.old, a.new) for a in written if rule in (None, a.rule) and a.phase != "measured"]


# -- one rank ----------------------------------------------------------------------------------------------------------


def test_one_rank_applies_at_the_step_that_decides() -> None:
    ranks = Ranks(policy(budget=BUDGET), Knobs())
    for step in (1, 2, 3):
        ranks.step(record(step, kl=0.5 if step > 1 else 0.0))
    # Over .3 from step 2 on: .1 at 2, doubled at 3.
    assert acts(ranks.written[0]) == [
        ("decided", 2, 0.0, 0.1), ("applied", 2, 0.0, 0.1), ("decided", 3, 0.1, 0.2), ("applied", 3, 0.1, 0.2),
    ]  # fmt: skip
    assert ranks.actuators[0].beta == 0.2


def test_a_lever_that_fails_puts_its_rule_alone_at_rest() -> None:
    ranks = Ranks(policy(budget=BUDGET, bonus=BONUS), Knobs(KLPenalty))
    for step in (1, 2, 3):
        ranks.step(record(step))
    written = ranks.written[0]
    assert acts(written, "budget") == [("decided", 1, 0.0, 0.1), ("failed", 1, 0.0, 0.1)]
    assert "ValueError: broken on purpose" in next(a.reason for a in written if a.phase == "failed")
    assert [a.effect_reason for a in written if a.phase == "measured" and a.rule == "budget"] == [
        "its rule failed and was put at rest"
    ]
    assert ranks.actuators[0].rested == ["KLPenalty"]
    assert ranks.actuators[0].entropy_coef == pytest.approx(0.03)
    assert ranks.controllers[0].off is None


def test_the_end_says_what_became_of_everything() -> None:
    ranks = Ranks(policy(bonus=BONUS), Knobs(), Knobs())
    for step in (1, 2):
        ranks.step(record(step))
    for one in ranks.controllers:
        one.close(2)
    # Decided at 1, applied at 2 and not yet confirmed; decided at 2 and never applied.
    assert acts(ranks.written[0]) == [
        ("decided", 1, 0.0, 0.01), ("decided", 2, 0.01, 0.02), ("applied", 2, 0.0, 0.01), ("failed", 2, 0.01, 0.02),
    ]  # fmt: skip
    assert "the run ended before it took effect" in ranks.written[0][3].reason
    ended = [(a.action_id, a.effect, a.effect_reason) for a in ranks.written[0] if a.phase == "measured"]
    assert ended == [(f"bonus-{step}", "not_measured", "the run ended first") for step in (1, 2)]
    before = len(ranks.written[0])
    ranks.controllers[0].close(2)
    assert len(ranks.written[0]) == before, "once"


def test_an_end_after_a_failure_does_not_say_applied() -> None:
    ranks = Ranks(policy(budget=BUDGET), Knobs(KLPenalty), Knobs(KLPenalty))
    for step in (1, 2):
        ranks.step(record(step))
    ranks.controllers[0].close(2)
    assert {phase for phase, *_ in acts(ranks.written[0])} == {"decided", "failed"}


def test_more_effects_than_are_waited_for_are_said_to_be_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fold, "PENDING_MOST", 2)
    ranks = Ranks(policy(bonus={**BONUS, "measure_after_steps": 50}), Knobs())
    for step in range(1, 6):
        ranks.step(record(step))
    # Those of 1 and 2 are waited for; those of 3 and 4 are given up a step later, that of 5 not yet.
    told = [(a.action_id, a.step, a.effect) for a in ranks.written[0] if a.phase == "measured"]
    assert told == [("bonus-3", 4, "not_measured"), ("bonus-4", 5, "not_measured")]


# -- several ranks -----------------------------------------------------------------------------------------------------


def test_ranks_apply_a_step_later_and_confirm_the_step_after() -> None:
    ranks = Ranks(policy(budget={**BUDGET, "cool_off_steps": 10}), Knobs(), Knobs())
    for step in (1, 2, 3):
        ranks.step(record(step))
        assert [one.beta for one in ranks.actuators] == [0.0 if step == 1 else 0.1] * 2
        (decided,) = [a for a in ranks.written[0] if a.phase == "decided"]
        assert ranks.controllers[0].settled(decided) is (step != 2)
    assert acts(ranks.written[0]) == acts(ranks.written[1]) == [("decided", 1, 0.0, 0.1), ("applied", 2, 0.0, 0.1)]


def test_what_fails_on_one_rank_is_put_at_rest_on_all_with_what_it_still_had_to_do() -> None:
    """The rule decides at each step, so that when rank 1's failure of step 2 is known at step 3, the decision of step 2
    waits: it must not be applied after the one went to rest."""
    ranks = Ranks(policy(budget=BUDGET, bonus=BONUS), Knobs(), Knobs(KLPenalty))
    for step in range(1, 6):
        ranks.step(record(step))
    for written, one in zip(ranks.written, ranks.actuators, strict=True):
        assert acts(written, "budget") == [
            ("decided", 1, 0.0, 0.1), ("decided", 2, 0.1, 0.2), ("failed", 3, 0.0, 0.1), ("failed", 3, 0.1, 0.2),
        ]  # fmt: skip
        assert one.asked.count((2, "beta")) == 0
        assert one.beta == 0.0
        assert one.rested == ["KLPenalty"]
        assert one.entropy_coef == pytest.approx(0.04), "decided at 1 to 4, each applied a step later"
    reasons = [[a.reason for a in written if a.phase == "failed"] for written in ranks.written]
    assert "it failed on another rank" in reasons[0][0]
    assert "broken on purpose" in reasons[1][0]


def test_a_part_that_fails_later_stops_its_rule_on_all_ranks() -> None:
    ranks = Ranks(policy(budget={**BUDGET, "cool_off_steps": 10}), Knobs(), Knobs())
    for step in range(1, 6):
        if step == 5:
            ranks.controllers[1].fail("beta", "no memory")
        ranks.step(record(step))
    assert acts(ranks.written[0])[-1][:2] == ("failed", 5)
    assert [one.beta for one in ranks.actuators] == [0.0, 0.0]


@pytest.mark.parametrize("where", ["on_round", "on_step"])
def test_a_fold_that_breaks_on_one_rank_switches_all_rules_off_on_all(
    where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ranks = Ranks(policy(budget=BUDGET, bound=BOUND), Knobs(), Knobs())
    real = getattr(fold, where)
    for step in range(1, 7):
        calls = {"n": 0}

        def second_breaks(*args: Any, calls: dict[str, int] = calls, step: int = step) -> Any:
            calls["n"] += 1
            if step == 4 and calls["n"] == 2:
                raise ValueError("broken on purpose")
            return real(*args)

        monkeypatch.setattr(fold, where, second_breaks)
        effects = ranks.round(step - 1, [1.0, 0.0, 0.0, 0.0] * 2)
        if step in (2, 3):
            assert all(effect is not None and effect.limit == 1.0 for effect in effects)
        ranks.step(record(step))
    known = 4 if where == "on_round" else 5
    assert ranks.round(6, [1.0, 0.0, 0.0, 0.0] * 2) == [None, None]
    for one, written, turned in zip(ranks.controllers, ranks.written, ranks.actuators, strict=True):
        assert one.off is not None
        assert not one.holds_state
        assert turned.beta == 0.0
        assert sorted(turned.rested) == ["KLPenalty", "Winsorise"]
        failed = [a for a in written if a.phase == "failed"]
        assert {(a.rule, a.step) for a in failed} == {("budget", known), ("bound", known)}
        assert max(a.step for a in written) == known
        # Everything that was decided has an end.
        ended = {a.action_id for a in written if a.phase in ("applied", "failed")}
        assert {a.action_id for a in written if a.phase == "decided"} <= ended
        assert {a.action_id for a in written if a.phase == "decided"} <= {
            a.action_id for a in written if a.phase == "measured"
        }
    assert "broken on purpose" in str(ranks.controllers[1].off)


def test_ranks_that_decide_differently_are_stopped_before_they_act() -> None:
    ranks = Ranks(policy(budget=BUDGET), Knobs(), Knobs())
    votes = np.sum([one.vote() for one in ranks.controllers], axis=0)
    ranks.controllers[0].step(record(1, kl=0.5), (), votes)
    ranks.controllers[1].step(record(1, kl=0.1), (), votes)
    ranks.step(record(2))
    assert [one.asked for one in ranks.actuators] == [[], []]
    assert all("no longer decide alike" in str(one.off) for one in ranks.controllers)
    assert acts(ranks.written[0]) == [("decided", 1, 0.0, 0.1), ("failed", 2, 0.0, 0.1)]


def test_a_round_that_one_rank_cannot_read_is_left_alone_by_all() -> None:
    ranks = Ranks(policy(bound=BOUND), Knobs(), Knobs())
    ranks.step(record(1))
    rewards = [1.0, 0.0, 0.0, 0.0] * 2
    assert ranks.round(1, rewards, broken=[1]) == [None, None]
    ranks.step(record(2))
    assert all(effect is not None for effect in ranks.round(2, rewards))
    assert all(one.off is None for one in ranks.controllers)
    mode_n, success_n = ranks.controllers[1].own_rows("format")
    assert len(mode_n) == 4
    assert success_n.tolist() == [1.0, 0.0, 0.0, 0.0]


def test_each_rank_gets_the_part_of_its_own_rows() -> None:
    """Groups of four over two ranks of six rows: the effects are those of one rank with all twelve."""
    rules = policy(hold=HOLD, bound=BOUND)
    alone, both = Ranks(rules, Knobs()), Ranks(rules, Knobs(), Knobs())
    rng = np.random.default_rng(0)
    for step in range(1, 20):
        rewards = (rng.random(12) < 0.4).astype(float).tolist()
        (whole,), parts = alone.round(step - 1, rewards), both.round(step - 1, rewards)
        alone.step(record(step))
        both.step(record(step))
    assert whole is not None
    assert whole.addition_n.any()
    assert all(part is not None for part in parts)
    for name in ("factor_n", "addition_n"):
        assert np.concatenate([getattr(part, name) for part in parts]).tolist() == getattr(whole, name).tolist()


def test_draws_follow_what_all_ranks_agreed_on_and_not_a_rule_that_failed() -> None:
    ranks = Ranks(policy(unsolvable=DEFER), Knobs(), Knobs())
    ranks.step(record(1))
    for number in (1, 2):
        ranks.round(number, [1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0])
        assert not ranks.controllers[0].blocked(number + 1) or number == 2
        ranks.step(record(number + 1))
    held = ranks.controllers[0].blocked(3)
    assert held == ranks.controllers[1].blocked(3)
    assert held.holds(row_key("p1"))
    assert not held.holds(row_key("p0"))
    ranks.controllers[1].fail("draws", "broken")
    ranks.step(record(4))
    assert not ranks.controllers[0].blocked(4)


# -- checkpoints -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("world", [1, 2])
def test_a_state_through_json_at_every_step_changes_nothing(world: int) -> None:
    rules = policy(budget=BUDGET, bonus=BONUS, bound=BOUND, hold=HOLD, unsolvable=DEFER)
    whole, torn = Ranks(rules, *(Knobs() for _ in range(world))), Ranks(rules, *(Knobs() for _ in range(world)))
    written: list[Action] = []
    rng = np.random.default_rng(1)
    for step in range(1, 16):
        rewards = (rng.random(16) < 0.3).astype(float).tolist()
        kl = float(rng.random())
        expected, found = whole.round(step - 1, rewards), torn.round(step - 1, rewards)
        for a, b in zip(expected, found, strict=True):
            assert (a is None) == (b is None)
            if a is not None and b is not None:
                assert (a.limit, a.factor_n.tolist(), a.addition_n.tolist()) == (
                    b.limit, b.factor_n.tolist(), b.addition_n.tolist(),
                )  # fmt: skip
        for ranks in (whole, torn):
            ranks.step(record(step, kl=kl))
        written += torn.written[0]
        state = json.dumps(torn.controllers[0].state(), allow_nan=False)
        torn = Ranks(rules, *(Knobs() for _ in range(world)), states=[json.loads(state) for _ in range(world)])
        assert torn.actuators[0].values() == whole.actuators[0].values()
        assert torn.controllers[0].blocked(step) == whole.controllers[0].blocked(step)
    assert [dataclasses.asdict(a) for a in written] == [dataclasses.asdict(a) for a in whole.written[0]]
    assert {a.phase for a in written} == {"decided", "applied", "measured"}


def test_a_run_that_was_switched_off_stays_so() -> None:
    ranks = Ranks(policy(bonus=BONUS), Knobs(), Knobs())
    ranks.controllers[0]._broken = "broken"
    ranks.step(record(1))
    again = Ranks(
        policy(bonus=BONUS), Knobs(), Knobs(), states=[json.loads(json.dumps(ranks.controllers[0].state()))] * 2
    )
    again.step(record(2))
    assert again.written == [[], []]
    assert again.controllers[0].off == "broken"


# -- small print -------------------------------------------------------------------------------------------------------


def test_a_dry_run_writes_and_turns_nothing() -> None:
    ranks = Ranks(policy(budget={**BUDGET, "dry_run": True}, bound={**BOUND, "dry_run": True}), Knobs())
    for step in (1, 2, 3):
        assert ranks.round(step - 1, [1.0, 0.0, 0.0, 0.0]) == [None]
        ranks.step(record(step))
    assert ranks.actuators[0].asked == []
    assert {a.phase for a in ranks.written[0]} == {"decided"}
    assert not ranks.controllers[0].holds_state


def test_a_loop_without_actuators_refuses_what_it_cannot_turn() -> None:
    with pytest.raises(ConfigError, match="KLPenalty"):
        AdvantagesOnly(policy(budget=BUDGET))
    AdvantagesOnly(policy(budget={**BUDGET, "dry_run": True}, bound=BOUND))


def test_a_policy_is_read_by_the_names_of_this_version() -> None:
    assert load_policy("observe").dry_run
    with pytest.raises(ConfigError, match="no metric"):
        load_policy({"rules": {"a": {"when": {"metric": "rlmon/kl/meen", "above": 1.0}, "do": "stop"}}})


def test_keys_are_the_same_in_every_process() -> None:
    # blake2b("p0", 8 bytes), little-endian, without the top bit.
    import hashlib

    digest = hashlib.blake2b(b"p0", digest_size=8).digest()
    assert row_key("p0") == int.from_bytes(digest, "little") % 2**63
    assert row_key("\ud800") != row_key("p0"), "lone surrogates do not raise"


def test_metrics_say_what_acts() -> None:
    ranks = Ranks(policy(budget=BUDGET, hold=HOLD), Knobs())
    ranks.step(record(1))
    ranks.round(1, [1.0, 0.0, 0.0, 0.0])
    told = ranks.controllers[0].metrics(2)
    assert told["rlmon/intervention/beta"] == 0.1
    assert told["rlmon/intervention/kappa"] == 1.0
    assert told["rlmon/intervention/neutralised_share"] == 0.0
    assert told["rlmon/intervention/deferred_share"] is None
    assert ranks.controllers[0].metrics(3)["rlmon/intervention/neutralised_share"] is None, "no round in this step"
