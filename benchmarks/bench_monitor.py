"""What the whole monitor costs a training loop: process CPU over all threads, writer included, default settings.

    python benchmarks/bench_monitor.py [--rounds 15] [--flat 2000]

A round is 256 completions (32 prompts x 8): ``observe`` (rows written, features, group statistics, blocks),
``observe_tokens`` on logprobs and entropies of the whole round, and ``end_step`` (metrics, detectors, the line in the
log). Nothing is repeated between rounds, so no cache helps. Medians after 3 rounds of warming up.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import os
import resource
import statistics
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from bench_metrics import GROUP, ROWS, batch, vocabulary

from rlmon import Monitor, RLMonConfig
from rlmon.monitor import About
from rlmon.records import RolloutBatch

LIMITS_MS = {"prose": 60.0, "python": 180.0, "tokens_8192": 120.0}
MEMORY_LIMIT_MB = 32.0
PARTS = ("observe", "observe_tokens", "end_step")
WARM_UP = 3


def open_monitor(folder: Path, rounds: int) -> Monitor:
    settings = RLMonConfig(rlmon_console=False)
    monitor = Monitor(settings, directory=folder, group_size=GROUP, about=About(total_steps=rounds))
    monitor.use_vocabulary(vocabulary())
    return monitor


def one_step(monitor: Monitor, rows: RolloutBatch) -> list[float]:
    """CPU milliseconds of each part of one round that trains one step."""
    number = monitor.next_round("train")
    rows = dataclasses.replace(rows, round=number, step=number + 1)
    assert rows.completion_ids is not None
    draw = torch.Generator().manual_seed(number)
    shape = (ROWS, len(rows.completion_ids[0]))
    logps, entropies = -torch.rand(shape, generator=draw), 2 * torch.rand(shape, generator=draw)
    times = [time.process_time()]
    monitor.observe(rows)
    times.append(time.process_time())
    monitor.observe_tokens(
        split="train",
        rows_B2=[(number, row) for row in range(ROWS)],
        logps_BT=logps,
        entropies_BT=entropies,
        mask_BT=torch.ones(shape, dtype=torch.bool),
        advantages_B=torch.tensor(rows.advantages, dtype=torch.float32),
    )
    times.append(time.process_time())
    record = monitor.end_step(number + 1)
    times.append(time.process_time())
    assert record is not None
    assert not record.faults, record.faults
    assert record.metrics["rlmon/entropy/mean"] is not None
    assert record.metrics["rlmon/format/effective"] is not None
    return [1e3 * (after - before) for before, after in itertools.pairwise(times)]


def measure(kind: str, rounds: int) -> list[float]:
    """Median milliseconds of each part, then of the whole."""
    with tempfile.TemporaryDirectory() as folder:
        monitor = open_monitor(Path(folder), rounds)
        costs = [one_step(monitor, batch(kind, seed)) for seed in range(WARM_UP + rounds)][WARM_UP:]
        monitor.close()
    return [statistics.median(part) for part in zip(*costs, strict=True)] + [statistics.median(map(sum, costs))]


def flat(rounds: int) -> tuple[float, float, float]:
    """(median ms of the first 100 steps, of the last 100, growth of peak memory in MB after a tenth of the run)."""
    pool = [batch("prose", seed) for seed in range(8)]
    costs, peak = [], 0.0
    with tempfile.TemporaryDirectory() as folder:
        monitor = open_monitor(Path(folder), rounds)
        for number in range(WARM_UP + rounds):
            template = pool[number % len(pool)]
            rows = dataclasses.replace(
                template,
                prompt_id=[f"p{i // GROUP}-{number}" for i in range(ROWS)],
                completions=[f"{number} {text}" for text in template.completions],
            )
            costs.append(sum(one_step(monitor, rows)))
            if number == rounds // 10:
                peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        growth = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - peak
        monitor.close()  # compacts the log: after training, and not part of what must stay flat
    edge = min(100, rounds // 2)
    return statistics.median(costs[WARM_UP : WARM_UP + edge]), statistics.median(costs[-edge:]), growth


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--flat", type=int, default=0, help="steps over which cost and memory must stay flat")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    failed = False
    for kind, limit in LIMITS_MS.items():
        *parts, whole = measure(kind, arguments.rounds)
        # Long completions: the limit is on what their ids and texts cost. The 2 million logprobs and entropies are
        # reduced on the device that made them, and shown here at what one CPU thread needs.
        judged = parts[0] if kind == "tokens_8192" else whole
        failed |= judged > limit
        split = ", ".join(f"{name} {cost:.1f}" for name, cost in zip(PARTS, parts, strict=True))
        of = "observe alone" if kind == "tokens_8192" else "the whole"
        print(f"{kind:12s} {whole:7.1f} ms of CPU a round ({split}); limit {limit:.0f} on {of}", flush=True)
    if arguments.flat:
        first, last, growth = flat(arguments.flat)
        failed |= last > 1.2 * first or growth > MEMORY_LIMIT_MB
        print(
            f"flat         over {arguments.flat} rounds: first 100 {first:.1f} ms, last 100 {last:.1f} ms "
            f"({last / first:.2f}x, limit 1.2), peak memory +{growth:.0f} MB after the first tenth "
            f"(limit {MEMORY_LIMIT_MB:.0f})"
        )
    return int(failed)


if __name__ == "__main__":
    raise SystemExit(main())
