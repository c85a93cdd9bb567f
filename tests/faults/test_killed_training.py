"""Law 6 on real training: ``kill -9`` leaves a readable log that misses at most the round being written."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import rlmon

pytestmark = pytest.mark.trl

SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
import tiny, torch
from rlmon.trl import RLMon, RLMonConfig
torch.set_num_threads(1)
out = Path(sys.argv[1])
resume = sys.argv[3] or None
trained = tiny.trainer(out / "run", reward=tiny.counting_reward(out / "truth.jsonl"), max_steps=100_000,
                       save_strategy="steps", save_steps=5, save_total_limit=2, logging_steps=1000)
RLMon(trained, RLMonConfig(rlmon_console=False, rlmon_base_kl_every=3))
trained.train(resume_from_checkpoint=resume)
"""


def killed(out: Path, steps: int, delay: float, resume: str = "") -> None:
    """Train in a process of its own, and kill it a moment after ``steps`` more records are in the log."""
    log = out / "run" / "rlmon" / "steps.jsonl"
    before = log.read_bytes().count(b"\n") if log.exists() else 0
    support = str(Path(__file__).parents[1] / "support")
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(out), support, resume], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    deadline = time.monotonic() + 120
    while not log.exists() or log.read_bytes().count(b"\n") < before + steps:
        assert process.poll() is None, process.stderr.read().decode()[-2000:] if process.stderr else ""
        assert time.monotonic() < deadline
        time.sleep(0.002)
    time.sleep(delay)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    if process.stderr:
        process.stderr.close()


def newest_checkpoint(out: Path) -> Path:
    whole = [path for path in (out / "run").glob("checkpoint-*") if (path / "trainer_state.json").exists()]
    return max(whole, key=lambda path: int(path.name.split("-")[1]))


def test_three_kills_and_a_log_that_reads(tmp_path: Path) -> None:
    killed(tmp_path, 12, 0.0)
    killed(tmp_path, 7, 0.011, str(newest_checkpoint(tmp_path)))
    killed(tmp_path, 9, 0.023, str(newest_checkpoint(tmp_path)))
    run = rlmon.open_run(tmp_path / "run" / "rlmon")
    assert [header.attempt_kind for header in run.headers] == ["fresh", "resumed", "resumed"]
    sampled = [tuple(json.loads(line)[1:]) for line in (tmp_path / "truth.jsonl").read_text().splitlines()]
    rows = run.rollouts(all_attempts=True)
    logged = list(zip(rows.column("prompt").to_pylist(), rows.column("completion").to_pylist(), strict=True))
    # Each kill may cost the round that was being scored, never one before it.
    assert len(sampled) - 3 * 8 <= len(logged) <= len(sampled)
    assert set(logged) <= set(sampled)
    steps = [record.step for record in run.step_records()]
    assert steps == list(range(1, len(steps) + 1)), "superseded steps are hidden, none is missing"
    assert len(steps) >= 20
    assert not run.unreadable
