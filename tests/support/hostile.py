"""Runs that somebody wrote to do harm, and the command line run on them under measurement.

Run as a program it is a small parent of commands that measures each: processor seconds, peak resident bytes and the
exit code. (Started from pytest itself, memory that pytest had would count for the command.) ``prepared`` parents have
imported what an audit imports and fork, which is what most of an audit's time would go to; ``fresh`` ones start Python
anew.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import importlib
import io
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PROCESSOR_SECONDS = 20.0
"""Processor time, so that a busy machine does not fail the tests."""
KILLED_AFTER_SECONDS = 120
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


@dataclass(frozen=True)
class Order:
    """What a parent of commands is told."""

    arguments: list[str]
    folder: str
    out: str
    err: str


def run(*arguments: str | Path, folder: Path, **environment: str) -> Left:
    """``python -m rlmon.cli ARGUMENTS`` in ``folder``; killed after ``KILLED_AFTER_SECONDS``, whatever it waits for.

    With an environment of its own it is a fresh process.
    """
    out, err = (folder / f".measured.{name}" for name in ("out", "err"))
    order = Order([str(part) for part in arguments], str(folder), str(out), str(err))
    parent = _parent("fresh", **environment) if environment else _prepared()
    assert parent.stdin is not None
    assert parent.stdout is not None
    parent.stdin.write(json.dumps(asdict(order)) + "\n")
    parent.stdin.flush()
    measured = json.loads(parent.stdout.readline())
    if environment:
        _ended(parent)
    left = Left(out=out.read_bytes().decode("utf-8"), err=err.read_bytes().decode("utf-8"), **measured)
    for file in (out, err):
        file.unlink()
    return left


def _parent(kind: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-W", "error", __file__, kind],
        env={
            **{key: value for key, value in os.environ.items() if key not in ("COLUMNS", "FORCE_COLOR")},
            "PYTHONPATH": str(ROOT),
            "TRACEBACK": "1",
            "PYTHONIOENCODING": "utf-8",
            **environment,
        },
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


@functools.cache
def _prepared() -> subprocess.Popen[str]:
    parent = _parent("prepared")
    atexit.register(_ended, parent)
    return parent


def _ended(parent: subprocess.Popen[str]) -> None:
    """It ends with what it reads from."""
    parent.communicate()


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


def _serve(kind: str) -> None:
    """A child for every order on stdin, and what it used as a line of JSON on stdout."""
    if kind == "prepared":
        _import_what_an_audit_imports()
    # Not by ``for line in sys.stdin``, which reads ahead of what a child may inherit.
    while line := sys.stdin.readline():
        order = Order(**json.loads(line))
        child = os.fork()
        if not child:
            _become(order, anew=kind == "fresh")
            return
        print(json.dumps(_measured(child)), flush=True)


def _import_what_an_audit_imports() -> None:
    """As a child says that did some: an audit here would start threads, which do not outlive a fork."""
    reads, writes = os.pipe()
    child = os.fork()
    if not child:
        signal.alarm(KILLED_AFTER_SECONDS)
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
            runs = [write_lines(Path(folder) / "rows.jsonl", rows("sum")), write_trl(Path(folder) / "run")]
            for run, form in itertools.product(runs, FORMATS):
                with contextlib.suppress(SystemExit):
                    _command_line("audit", str(run), "--format", form, "--html", f"{folder}/page.html")
        os.write(writes, " ".join(sys.modules).encode())
        os._exit(0)
    os.close(writes)
    with open(reads, encoding="utf-8") as names:
        for name in names.read().split():
            importlib.import_module(name)
    os.waitpid(child, 0)
    gc.freeze()


def _command_line(*arguments: str) -> None:
    from rlmon import cli

    sys.argv = ["rlmon", *arguments]
    cli.main()


def _become(order: Order, anew: bool) -> None:
    """The command, with nothing of what it was forked from but its imports."""
    for stream, path, flags in (
        (0, os.devnull, os.O_RDONLY),
        (1, order.out, os.O_WRONLY | os.O_CREAT | os.O_TRUNC),
        (2, order.err, os.O_WRONLY | os.O_CREAT | os.O_TRUNC),
    ):
        opened = os.open(path, flags, 0o644)
        os.dup2(opened, stream, inheritable=True)
        os.close(opened)
    os.chdir(order.folder)
    if anew:
        os.execv(sys.executable, [sys.executable, "-W", "error", "-m", "rlmon.cli", *order.arguments])
    _command_line(*order.arguments)


def _measured(child: int) -> dict[str, float]:
    signal.signal(signal.SIGALRM, lambda *_: os.kill(child, signal.SIGKILL))
    signal.alarm(KILLED_AFTER_SECONDS)
    _, status, used = os.wait4(child, 0)
    signal.alarm(0)
    return {
        "code": os.waitstatus_to_exitcode(status),
        "processor_seconds": used.ru_utime + used.ru_stime,
        "resident_bytes": used.ru_maxrss * (1 if sys.platform == "darwin" else 1024),
    }


if __name__ == "__main__":
    _serve(sys.argv[1])
