"""The ``rlmon`` command.

Results go to stdout, progress and notes to stderr. Exit codes: 0 fine, 1 a finding at or above the level asked
for, 2 usage or unreadable input, 3 unsure (only with ``--strict``), 130 interrupted. Every command
imports what it needs when it runs, so that ``rlmon --help`` stays quick.
"""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import json
import os
import secrets
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import typer.core

from rlmon import __version__
from rlmon.errors import ConfigError, MissingExtraError, RLMonError, RunLogError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from rlmon.audit.result import Audit
    from rlmon.interventions.show import RuleRow

FINDING = 1
USAGE_OR_UNREADABLE = 2
UNSURE = 3
WORST_FIRST = (USAGE_OR_UNREADABLE, FINDING, UNSURE, 0)
PROGRESS_AFTER_SECONDS = 1.0
TRACEBACK = "TRACEBACK"
"""Environment variable: an unforeseen error shows its traceback."""

app = typer.Typer(
    help="See which outputs your RL run is killing, while there is still time to stop it.",
    no_args_is_help=True,
    add_completion=False,
    # Plain help: the same in a pipe as on a terminal, and half the start-up time.
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


SUCCESS_HELP = (
    "What a success is: 0.5, accuracy_reward or accuracy_reward>0.9. Default: the log's own, else its rewards."
)
READER_HELP = "The reader to use, for example trl, wandb or tensorboard. Default: what the files look like."
MAP_HELP = "Which of the file's columns are prompt, completion, reward, step, ... (implies the mapped reader)."


class CatalogueFormat(str, enum.Enum):
    """How a catalogue is printed."""

    text = "text"
    json = "json"
    markdown = "markdown"


class PolicyFormat(str, enum.Enum):
    """How a policy is printed."""

    text = "text"
    yaml = "yaml"
    json = "json"


class AuditFormat(str, enum.Enum):
    """How audits are printed."""

    rich = "rich"
    json = "json"
    markdown = "markdown"
    junit = "junit"
    github = "github"


class CompareFormat(str, enum.Enum):
    """How a comparison is printed."""

    rich = "rich"
    json = "json"
    markdown = "markdown"


class FailOn(str, enum.Enum):
    """From which verdict on the exit code is 1."""

    never = "never"
    warn = "warn"
    fail = "fail"


class TrainerKind(str, enum.Enum):
    """Which trainer a YAML file is for."""

    grpo = "grpo"
    rloo = "rloo"
    ppo = "ppo"


def main() -> None:
    """Run the command line; what rlmon itself refuses becomes one line and exit code 2."""
    _never_fail_on_odd_characters()
    try:
        app(prog_name="rlmon")
    except RLMonError as error:
        _note(f"rlmon: {error}")
        sys.exit(USAGE_OR_UNREADABLE)
    except Exception as error:
        if TRACEBACK in os.environ:
            raise
        # A verdict is 0 or 1: a mistake of ours must not look like one.
        said = f"{type(error).__name__}: {error} ({TRACEBACK}=1 shows where)"
        _note(f"rlmon: a mistake of rlmon's own, please report it: {said}")
        sys.exit(USAGE_OR_UNREADABLE)
    finally:
        with _reader_may_leave():
            sys.stdout.flush()


def _never_fail_on_odd_characters() -> None:
    """A terminal or pipe in another encoding gets backslash escapes instead of an error."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


@contextlib.contextmanager
def _reader_may_leave() -> Iterator[None]:
    """Whoever reads our output may have had enough (``| head``): what follows goes nowhere, and nothing is said."""
    try:
        yield
    except BrokenPipeError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def _say(text: str = "", end: str = "\n") -> None:
    with _reader_may_leave():
        sys.stdout.write(text + end)


def _draw(drawing: RenderableType) -> None:
    from rich.console import Console

    with _reader_may_leave():
        Console(highlight=False).print(drawing)


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and leave.")] = False,
) -> None:
    if version:
        print(f"rlmon {__version__}")
        raise typer.Exit


@app.command(short_help="Collapse a tiny model on purpose and watch it happen.")
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the run logs, demo.json and the page.")] = Path("out/demo"),
    quick: Annotated[bool, typer.Option("--quick", help="The first seed only, all arms, the same claims.")] = False,
    seeds: Annotated[str, typer.Option(help="Seeds, separated by commas.")] = "0,1,2",
    arms: Annotated[str | None, typer.Option(help="Only these arms, separated by commas. Default: all.")] = None,
) -> None:
    """Train a tiny model with real TRL GRPO until it knows one answer format only, and twice more: held, so that the
    formats stay, by a KL on every token (arm kl) and by rlmon's policy of that name (arm protect).

    Ends with a table, demo.json and one self-contained HTML page. Exit code 1 when a claim does not hold.
    """
    _need_trl("demo")
    from rlmon.lab.demo import ARMS, run

    try:
        numbers = tuple(int(seed) for seed in seeds.split(","))
    except ValueError:
        raise ConfigError(f"--seeds must be whole numbers separated by commas, got {seeds!r}.") from None
    names = tuple(arms.split(",")) if arms is not None else tuple(ARMS)
    raise typer.Exit(run(out, numbers, names, quick))


@app.command(short_help="What a YAML file would have captured, and what not.")
def check(
    config: Annotated[Path, typer.Argument(help="A YAML file for `trl grpo`, `trl rloo` or trainers/train_*.py.")],
    trainer: Annotated[TrainerKind, typer.Option(help="The trainer that it is for.")] = TrainerKind.grpo,
) -> None:
    """What will be captured with this TRL, this config and this machine; what cannot be, and why."""
    _need_trl("check")
    # Libraries greet on stdout when they are imported or configured; that is where the result goes.
    with contextlib.redirect_stdout(sys.stderr):
        from rlmon.trl.check import check_config

        report = check_config(config, trainer.value)
    for note in report.notes:
        print(note, file=sys.stderr)
    for line in _aligned(report.rows):
        _say(line)
    if report.refused:
        for refusal in report.refused:
            _note(f"rlmon: training would be refused before its first step: {refusal}")
        raise typer.Exit(USAGE_OR_UNREADABLE)


@app.command(short_help="What a policy would do.")
def policy(
    source: Annotated[
        str | None, typer.Argument(metavar="[NAME|FILE]", help="A preset, or a YAML file of rules.", show_default=False)
    ] = None,
    form: Annotated[PolicyFormat, typer.Option("--format", help="How to print.")] = PolicyFormat.text,
) -> None:
    """What a policy would do: its rules as resolved. Without one, the presets and actions that there are.

    \b
    rlmon policy protect                                   its rules: when, what, with which settings
    rlmon policy protect --format yaml > policy.yaml       a file to edit; then rlmon_policy: policy.yaml
    """
    import rlmon.interventions.show as show
    from rlmon.extensions import installed

    if source is None:
        if form is PolicyFormat.yaml:
            raise ConfigError("--format yaml writes one policy: rlmon policy protect --format yaml.")
        known = list(show.catalogue(installed("rlmon.actions")))
        if form is PolicyFormat.json:
            _say(json.dumps([{"kind": kind, "name": name, "help": text} for kind, name, text in known], indent=2))
            return
        for title, wanted in (("Presets (rlmon policy NAME shows the rules):", "preset"), ("Actions:", "action")):
            _say(title)
            for line in _aligned([("", name, text) for kind, name, text in known if kind == wanted]):
                _say(line)
        return
    from rlmon.steering import load_policy

    resolved = load_policy(source)
    if form is PolicyFormat.json:
        _say(json.dumps(resolved.to_dict(), indent=2))
    elif form is PolicyFormat.yaml:
        _say(show.to_yaml(resolved), end="")
    else:
        _draw_policy([show.row(rule) for rule in resolved.rules])


def _draw_policy(rows: Sequence[RuleRow]) -> None:
    from rich.text import Text

    from rlmon.printable import one_line
    from rlmon.report.screen import columns

    table = columns(("rule", "do", "when", "not the default"), frozenset(), fold=frozenset({1, 2, 3}))
    for row in rows:
        do = Text(row.do, style="cyan").append(" (dry run)" if row.dry_run else "", style="yellow")
        table.add_row(Text(row.name, style="bold"), do, Text(one_line(row.when)), Text(one_line(row.settings)))
    _draw(table)
    acting = sum(not row.dry_run for row in rows)
    nothing = "" if acting else " Nothing is changed; the log says what would have been."
    _say(f"\n{acting} of {len(rows)} rules act.{nothing}")


def _need_trl(command: str) -> None:
    from importlib.util import find_spec

    for package in ("torch", "transformers", "trl"):
        if find_spec(package) is None:
            raise MissingExtraError(
                f"`rlmon {command}` needs {package}, which is not installed. Type: pip install 'rlmon[trl]'"
            )


def _aligned(rows: Sequence[Sequence[str]]) -> Iterable[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]) - 1)]
    for row in rows:
        yield "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]]).rstrip()


class _ReadsRuns(typer.core.TyperCommand):
    """A command whose help names the readers of installed packages."""

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        from importlib.metadata import entry_points

        if names := sorted(entry.name for entry in entry_points(group="rlmon.readers")):
            formatter.write_paragraph()
            formatter.write_text(f"Readers of installed packages: {', '.join(names)}.")


@app.command(short_help="What happened to a run: verdict, checks, advice.", cls=_ReadsRuns)
def audit(
    paths: Annotated[list[Path], typer.Argument(metavar="PATH", help="Runs: a folder or a file of any of them.")],
    reader: Annotated[str | None, typer.Option(metavar="NAME", help=READER_HELP)] = None,
    mapping: Annotated[str | None, typer.Option("--map", metavar="OUR=THEIRS,...", help=MAP_HELP)] = None,
    form: Annotated[AuditFormat, typer.Option("--format", help="How to print.")] = AuditFormat.rich,
    fail_on: Annotated[
        FailOn, typer.Option(help="From which verdict on the exit code is 1; a note is none.")
    ] = FailOn.fail,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 3 where the verdict is unsure.")] = False,
    page: Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Also write the page.")] = None,
    baseline: Annotated[
        Path | None, typer.Option(metavar="RUN", help="A run whose first steps are the base, instead of its own.")
    ] = None,
    success: Annotated[str | None, typer.Option(metavar="WHAT", help=SUCCESS_HELP)] = None,
    processes: Annotated[int | None, typer.Option(min=1, help="Worker processes. Default: what pays.")] = None,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="All of each of several runs.")] = False,
) -> None:
    """What happened to a run: a verdict, its checks, and what to change.

    Reads rlmon's own logs and what TRL, W&B, TensorBoard, trackio, verl and others left behind; it needs none of
    them installed, and no GPU.

    \b
    rlmon audit out/grpo                                the folder of a TRL run (log_completions=True)
    rlmon audit out/grpo --html report.html             and a page with charts and completions
    rlmon audit wandb/run-20250101_120000-abc           an offline or synced W&B run
    rlmon audit rows.jsonl --map prompt=question,completion=text,reward=score,step=iteration
    rlmon audit out/grpo --format github --fail-on warn    in CI; also junit, markdown, json
    rlmon audit out                                     a folder of runs: a line each, worst first; --verbose for all

    \b
    Exit codes: 0 nothing at or above --fail-on; 1 something was; 2 usage or unreadable;
    3 unsure: nothing bad was seen, and too little to call it a pass; only with --strict.
    """
    import rlmon.report.phrases as phrases
    from rlmon.audit.readers import runs_at

    columns = _mapping(mapping)
    if reader is None and columns is None:
        paths = [run for path in paths for run in runs_at(path) or [path]]
    if page is not None and len(paths) > 1:
        raise ConfigError(f"--html writes the page of one run, got {len(paths)}. Audit them one by one.")
    audits: list[Audit] = []
    code = 0
    for path in paths:
        try:
            found = _audit(path, reader, columns, baseline, processes, success)
        except RLMonError as error:
            if len(paths) == 1:
                raise
            # One run that cannot be read does not hide what the others show.
            _note(f"rlmon: {error}")
            code = USAGE_OR_UNREADABLE
            continue
        audits.append(found)
        code = min(code, _exit_code(found, fail_on, strict), key=WORST_FIRST.index)
    for line in phrases.unsure(audits, each=len(paths) == 1 or verbose or form is not AuditFormat.rich):
        _note(line)
    if page is not None:
        _write_page(page, audits[0])
    if form is AuditFormat.rich:
        _draw_audits(audits, page, verbose)
    elif audits or form is not AuditFormat.markdown:
        _say(_rendered(audits, form, fail_on, many=len(paths) > 1), end="")
    raise typer.Exit(code)


def _audit(
    path: Path,
    reader: str | None,
    columns: Mapping[str, str] | None,
    baseline: Path | None,
    processes: int | None,
    success: str | None,
) -> Audit:
    import rlmon.audit.engine as engine

    if _is_the_command():
        engine.spare_pandas()
    with _progress(str(path)) as progress:
        return engine.audit(
            path,
            reader=reader,
            mapping=columns,
            baseline=baseline,
            success=success,
            processes=processes,
            progress=progress,
        )


def _is_the_command() -> bool:
    """Whether this process was started as ``rlmon`` (or ``python -m rlmon.cli``) and is nobody else's."""
    started = getattr(sys.modules.get("__main__"), "__file__", None)
    return started is not None and Path(started).stem in ("rlmon", "cli")


def _exit_code(found: Audit, fail_on: FailOn, strict: bool) -> int:
    if fail_on is not FailOn.never and found.verdict in ("fail", fail_on.value):
        return FINDING
    return UNSURE if strict and found.verdict == "insufficient" else 0


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
        return github.render(*audits)
    return markdown.render(*audits)


def _draw_audits(audits: Sequence[Audit], page: Path | None, verbose: bool) -> None:
    from rich.console import Console, Group
    from rich.rule import Rule

    import rlmon.report.terminal as terminal

    width = Console().width
    if len(audits) > 1 and not verbose:
        import rlmon.report.overview as lines
        from rlmon.audit.overview import overview

        _draw(lines.render(overview(audits), width=width))
        return
    for position, found in enumerate(audits):
        drawing = terminal.render(found, width=width, page=None if page is None else str(page))
        _draw(Group(Rule(style="dim"), drawing) if position else drawing)


def _mapping(text: str | None) -> dict[str, str] | None:
    """``prompt=question,completion=text`` as a mapping."""
    if text is None:
        return None
    pairs = [pair.partition("=") for pair in text.split(",") if pair.strip()]
    wrong = [ours + equals + theirs for ours, equals, theirs in pairs if not (ours.strip() and theirs.strip())]
    if wrong or not pairs:
        raise ConfigError(f"--map takes pairs like prompt=question,completion=text (rlmon's name first), got {text!r}.")
    return {ours.strip(): theirs.strip() for ours, _, theirs in pairs}


@contextlib.contextmanager
def _progress(name: str) -> Iterator[Callable[[int, int], None] | None]:
    """Something to call with bytes done and in all: a bar on stderr, where that is a terminal and it takes a while."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
    from rich.text import Text

    from rlmon.printable import one_line

    bar = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    task = bar.add_task(Text(one_line(name, 60)).plain)
    began = time.monotonic()
    started = False

    def tell(done: int, total: int) -> None:
        nonlocal started
        bar.update(task, completed=done, total=total)
        if not started and time.monotonic() - began > PROGRESS_AFTER_SECONDS:
            bar.start()
            started = True

    try:
        yield tell
    finally:
        if started:
            bar.stop()


def _note(text: str) -> None:
    from rlmon.printable import one_line

    print(one_line(text, 4_000), file=sys.stderr)


def _write_page(file: Path, found: Audit) -> None:
    from rlmon.report.audit import build_page

    _write(file, build_page(found))


def _write(file: Path, text: str) -> None:
    """Replace the file as a whole. A link there is replaced and not followed: a run's folder may come from anybody."""
    temporary = file.parent / f".{file.name}.{secrets.token_hex(4)}.tmp"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "x", encoding="utf-8", errors="backslashreplace") as stream:
            stream.write(text)
        os.replace(temporary, file)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise ConfigError(f"cannot write {file}: {error.strerror or error}. Choose another file.") from error


