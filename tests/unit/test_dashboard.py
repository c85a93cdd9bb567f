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
from fake_wandb import ENTITY, PROJECT, Server, generated, operations, serving

from rlmon.asking import Place
from rlmon.dashboard.story import AXIS, STORY, Lines, Media, Value
from rlmon.dashboard.wandb_rules import RULES
from rlmon.dashboard.wandb_view import NAME, spec, view_of
from rlmon.detectors.catalog import DETECTORS
from rlmon.errors import MissingExtraError
from rlmon.metrics.catalog import METRICS
from rlmon.metrics.families import FAMILIES

workspaces = pytest.importorskip("wandb_workspaces.workspaces")

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
    stored = spec(Place("team", "project"))
    if "RENEW" in os.environ:
        GOLDEN.write_text(stored)
    assert json.loads(stored) == json.loads(GOLDEN.read_text())
    plots = line_plots(json.loads(stored))
    assert len(plots) > 20
    assert {plot["config"]["xAxis"] for plot in plots} == {AXIS}


def test_the_view_comes_back_from_what_w_and_b_stores() -> None:
    view = view_of(Place("team", "project"))
    back = workspaces.Workspace._from_model(view._to_model())
    assert back.name == NAME
    assert [part.name for part in back.sections] == [part.title for part in STORY]
    assert [len(part.panels) for part in back.sections] == [len(part.panels) for part in STORY]
    assert back.sections[1].panels[0].metric_regex == "^rlmon/format/share/"


