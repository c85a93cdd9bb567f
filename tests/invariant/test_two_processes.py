"""Laws 1, 2, 3 and 7 with two real processes (gloo)."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import tiny

import rlmon

pytestmark = pytest.mark.trl

SCRIPT = Path(__file__).with_name("two_ranks.py")


def launch(out: Path, kind: str, *flags: str) -> list[dict[str, Any]]:
    out.mkdir(parents=True)
    tiny.saved_model(out)  # before the ranks race for it
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    command += ["--master_addr", "127.0.0.1", "--master_port", str(port), str(SCRIPT), str(out), kind, *flags]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((out / f"rank-{rank}.json").read_text()) for rank in (0, 1)]


def truth(out: Path) -> Counter[tuple[str, str]]:
    lines = [line for rank in (0, 1) for line in (out / f"truth-{rank}.jsonl").read_text().splitlines()]
    return Counter(tuple(json.loads(line)[1:]) for line in lines)


@pytest.mark.parametrize("flags", [(), ("lora",), ("rloo",), ("rloo", "lora")], ids="-".join)
def test_weights_rows_and_ranks_agree(tmp_path: Path, flags: tuple[str, ...]) -> None:
    stock = launch(tmp_path / "stock", "stock", *flags)
    watched = launch(tmp_path / "watched", "watched", *flags)
    assert {rank["weights"] for rank in stock} == {rank["weights"] for rank in watched}
    assert len({rank["weights"] for rank in watched}) == 1
    first, second = watched
    assert first["metrics"] == second["metrics"], "every rank makes the same record"
    assert first["faults"] == second["faults"] == {}
    assert first["completions"] == 16
    assert first["metrics"]["rlmon/kl/mean"] is None
    for ours, theirs in zip(first["entropy"], first["trl_entropy"], strict=True):
        assert ours == pytest.approx(theirs, abs=1e-5)
    run = rlmon.open_run(tmp_path / "watched" / "run" / "rlmon")
    table = run.rollouts()
    logged = Counter(zip(table.column("prompt").to_pylist(), table.column("completion").to_pylist(), strict=True))
    assert logged == truth(tmp_path / "watched")
    identity = list(zip(*(table.column(c).to_pylist() for c in ("split", "round", "global_row")), strict=True))
    assert len(set(identity)) == len(identity)
    assert all(record.metrics["rlmon/kl/mean"] is not None for record in run.step_records() if record.step in (1, 3))
    assert [record.metrics["rlmon/kl/mean"] for record in run.step_records()][0] == pytest.approx(0.0, abs=1e-5)


@pytest.mark.parametrize(
    ("kind", "place"),
    [("observe", "metrics.rollouts"), ("vector", "collective"), ("base", "base.forward")],
)
def test_a_rank_that_fails_still_enters_the_collective(tmp_path: Path, kind: str, place: str) -> None:
    stock = launch(tmp_path / "stock", "stock")
    faulty = launch(tmp_path / "faulty", kind)
    assert {rank["weights"] for rank in stock} == {rank["weights"] for rank in faulty}
    assert faulty[0]["faults"] == {}
    assert faulty[1]["faults"][place] >= 1
    assert faulty[0]["metrics"] == faulty[1]["metrics"]
    run = rlmon.open_run(tmp_path / "faulty" / "run" / "rlmon")
    assert any(record.faults.get(place) for record in run.step_records()), "rank 1's fault is in the shared record"
    table = run.rollouts()
    logged = Counter(zip(table.column("prompt").to_pylist(), table.column("completion").to_pylist(), strict=True))
    assert logged == truth(tmp_path / "faulty")


def test_rows_that_rank_1_cannot_write_are_counted(tmp_path: Path) -> None:
    launch(tmp_path / "faulty", "disk")
    run = rlmon.open_run(tmp_path / "faulty" / "run" / "rlmon")
    rows = run.rollouts().num_rows
    shed = run.step_records()[-1].shed_rows
    assert rows > 0
    assert shed > 0
    sampled = sum(truth(tmp_path / "faulty").values())
    late = 8  # the evaluation after the last step sheds rows that no later record can count
    assert sampled - late <= rows + shed <= sampled
