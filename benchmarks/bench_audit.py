"""What `rlmon audit` costs on 100,000 completions (2,000 steps of 50), and beside it the floor: reading them at all.

    python benchmarks/bench_audit.py [--rows 1000000] [--repeat 3]

Every line is a process of its own from start to end: wall and processor seconds (its children included) are medians,
memory is the highest sum over its process tree in one more run (proportional set size where the system has it).
``--rows`` adds a larger run, whose processor time per row is held against that of the smaller one. Ends with 1 when
over a limit.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import audit_workload
import psutil

ROOT = Path(__file__).resolve().parents[1]
CACHE = ROOT / ".cache" / "bench-audit"
GIB = 1 << 30
LOOK_SECONDS = 0.02
ROWS = 100_000
SHORT_ROWS = 10_000
"""200 steps: a run as one looks at it while it is young."""
PER_ROW_LIMIT = 1.1
"""Processor time per row of the larger run, in that of the smaller one: it does not depend on who else computes."""
THREADS = 2

DUCKDB = """
import sys, duckdb
base = duckdb.connect(config={"threads": %d})
source = sys.argv[1]
if source.endswith(".jsonl"):
    table = "read_json(?, format='newline_delimited', columns={'completion': 'VARCHAR'})"
else:
    table = "read_parquet(?)"
