"""What the run log costs: process CPU (all threads) of writing one round, and of reading and compacting many.

    python benchmarks/bench_runlog.py [--rounds 2000]

256 completions of about 1 kB of prose-like text and the default columns a round, fsync off; medians in milliseconds.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from rlmon.records import Block, RunHeader, StepRecord
from rlmon.runlog import RunLogWriter, compact, open_run

ROWS = 256
TEXT_CHARACTERS = 1_000
BUDGET_MS = 3.0


def header() -> RunHeader:
    return RunHeader(
        run_id="bench",
        attempt=0,
        attempt_kind="fresh",
        created_unix_seconds=time.time(),
        trainer="manual",
        group_size=8,
        world_size=1,
        total_steps=None,
        config={},
        trainer_config={},
        detectors={},
        packages={},
        git_commit=None,
        capabilities=(),
    )


def round_columns(seed: int) -> dict[str, Any]:
    draw = random.Random(seed)
    words = ["".join(draw.choices("etaoinshrdlu", k=draw.randint(1, 9))) for _ in range(3_000)]
    weights = [1 / (1 + i) for i in range(len(words))]  # Zipf, as in prose
    texts = [" ".join(draw.choices(words, weights, k=TEXT_CHARACTERS // 4))[:TEXT_CHARACTERS] for _ in range(ROWS)]
    keys = [[draw.getrandbits(63) for _ in range(ROWS)] for _ in range(3)]
    return {
        "global_row": list(range(ROWS)),
        "group": [i // 8 for i in range(ROWS)],
        "split": ["train"] * ROWS,
        "attempt": [0] * ROWS,
        "prompt_id": [f"{seed:04d}{i // 8:028d}" for i in range(ROWS)],
        "source": ["math"] * ROWS,
        "prompt": [f"Problem {i // 8} of {seed}: " + texts[i // 8][:200] for i in range(ROWS)],
        "completion": texts,
        "prompt_tokens": [60] * ROWS,
        "completion_tokens": [draw.randint(150, 350) for _ in range(ROWS)],
        "truncated": [False] * ROWS,
        "reward": [draw.random() for _ in range(ROWS)],
        "rewards": [{"accuracy": draw.random(), "format": 1.0} for _ in range(ROWS)],
        "advantage": [draw.gauss(0, 1) for _ in range(ROWS)],
        "mode": draw.choices(["prose", "list", "code"], k=ROWS),
        "template_key": keys[0],
        "answer_key": keys[1],
        "opening_key": keys[2],
        "openers": [np.array(draw.choices(range(4_096), k=16), dtype=np.int32) for _ in range(ROWS)],
        "opener_weights": [np.full(16, 1 / 16, dtype=np.float32) for _ in range(ROWS)],
        "policy_version": [seed] * ROWS,
        "staleness": [0] * ROWS,
    }


def pass_columns(round: int) -> dict[str, Any]:
    numbers = [i / 256 for i in range(ROWS)]
    return {
        "attempt": [0] * ROWS,
        "round": [round] * ROWS,
        "split": ["train"] * ROWS,
        "global_row": list(range(ROWS)),
        "iteration": [0] * ROWS,
        "step": [round + 1] * ROWS,
        "tokens": [250] * ROWS,
        "entropy_mean_nats": numbers,
        "logp_mean_nats": numbers,
    }


def step(number: int) -> StepRecord:
    stats = {f"statistic_{i}": i / 7 for i in range(14)}
    return StepRecord(
        attempt=0,
        step=number,
        time_unix_seconds=time.time(),
        rounds=(number - 1,),
        completions=ROWS,
        prompts=32,
        tokens=64_000,
        metrics={f"rlmon/family/metric_{i}": i / 3 for i in range(120)},
        blocks=tuple(Block(source="math", prompts=4, completions=32, stats=stats) for _ in range(8)),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=2_000)
    rounds = parser.parse_args().rounds
    data = [round_columns(seed) for seed in range(8)]
    milliseconds: dict[str, list[float]] = {"rollouts": [], "passes": [], "step": []}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run"
        writer = RunLogWriter.open(path, header(), resume=False)
        for round in range(rounds):
            columns = {**data[round % len(data)], "round": [round] * ROWS, "step": [round + 1] * ROWS}
            passes, record = pass_columns(round), step(round + 1)
            times = [time.process_time()]
            writer.write_rollouts(columns)
            times.append(time.process_time())
            writer.write_passes(passes)
            times.append(time.process_time())
            writer.append_step(record)
            times.append(time.process_time())
            for name, start, end in zip(milliseconds, times, times[1:], strict=False):
                milliseconds[name].append(1e3 * (end - start))
        assert writer.shed_rows == 0
        bytes_ = sum(file.stat().st_size for file in path.rglob("*.parquet"))
        print(f"{rounds} rounds of {ROWS} x {TEXT_CHARACTERS} characters, {bytes_ / rounds / 1024:.0f} KiB a round")
        for name, values in milliseconds.items():
            edge = min(100, len(values))
            first, last = statistics.median(values[:edge]), statistics.median(values[-edge:])
            budget = f" (budget {BUDGET_MS:.0f})" if name == "rollouts" else ""
            print(
                f"{name:9s} median {statistics.median(values):6.3f} ms{budget}, least {min(values):6.3f}, "
                f"last {edge} / first {edge}: {last / first:.2f}"
            )
        for name, work in (
            ("read all rows from parts", lambda: open_run(path).rollouts()),
            ("read 4 columns from parts", lambda: open_run(path).rollouts(["step", "mode", "reward", "group"])),
            ("read all StepRecords", lambda: open_run(path).step_records()),
            ("compact", lambda: compact(path)),
            ("read all rows from segments", lambda: open_run(path).rollouts()),
        ):
            start = time.process_time()
            work()
            print(f"{name}: {time.process_time() - start:.2f} s")
    print(f"cores {os.cpu_count()}, load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
