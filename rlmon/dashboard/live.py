"""The view beside a run that trains: made once, elsewhere, in bounded time, whatever becomes of it.

Another process asks the server. In a thread the import alone made steps of small operations 37 times as slow while it
lasted (5.2 to 192 ms), and the service that carries the run's metrics would be shared; beside a process they took as
long as before.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

from rlmon.printable import one_line

SECONDS = 10.0
"""Longest that it may take."""
BOUNDED = """
import os, sys, threading
ends = threading.Timer(float(sys.argv[1]), os._exit, (1,))
ends.daemon = True
ends.start()
sys.argv = ["rlmon", "dashboard", "wandb", sys.argv[2]]
from rlmon.cli import main
main()
"""
"""The command, which ends itself too: the training that would have ended it may be over first."""
_NOT_INHERITED = ("WANDB_SERVICE", "WANDB_MODE")
"""The training's own connection to W&B's service; and a run may be online where the environment says otherwise."""


def make_view_beside(run: Any, say: Callable[[str], None]) -> threading.Thread | None:
    """Make the view of the run's project, and say where it is, or once that there is none and why.

    Returns at once: the thread that waits is a daemon, and nobody has to join it. ``None`` where nothing is made: the
    run is not online, or wandb-workspaces is not installed.
    """
    if run.offline or run.disabled or importlib.util.find_spec("wandb_workspaces") is None:
        return None
    place = f"{run.entity}/{run.project}"
    waits = threading.Thread(
        target=_make, args=(place, str(run.settings.base_url), say), name="rlmon-wandb-view", daemon=True
    )
    waits.start()
    return waits


def _make(place: str, server: str, say: Callable[[str], None]) -> None:
    environment = {name: value for name, value in os.environ.items() if name not in _NOT_INHERITED}
    environment |= {"WANDB_BASE_URL": server, "WANDB_SILENT": "true", "WANDB_HTTP_TIMEOUT": f"{SECONDS:.0f}"}
    try:
        done = subprocess.run(
            [sys.executable, "-c", BOUNDED, str(SECONDS), place],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=SECONDS,
            env=environment,
        )
    except subprocess.TimeoutExpired:
        why = f"{server} did not answer within {SECONDS:.0f} s"
    except (OSError, ValueError) as error:
        why = str(error)
    else:
        if done.returncode == 0:
            say(one_line(f"a view of the runs of {place}: {(done.stdout.split() or ['?'])[-1]}"))
            return
        why = (done.stderr.strip().splitlines() or ["the command said nothing"])[-1].removeprefix("rlmon: ")
    say(one_line(f"no view was made in W&B: {why.rstrip('.')}. Later: rlmon dashboard wandb {place}", 600))
