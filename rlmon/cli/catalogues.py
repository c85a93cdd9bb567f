"""``rlmon metrics``, ``rlmon detectors`` and ``rlmon policy``: what there is, and what it means."""

from __future__ import annotations

import enum
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rlmon.cli.printing import aligned, draw, say
from rlmon.errors import ConfigError

if TYPE_CHECKING:
    from rlmon.interventions.show import RuleRow


class CatalogueFormat(str, enum.Enum):
    """How a catalogue is printed."""

    text = "text"
    json = "json"
    markdown = "markdown"


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
        say(render_markdown(), end="")
    elif form is CatalogueFormat.text and len(found) == 1:
        say("\n".join(catalogue.metric_lesson(found[0])))
    else:
        _print_catalogue([catalogue.fields(metric) for metric in found], form)


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
        say("\n".join(catalogue.detector_lesson(found[0])))
    else:
        _print_catalogue(found if form is CatalogueFormat.json else catalogue.priced(found), form)


def _print_catalogue(rows: Sequence[Mapping[str, Any]], form: CatalogueFormat) -> None:
    import rlmon.report.catalogue as catalogue

    if form is CatalogueFormat.json:
        say(json.dumps(rows, indent=2))
        return
    for line in catalogue.lines(rows, markdown=form is CatalogueFormat.markdown):
        say(line)


class PolicyFormat(str, enum.Enum):
    """How a policy is printed."""

    text = "text"
    yaml = "yaml"
    json = "json"


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
            say(json.dumps([{"kind": kind, "name": name, "help": text} for kind, name, text in known], indent=2))
            return
        for title, wanted in (("Presets (rlmon policy NAME shows the rules):", "preset"), ("Actions:", "action")):
            say(title)
            for line in aligned([("", name, text) for kind, name, text in known if kind == wanted]):
                say(line)
        return
    from rlmon.controller import load_policy

    resolved = load_policy(source)
    if form is PolicyFormat.json:
        say(json.dumps(resolved.to_dict(), indent=2))
    elif form is PolicyFormat.yaml:
        say(show.to_yaml(resolved), end="")
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
    draw(table)
    acting = sum(not row.dry_run for row in rows)
    nothing = "" if acting else " Nothing is changed; the log says what would have been."
    say(f"\n{acting} of {len(rows)} rules act.{nothing}")
