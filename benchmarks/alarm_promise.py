"""What the alarm promises, measured: no false FAIL while the effective number stays at .8 of its base or above.

    python benchmarks/alarm_promise.py [--runs 3000] [--looks 2000] [--collapses 1000] [--seed 0]

Every run draws its own base of 32 prompts (8 prompts x 8 completions a look, as 4 blocks of 2), and from the next look
on stands exactly at the edge of the promise, .8 of its base, for all the looks that are left. Four shapes of a base:
few wide formats, many formats, one dominant, prompts that differ; each with the spread of its blocks as it was and four
times as wide. Then the same for statistics inside a prompt, for lengths and entropies of prompts with a coefficient of
variation of 1 (bad when low), for four sources one after the other and side by side (there each has 16 prompts), and
for a data set of 256 prompts that is gone through without replacement. Nothing is promised, and nothing measured here,
on the FAIL line at .6 itself.

Collapses of the four shapes stop at .44 of the base: how many are found, and how many looks after they began.

All runs go through ``rlmon.detectors.evidence.observe``, the code that the fold runs, many at a time.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlmon.detectors import evidence, start
from rlmon.detectors.roster import Roster

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
GROUP, PROMPTS, BLOCKS = 8, 2, 4
"""Completions of a prompt, prompts of a block, blocks of a look."""
BASE_LOOKS = 4
TOLERATED, STOP = 0.8, 0.44
POOLS, POOL_PROMPTS = 6, 1200
DATASET = 256
"""Prompts of the data set that is gone through without replacement."""
SPREADS = (1.0, 4.0)
COLLAPSE_BEGINS = 40


@dataclass(frozen=True)
class Shape:
    """A base: shares of the formats, and how alike prompts are (Dirichlet, total pseudo-count)."""

    name: str
    shares: Floats
    alike: float


SHAPES = (
    Shape("few wide formats", np.full(4, 0.25), 60.0),
    Shape("many formats", (lambda p: p / p.sum())(1.0 / np.arange(1, 21) ** 0.7), 40.0),
    Shape("one dominant", np.array([0.45] + [0.55 / 6] * 6), 60.0),
    Shape("prompts that differ", np.full(5, 0.2), 6.0),
)


def _root(below: Callable[[float], bool], low: float, high: float) -> float:
    for _ in range(60):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if below(middle) else (low, middle)
    return 0.5 * (low + high)


def tilted(shares: Floats, collision: float) -> Floats:
    """The shares with their winner raised until sum p^2 is ``collision``."""
    winner = np.arange(len(shares)) == shares.argmax()

    def at(tilt: float) -> Floats:
        p = shares * np.exp(tilt * winner)
        return np.asarray(p / p.sum())

    return at(_root(lambda tilt: float(at(tilt) @ at(tilt)) < collision, 0.0, 12.0))


def block_sd(p: Floats, alike: float) -> float:
    """Standard deviation of the collision between two prompts: h has covariance v (diag p - p p')."""
    v = (GROUP + alike) / (GROUP * (1.0 + alike))
    square, cube = float(p @ p), float((p**3).sum())
    return math.sqrt(v * v * (square - 2 * cube + square**2) + 2 * v * (cube - square**2))


@dataclass(frozen=True)
class Pool:
    """Prompt groups, [pools, M, codes] shares of their completions, and products of all pairs of groups."""

    shares: NDArray[np.float32]
    products: NDArray[np.float32]
    means: Floats
    """[pools] E[Z]: the mean over pairs of different groups."""

    @staticmethod
    def of(rng: np.random.Generator, p: Floats, alike: float, prompts: int, pools: int = POOLS) -> Pool:
        theta = rng.dirichlet(np.maximum(alike * p, 1e-9), (pools, prompts))
        theta /= theta.sum(axis=-1, keepdims=True)
        shares = (rng.multinomial(GROUP, theta) / GROUP).astype(np.float32)
        products = shares @ shares.transpose(0, 2, 1)
        own = np.einsum("pmm->p", products).astype(np.float64)
        means = (products.sum((1, 2), dtype=np.float64) - own) / (prompts * (prompts - 1))
        return Pool(shares, products, means)


@dataclass(frozen=True)
class Edge:
    """Two pools whose mixture has exactly the wanted mean in each of the pools."""

    pools: tuple[Pool, Pool]
    upper_P: Floats
    """Chance of a block from the second, narrower one."""

    @staticmethod
    def of(rng: np.random.Generator, shape: Shape, wanted_P: Floats, spread: float, prompts: int) -> Edge:
        sd = spread * block_sd(shape.shares, shape.alike)
        centre = float(wanted_P.mean())
        sides = []
        for share in (0.8, 1.25):
            p = tilted(shape.shares, min(0.98, share * centre))
            alike = math.exp(_root(lambda x, p=p: block_sd(p, math.exp(x)) > sd, -7.0, 7.0))  # type: ignore[misc]
            sides.append(Pool.of(rng, p, alike, prompts))
        low, high = (side.means for side in sides)
        return Edge((sides[0], sides[1]), np.clip((wanted_P - low) / (high - low), 0.0, 1.0))


def only(detector: str, statistic: str, looks: int) -> evidence.Plan:
    """The plan with the FAIL of a detector over one of its statistics alone, at its share of the error, and without the
    second signal that ``entropy-collapse`` needs."""
    plan = start(alpha=0.01, total_steps=looks, group_size=GROUP).plan
    of_rung = (plan.detector_K == [spec.id for spec in Roster().betting].index(detector)) & (
        plan.rung_K == evidence.FAIL
    )
    one = np.flatnonzero(of_rung & (plan.stat_K == Roster().statistics.index(statistic)))
    processes = {f.name: getattr(plan, f.name)[one] for f in dataclasses.fields(plan) if f.name.endswith("_K")}
    return dataclasses.replace(
        plan,
        **processes | {"stat_K": np.zeros(len(one), dtype=np.int64)},
        agreement_D=np.zeros_like(plan.agreement_D),
        log_threshold_D=plan.log_threshold_D + math.log(of_rung.sum() / len(one)),
    )


Look = list[tuple[int, Floats, float, float]]


def first_fails(
    plan: evidence.Plan,
    runs: int,
    sources: int,
    looks: int,
    draw: Callable[[int], Look],
    pairs: evidence.Pairs | None = None,
    planned: int | None = None,
) -> Ints:
    """Look of the first FAIL [runs]; -1: never. ``planned`` looks, where the runs are not followed to their end."""
    arrays = evidence.empty(plan, runs, sources, 1)
    first = np.full(runs, -1)
    for t in range(looks):
        weight = evidence.restart_weight(t + 1, planned or looks)
        arrays, fire = evidence.observe(plan, arrays, draw(t), weight, pairs=pairs)
        first[fire[:, :, evidence.FAIL].any(axis=1) & (first < 0)] = t + 1
    return first


def block(z_N: NDArray[Any], source: int = 0) -> tuple[int, Floats, float, float]:
    """One block as ``evidence.observe`` takes it."""
    return source, z_N[:, None].astype(np.float64), float(PROMPTS), float(PROMPTS * GROUP)


@dataclass
class Across:
    """Runs over one or several sources whose blocks are pairs of prompt groups."""

    rng: np.random.Generator
    runs: int

    def __post_init__(self) -> None:
        self.pool_N = np.arange(self.runs) % POOLS
        self.base: dict[int, list[tuple[int, NDArray[np.float32]]]] = {}
        """Of each source the look and the shares of every prompt group of its baseline."""

    def block(
        self, source: int, i_N: Ints, j_N: Ints, pool: Pool | Edge, *, base: int | None
    ) -> tuple[int, Floats, float, float]:
        if isinstance(pool, Edge):
            upper = self.rng.random(self.runs) < pool.upper_P[self.pool_N]
            z = np.where(upper, *(side.products[self.pool_N, i_N, j_N] for side in reversed(pool.pools)))
        else:
            z = pool.products[self.pool_N, i_N, j_N]
            if base is not None:
                parts = self.base.setdefault(source, [])
                parts += [(base, pool.shares[self.pool_N, i_N]), (base, pool.shares[self.pool_N, j_N])]
        return block(z, source)

    def two(self, prompts: int) -> tuple[Ints, Ints]:
        """Two different groups, drawn from all."""
        i = self.rng.integers(0, prompts, self.runs)
        j = self.rng.integers(0, prompts - 1, self.runs)
        return i, j + (j >= i)

    def pairs(self, source: int, statistic: int) -> tuple[Floats, Floats, Floats] | None:
        parts = self.base.get(source)
        if parts is None:
            return None
        counts = GROUP * np.stack([shares for _, shares in parts], axis=1).astype(np.float64)
        record = np.array([look for look, _ in parts])
        mean, se = evidence.pairs_mean_se(counts @ counts.transpose(0, 2, 1), counts.sum(axis=2), record)
        return mean, se, np.full(self.runs, float(len(parts)))


FORMATS = ("format-collapse", "mode_collision")


def at_the_edge(shape: Shape, spread: float, runs: int, looks: int, seed: int, dataset: int | None = None) -> Ints:
    """Format mixes of one source; ``dataset``: that many prompts, gone through again and again in a new order."""
    rng = np.random.default_rng([seed, SHAPES.index(shape), int(spread), dataset or 0])
    prompts = dataset or POOL_PROMPTS
    before = Pool.of(rng, shape.shares, shape.alike, prompts)
    after = Edge.of(rng, shape, before.means / TOLERATED, spread, prompts)
    world = Across(rng, runs)
    order = np.zeros((runs, 0), dtype=np.int64)

    def draw(t: int) -> Look:
        nonlocal order
        pool: Pool | Edge = before if t < BASE_LOOKS else after
        blocks = []
        for _ in range(BLOCKS):
            if dataset is None:
                i, j = world.two(prompts)
            else:
                if order.shape[1] < PROMPTS:
                    order = np.argsort(rng.random((runs, dataset), dtype=np.float32), axis=1)
                i, j, order = order[:, 0], order[:, 1], order[:, PROMPTS:]
            blocks.append(world.block(0, i, j, pool, base=t if t < BASE_LOOKS else None))
        return blocks

    return first_fails(only(*FORMATS, looks), runs, 1, looks, draw, world.pairs)


def several_sources(spread: float, runs: int, looks: int, seed: int, *, in_turn: bool) -> Ints:
    """The four shapes as four sources: one after the other, or one block of each in every look."""
    rng = np.random.default_rng([seed, 77, int(spread), in_turn])
    before = [Pool.of(rng, s.shares, s.alike, POOL_PROMPTS) for s in SHAPES]
    after = [
        Edge.of(rng, s, pool.means / TOLERATED, spread, POOL_PROMPTS) for s, pool in zip(SHAPES, before, strict=True)
    ]
    world = Across(rng, runs)
    turn = looks // len(SHAPES)

    def draw(t: int) -> Look:
        sources = [min(t // turn, len(SHAPES) - 1)] * BLOCKS if in_turn else list(range(len(SHAPES)))
        # Side by side a source has one block a look, and its baseline closes at the eighth.
        base = t - sources[0] * turn < BASE_LOOKS if in_turn else t < 2 * BASE_LOOKS
        look = t if base else None
        return [world.block(s, *world.two(POOL_PROMPTS), before[s] if base else after[s], base=look) for s in sources]

    return first_fails(only(*FORMATS, looks), runs, len(SHAPES), looks, draw, world.pairs)


def _beta(rng: np.random.Generator, mean: float, sd: float, shape: tuple[int, ...]) -> Floats:
    total = mean * (1 - mean) / sd**2 - 1
    return rng.beta(mean * total, (1 - mean) * total, shape)


def within(mean: float, spread: float, runs: int, looks: int, seed: int) -> Ints:
    """Collisions inside a prompt: Beta with a standard deviation of .08 over prompts."""
    rng = np.random.default_rng([seed, 78, int(spread), int(100 * mean)])

    def draw(t: int) -> Look:
        now, sd = (mean, 0.08) if t < BASE_LOOKS else (mean / TOLERATED, 0.08 * spread)
        values = _beta(rng, now, sd, (BLOCKS, runs, PROMPTS)).mean(axis=2)
        return [block(z) for z in values]

    return first_fails(only("format-collapse", "mode_collision_within", looks), runs, 1, looks, draw)


def low(detector: str, kind: str, spread: float, runs: int, looks: int, seed: int, now: float = TOLERATED) -> Ints:
    """A statistic that is bad when low, with a coefficient of variation of 1 over prompts. ``entropy-collapse`` is
    taken without its need of a second signal."""
    (statistic,) = next(spec.statistics for spec in Roster().betting if spec.id == detector)
    rng = np.random.default_rng([seed, 79, int(spread), kind == "gamma", len(detector)])

    def draw(t: int) -> Look:
        level, cv = (1.0, 1.0) if t < BASE_LOOKS else (now, spread)
        if kind == "gamma":
            values = rng.gamma(cv**-2, cv**2, (BLOCKS, runs, PROMPTS))
        else:
            variance = math.log1p(cv**2)
            values = np.exp(rng.normal(-variance / 2, math.sqrt(variance), (BLOCKS, runs, PROMPTS)))
        return [block(level * z) for z in values.mean(axis=2)]

    return first_fails(only(detector, statistic, looks), runs, 1, looks, draw)


def collapse(shape: Shape, runs: int, looks: int, planned: int, seed: int, levels: int = 24) -> Ints:
    """From look 40 on the effective number falls along a logistic curve, most of it in 30 looks, to .44 of its base."""
    rng = np.random.default_rng([seed, 80, SHAPES.index(shape)])
    base = float(shape.shares @ shape.shares)
    # Past the stop, so that the two mixes around it can be drawn from in turn and meet it exactly.
    ratios = np.linspace(1.0, 0.9 * STOP, levels)
    mixes = [shape.shares] + [tilted(shape.shares, base / ratio) for ratio in ratios[1:]]
    tables = [Pool.of(rng, p, shape.alike, 800, 1) for p in mixes]
    means = np.maximum.accumulate([float(table.means[0]) for table in tables])
    world = Across(rng, runs)
    world.pool_N[:] = 0

    def draw(t: int) -> Look:
        if t < BASE_LOOKS:
            return [world.block(0, *world.two(800), tables[0], base=t) for _ in range(BLOCKS)]
        fallen = 1.0 / (1.0 + math.exp(-(t - 60.0) / 6.0))
        place = float(np.interp(means[0] / (1.0 - (1.0 - STOP) * fallen), means, np.arange(levels)))
        between = Edge((tables[int(place)], tables[min(int(place) + 1, levels - 1)]), np.array([place % 1.0]))
        return [world.block(0, *world.two(800), between, base=None) for _ in range(BLOCKS)]

    return first_fails(only(*FORMATS, planned), runs, 1, looks, draw, world.pairs, planned)


Case = tuple[str, str, Callable[[float], Ints]]


def cases(runs: int, looks: int, seed: int) -> list[Case]:
    """What is measured: family, name, and the first FAILs at a spread."""
    several = partial(several_sources, runs=runs, looks=looks, seed=seed)
    across: list[tuple[str, Callable[[float], Ints]]] = [
        (shape.name, partial(at_the_edge, shape, runs=runs, looks=looks, seed=seed)) for shape in SHAPES
    ]
    across += [
        (
            f"{DATASET} prompts, no replacement",
            partial(at_the_edge, SHAPES[2], runs=runs, looks=looks, seed=seed, dataset=DATASET),
        ),
        ("four sources in turn", partial(several, in_turn=True)),
        ("four sources side by side", partial(several, in_turn=False)),
    ]
    found: list[Case] = [("across prompts", name, run) for name, run in across]
    for mean in (0.2, 0.45):
        found.append(
            ("within a prompt", f"collision {mean:g}", partial(within, mean, runs=runs, looks=looks, seed=seed))
        )
    for detector in ("length-collapse", "entropy-collapse"):
        for kind in ("gamma", "lognormal"):
            run = partial(low, detector, kind, runs=runs, looks=looks, seed=seed)
            found.append(("bad when low", f"{detector}, {kind}", run))
    return found


def measure(
    runs: int, looks: int, collapses: int, seed: int, rate: Callable[[int, int, int], dict[str, Any]]
) -> dict[str, Any]:
    """The promise and the collapses, as JSON types."""
    rows = []
    for family, name, run in cases(runs, looks, seed):
        for spread in SPREADS:
            began = time.process_time()
            fails = rate(int((run(spread) > 0).sum()), runs, looks)
            rows.append({"family": family, "name": name, "spread": spread, **fails})
            print(
                f"{family:16} {name:32} spread x{spread:g}: false FAIL {fails['events']}/{runs}, at most "
                f"{100 * fails['high']:.2f} % ({time.process_time() - began:.0f} s)",
                flush=True,
            )
    stopped = []
    for shape in SHAPES if collapses else ():
        first = collapse(shape, collapses, looks, looks, seed)
        found = first[first > 0]
        stopped.append(
            {
                "name": shape.name,
                "collapses": collapses,
                "found": len(found),
                "looks_after_it_began_p50": int(np.median(found)) - COLLAPSE_BEGINS,
                "looks_after_it_began_p95": int(np.quantile(found, 0.95)) - COLLAPSE_BEGINS,
            }
        )
        print(json.dumps(stopped[-1]), flush=True)
    return {"tolerated": TOLERATED, "stop": STOP, "rows": rows, "collapses": stopped}


def main() -> None:
    from alarm_price import rate

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3000)
    parser.add_argument("--looks", type=int, default=2000)
    parser.add_argument("--collapses", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    measure(args.runs, args.looks, args.collapses, args.seed, rate)


if __name__ == "__main__":
    main()
