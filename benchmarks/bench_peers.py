"""What three other tools take for the same 100,000 completions, and which of it they look at.

    make bench-peers

rl-doctor reads TRL's trainer_state.json; rlprobe a recording of its own, written here through its public API;
rlvr-audit the rewards of each prompt, a JSON object a line. What is converted is converted before and not timed. None
of them reads completions as text, so no line is a race: the column says what a line is the time of.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import audit_workload
import bench_audit
import pyarrow.parquet as pq

ROWS = bench_audit.ROWS

RECORD = """
import json, sys
from rlprobe import Recorder, SamplingConfig
from pyarrow import parquet
from pathlib import Path

source, out = Path(sys.argv[1]), sys.argv[2]
recorder = Recorder(out, algorithm="grpo", queue_size=1_000_000, install_handlers=False, capture_env=False)
for entry in json.loads((source / "trainer_state.json").read_text())["log_history"]:
    recorder.log_step(entry["step"], reward_mean=entry["reward"], entropy_mean=entry["entropy"], loss=entry["loss"])
for file in sorted((source / "completions").iterdir()):
    rows = parquet.read_table(file).to_pylist()
    samples = [
        {"step": row["step"], "prompt_id": row["prompt"], "completion_text": row["completion"],
         "reward_total": row["accuracy_reward"], "advantage": row["advantage"]}
        for row in rows
    ]
    recorder.log_samples(rows[0]["step"], samples, select=False)
recorder.close()
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peers", type=Path, default=Path(".venv-peers/bin"), help="bin/ of the peers' environment")
    parser.add_argument("--repeat", type=int, default=3)
    arguments = parser.parse_args()
    bin_ = arguments.peers.absolute()
    source = bench_audit.written(ROWS, "trl", audit_workload.write_trl)
    rewards = source.parent / "rewards-by-prompt.jsonl"
    recording = source.parent / "rlprobe"
    write_rewards(source, rewards)
    shutil.rmtree(recording, ignore_errors=True)
    subprocess.run([bin_ / "python", "-c", RECORD, str(source), str(recording)], check=True)
    stored = sum(pq.read_metadata(file).num_rows for file in (recording / "samples").glob("*.parquet"))
    if stored != ROWS:
        raise SystemExit(f"rlprobe stored {stored:,} of {ROWS:,} completions: the comparison would not be fair")

    rlmon = [sys.executable, "-m", "rlmon.cli", "audit", str(source), "--format", "json"]
    state = str(source / "trainer_state.json")
    group = str(audit_workload.GROUP_SIZE)
    commands: Sequence[tuple[str, Sequence[str], str]] = (
        ("rlmon audit DIR", rlmon, "all of it"),
        ("rl-doctor diagnose trainer_state.json", [str(bin_ / "rl-doctor"), "diagnose", state], "no: 2,000 log lines"),
        ("rlprobe doctor RECORDING", [str(bin_ / "rlprobe"), "doctor", str(recording)], "no: stores it, 2,000 steps"),
        ("rlprobe report RECORDING", [str(bin_ / "rlprobe"), "report", str(recording)], "shows samples"),
        (
            "rlvr-audit inspect REWARDS",
            [str(bin_ / "rlvr-audit"), "inspect", "--file", str(rewards), "--G", group],
            "no: rewards of 10,000 groups",
        ),
    )
    print(f"{'command':40s} {'wall s':>7s} {'CPU s':>7s} {'MiB':>6s}  reads text?")
    for name, command, reads in commands:
        cost = bench_audit.measured(command, arguments.repeat)
        print(
            f"{name:40s} {cost.wall_seconds:7.2f} {cost.processor_seconds:7.2f} {cost.memory_bytes / (1 << 20):6.0f}  "
            f"{reads}",
            flush=True,
        )
    print(f"cores {os.cpu_count()}, load {os.getloadavg()[0]:.1f}, medians of {arguments.repeat}")
    return 0


def write_rewards(source: Path, out: Path) -> None:
    """The rewards of each group of ten, with the name of its prompt."""
    size = audit_workload.GROUP_SIZE
    with out.open("w", encoding="utf-8") as file:
        for path in sorted((source / "completions").iterdir()):
            columns = pq.read_table(path, columns=["step", "prompt", "accuracy_reward"]).to_pydict()
            for start in range(0, len(columns["step"]), size):
                name = f"{columns['step'][start]}-{start // size}"
                group = {"prompt_id": name, "rewards": columns["accuracy_reward"][start : start + size]}
                file.write(json.dumps(group) + "\n")


if __name__ == "__main__":
    raise SystemExit(main())
