"""The story of some runs as a report of W&B: their verdicts, then the panels of the view, over these runs alone."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from rlmon.asking import Place, asking
from rlmon.dashboard.story import STORY
from rlmon.dashboard.wandb_view import panels_of
from rlmon.errors import ConfigError
from rlmon.printable import one_line

_WORDS = {"fail": "**FAIL**", "warn": "**WARN**", "pass": "pass"}
MAX_RUNS = 20


def make(place: Place, runs: Sequence[str]) -> str:
    """Make a report of the runs with these ids: its address.

    Each call makes another report. Raises ``TrackerError`` where W&B cannot be asked or refuses, ``MissingExtraError``
    without its packages, ``ConfigError`` for more than 20 runs.
    """
    if len(runs) > MAX_RUNS:
        raise ConfigError(f"A report is of at most {MAX_RUNS} runs, got {len(runs)}: nobody tells more lines apart.")
    with asking(place):
        import wandb
        import wandb_workspaces.reports.v2 as reports

        api = wandb.Api(timeout=10)
        found = [api.run(f"{place}/{run}") for run in runs]
        these = ", ".join(f"'{run.id}'" for run in found)
        blocks: list[Any] = [reports.MarkdownBlock(text="\n".join(_verdicts(found))), reports.TableOfContents()]
        for part in STORY:
            # A grid keeps its runs: an object of its own for each.
            shown = reports.Runset(entity=place.entity, project=place.project, name="Runs", filters=f"ID in [{these}]")
            blocks += [reports.H2(text=part.title), reports.PanelGrid(runsets=[shown], panels=panels_of(part))]
        names = ", ".join(one_line(str(run.name or run.id), 30) for run in found)
        report = reports.Report(
            entity=place.entity, project=place.project, title=f"What narrowed: {names}"[:128], blocks=blocks,
            width="fluid",
            description="Made by rlmon dashboard wandb --report.",
        )  # fmt: skip
        report.save()
        return str(report.url)


def _verdicts(runs: Sequence[Any]) -> list[str]:
    """A table in Markdown, of what rlmon left in the summaries of the runs."""
    rows = ["| run | verdict | first alarm, step | least formats in use | entropy, of the base's, least |"]
    rows.append("|---|---|---|---|---|")
    for run in runs:
        summary = run.summary_metrics
        verdict = summary.get("rlmon/verdict")
        cells = [
            f"[{_cell(run.name or run.id)}]({run.url})",
            _WORDS.get(str(verdict), "not watched by rlmon" if verdict is None else _cell(verdict)),
            _cell(summary.get("rlmon/first_alarm_step", "none")),
            _least(summary, "rlmon/format/effective"),
            _least(summary, "rlmon/entropy/ratio_to_base"),
        ]
        rows.append(f"| {' | '.join(cells)} |")
    return rows


def _least(summary: Any, name: str) -> str:
    kept = summary.get(name)
    value = kept.get("min") if isinstance(kept, dict) else None
    return f"{value:.3g}" if isinstance(value, int | float) else ""


def _cell(text: object) -> str:
    """Of anybody's text, so that it is no Markdown."""
    return re.sub(r"([\\`*_{}\[\]()<>#|!~&])", r"\\\1", one_line(str(text), 80))