@app.command(short_help="The same as one HTML page, with charts and completions.")
def report(
    path: Annotated[Path, typer.Argument(help="A run, as for `rlmon audit`.")],
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Default: report.html in an rlmon log, else ./rlmon-report.html."),
    ] = None,
    reader: Annotated[str | None, typer.Option(metavar="NAME", help=READER_HELP)] = None,
    mapping: Annotated[str | None, typer.Option("--map", metavar="OUR=THEIRS,...", help=MAP_HELP)] = None,
    baseline: Annotated[Path | None, typer.Option(metavar="RUN", help="As for `rlmon audit`.")] = None,
    success: Annotated[str | None, typer.Option(metavar="WHAT", help="As for `rlmon audit`.")] = None,
    processes: Annotated[int | None, typer.Option(min=1, help="As for `rlmon audit`.")] = None,
) -> None:
    """Audit a run and write one self-contained HTML file: no server, no network, made to be mailed.

    \b
    rlmon report out/grpo
    rlmon report out/grpo/rlmon --out ~/public/run-7.html
    """
    import rlmon.report.phrases as phrases

    found = _audit(path, reader, _mapping(mapping), baseline, processes, success)
    log = _log_in(path)
    file = out if out is not None else Path("rlmon-report.html") if log is None else log / "report.html"
    _write_page(file, found)
    _say(str(file))
    _note(f"{phrases.verdict(found)}: {found.headline}")


