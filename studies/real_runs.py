"""Runs on a real language model: ``python -m studies.real_runs`` (``make real-run ARGS=...``).

    make real-run ARGS=--pilot                       does a task qualify? a few minutes of one core
    make real-run ARGS='--hours 2'                   goes on where the last sitting stopped, for two hours
    make real-run ARGS='--arms protect --seeds 100 --steps 36'
    make real-run ARGS=--tables                      writes the tables of docs/real-runs.md, trains nothing

A *cell* is a task, an arm and a seed, trained in one process on one core. It may stop after any step: what it needs to
go on is its newest checkpoint below ``--work``. Where it reaches ``--steps`` it is judged on held-out prompts; its
numbers are kept as one small file below ``--results``. Seeds from 100 on are for trying things out, never reported.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from rlmon.errors import ConfigError, RLMonError
from rlmon.lab.libraries import quiet_libraries, versions
from studies.cells import digest, kept, say, write_json
from studies.real_cell import (
    DTYPES,
    SCHEMA_VERSION,
    RealArm,
    RealCell,
    Sitting,
    begin_anew,
    judge,
    run_cell,
    task_settings,
)
from studies.real_pilot import pilot
from studies.real_tables import write_tables
from studies.real_tasks import CANDIDATES, TASKS, RealTask
from studies.tables import compact

SEEDS = (0, 1, 2)
TUNING_SEEDS_FROM = 100
STEPS = 60
WORK = Path(".cache/real-runs")
RESULTS = Path("docs/real-runs")
PAGE = Path("docs/real-runs.md")

ARMS: Mapping[str, RealArm] = {
    arm.name: arm
    for arm in (
        RealArm(name="unprotected", about="GRPO as it is, beta 0"),
        RealArm(name="kl-0.1", settings={"beta": 0.1}, about="beta 0.1"),
        RealArm(name="kl-0.5", settings={"beta": 0.5}, about="beta 0.5"),
        RealArm(
            name="adaptive-entropy", settings={"use_adaptive_entropy": True},
            about="TRL's adaptive entropy bonus, its target half of the base's entropy",
        ),
        RealArm(name="protect", policy="protect", about="rlmon's preset protect"),
        RealArm(
            name="hold", policy="configs/policies/hold.yaml",
            about="right answers that grow alike are pushed apart (configs/policies/hold.yaml)",
        ),
    )
}  # fmt: skip
"""By name. More come from the command line: ``--policy NAME=FILE``."""

Named = TypeVar("Named")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m studies.real_runs", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pilot", action="store_true", help="sample the base, take two steps, say what qualifies")
    parser.add_argument("--tables", action="store_true", help="compare what is kept, train nothing")
    parser.add_argument(
        "--tasks", help=f"comma-separated, of {', '.join(TASKS)}; --pilot: also {', '.join(CANDIDATES)}"
    )
    parser.add_argument("--arms", help=f"comma-separated, of {', '.join(ARMS)} and every --policy")
    parser.add_argument("--seeds", help=f"comma-separated (default {','.join(map(str, SEEDS))})")
    parser.add_argument("--steps", type=int, default=STEPS, help=f"train to here, and judge here (default {STEPS})")
    parser.add_argument("--hours", type=float, help="stop after the step in which these are over; go on another time")
    parser.add_argument("--dtype", choices=DTYPES, default=DTYPES[0], help=f"of the weights (default {DTYPES[0]})")
    parser.add_argument("--policy", action="append", default=[], metavar="NAME=FILE", help="one more arm: this policy")
    parser.add_argument("--work", type=Path, default=WORK, help=f"checkpoints, adapters, logs (default {WORK})")
    parser.add_argument("--results", type=Path, default=RESULTS, help=f"a small file a cell (default {RESULTS})")
    parser.add_argument("--page", type=Path, default=PAGE, help=f"where --tables writes (default {PAGE})")
    parser.add_argument("--redo", action="store_true", help="throw away what the chosen cells have, and begin anew")
    options = parser.parse_args(argv)
    try:
        if options.pilot:
            known = {**TASKS, **CANDIDATES}
            with quiet_libraries():
                for task in chosen(options.tasks or ",".join(TASKS), known, "task"):
                    for line in pilot(task, options.dtype):
                        print(line, flush=True)
            return 0
        if options.tables:
            write_tables(options.page, options.results, SEEDS)
            return 0
        return _run(options)
    except RLMonError as error:
        print(error, file=sys.stderr)
        return 2


def _run(options: argparse.Namespace) -> int:
    wanted = cells(options)
    until = None if options.hours is None else time.monotonic() + 3600.0 * options.hours
    sitting = Sitting(steps=options.steps, work=options.work, results=options.results, until=until)
    if options.redo:
        for cell in wanted:
            begin_anew(cell, sitting)
    whole = 0
    for cell in wanted:
        if sitting.over:
            break
        judged = str(options.steps) in run_cell(cell, sitting).get("evaluations", {})
        whole += judged
        if judged and not sitting.over:
            base_evaluation(cell.task, options.dtype, options.results)
    say(f"{whole} of {len(wanted)} cells have {options.steps} steps and are judged; the same command goes on")
    return 0


def cells(options: argparse.Namespace) -> list[RealCell]:
    """The cells that are asked for, seed by seed, so that a stopped sitting leaves whole comparisons."""
    arms = dict(ARMS)
    for given in options.policy:
        name, _, path = given.partition("=")
        if not name or name in ARMS or not Path(path).is_file():
            raise ConfigError(f"--policy takes NAME=FILE with a name of its own, got {given!r}.")
        arms[name] = RealArm(name=name, policy=path, about=f"policy {Path(path).name}")
    try:
        seeds = [int(seed) for seed in options.seeds.split(",")] if options.seeds else SEEDS
    except ValueError as error:
        raise ConfigError(f"--seeds takes integers, got {options.seeds!r}.") from error
    return [
        RealCell(task=task, arm=arm, seed=seed, dtype=options.dtype)
        for seed in seeds
        for task in chosen(options.tasks, TASKS, "task")
        for arm in chosen(options.arms, arms, "arm")
    ]


def chosen(names: str | None, known: Mapping[str, Named], what: str) -> list[Named]:
    """Those of ``known`` that are named; all where nothing is said."""
    wanted: Iterable[str] = known if names is None else [name.strip() for name in names.split(",")]
    if unknown := [name for name in wanted if name not in known]:
        raise ConfigError(f"Unknown {what} {', '.join(unknown)}; there are {', '.join(known)}.")
    return [known[name] for name in wanted]


def base_evaluation(task: RealTask, dtype: str, results: Path) -> None:
    """Judge the untrained base on this task once; kept beside the cells."""
    path = results / f"base-{task.name}.json"
    fingerprint = digest({"schema_version": SCHEMA_VERSION, "task": task_settings(task), "dtype": dtype})
    if kept(path, fingerprint) is not None:
        return
    say(f"base on {task.name}: judging")
    with quiet_libraries():
        found = judge(task, dtype, None)
    write_json(path, compact({"fingerprint": fingerprint, "task": task.name, "about": task.about, "dtype": dtype,
                              "versions": versions(), "evaluation": found}))  # fmt: skip


if __name__ == "__main__":
    raise SystemExit(main())
