"""A process with an alert on its way to a server that is silent: it ends, is interrupted, or forks and ends.

Run by ``test_webhook_faults``. Prints how long the end waited, and when it was over.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

from made_header import made_header
from made_records import made_step

from rlmon.sinks.posting import webhook_of
from rlmon.sinks.webhook import WebhookSink


def main(how: str) -> None:
    # A process that is started in the background ignores it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    webhook = webhook_of(os.environ)
    assert webhook is not None
    sink = WebhookSink(webhook)
    sink.open(made_header())
    sink.record(made_step(1, faults={"metrics.text": 1}), {})
    if how == "interrupted":
        with contextlib.suppress(KeyboardInterrupt):
            time.sleep(50)
    if how == "forks":
        # As a worker of a data loader: it has no such thread, and ends as ever.
        time.sleep(0.5)
        child = os.fork()
        if child == 0:
            sys.exit(0)
        assert os.waitpid(child, 0)[1] == 0
    began = time.time()
    sink.close()
    ended = time.time()
    print(ended - began, ended, flush=True)


main(sys.argv[1])
