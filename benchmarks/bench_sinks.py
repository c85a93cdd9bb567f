"""What the sinks of W&B and of a webhook cost a training step while W&B is well, and while it fails.

    python benchmarks/bench_sinks.py [--steps 16] [--rounds 3] [--arms healthy "disk full"] [--batch 256]

GRPO as `configs/grpo.yaml` has it, with 256 completions a step, `report_to: wandb` and a table of samples every 4 steps
(6 times as often as by default). Each arm is a process of its own, in turns with the others; before a quarter of its
steps is over something happens to W&B, and the steps after that count. Offline: the run's folder is deleted, its disk
is full (a tmpfs of 4 MB, where this user may mount one; else a write that fails), the user finishes the run, or begins
another. Online, against the tests' stand-in for the server on loopback: it is gone, it accepts and never answers, it
answers 500 to the view. And a webhook that takes alerts and never answers.

Timed around every call of the sinks: wall time, since waiting is what would hurt, and the CPU of the thread that
trains. Limit: 5 % of the time of the steps of that arm, in wall and in CPU. An arm also fails where what happened was
not named on the console, or was named more than once. The step's own CPU beside that of the base line (a W&B run
without the sink, `rlmon_wandb: false`) is shown and not judged: on a busy machine it differs by more than the sinks
cost.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import itertools
import json
import os
import random
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "support"))
LIMIT = 0.05
PATIENCE_SECONDS = 600.0
CALLS = ("record", "finding", "action", "table")


@dataclass(frozen=True, kw_only=True)
class Arm:
    """Something that happens to W&B, and how it is named."""

    happens: Callable[[Path, int], None] = lambda folder, server: None
    """With the folder of the W&B run and the process of the server."""
    named: str = ""
    """A regular expression of the line that says it; empty: nothing is to be said."""
    online: bool = False
    webhook: bool = False
    own_run: bool = False
    """The user's own: where the trainer reports to a run that was finished, the trainer's own report raises."""
    sink: bool = True


def delete_folder(folder: Path, server: int) -> None:
    shutil.rmtree(folder / "wandb")


def fill_disk(folder: Path, server: int) -> None:
    if folder.is_mount():
        with contextlib.suppress(OSError), (folder / "filler").open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4_096))
        return
    import wandb

    def full(*_: Any, **__: Any) -> Any:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    wandb.Table.bind_to_run = full


def finish_run(folder: Path, server: int) -> None:
    import wandb

    wandb.finish()


def begin_another(folder: Path, server: int) -> None:
    import wandb

    wandb.init(mode="offline", dir=str(folder), project="other", reinit="finish_previous")


def stop_server(folder: Path, server: int) -> None:
    os.kill(server, signal.SIGKILL)


def freeze_server(folder: Path, server: int) -> None:
    os.kill(server, signal.SIGSTOP)


OFF = "WandbSink is switched off for the rest of the run"
ARMS = {
    "base line": Arm(sink=False),
    "healthy": Arm(),
    "folder deleted": Arm(happens=delete_folder, named=OFF),
    "disk full": Arm(happens=fill_disk, named=OFF),
    "run finished": Arm(happens=finish_run, own_run=True, named="the W&B run was finished"),
    "second init": Arm(happens=begin_another, named="another W&B run is open"),
    "online": Arm(online=True),
    "network deleted": Arm(online=True, happens=stop_server, named="tables have not reached W&B"),
    "never answers": Arm(online=True, happens=freeze_server, named="tables have not reached W&B"),
    "view answers 500": Arm(online=True, named="no view was made in W&B"),
    "webhook stalls": Arm(webhook=True, named="an alert did not reach the webhook"),
}


def train(arm: Arm, out: Path, wandb_folder: Path, server: int, options: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds of each step after the event and of the sink's calls in it, wall and CPU."""
    from transformers import TrainerCallback
    from trl import GRPOConfig

    from rlmon.lab.program import Program
    from rlmon.sinks.wandb import WandbSink
    from rlmon.sinks.webhook import WebhookSink
    from rlmon.trl import MonitoredGRPOTrainer

    kept: dict[str, list[float]] = {"wall": [], "cpu": [], "sink_wall": [], "sink_cpu": [], "longest_call": []}
    in_step: list[tuple[float, float]] = []

    def timed(sink: type[Any], name: str) -> None:
        original = getattr(sink, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            wall, cpu = time.perf_counter(), time.thread_time()
            try:
                return original(*args, **kwargs)
            finally:
                in_step.append((time.perf_counter() - wall, time.thread_time() - cpu))

        setattr(sink, name, call)

    for sink, name in itertools.product((WandbSink, WebhookSink), CALLS):
        timed(sink, name)
    at = max(2, options.steps // 4)

    class Clock(TrainerCallback):
        began = (0.0, 0.0)

        def step_ends(self, step: int) -> None:
            if step > at:
                kept["wall"].append(time.perf_counter() - self.began[0])
                kept["cpu"].append(time.process_time() - self.began[1])
                kept["sink_wall"].append(sum(wall for wall, _ in in_step))
                kept["sink_cpu"].append(sum(cpu for _, cpu in in_step))
                kept["longest_call"].append(max((wall for wall, _ in in_step), default=0.0))

        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            # A step ends where the next begins: logging is part of it.
            self.step_ends(state.global_step)
            if state.global_step == at:
                arm.happens(wandb_folder, server)
            in_step.clear()
            self.began = (time.perf_counter(), time.process_time())

        def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.step_ends(state.global_step)

    class Timed(MonitoredGRPOTrainer):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.add_callback(Clock())

    asked = {
        "config": "configs/grpo.yaml", "output_dir": out, "report_to": "wandb", "logging_steps": 1,
        "per_device_train_batch_size": options.batch, "max_steps": options.steps, "learning_rate": 5e-3,
        "disable_tqdm": True, "rlmon_table_every": 4, "rlmon_wandb": arm.sink, "seed": options.seed,
    }  # fmt: skip
    if arm.own_run:
        import wandb

        asked["report_to"] = "none"
        wandb.init()
    arguments = [part for name, value in asked.items() for part in (f"--{name}", str(value))]
    assert Program(Timed, GRPOConfig).main(arguments) == 0
    return kept


def forked(work: Callable[[], None]) -> int:
    """A process of its own group that ends after ``work``, without what would run at its end."""
    child = os.fork()
    if child:
        return child
    os.setsid()
    code = 1
    try:
        work()
        code = 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def ended(child: int) -> int:
    """Its status; it is killed after ``PATIENCE_SECONDS``."""
    patience = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < patience:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.05)
    return -1


def kill_group(leader: int) -> None:
    for name in (signal.SIGCONT, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(leader, name)


@contextlib.contextmanager
def served(arm: Arm, name: str) -> Iterator[tuple[int, str]]:
    """The process of a stand-in for the server, and its address."""
    if not arm.online:
        yield 0, ""
        return
    receives, sends = os.pipe()

    def serve() -> None:
        from fake_wandb import serving

        with serving() as server:
            if name == "view answers 500":
                server.failing |= {"View", "UpsertView2"}
            os.write(sends, server.address.encode())
            time.sleep(PATIENCE_SECONDS)

    server = forked(serve)
    try:
        yield server, os.read(receives, 100).decode()
    finally:
        os.kill(server, signal.SIGKILL)
        os.waitpid(server, 0)
        os.close(receives)
        os.close(sends)


@contextlib.contextmanager
def small_disk(folder: Path, wanted: bool) -> Iterator[None]:
    """Mount a tmpfs of 4 MB there, where it is wanted and allowed."""
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    mounted = wanted and subprocess.run(command, capture_output=True, check=False).returncode == 0
    try:
        yield
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(folder)], check=False)


