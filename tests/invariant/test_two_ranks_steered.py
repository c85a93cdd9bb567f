"""Laws 2, 7 and 8 of interventions with two real processes (gloo)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import steered
import tiny
import two_processes

import rlmon

pytestmark = pytest.mark.trl

SCRIPT = Path(__file__).with_name("two_ranks_steered.py")
CELLS = ("all", "apart", "round", "lever", "bonus", "batch", "gone", "stop", "return", "nowhere")


def trained(folder: Path, cells: tuple[str, ...] = CELLS) -> Path:
    """Every cell, one after the other, in one pair of processes: starting them is what takes the time."""
    for cell in cells:
        (folder / cell).mkdir()
        tiny.saved_model(folder / cell)  # before the ranks race for it
    two_processes.run(SCRIPT, str(folder), *cells)
    return folder


def ranks(out: Path, cell: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Both ranks, once they are known to agree."""
    first, second = (json.loads((out / cell / f"rank-{rank}.json").read_text()) for rank in (0, 1))
    assert first["weights"] == second["weights"]
    if cell != "round":  # there rank 1 did not get to see what step 7 did to its rows
        assert told(first) == told(second), "the same acts, in the same order"
    for same in ("step", "beta", "entropy_coef", "metrics"):
        assert first[same] == second[same]
    assert (first["off"] is None) == (second["off"] is None)
    return first, second


def told(rank: dict[str, Any], rule: str | None = None) -> list[tuple[Any, ...]]:
    return [
        (action["phase"], action["step"], action["knob"], action["old"], action["new"])
        for action in rank["actions"]
        if rule in (None, action["rule"])
    ]


def phases(rank: dict[str, Any], rule: str) -> list[tuple[str, int]]:
    return [(phase, step) for phase, step, *_ in told(rank, rule)]


def reasons(rank: dict[str, Any], rule: str) -> list[str]:
    return [action["reason"] for action in rank["actions"] if action["rule"] == rule and action["phase"] == "failed"]


def check_agreement(out: Path, cell: str = "all", steps: int = 60) -> None:
    first, second = ranks(out, cell)
    assert first["faults"] == second["faults"] == {}
    assert first["off"] is None
    assert first["step"] == steps
    applied = {action["rule"] for action in first["actions"] if action["phase"] == "applied"}
    assert applied == set(steered.CONTINUING)
    # What is decided at the last step takes effect no more, and the log says so.
    late = {
        action["action_id"] for action in first["actions"] if (action["phase"], action["step"]) == ("decided", steps)
    }
    in_time = [action for action in first["actions"] if action["action_id"] not in late]
    assert {action["phase"] for action in in_time} == {"decided", "applied", "measured"}
    open_at_the_end = {action["action_id"] for action in in_time if action["phase"] == "decided"}
    open_at_the_end -= {action["action_id"] for action in in_time if action["phase"] == "applied"}
    assert open_at_the_end == set()
    log = rlmon.open_run(out / cell / "run" / "rlmon")
    assert [action.action_id for action in log.actions] == [action["action_id"] for action in first["actions"]]


def check_that_right_answers_are_pushed_apart(out: Path) -> None:
    first, second = ranks(out, "apart")
    assert first["faults"] == second["faults"] == {}
    assert first["off"] is second["off"] is None
    assert min(first["pushed"], second["pushed"]) > 0, "rows of both"
    assert first["metrics"]["rlmon/intervention/hold_kappa"] >= 0.1


def check_that_a_broken_fold_switches_all_rules_off(out: Path) -> None:
    first, second = ranks(out, "round")
    assert first["step"] == 14, "training goes on"
    earlier = [[act for act in told(rank) if act[1] < 7] for rank in (first, second)]
    assert earlier[0] == earlier[1]
    assert second["faults"] == {"interventions": 1}
    assert "broken on purpose" in second["off"]
    assert first["off"]
    assert first["beta"] == first["entropy_coef"] == 0.0, "all is at rest again"
    for rule in steered.CONTINUING:
        assert [step for phase, step in phases(first, rule) if phase == "failed"][:1] == [7], rule
        assert max(step for phase, step in phases(first, rule)) == 7, rule
    assert first["metrics"]["rlmon/intervention/kappa"] == 0.0


