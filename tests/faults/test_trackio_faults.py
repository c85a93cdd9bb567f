"""trackio goes wrong while a run trains: the weights are those of an unwatched run, and no step waits for it."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import socket
import sqlite3
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
from local_trackio import keep_in, read

from rlmon.sinks.trackio import TrackioSink
from rlmon.trl import RLMon, RLMonConfig

pytestmark = pytest.mark.trl

trackio = pytest.importorskip("trackio")

NAMED = "TrackioSink is switched off for the rest of the run"
Wrong = Callable[[Path, pytest.MonkeyPatch, contextlib.ExitStack], None]


@pytest.fixture
def slowest(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that each call of the sink took."""
    took: list[float] = []
    for name in ("record", "finding", "table", "close"):
        original = getattr(TrackioSink, name)

        def timed(sink: TrackioSink, *arguments: Any, original: Any = original) -> None:
            began = time.perf_counter()
            original(sink, *arguments)
            took.append(time.perf_counter() - began)

        monkeypatch.setattr(TrackioSink, name, timed)
    return took


@pytest.fixture(autouse=True)
def _leave_no_run_open() -> Iterator[None]:
    yield
    if trackio.context_vars.current_run.get() is not None:
        trackio.finish()


def finished(folder: Path, patch: pytest.MonkeyPatch, stack: contextlib.ExitStack) -> None:
    trackio.finish()


def another_run(folder: Path, patch: pytest.MonkeyPatch, stack: contextlib.ExitStack) -> None:
    trackio.init(project="tests", name="other", embed=False, auto_log_cpu=False)


def when_written(folder: Path) -> Path:
    """The data base, which trackio's own thread makes: three steps can be over before."""
    base = folder / "tests.db"
    until = time.monotonic() + 60
    while not base.exists() and time.monotonic() < until:
        time.sleep(0.02)
    return base


def folder_deleted(folder: Path, patch: pytest.MonkeyPatch, stack: contextlib.ExitStack) -> None:
    shutil.rmtree(when_written(folder).parent)


def disk_full(folder: Path, patch: pytest.MonkeyPatch, stack: contextlib.ExitStack) -> None:
    def full(*_: Any, **__: Any) -> Any:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for name in ("bulk_log", "bulk_alert"):
        patch.setattr(trackio.SQLiteStorage, name, full)


def base_locked(folder: Path, patch: pytest.MonkeyPatch, stack: contextlib.ExitStack) -> None:
    """By another program, until training is over."""
    base = stack.enter_context(contextlib.closing(sqlite3.connect(when_written(folder), check_same_thread=False)))
    base.execute("BEGIN EXCLUSIVE")


def no_answer(folder: Path, patch: pytest.MonkeyPatch, stack: contextlib.ExitStack) -> None:
    """The run of a server that takes the call and never says anything."""
    listening = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
    away = f"http://127.0.0.1:{listening.getsockname()[1]}"
    trackio.finish()
    run = trackio.Run(url=away, project="tests", client=None, name="away", server_base_url=away, write_token="w")
    trackio.context_vars.current_run.set(run)
    stack.callback(run._queued_logs.clear)
    stack.callback(run._stop_flag.set)
    stack.callback(trackio.context_vars.current_run.set, None)


def call_fails(folder: Path, patch: pytest.MonkeyPatch, stack: contextlib.ExitStack) -> None:
    def gone(*_: Any, **__: Any) -> Any:
        raise RuntimeError("no such run")

    patch.setattr(trackio.Run, "log", gone)


@pytest.mark.parametrize(
    ("goes_wrong", "named"),
    [
        (finished, 0),
        (another_run, 0),
        (folder_deleted, 0),
        (disk_full, 0),
        (base_locked, 0),
        (no_answer, 0),
        (call_fails, 1),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_training_goes_on(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    slowest: list[float],
    goes_wrong: Wrong,
    named: int,
) -> None:
    keep_in(tmp_path / "trackio", monkeypatch)
    stock = tiny.trainer(tmp_path / "stock", policy=tiny.model(), max_steps=8)
    stock.train()
    with warnings.catch_warnings(), contextlib.ExitStack() as stack:
        warnings.simplefilter("ignore")  # trackio says itself what it could not do
        trackio.init(project="tests", name="one", embed=False, auto_log_cpu=False)
        watched = tiny.trainer(tmp_path / "watched", policy=tiny.model(), max_steps=8)
        monitor = RLMon(watched, RLMonConfig(rlmon_base_kl_every=2, rlmon_table_every=1))
        watched.add_callback(tiny.AtStep(lambda: goes_wrong(tmp_path / "trackio", monkeypatch, stack)))
        watched.train()
    assert tiny.same_weights(tiny.weights(stock), tiny.weights(watched))
    faults = {place: count for place, count in monitor.monitor.faults.totals.items() if place.startswith("sinks")}
    assert capsys.readouterr().err.count(NAMED) == named
    assert faults == ({"sinks:TrackioSink": 1} if named else {})
    assert monitor.monitor.last_record.step == 8
    assert max(slowest) < 1.0  # a lock is waited for 10 to 30 s, in trackio's own thread


def test_what_is_logged_reaches_an_open_run_whatever_ends_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An exception, as Ctrl-C is one, before the trainer's integration hears that training ended."""
    keep_in(tmp_path / "trackio", monkeypatch)

    def interrupted() -> None:
        raise KeyboardInterrupt

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        watched = tiny.trainer(tmp_path / "run", max_steps=8, report_to="trackio", project="tests", run_name="one")
        RLMon(watched, RLMonConfig(rlmon_base_kl_every=2))
        watched.add_callback(tiny.AtStep(interrupted))
        with pytest.raises(KeyboardInterrupt):
            watched.train()
        trackio.finish()
    found = read(tmp_path / "trackio" / "tests.db")
    assert [step for step, _ in found.of("rlmon/entropy/mean")] == [1, 2, 3]
    assert [step for step, _ in found.of("rlmon/report")] == [3]
