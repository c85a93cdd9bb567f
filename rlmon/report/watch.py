"""A run as it trains, on one screen: folded from its log as it grows, never written to.

The log may not be there yet, may end in half a line, may be replaced or continued by another attempt: whatever can no
longer be continued is read again from its beginning. What is kept does not grow with the run.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import signal
import stat
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

import rlmon.detectors as detectors
import rlmon.runlog.layout as layout
import rlmon.runlog.lines as lines
from rlmon.acts import Act, act_of, entries
from rlmon.baseline import Baseline
from rlmon.errors import ConfigError, RunLogError
from rlmon.metrics.catalog import METRICS
from rlmon.printable import one_line
from rlmon.records import SEVERITIES, StepRecord, verdict
from rlmon.report.phrases import number
from rlmon.report.terminal import VERDICT_STYLES, act_lines
from rlmon.runlog import open_run

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
STATUS_STYLES = {"fail": "bold red", "warn": "yellow", "note": "cyan", "ok": "green", "waiting": "dim", "cannot": "dim"}
SPARKS = "▁▂▃▄▅▆▇█"
BINS = 256
"""Values kept per metric; when they are full, neighbours are averaged."""
NOW_VALUES = 5
RATE_STEPS = 20
MODES_SHOWN = 6
FINDINGS_SHOWN = 5
ACTS_SHOWN = 6
ACTS_KEPT = 512
"""Newest acts of the policy that are told apart; older ones are only counted."""
LEVERS = "rlmon/intervention/"
MAX_NAMES = 256
"""Modes and places of faults that are told apart: both are names from the log."""
MAX_LINE_BYTES = 32 << 20
PIECE_BYTES = 1 << 20
COMPARED_BYTES = 256
POLL_SECONDS = 1.0
"""A long log is read in turns of this length, so that the screen shows how far it got."""
WIDE = 110


def watch(path: Path, *, every_seconds: float, once: bool) -> None:
    """Show the run until Ctrl-C; one screen where ``once`` is set or stdout is no terminal.

    Raises ``RunLogError`` where there is no run and only one screen was asked for, ``SchemaError`` for a newer log.
    """
    console = Console(highlight=False)
    view = View(path)
    if once or not console.is_terminal:
        open_run(path)
        while view.poll():
            pass
        console.print(frame(view, width=console.width, now_unix_seconds=time.time()))
        return

    def drawing() -> Group:
        return frame(view, width=console.width, now_unix_seconds=time.time())

    _leave_on_ctrl_c()
    with contextlib.suppress(KeyboardInterrupt), Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            more = view.poll()
            live.update(drawing(), refresh=True)
            if not more:
                time.sleep(every_seconds)
    # The screen of before comes back; what was last seen stays on it.
    console.print(drawing())


def _leave_on_ctrl_c() -> None:
    """Python ignores Ctrl-C where it was started with that ignored, as the background jobs of a script are: a screen
    that fills the terminal could then never be left."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        with contextlib.suppress(ValueError):  # not in the main thread
            signal.signal(signal.SIGINT, signal.default_int_handler)


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
    """What is known of a run so far. ``poll`` brings it up to date."""

    def __init__(self, path: Path) -> None:
        self.given = path
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
            if value is None or not _finite(value):
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
        and _finite(record.time_unix_seconds)
        and isinstance(record.metrics, dict)
        and isinstance(record.faults, dict)
        and all(type(value) is int for value in record.faults.values())
        and isinstance(record.sources, dict)
        and all(isinstance(name, str) for name in record.sources.values())
        and all(
            isinstance(block.source, str)
            and isinstance(block.stats, dict)
            and _finite(block.prompts)
            and _finite(block.completions)
            for block in record.blocks
        )
    )


def _finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


# ---- drawing


def frame(view: View, *, width: int, now_unix_seconds: float) -> Group:
    """The screen, drawn as literal text."""
    return Group(*_parts(view, width, now_unix_seconds))


