"""The view beside a run: made by another process, in bounded time; a server that fails costs no step and one line."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fake_wandb import ENTITY, PROJECT, Server, serving
from made_header import made_header

from rlmon.dashboard import live
from rlmon.records import StepRecord
from rlmon.sinks.wandb import WandbSink

wandb = pytest.importorskip("wandb")
pytest.importorskip("wandb_workspaces")

PATIENCE = 60.0
SOON = 1.0
"""Seconds for what takes a millisecond: a busy machine is no stalled one."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Server]:
    for name, value in {"WANDB_API_KEY": "0" * 40, "HOME": str(tmp_path), "WANDB_CONFIG_DIR": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    with serving() as up:
        yield up


def run_at(server: Server, **changes: Any) -> Any:
    """What the sink sees of an open run."""
    logged: list[dict[str, Any]] = []
    fields: dict[str, Any] = {
        "offline": False, "disabled": False, "entity": ENTITY, "project": PROJECT, "logged": logged, "id": "abc",
        "log": logged.append, "settings": SimpleNamespace(base_url=server.address), "summary": {},
        "define_metric": lambda *_, **__: None, "config": SimpleNamespace(update=lambda *_, **__: None),
    }  # fmt: skip
    return SimpleNamespace(**{**fields, **changes})


def waited(thread: Any) -> None:
    thread.join(PATIENCE)
    assert not thread.is_alive()


def test_it_is_made_once_and_its_address_is_said(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "SECONDS", PATIENCE)
    for _ in range(2):
        said: list[str] = []
        waited(live.make_view_beside(run_at(server), said.append))
        assert said == [f"a view of the runs of {ENTITY}/{PROJECT}: {server.address}/{ENTITY}/{PROJECT}?nw=rlmonv1"]
    assert [view["name"] for view in server.views] == ["nw-rlmonv1-v"]


def test_a_view_of_its_name_that_somebody_made_unreadable_is_left_alone(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "SECONDS", PATIENCE)
    theirs = {"id": "view-0", "name": "nw-rlmonv1-v", "displayName": "mine now", "spec": '{"section": 7}'}
    server.views.append(dict(theirs))
    waited(live.make_view_beside(run_at(server), lambda _: None))
    assert server.views == [theirs]
    assert server.asked.count("View") == 1


def test_a_project_that_refuses_is_named(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "SECONDS", PATIENCE)
    said: list[str] = []
    waited(live.make_view_beside(run_at(server, project="gone"), said.append))
    (line,) = said
    assert line == (
        f"no view was made in W&B: W&B has no project {ENTITY}/gone that you can see. A project begins with its first "
        f"run. Later: rlmon dashboard wandb {ENTITY}/gone"
    )


def steps(sink: WandbSink, number: int) -> list[float]:
    """Seconds of each step."""
    taken = []
    for at in range(1, number + 1):
        record = StepRecord(
            attempt=0, step=at, time_unix_seconds=0.0, rounds=(at,), completions=8, prompts=2, tokens=80,
            metrics={"rlmon/entropy/mean": 1.0},
        )  # fmt: skip
        began = time.perf_counter()
        sink.record(record, {})
        taken.append(time.perf_counter() - began)
    return taken


def opened(**settings: Any) -> WandbSink:
    sink = WandbSink()
    sink.open(made_header(**settings))
    return sink


@pytest.mark.parametrize("seconds", [2.0, pytest.param(10.0, marks=pytest.mark.slow)])
@pytest.mark.parametrize("fails", ["500", "stalls"])
def test_a_server_that_fails_leaves_steps_as_fast_and_is_named_once(
    server: Server,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    fails: str,
    seconds: float,
) -> None:
    monkeypatch.setattr(live, "SECONDS", seconds)
    if fails == "stalls":
        server.stalls.set()
    else:
        server.status = 500
    made: list[Any] = []
    beside = live.make_view_beside

    def kept(run: Any, say: Callable[[str], None]) -> None:
        made.append(beside(run, say))

    monkeypatch.setattr("rlmon.sinks.wandb.make_view_beside", kept)
    run = run_at(server)
    monkeypatch.setattr(wandb, "run", run)
    taken = steps(opened(), 50)
    assert len(run.logged) == 50
    assert max(taken) < SOON
    (thread,) = made
    began = time.monotonic()
    waited(thread)
    assert time.monotonic() - began < seconds + 20
    said = [line for line in capsys.readouterr().err.splitlines() if "view" in line]
    assert said == [
        f"rlmon: no view was made in W&B: {server.address} did not answer within {seconds:.0f} s. Later: rlmon "
        f"dashboard wandb {ENTITY}/{PROJECT}"
    ]
    assert server.views == []


def test_it_is_asked_for_after_the_first_logged_step_of_a_run_and_not_where_it_is_off(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    monkeypatch.setattr("rlmon.sinks.wandb.make_view_beside", lambda run, say: asked.append(len(run.logged)))
    monkeypatch.setattr(wandb, "run", run_at(server))
    sink = opened()
    assert asked == []  # not when training begins
    steps(sink, 3)
    assert asked == [1]
    monkeypatch.setattr(wandb, "run", run_at(server))
    steps(sink, 3)
    assert asked == [1, 1]
    steps(opened(rlmon_wandb_view=False), 3)
    assert asked == [1, 1]


def test_nothing_is_made_offline_or_without_the_package(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    assert live.make_view_beside(run_at(server, offline=True), print) is None
    assert live.make_view_beside(run_at(server, disabled=True), print) is None
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert live.make_view_beside(run_at(server), print) is None
    assert server.asked == []


ENDS = """
import sys
from types import SimpleNamespace as Some
from rlmon.dashboard.live import make_view_beside
run = Some(offline=False, disabled=False, entity="team", project="project", settings=Some(base_url=sys.argv[1]))
assert make_view_beside(run, print) is not None
"""


def test_the_interpreter_ends_while_the_server_is_still_silent(server: Server) -> None:
    server.stalls.set()
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", ENDS, server.address],
        env=os.environ, capture_output=True, text=True, timeout=PATIENCE,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert time.monotonic() - began < live.SECONDS


NEVER_ENDS = """
import atexit, sys, time
def main():
    print(*sys.argv, flush=True)
    atexit.register(time.sleep, 600)  # as W&B's client may, where a request is still on the way
"""


def test_the_process_beside_ends_itself_where_the_training_ended_first(tmp_path: Path) -> None:
    (tmp_path / "rlmon").mkdir()
    (tmp_path / "rlmon" / "__init__.py").touch()
    (tmp_path / "rlmon" / "cli.py").write_text(NEVER_ENDS)
    done = subprocess.run(
        [sys.executable, "-c", live.BOUNDED, "2", "team/project"],
        cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (1, "rlmon dashboard wandb team/project\n", "")
