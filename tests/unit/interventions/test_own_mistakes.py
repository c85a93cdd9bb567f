"""A mistake in an action of one's own stops its own rule on all ranks, says why, and touches nothing else."""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from own_action import Shorten
from simulated_ranks import Run, round_of

import rlmon
from rlmon.controller import load_policy
from rlmon.extensions import Extensions
from rlmon.interventions import Intervention, Round, RowAct, RowChange, RuleState, RunSoFar, answers, setting
from rlmon.interventions.intervention import Ledger, Level
from rlmon.records import StepRecord

ROUNDS = [round_of(number, sources=["a"], prompts=4, group=4, narrow={}) for number in range(6)]
FROM = 2
"""Round from which the mistake is made."""
NO_ARRAY = np.array(["1"] * 16)
CHANGES: dict[str, Any] = {
    "limit nan": RowChange(limit=float("nan")),
    "limit negative": RowChange(limit=-1.0),
    "limit text": RowChange(limit="3"),  # type: ignore[arg-type]
    "factor text": RowChange(factor_N=NO_ARRAY),  # type: ignore[arg-type]
    "factor complex": RowChange(factor_N=np.full(16, 1j)),  # type: ignore[arg-type]
    "factor huge": RowChange(factor_N=np.full(16, 1e200)),
    "addition column": RowChange(addition_N=np.ones((16, 1))),
    "no change": 3,
    "act text": RowChange(act="halved"),  # type: ignore[arg-type]
    "act knob": RowChange(act=RowAct(knob="wheel", count=1, reason="why")),  # type: ignore[arg-type]
    "act count": RowChange(act=RowAct(knob="advantages", count=1.5, reason="why")),  # type: ignore[arg-type]
    "act reason": RowChange(act=RowAct(knob="advantages", count=1, reason=None)),  # type: ignore[arg-type]
}
LEVELS: dict[str, Any] = {
    "level nan": (float("nan"), None),
    "level text": ("high", None),
    "level negative": (-0.5, None),
    "level alone": 0.5,
    "level why": (0.5, 3),
}
MEASURED: dict[str, Any] = {
    "measures text": {"own": "many"},
    "measures nan": {"own": float("nan")},
    "measures beta": {"beta": 1.0},
    "measures none": None,
}
WHY = {
    "limit nan": "limit is nan",
    "limit negative": "limit is -1.0",
    "limit text": "limit is '3'",
    "factor text": "factor_N is not a finite number for each of 16 rows",
    "factor complex": "factor_N is not a finite number for each of 16 rows",
    "factor huge": "factor_N is not a finite number for each of 16 rows",
    "addition column": "addition_N is not a finite number for each of 16 rows",
    "no change": "on_round returns (state, RowChange(...)), and gave 3 as the second",
    "act text": "act is 'halved', and no RowAct(knob=..., count=..., reason=...)",
    "act knob": 'the act\'s knob is \'wheel\'. Write knob="advantages" or knob="draws"',
    "act count": "the act's count is 1.5, and no whole number of at least 0",
    "act reason": "the act's reason is None, and no text",
    "level nan": "its next level is nan",
    "level text": "its next level is 'high'",
    "level negative": "its next level is -0.5",
    "level alone": "next_level returns (level, why), and gave 0.5",
    "level why": "why its level changes is 3, and no text",
    "measures text": "own is 'many'",
    "measures nan": "own is nan",
    "measures beta": "'beta' is no name for a metric of its own",
    "measures none": "measures returns a mapping of names to numbers, and gave None",
    "measures": "KeyError: 'measures'",
    "fresh": "KeyError: 'fresh'",
    "resting": "its resting level is nan",
    "ask": "KeyError: 'ask'",
    "suspends": "suspends returns (whether, why), and gave True",
    "change": "change returns (old, new), and gave 'up'",
    "writes rows": "ValueError: assignment destination is read-only",
    "writes record": "TypeError: 'mappingproxy' object does not support item assignment",
    "writes given": "TypeError: 'mappingproxy' object does not support item assignment",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Errs(Intervention):
    """Make one mistake, from the third round on."""

    name = "errs"
    asks = "before"

    how: str = setting("", "which mistake")
    everywhere: bool = setting(True, "on all ranks, or on the second alone")

    def fresh(self) -> Any:
        return self._raise("fresh") or 0

    def _raise(self, how: str) -> None:
        if self.how == how and (self.everywhere or threading.current_thread().name.endswith("_1")):
            raise KeyError(how)

    def resting_level(self, given: Any) -> float:
        return float("nan") if self.how == "resting" else 0.0

    def ask(self, ledger: Ledger) -> Any:
        return self._raise("ask") or ledger.counts().sum()

    def on_round(self, state: Any, round: Round) -> tuple[Any, RowChange]:
        if state < FROM:
            return state + 1, RowChange()
        if self.how == "writes rows":
            round.table.advantage_N[:] = 0.0
        self._raise("on_round")
        return state + 1, CHANGES.get(self.how, RowChange())

    def on_step(self, state: Any, record: StepRecord) -> Any:
        if self.how == "writes record":
            record.metrics["own"] = 1.0  # type: ignore[index]
        return state

    def suspends(self, at: RuleState, run: RunSoFar) -> Any:
        return True if self.how == "suspends" and at.inner > FROM else (np.bool_(False), None)

    def next_level(self, at: RuleState, run: RunSoFar) -> Any:
        if self.how == "writes given":
            run.given["beta"] = 1.0  # type: ignore[index]
        if at.inner > FROM:
            self._raise("next_level")
        return LEVELS.get(self.how, (1.0, None)) if at.inner > FROM else (0.5, None)

    def change(self, old: float, new: float) -> Any:
        return "up" if self.how == "change" else (old, new)

    def measures(self, at: RuleState, step: int, *, dry_run: bool) -> Any:
        if at.inner is not None and at.inner > FROM:
            self._raise("measures")
            return MEASURED.get(self.how, {"own": np.float32(2.0)})
        return {}


def trained(folder: Path, world: int, how: str, everywhere: bool = True) -> Run:
    wrong = {"action": "errs", "how": how, "everywhere": everywhere}
    rules = {
        "wrong": {"when": "always", "do": wrong, "cool_off_steps": 1},
        "brief": {"when": "always", "do": {"action": "shorten", "tokens": 10.0}, "cool_off_steps": 1},
    }
    policy = load_policy({"rules": rules}, Extensions(actions=[Errs, Shorten]))
    return Run(folder, world, ROUNDS, group=4, policy=policy)


@pytest.fixture(scope="module")
def well(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return trained(tmp_path_factory.mktemp("well"), 1, "nothing")


@pytest.mark.parametrize(
    ("how", "world"), [*((how, 1) for how in WHY), ("limit nan", 2), ("measures", 2), ("ask", 2), ("fresh", 2)]
)
def test_a_mistake_stops_its_own_rule_and_says_why(well: Run, tmp_path: Path, how: str, world: int) -> None:
    of = trained(tmp_path / "run", world, how)
    of.close()
    acts = rlmon.open_run(tmp_path / "run").actions
    failed = [act for act in acts if act.phase == "failed"]
    assert {act.rule for act in failed} == {"wrong"}
    assert failed[-1].reason.endswith(WHY[how])
    for monitor in of.monitors:
        assert monitor.controller.off is None  # type: ignore[union-attr]
        assert monitor.faults.totals == {}
    for usual, record in zip(well.records[0], of.records[0], strict=True):
        assert usual.metrics.keys() - record.metrics.keys() <= {"rlmon/intervention/own"}
    for usual, effect in zip(well.effects[0], of.effects[0], strict=True):
        assert (usual is None) == (effect is None)
        if effect is not None:
            assert effect.limit is None
            assert (effect.factor_n == 1.0).all()
            assert np.array_equal(effect.addition_n, usual.addition_n[: len(effect.addition_n)])


@pytest.mark.parametrize("how", ["on_round", "ask", "next_level", "measures"])
def test_a_mistake_that_one_rank_alone_makes_stops_the_rule_on_all_and_no_other(tmp_path: Path, how: str) -> None:
    of = trained(tmp_path / "run", 2, how, everywhere=False)
    of.close()
    acts = rlmon.open_run(tmp_path / "run").actions
    failed = [act for act in acts if act.phase == "failed"]
    assert {act.rule for act in failed} == {"wrong"}
    assert failed[-1].reason.endswith("it failed on another rank")
    first, second = (monitor.controller for monitor in of.monitors)
    assert first is not None
    assert second is not None
    assert (first.off, second.off) == (None, None)
    for mine, other in zip(*(each._rules.rules.values() for each in (first, second)), strict=True):
        assert (mine.level, mine.failed is None) == (other.level, other.failed is None)
    assert max(act.step for act in acts if act.rule == "brief" and act.phase == "applied") > failed[-1].step


def test_what_it_measures_is_in_the_record(well: Run) -> None:
    assert well.records[0][-1].metrics["rlmon/intervention/own"] == 2.0
    assert not [act for act in rlmon.open_run(well.folder).actions if act.phase == "failed"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Turned(Intervention):
    """Turn beta."""

    name = "turned"
    turns = "beta"

    def next_level(self, at: RuleState, run: RunSoFar) -> tuple[float, None]:
        return 0.1, None

    def change(self, old: float, new: float) -> tuple[Level, Level]:
        return "low", "high"


def test_a_coefficient_takes_numbers() -> None:
    with pytest.raises(ValueError, match="the beta that it changes is 'low'"):
        answers.change_of_level(Turned(), 0.0, 0.1)


@dataclass(frozen=True, kw_only=True)
class Kept:
    """A state with names for its parts."""

    seen: dict[str, float]
    both: tuple[int, int] = (1, 2)


@dataclass(frozen=True, kw_only=True, slots=True)
class Keeps(Intervention):
    """Keep a state, with a save and no load."""

    name = "keeps"

    def save(self, state: Any) -> Any:
        return sorted(state)


@dataclass(frozen=True, kw_only=True, slots=True)
class KeepsNames(Intervention):
    """Keep a dataclass."""

    name = "keeps_names"

    def fresh(self) -> Kept:
        return Kept(seen={})


@pytest.mark.parametrize("state", [{3: 1}, (1, 2), {"last": (1, 2)}, [{1: 2}]])
def test_a_state_that_would_come_back_as_another_is_not_kept(state: Any) -> None:
    with pytest.raises(ValueError, match=r"comes back as"):
        answers.saved_state(Errs(), state)


@pytest.mark.parametrize("state", [None, 3, np.int64(3), float("nan"), {"a": [1.5, None]}, {"rows": np.int64(3)}])
def test_a_state_that_comes_back_is_kept(state: Any) -> None:
    json.dumps(answers.saved_state(Errs(), state))


def test_a_dataclass_is_kept_and_what_save_gives_must_be_loaded() -> None:
    assert answers.saved_state(KeepsNames(), Kept(seen={"a": float("nan")})) is not None
    with pytest.raises(ValueError, match=r"\{1, 2\} comes back as \[1, 2\]"):
        answers.saved_state(Keeps(), {1, 2})


def test_a_state_that_changes_over_a_checkpoint_stops_its_rule_alone(tmp_path: Path) -> None:
    monitor = trained(tmp_path / "run", 1, "nothing").monitors[0]
    rules = monitor.controller._rules.rules  # type: ignore[union-attr]
    object.__setattr__(rules["wrong"], "inner", {3: 1})
    kept = json.loads(json.dumps(monitor.shared_state()))["steering"]["engine"]["rules"]
    assert kept["wrong"]["inner"] is None
    assert kept["brief"]["inner"]["long_rows"] > 0
    monitor.end_step(len(ROUNDS) + 1)
    (failed,) = [act for act in rlmon.open_run(tmp_path / "run").actions if act.phase == "failed"]
    assert failed.rule == "wrong"
    assert "its state cannot be kept (ValueError: {3: 1} comes back as {'3': 1})" in failed.reason


def test_a_rank_on_which_the_rows_cannot_be_looked_at_still_meets_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked = rlmon.Monitor._as_rules_see

    def broken(monitor: Any, *given: Any) -> Any:
        if monitor.ranks.rank == 1:
            raise ValueError("broken on purpose")
        return looked(monitor, *given)

    monkeypatch.setattr(rlmon.Monitor, "_as_rules_see", broken)
    of = trained(tmp_path / "run", 2, "nothing")
    assert of.effects == [[None] * len(ROUNDS)] * 2
    assert [monitor.faults.totals for monitor in of.monitors] == [{}, {"interventions": len(ROUNDS)}]