def command(tmp_path: Path, server: Server, *words: str, key: str = "0" * 40) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ, "WANDB_BASE_URL": server.address, "WANDB_API_KEY": key, "HOME": str(tmp_path),
        "WANDB_CONFIG_DIR": str(tmp_path), "WANDB_ERROR_REPORTING": "false",
    }  # fmt: skip
    return subprocess.run(
        [sys.executable, "-m", "rlmon.cli", "dashboard", "wandb", *words],
        env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False,
        stdin=subprocess.DEVNULL,
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


def summary(**changes: Any) -> str:
    kept = {
        "rlmon/verdict": "fail", "rlmon/first_alarm_step": 47,
        "rlmon/format/effective": {"min": 1.25, "last": 1.5}, "rlmon/entropy/ratio_to_base": {"min": 0.0625},
    }  # fmt: skip
    return json.dumps({**kept, **changes})


def test_a_report_has_the_verdicts_and_the_panels_over_its_runs_alone(tmp_path: Path) -> None:
    with serving() as server:
        server.runs["abc"] = {"displayName": "evil](http://x) | **run**", "summaryMetrics": summary()}
        server.runs["def"] = {"displayName": "plain", "summaryMetrics": "{}"}
        made = command(tmp_path, server, f"{ENTITY}/{PROJECT}", "--report", "abc", "--report", "def")
        assert made.returncode == 0, made.stderr
        assert made.stdout.startswith(f"The report is made: {server.address}/{ENTITY}/{PROJECT}/reports/What-narrowed")
        (stored,) = server.views
        assert stored["type"] == "runs"
        blocks = json.loads(stored["spec"])["blocks"]
        text = json.dumps(blocks)
        words = next(block for block in blocks if block["type"] == "markdown-block")["content"]
        first, second = words.splitlines()[2:]
        assert r"[evil\]\(http://x\) \| \*\*run\*\*](" in first
        assert first.endswith("| **FAIL** | 47 | 1.25 | 0.0625 |")
        assert "| not watched by rlmon | none |  |  |" in second
        grids = [block for block in blocks if block["type"] == "panel-grid"]
        assert len(grids) == len(STORY)
        filters = [grid["metadata"]["runSets"][0]["filters"]["filters"] for grid in grids]
        assert all(one[0]["value"] == ["abc", "def"] and one[0]["key"]["name"] == "name" for one in filters)
        assert all(f'"{part.title}"' in text for part in STORY)
        plots = [p for g in grids for p in g["metadata"]["panelBankSectionConfig"]["panels"] if "xAxis" in p["config"]]
        assert {plot["config"]["xAxis"] for plot in plots} == {AXIS}


def test_a_report_of_a_run_that_is_not_there_makes_nothing(tmp_path: Path) -> None:
    with serving() as server:
        gone = command(tmp_path, server, f"{ENTITY}/{PROJECT}", "--report", "nope")
        assert (gone.returncode, gone.stdout) == (2, "")
        assert f"{ENTITY}/{PROJECT}/nope" in gone.stderr
        assert server.views == []


SLACK = {"__typename": "SlackIntegration", "id": "c2xhY2s=", "teamName": "us", "channelName": "runs"}
WEBHOOK = {"__typename": "GenericWebhookIntegration", "id": "aG9vaw==", "name": "chat", "urlEndpoint": "https://x.test"}


@pytest.mark.parametrize(("to", "tells"), [(SLACK, "#runs in Slack"), (WEBHOOK, "the webhook 'chat'")])
def test_three_rules_are_made_once_and_those_of_others_stay(tmp_path: Path, to: dict[str, Any], tells: str) -> None:
    with serving() as server:
        server.integrations.append(to)
        first = command(tmp_path, server, f"{ENTITY}/{PROJECT}", "--automations")
        assert first.returncode == 0, first.stderr
        assert first.stdout.count(f"is made and tells {tells}.") == 3
        assert [rule["name"] for rule in server.rules] == [
            f"rlmon v1: {name} ({PROJECT})" for name in ("FAIL", "formats below the line", "faults")
        ]
        lines = [json.loads(rule["event"]["filter"])["run_metric_filter"]["threshold_filter"] for rule in server.rules]
        assert [(line["name"], line["window_size"], line["cmp_op"], line["threshold"]) for line in lines] == [
            ("rlmon/detectors_failed", 1, "$gt", 0),
            ("rlmon/format/effective_ratio_to_base", 5, "$lt", 0.6),
            ("rlmon/faults", 1, "$gt", 0),
        ]
        second = command(tmp_path, server, f"{ENTITY}/{PROJECT}", "--automations")
        assert second.stdout.count("is there already, and left as it is.") == 3
        assert len(server.rules) == 3
        assert server.asked.count("CreateAutomation") == 3


def test_rules_need_somebody_to_tell(tmp_path: Path) -> None:
    with serving() as server:
        nobody = command(tmp_path, server, f"{ENTITY}/{PROJECT}", "--automations")
        assert (nobody.returncode, nobody.stdout, server.rules) == (2, "", [])
        assert f"{ENTITY} has no Slack channel and no webhook" in nobody.stderr


def test_the_line_of_the_rule_on_formats_is_that_of_the_detector() -> None:
    (rule,) = [rule for rule in RULES if rule.side == "below"]
    (detector,) = [one for one in DETECTORS if one.id == "format-collapse"]
    assert rule.line == detector.fail
    logged = {metric.name for metric in METRICS} | BESIDE_METRICS
    assert {rule.metric for rule in RULES} <= logged


def test_without_the_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb_workspaces.workspaces", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'rlmon\[dashboard\]'"):
        spec(Place("team", "project"))


def test_without_a_login_it_says_what_to_type(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with serving() as server:
        unknown = command(tmp_path, server, f"{ENTITY}/{PROJECT}", key="")
        assert (unknown.returncode, unknown.stdout) == (2, "")
        assert "rlmon: W&B does not know who you are. Type: wandb login\n" in unknown.stderr
        assert server.asked == []


def test_the_stand_in_refuses_what_no_installed_package_asks() -> None:
    known = operations()
    assert "View" in known
    assert "InventedByATest" not in known
    assert {"displayName", "spec"} <= known["View"]
    assert "inventedByATest" not in known["View"]
    with pytest.raises(ValueError, match="validation"):
        generated("GetProjects").model_validate({"models": {"edges": [{"node": {"name": "p"}}]}})
