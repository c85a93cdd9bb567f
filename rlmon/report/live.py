"""What is known of a run while its log grows: each line is read once, and nothing kept grows with the run.

The log may not be there yet, may end in half a line, may be replaced or continued by another attempt: whatever can no
longer be continued is read again from its beginning.
"""

from __future__ import annotations

import math
import os
import stat
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import rlmon.detectors as detectors
import rlmon.runlog.layout as layout
import rlmon.runlog.lines as lines
from rlmon.acts import Act, act_of
from rlmon.baseline import Baseline
from rlmon.errors import ConfigError, RunLogError
from rlmon.printable import one_line
from rlmon.records import StepRecord

HEADLINE: Mapping[str, str] = {
    "rlmon/health/reward_mean": "reward",
    "rlmon/entropy/mean": "entropy",
    "rlmon/kl/mean": "KL to the base",
    "rlmon/value/explained_variance": "explained variance",
    "rlmon/value/loss": "value loss",
    "rlmon/format/effective": "formats in use",
    "rlmon/format/top_share": "largest format",
    "rlmon/collision/template_across_effective": "templates in use",
    "rlmon/moves/effective_across": "ways to begin a sentence",
    "rlmon/group/all_good": "groups all good",
    "rlmon/group/all_bad": "groups all bad",
    "rlmon/group/lone_success_weight": "weight of lucky one-offs",
    "rlmon/health/length_mean": "length",
    "rlmon/health/truncated": "truncated",
}
SHARE = "rlmon/format/share/"
BINS = 256
"""Values kept per metric; when they are full, neighbours are averaged."""
NOW_VALUES = 5
RATE_STEPS = 20
FINDINGS_SHOWN = 5
ACTS_KEPT = 512
"""Newest acts of the policy that are told apart; older ones are only counted."""
MAX_NAMES = 256
"""Modes and places of faults that are told apart: both are names from the log."""
MAX_LINE_BYTES = 32 << 20
PIECE_BYTES = 1 << 20
COMPARED_BYTES = 256
POLL_SECONDS = 1.0
"""A long log is read in turns of this length, so that the screen shows how far it got."""


