"""The two arms that were tried beside ``protect``: their arithmetic, and that they act."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
from round_tables import round_table

from rlmon.controller import load_policy
from rlmon.interventions.intervention import Round
from rlmon.interventions.mode_counts import REST, ModeCounts
from rlmon.interventions.mode_marginal import ModeMarginal
from rlmon.interventions.rows import RoundTable
from rlmon.statistics import effective_number
from studies import tilted_marginal, virtual_wrong
from studies.cells import OWN_ACTIONS
from studies.control_arms import TRIED
from studies.tilted_marginal import TiltedMarginal
from studies.virtual_wrong import VirtualWrong

A, B = 11, 12


def acting(table: RoundTable, *, level: float = 1.0, on: bool = True) -> Round:
    return Round(table=table, level=level, acting=on, dry_run=False, scale=1.0)


@pytest.mark.parametrize("group_size", [2, 8])
@pytest.mark.parametrize("wrong", [1, 3])
def test_right_answers_stand_above_wrong_ones_that_nobody_gave(group_size: int, wrong: int) -> None:
    rewards = np.array([1.0] * group_size + [0.0] * wrong)
    expected = (1.0 - rewards.mean()) / rewards.std(ddof=1)
    assert virtual_wrong.advantage(group_size, wrong) == pytest.approx(expected)


def test_one_wrong_answer_among_nine_and_none() -> None:
    # Mean 8/9, squares 8/9 over 8 is 1/9, root 1/3: (1/9) / (1/3) = 1/3.
    assert virtual_wrong.advantage(8, 1.0) == pytest.approx(1 / 3)
    assert virtual_wrong.advantage(8, 0.0) == 0.0


def test_only_groups_that_are_all_right_are_given_anything() -> None:
    unknown = math.nan
    table = round_table([1, 1, 1, 0, 0, 0, 1, unknown], group_size=2)
    _, change = VirtualWrong().on_round(None, acting(table))
    assert change.addition_N is not None
    # sqrt(1 / (2 + 1)) for groups of two.
    assert change.addition_N == pytest.approx([math.sqrt(1 / 3)] * 2 + [0.0] * 6)
    assert VirtualWrong().on_round(None, acting(table, on=False))[1].addition_N is None


def all_the_same(completions: list[str], **_: object) -> list[float]:
    return [1.0] * len(completions)


@pytest.mark.parametrize("samples", [0.0, 1.0])
def test_a_run_whose_answers_are_all_right_learns_only_beside_wrong_ones(tmp_path: Path, samples: float) -> None:
    from rlmon.trl import RLMon

    policy = {"rules": {"teach-on": {"when": "always", "do": {"action": "virtual_wrong", "samples": samples}}}}
    trainer = tiny.trainer(tmp_path, reward=all_the_same, max_steps=3)
    before = tiny.weights(trainer)
    RLMon(trainer, policy=policy, actions=[VirtualWrong], console=False)
    trainer.train()
    assert tiny.same_weights(before, tiny.weights(trainer)) is (samples == 0.0)


def test_the_tilt_is_by_e_for_a_solve_rate_that_is_better_by_tau() -> None:
    # 30 : 10 e = 30 : 27.18 of 40 is 20.99 and 19.01.
    found = tilted_marginal.tilt({A: 30.0, B: 10.0}, {A: 0.5, B: 0.7}, 0.2)
    assert found == pytest.approx({A: 40 * 30 / (30 + 10 * math.e), B: 40 * 10 * math.e / (30 + 10 * math.e)})


def test_the_least_tau_keeps_the_floor_and_no_less_does() -> None:
    rows, rates = {A: 60.0, B: 40.0}, {A: 0.9, B: 0.8}
    tau = tilted_marginal.least_tau(rows, rates, 0.9, 0.001)

    def kept(tau: float) -> float:
        return float(
            effective_number(list(tilted_marginal.tilt(rows, rates, tau).values())) / effective_number([60.0, 40.0])
        )

    assert kept(tau) == pytest.approx(0.9)
    assert kept(0.99 * tau) < 0.9
    # Modes that are solved alike are not tilted by any tau; what is less than low is noise.
    assert tilted_marginal.least_tau(rows, {A: 0.9, B: 0.9}, 0.9, 0.001) == 0.001
    assert tilted_marginal.least_tau(rows, rates, 0.9, 10.0) == 10.0
    # All of it is to be kept: a mode that is larger and better may gain nothing.
    assert kept(tilted_marginal.least_tau(rows, rates, 1.0, 0.001)) == pytest.approx(1.0)


def settled(settings: ModeMarginal) -> ModeCounts:
    """128 rounds' worth of A and B in equal shares, of which A is right always and B every other time."""
    table = round_table([1, 1, 1, 0] * 128, group_size=4, modes={"format": [A, B, A, B] * 128})
    state, _ = settings.on_round(settings.fresh(), acting(table, on=False))
    assert state.complete
    return state


def test_the_better_mode_gains_where_the_base_holds_it() -> None:
    table = round_table([1, 1, 1, 0] * 8, group_size=4, modes={"format": [A, B, A, B] * 8}, round=1)
    _, held = ModeMarginal().on_round(settled(ModeMarginal()), acting(table))
    _, change = TiltedMarginal().on_round(settled(TiltedMarginal()), acting(table))
    assert held.addition_N is not None
    assert change.addition_N is not None
    # The run is where its base was.
    assert not held.addition_N.any()
    assert (change.addition_N[::2] > 0.1).all()
    assert (change.addition_N[1::2] < -0.1).all()
    assert change.addition_N.sum() == pytest.approx(0.0)
    assert TiltedMarginal().on_round(settled(TiltedMarginal()), acting(table, on=False))[1].addition_N is None


def test_what_is_tilted_is_a_base_whose_prompts_differ_as_before() -> None:
    state = settled(TiltedMarginal())
    base = replace(state.base, rows={A: 200.0, B: 300.0, REST: 12.0}, pairs=100.0, equal_pairs=64.0)
    state = replace(state, base=base)
    found = tilted_marginal.tilted(state, 0.9, 0.02).base

    def across(rows: dict[int, float]) -> float:
        n = sum(rows.values())
        return sum(k * (k - 1.0) for k in rows.values()) / (n * (n - 1.0))

    def correlation(equal: float, across: float) -> float:
        return (equal / 100.0 - across) / (1.0 - across)

    assert found.rows[REST] == 12.0
    assert found.total == pytest.approx(512.0)
    assert found.rows[A] > 200.0
    assert correlation(found.equal_pairs, across(dict(found.rows))) == pytest.approx(
        correlation(64.0, across(dict(base.rows)))
    )
    begun = ModeCounts()
    assert tilted_marginal.tilted(begun, 0.9, 0.02) is begun


def test_the_arms_are_protect_in_all_else() -> None:
    protect = load_policy("protect").to_dict()["rules"]
    tilted, virtual = (
        load_policy(TRIED[name].policy, OWN_ACTIONS).to_dict()["rules"] for name in ("tilted", "virtual")
    )
    assert virtual.pop("teach-on")["do"]["action"] == "virtual_wrong"
    assert virtual == protect
    held = tilted["hold-formats"]["do"]
    own = {"action": "mode_marginal", "keeps": held["keeps"], "least_tau": held["least_tau"]}
    assert {**held, **own} == {**protect["hold-formats"]["do"], **own}
    held.clear()
    protect["hold-formats"]["do"].clear()
    assert tilted == protect
