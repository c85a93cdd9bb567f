"""An action of one's own, from one file: named in a policy, on one rank and on two, resumed, and read without it."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from own_action import Shorten
from simulated_ranks import Run, round_of

import rlmon
from rlmon.controller import load_policy
from rlmon.errors import ConfigError
from rlmon.extensions import Extensions
from rlmon.interventions import Intervention, Round, RowChange, RuleState, RunSoFar, setting, show
from rlmon.interventions.policy import Policy

RULES = {
    "rules": {
        "brief": {
            "when": "always",
            "do": {"action": "shorten", "tokens": 10.0, "most": 0.3},
            "cool_off_steps": 2,
            "measure_after_steps": 6,
        }
    }
}
POLICY = load_policy(RULES, Extensions(actions=[Shorten]))
ROUNDS = [round_of(number, sources=["a"], prompts=4, group=4, narrow={}) for number in range(16)]


def run(folder: Path, world: int, rounds: Any = ROUNDS, **more: Any) -> Run:
    return Run(folder, world, rounds, group=4, policy=POLICY, **more)


def told(folder: Path) -> list[tuple[Any, ...]]:
    acts = rlmon.open_run(folder).actions
    return [(a.phase, a.action_id, a.step, a.knob, a.old, a.new, a.reason, a.effect) for a in acts]


def test_a_policy_names_it_and_its_settings_are_checked() -> None:
    assert POLICY.rule("brief").action == Shorten(tokens=10.0, most=0.3)
    assert Policy.from_dict(POLICY.to_dict(), actions=[Shorten]) == POLICY
    assert load_policy(POLICY) == POLICY
    text = show.to_yaml(POLICY)
    assert "most: 0.3  # and goes no further than this" in text
    assert load_policy(text, Extensions(actions=[Shorten])) == POLICY
    assert "shorten" in {name for _, name, _ in show.catalogue([Shorten])}
    wrong = {"rules": {"brief": {"when": "always", "do": {"action": "shorten", "most": 9.0}}}}
    with pytest.raises(ConfigError, match=r"do\.most: is 9\.0; it takes a number from 0 to 3\."):
        load_policy(wrong, Extensions(actions=[Shorten]))
    with pytest.raises(ConfigError, match=r"'shorten' is no action\..*passed to RLMon \(actions=\[\.\.\.\]\)"):
        load_policy(RULES)


def test_it_acts_on_rows_by_the_level_that_it_takes_and_every_act_is_recorded(tmp_path: Path) -> None:
    alone = run(tmp_path / "alone", 1)
    alone.close()
    found = told(tmp_path / "alone")
    levels = [(phase, step, old, new) for phase, _, step, knob, old, new, *_ in found if knob == "shorten"]
    assert [level for level in levels if level[0] == "decided"] == [
        ("decided", 1, 0.0, 0.1), ("decided", 3, 0.1, 0.2), ("decided", 5, 0.2, pytest.approx(0.3)),
    ]  # fmt: skip
    assert len([one for one in levels if one[0] == "applied"]) == 3
    assert any("completions are long" in one[6] for one in found if one[3] == "advantages")
    assert {one[7] for one in found if one[0] == "measured"} > {"not_measured"}
    effect = alone.effects[0][1]
    long = [len(text) > 10 for text in ROUNDS[1]["completions"]]
    assert [bool(value) for value in effect.addition_n] == long


def test_ranks_act_alike(tmp_path: Path) -> None:
    one, two = run(tmp_path / "one", 1), run(tmp_path / "two", 2)
    for each in (one, two):
        each.close()
    alone, split = (
        [act[:6] for act in told(tmp_path / name) if act[0] == "decided" and act[3] == "shorten"]
        for name in ("one", "two")
    )
    assert alone
    assert split == alone
    assert [monitor.controller.off for monitor in two.monitors] == [None, None]  # type: ignore[union-attr]


def test_a_resumed_run_goes_on_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", 1)
    half = run(tmp_path / "half", 1, ROUNDS[:7])
    state = json.loads(json.dumps(half.state()))
    rest = run(tmp_path / "half", 1, ROUNDS[7:], first_step=7, states=[state])
    assert rest.state()["shared"]["steering"] == whole.state()["shared"]["steering"]
    assert whole.monitors[0].controller._rules.rules["brief"].inner["long_rows"] > 0  # type: ignore[union-attr]


def test_an_audit_that_lacks_it_shows_its_acts(tmp_path: Path) -> None:
    run(tmp_path / "log", 1).close()
    code = (
        "import rlmon, sys; audit = rlmon.audit(sys.argv[1]); "
        "assert 'own_action' not in sys.modules; print(len(audit.to_json()['actions'])); "
        "assert not [check.id for check in audit.checks if check.status == 'error']"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "log")], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == len(told(tmp_path / "log"))


@dataclass(frozen=True, kw_only=True, slots=True)
class Breaks(Intervention):
    """Breaks in one of its methods, from the third round on."""

    name = "breaks"
    turns = "beta"

    where: str = setting("on_round", "which method breaks, and how")

    def fresh(self) -> Any:
        return 0

    def on_round(self, state: Any, round: Round) -> tuple[Any, RowChange]:
        if state >= 2 and self.where == "on_round":
            raise ValueError("broken on purpose")
        wrong = {"shape": np.ones(1), "nan": np.full(len(round.table), np.nan)}.get(self.where)
        return state + 1, RowChange(addition_N=wrong if state >= 2 else None)

    def next_level(self, at: RuleState, run: RunSoFar) -> tuple[float, str | None]:
        if at.inner >= 3 and self.where == "next_level":
            raise ValueError("broken on purpose")
        return (float("inf") if self.where == "inf" and at.inner >= 3 else at.level + 0.5), None


@pytest.mark.parametrize(
    ("where", "why"),
    [
        ("on_round", "ValueError: broken on purpose"),
        ("next_level", "ValueError: broken on purpose"),
        ("shape", "ValueError: addition_N is not a finite number for each of 16 rows"),
        ("nan", "ValueError: addition_N is not a finite number for each of 16 rows"),
        ("inf", "ValueError: its next level is inf"),
    ],
)
@pytest.mark.parametrize("world", [1, 2])
def test_what_breaks_in_it_stops_its_rule_alone(tmp_path: Path, where: str, why: str, world: int) -> None:
    broken = {"when": "always", "do": {"action": "breaks", "where": where}, "cool_off_steps": 1}
    policy = load_policy({"rules": {**RULES["rules"], "broken": broken}}, Extensions(actions=[Shorten, Breaks]))
    of = Run(tmp_path / "run", world, ROUNDS, group=4, policy=policy)
    of.close()
    acts = rlmon.open_run(tmp_path / "run").actions
    assert {act.rule for act in acts if act.phase == "failed"} == {"broken"}
    assert any(act.reason.endswith(why) for act in acts if act.phase == "failed")
    assert [monitor.controller.off for monitor in of.monitors] == [None] * world  # type: ignore[union-attr]
    last = max(act.step for act in acts if act.rule == "brief")
    assert last > max(act.step for act in acts if act.phase == "failed")
    assert all(np.isfinite(effect.addition_n).all() for effect in of.effects[0] if effect is not None)


def test_a_state_that_it_cannot_go_on_with_begins_anew(tmp_path: Path) -> None:
    state = json.loads(json.dumps(run(tmp_path / "half", 1, ROUNDS[:7]).state()))
    rule = state["shared"]["steering"]["engine"]["rules"]["brief"]
    rule["inner"], rule["changed_step"] = {}, None
    again = run(tmp_path / "half", 1, ROUNDS[7:8], first_step=7, states=[state])
    notes = [event.payload["text"] for event in rlmon.open_run(tmp_path / "half").events if event.kind == "note"]
    assert "begins anew" in notes[-1]
    assert "rule brief: KeyError" in notes[-1]
    assert again.monitors[0].controller._rules.rules["brief"].failed is None  # type: ignore[union-attr]


@dataclass(frozen=True, kw_only=True, slots=True)
class Remembers(Intervention):
    """Remember the long ones, in a way that one would."""

    name = "remembers"
    how: str = setting("number", "number or set")

    def fresh(self) -> Any:
        return 0 if self.how == "number" else set()

    def on_round(self, state: Any, round: Round) -> tuple[Any, RowChange]:
        long_N = round.table.tokens_N > 0
        return (state + long_N.sum() if self.how == "number" else state | {round.table.round}), RowChange()


def test_a_number_of_numpy_is_kept_and_a_state_that_json_has_not_stops_its_rule_alone(tmp_path: Path) -> None:
    policies = {
        how: load_policy(
            {"rules": {"own": {"when": "always", "do": {"action": "remembers", "how": how}}, **RULES["rules"]}},
            Extensions(actions=[Remembers, Shorten]),
        )
        for how in ("number", "set")
    }
    states = {}
    for how, policy in policies.items():
        monitor = Run(tmp_path / how, 1, ROUNDS[:6], group=4, policy=policy).monitors[0]
        states[how] = json.loads(json.dumps(monitor.shared_state()))["steering"]["engine"]["rules"]
        assert monitor.faults.totals == {}
        monitor.end_step(7)
    assert states["number"]["own"]["inner"] == 6 * 16
    assert states["set"]["brief"] == states["number"]["brief"]
    failed = [act for act in rlmon.open_run(tmp_path / "set").actions if act.phase == "failed"]
    assert {act.rule for act in failed} == {"own"}
    assert "its state cannot be kept (TypeError: Object of type set is not JSON serializable)" in failed[0].reason
    assert not [act for act in rlmon.open_run(tmp_path / "number").actions if act.phase == "failed"]