print(*base.execute(f"SELECT count(*), sum(length(completion)) FROM {table}", [source]).fetchone())
"""


@dataclass(frozen=True)
class Limit:
    """What an audit may cost."""

    wall_seconds: float
    processor_seconds: float | None
    memory_bytes: float


LIMITS = {100_000: Limit(5.0, 10.0, 1.0 * GIB), 1_000_000: Limit(50.0, None, 1.5 * GIB)}


@dataclass(frozen=True)
class Cost:
    """What one command cost."""

    wall_seconds: float
    processor_seconds: float
    memory_bytes: int
    output: bytes


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=ROWS, help="also a run of this many rows")
    parser.add_argument("--repeat", type=int, default=3)
    arguments = parser.parse_args()
    rlmon = [sys.executable, "-m", "rlmon.cli"]
    missed: list[str] = []
    print(f"{'command':46s} {'wall s':>7s} {'CPU s':>7s} {'MiB':>6s} {'rows/s':>9s}")

    def row(name: str, command: Sequence[str], rows: int | None = None, repeat: int = arguments.repeat) -> Cost:
        cost = measured(command, repeat)
        speed = "" if rows is None else f"{rows / cost.wall_seconds:9,.0f}"
        print(
            f"{name:46s} {cost.wall_seconds:7.2f} {cost.processor_seconds:7.2f} "
            f"{cost.memory_bytes / (1 << 20):6.0f} {speed:>9s}",
            flush=True,
        )
        return cost

    row("python -c pass", [sys.executable, "-c", "pass"])
    row("python -c 'import numpy'", [sys.executable, "-c", "import numpy"])
    row("python -c 'import pyarrow.parquet'", [sys.executable, "-c", "import pyarrow.parquet"])
    row("rlmon --help", [*rlmon, "--help"])
    short = written(SHORT_ROWS, "trl", audit_workload.write_trl)
    row("rlmon audit, 200 steps, to the terminal", [*rlmon, "audit", str(short)], SHORT_ROWS)
    per_row: dict[str, float] = {}
    for rows in sorted({ROWS, arguments.rows}):
        repeat = arguments.repeat if rows <= ROWS else 1
        parquet = written(rows, "trl", audit_workload.write_trl)
        lines = written(rows, "rows.jsonl", audit_workload.write_jsonl)
        for layout, source, files in (
            ("Parquet", parquet, str(parquet / "completions" / "*.parquet")),
            ("JSONL", lines, str(lines)),
        ):
            name = f"{rows:,} rows, {layout}"
            row(f"{name}: DuckDB, lengths", [sys.executable, "-c", DUCKDB % THREADS, files], rows, repeat)
            cost = row(f"{name}: rlmon audit", [*rlmon, "audit", str(source), "--format", "json"], rows, repeat)
            found = json.loads(cost.output)["run"]["completions"]
            if found != rows:
                missed.append(f"{name}: {found:,} of {rows:,} rows were audited")
            missed += over(name, cost, LIMITS.get(rows))
            each = cost.processor_seconds / rows
            growth = each / per_row.setdefault(layout, each)
            if growth > PER_ROW_LIMIT:
                missed.append(f"{name}: {growth:.2f} of the processor time per row of the smaller run")
    print(f"cores {os.cpu_count()}, load {os.getloadavg()[0]:.1f}, medians of {arguments.repeat}; largest run: one")
    for what in missed:
        print(f"over a limit: {what}")
    return int(bool(missed))


def over(name: str, cost: Cost, limit: Limit | None) -> list[str]:
    """What of a cost is above its limit, in words."""
    if limit is None:
        return []
    found = (
        ("wall seconds", cost.wall_seconds, limit.wall_seconds),
        ("CPU seconds", cost.processor_seconds, limit.processor_seconds),
        ("GiB", cost.memory_bytes / GIB, limit.memory_bytes / GIB),
    )
    return [
        f"{name}: {value:.2f} {unit}, limit {most:g}"
        for unit, value, most in found
        if most is not None and value > most
    ]


def written(rows: int, name: str, write: Callable[[Path, int], None]) -> Path:
    """A run of ``rows`` rows under ``.cache/``, written once for every version of the workload."""
    version = hashlib.sha256(Path(audit_workload.__file__).read_bytes()).hexdigest()[:8]
    place = CACHE / f"{version}-{rows}" / name
    if not place.exists():
        place.parent.mkdir(parents=True, exist_ok=True)
        half = Path(tempfile.mkdtemp(dir=place.parent))
        write(half / name, rows)
        os.replace(half / name, place)
        shutil.rmtree(half)
    return place


def measured(command: Sequence[str], repeat: int) -> Cost:
    """Median times of ``repeat`` runs, and the memory of one more: looking at it takes time from what is looked at."""
    runs = [_run(command) for _ in range(repeat)]
    memory, output = _memory(command)
    return Cost(
        wall_seconds=statistics.median(wall for wall, _ in runs),
        processor_seconds=statistics.median(processor for _, processor in runs),
        memory_bytes=memory,
        output=output,
    )


def _run(command: Sequence[str]) -> tuple[float, float]:
    """Wall seconds, and processor seconds of the process and of those it started and waited for."""
    began = time.perf_counter()
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    wall = time.perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    _expect(command, process.returncode)
    return wall, used.ru_utime + used.ru_stime


def _memory(command: Sequence[str]) -> tuple[int, bytes]:
    """The highest sum over the process tree, in bytes, and what the command printed."""
    with tempfile.TemporaryFile() as printed:
        process = psutil.Popen(command, cwd=ROOT, stdout=printed)
        most = 0
        while process.poll() is None:
            most = max(most, _of_tree(process))
            time.sleep(LOOK_SECONDS)
        _expect(command, process.returncode)
        printed.seek(0)
        return most, printed.read()


def _of_tree(process: psutil.Process) -> int:
    try:
        return sum(_held(one) for one in [process, *process.children(recursive=True)])
    except psutil.NoSuchProcess:
        return 0


def _held(process: psutil.Process) -> int:
    """Bytes of a process; pages that several share count in parts where the system says so."""
    try:
        with open(f"/proc/{process.pid}/smaps_rollup", encoding="ascii") as file:
            return next((int(line.split()[1]) << 10 for line in file if line.startswith("Pss:")), 0)
    except OSError:
        pass
    try:
        return int(process.memory_info().rss)
    except psutil.Error:
        return 0


def _expect(command: Sequence[str], code: int) -> None:
    # 1 is a verdict of the audit.
    if code not in (0, 1):
        raise SystemExit(f"{' '.join(command)} ended with {code}")


if __name__ == "__main__":
    raise SystemExit(main())
