"""The TRL tests on other versions of TRL, beside one environment.

    python scripts/test_matrix.py 1.8.0 1.12.0 1.16.0

TRL is pure Python: an older wheel, unpacked and put first on PYTHONPATH, stands in for the installed one while
torch and transformers stay. The installed version itself is not fetched.
"""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CACHE = ROOT / ".cache"


def unpacked(trl: str) -> Path:
    """Folder that holds the package of this TRL version; fetched at first use."""
    folder = CACHE / f"trl-{trl}"
    if not (folder / "trl").is_dir():
        wheels = CACHE / "wheels"
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", f"trl=={trl}", "-d", str(wheels)]
        subprocess.run(pip, check=True)
        with zipfile.ZipFile(wheels / f"trl-{trl}-py3-none-any.whl") as wheel:
            wheel.extractall(folder)
    return folder


def main(versions: list[str]) -> int:
    if not versions:
        print(__doc__, file=sys.stderr)
        return 2
    failed = []
    for trl in versions:
        environment = dict(os.environ, EXPECTED_TRL=trl)
        if trl != version("trl"):
            environment["PYTHONPATH"] = os.pathsep.join([str(unpacked(trl)), *filter(None, [os.getenv("PYTHONPATH")])])
        print(f"== TRL {trl}", flush=True)
        pytest = [sys.executable, "-m", "pytest", "-q", "-n", "2", "--dist", "worksteal", "-m", "trl and not slow"]
        if subprocess.run(pytest, cwd=ROOT, env=environment, check=False).returncode != 0:
            failed.append(trl)
    print(f"TRL {', '.join(versions)}: " + (f"FAILED on {', '.join(failed)}" if failed else "all passed"))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
