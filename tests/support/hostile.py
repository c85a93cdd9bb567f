"""Runs that somebody wrote to do harm, and the command line run on them under measurement.

Run as a program it is a small parent that measures: ``python hostile.py TIMEOUT OUT COMMAND...`` writes processor
seconds, peak resident bytes and the exit code of the command as JSON to ``OUT``. (Memory that a process had before it
became the command counts for the command: started from pytest, that would be pytest's.)
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PROCESSOR_SECONDS = 20.0
"""Processor time, so that a busy machine does not fail the tests."""
KILLED_AFTER_SECONDS = 120.0
RESIDENT_BYTES = 1 << 30
FORMATS = ("rich", "json", "markdown", "junit", "github")
STEPS, PROMPTS, SIZE = 24, 4, 4


@dataclass(frozen=True)
class Left:
    """What a command left behind."""

    code: int
    out: str
    err: str
    processor_seconds: float
    resident_bytes: int


def run(*arguments: str | Path, folder: Path, **environment: str) -> Left:
    """``python -m rlmon.cli ARGUMENTS`` in ``folder``; killed after ``KILLED_AFTER_SECONDS``, whatever it waits for."""
    report, out, err = (folder / f".measured.{name}" for name in ("json", "out", "err"))
    command = [sys.executable, "-W", "error", "-m", "rlmon.cli", *map(str, arguments)]
    with out.open("wb") as stdout, err.open("wb") as stderr:
        subprocess.run(
            [sys.executable, "-S", __file__, str(KILLED_AFTER_SECONDS), str(report), *command],
            cwd=folder,
            env={
                **{key: value for key, value in os.environ.items() if key not in ("COLUMNS", "FORCE_COLOR")},
                "PYTHONPATH": str(ROOT),
                "TRACEBACK": "1",
                "PYTHONIOENCODING": "utf-8",
                **environment,
            },
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            check=True,
        )
    measured = json.loads(report.read_text())
    left = Left(out=out.read_bytes().decode("utf-8"), err=err.read_bytes().decode("utf-8"), **measured)
    for file in (report, out, err):
        file.unlink()
    return left


def text_of_rows(payload: str, row: int) -> str:
    """A completion with the payload in it, in one of several formats, so that modes and examples come and go."""
    shapes = (
        f"{payload} The answer is {row}.",
        f"I think {payload}\n\\boxed{{{row % 7}}}",
        f"1. {payload}\n2. so\n3. {row}",
        '{"answer": ' + json.dumps(payload) + "}",
    )
    # Late in the run one shape is left: the checks have something to show.
    return shapes[0 if row > STEPS * PROMPTS * SIZE // 2 else row % 4]


def rows(payload: str, reward: Callable[[int], Any] = lambda row: float(row % 3 == 0)) -> list[dict[str, Any]]:
    """A run whose prompts, completions and sources all hold the payload."""
    made = []
    for row in range(STEPS * PROMPTS * SIZE):
        step, rest = divmod(row, PROMPTS * SIZE)
        made.append(
            {
                "step": step,
                "prompt": f"{payload} {step * PROMPTS + rest // SIZE}",
                "completion": text_of_rows(payload, row),
                "reward": reward(row),
                "task": f"{payload}{rest // SIZE % 2}",
            }
        )
    return made


def write_lines(path: Path, records: Sequence[Mapping[str, Any]]) -> Path:
    """JSON lines in ASCII: halves of surrogate pairs as escapes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="ascii")
    return path


def write_trl(folder: Path, payload: str = "sum", reward_name: str = "reward_func") -> Path:
    """A TRL output folder of the same rows; the reward function and the logged keys are named by ``reward_name``."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    (folder / "completions").mkdir(parents=True)
    history = []
    for step in range(STEPS):
        here = [row for row in rows(payload) if row["step"] == step]
        rewards = [row["reward"] for row in here]
        mean = sum(rewards) / len(rewards)
        columns = {
            "step": [step] * len(here),
            "prompt": [row["prompt"] for row in here],
            "completion": [row["completion"] for row in here],
            reward_name: rewards,
            "advantage": [value - mean for value in rewards],
            "source": [row["task"] for row in here],
        }
        table = pa.table({valid(name): [valid(v) for v in values] for name, values in columns.items()})
        pq.write_table(table, folder / "completions" / f"completions_{step:05d}.parquet")
        history.append(
            {"step": step, "loss": 0.0, "reward": mean, f"rewards/{reward_name}/mean": mean, payload: 1.0, "entropy": 1}
        )
    state = {"global_step": STEPS - 1, "max_steps": STEPS, payload: payload, "log_history": history}
    (folder / "trainer_state.json").write_text(json.dumps(state), encoding="ascii")
    return folder


def valid(value: Any) -> Any:
    """Parquet has no halves of surrogate pairs."""
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value


def _measure(limit: float, report: str, command: Sequence[str]) -> None:
    process = subprocess.Popen(command)
    try:
        process.wait(limit)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    kibibyte = 1 if sys.platform == "darwin" else 1024
    Path(report).write_text(
        json.dumps(
            {
                "code": process.returncode,
                "processor_seconds": used.ru_utime + used.ru_stime,
                "resident_bytes": used.ru_maxrss * kibibyte,
            }
        )
    )


if __name__ == "__main__":
    _measure(float(sys.argv[1]), sys.argv[2], sys.argv[3:])
