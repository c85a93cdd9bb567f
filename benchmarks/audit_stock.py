"""What the audit makes of the stock runs of stock_runs.py, beside what onset_truth.py knows of them.

    python benchmarks/audit_stock.py DIR

One row a run: verdict, onset of format collapse, true onset, difference, seconds. Then, for every other source that the
same run left (W&B, TensorBoard, trackio), whether each check says what it says of ``completions/``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from onset_truth import onset

from rlmon.audit import engine
from rlmon.audit.result import Audit, Check
from rlmon.errors import RLMonError

SOURCES = ("wandb", "trackio", "tensorboard")


@dataclass(frozen=True)
class Agreement:
    """One source against ``completions/``."""

    both: int
    """Checks that neither side skips."""
    differing: Mapping[str, tuple[str, str]]
    """Check id to the status by ``completions/`` and by the source."""
    later: Mapping[str, tuple[int | None, int | None]]
    """Check id to the two first steps, where they differ."""
    skipped: int
    """Checks that only the source skips."""


def agreement(whole: Audit, other: Audit) -> Agreement:
    """How the checks of two audits of one run compare."""
    theirs = {check.id: check for check in other.checks}
    pairs: list[tuple[Check, Check]] = [(check, theirs[check.id]) for check in whole.checks if check.id in theirs]
    both = [(a, b) for a, b in pairs if "skip" not in (a.status, b.status)]
    return Agreement(
        both=len(both),
        differing={a.id: (a.status, b.status) for a, b in both if a.status != b.status},
        later={a.id: (a.first_step, b.first_step) for a, b in both if a.first_step != b.first_step},
        skipped=sum(a.status != "skip" and b.status == "skip" for a, b in pairs),
    )


def row(run: Path) -> tuple[list[str], Audit]:
    """The cells of one run, and its audit."""
    audit = engine.audit(run, reader="trl")
    truth, base, last = onset(run)
    collapse = next(check for check in audit.checks if check.id == "format-collapse")
    said = [f"{check.id} {check.status.upper()}" for check in audit.checks if check.status in ("fail", "warn", "error")]
    gap = "" if truth is None or collapse.first_step is None else f"{collapse.first_step - truth:+d}"
    seconds = audit.timing_seconds
    return [
        run.name, audit.verdict, _step(collapse.first_step), _step(truth), gap, _step(collapse.alarm_step),
        f"{base:.2f} -> {last:.2f}", f"{seconds['wall']:.2f}", f"{seconds['processor']:.2f}", ", ".join(said) or "-",
    ], audit  # fmt: skip


def _step(step: int | None) -> str:
    return "-" if step is None else str(step)


def by_source(run: Path, whole: Audit) -> list[str]:
    """A line per source that the run has."""
    lines = []
    for source in SOURCES:
        if not (run / source).is_dir():
            continue
        try:
            other = engine.audit(run, reader=source)
        except RLMonError as error:
            lines.append(f"{run.name:18} {source:12} not read: {error}")
            continue
        found = agreement(whole, other)
        wrong = [f"{name}: {a} / {b}" for name, (a, b) in found.differing.items()]
        wrong += [f"{name} from {_step(a)} / {_step(b)}" for name, (a, b) in found.later.items()]
        lines.append(
            f"{run.name:18} {source:12} {other.verdict:5} {other.run.completions:6} rows  {found.both:2} checks on "
            f"both sides, {found.skipped:2} only on completions/  {'; '.join(wrong) or 'all agree'}"
        )
    return lines


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="what stock_runs.py filled")
    options = parser.parse_args(arguments)
    runs = sorted(path.parent for path in options.folder.glob("*/truth.jsonl") if (path.parent / "done").exists())
    if not runs:
        print(f"No finished run in {options.folder}; make some with stock_runs.py --out.", file=sys.stderr)
        return 2
    head = ["run", "verdict", "onset", "truth", "diff", "alarm", "formats", "wall s", "CPU s", "said"]
    cells, sources = [head], []
    for run in runs:
        found, audit = row(run)
        cells.append(found)
        sources += by_source(run, audit)
    widths = [max(len(line[column]) for line in cells) for column in range(len(head) - 1)]
    for line in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, [*widths, 0], strict=True)).rstrip())
    print("\n" + "\n".join(sources))
    return 0


if __name__ == "__main__":
    sys.exit(main())
