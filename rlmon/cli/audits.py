"""``rlmon audit`` and ``rlmon report``: what happened to a run."""

from __future__ import annotations

import enum
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import typer.core

from rlmon.cli.auditing import Baseline, Mapped, Processes, ReaderName, SuccessRule, audited, columns_of, log_in
from rlmon.cli.printing import USAGE_OR_UNREADABLE, draw, note, say, write
from rlmon.errors import ConfigError, RLMonError

if TYPE_CHECKING:
    from rlmon.audit.result import Audit
    from rlmon.records import Verdict


FINDING = 1
UNSURE = 3
WORST_FIRST = (USAGE_OR_UNREADABLE, FINDING, UNSURE, 0)


class AuditFormat(str, enum.Enum):
    """How audits are printed."""

    rich = "rich"
    json = "json"
    markdown = "markdown"
    junit = "junit"
    github = "github"


class FailOn(str, enum.Enum):
    """From which verdict on the exit code is 1."""

    never = "never"
    warn = "warn"
    fail = "fail"


class ReadsRuns(typer.core.TyperCommand):
    """A command whose help names the readers of installed packages."""

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        from importlib.metadata import entry_points

        if names := sorted(entry.name for entry in entry_points(group="rlmon.readers")):
            formatter.write_paragraph()
            formatter.write_text(f"Readers of installed packages: {', '.join(names)}.")


def audit(
    paths: Annotated[list[Path], typer.Argument(metavar="PATH", help="Runs: a folder or a file of any of them.")],
    reader: ReaderName = None,
    mapping: Mapped = None,
    form: Annotated[AuditFormat, typer.Option("--format", help="How to print.")] = AuditFormat.rich,
    fail_on: Annotated[
        FailOn, typer.Option(help="From which verdict on the exit code is 1; a note is none.")
    ] = FailOn.fail,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 3 where the verdict is unsure.")] = False,
    page: Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Also write the page.")] = None,
    baseline: Baseline = None,
    success: SuccessRule = None,
    processes: Processes = None,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="All of each of several runs.")] = False,
) -> None:
    """What happened to a run: a verdict, its checks, and what to change.

    Reads rlmon's own logs and what TRL, W&B, TensorBoard, trackio, verl and others left behind; it needs none of
    them installed, and no GPU.

    \b
    rlmon audit out/grpo                                the folder of a TRL run (log_completions=True)
    rlmon audit out/grpo --html report.html             and a page with charts and completions
    rlmon audit wandb/run-20250101_120000-abc           an offline or synced W&B run
    rlmon audit wandb://ENTITY/PROJECT/RUN              one on the server, after wandb login
    rlmon audit rows.jsonl --map prompt=question,completion=text,reward=score,step=iteration
    rlmon audit out/grpo --format github --fail-on warn    in CI, with the job's summary; also junit, markdown, json
    rlmon audit out                                     a folder of runs: a line each, worst first; --verbose for all

    \b
    Exit codes: 0 nothing at or above --fail-on; 1 something was; 2 usage or unreadable;
    3 unsure: nothing bad was seen, and too little to call it a pass; only with --strict.
    """
    import rlmon.report.phrases as phrases
    from rlmon.audit.readers import runs_at

    columns = columns_of(mapping)
    if reader is None and columns is None:
        paths = [run for path in paths for run in runs_at(path) or [path]]
    if page is not None and len(paths) > 1:
        raise ConfigError(f"--html writes the page of one run, got {len(paths)}. Audit them one by one.")
    audits: list[Audit] = []
    code = 0
    for path in paths:
        try:
            found = audited(
                path, reader=reader, mapping=columns, baseline=baseline, processes=processes, success=success
            )
        except RLMonError as error:
            if len(paths) == 1:
                raise
            # One run that cannot be read does not hide what the others show.
            note(f"rlmon: {error}")
            code = USAGE_OR_UNREADABLE
            continue
        audits.append(found)
        code = min(code, exit_code(found.verdict, fail_on, strict), key=WORST_FIRST.index)
    for line in phrases.unsure(audits, each=len(paths) == 1 or verbose or form is not AuditFormat.rich):
        note(line)
    if page is not None:
        write_page(page, audits[0])
    if form is AuditFormat.rich:
        _draw_audits(audits, page, verbose)
    elif audits or form is not AuditFormat.markdown:
        say(_rendered(audits, form, fail_on, many=len(paths) > 1), end="")
    raise typer.Exit(code)


def exit_code(verdict: Verdict, fail_on: FailOn, strict: bool) -> int:
    if fail_on is not FailOn.never and verdict in ("fail", fail_on.value):
        return FINDING
    return UNSURE if strict and verdict == "insufficient" else 0


def _rendered(audits: Sequence[Audit], form: AuditFormat, fail_on: FailOn, *, many: bool) -> str:
    import rlmon.report.as_json as as_json
    import rlmon.report.github as github
    import rlmon.report.junit as junit
    import rlmon.report.markdown as markdown

    if form is AuditFormat.json:
        return as_json.render_array(*audits) if many else as_json.render(audits[0])
    if form is AuditFormat.junit:
        return junit.render(*audits, fail_on=fail_on.value)
    if form is AuditFormat.github:
        _tell_the_runner(audits)
        return github.render(*audits)
    return markdown.render(*audits)


def _tell_the_runner(audits: Sequence[Audit]) -> None:
    """The summary and the outputs of the step, where a workflow of GitHub says in which files it wants them."""
    import rlmon.report.github as github

    for variable in ("GITHUB_STEP_SUMMARY", "GITHUB_OUTPUT"):
        if not (name := os.environ.get(variable)):
            continue
        try:
            with open(name, "ab") as file:
                is_summary = variable == "GITHUB_STEP_SUMMARY"
                text = github.summary(*audits, written=file.tell()) if is_summary else github.outputs(*audits)
                file.write(text.encode())
        except OSError as error:
            note(f"rlmon: nothing written to ${variable}: {error}")


def _draw_audits(audits: Sequence[Audit], page: Path | None, verbose: bool) -> None:
    from rich.console import Console, Group
    from rich.rule import Rule

    import rlmon.report.terminal as terminal

    width = Console().width
    if len(audits) > 1 and not verbose:
        import rlmon.report.overview as lines
        from rlmon.audit.overview import overview

        draw(lines.render(overview(audits), width=width))
        return
    for position, found in enumerate(audits):
        drawing = terminal.render(found, width=width, page=None if page is None else str(page))
        draw(Group(Rule(style="dim"), drawing) if position else drawing)


def report(
    path: Annotated[Path, typer.Argument(help="A run, as for `rlmon audit`.")],
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Default: report.html in an rlmon log, else ./rlmon-report.html."),
    ] = None,
    reader: ReaderName = None,
    mapping: Mapped = None,
    baseline: Baseline = None,
    success: SuccessRule = None,
    processes: Processes = None,
) -> None:
    """Audit a run and write one self-contained HTML file: no server, no network, made to be mailed.

    \b
    rlmon report out/grpo
    rlmon report out/grpo/rlmon --out ~/public/run-7.html
    """
    import rlmon.report.phrases as phrases

    found = audited(
        path, reader=reader, mapping=columns_of(mapping), baseline=baseline, processes=processes, success=success
    )
    log = log_in(path)
    file = out if out is not None else Path("rlmon-report.html") if log is None else log / "report.html"
    write_page(file, found)
    say(str(file))
    note(f"{phrases.verdict(found)}: {found.headline}")


def write_page(file: Path, found: Audit) -> None:
    from rlmon.report.audit import build_page

    write(file, build_page(found))
