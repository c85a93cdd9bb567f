"""Run all benchmarks and write ``benchmarks/RESULTS.md``: what was typed, what it printed, on which machine.

    make bench

Ends with 1 when one of them missed its limit.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BENCHMARKS: tuple[tuple[str, ...], ...] = (
    ("benchmarks/bench_monitor.py", "--flat", "2000"),
    ("benchmarks/bench_metrics.py",),
    ("benchmarks/bench_runlog.py",),
    ("benchmarks/bench_audit.py",),
)
ELSEWHERE = """\
## Measured apart

A million completions: `python benchmarks/bench_audit.py --rows 1000000`. Other tools on the same run:
`make bench-peers`.

The W&B sink, while W&B is well and while it fails: `python benchmarks/bench_sinks.py`.

On a real model (`make smollm2` once, then `python benchmarks/bench_smollm2.py`): see [docs/cost.md](../docs/cost.md).

The price of an alarm is measured by `python benchmarks/alarm_price.py` and kept in
[docs/detectors.md](../docs/detectors.md).
"""


def machine() -> str:
    cpu = platform.processor() or "unknown processor"
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if "model name" in line]
        cpu = names[0] if names else cpu
    packages = ", ".join(f"{name} {version(name)}" for name in ("numpy", "pyarrow", "torch", "duckdb"))
    return (
        f"{cpu}, {os.cpu_count()} cores, {platform.system()} {platform.machine()}, Python {platform.python_version()}, "
        f"{packages}, one thread"
    )


def main() -> int:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    environment = dict(os.environ, OMP_NUM_THREADS="1")
    page = [
        "# What the monitor costs",
        "",
        "Written by `make bench`; processor time of the whole process, medians.",
        "",
        f"{time.strftime('%Y-%m-%d')}. {machine()}.",
        "",
    ]
    missed = []
    for script, *options in BENCHMARKS:
        command = " ".join(["python", script, *options])
        print(f"$ {command}", flush=True)
        load = os.getloadavg()[0]
        done = subprocess.run(
            [sys.executable, script, *options], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
        )
        print(done.stdout + done.stderr, end="", flush=True)
        if done.returncode != 0:
            missed.append(script)
        page += [f"## `{command}`", "", "```", done.stdout.strip(), "```", ""]
        page += [f"Load of the machine when it began: {load:.1f}. Exit code {done.returncode}.", ""]
    (ROOT / "benchmarks" / "RESULTS.md").write_text("\n".join([*page, ELSEWHERE]), encoding="utf-8")
    if missed:
        print(f"over a limit, or failed: {', '.join(missed)}", file=sys.stderr)
    return int(bool(missed))


if __name__ == "__main__":
    raise SystemExit(main())