def _log_in(path: Path) -> Path | None:
    """The rlmon log that ``path`` is or holds."""
    return next((folder for folder in (path, path / "rlmon") if (folder / "run.json").is_file()), None)


@app.command(short_help="Whether two runs, or two sets of seeds, differ.")
def compare(
    a: Annotated[str, typer.Argument(metavar="A", help="A run, or runs (seeds) separated by commas.")],
    b: Annotated[str, typer.Argument(metavar="B", help="The other run, or runs.")],
    more_a: Annotated[list[Path] | None, typer.Option("--a", metavar="PATH", help="One more run of A.")] = None,
    more_b: Annotated[list[Path] | None, typer.Option("--b", metavar="PATH", help="One more run of B.")] = None,
    base: Annotated[Path | None, typer.Option(metavar="RUN", help="A run whose first steps are the base.")] = None,
    form: Annotated[CompareFormat, typer.Option("--format", help="How to print.")] = CompareFormat.rich,
    page: Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Also write the page.")] = None,
    reader: Annotated[str | None, typer.Option(metavar="NAME", help=READER_HELP)] = None,
    mapping: Annotated[str | None, typer.Option("--map", metavar="OUR=THEIRS,...", help=MAP_HELP)] = None,
    success: Annotated[str | None, typer.Option(metavar="WHAT", help="As for `rlmon audit`.")] = None,
    processes: Annotated[int | None, typer.Option(min=1, help="As for `rlmon audit`.")] = None,
) -> None:
    """What differs between two runs, or between two sets of seeds: where they part, how they end, what each lost.

    \b
    rlmon compare out/plain out/kl
    rlmon compare out/plain-0,out/plain-1 out/kl-0,out/kl-1 --html compare.html
    rlmon compare out/plain-0 out/kl-0 --a out/plain-1 --b out/kl-1 --base out/base
    """
    import rlmon.report.compare_markdown as compare_markdown
    import rlmon.report.compare_page as compare_page
    import rlmon.report.compare_terminal as compare_terminal
    import rlmon.report.compare_words as compare_words
    from rlmon.audit.comparison import compare as compared

    columns = _mapping(mapping)
    sides = [[*_paths(text), *(more or [])] for text, more in ((a, more_a), (b, more_b))]
    audits = [[_audit(path, reader, columns, None, processes, success) for path in side] for side in sides]
    result = compared(
        audits[0],
        audits[1],
        None if base is None else _audit(base, reader, columns, None, processes, success),
        compare_words.side_names(*sides),
    )
    if page is not None:
        _write(page, compare_page.html(result))
        _note(f"The page is {page}.")
    if form is CompareFormat.rich:
        from rich.console import Console

        _draw(compare_terminal.render(result, width=Console().width))
    else:
        text = compare_words.json(result) if form is CompareFormat.json else compare_markdown.render(result)
        _say(text.rstrip("\n"))


