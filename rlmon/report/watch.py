"""A run as it trains, on one screen: folded from its log as it grows, never written to."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

import rlmon.detectors as detectors
from rlmon.acts import entries
from rlmon.audit.clauses import percent
from rlmon.metrics.catalog import METRICS
from rlmon.printable import one_line
from rlmon.records import SEVERITIES, VERDICT_WORDS, verdict
from rlmon.report.live import HEADLINE, PIECE_BYTES, SHARE, View, finite
from rlmon.report.phrases import number
from rlmon.report.screen import STATUS_STYLES, VERDICT_STYLES, WIDE, act_lines, columns, sparkline
from rlmon.runlog import open_run

MODES_SHOWN = 6
ACTS_SHOWN = 6
OF_RULES = "rlmon/intervention/"


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
    if word == "PASS" and (view.detectors is None or not detectors.judged(view.detectors)):
        word, told = VERDICT_WORDS["insufficient"], "nothing is compared with the base yet"
    text = Text(no_wrap=True, overflow="ellipsis")
    text.append(f" {word} ", style=VERDICT_STYLES.get(word.lower(), "reverse"))
    return text.append(f"  {'at the end' if view.ended else 'so far'}: {told}")


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
    counted = ", ".join(
        f"{view.finding_counts[name]} {name.upper()}" for name in reversed(SEVERITIES) if view.finding_counts[name]
    )
    yield Text(f"Newest findings (of {counted or len(view.findings)})", style="dim")
    for finding in view.findings:
        severity = str(finding.get("severity"))
        line = Text(no_wrap=True, overflow="ellipsis")
        line.append(f"{one_line(severity.upper(), 7):<7}", style=STATUS_STYLES.get(severity, "cyan"))
        line.append(f" step {_int(finding.get('step')):<5} ", style="dim")
        line.append(one_line(str(finding.get("message"))))
        yield line


def _interventions(view: View) -> Iterator[RenderableType]:
    """What the rules turn, and the newest acts, the newest first; acts on rows of one rule are one line."""
    head = Text("Interventions", style="dim", no_wrap=True, overflow="ellipsis")
    head.append(
        "".join(f"  {part}" for part in (_policy(view), f"{view.act_count:,} acts" if view.act_count else "") if part)
    )
    yield head
    if turned := _turned(view):
        yield Text.assemble(("now     ", "dim"), turned, no_wrap=True, overflow="ellipsis")
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


def _turned(view: View) -> str:
    """``beta 0.05, kappa 0.9``: values of the newest step."""
    if view.newest is None:
        return ""
    held = [
        f"{one_line(name.removeprefix(OF_RULES).replace('_', ' '), 30)} {number(value)}"
        for name, value in view.newest.metrics.items()
        if name.startswith(OF_RULES) and value is not None and finite(value)
    ]
    return ", ".join(held[:8])


def _int(value: Any) -> int:
    return value if isinstance(value, int) else 0


def _metrics(view: View, width: int) -> Table | None:
    shown = [(name, label, view.strips[name]) for name, label in HEADLINE.items() if name in view.strips]
    if not shown:
        return None
    units = {metric.name: metric.unit for metric in METRICS}
    table = columns(("metric", "base", "→ now", "over the run"), frozenset({1}))
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


def _modes(view: View, width: int) -> Table | None:
    if not view.shares:
        return None
    ranked = sorted(view.shares.items(), key=lambda item: -item[1])
    kept = [item for item in ranked if item[1] > 0][:MODES_SHOWN]
    # What the base wrote and is gone now is the news.
    bases = {name.removeprefix(SHARE): strip.base for name, strip in view.strips.items() if name.startswith(SHARE)}
    gone = sorted(((bases.get(name) or 0.0, name) for name, share in ranked if share == 0), reverse=True)
    table = columns(("format", "base", "→ now", "share now"), frozenset({1}))
    table.columns[0].max_width = 20 if width < WIDE else 14
    for name, share in [*kept, *((name, 0.0) for base, name in gone[:3] if base > 0.005)]:
        style = "red" if share >= 0.9 else "dim" if share == 0 else ""
        cells = 20 if width < WIDE else 14
        filled = min(max(round(share * cells), 0), cells)
        bar = Text("█" * filled, style="cyan").append("░" * (cells - filled), style="dim")
        was = number(None) if (base := bases.get(name)) is None else percent(base)
        table.add_row(Text(one_line(name, 40)), Text(was), Text(f"→ {percent(share)}", style=style), bar)
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
        table.add_row(Text(row["status"].upper(), style=STATUS_STYLES[row["status"]]), Text(one_line(row["id"], 60)))
    if calm:
        # Evidence is in nats below the alarm: the nearest first.
        calm.sort(key=lambda row: -max((v for v in row["evidence"].values() if v is not None), default=-1e9))
        line = Text()
        for row in calm:
            near = max((v for v in row["evidence"].values() if v is not None), default=None)
            line.append(", " if line else "")
            line.append(one_line(row["id"], 60))
            if near is not None and near > -2.0:
                noted = {*row["evidence"]} == {"note"}
                said = f" ({-near:.1f} nats from {'a note' if noted else 'an alarm'})"
                line.append(said, style="dim" if noted else STATUS_STYLES["warn"])
        table.add_row(Text("OK", style="green"), line)
    reasons: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if row["status"] in ("waiting", "cannot"):
            reasons.setdefault((row["status"], one_line(row["reason"] or "")), []).append(one_line(row["id"], 60))
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
