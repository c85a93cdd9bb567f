"""``rlmon dashboard``: views of runs where people already look."""

from __future__ import annotations

from typing import Annotated

import typer

from rlmon.cli.printing import say
from rlmon.errors import RLMonError

dashboard = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Views of runs where people already look.")


class ProjectError(RLMonError):
    """A project was not named as ENTITY/PROJECT."""


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
    from rlmon.dashboard.wandb_view import make, spec

    entity, slash, name = project.strip("/").partition("/")
    if not (entity and slash and name) or "/" in name:
        raise ProjectError(
            f"{project!r} is no ENTITY/PROJECT. Both are in the address of the project, "
            "https://wandb.ai/ENTITY/PROJECT. Type, for example: rlmon dashboard wandb my-team/my-project"
        )
    if show:
        say(spec(entity, name).rstrip())
        return
    address, made = make(entity, name)
    say(f"{'The view is made' if made else 'The view is there already, and left as it is'}: {address}")