def _paths(text: str) -> list[Path]:
    """``A1,A2`` as paths; a path that exists may hold commas."""
    if Path(text).exists():
        return [Path(text)]
    return [Path(part) for part in text.split(",") if part]


@app.command(short_help="A run as it trains, on one screen.")
def watch(
    path: Annotated[Path, typer.Argument(help="A run directory (<output_dir>/rlmon), or the folder it will be in.")],
    every: Annotated[float, typer.Option(metavar="SECONDS", min=0.1, help="How often to look.")] = 2.0,
    once: Annotated[bool, typer.Option("--once", help="Print one screen and leave.")] = False,
) -> None:
    """A run as it trains, on one screen: progress, metrics against the base, detectors, findings, faults.

    Reads the log only, from another terminal or another machine that sees the folder; it can be started before the
    run is. Ctrl-C leaves.

    \b
    rlmon watch out/grpo
    rlmon watch out/grpo --once          one screen, for a script or a mail
    """
    from rlmon.report.watch import watch as run_watch

    with _reader_may_leave():
        run_watch(path, every_seconds=every, once=once)


@app.command(short_help="Look at completions.")
def show(
    path: Annotated[Path, typer.Argument(help="A run directory (<output_dir>/rlmon), or any run that can be audited.")],
    step: Annotated[int | None, typer.Option(help="Only completions of this step (first trained at it).")] = None,
    prompt: Annotated[str | None, typer.Option(help="Only this prompt_id, or the beginning of one.")] = None,
    mode: Annotated[str | None, typer.Option(help="Only this format mode.")] = None,
    template: Annotated[str | None, typer.Option(help="Only this template (the short name that is shown).")] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most this many completions.")] = 20,
    all_attempts: Annotated[bool, typer.Option(help="Also rows that a resumed run has superseded.")] = False,
    reader: Annotated[str | None, typer.Option(metavar="NAME", help=READER_HELP)] = None,
    mapping: Annotated[str | None, typer.Option("--map", metavar="OUR=THEIRS,...", help=MAP_HELP)] = None,
) -> None:
    """Look at completions: those of the newest step unless a filter says otherwise.

    \b
    rlmon show out/grpo/rlmon --step 120 --mode json
    rlmon show out/grpo --prompt 3f2a --limit 50        any run that can be audited
    """
    import rlmon.report.show as shown

    filters = shown.Filters(step=step, prompt=prompt, mode=mode, template=template, limit=limit)
    if reader is None and mapping is None and (log := _log_in(path)) is not None:
        from rlmon.runlog import open_run

        found = shown.of_log(open_run(log), filters, all_attempts=all_attempts)
    else:
        from rlmon.audit.readers import open_source

        found = shown.of_run(open_source(path, reader=reader, mapping=_mapping(mapping)), filters)
    modes = found.modes.most_common()
    if not found.rows:
        had = ", ".join(f"{name} {count}" for name, count in modes) or "none for this step and prompt"
        raise RunLogError(f"No completion in {path} fits these filters. Modes there: {had}.")
    for row in found.rows:
        _say(shown.render(row))
    shares = ", ".join(f"{name} {count / found.modes.total():.2f}" for name, count in modes)
    _note(f"{len(found.rows)} of {found.fitting} completions; modes: {shares}")