class Tail:
    """The lines of a growing file, each once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.replaced = False
        """The file is another one, or shorter than what was read of it: what was made of it no longer holds."""
        self.torn = 0
        """Lines that were passed over because they are too long."""
        self.behind_bytes = 0
        """Bytes after the last line that was given out."""
        self._offset = 0
        self._before = b""
        """The last bytes before the offset: where others stand there now, the file was replaced or written anew."""
        self._skipping = False

    def lines(self) -> Iterator[bytes]:
        """Complete lines that came since the last call. What follows the last newline waits for its end."""
        try:
            fd = os.open(self.path, os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0))
        except OSError:
            self.replaced = self._offset > 0
            return
        try:
            about = os.fstat(fd)
            if not stat.S_ISREG(about.st_mode):
                return
            os.lseek(fd, self._offset - len(self._before), os.SEEK_SET)
            self.replaced = os.read(fd, len(self._before)) != self._before
            if self.replaced:
                return
            waiting = b""
            while piece := os.read(fd, PIECE_BYTES):
                self.behind_bytes = max(about.st_size - self._offset, 0)
                *whole, waiting = (waiting + piece).split(b"\n")
                for line in whole:
                    self._passed(line + b"\n")
                    if self._skipping:
                        self._skipping = False
                        continue
                    yield line
                if len(waiting) > MAX_LINE_BYTES:
                    self.torn += not self._skipping
                    self._skipping = True
                    self._passed(waiting)
                    waiting = b""
            self.behind_bytes = 0
        finally:
            os.close(fd)

    def _passed(self, data: bytes) -> None:
        self._offset += len(data)
        self._before = (self._before + data[-COMPARED_BYTES:])[-COMPARED_BYTES:]


@dataclass(slots=True)
class Strip:
    """One metric over the run in at most ``BINS`` means, its base and its newest values."""

    bins: list[float] = field(default_factory=list)
    per_bin: int = 1
    open_sum: float = 0.0
    open_count: int = 0
    base_sum: float = 0.0
    base_count: int = 0
    newest: deque[float] = field(default_factory=lambda: deque(maxlen=NOW_VALUES))

    def add(self, value: float, *, base: bool) -> None:
        """The next measured value; ``base``: it belongs to the baseline."""
        self.newest.append(value)
        if base:
            self.base_sum += value
            self.base_count += 1
        self.open_sum += value
        self.open_count += 1
        if self.open_count == self.per_bin:
            self.bins.append(self.open_sum / self.open_count)
            self.open_sum, self.open_count = 0.0, 0
            if len(self.bins) == BINS:
                self.bins = [(a + b) / 2 for a, b in zip(self.bins[::2], self.bins[1::2], strict=True)]
                self.per_bin *= 2

    @property
    def base(self) -> float | None:
        """Mean over the baseline; ``None`` before its first value."""
        return self.base_sum / self.base_count if self.base_count else None

    @property
    def now(self) -> float | None:
        """Mean of the newest values."""
        return sum(self.newest) / len(self.newest) if self.newest else None

    def values(self) -> list[float]:
        """The means in order, the last one perhaps of fewer values."""
        return [*self.bins, self.open_sum / self.open_count] if self.open_count else list(self.bins)


class View:
    """What is known of a run so far. ``poll`` brings it up to date.

    ``states``: whether the detectors are folded too, which tells how near each is to speaking. What they have said is
    in the log; without their states it is read six times as fast.
    """

    def __init__(self, path: Path, *, states: bool = True) -> None:
        self.given = path
        self._states = states
        self.folder: Path | None = None
        """Where the log is; ``None`` while there is none."""
        self.attempts: tuple[layout.Attempt, ...] = ()
        self.first_steps: dict[int, int] = {}
        self._reset()

    def _reset(self) -> None:
        folder = self.folder or self.given
        self.steps_file = Tail(folder / layout.STEPS_FILE)
        self.events_file = Tail(folder / layout.EVENTS_FILE)
        self.last_step: dict[int, float] = {}
        self.strips: dict[str, Strip] = {}
        self.shares: dict[str, float] = {}
        """Of the newest step that had completions."""
        self.newest: StepRecord | None = None
        self.recent: deque[tuple[int, float]] = deque(maxlen=RATE_STEPS + 1)
        """Step and time of the newest records of the newest attempt."""
        self.baseline = Baseline()
        self.completions = 0
        self.shed_rows = 0
        self.findings: deque[Mapping[str, Any]] = deque(maxlen=FINDINGS_SHOWN)
        self.finding_counts: Counter[str] = Counter()
        self.acts: dict[Any, Act] = {}
        """By ``action_id``, in the order in which they were decided."""
        self.act_count = 0
        self.faults: Counter[str] = Counter()
        self.fault_errors: dict[str, str] = {}
        self.torn = 0
        self.ended = False
        self.detectors: detectors.DetectorState | None = None
        self.no_detectors = ""
        """Why the detectors' states are not known."""

    def poll(self) -> bool:
        """Read what is new. True where more is there than one turn could read."""
        if not self._find():
            return False
        began = time.monotonic()
        for file, fold in ((self.steps_file, self._fold_step), (self.events_file, self._fold_event)):
            for line in file.lines():
                values = lines.parse_line(line)
                if values is None or not fold(values):
                    self.torn += 1
                begun_anew = file not in (self.steps_file, self.events_file)
                if begun_anew or time.monotonic() - began > POLL_SECONDS:
                    return True
            if file.replaced:
                self._begin()
                return True
        return False

    def _find(self) -> bool:
        for candidate in (self.given, self.given / "rlmon"):
            attempts = layout.read_attempts(candidate)
            if attempts:
                break
        else:
            # It may have been moved away to make room for another one: what was seen stays on the screen.
            return False
        marks = [(a.header.run_id, a.header.attempt, a.header.created_unix_seconds, a.from_step) for a in attempts]
        known = [(a.header.run_id, a.header.attempt, a.header.created_unix_seconds, a.from_step) for a in self.attempts]
        if candidate != self.folder or marks != known:
            self.folder, self.attempts = candidate, attempts
            self.first_steps = {}
            self._begin()
        return True

    def _begin(self) -> None:
        """Read from the beginning, with what is known of the attempts now."""
        self._reset()
        self.last_step = layout.last_steps(self.attempts, self.first_steps)
        header = self.attempts[-1].header
        if not self._states:
            self.no_detectors = "not asked for"
            return
        try:
            if header.detectors:
                self.detectors = detectors.start_from(header.detectors)
            else:
                self.no_detectors = "the run has none"
        except (ConfigError, KeyError, TypeError) as error:
            self.no_detectors = one_line(str(error), 200)

    # ---- one line each

    def _fold_step(self, values: dict[str, Any]) -> bool:
        try:
            record = lines.build_step(values)
        except (RunLogError, TypeError, AttributeError):
            return False
        if not _sound(record):
            return False
        attempt, step = record.attempt, record.step
        if attempt not in self.first_steps:
            self.first_steps[attempt] = step
            if any(a.header.attempt == attempt and a.from_step is None for a in self.attempts[1:]):
                # Only now is it known which steps of older attempts it supersedes.
                self._begin()
                return True
        if step > self.last_step.get(attempt, -1):
            return True
        if self.newest is not None and self.newest.attempt != attempt:
            self.recent.clear()
        self.newest = record
        self.ended = False
        self.recent.append((step, record.time_unix_seconds))
        self.completions += record.completions
        self.shed_rows = record.shed_rows
        for place, count in record.faults.items():
            if place in self.faults or len(self.faults) < MAX_NAMES:
                self.faults[place] += count
        self._fold_metrics(record)
        if self.detectors is not None:
            self.detectors, _ = detectors.step(self.detectors, record)
        return True

    def _fold_metrics(self, record: StepRecord) -> None:
        base = not self.baseline.complete
        shares: dict[str, float] = {}
        for name, value in record.metrics.items():
            if value is None or not finite(value):
                continue
            if name.startswith(SHARE):
                shares[name.removeprefix(SHARE)] = value
            elif name not in HEADLINE:
                continue
            if name in self.strips or len(self.strips) < MAX_NAMES:
                strip = self.strips.setdefault(name, Strip())
                # KL is not measured at every step: its first value stands for the base. A new format has none.
                late = not strip.base_count and not name.startswith(SHARE)
                strip.add(float(value), base=base or late)
        if shares:
            self.shares = shares
        self.baseline = self.baseline.with_round(prompts=record.prompts, completions=record.completions)

    def _fold_event(self, values: dict[str, Any]) -> bool:
        kind, payload, attempt = values.get("kind"), values.get("payload"), values.get("attempt")
        if not isinstance(payload, dict) or not isinstance(attempt, int):
            return False
        step = payload.get("step")
        if attempt not in self.last_step or (isinstance(step, int) and step > self.last_step[attempt]):
            return True
        if kind == "finding":
            self.findings.append(payload)
            self.finding_counts[str(payload.get("severity"))[:10]] += 1
        elif kind == "action":
            self._fold_action(payload)
        elif kind == "fault":
            place = str(payload.get("place"))
            if place in self.fault_errors or len(self.fault_errors) < MAX_NAMES:
                self.fault_errors[place] = str(payload.get("error"))
        elif kind == "ended":
            self.ended = True
        return True

    def _fold_action(self, payload: Mapping[str, Any]) -> None:
        key = payload.get("action_id")
        key = key if isinstance(key, str) else self.act_count
        before = self.acts.get(key)
        if before is None:
            if payload.get("phase") == "measured":  # of an act that is no longer kept
                return
            self.act_count += 1
            if len(self.acts) >= ACTS_KEPT:
                del self.acts[next(iter(self.acts))]
        self.acts[key] = act_of(payload, before)


def _sound(record: StepRecord) -> bool:
    """Whether the types are those of a record: the log may come from elsewhere."""
    counts = (record.attempt, record.step, record.completions, record.prompts, record.shed_rows)
    return (
        all(type(value) is int for value in counts)
        and finite(record.time_unix_seconds)
        and isinstance(record.metrics, dict)
        and isinstance(record.faults, dict)
        and all(type(value) is int for value in record.faults.values())
        and isinstance(record.sources, dict)
        and all(isinstance(name, str) for name in record.sources.values())
        and all(
            isinstance(block.source, str)
            and isinstance(block.stats, dict)
            and finite(block.prompts)
            and finite(block.completions)
            for block in (*record.blocks, *(() if record.base is None else record.base.blocks))
        )
        and (record.base is None or type(record.base.completions) is int)
    )


def finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)
