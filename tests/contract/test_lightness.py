"""``import rlmon`` and ``rlmon --help`` are light; each check has a twin that shows it can fail."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CPU_SECONDS = 0.4
HEAVY = ("torch", "trl", "transformers", "datasets", "pandas", "wandb", "pyarrow", "numpy", "scipy", "jaxtyping")


def loaded(statement: str, suspects: tuple[str, ...] = HEAVY) -> list[str]:
    """Which of ``suspects`` a fresh interpreter holds after running ``statement``."""
    code = f"{statement}\nimport sys\nprint([name for name in {suspects!r} if name in sys.modules])"
    found: list[str] = eval(run(["-c", code]))
    return found


def run(arguments: list[str]) -> str:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, cwd="/")
    return done.stdout


def cpu_seconds(arguments: list[str]) -> float:
    """Processor time of the quickest of five runs: what the code needs, not what the machine was busy with."""
    times = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        run(arguments)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return min(times)


HELP = """
import contextlib, io, sys
sys.argv = ["rlmon", "--help"]
from rlmon.cli import main
with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
    main()
"""


def test_import_rlmon_loads_nothing_heavy() -> None:
    assert loaded("import rlmon") == []
    assert cpu_seconds(["-c", "import rlmon"]) < CPU_SECONDS


def test_rlmon_help_loads_nothing_heavy() -> None:
    help_text = run(["-m", "rlmon.cli", "--help"])
    for command in ("demo", "check", "audit", "report", "compare", "watch", "serve", "show", "metrics", "detectors"):
        assert f"\n  {command} " in help_text
    silenced = (
        f"import io, contextlib\nwith contextlib.redirect_stdout(io.StringIO()):\n    {HELP!r}\n    exec({HELP!r})"
    )
    assert loaded(silenced) == []
    assert cpu_seconds(["-m", "rlmon.cli", "--help"]) < CPU_SECONDS


def test_the_check_of_modules_can_fail() -> None:
    assert loaded("import numpy") == ["numpy"]
    assert "pyarrow" in loaded("import rlmon\nrlmon.open_run")


def test_the_check_of_time_can_fail() -> None:
    assert cpu_seconds(["-c", f"import time\nwhile time.process_time() < {CPU_SECONDS}: pass"]) >= CPU_SECONDS


@pytest.mark.parametrize(
    "module",
    ["rlmon.records", "rlmon.config", "rlmon.metrics.catalog", "rlmon.metrics.tokens", "rlmon.detectors",
     "rlmon.runlog", "rlmon.monitor", "rlmon.sinks.terminal", "rlmon.sinks.wandb", "rlmon.report", "rlmon.audit.engine",
     "rlmon.report.terminal", "rlmon.report.watch", "rlmon.report.show", "rlmon.report.audit", "rlmon.cli",
     "rlmon.blending", "rlmon.blending.curve", "rlmon.probing.probe", "rlmon.probing.page"],
)  # fmt: skip
def test_no_training_library_below_the_trl_room(module: str) -> None:
    assert loaded(f"import {module}", ("torch", "trl", "transformers", "datasets", "pandas", "wandb")) == []


def test_unknown_names_of_the_package_are_refused() -> None:
    import rlmon

    with pytest.raises(AttributeError, match="'Monitr'; it has Monitor, RLMonConfig, audit, blend, open_run"):
        rlmon.Monitr  # noqa: B018
    assert {"Monitor", "RLMonConfig", "open_run"} <= set(dir(rlmon))
    assert rlmon.RLMonConfig is __import__("rlmon.config", fromlist=["RLMonConfig"]).RLMonConfig