@app.command(short_help="The catalogue of metrics, or one of them explained.")
def metrics(
    name: Annotated[
        str | None, typer.Argument(help="One family (entropy), or one metric (rlmon/entropy/mean).", show_default=False)
    ] = None,
    form: Annotated[CatalogueFormat, typer.Option("--format", help="How to print.")] = CatalogueFormat.text,
) -> None:
    """The catalogue of metrics: unit, range, direction, formula and source of each.

    \b
    rlmon metrics entropy                    a family
    rlmon metrics rlmon/entropy/mean         one explained: what it is, who watches it, what trainers call it
    rlmon metrics frac_reward_zero_std       by a trainer's name
    """
    import rlmon.report.catalogue as catalogue
    from rlmon.metrics.catalog import render_markdown

    found = catalogue.metrics_named(name)
    if form is CatalogueFormat.markdown and name is None:
        _say(render_markdown(), end="")
    elif form is CatalogueFormat.text and len(found) == 1:
        _say("\n".join(catalogue.metric_lesson(found[0])))
    else:
        _print_catalogue([dataclasses.asdict(metric) for metric in found], form)


@app.command(short_help="The catalogue of detectors, or one of them explained.")
def detectors(
    name: Annotated[str | None, typer.Argument(help="One detector (format-collapse).", show_default=False)] = None,
    form: Annotated[CatalogueFormat, typer.Option("--format", help="How to print.")] = CatalogueFormat.text,
) -> None:
    """The catalogue of detectors: line, method, parameters and measured false-alarm rate of each.

    \b
    rlmon detectors entropy-collapse         one explained: what it asks, when it speaks, what to do then
    """
    import rlmon.report.catalogue as catalogue

    found = catalogue.detectors_named(name)
    if form is CatalogueFormat.text and name is not None:
        _say("\n".join(catalogue.detector_lesson(found[0])))
    else:
        _print_catalogue(found if form is CatalogueFormat.json else catalogue.priced(found), form)


def _print_catalogue(rows: Sequence[Mapping[str, Any]], form: CatalogueFormat) -> None:
    import rlmon.report.catalogue as catalogue

    if form is CatalogueFormat.json:
        _say(json.dumps(rows, indent=2))
        return
    for line in catalogue.lines(rows, markdown=form is CatalogueFormat.markdown):
        _say(line)


if __name__ == "__main__":
    main()