def measure(name: str, options: argparse.Namespace) -> tuple[dict[str, list[float]], str]:
    """Seconds by kind, and what the console said, of one run of an arm."""
    arm = ARMS[name]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as made:
        out, wandb_folder = Path(made), Path(made) / "tracked"
        wandb_folder.mkdir()
        with small_disk(wandb_folder, name == "disk full"), served(arm, name) as (server, address):

            def work() -> None:
                said = os.open(out / "said", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
                os.dup2(said, 1)
                os.dup2(said, 2)
                os.environ |= {"WANDB_DIR": str(wandb_folder), "WANDB_MODE": "online" if arm.online else "offline"}
                os.environ |= {"WANDB_PROJECT": "project", "WANDB_ERROR_REPORTING": "false", "HOME": made}
                os.environ |= {"WANDB_API_KEY": "0" * 40, "WANDB_CONFIG_DIR": made, "WANDB_CACHE_DIR": made}
                silent = socket.create_server(("127.0.0.1", 0))  # takes connections, and nobody answers
                if arm.webhook:
                    os.environ["RLMON_WEBHOOK_URL"] = f"http://127.0.0.1:{silent.getsockname()[1]}/"
                if address:
                    os.environ |= {"WANDB_BASE_URL": address, "WANDB_ENTITY": "team"}
                kept = train(arm, out / "run", wandb_folder, server, options)
                # What is made beside the training says that it could not be, after ten seconds at most.
                patience = time.monotonic() + 20
                while (
                    arm.named and not re.search(arm.named, (out / "said").read_text()) and time.monotonic() < patience
                ):
                    time.sleep(0.2)
                (out / "kept.json").write_text(json.dumps(kept))

            child = forked(work)
            code = ended(child)
            kill_group(child)
            said = (out / "said").read_text(errors="replace")
            if code != 0:
                raise SystemExit(f"{name}: the training ended with {code}\n{said[-3000:]}")
            return json.loads((out / "kept.json").read_text()), said


def complaints(name: str, said: str) -> list[str]:
    """What is wrong with how the event was named."""
    arm = ARMS[name]
    lines = [line for line in said.splitlines() if arm.named and re.search(arm.named, line)]
    if arm.named and not lines:
        return [f"{name}: no line says {arm.named!r}"]
    return [f"{name}: said {len(lines)} times: {lines[0]}"] if len(lines) > 1 else []


def p95(values: Sequence[float]) -> float:
    return sorted(values)[min(len(values) - 1, int(0.95 * len(values)))]


def machine() -> str:
    from importlib.metadata import version

    import run

    return f"{run.machine()}, {', '.join(f'{name} {version(name)}' for name in ('wandb', 'trl', 'transformers'))}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=16, help="of each run; the event comes after a quarter of them")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each arm, each with a seed of its own")
    parser.add_argument("--batch", type=int, default=256, help="completions a step")
    parser.add_argument("--seed", type=int, default=0, help="of the first round, and of the order of the arms")
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS), help="the base line is always run")
    parser.add_argument("--show", action="store_true", help="print what each run said on the console")
    options = parser.parse_args()
    os.chdir(ROOT)

    # Once, before the runs are forked.
    import torch
    import wandb  # noqa: F401

    import rlmon.trl  # noqa: F401

    torch.set_num_threads(1)
    arms = [name for name in ARMS if name in options.arms or name == "base line"]
    print(f"{machine()}; seeds {options.seed} to {options.seed + options.rounds - 1}; load {os.getloadavg()[0]:.1f}")
    found: dict[str, dict[str, list[float]]] = {name: {} for name in arms}
    medians: dict[str, list[float]] = {name: [] for name in arms}
    wrong: list[str] = []
    order = random.Random(options.seed)
    for _ in range(options.rounds):
        for name in order.sample(arms, len(arms)):
            kept, said = measure(name, options)
            if options.show:
                print(f"--- {name}\n{said}", flush=True)
            wrong += complaints(name, said)
            medians[name].append(statistics.median(kept["cpu"]))
            for kind, values in kept.items():
                found[name].setdefault(kind, []).extend(values)
        options.seed += 1
    print(f"{'':18s}  step, ms     step CPU   the sinks, ms a step, wall      the sinks' share")
    print(f"{'':18s}  wall   CPU  / base    median    p95  longest call     wall    CPU")
    for name in arms:
        all_ = found[name]
        wall, cpu = (1e3 * statistics.median(all_[kind]) for kind in ("wall", "cpu"))
        pairs = statistics.median(a / b for a, b in zip(medians[name], medians["base line"], strict=True))
        shares = [sum(all_[f"sink_{kind}"]) / sum(all_[kind]) for kind in ("wall", "cpu")]
        sink = [1e3 * value for value in all_["sink_wall"]]
        print(
            f"{name:18s} {wall:5.0f} {cpu:5.0f}  {pairs:6.2f}  {statistics.median(sink):8.2f} {p95(sink):6.1f} "
            f"{1e3 * max(all_['longest_call']):13.1f}  {shares[0]:7.2%} {shares[1]:6.2%}",
            flush=True,
        )
        if max(shares) > LIMIT:
            wrong.append(f"{name}: {max(shares):.1%} of the step, limit {LIMIT:.0%}")
    for line in wrong:
        print(line)
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
