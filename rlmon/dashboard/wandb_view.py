"""The story as a view of a W&B project.

A view is known to W&B by a name in its address. Ours is made of the version of the story, so that the second call finds
what the first has made, and a new layout of a later rlmon is another view beside it. A view that is there is left as it
is: somebody may have moved its panels.
"""

from __future__ import annotations

import json
import re
from typing import Any

from rlmon.dashboard.story import AXIS, STORY, Lines, Media, Part, Value
from rlmon.errors import RLMonError
from rlmon.printable import one_line

NAME = "rlmon v1"
ADDRESS = "rlmonv1"
"""As it stands in the view's address, ``?nw=rlmonv1``; letters and digits alone."""
WIDE, HIGH, COLUMNS = 8, 6, 3
"""Of a panel, in W&B's grid of 24 columns; panels in a row."""


class ViewError(RLMonError):
    """The view could not be made; the message says what to do."""


def view_of(entity: str, project: str) -> Any:
    """The view as a ``wandb_workspaces`` workspace, not yet saved."""
    workspaces, _ = _library()
    view = workspaces.Workspace(
        entity=entity,
        project=project,
        name=NAME,
        sections=[_section(part) for part in STORY],
        settings=workspaces.WorkspaceSettings(x_axis=AXIS),
        auto_generate_panels=False,
    )
    # Without a name of its own each save would make another view; the library has no public way to give one.
    view._internal_name = f"nw-{ADDRESS}-v"
    return view


def spec(entity: str, project: str) -> str:
    """The view as the JSON that W&B stores; neither a login nor a server is needed."""
    stored = view_of(entity, project)._to_model().spec.model_dump(mode="json", by_alias=True, exclude_none=True)
    return json.dumps(_without_chance(stored), indent=1, sort_keys=True) + "\n"


def make(entity: str, project: str) -> tuple[str, bool]:
    """Make the view unless it is there: its address, and whether it was made now.

    Raises ``ViewError`` where W&B cannot be asked or refuses.
    """
    workspaces, _ = _library()
    import wandb

    view = view_of(entity, project)
    try:
        base = wandb.Api(timeout=10).settings["base_url"]
        address = f"{base.rstrip('/')}/{entity}/{project}?nw={ADDRESS}"
        try:
            workspaces.Workspace.from_url(address)
        except ValueError as absent:
            if "Workspace" not in str(absent):
                raise
        else:
            return address, False
        view.save()
    except Exception as error:  # of a third party, and of the network
        raise ViewError(_in_words(error, entity, project)) from error
    return address, True


def _library() -> tuple[Any, Any]:
    try:
        import wandb_workspaces.reports.v2 as panels
        import wandb_workspaces.workspaces as workspaces
    except ImportError as error:
        raise ViewError(
            f"The W&B view needs another package ({error}). Type: pip install 'rlmon[dashboard]'"
        ) from error
    return workspaces, panels


def _section(part: Part) -> Any:
    workspaces, _ = _library()
    drawn = [_panel(panel, index) for index, panel in enumerate(part.panels)]
    layout = workspaces.SectionLayoutSettings(columns=COLUMNS, rows=-(-len(drawn) // COLUMNS))
    return workspaces.Section(name=part.title, panels=drawn, is_open=part.open, layout_settings=layout)


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


def _in_words(error: Exception, entity: str, project: str) -> str:
    said = one_line(str(error), 300)
    if "api key" in said.lower() or "api_key" in said.lower() or "not logged in" in said.lower():
        return "W&B does not know who you are. Type: wandb login"
    if "not found" in said.lower() and "roject" in said:
        return f"W&B has no project {entity}/{project} that you can see. A project begins with its first run."
    return f"W&B did not make the view ({type(error).__name__}: {said}). Nothing else is changed; try again later."
