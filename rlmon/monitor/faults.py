"""What failed of the monitor's own parts: contained, counted, and said once. Also the clock of its own cost."""

from __future__ import annotations

import contextlib
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

from rlmon.metrics.step import STAGES
from rlmon.monitor.setting import Ranks
from rlmon.printable import one_line
from rlmon.records import Fault

PLACES = (
    "capture.rollouts", "capture.tokens", "capture.vocabulary", "capture.logs", "base.tap", "base.forward",
    "base.sample",
    *(f"metrics.{stage}" for stage in STAGES), "runlog.rollouts", "runlog.passes", "runlog.steps", "runlog.events",
    "runlog.directory", "runlog.compact", "detectors", "interventions", "sinks", "subscribers", "mirror", "checkpoint",
    "collective", "elsewhere",
)  # fmt: skip
"""Where a part of the monitor can fail: a list that settings alone make, since the counts of all ranks are added."""

_PACKAGE = str(Path(__file__).parents[1])
_LIBRARIES = {"numpy", "torch", "pyarrow"}
"""Code that is called from here, in which a failure is not somebody else's."""


class Faults:
    """The faults of one rank.

    Args:
        ranks: this process among the others.
        write: takes a fault that is said for the first time, on rank 0; may raise.
        keep: keep the newest exception for whoever raises it later (``rlmon_strict``).
        console: say faults on stderr also where they were written.
    """

    places: tuple[str, ...] = PLACES
    """Those of this run: a user's parts have places of their own."""

    def __init__(self, ranks: Ranks, *, write: Callable[[Fault], None], keep: bool, console: bool) -> None:
        self.step = 0
        """The last step that ended: a new fault belongs to it."""
        self.counts: dict[str, int] = {}
        """Since the last step, by place."""
        self.totals: dict[str, int] = {}
        """Of the whole run, by place."""
        self.newest: BaseException | None = None
        self._ranks, self._write, self._keep, self._console = ranks, write, keep, console
        self._depth = 0
        self._own_seconds = 0.0

    @contextlib.contextmanager
    def guard(self, place: str) -> Iterator[None]:
        """Contain and count what fails inside; also the timer of the monitor's own cost."""
        began = time.thread_time() if self._depth == 0 else 0.0
        self._depth += 1
        try:
            yield
        except Exception as error:
            if self._keep:
                self.newest = error
            self.fault(place, error)
        finally:
            self._depth -= 1
            if self._depth == 0:
                self._own_seconds += time.thread_time() - began

    def fault(self, place: str, error: BaseException | str, count: int = 1) -> None:
        """Count a failure of ours, and say it once: in events.jsonl, and on stderr of the rank it happened on. One at
        ``place:name`` is said once for each name, and counted at ``place``."""
        known = (name for name in (place, place.partition(":")[0], "elsewhere") if name in self.places)
        counted = next(known, "elsewhere")
        self.counts[counted] = self.counts.get(counted, 0) + count
        total = self.totals.get(place, 0) + count
        self.totals[place] = total
        if total != count:
            return
        text = error if isinstance(error, str) else f"{type(error).__name__}: {error}{_of_others(error)}"
        written = False
        if self._ranks.rank == 0 and not place.startswith("runlog.events"):
            with contextlib.suppress(Exception):
                self._write(Fault(place=place, step=self.step, rank=self._ranks.rank, error=text[:500], count=total))
                written = True
        if self._console or not written:
            with contextlib.suppress(Exception):
                print(f"rlmon FAULT {place} (rank {self._ranks.rank}): {one_line(text)}", file=sys.stderr, flush=True)

    def not_ours(self, seconds: float) -> None:
        """Time inside of a guard that is told apart from the monitor's own (a forward pass of the base)."""
        self._own_seconds -= seconds

    def take_own_seconds(self) -> float:
        """Processor seconds in guards since the last call."""
        seconds, self._own_seconds = self._own_seconds, 0.0
        return max(0.0, seconds)


def _of_others(error: BaseException) -> str:
    """Where somebody else's code failed that was called from here, as `` (metric.py:12)``; empty where it was ours."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith("<")]
    theirs = [
        frame
        for frame in frames
        if not frame.filename.startswith(_PACKAGE) and not _LIBRARIES & set(Path(frame.filename).parts)
    ]
    last = [frame for frame in theirs if frame.filename == theirs[0].filename]
    return f" ({Path(last[-1].filename).name}:{last[-1].lineno})" if last else ""
