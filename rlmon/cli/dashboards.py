"""``rlmon dashboard``: views of runs where people already look."""

from __future__ import annotations

from typing import Annotated

import typer

from rlmon.cli.printing import say
from rlmon.errors import ConfigError

dashboard = typer.Typer(no_args_is_help=True, rich_markup_mode=None)


@dashboard.callback()
def _places() -> None:
    """Views of runs where people already look."""


@dashboard.command(short_help="A view of a W&B project that tells what narrows.")
def wandb(
    project: Annotated[str, typer.Argument(metavar="ENTITY/PROJECT", help="As in the address of the project.")],
    show: Annotated[bool, typer.Option("--print", help="Print the view as JSON; no login, no server.")] = False,
    report: Annotated[
        list[str] | None,
        typer.Option("--report", metavar="RUN", help="Instead, make a report of this run, by its id; give several."),
    ] = None,
    automations: Annotated[
        bool,
        typer.Option("--automations", help="Instead, make three rules on the server, to tell Slack or a webhook."),
    ] = False,
) -> None:
    """Make the view `rlmon v1` in a W&B project: verdict, formats, entropy, KL, hard samples, interventions, text and
    health.

    Every run that rlmon watched shows in it. Called twice it is one view, and one that is there is left as it is, so
    that panels you moved stay. Other views are not touched. Needs pip install 'rlmon[dashboard]' and wandb login.

    \b
    rlmon dashboard wandb my-team/my-project
    rlmon dashboard wandb my-team/my-project --print
    rlmon dashboard wandb my-team/my-project --report 1mbku38n --report 2u1g3j1c
    rlmon dashboard wandb my-team/my-project --automations    on FAIL, few formats left, faults

    \b
    Each --report makes another report. --automations leaves a rule that is there as it is.
    """
    import rlmon.dashboard.wandb_report as wandb_report
    import rlmon.dashboard.wandb_rules as wandb_rules
    import rlmon.dashboard.wandb_view as wandb_view
    from rlmon.asking import Place

    place = Place.parse(project)
    if show and (report or automations):
        raise ConfigError("--print shows the view, which needs no server; --report and --automations do.")
    if show:
        say(wandb_view.spec(place).rstrip())
        return
    if report:
        say(f"The report is made: {wandb_report.make(place, report)}")
    if automations:
        for line in wandb_rules.make(place):
            say(line)
    if report or automations:
        return
    address, made = wandb_view.make(place)
    say(f"{'The view is made' if made else 'The view is there already, and left as it is'}: {address}")
