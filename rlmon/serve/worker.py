"""One process beside the server that audits runs: a large one holds no page up, and one that takes the process down
with it costs that audit alone."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import time
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

from rlmon.errors import RLMonError
from rlmon.printable import one_line
from rlmon.report.audit import Served

NICENESS = 10
"""The machine may be training."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Told:
    """What an audit came to, or why there is none."""

    problem: str = ""
    """Why the run could not be read; everything else is empty then."""
    verdict: str = ""
    said: str = ""
    reader: str = ""
    steps: int | None = None
    """The last step."""
    curves: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """By metric, for small pictures."""
    page: bytes = b""
    """The page, compressed by zlib."""
    seconds: float = 0.0


def tell(path: Path, served: Served) -> Told:
    """Audit a run in this process; nothing is raised for a run that cannot be read."""
    import rlmon.audit.engine as engine
    from rlmon.audit.overview import CURVES, overview
    from rlmon.report.audit import build_page

    began = time.perf_counter()
    try:
        # One process: training beside this one keeps its cores.
        audit = engine.audit(path, processes=1)
        [line] = overview([audit])
        page = zlib.compress(build_page(audit, served).encode("utf-8"), 6)
    except RLMonError as error:
        return Told(problem=one_line(str(error)), seconds=time.perf_counter() - began)
    except Exception as error:  # a mistake of rlmon's own costs this run's page, not the others'
        said = f"a mistake of rlmon's own, please report it: {type(error).__name__}: {error}"
        return Told(problem=one_line(said), seconds=time.perf_counter() - began)
    names = dict.fromkeys([CURVES[0], line.metric or CURVES[1], *CURVES])
    measured = {name: [v for v in audit.series.get(name, ()) if v is not None] for name in names}
    return Told(
        verdict=audit.verdict,
        said=one_line(line.said or audit.headline),
        reader=audit.run.reader,
        steps=audit.run.last_step,
        curves={name: values for name, values in measured.items() if len(values) > 1},
        page=page,
        seconds=time.perf_counter() - began,
    )


def _work(orders: Connection) -> None:
    from rlmon.audit.counting import spare_pandas

    for one in (signal.SIGINT, signal.SIGTERM):  # the server ends this process, and Ctrl-C reaches both
        signal.signal(one, signal.SIG_IGN)
    with contextlib.suppress(OSError, AttributeError):
        os.nice(NICENESS)
    spare_pandas()
    with contextlib.suppress(EOFError, OSError):
        while True:
            orders.send(tell(*orders.recv()))


class Worker:
    """The process, begun when it is first needed and again after it died. Used by one thread."""

    def __init__(self) -> None:
        self._process: multiprocessing.process.BaseProcess | None = None
        self._orders: Connection | None = None

    def tell(self, path: Path, served: Served) -> Told:
        """``tell`` in the other process."""
        began = time.perf_counter()
        try:
            orders = self._begun()
            orders.send((path, served))
            told = orders.recv()
        except (EOFError, OSError) as error:
            self.end()
            why = (
                "the process that audits it died, perhaps for want of memory" if isinstance(error, EOFError) else error
            )
            return Told(problem=f"it could not be audited: {why}", seconds=time.perf_counter() - began)
        if not isinstance(told, Told):
            raise TypeError(f"the worker sent {type(told).__name__}, and no Told")
        return told

    def _begun(self) -> Connection:
        if self._orders is None:
            context = multiprocessing.get_context("spawn")  # not fork: this process has threads
            ours, theirs = context.Pipe()
            self._process = context.Process(target=_work, args=(theirs,), name="rlmon audits", daemon=True)
            self._process.start()
            theirs.close()
            self._orders = ours
        return self._orders

    def end(self) -> None:
        """End the process, in the middle of an audit too: it writes nothing."""
        process, orders = self._process, self._orders
        self._process = self._orders = None
        if process is not None:
            process.kill()
            process.join(5)
        if orders is not None:
            orders.close()
