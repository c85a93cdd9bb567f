"""What is known of the runs, and what is looked at again. Nothing happens but when somebody asks.

A run whose files have not changed costs a look at their sizes and times. One that changed: the new lines of its log are
read at once, and it is audited again in the worker, at most every ``least_seconds`` while its page is open, more rarely
while only the list is, and never so that audits take more than a tenth of the time.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import threading
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import rlmon.audit.readers.rlmon_log as rlmon_log
from rlmon.audit.overview import CURVES
from rlmon.errors import RLMonError
from rlmon.printable import one_line
from rlmon.report.audit import Served
from rlmon.report.charts import metric_title
from rlmon.report.live import HEADLINE, View
from rlmon.report.page import json_for_html
from rlmon.serve.places import Mark, Place, mark, places
from rlmon.serve.worker import Told, Worker

LEAST_SECONDS = 4.0
LIST_SECONDS = 60.0
"""The same for a run of which only the line in the list is looked at."""
SHARE = 10
"""Audits take at most one part in so many of the time, looks at the files one in ten times as many."""
LOOK_SECONDS, FIND_SECONDS = 1.0, 5.0
READING_SECONDS = 0.4
"""New lines of logs are read for so long before the list is shown; the rest at the next look."""
WATCHED_SECONDS = 20.0
"""Whoever asked so long ago is looking still: pages ask every few seconds."""
UNASKED_BYTES = 256 << 20
"""A larger run is audited when its page is opened, not for the list."""
POINTS = 60
CURVES_SHOWN = 2
GRAVE = ("fail", "warn")
NO_FILES = Mark(version="", bytes=0, changed_unix_seconds=0.0, refused="")


@dataclass
class Entry:
    """What is known of one run."""

    place: Place
    mark: Mark = NO_FILES
    marked_at: float = -math.inf
    mark_seconds: float = 0.0
    view: View | None = None
    """Of an rlmon log."""
    viewed: str = ""
    """Version up to which the log was read."""
    problem: str = ""
    told: Told | None = None
    told_mark: Mark | None = None
    told_at: float = -math.inf
    opened_at: float = -math.inf
    """When its page was last asked for."""

    @property
    def stale(self) -> bool:
        """Whether there is no audit of its files as they are."""
        return self.told_mark is None or self.told_mark.version != self.mark.version

    def due(self, now: float, least_seconds: float) -> bool:
        """Whether it is to be audited (again) now."""
        return (
            self.stale
            and not self.mark.refused
            and now - self.told_at >= max(least_seconds, 0.0 if self.told is None else SHARE * self.told.seconds)
        )


class Desk:
    """The runs below one folder. Threads may call it at the same time."""

    def __init__(self, root: Path, *, least_seconds: float = LEAST_SECONDS) -> None:
        self.root = root.resolve()
        self._least = least_seconds
        self._entries: dict[str, Entry] = {}
        self._lock = threading.Condition()
        self._find_at = self._look_at = -math.inf
        self._listed_at = -math.inf
        self._closed = False
        self._worker = Worker()
        self._auditor = threading.Thread(target=self._audit, name="rlmon audits", daemon=True)
        self._auditor.start()

    # ---- asked by requests

    def listing(self) -> tuple[dict[str, Any], str]:
        """The list of all runs, newest first, as JSON types, and its version."""
        with self._lock:
            self._listed_at = time.monotonic()
            self._look()
            self._lock.notify_all()
            entries = sorted(self._entries.values(), key=lambda e: (-e.mark.changed_unix_seconds, e.place.name))
            rows = [_row(entry) for entry in entries]
        listing = {"folder": one_line(str(self.root), 200), "runs": rows}
        return listing, hashlib.sha256(json_for_html(listing).encode()).hexdigest()[:16]

    def version(self, key: str) -> str | None:
        """The version of a run's page as it would be shown now; ``None``: there is no such run."""
        with self._lock:
            entry = self._asked(key)
            return None if entry is None else _version(entry)

    def page(self, key: str, patience_seconds: float) -> tuple[str, str | None, dict[str, Any]] | None:
        """The version, the page where there is one, and its line in the list. Where nothing is known of the run yet it
        is waited for so long. ``None``: there is no such run."""
        until = time.monotonic() + patience_seconds
        with self._lock:
            entry = self._asked(key)
            if entry is None:
                return None
            while entry.told is None and not entry.mark.refused and not self._closed:
                if not self._lock.wait(until - time.monotonic()):
                    break
            told, version, row = entry.told, _version(entry), _row(entry)
        text = zlib.decompress(told.page).decode("utf-8") if told is not None and told.page else None
        return version, text, row

    def close(self) -> None:
        """End what was begun."""
        with self._lock:
            self._closed = True
            self._lock.notify_all()
        self._worker.end()
        self._auditor.join(5)

    # ---- looking

    def _asked(self, key: str) -> Entry | None:
        if key not in self._entries:
            self._look()
        entry = self._entries.get(key)
        if entry is not None:
            entry.opened_at = time.monotonic()
            if entry.opened_at - entry.marked_at >= max(LOOK_SECONDS, 10 * SHARE * entry.mark_seconds):
                self._mark(entry)
            self._lock.notify_all()
        return entry

    def _look(self) -> None:
        """Find the runs, look at their files, read what is new in their logs; each as often as it is cheap."""
        now = time.monotonic()
        if now >= self._find_at:
            known = self._entries
            self._entries = {}
            for place in places(self.root):
                self._entries[place.key] = known.get(place.key) or Entry(place)
            cost = time.monotonic() - now
            self._find_at = now + max(FIND_SECONDS, 10 * SHARE * cost)
            if self._entries.keys() - known.keys():
                self._look_at = now
        began = time.monotonic()
        if began >= self._look_at:
            for entry in self._entries.values():
                self._mark(entry)
            self._look_at = began + max(LOOK_SECONDS, 10 * SHARE * (time.monotonic() - began))
        newest = sorted(self._entries.values(), key=lambda entry: -entry.mark.changed_unix_seconds)
        until = time.monotonic() + READING_SECONDS
        for entry in newest:
            if entry.viewed != entry.mark.version and not entry.mark.refused and time.monotonic() < until:
                _read(entry, until)

    def _mark(self, entry: Entry) -> None:
        began = time.monotonic()
        entry.mark = mark(self.root, entry.place.path)
        entry.marked_at = time.monotonic()
        entry.mark_seconds = entry.marked_at - began

    # ---- auditing

    def _audit(self) -> None:
        while True:
            with self._lock:
                while not self._closed and (entry := self._wanted(time.monotonic())) is None:
                    self._lock.wait()
                if self._closed or entry is None:
                    return
                seen = entry.mark
            told = self._worker.tell(
                entry.place.path, Served(version=seen.version, changed_unix_seconds=seen.changed_unix_seconds)
            )
            with self._lock:
                if not self._closed:
                    entry.told, entry.told_mark, entry.told_at = told, seen, time.monotonic()
                self._lock.notify_all()

    def _wanted(self, now: float) -> Entry | None:
        """The run to audit next: one whose page is open, else the newest of those that the list lacks."""
        opened = [e for e in self._entries.values() if now - e.opened_at < WATCHED_SECONDS and e.due(now, self._least)]
        if opened:
            return max(opened, key=lambda entry: entry.opened_at)
        if now - self._listed_at >= WATCHED_SECONDS:
            return None
        listed = [
            entry
            for entry in self._entries.values()
            if entry.mark.bytes <= UNASKED_BYTES and entry.marked_at > 0 and entry.due(now, LIST_SECONDS)
        ]
        return max(listed, key=lambda entry: entry.mark.changed_unix_seconds, default=None)


