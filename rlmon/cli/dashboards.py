"""``rlmon dashboard``: views of runs where people already look."""

from __future__ import annotations

from typing import Annotated

import typer

from rlmon.cli.printing import say

dashboard = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Views of runs where people already look.")


@dashboard.callback()
def _places() -> None:
    """Views of runs where people already look."""


@dashboard.command(short_help="A view of a W&B project that tells what narrows.")
def wandb(
    project: Annotated[str, typer.Argument(metavar="ENTITY/PROJECT", help="As in the address of the project.")],
    show: Annotated[bool, typer.Option("--print", help="Print the view as JSON; no login, no server.")] = False,
) -> None:
    """Make the view `rlmon v1` in a W&B project: verdict, formats, entropy, KL, hard samples, interventions, text and
    health.

    Every run that rlmon watched shows in it. Called twice it is one view, and one that is there is left as it is, so
    that panels you moved stay. Other views are not touched. Needs pip install 'rlmon[dashboard]' and wandb login.

    \b
    rlmon dashboard wandb my-team/my-project
    rlmon dashboard wandb my-team/my-project --print
    """
    from rlmon.dashboard.asking import Place
    from rlmon.dashboard.wandb_view import make, spec

    place = Place.parse(project)
    if show:
        say(spec(place.entity, place.project).rstrip())
        return
    address, made = make(place.entity, place.project)
    say(f"{'The view is made' if made else 'The view is there already, and left as it is'}: {address}")
