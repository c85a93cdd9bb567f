"""Law 3: sampled completions = rows in the log + rows reported as shed, however generations are reused.

The truth is counted by an independent reward function that appends every completion to a file.
"""

from __future__ import annotations

import itertools
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import tiny

import rlmon
from rlmon.trl import RLMon, RLMonConfig

pytestmark = pytest.mark.trl

FACTORS: dict[str, tuple[Any, ...]] = {
    "gradient_accumulation_steps": (1, 2),
    "num_iterations": (1, 2),
    "steps_per_generation": (1, 2),
    "logging_steps": (1, 4),
    "eval": (True, False),
    "resumed": (False, True),
}
GRID = list(itertools.product(*FACTORS.values()))


def pairwise_cover(grid: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """A small subset of the grid in which every pair of levels of every two factors occurs."""

    def pairs(cell: tuple[Any, ...]) -> set[tuple[int, Any, int, Any]]:
        return {(i, cell[i], j, cell[j]) for i, j in itertools.combinations(range(len(cell)), 2)}

    missing = set().union(*(pairs(cell) for cell in grid))
    chosen = []
    while missing:
        best = max(grid, key=lambda cell: len(pairs(cell) & missing))
        chosen.append(best)
        missing -= pairs(best)
    return chosen


COVER = pairwise_cover(GRID)
CELLS = [cell if cell in COVER else pytest.param(cell, marks=pytest.mark.slow) for cell in GRID]


def _run(out: Path, truth: Path, steps: int, cell: dict[str, Any], resume: str | None) -> Any:
    accumulation, per_generation = cell["gradient_accumulation_steps"], cell["steps_per_generation"]
    overrides: dict[str, Any] = {
        "gradient_accumulation_steps": accumulation,
        "num_iterations": cell["num_iterations"],
        "steps_per_generation": per_generation,
        "logging_steps": cell["logging_steps"],
        "save_strategy": "steps",
        "save_steps": 3,
    }
    if cell["eval"]:
        overrides |= {"eval_strategy": "steps", "eval_steps": 2}
        overrides |= {"per_device_eval_batch_size": 8, "num_generations_eval": 4}
    trained = tiny.trainer(out, reward=tiny.counting_reward(truth), max_steps=steps, **overrides)
    RLMon(trained, RLMonConfig(rlmon_console=False, rlmon_base_kl_every=2, rlmon_strict=True))
    trained.train(resume_from_checkpoint=resume)
    return trained


@pytest.mark.parametrize("values", CELLS, ids=lambda values: "-".join(map(str, values)))
def test_every_completion_is_in_the_log_once(tmp_path: Path, values: tuple[Any, ...]) -> None:
    cell = dict(zip(FACTORS, values, strict=True))
    out, truth = tmp_path / "out", tmp_path / "truth.jsonl"
    _run(out, truth, 6, cell, None)
    if cell["resumed"]:
        _run(out, truth, 8, cell, str(out / "checkpoint-3"))
    sampled = Counter(tuple(json.loads(line)[1:]) for line in truth.read_text().splitlines())
    run = rlmon.open_run(out / "rlmon")
    table = run.rollouts(all_attempts=True)
    prompts, completions = table.column("prompt").to_pylist(), table.column("completion").to_pylist()
    logged = Counter(zip(prompts, completions, strict=True))
    assert logged == sampled
    identity = ["attempt", "round", "split", "global_row"]
    rows = list(zip(*(table.column(name).to_pylist() for name in identity), strict=True))
    assert len(set(rows)) == len(rows) == sum(sampled.values())
    records = run.step_records(all_attempts=True)
    assert all(record.shed_rows == 0 and not record.faults for record in records)
    train = sum(split == "train" for split in table.column("split").to_pylist())
    counted = sum(record.completions for record in records)
    # A generation of which no step was finished before the run stopped or was killed is in the rows alone.
    assert 0 <= train - counted <= 8 * cell["steps_per_generation"]
    assert [record.step for record in run.step_records()] == list(range(1, 9 if cell["resumed"] else 7))
    # Every row is trained num_iterations times; the last generation may be cut short by max_steps.
    passes = run.passes(all_attempts=True)
    seen = Counter(zip(*(passes.column(name).to_pylist() for name in identity), strict=True))
    assert max(count for row, count in seen.items() if row[2] == "train") == cell["num_iterations"]
    assert all(count == 1 for row, count in seen.items() if row[2] == "eval")


def test_the_cover_covers_every_pair() -> None:
    cover = pairwise_cover(GRID)
    assert len(cover) < len(GRID) / 4
    for i, j in itertools.combinations(range(len(FACTORS)), 2):
        levels = list(FACTORS.values())
        assert {(cell[i], cell[j]) for cell in cover} == set(itertools.product(levels[i], levels[j]))
