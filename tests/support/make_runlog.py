"""Makes ``runlog-schema-N``, the frozen run directories, and small records for the other tests of the run log.

Run it only for a new schema version, into a new directory: ``python tests/support/make_runlog.py tests/golden/NAME``.
A frozen one must never be made again: it stands for what users have on their disks.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlmon.records import Action, Block, Fault, Finding, RunHeader, StepRecord
from rlmon.runlog import RunLogWriter, compact

GROUP_SIZE = 4


def header(attempt: int = 0, **changes: Any) -> RunHeader:
    values: dict[str, Any] = {
        "run_id": "golden",
        "attempt": attempt,
        "attempt_kind": "fresh",
        "created_unix_seconds": 1_700_000_000.25,
        "trainer": "manual",
        "group_size": GROUP_SIZE,
        "world_size": 1,
        "total_steps": 10,
        "config": {"rlmon_alpha": 0.01},
        "trainer_config": {"beta": 0.0},
        "detectors": {},
        "packages": {"rlmon": "0.1.0"},
        "git_commit": None,
        "capabilities": [{"signal": "entropy", "status": "yes", "reason": ""}],
    }
    return RunHeader(**{**values, **changes})


def rollouts(
    round: int, rows: int = 8, *, attempt: int = 0, first_row: int = 0, **changes: Sequence[Any] | None
) -> dict[str, Any]:
    """Columns of ``rows`` completions of one round, trained at step ``round + 1``; every value follows from the row."""
    ids = range(first_row, first_row + rows)
    columns: dict[str, Any] = {
        "attempt": [attempt] * rows,
        "round": [round] * rows,
        "split": ["train"] * rows,
        "global_row": list(ids),
        "group": [i // GROUP_SIZE for i in ids],
        "step": [round + 1] * rows,
        "prompt_id": [f"p{i // GROUP_SIZE}" for i in ids],
        "source": ["sums" if i % 2 else "words" for i in ids],
        "prompt": [f"What is {i // GROUP_SIZE} + {round}?" for i in ids],
        "completion": [f"<answer>{i // GROUP_SIZE + round}</answer> é {i}" for i in ids],
        "prompt_tokens": [7] * rows,
        "completion_tokens": [5 + i for i in ids],
        "truncated": [None if i % 3 == 0 else i % 2 == 0 for i in ids],
        "reward": [None if i == 3 else i / 3 for i in ids],
        "rewards": [{"accuracy": i / 3, "format": None} for i in ids],
        "advantage": [i / 7 - 0.5 for i in ids],
        "mode": ["xml"] * rows,
        "reasoning_mode": [None if i % 2 else "prose" for i in ids],
        "template_key": [(1 << 62) + i for i in ids],
        "answer_key": [None if i % 2 else 11 * i for i in ids],
        "opening_key": [13 * i for i in ids],
        "openers": [None if i == 2 else [i, 4095] for i in ids],
        "opener_weights": [None if i == 2 else [0.75, 0.25] for i in ids],
        "policy_version": [round] * rows,
        "staleness": [0] * rows,
        "trained": [True] * rows,
    }
    return {**columns, **changes}


def passes(round: int, rows: int = 8, *, attempt: int = 0, iteration: int = 0, first_row: int = 0) -> dict[str, Any]:
    ids = range(first_row, first_row + rows)
    return {
        "attempt": [attempt] * rows,
        "round": [round] * rows,
        "split": ["train"] * rows,
        "global_row": list(ids),
        "iteration": [iteration] * rows,
        "step": [round + 1 + iteration] * rows,
        "tokens": [5 + i for i in ids],
        "entropy_mean_nats": [1 / (1 + i) for i in ids],
        "logp_mean_nats": [-i / 3 for i in ids],
        "kl_mean_nats": [None] * rows,
    }


def step_record(step: int, *, attempt: int = 0, **changes: Any) -> StepRecord:
    values: dict[str, Any] = {
        "attempt": attempt,
        "step": step,
        "time_unix_seconds": 1_700_000_000.1 + step,
        "rounds": (step - 1,),
        "completions": 8,
        "prompts": 2,
        "tokens": 68,
        "metrics": {"rlmon/entropy/mean": 1.0 / (3 * step), "rlmon/kl/mean": None},
        "missing": {"rlmon/kl/mean": "measured every 10 steps"},
        "blocks": (Block(source="sums", prompts=2, completions=8, stats={"mode_collision": 0.1 + 0.2}),),
        "overhead_seconds": 0.001,
    }
    return StepRecord(**{**values, **changes})


def schema_2_record(step: int, *, attempt: int = 0) -> StepRecord:
    """With what schema 2 added: keys of sources with their names, and tallies while the baseline is open."""
    block = Block(
        source="0a1b2c3d4e5f", prompts=2, completions=8, stats={"mode_collision": 0.25},
        tallies={"mode_collision": [{"0": 3, "4": 1}, {"4": 4}]},
    )  # fmt: skip
    return step_record(step, attempt=attempt, blocks=(block,), sources={"0a1b2c3d4e5f": "söurce"})


def finding(step: int, **changes: Any) -> Finding:
    values: dict[str, Any] = {
        "finding_id": f"format-collapse-{step}",
        "detector": "format-collapse",
        "severity": "warn",
        "step": step,
        "metric": "rlmon/format/effective",
        "value": 1.5,
        "baseline": 3.25,
        "threshold": 2.6,
        "source": None,
        "message": "one format is taking over",
        "advice": "set beta above 0",
        "baseline_kind": "early_rounds",
        "baseline_prompts": 32,
        "benign_sharpening": None,
        "evidence": {"losers": ["list", "prose"]},
    }
    return Finding(**{**values, **changes})


def action(step: int, phase: Any = "decided") -> Action:
    return Action(
        action_id=f"a{step}", phase=phase, step=step, knob="beta", old=0.0, new=0.04, reason="collapse", finding_id=None
    )


def fault(step: int) -> Fault:
    return Fault(place="metrics.formats", step=step, rank=0, error="ValueError: odd", count=1)


def make(path: Path) -> None:
    """Two attempts: steps 1 to 4, then resumed from step 2 for steps 3 and 4; the first is compacted."""
    writer = RunLogWriter.open(path, header(), resume=False, secret=bytes(32))
    for round in range(4):
        writer.write_rollouts(rollouts(round))
        writer.write_passes(passes(round))
        writer.append_step(step_record(round + 1))
    writer.append_event("finding", finding(2))
    writer.append_event("finding", finding(4))
    writer.append_event("action", action(2))
    writer.append_event("fault", fault(1))
    writer.close()
    compact(path)
    writer = RunLogWriter.open(path, header(1), resume=True, from_step=2, secret=bytes(32))
    for round in (2, 3):
        odd = ["lone \ud800 half", "nul \0 and \x1b[31m red", "", "<script>", "\u2028", "a", "b", "c"]
        writer.write_rollouts(rollouts(round, attempt=1, completion=odd))
        writer.write_passes(passes(round, attempt=1))
        writer.append_step(step_record(round + 1, attempt=1))
    trained = [i >= GROUP_SIZE for i in range(8)]
    advantages = [i / 7 - 0.5 if known else None for i, known in enumerate(trained)]
    writer.write_rollouts(rollouts(4, attempt=1, trained=trained, advantage=advantages))
    writer.write_passes(passes(4, rows=GROUP_SIZE, attempt=1, first_row=GROUP_SIZE))
    writer.append_step(schema_2_record(5, attempt=1))
    writer.append_event("finding", finding(5, detector="silent-groups-good", severity="note"))
    writer.close()
    for name in ("secret", "compact.lock"):
        (path / name).unlink(missing_ok=True)


if __name__ == "__main__":
    make(Path(sys.argv[1]))