def _parts(view: View, width: int, now: float) -> Iterator[RenderableType]:
    blank = Text("")
    if view.folder is None:
        yield _title(view, None)
        yield Text("Waiting: no rlmon log is here yet. It appears when training begins.", style="yellow")
        return
    header = view.attempts[-1].header
    attempt = f"attempt {header.attempt}" if len(view.attempts) > 1 else ""
    yield _title(view, " ".join(part for part in (one_line(header.trainer, 40), attempt) if part))
    yield from _progress(view, width, now)
    yield _verdict(view)
    yield blank
    if view.findings:
        yield from _news(view)
        yield blank
    if view.acts or isinstance(header.policy, Mapping):
        yield from _interventions(view)
        yield blank
    metrics, modes = _metrics(view, width), _modes(view, width)
    if width >= WIDE and metrics is not None and modes is not None:
        side_by_side = Table.grid(padding=(0, 4, 0, 0))
        side_by_side.add_row(metrics, modes)
        yield side_by_side
        yield blank
    else:
        for part in (metrics, modes):
            if part is not None:
                yield part
                yield blank
    yield from _detectors(view)
    yield from _trouble(view)


def _title(view: View, what: str | None) -> Text:
    text = Text("rlmon watch  ", style="bold", no_wrap=True, overflow="ellipsis")
    text.append(one_line(str(view.folder or view.given), 300), style="not bold")
    if what:
        text.append(f"  {what}", style="not bold dim")
    return text


