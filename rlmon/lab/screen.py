"""The demo's live screen: one line per run on a terminal, plain lines everywhere else."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import IO

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from rlmon.lab.evaluate import Evaluation
from rlmon.lab.second_act import BASE, LINE, MOST_STEPS, WINDOW_STEPS, SecondAct
from rlmon.printable import one_line
from rlmon.records import Finding, StepRecord
from rlmon.report.screen import SPARKS, STATUS_STYLES, columns

_PLAIN_EVERY_STEPS = 25
_STEPS_PER_BLOCK = 2


@dataclass
class _Line:
    step: int = 0
    values: dict[str, float] = field(default_factory=dict)
    top_format: str = ""
    alarms: list[tuple[str, str, int]] = field(default_factory=list)
    result: Evaluation | None = None


class Screen:
    """Shows runs as they train; writes to ``stream`` (stderr), redrawn in place only when that is a terminal.

    Everything is drawn as literal text, never as rich markup.
    """

    def __init__(self, names: Sequence[str], steps: int, stream: IO[str] | None = None) -> None:
        self._lines = {name: _Line() for name in names}
        self._steps = steps
        self._console = Console(file=sys.stderr if stream is None else stream, highlight=False)
        self._live: Live | None = None
        self._note = ""

    def __enter__(self) -> Screen:
        if self._console.is_terminal:
            # Drawn by hand after each step: a refresh thread would take time from the training it shows.
            self._live = Live(self._draw(), console=self._console, auto_refresh=False)
            self._live.start(refresh=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.update(self._draw(), refresh=True)
            self._live.stop()
            self._live = None

    def note(self, text: str) -> None:
        """One line about what is going on."""
        self._note = text
        self._show(text)

    def step(self, name: str, record: StepRecord, findings: Sequence[Finding]) -> None:
        """A step of run ``name`` ended, with these new findings."""
        line = self._lines[name]
        line.step = record.step
        shares: dict[str, float] = {}
        for metric, value in record.metrics.items():
            if value is None:
                continue
            if metric.startswith("rlmon/format/share/"):
                shares[metric.removeprefix("rlmon/format/share/")] = value
            line.values[metric] = value
        if shares:
            line.top_format = max(shares, key=shares.__getitem__)
        for finding in findings:
            line.alarms.append((finding.severity, finding.detector, finding.step))
            # A message begins with its detector's name.
            self._plain(f"{name}  step {finding.step}  {finding.severity.upper()} {finding.message}")
        if record.step % _PLAIN_EVERY_STEPS == 0:
            self._plain(
                f"{name}  step {record.step}/{self._steps}"
                f"  top {line.top_format} {self._value(line, 'format/top_share')}"
                f"  formats in use {self._value(line, 'format/effective')}"
                f"  entropy {self._value(line, 'entropy/mean', 3)}  KL {self._value(line, 'kl/mean', 3)}"
                + (f"  {held}" if (held := self._held(line)) else "")
            )
        if self._live is not None:
            self._live.update(self._draw(), refresh=record.step % 2 == 0 or bool(findings))

    def done(self, name: str, result: Evaluation) -> None:
        """Run ``name`` was evaluated."""
        self._lines[name].result = result
        self._show(
            f"{name}  held out: accuracy {result.accuracy:.3f}, {result.effective_formats:.2f} formats in use, "
            f"top {result.top_format} {result.top_share:.3f}"
        )

    def second_act(self, act: SecondAct) -> None:
        """Training went on from one end, with another requirement."""
        steps = act.continued.steps_to_90
        self.note(
            f"then asked for {act.wanted.upper()}: from {act.arm}-seed{act.seed} "
            f"({act.wanted_in_4096:,} of 4,096 samples have it) "
            + (f"not learned in {MOST_STEPS} steps" if steps is None else f"learned in {steps} steps")
        )

    def _show(self, text: str) -> None:
        self._plain(text)
        if self._live is not None:
            self._live.update(self._draw(), refresh=True)

    def _plain(self, text: str) -> None:
        if self._live is None:
            self._console.print(Text(one_line(text)), soft_wrap=True)

    @staticmethod
    def _value(line: _Line, metric: str, digits: int = 2) -> str:
        value = line.values.get(f"rlmon/{metric}")
        return "-" if value is None else f"{value:.{digits}f}"

    def _held(self, line: _Line) -> str:
        """What a policy holds the run with now; empty for a run without one."""
        values = ((name, line.values.get(f"rlmon/intervention/{name}")) for name in ("kappa", "beta"))
        if line.values.get("rlmon/intervention/kappa") is None:
            return ""
        return "  ".join(f"{name} {value:.2f}" for name, value in values if value is not None)

    def _draw(self) -> Group:
        narrow = self._console.width < 112
        table = Table(box=None, padding=(0, 1), header_style="dim")
        table.add_column("run", no_wrap=True)
        table.add_column("", no_wrap=True)
        table.add_column("step", justify="right", no_wrap=True)
        table.add_column("top format", no_wrap=True)
        for title in ("formats", "entropy", "KL") if narrow else ("eff. formats", "entropy", "KL", "held-out accuracy"):
            table.add_column(title, justify="right", no_wrap=True)
        table.add_column("alarms")
        for name, line in self._lines.items():
            top = Text()
            share = line.values.get("rlmon/format/top_share")
            if share is not None:
                top.append(f"{one_line(line.top_format):<7} {share:.2f}", style="bold red" if share >= 0.9 else "")
            numbers = [
                self._value(line, "format/effective"),
                self._value(line, "entropy/mean", 3),
                self._value(line, "kl/mean", 3),
            ]
            if not narrow:
                numbers.append("" if line.result is None else f"{line.result.accuracy:.3f}")
            table.add_row(
                Text(name.replace("unprotected-seed", "unprot. ").replace("-seed", " ") if narrow else name),
                ProgressBar(total=self._steps, completed=line.step, width=5 if narrow else 16),
                f"{line.step}" if narrow else f"{line.step}/{self._steps}",
                top,
                *numbers,
                _alarms(line.alarms).append(self._held(line), style="cyan"),
            )
        return Group(Text(one_line(self._note), style="dim"), table)


def _alarms(alarms: Sequence[tuple[str, str, int]]) -> Text:
    """``format WARN 66 FAIL 88  entropy WARN 128``: the steps at which each detector spoke."""
    text = Text()
    for detector in dict.fromkeys(detector for _, detector, _ in alarms):
        text.append(f"{one_line(detector.removesuffix('-collapse'))} ")
        for severity, other, step in alarms:
            if other == detector:
                text.append(f"{severity.upper()} {step} ", style=STATUS_STYLES[severity])
        text.append(" ")
    return text


def second_act_block(acts: Sequence[SecondAct]) -> Group:
    """What came after the requirement had changed: one line for each start, its reward as blocks of two steps."""
    wanted = acts[0].wanted.upper()
    table = columns(["start, seed", f"{wanted} in 4,096", "▕reward, step by step", "learned"], frozenset({1}))
    for before, act in zip([acts[0], *acts], acts, strict=False):
        if act.seed != before.seed:
            table.add_row()
        steps, base = act.continued.steps_to_90, act.arm == BASE
        style = "dim" if base else "bold red" if steps is None else "green"
        table.add_row(
            Text(f"{act.arm} {act.seed}", style="dim" if base else "bold"),
            Text(f"{act.wanted_in_4096:,}", style="" if act.wanted_in_4096 else "bold red"),
            Text("▕" + _blocks(act.continued.rewards), style=style),
            Text("never" if steps is None else f"step {steps}", style=style),
        )
    return Group(
        Text(f"Then the requirement changes: {wanted}, please. Training goes on, with beta 0.", style="bold"),
        table,
        Text(
            f"Rewarded: right and in {wanted}. Learned: {LINE:g} in {WINDOW_STEPS} steps; never: not in {MOST_STEPS}.",
            style="dim",
        ),
    )


def _blocks(rewards: Sequence[float]) -> str:
    """Mean rewards, each block as high as its mean over ``_STEPS_PER_BLOCK`` steps is between 0 and 1."""
    parts = [rewards[at : at + _STEPS_PER_BLOCK] for at in range(0, len(rewards), _STEPS_PER_BLOCK)]
    return "".join(SPARKS[round((len(SPARKS) - 1) * sum(part) / len(part))] for part in parts)
