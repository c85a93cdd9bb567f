"""The ``rlmon`` command.

Results go to stdout, progress and notes to stderr. Exit codes: 0 fine, 1 a finding at or above the level asked
for, 2 usage or unreadable input, 3 too little data to judge. Every command imports what it needs when it runs, so
that ``rlmon --help`` stays quick.
"""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from rlmon import __version__
from rlmon.errors import ConfigError, MissingExtraError, RLMonError, RunLogError

USAGE_OR_UNREADABLE = 2

app = typer.Typer(
    help="See which outputs your RL run is killing, while there is still time to stop it.",
    no_args_is_help=True,
    add_completion=False,
    # Plain help: the same in a pipe as on a terminal, and half the start-up time.
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


class CatalogueFormat(str, enum.Enum):
    """How a catalogue is printed."""

    text = "text"
    json = "json"
    markdown = "markdown"


class TrainerKind(str, enum.Enum):
    """Which TRL trainer a YAML file is for."""

    grpo = "grpo"
    rloo = "rloo"


def main() -> None:
    """Run the command line; what rlmon itself refuses becomes one line and exit code 2."""
    try:
        app(prog_name="rlmon")
    except RLMonError as error:
        print(f"rlmon: {error}", file=sys.stderr)
        sys.exit(USAGE_OR_UNREADABLE)


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and leave.")] = False,
) -> None:
    if version:
        print(f"rlmon {__version__}")
        raise typer.Exit


@app.command(short_help="The catalogue of metrics.")
def metrics(
    family: Annotated[str | None, typer.Argument(help="One family, for example entropy or format.")] = None,
    form: Annotated[CatalogueFormat, typer.Option("--format", help="How to print.")] = CatalogueFormat.text,
) -> None:
    """The catalogue of metrics: unit, range, direction, formula and source of each."""
    from rlmon.metrics.catalog import METRICS, render_markdown

    families = list(dict.fromkeys(_family(metric.name) for metric in METRICS))
    if family is not None and family not in families:
        raise ConfigError(f"There is no metric family {family!r}; there are {', '.join(families)}.")
    if form is CatalogueFormat.markdown and family is None:
        print(render_markdown(), end="")
        return
    rows = [dataclasses.asdict(metric) for metric in METRICS if family in (None, _family(metric.name))]
    _print_catalogue(rows, form)


@app.command(short_help="The catalogue of detectors, with the price of an alarm.")
def detectors(
    form: Annotated[CatalogueFormat, typer.Option("--format", help="How to print.")] = CatalogueFormat.text,
) -> None:
    """The catalogue of detectors: line, method, parameters and measured false-alarm rate of each."""
    from rlmon.detectors import catalogue

    rows = catalogue()
    if form is not CatalogueFormat.json:
        for row in rows:
            for rung in ("false_fail", "false_warn"):
                row[rung] = _price(row[rung])
    _print_catalogue(rows, form)


def _family(metric: str) -> str:
    return metric.split("/")[1]


def _price(measured: Mapping[str, Any] | None) -> str:
    if measured is None:
        return "not measured"
    return (
        f"{measured['rate']:.2%} of {measured['runs']} healthy runs of {measured['looks']} looks "
        f"(95 % interval {measured['low']:.2%} to {measured['high']:.2%})"
    )


def _print_catalogue(rows: Sequence[Mapping[str, Any]], form: CatalogueFormat) -> None:
    if form is CatalogueFormat.json:
        print(json.dumps(rows, indent=2))
        return
    markdown = form is CatalogueFormat.markdown
    for row in rows:
        (_, title), *rest = row.items()
        print(f"### `{title}`\n" if markdown else title)
        for key, value in rest:
            if value is not None and value != "":
                name = key.replace("_", " ")
                print(f"- {name}: {_said(value)}" if markdown else f"    {name}: {_said(value)}")
        print()


def _said(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_said(inner)}" for key, inner in value.items() if inner is not None)
    if isinstance(value, (list, tuple)):
        return ", ".join(_said(inner) for inner in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


@app.command(short_help="Look at completions.")
def show(
    path: Annotated[Path, typer.Argument(help="A run directory (<output_dir>/rlmon).")],
    step: Annotated[int | None, typer.Option(help="Only completions first trained at this step.")] = None,
    prompt: Annotated[str | None, typer.Option(help="Only this prompt_id, or the beginning of one.")] = None,
    mode: Annotated[str | None, typer.Option(help="Only this format mode.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most this many completions.")] = 20,
    all_attempts: Annotated[bool, typer.Option(help="Also rows that a resumed run has superseded.")] = False,
) -> None:
    """Look at completions: those of the newest step unless a filter says otherwise."""
    from collections import Counter

    import pyarrow.compute as pc

    from rlmon.runlog import open_run

    table = open_run(path).rollouts(all_attempts=all_attempts)
    if table.num_rows == 0:
        raise RunLogError(f"{path} holds no completions yet. They are written at each generation.")
    if step is None and prompt is None and mode is None:
        step = pc.max(pc.filter(table["step"], pc.equal(table["split"], "train"))).as_py()
        step = pc.max(table["step"]).as_py() if step is None else step
    if step is not None:
        table = table.filter(pc.equal(table["step"], step))
    if prompt is not None:
        table = table.filter(pc.starts_with(table["prompt_id"], prompt))
    counts = Counter(table["mode"].to_pylist())
    if mode is not None:
        table = table.filter(pc.equal(table["mode"], mode))
    if table.num_rows == 0:
        had = ", ".join(f"{name} {count}" for name, count in counts.most_common()) or "none for this step and prompt"
        raise RunLogError(f"No completion in {path} fits these filters. Modes there: {had}.")
    for row in table.slice(0, limit).to_pylist():
        _print_completion(row)
    total = sum(counts.values())
    modes = ", ".join(f"{name} {count / total:.2f}" for name, count in counts.most_common())
    print(f"{min(limit, table.num_rows)} of {table.num_rows} completions; modes: {modes}", file=sys.stderr)


def _print_completion(row: Mapping[str, Any]) -> None:
    from rlmon.sinks.terminal import one_line

    def number(value: float | None) -> str:
        return "-" if value is None else f"{value:.3g}"

    print(
        f"== step {row['step']} round {row['round']} {row['split']} row {row['global_row']} "
        f"prompt {row['prompt_id'][:12]} source {one_line(row['source'], 40)} mode {one_line(row['mode'], 40)} "
        f"reward {number(row['reward'])} advantage {number(row['advantage'])} tokens {row['completion_tokens']}"
        + (" truncated" if row["truncated"] else "")
    )
    for name in ("prompt", "completion"):
        text = row[name]
        if text is None:
            print(f"{name}: not stored (rlmon_store_text or rlmon_text_sample_per_round)")
            continue
        print(f"{name}:")
        # A mark before every line: no completion can pass for a line of ours.
        for line in text.split("\n"):
            print(f"  | {one_line(line, 2_000)}")
    print()


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
        print(line)


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


@app.command(short_help="Collapse a tiny model on purpose and watch it happen.")
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the run logs, demo.json and the page.")] = Path("out/demo"),
    quick: Annotated[bool, typer.Option("--quick", help="The first seed only, both arms, the same claims.")] = False,
    seeds: Annotated[str, typer.Option(help="Seeds, separated by commas.")] = "0,1,2",
    arms: Annotated[str | None, typer.Option(help="Only these arms, separated by commas. Default: all.")] = None,
) -> None:
    """Train a tiny model with real TRL GRPO until it knows one answer format only, and once more held by KL.

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


if __name__ == "__main__":
    main()
