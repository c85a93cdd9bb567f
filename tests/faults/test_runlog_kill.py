"""``kill -9`` at a random moment leaves a log that misses at most the round being written (design law 6)."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rlmon.runlog import compact, open_run

KILLS = 17
ROWS = 8

# Writes rounds for ever: a few, close, compact, resume. Each promise goes to a file of its own *after* the call came
# back, and each intention before, in one os.write, so that the killed process cannot have lied.
WRITER = """
import importlib.util, os, sys
spec = importlib.util.spec_from_file_location("made", sys.argv[1])
made = importlib.util.module_from_spec(spec)
spec.loader.exec_module(made)
from rlmon.runlog import RunLogWriter, compact, next_attempt, open_run

path, truth = sys.argv[2], os.open(sys.argv[3], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
assert "torch" not in sys.modules
say = lambda *words: os.write(truth, (" ".join(map(str, words)) + chr(10)).encode())
attempt = next_attempt(path)
step = max((r.step for r in open_run(path).step_records()), default=0) if attempt else 0
# The first use of pyarrow costs more than many rounds: pay it before the clock of the killer starts.
warm = RunLogWriter.open(sys.argv[3] + "-warm" + str(os.getpid()), made.header(), resume=False)
warm.write_rollouts(made.rollouts(0))
warm.close()
os.write(1, b"ready\\n")
while True:
    writer = RunLogWriter.open(path, made.header(attempt), resume=attempt > 0, from_step=step)
    for _ in range(5):
        say("round", attempt, step)
        writer.write_rollouts(made.rollouts(step, 8, attempt=attempt))
        say("written", attempt, step)
        writer.write_passes(made.passes(step, 8, attempt=attempt))
        step += 1
        say("step", attempt, step)
        writer.append_step(made.step_record(step, attempt=attempt))
        say("stepped", attempt, step)
    writer.close()
    compact(path)
    attempt += 1
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs kill -9")
def test_killed_at_random_moments(tmp_path: Path) -> None:
    path, truth = tmp_path / "run", tmp_path / "truth"
    made = Path(__file__).parents[1] / "support" / "make_runlog.py"
    seed = time.time_ns()
    draw = random.Random(seed)
    print("seed", seed)  # shown when the test fails
    for kill in range(KILLS):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(made), str(path), str(truth)], stdout=subprocess.PIPE, text=True
        )
        with process:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            if kill == 0:  # whatever the machine: one that got as far as a compaction and a resume
                while truth.read_text().count("stepped") < 7 if truth.exists() else True:
                    time.sleep(0.005)
            # Sometimes within `open`, sometimes after several closings and compactions.
            time.sleep(draw.choice([0.01, 0.1, 0.3]) * draw.random())
            os.kill(process.pid, signal.SIGKILL)
            assert process.wait(timeout=30) == -signal.SIGKILL, "the writer ended by itself"
        _check(path, truth, kill)
        if kill % 5 == 4:
            compact(path)
            _check(path, truth, kill)
    rounds = sum(line.startswith("written") for line in truth.read_text().splitlines())
    print("rounds", rounds, "attempts", len(open_run(path).headers))
    assert len(open_run(path).step_records()) >= 7


def _check(path: Path, truth: Path, kill: int) -> None:
    """The log against what the writer said before and after each call."""
    said = [line.split() for line in truth.read_text().splitlines()] if truth.exists() else []
    of = {
        word: [(int(attempt), int(number)) for kind, attempt, number in said if kind == word]
        for word in ("round", "written", "step", "stepped")
    }
    if not (path / "run.json").exists():
        assert not said, "rounds were written without a header"
        return
    run = open_run(path)
    rows = [tuple(row.values()) for row in run.rollouts(["attempt", "round", "global_row"], True).to_pylist()]
    assert run.unreadable == {}
    assert len(rows) == len(set(rows)), "a row is there twice"
    rounds = {row[:2] for row in rows}
    assert len(rows) == ROWS * len(rounds), "a round is there in part"
    assert set(of["written"]) <= rounds <= set(of["round"])
    # Each kill can cost the round in flight, no more.
    assert len(set(of["round"]) - rounds) <= kill + 1

    steps = [(record.attempt, record.step) for record in run.step_records(all_attempts=True)]
    assert len(steps) == len(set(steps))
    assert set(of["stepped"]) <= set(steps) <= set(of["step"])

    # What is shown by default is one run without a gap: the next process continues after the last step that exists.
    shown = [record.step for record in run.step_records()]
    assert shown == list(range(1, len(shown) + 1))
    visible = run.rollouts(["round", "global_row"]).to_pylist()
    last = len(visible) // ROWS
    assert visible == [{"round": round, "global_row": row} for round in range(last) for row in range(ROWS)]
    assert last - len(shown) in (0, 1), "rows of the step in flight"
    for name in ("steps.jsonl", "events.jsonl"):
        if (path / name).exists():
            for line in (path / name).read_bytes().split(b"\n")[:-1]:
                assert line.endswith(b"<torn>") or json.loads(line)
