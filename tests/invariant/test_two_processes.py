"""Laws 1, 2, 3 and 7 with two real processes (gloo)."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import tiny
import trl
import two_processes
from packaging.version import Version

import rlmon

pytestmark = pytest.mark.trl

SCRIPT = Path(__file__).with_name("two_ranks.py")
FLAGS = ["", "-lora", "-rloo", "-rloo-lora"]
FAULTS = {"observe": "metrics.rollouts", "vector": "collective", "base": "base.forward"}
CELLS = [kind + flags for flags in FLAGS for kind in ("stock", "watched")] + [*FAULTS, "disk", "straddle", "success"]


def trained(folder: Path) -> Path:
    """Every cell, one after the other, in one pair of processes: starting them is what takes the time."""
    for cell in CELLS:
        (folder / cell).mkdir()
        tiny.saved_model(folder / cell)  # before the ranks race for it
    two_processes.run(SCRIPT, str(folder), *CELLS)
    return folder


def ranks(out: Path, cell: str) -> list[dict[str, Any]]:
    return [json.loads((out / cell / f"rank-{rank}.json").read_text()) for rank in (0, 1)]


def truth(out: Path, cell: str) -> Counter[tuple[str, str]]:
    lines = [line for rank in (0, 1) for line in (out / cell / f"truth-{rank}.jsonl").read_text().splitlines()]
    return Counter(tuple(json.loads(line)[1:]) for line in lines)


def logged(run: Any) -> Counter[tuple[str, str]]:
    table = run.rollouts()
    return Counter(zip(table.column("prompt").to_pylist(), table.column("completion").to_pylist(), strict=True))


def check_agreement(out: Path, flags: str) -> None:
    stock, watched = ranks(out, "stock" + flags), ranks(out, "watched" + flags)
    assert len({rank["weights"] for rank in stock + watched}) == 1
    first, second = watched
    assert first["metrics"] == second["metrics"], "every rank makes the same record"
    assert first["faults"] == second["faults"] == {}
    assert first["completions"] == 16
    if Version(trl.__version__) >= Version("1.12"):  # before, TRL took the mean of the ranks' means
        assert first["entropy"] == pytest.approx(first["trl_entropy"], abs=1e-5)
    run = rlmon.open_run(out / ("watched" + flags) / "run" / "rlmon")
    assert logged(run) == truth(out, "watched" + flags)
    table = run.rollouts()
    identity = list(zip(*(table.column(c).to_pylist() for c in ("split", "round", "global_row")), strict=True))
    assert len(set(identity)) == len(identity)
    passes = run.passes().to_pylist()
    for step, mean in enumerate(first["entropy"], start=1):
        trained_rows = [row for row in passes if row["step"] == step and row["split"] == "train"]
        assert len(trained_rows) == 16
        total = sum(row["tokens"] * row["entropy_mean_nats"] for row in trained_rows)
        assert mean == pytest.approx(total / sum(row["tokens"] for row in trained_rows), abs=1e-6)
    kl = {record.step: record.metrics["rlmon/kl/mean"] for record in run.step_records()}
    assert kl[1] == pytest.approx(0.0, abs=1e-5)
    assert kl[3] > 0
    assert kl[2] is kl[4] is None


def check_that_a_failing_rank_enters_the_collective(out: Path, kind: str, place: str) -> None:
    stock, faulty = ranks(out, "stock"), ranks(out, kind)
    assert len({rank["weights"] for rank in stock + faulty}) == 1
    assert faulty[0]["faults"] == {}
    assert faulty[1]["faults"][place] >= 1
    assert faulty[0]["metrics"] == faulty[1]["metrics"]
    run = rlmon.open_run(out / kind / "run" / "rlmon")
    assert any(record.faults.get(place) for record in run.step_records()), "rank 1's fault is in the shared record"
    assert logged(run) == truth(out, kind)


def check_one_definition_of_success(out: Path) -> None:
    """What one rank sees of a reward is constant and another value on each: they decide from what all ranks saw."""
    first, second = ranks(out, "success")
    assert first["success"] == second["success"]
    assert first["success"]["seen"]["by_rank"] == [[0.0, 1.0], False]
    assert first["success"]["definition"]["above"] == {"counted": 0.5, "by_rank": 0.5}
    assert first["metrics"] == second["metrics"]
    assert first["faults"] == second["faults"] == {}


def check_that_unwritten_rows_are_counted(out: Path) -> None:
    run = rlmon.open_run(out / "disk" / "run" / "rlmon")
    rows, shed = run.rollouts().num_rows, run.step_records()[-1].shed_rows
    assert rows > 0
    assert shed > 0
    sampled = sum(truth(out, "disk").values())
    late = 8  # the evaluation after the last step sheds rows that no later record can count
    assert sampled - late <= rows + shed <= sampled


def check_that_straddling_groups_are_judged(out: Path) -> None:
    run = rlmon.open_run(out / "straddle" / "run" / "rlmon")
    rows = run.rollouts().to_pylist()
    lone = []
    for record in run.step_records():
        groups: dict[int, list[float]] = {}
        for row in rows:
            if row["split"] == "train" and row["step"] == record.step:
                groups.setdefault(row["group"], []).append(row["reward"])
        assert [len(rewards) for rewards in groups.values()] == [4, 4, 4]
        solved = [sum(rewards) for rewards in groups.values()]
        assert record.metrics["rlmon/group/coverage"] == 1.0
        assert record.metrics["rlmon/group/all_bad"] == pytest.approx(solved.count(0.0) / 3)
        assert record.metrics["rlmon/group/lone_success"] == pytest.approx(solved.count(1.0) / 3)
        lone.append(solved.count(1.0))
    assert any(lone)


def test_two_processes(tmp_path: Path, subtests: pytest.Subtests) -> None:
    """One test: several would start the pair of processes once per test worker."""
    out = trained(tmp_path)
    for flags in FLAGS:
        with subtests.test("weights, rows and ranks agree", flags=flags):
            check_agreement(out, flags)
    with subtests.test("different runs differ"):
        assert len({ranks(out, "stock" + flags)[0]["weights"] for flags in FLAGS}) == 4
    for kind, place in FAULTS.items():
        with subtests.test("a rank that fails still enters the collective", kind=kind):
            check_that_a_failing_rank_enters_the_collective(out, kind, place)
    with subtests.test("groups that straddle ranks are judged"):
        check_that_straddling_groups_are_judged(out)
    with subtests.test("rows that rank 1 cannot write are counted"):
        check_that_unwritten_rows_are_counted(out)
    with subtests.test("what counts as a success is decided by all ranks together"):
        check_one_definition_of_success(out)
