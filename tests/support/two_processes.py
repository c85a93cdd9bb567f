"""Real ranks: a script in two processes, or more, that talk over loopback (gloo)."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

LIMIT_SECONDS = 1_200.0
"""After which ranks wait for one another for ever, also on a machine that does much else."""


def run(
    script: Path,
    *arguments: str,
    environment: Mapping[str, str] | None = None,
    ranks: int = 2,
) -> None:
    """``script`` with ``arguments`` on two ranks; fails with the end of stderr where any of them does."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(ranks)]
    command += ["--master_addr", "127.0.0.1", "--master_port", str(port), str(script), *arguments]
    told = os.environ | {"OMP_NUM_THREADS": "1"} | dict(environment or {})
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_SECONDS, check=False, env=told)
    assert done.returncode == 0, done.stderr[-3000:]
