"""What a generation round costs the metrics: process CPU over all threads, medians.

python benchmarks/bench_metrics.py [--rounds 30] [--flat]
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import time

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from rlmon.metrics.families import WATCHING
from rlmon.metrics.family import RankRows, RoundRows
from rlmon.metrics.features import Featurizer
from rlmon.metrics.formats import ModeSet
from rlmon.metrics.groups import groups_of_batch
from rlmon.metrics.ledger import SolveLedger
from rlmon.metrics.rows import rows_of
from rlmon.metrics.step import Families
from rlmon.metrics.success import Deciding
from rlmon.records import RolloutBatch

ROWS = 256
GROUP = 8
LIMITS_MS = {"prose": 45.0, "python": 150.0, "tokens_8192": 110.0}
WORDS: list[str] = (  # noqa: SIM905  (sixty quoted words would be harder to read)
    "the of and to in is that we have for on with as this be are by from at or an it can which then so but not sum "
    "number total apples first second each gives more than add both sides value wait check again therefore because "
    "answer left right half double remaining simple means take back now let think about step part whole equal"
).split()


def vocabulary(size: int = 50_000) -> list[str]:
    """Decoded tokens: words, digits, sentence ends and newlines."""
    base = [" " + word for word in WORDS] + [str(digit) for digit in range(10)] + [".", "\n", "!", "?", "\n\n", ".\n"]
    return base + [f" tok{i}" for i in range(size - len(base))]


def prose(rng: np.random.Generator, words: int = 190) -> str:
    """About 1 kB of sentences with numbers, names and quotes."""
    out = []
    for at, code in enumerate(rng.integers(0, len(WORDS), words)):
        word = WORDS[code]
        if at % 11 == 10:
            word += "."
        elif at % 11 == 0:
            word = word.capitalize()
        elif at % 17 == 3:
            word = str(int(rng.integers(0, 10_000)))
        elif at % 41 == 5:
            word = f'"{word}"'
        out.append(word)
    return " ".join(out)


def python(rng: np.random.Generator) -> str:
    """About 1 kB of distinct valid Python."""
    lines = ["import math", "", f"def solve_{int(rng.integers(1e9))}(a, b):"]
    for _ in range(26):
        name, left, right = (WORDS[c] + "_v" for c in rng.integers(0, len(WORDS), 3))
        number = int(rng.integers(1, 1000))
        lines.append(f"    {name} = ({left} + {number}) * {right} - a // {number}")
    lines += ["    return a + b", "", f"print(solve({int(rng.integers(100))}, 3))"]
    return "\n".join(lines)


def batch(kind: str, seed: int) -> RolloutBatch:
    """One round: 32 prompts x 8 completions, all distinct."""
    rng = np.random.default_rng(seed)
    length = 8_192 if kind == "tokens_8192" else 250
    tokens = rng.zipf(1.3, size=(ROWS, length)).astype(np.int64) % 50_000
    tokens[rng.random(tokens.shape) < 0.04] = len(WORDS) + 10
    if kind == "python":
        completions = [python(rng) for _ in range(ROWS)]
    elif kind == "prose":
        completions = [prose(rng) for _ in range(ROWS)]
    else:
        page = " ".join(prose(rng) for _ in range(64))
        completions = [page[int(at) :][:32_000] for at in rng.integers(0, len(page) // 3, ROWS)]
    prompts = [f"Ann has {i // GROUP} figs. How many?" for i in range(ROWS)]
    reward = rng.integers(0, 2, ROWS).astype(float).tolist()
    return RolloutBatch(
        round=seed,
        split="train",
        step=seed,
        group_size=GROUP,
        global_row=list(range(ROWS)),
        prompt_id=[f"p{i // GROUP}-{seed}" for i in range(ROWS)],
        source=["a" if i % 16 < 8 else "b" for i in range(ROWS)],
        prompts=prompts,
        completions=completions,
        prompt_ids=[rng.integers(0, 50_000, 200).astype(np.int32) for _ in range(ROWS)],
        completion_ids=list(tokens.astype(np.int32)),
        rewards={"accuracy": reward},
        reward=reward,
        advantages=rng.normal(size=ROWS).tolist(),
        truncated=[False] * ROWS,
    )


def one_round(featurizer: Featurizer, families: Families, ledger: SolveLedger, rows: RolloutBatch) -> float:
    """CPU seconds of features, group statistics, sums, blocks and the ledger for one round."""
    begin = time.process_time()
    features = featurizer.features(rows)
    hard = ledger.credibly_below(rows.prompt_id, rows.source)
    success = Deciding().observe(rows, 1)[1]
    stats, sums = groups_of_batch(rows, success.success_B, success.round_N, hard), families.zeros()
    table = rows_of(rows, features, stats.success_B)
    families.add_rows(sums, RankRows(rows, features, stats, table))
    families.add_round(sums, RoundRows(table, stats))
    families.blocks_of_round(RoundRows(table, stats))
    ledger.update(rows.prompt_id, rows.source, stats.success_B, step=rows.step)
    return time.process_time() - begin


def measure(kind: str, rounds: int) -> float:
    """Median milliseconds of CPU per round; every completion is new to the featurizer."""
    modes = ModeSet.build(None)
    featurizer = Featurizer(modes, b"bench", vocabulary())
    families, ledger = Families(WATCHING, modes.names), SolveLedger()
    return 1000.0 * statistics.median(
        one_round(featurizer, families, ledger, batch(kind, seed)) for seed in range(rounds)
    )


def flat(rounds: int = 2_000) -> tuple[float, float, float]:
    """(median ms of the first 100 rounds after 10, of the last 100, growth of peak memory in MB after 200 rounds)."""
    modes = ModeSet.build(None)
    featurizer = Featurizer(modes, b"bench", vocabulary())
    families, ledger = Families(WATCHING, modes.names), SolveLedger(max_prompts=20_000)
    pool = [batch("prose", seed) for seed in range(8)]
    costs, peak = [], 0.0
    for number in range(rounds):
        template = pool[number % len(pool)]
        rows = RolloutBatch(
            **{
                **{name: getattr(template, name) for name in RolloutBatch.__dataclass_fields__},
                "step": number,
                "prompt_id": [f"p{i // GROUP}-{number}" for i in range(ROWS)],
                "completions": [f"{number} {completion}" for completion in template.completions],
            }
        )
        costs.append(1000.0 * one_round(featurizer, families, ledger, rows))
        if number == min(200, rounds // 2):
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024.0
    growth = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024.0 - peak
    return statistics.median(costs[10:110]), statistics.median(costs[-100:]), growth


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--flat", action="store_true", help="2,000 rounds: is cost and memory flat?")
    arguments = parser.parse_args()
    failed = False
    for kind, limit in LIMITS_MS.items():
        cost = measure(kind, arguments.rounds)
        failed |= cost > limit
        print(f"{kind:12s} {cost:7.1f} ms of CPU a round (limit {limit:.0f})")
    if arguments.flat:
        first, last, growth = flat()
        failed |= last > 1.2 * first
        print(f"flat         first 100 rounds {first:.1f} ms, last 100 {last:.1f} ms, memory +{growth:.1f} MB")
    return int(failed)


if __name__ == "__main__":
    raise SystemExit(main())
