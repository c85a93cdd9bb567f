"""The story as a view of a W&B project.

A view is known to W&B by a name in its address. Ours is made of the version of the story, so that the second call finds
what the first has made, and a new layout of a later rlmon is another view beside it. A view that is there is left as it
is: somebody may have moved its panels.
"""

from __future__ import annotations

import json
import re
from typing import Any

from rlmon.asking import Place, asking
from rlmon.dashboard.story import AXIS, STORY, Lines, Media, Part, Value

NAME = "rlmon v1"
ADDRESS = "rlmonv1"
"""As it stands in the view's address, ``?nw=rlmonv1``; letters and digits alone."""
WIDE, HIGH, COLUMNS = 8, 6, 3
"""Of a panel, in W&B's grid of 24 columns; panels in a row."""
PINNED = (
    "run:displayName",
    "summary:rlmon/verdict",
    "summary:rlmon/first_alarm_step",
    "summary:rlmon/format/effective.min",
    "summary:rlmon/entropy/ratio_to_base.min",
    "summary:rlmon/kl/mean.max",
)
"""Columns of the table of runs that stand first."""


def view_of(place: Place) -> Any:
    """The view as a ``wandb_workspaces`` workspace, not yet saved."""
    workspaces, _ = _library()
    view = workspaces.Workspace(
        entity=place.entity,
        project=place.project,
        name=NAME,
        sections=[_section(part) for part in STORY],
        settings=workspaces.WorkspaceSettings(x_axis=AXIS),
        runset_settings=workspaces.RunsetSettings(pinned_columns=list(PINNED)),
        auto_generate_panels=False,
    )
    # Without a name of its own each save would make another view; the library has no public way to give one.
    view._internal_name = f"nw-{ADDRESS}-v"
    return view


def spec(place: Place) -> str:
    """The view as the JSON that W&B stores; neither a login nor a server is needed."""
    stored = view_of(place)._to_model().spec.model_dump(mode="json", by_alias=True, exclude_none=True)
    return json.dumps(_without_chance(stored), indent=1, sort_keys=True) + "\n"


def make(place: Place) -> tuple[str, bool]:
    """Make the view unless it is there: its address, and whether it was made now.

    Raises ``TrackerError`` where W&B cannot be asked or refuses, ``MissingExtraError`` without its packages.
    """
    with asking(place):
        import wandb

        wandb.Api(timeout=10)  # asks who we are: what it would say in 19 s
        view = view_of(place)
        found = _is_there(place)
        if not found:
            view.save()
        return str(view.url), not found


def _is_there(place: Place) -> bool:
    workspaces, _ = _library()
    from wandb_workspaces.workspaces.errors import SpecVersionError

    try:
        workspaces.Workspace.from_url(f"https://wandb.ai/{place}?nw={ADDRESS}")
    except SpecVersionError:  # W&B's page has made it newer than the package
        return True
    except ValueError as error:
        if type(error) is not ValueError:  # pydantic's: somebody made of it what the package cannot read
            return True
        if str(error).startswith("Workspace"):
            return False
        raise  # there is no such project
    return True


def _library() -> tuple[Any, Any]:
    with asking(""):
        import wandb_workspaces.reports.v2 as panels
        import wandb_workspaces.workspaces as workspaces
    return workspaces, panels


def _section(part: Part) -> Any:
    workspaces, _ = _library()
    drawn = panels_of(part)
    layout = workspaces.SectionLayoutSettings(columns=COLUMNS, rows=-(-len(drawn) // COLUMNS))
    return workspaces.Section(name=part.title, panels=drawn, is_open=part.open, layout_settings=layout)


def panels_of(part: Part) -> list[Any]:
    """The part's panels, three beside each other."""
    return [_panel(panel, index) for index, panel in enumerate(part.panels)]


def _panel(panel: Lines | Value | Media, index: int) -> Any:
    _, panels = _library()
    layout = panels.Layout(x=index % COLUMNS * WIDE, y=index // COLUMNS * HIGH, w=WIDE, h=HIGH)
    if isinstance(panel, Value):
        return panels.ScalarChart(title=panel.title, metric=panel.metric, layout=layout)
    if isinstance(panel, Media):
        return panels.MediaBrowser(title=panel.title, media_keys=list(panel.keys), layout=layout)
    # On every panel: W&B's page does not take the x axis from what the run has defined.
    if panel.family:
        return panels.LinePlot(title=panel.title, x=AXIS, metric_regex=f"^{re.escape(panel.family)}", layout=layout)
    return panels.LinePlot(title=panel.title, x=AXIS, y=list(panel.metrics), layout=layout)


def _without_chance(stored: Any) -> Any:
    """Without the ids that the library draws anew each time."""
    if isinstance(stored, dict):
        return {key: _without_chance(value) for key, value in stored.items() if key not in ("__id__", "id")}
    return [_without_chance(value) for value in stored] if isinstance(stored, list) else stored
