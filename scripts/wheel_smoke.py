"""Build the wheel, install it with its core dependencies alone, and use it from somewhere else.

What this catches and the tests cannot: they run from the checkout with everything installed. Here are no torch,
no TRL and no checkout: only what a user of ``pip install rlmon`` has.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

PROBE = """
import importlib.util, sys
import rlmon
assert "site-packages" in rlmon.__file__, rlmon.__file__
for name in ("trainers", "tests", "configs", "scripts", "benchmarks"):
    assert importlib.util.find_spec(name) is None, f"the wheel brings a top-level {name}"
for name in ("torch", "trl", "transformers"):
    assert importlib.util.find_spec(name) is None, f"{name} is no core dependency"
rlmon.open_run, rlmon.RLMonConfig, rlmon.Monitor
print("rlmon", rlmon.__version__, "imports without torch, trl and transformers")
"""


def run(*command: str, cwd: Path) -> str:
    """Standard output of a command; the command's own words are shown when it fails."""
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)} ended with {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done.stdout


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="rlmon-wheel-") as folder:
        scratch = Path(folder)
        run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(scratch), cwd=ROOT)
        (wheel,) = scratch.glob("*.whl")
        names = zipfile.ZipFile(wheel).namelist()
        tops = {name.split("/")[0] for name in names}
        assert tops == {"rlmon", *(top for top in tops if top.endswith(".dist-info"))}, tops
        in_tree = {
            path.relative_to(ROOT).as_posix()
            for path in (ROOT / "rlmon").rglob("*")
            if path.is_file() and "__pycache__" not in path.parts
        }
        assert in_tree <= set(names), f"not in the wheel: {sorted(in_tree - set(names))}"

        run(sys.executable, "-m", "venv", str(scratch / "venv"), cwd=scratch)
        python = str(scratch / "venv" / "bin" / "python")
        constraints = str(ROOT / "constraints.txt")
        run(python, "-m", "pip", "install", "--quiet", "-c", constraints, str(wheel), cwd=scratch)
        print(run(python, "-c", PROBE, cwd=scratch).strip())
        command = str(scratch / "venv" / "bin" / "rlmon")
        run_of_trl = str(ROOT / "tests" / "golden" / "foreign" / "trl")
        audited = ["audit", run_of_trl, "--format", "json", "--fail-on", "never"]
        for arguments in (["--help"], ["--version"], ["metrics"], ["detectors"], audited, ["report", run_of_trl]):
            assert run(command, *arguments, cwd=scratch).strip(), arguments
        print(
            f"wheel: {wheel.name}, {wheel.stat().st_size / 1e6:.2f} MB, {len(names)} files; an audit runs without torch"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