def check_that_a_failing_lever_puts_its_rule_at_rest(out: Path, cell: str, rule: str, knob: str) -> None:
    first, second = ranks(out, cell)
    assert first["step"] == 14
    assert first["off"] is second["off"] is None
    # Decided at step s, applied at s + 1, where rank 1 fails, which all know at s + 2: nothing of it afterwards.
    decided = phases(first, rule)[0][1]
    assert phases(first, rule) == [("decided", decided), ("failed", decided + 2), ("measured", decided + 2)]
    assert reasons(first, rule)[0].endswith("it failed on another rank")
    assert "broken on purpose" in reasons(second, rule)[0]
    assert first[knob] == 0.0
    assert ("applied", 2) in phases(first, "hold")
    check_that_hold_is_at_work(first)


def check_that_hold_is_at_work(rank: dict[str, Any]) -> None:
    assert all("the run ended before" in reason for reason in reasons(rank, "hold"))
    assert rank["metrics"]["rlmon/intervention/kappa"] > 0.0


def check_that_a_round_that_one_rank_cannot_read_is_left_alone(out: Path) -> None:
    first, second = ranks(out, "batch")
    assert first["step"] == 14
    assert first["off"] is second["off"] is None
    assert second["faults"]["capture.rollouts"] == second["faults"]["runlog.rollouts"] == 1, "and its rows are shed"
    check_that_hold_is_at_work(first)


def check_that_draws_that_fail_stop_their_rule(out: Path) -> None:
    first, second = ranks(out, "gone")
    assert first["step"] == 14
    assert "failed" in {phase for phase, _ in phases(first, "unsolvable")}
    assert "broken on purpose" in " ".join(reasons(second, "unsolvable"))
    assert second["faults"]["interventions"] == 1, "it is not asked again"
    check_that_hold_is_at_work(first)


def check_stop(out: Path) -> None:
    first, _ = ranks(out, "stop")
    # Decided at 7, agreed on and applied at 8, known to be so on all ranks at 9.
    assert phases(first, "enough") == [("decided", 7), ("applied", 8)]
    assert first["step"] == 9
    assert steered.checkpoints(out / "stop" / "run") == [9]
    assert (out / "stop" / "run" / "checkpoint-9" / "rlmon" / "rank1.json").exists()


def check_return(out: Path) -> None:
    first, second = ranks(out, "return")
    assert first["faults"] == second["faults"] == {}
    assert first["step"] == 14
    assert first["beta"] == 0.2
    assert phases(first, "back") == [("decided", 7), ("applied", 8), ("decided", 7), ("failed", 9)]
    assert "rolled back before" in reasons(first, "back")[0]
    log = rlmon.open_run(out / "return" / "run" / "rlmon")
    assert [attempt.from_step for attempt in log.attempts] == [None, 6]
    assert [record.step for record in log.step_records()] == list(range(1, 15))


def check_that_ranks_return_together_or_not_at_all(out: Path) -> None:
    first, _ = ranks(out, "nowhere")
    assert phases(first, "back") == [("decided", 7), ("failed", 9)]
    assert first["step"] == 14
    assert len(rlmon.open_run(out / "nowhere" / "run" / "rlmon").attempts) == 1


def test_two_steered_processes(tmp_path: Path, subtests: pytest.Subtests) -> None:
    """One test: several would start the pair of processes once per test worker."""
    out = trained(tmp_path)
    with subtests.test("ranks decide alike, and stay alike"):
        check_agreement(out)
    with subtests.test("right answers of all ranks are compared"):
        check_that_right_answers_are_pushed_apart(out)
    with subtests.test("a rank whose fold breaks"):
        check_that_a_broken_fold_switches_all_rules_off(out)
    with subtests.test("a rank whose beta cannot be turned"):
        check_that_a_failing_lever_puts_its_rule_at_rest(out, "lever", "budget", "beta")
    with subtests.test("a rank whose bonus cannot be turned"):
        check_that_a_failing_lever_puts_its_rule_at_rest(out, "bonus", "spread", "entropy_coef")
    with subtests.test("a rank that cannot read a round"):
        check_that_a_round_that_one_rank_cannot_read_is_left_alone(out)
    with subtests.test("a rank that cannot replace rows"):
        check_that_draws_that_fail_stop_their_rule(out)
    with subtests.test("stop"):
        check_stop(out)
    with subtests.test("roll back"):
        check_return(out)
    with subtests.test("a rank without the checkpoint"):
        check_that_ranks_return_together_or_not_at_all(out)


@pytest.mark.slow
def test_two_hundred_steered_steps(tmp_path: Path) -> None:
    check_agreement(trained(tmp_path, ("long",)), "long", 200)
