"""How often `rlmon compare` finds a sustained departure, or calls a metric distinct, between runs of the same law.

    python benchmarks/departure_alarms.py

Pairs of AR(1) series with the same mean: what is found in them is a false alarm.
"""

from __future__ import annotations

import argparse

import numpy as np

from rlmon.audit.contrast import LAST_SHARE, LAST_STEPS
from rlmon.audit.parting import _of_steps, _p, departure


def series(rng: np.random.Generator, pairs: int, steps: int, correlation: float) -> np.ndarray:
    """[pairs, steps] stationary AR(1) with unit spread."""
    noise = rng.standard_normal((pairs, steps))
    values = np.empty_like(noise)
    values[:, 0] = noise[:, 0]
    for t in range(1, steps):
        values[:, t] = correlation * values[:, t - 1] + np.sqrt(1 - correlation**2) * noise[:, t]
    return values


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=2_000)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rng = np.random.default_rng(arguments.seed)
    at = np.arange(arguments.steps)
    last = min(max(LAST_STEPS, round(LAST_SHARE * arguments.steps)), arguments.steps)
    print(f"{arguments.pairs} pairs of {arguments.steps} steps, seed {arguments.seed}")
    for correlation in (0.0, 0.3, 0.6, 0.8, 0.9):
        gaps = series(rng, arguments.pairs, arguments.steps, correlation) - series(
            rng, arguments.pairs, arguments.steps, correlation
        )
        parted = np.mean([departure(at, gap) is not None for gap in gaps])
        small = []
        for gap in gaps:
            error, degrees = _of_steps(gap, last)
            p = _p(float(gap[-last:].mean()), error, degrees)
            small.append(p is not None and p < 0.05)
        print(f"correlation {correlation:.1f}: departure {parted:.2%}, p below .05 {np.mean(small):.2%} of the pairs")


if __name__ == "__main__":
    main()