def _version(entry: Entry) -> str:
    if entry.mark.refused:
        return "refused"
    return "none" if entry.told_mark is None else entry.told_mark.version


def _read(entry: Entry, until: float) -> None:
    """What is new in a log, as far as the time allows."""
    try:
        if entry.view is None and rlmon_log.recognises(entry.place.path):
            entry.view = View(entry.place.path, states=False)
        more = False
        while entry.view is not None and (more := entry.view.poll()) and time.monotonic() < until:
            pass
        entry.problem = ""
    except RLMonError as error:
        more = False
        entry.problem = one_line(str(error))
    if not more:
        entry.viewed = entry.mark.version


def _row(entry: Entry) -> dict[str, Any]:
    told, view = entry.told, entry.view if entry.view is not None and entry.view.attempts else None
    problem = entry.mark.refused or (told.problem if told is not None else entry.problem)
    verdict, said = _verdict(told, view)
    header = view.attempts[-1].header if view is not None else None
    step = told.steps if told is not None else None
    if view is not None and view.newest is not None:
        step = view.newest.step
    return {
        "key": entry.place.key,
        "name": entry.place.name,
        "verdict": "unread" if problem else verdict,
        "said": f"Cannot be read: {problem.rstrip('.')}." if problem else said,
        "step": step,
        "total": header.total_steps if header is not None else None,
        "trainer": one_line(header.trainer, 40) if header is not None else told.reader if told is not None else "",
        "attempt": header.attempt if header is not None and view is not None and len(view.attempts) > 1 else None,
        "changed": round(entry.mark.changed_unix_seconds, 1),
        "ended": view.ended if view is not None else None,
        "pending": not entry.mark.refused
        and (entry.viewed != entry.mark.version or (told is None and entry.mark.bytes <= UNASKED_BYTES)),
        "curves": _curves(told, view),
    }


def _verdict(told: Told | None, view: View | None) -> tuple[str, str]:
    """That of the audit, or what the detectors of the log have said since, where that is worse."""
    live = next((word for word in GRAVE if view is not None and view.finding_counts[word]), "")
    audited = told.verdict if told is not None else ""
    if told is not None and (not live or (audited in GRAVE and GRAVE.index(audited) <= GRAVE.index(live))):
        return audited, told.said
    if view is not None and live:
        spoken = [finding for finding in view.findings if finding.get("severity") == live]
        if not spoken:
            return live, ""
        return live, one_line(f"Its detectors, at step {spoken[-1].get('step')}: {spoken[-1].get('message')}")
    return "pending", "" if view is None else "No detector has spoken so far."


def _curves(told: Told | None, view: View | None) -> list[dict[str, Any]]:
    """The curves that say most, the live ones where there are some: name, first and last value, and the line."""
    audited = told.curves if told is not None else {}
    live = {name: strip.values() for name, strip in view.strips.items()} if view is not None else {}
    shown: list[dict[str, Any]] = []
    for name in dict.fromkeys([*audited, *CURVES, *HEADLINE]):
        values = live.get(name) or audited.get(name) or ()
        if len(values) > 1 and len(shown) < CURVES_SHOWN:
            shown.append(
                _curve(one_line(HEADLINE.get(name) or metric_title(name).partition(",")[0].lower(), 40), values)
            )
    return shown


def _curve(label: str, values: Sequence[float]) -> dict[str, Any]:
    """A curve of at most ``POINTS`` means."""
    finite = [value for value in values if math.isfinite(value)]
    count = min(POINTS, len(finite))
    edges = [round(i * len(finite) / count) for i in range(count + 1)] if count else [0]
    means = [sum(finite[a:b]) / (b - a) for a, b in itertools.pairwise(edges)]
    return {"label": label, "values": [float(f"{mean:.4g}") for mean in means]}
