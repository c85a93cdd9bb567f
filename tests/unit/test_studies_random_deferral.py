"""The control arm of the experiments on deferral, which is also what an action of one's own looks like."""

from __future__ import annotations

import numpy as np
import pytest
from round_tables import round_table

from rlmon.controller import load_policy
from rlmon.errors import ConfigError
from rlmon.extensions import Extensions
from rlmon.interventions.deferral import Defer, DeferralState, LedgerView, step
from rlmon.interventions.intervention import NOTHING
from studies.arms import ARMS
from studies.random_deferral import RandomDefer, RandomShare

PROMPTS, G = 100, 8


def deferred(settings: Defer) -> DeferralState:
    """The state after two rounds in which no completion of 100 prompts is a success."""
    rows = PROMPTS * G
    nothing = np.zeros(rows)
    state = settings.fresh()
    for round in range(2):
        table = round_table(
            nothing, round=round, group_size=G, prompt=np.repeat(np.arange(PROMPTS), G), source=np.full(rows, 7)
        )
        attempts = np.full(rows, G * (round + 1))
        known = LedgerView(attempts_N=attempts, successes_N=0 * attempts, credibly_below_N=np.full(rows, True))
        state, _ = step(settings, state, table, known)
    return state


def test_the_control_defers_as_many_at_the_same_times() -> None:
    settings, control = Defer(), RandomDefer()
    a, b = deferred(settings), deferred(control)
    assert a.units == b.units
    assert len(settings.blocked(a, 5).prompts) == 50
    held = control.blocked(b, 5)
    assert not held.prompts
    assert held == RandomShare(share=0.5)
    chosen = {prompt for prompt in range(10_000) if held.holds(prompt)}
    assert len(chosen) == pytest.approx(5_000, abs=200)
    fewer = RandomShare(share=0.25)
    assert {prompt for prompt in range(10_000) if fewer.holds(prompt)} < chosen
    assert not settings.blocked(a, 51)
    assert not control.blocked(b, 51)
    assert not control.blocked(control.fresh(), 5)
    assert settings.blocked(settings.fresh(), 5) == NOTHING


def test_a_policy_names_the_control_where_it_is_given() -> None:
    policy = load_policy(ARMS["random-deferral"].policy, Extensions(actions=[RandomDefer]))
    assert isinstance(policy.rule("defer-guessed").action, RandomDefer)
    with pytest.raises(ConfigError, match=r"'random_defer' is no action\. .*actions=\[\.\.\.\]"):
        load_policy(ARMS["random-deferral"].policy)


def test_a_policy_of_before_is_told_where_it_went() -> None:
    rule = {"when": "always", "do": {"action": "defer", "random": True}}
    with pytest.raises(ConfigError, match=r"do\.random: was a control arm .*random_deferral\.py"):
        load_policy({"rules": {"control": rule}})
    rule["do"] = {"action": "defer", "random": False}  # as `rlmon policy` wrote it out
    assert load_policy({"rules": {"control": rule}}).rule("control").action == Defer()
