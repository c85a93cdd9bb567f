"""When each run of stock_runs.py narrowed for good, from ``truth.jsonl`` alone: nothing of the audit is used.

    python benchmarks/onset_truth.py RUN_DIR...

Onset is the first step from which the 5-round mean of effective formats stays below 0.8 of the base's until the end.
"""

from __future__ import annotations

import json
import math
import sys
from collections import Counter, defaultdict
from pathlib import Path

from rlmon.metrics.formats import ModeSet

BASE_ROUNDS, WINDOW, LINE = 4, 5, 0.8
"""Four rounds are the 32 prompts of rlmon's own baseline."""


def onset(run: Path) -> tuple[int | None, float, float]:
    """(onset step or ``None``, effective formats of the base, mean of the last window)."""
    parse, modes = ModeSet.build(None).parse, defaultdict[int, Counter[str]](Counter)
    for line in (run / "truth.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if row["split"] == "train":
            modes[row["step"]][parse(row["completion"])] += 1
    steps = sorted(modes)
    shares = [[count / modes[step].total() for count in modes[step].values()] for step in steps]
    effective = [math.exp(-sum(p * math.log(p) for p in round_shares)) for round_shares in shares]
    base = sum(effective[:BASE_ROUNDS]) / BASE_ROUNDS
    means = [(step, sum(effective[i - WINDOW + 1 : i + 1]) / WINDOW) for i, step in enumerate(steps) if i >= WINDOW - 1]
    found = None
    for step, mean in reversed(means):
        if mean >= LINE * base:
            break
        found = step
    return found, base, means[-1][1]


if __name__ == "__main__":
    for run in map(Path, sys.argv[1:]):
        found, base, last = onset(run)
        print(f"{run.name:20} onset {found or 'none':>4}  base {base:.2f}  last {last:.2f}  ratio {last / base:.2f}")
