"""Real ranks: a script in two processes, or more, that talk over loopback (gloo).

Run as a program it is the parent of the ranks: it imports once what every one of them trains with, and forks. (As
``torchrun`` does, it names each rank in the environment, and ends the others where one fails.)
"""

from __future__ import annotations

import os
import runpy
import signal
import socket
import subprocess
import sys
from pathlib import Path

LIMIT_SECONDS = 1_200.0
"""After which ranks wait for one another for ever, also on a machine that does much else."""


def run(script: Path, *arguments: str, ranks: int = 2) -> None:
    """``script`` with ``arguments`` on two ranks; fails with the end of stderr where any of them does."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    told = os.environ | {"OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    told |= {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks)}
    command = [sys.executable, __file__, str(script), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_SECONDS, check=False, env=told)
    assert done.returncode == 0, done.stderr[-3000:]


def _fork_ranks(script: str) -> int:
    import tiny  # noqa: F401  # and with it torch, Transformers and TRL

    import rlmon.trl  # noqa: F401

    ranks = set()
    for rank in range(int(os.environ["WORLD_SIZE"])):
        child = os.fork()
        if not child:
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            runpy.run_path(script, run_name="__main__")
            return 0
        ranks.add(child)
    failed = 0
    while ranks:
        rank, status = os.wait()
        ranks.remove(rank)
        if status and not failed:
            failed = 1
            for other in ranks:
                os.kill(other, signal.SIGTERM)
    return failed


if __name__ == "__main__":
    sys.argv = sys.argv[1:]
    sys.exit(_fork_ranks(sys.argv[0]))
