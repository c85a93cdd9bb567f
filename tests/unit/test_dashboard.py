"""The view of a W&B project: its layout, and what the command does on a server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from fake_wandb import ENTITY, PROJECT, Server, serving

from rlmon.dashboard.story import AXIS, STORY, Lines, Media, Value
from rlmon.metrics.catalog import METRICS
from rlmon.metrics.families import FAMILIES

workspaces = pytest.importorskip("wandb_workspaces.workspaces")

from rlmon.dashboard.wandb_view import NAME, spec, view_of  # noqa: E402

GOLDEN = Path(__file__).parents[1] / "golden" / "dashboard" / "wandb-view.json"
BESIDE_METRICS = {"rlmon/faults", "rlmon/shed_rows", "rlmon/detectors_failed"}
TABLES = {"rlmon/findings", "rlmon/interventions", "rlmon/samples"}


def test_every_metric_of_the_story_is_in_the_catalogue_and_every_table_is_logged() -> None:
    names = {metric.name for metric in METRICS}
    histograms = {f"rlmon/histogram/{drawn.name}" for family in FAMILIES for drawn in family.histograms}
    panels = [panel for part in STORY for panel in part.panels]
    asked = {name for panel in panels if isinstance(panel, Lines) for name in panel.metrics}
    asked |= {panel.metric for panel in panels if isinstance(panel, Value)}
    assert asked - names == BESIDE_METRICS
    assert {f"{panel.family}<mode>" for panel in panels if isinstance(panel, Lines) and panel.family} <= names
    assert {key for panel in panels if isinstance(panel, Media) for key in panel.keys} == TABLES | histograms


def line_plots(stored: dict[str, Any]) -> list[dict[str, Any]]:
    sections = stored["section"]["panelBankConfig"]["sections"]
    return [panel for part in sections for panel in part["panels"] if panel["viewType"] == "Run History Line Plot"]


def test_the_view_is_what_it_was_and_every_line_stands_over_the_optimizer_step() -> None:
    stored = spec("team", "project")
    if "RENEW" in os.environ:
        GOLDEN.write_text(stored)
    assert json.loads(stored) == json.loads(GOLDEN.read_text())
    plots = line_plots(json.loads(stored))
    assert len(plots) > 20
    assert {plot["config"]["xAxis"] for plot in plots} == {AXIS}


def test_the_view_comes_back_from_what_w_and_b_stores() -> None:
    view = view_of("team", "project")
    back = workspaces.Workspace._from_model(view._to_model())
    assert back.name == NAME
    assert [part.name for part in back.sections] == [part.title for part in STORY]
    assert [len(part.panels) for part in back.sections] == [len(part.panels) for part in STORY]
    assert back.sections[1].panels[0].metric_regex == "^rlmon/format/share/"


def command(tmp_path: Path, server: Server, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ, "WANDB_BASE_URL": server.address, "WANDB_API_KEY": "0" * 40, "HOME": str(tmp_path),
        "WANDB_CONFIG_DIR": str(tmp_path), "WANDB_ERROR_REPORTING": "false",
    }  # fmt: skip
    return subprocess.run(
        [sys.executable, "-m", "rlmon.cli", "dashboard", "wandb", *words],
        env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def test_called_twice_it_is_one_view_and_those_of_others_stay_as_they_are(tmp_path: Path) -> None:
    with serving() as server:
        theirs = {"id": "view-0", "name": "nw-abc-v", "displayName": NAME, "spec": "{}"}
        server.views.append(dict(theirs))
        first = command(tmp_path, server, f"{ENTITY}/{PROJECT}")
        assert first.returncode == 0, first.stderr
        assert f"The view is made: {server.address}/{ENTITY}/{PROJECT}?nw=rlmonv1" in first.stdout
        assert server.views[0] == theirs
        made = dict(server.views[1])
        assert made["displayName"] == NAME
        assert len(line_plots(json.loads(made["spec"]))) > 20
        second = command(tmp_path, server, f"{ENTITY}/{PROJECT}")
        assert second.stdout.startswith("The view is there already, and left as it is: ")
        assert server.views == [theirs, made]


def test_a_project_that_is_not_there_is_said_in_plain_words(tmp_path: Path) -> None:
    with serving() as server:
        other = command(tmp_path, server, f"{ENTITY}/nothing")
        assert (other.returncode, other.stdout) == (2, "")
        assert f"W&B has no project {ENTITY}/nothing that you can see." in other.stderr
        assert server.views == []


@pytest.mark.slow
def test_a_server_that_is_down_is_said_in_plain_words_and_soon(tmp_path: Path) -> None:
    with serving() as server:
        server.status = 500
        began = time.monotonic()
        down = command(tmp_path, server, f"{ENTITY}/{PROJECT}")
        assert (down.returncode, down.stdout) == (2, "")
        assert "rlmon: W&B did not do it (" in down.stderr
        assert "Traceback" not in down.stderr
        assert time.monotonic() - began < 60  # 11 s on an idle machine: the client itself tries for ten
        assert server.views == []


def test_print_needs_no_server_and_a_project_has_two_names(tmp_path: Path) -> None:
    server = Server(address="http://127.0.0.1:9")
    printed = command(tmp_path, server, "team/project", "--print")
    assert json.loads(printed.stdout) == json.loads(GOLDEN.read_text())
    wrong = command(tmp_path, server, "team")
    assert wrong.returncode == 2
    assert "'team' is no ENTITY/PROJECT" in wrong.stderr