def _progress(view: View, width: int, now: float) -> Iterator[RenderableType]:
    if view.newest is None:
        yield Text("No step has ended yet.", style="yellow")
        return
    total = view.attempts[-1].header.total_steps
    step = view.newest.step
    words: list[str] = []
    rate = _rate(view)
    if rate is not None:
        words.append(f"{number(rate)} steps/s" if rate > 1 else f"{number(1 / rate)} s/step")
        if total is not None and total > step and not view.ended:
            words.append(f"{_duration((total - step) / rate)} to go")
    age = max(now - view.newest.time_unix_seconds, 0.0)
    words.append("ended" if view.ended else f"last step {_duration(age)} ago")
    words.append(f"{view.completions:,} completions")
    behind = view.steps_file.behind_bytes
    if behind > PIECE_BYTES:
        words.append(f"reading, {behind / (1 << 20):,.0f} MB to go")
    line = Table.grid(padding=(0, 2, 0, 0))
    cells: list[RenderableType] = [Text(f"step {step}" + (f"/{total}" if total else ""), style="bold", no_wrap=True)]
    if total:
        cells.append(ProgressBar(total=total, completed=min(step, total), width=max(10, min(30, width // 5))))
    line.add_row(*cells, Text(", ".join(words), no_wrap=True, overflow="ellipsis"))
    yield line
    finished = view.ended or (total is not None and step >= total)
    if not finished and rate is not None and age > max(60.0, 20 / rate):
        yield Text("Nothing has come for as long as 20 steps took: has the run stopped?", style="yellow")


def _verdict(view: View) -> Text:
    """What the findings come to, those too whose detector has calmed down since; no pass before anything is compared
    with the base."""
    counts = [(name, view.finding_counts[name]) for name in reversed(SEVERITIES) if view.finding_counts[name]]
    word = verdict(name for name, _ in counts).upper()
    told = ", ".join(f"{count} {name.upper()}" for name, count in counts) or "no detector has spoken"
    if word == "PASS" and not _compares(view):
        word, told = "UNSURE", "nothing is compared with the base yet"
    text = Text(no_wrap=True, overflow="ellipsis")
    text.append(f" {word} ", style=VERDICT_STYLES.get(word.lower(), "reverse"))
    return text.append(f"  {'at the end' if view.ended else 'so far'}: {told}")


def _compares(view: View) -> bool:
    """Whether a detector that needs a base has one and looks at what came after it."""
    rows = [] if view.detectors is None else detectors.status(view.detectors)
    return any(row["status"] == "ok" and any(one["baseline"] is not None for one in row["sources"]) for row in rows)


def _rate(view: View) -> float | None:
    """Steps per second over the newest records; ``None`` before there are two."""
    if len(view.recent) < 2:
        return None
    (first, began), (last, ended) = view.recent[0], view.recent[-1]
    return (last - first) / (ended - began) if ended > began and last > first else None


def _duration(seconds: float) -> str:
    whole = int(seconds)
    if whole < 60:
        return f"{whole} s"
    hours, minutes = divmod(whole // 60, 60)
    if hours < 1:
        return f"{minutes} min"
    return f"{hours} h {minutes:02} min" if hours < 48 else f"{hours // 24} days"


def _news(view: View) -> Iterator[RenderableType]:
    counted = ", ".join(f"{count} {one_line(name, 10)}" for name, count in view.finding_counts.items())
    yield Text(f"Newest findings (of {counted})", style="dim")
    for finding in view.findings:
        severity = str(finding.get("severity"))
        line = Text(no_wrap=True, overflow="ellipsis")
        line.append(f"{one_line(severity.upper(), 7):<7}", style=STATUS_STYLES.get(severity, "cyan"))
        line.append(f" step {_int(finding.get('step')):<5} ", style="dim")
        line.append(one_line(str(finding.get("message"))))
        yield line


def _interventions(view: View) -> Iterator[RenderableType]:
    """Where the levers stand, and the newest acts, the newest first; acts on rows of one rule are one line."""
    head = Text("Interventions", style="dim", no_wrap=True, overflow="ellipsis")
    head.append(
        "".join(f"  {part}" for part in (_policy(view), f"{view.act_count:,} acts" if view.act_count else "") if part)
    )
    yield head
    if levers := _levers(view):
        yield Text.assemble(("now     ", "dim"), levers, no_wrap=True, overflow="ellipsis")
    shown = entries(list(view.acts.values()))[:ACTS_SHOWN]
    yield from act_lines(shown)
    if not shown:
        yield Text("No rule has acted yet.", style="dim")


def _policy(view: View) -> str:
    """``4 rules, 1 of them a dry run``."""
    policy = view.attempts[-1].header.policy
    rules = policy.get("rules") if isinstance(policy, Mapping) else None
    if not isinstance(policy, Mapping) or not isinstance(rules, Mapping):
        return ""
    dry = sum(
        policy.get("dry_run") is True or (isinstance(rule, Mapping) and rule.get("dry_run") is True)
        for rule in rules.values()
    )
    amount = f"{len(rules)} rule{'' if len(rules) == 1 else 's'}"
    if dry == len(rules):
        return f"{amount}, dry run: none acts"
    return f"{amount}, {dry} of them dry run" if dry else amount


def _levers(view: View) -> str:
    """``beta 0.05, kappa 0.9``: values of the newest step."""
    if view.newest is None:
        return ""
    held = [
        f"{one_line(name.removeprefix(LEVERS).replace('_', ' '), 30)} {number(value)}"
        for name, value in view.newest.metrics.items()
        if name.startswith(LEVERS) and value is not None and _finite(value)
    ]
    return ", ".join(held[:8])


def _int(value: Any) -> int:
    return value if isinstance(value, int) else 0


def _metrics(view: View, width: int) -> Table | None:
    shown = [(name, label, view.strips[name]) for name, label in HEADLINE.items() if name in view.strips]
    if not shown:
        return None
    units = {metric.name: metric.unit for metric in METRICS}
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", pad_edge=False)
    table.add_column("metric", no_wrap=True)
    table.add_column("base", justify="right", no_wrap=True)
    table.add_column("→ now", no_wrap=True)
    table.add_column("over the run", no_wrap=True)
    rows = []
    for name, label, strip in shown:
        unit = "" if units.get(name) in ("share", "reward", "reward^2", None) else f" {units[name]}"
        rows.append((label, number(strip.base), f"→ {number(strip.now)}{unit}", strip.values()))
    # Whatever is left: a curve that is cut off has lost its newest values.
    taken = sum(max(len(row[i]) for row in rows) + 2 for i in range(3))
    sparks = max(8, min(24, width - taken)) if width < WIDE else min(30, width - 102)
    for label, base, now, values in rows:
        table.add_row(Text(label), Text(base), Text(now), Text(sparkline(values, sparks), style="cyan"))
    return table


def sparkline(values: Sequence[float], width: int) -> str:
    """At most ``width`` block characters from the smallest (lowest block) to the largest value; empty for none."""
    if not values:
        return ""
    columns = min(width, len(values))
    edges = [round(i * len(values) / columns) for i in range(columns + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in itertools.pairwise(edges)]
    low, span = min(means), max(means) - min(means)
    if span <= 1e-9 * max(map(abs, means)):
        span = 0.0  # what the rounding of means left is no change
    top = len(SPARKS) - 1
    return "".join(SPARKS[round((mean - low) / span * top) if span > 0 else 0] for mean in means)


def _modes(view: View, width: int) -> Table | None:
    if not view.shares:
        return None
    ranked = sorted(view.shares.items(), key=lambda item: -item[1])
    kept = [item for item in ranked if item[1] > 0][:MODES_SHOWN]
    # What the base wrote and is gone now is the news.
    bases = {name.removeprefix(SHARE): strip.base for name, strip in view.strips.items() if name.startswith(SHARE)}
    gone = sorted(((bases.get(name) or 0.0, name) for name, share in ranked if share == 0), reverse=True)
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", pad_edge=False)
    table.add_column("format", no_wrap=True, overflow="ellipsis", max_width=20 if width < WIDE else 14)
    table.add_column("base", justify="right", no_wrap=True)
    table.add_column("→ now", no_wrap=True)
    table.add_column("share now", no_wrap=True)
    for name, share in [*kept, *((name, 0.0) for base, name in gone[:3] if base > 0.005)]:
        style = "red" if share >= 0.9 else "dim" if share == 0 else ""
        cells = 20 if width < WIDE else 14
        filled = min(max(round(share * cells), 0), cells)
        bar = Text("█" * filled, style="cyan").append("░" * (cells - filled), style="dim")
        table.add_row(Text(one_line(name, 40)), Text(number(bases.get(name))), Text(f"→ {share:.2f}", style=style), bar)
    return table


def _detectors(view: View) -> Iterator[RenderableType]:
    if view.detectors is None:
        yield Text(f"Detectors: not shown, {view.no_detectors}", style="dim")
        return
    rows = detectors.status(view.detectors)
    loud = [row for row in rows if row["status"] in SEVERITIES]
    calm = [row for row in rows if row["status"] == "ok"]
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column()
    for row in loud:
        table.add_row(Text(row["status"].upper(), style=STATUS_STYLES[row["status"]]), Text(row["id"]))
    if calm:
        # Evidence is in nats below the alarm: the nearest first.
        calm.sort(key=lambda row: -max((v for v in row["evidence"].values() if v is not None), default=-1e9))
        line = Text()
        for row in calm:
            near = max((v for v in row["evidence"].values() if v is not None), default=None)
            line.append(", " if line else "")
            line.append(row["id"])
            if near is not None and near > -2.0:
                noted = {*row["evidence"]} == {"note"}
                said = f" ({-near:.1f} nats from {'a note' if noted else 'an alarm'})"
                line.append(said, style="dim" if noted else STATUS_STYLES["warn"])
        table.add_row(Text("OK", style="green"), line)
    reasons: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if row["status"] in ("waiting", "cannot"):
            reasons.setdefault((row["status"], row["reason"] or ""), []).append(row["id"])
    for (status, reason), ids in reasons.items():
        table.add_row(Text(status.upper(), style="dim"), Text.assemble(", ".join(ids), (f": {reason}", "dim")))
    yield Text("Detectors", style="dim")
    yield table


def _trouble(view: View) -> Iterator[RenderableType]:
    for place in dict.fromkeys([*view.fault_errors, *view.faults]):
        count = view.faults.get(place) or 1
        times = "once" if count == 1 else f"{count:,} times"
        text = f"FAULT {one_line(place, 60)}, {times}: {one_line(view.fault_errors.get(place, ''), 300)}"
        yield Text(text, style="magenta", no_wrap=True, overflow="ellipsis")
    if view.shed_rows:
        yield Text(f"{view.shed_rows:,} rows could not be written to the log", style="magenta")
    if view.torn:
        yield Text(f"{view.torn:,} torn lines passed over", style="dim")
