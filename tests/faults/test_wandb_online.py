"""A W&B run on a server that is silent: before W&B takes a table it asks the server, and no step waits for that."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from made_header import made_header

import rlmon.sinks.wandb as sink_of_wandb
from rlmon.records import StepRecord
from rlmon.sinks.posting import MOST_WAITING
from rlmon.sinks.wandb import WandbSink

wandb = pytest.importorskip("wandb")

SOON_SECONDS = 0.5
"""For what takes a millisecond: a busy machine is no stalled one."""
PATIENCE_SECONDS = 60.0


class Server:
    """What the sink sees of an online run: ``asked`` by a table, it lets them through when it ``answers``; ``fails`` is
    raised for one."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.asked, self.answers, self.fails = threading.Event(), threading.Event(), ""
        self.logged: list[dict[str, Any]] = []
        nothing = lambda *_, **__: None  # noqa: E731
        fields: dict[str, Any] = {
            "offline": False, "log": self.log, "summary": {}, "define_metric": nothing, "alert": nothing,
            "config": SimpleNamespace(update=nothing),
        }  # fmt: skip
        self._patch, self._fields = patch, fields
        self.begin_run()

    def begin_run(self) -> None:
        self._patch.setattr(wandb, "run", SimpleNamespace(**self._fields))

    def log(self, row: dict[str, Any]) -> None:
        if any(isinstance(value, wandb.Table) for value in row.values()):
            self.asked.set()
            assert self.answers.wait(PATIENCE_SECONDS)
            if self.fails:
                raise OSError(self.fails)
        self.logged.append(row)

    def tables(self) -> list[int]:
        return [row["train/global_step"] for row in self.logged if "rlmon/samples" in row]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    return Server(monkeypatch)


@pytest.fixture
def sink() -> WandbSink:
    made = WandbSink()
    made.open(made_header(rlmon_wandb_view=False))
    return made


def seconds(call: Callable[[], None]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def step(sink: WandbSink, number: int, *, table: bool = True) -> float:
    """Seconds of its longest call."""
    record = StepRecord(
        attempt=0, step=number, time_unix_seconds=0.0, rounds=(number,), completions=8, prompts=2, tokens=80,
        metrics={"rlmon/entropy/mean": 1.0},
    )  # fmt: skip
    rows = [{"step": number, "mode": "prose", "completion": f"{number} apples"}]
    if not table:
        return seconds(lambda: sink.record(record, {}))
    return max(seconds(lambda: sink.record(record, {})), seconds(lambda: sink.table(number, rows)))


def test_no_step_waits_for_an_answer_and_every_table_comes_once_in_its_order(server: Server, sink: WandbSink) -> None:
    assert max(step(sink, number) for number in range(1, 11)) < SOON_SECONDS
    assert [row["train/global_step"] for row in server.logged] == list(range(1, 11))  # curves do not wait for tables
    assert server.tables() == []
    server.answers.set()
    sink.close()
    assert server.tables() == list(range(1, 11))


def test_the_end_waits_a_little_and_says_what_did_not_arrive(
    server: Server, sink: WandbSink, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sink_of_wandb, "CLOSE_SECONDS", 1.0)
    for number in (1, 2, 3):
        step(sink, number)
    assert seconds(sink.close) < 1.0 + SOON_SECONDS
    assert capsys.readouterr().err == "rlmon: 3 tables have not reached W&B 1 s after the end of training\n"
    server.answers.set()


def test_a_server_that_is_silent_for_long_is_named_once_while_training_goes_on(
    server: Server, sink: WandbSink, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sink_of_wandb, "SILENT_SECONDS", 0.2)
    monkeypatch.setattr(sink_of_wandb, "CLOSE_SECONDS", 0.1)
    step(sink, 1)
    assert capsys.readouterr().err == ""
    time.sleep(0.3)
    for number in (2, 3):
        step(sink, number)
    sink.close()
    said = "rlmon: tables have not reached W&B since step 1: is its server there? The newest 32 wait\n"
    assert capsys.readouterr().err == said
    server.answers.set()


def test_a_table_that_fails_there_is_a_failure_of_the_sink(server: Server, sink: WandbSink) -> None:
    server.fails = "the disk is full"
    server.answers.set()
    step(sink, 1)
    sink._outbox.close(PATIENCE_SECONDS)
    with pytest.raises(RuntimeError, match="a table could not be logged: OSError: the disk is full"):
        step(sink, 2)


def test_the_last_table_that_fails_is_one_too(server: Server, sink: WandbSink) -> None:
    step(sink, 1)
    server.fails = "the disk is full"
    server.answers.set()
    with pytest.raises(RuntimeError, match="a table could not be logged: OSError: the disk is full"):
        sink.close()


def test_a_silent_server_costs_the_oldest_tables_and_no_curve(
    server: Server, sink: WandbSink, capsys: pytest.CaptureFixture[str]
) -> None:
    step(sink, 1)
    assert server.asked.wait(PATIENCE_SECONDS)
    for number in range(2, MOST_WAITING + 6):
        step(sink, number)
    said = "rlmon: tables have not reached W&B since step 1: is its server there? The newest 32 wait\n"
    assert capsys.readouterr().err == said
    assert [row["train/global_step"] for row in server.logged] == list(range(1, MOST_WAITING + 6))
    server.answers.set()
    sink.close()
    assert server.tables() == [1, *range(6, MOST_WAITING + 6)]


def test_no_thread_stays_behind_where_the_run_was_finished_before_the_end(
    server: Server, sink: WandbSink, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.answers.set()
    step(sink, 1)
    thread = sink._outbox._thread
    assert thread is not None
    monkeypatch.setattr(wandb, "run", None)
    sink.close()
    thread.join(PATIENCE_SECONDS / 6)
    assert not thread.is_alive()


def test_what_fails_on_its_way_to_a_run_that_is_over_is_no_failure_of_the_next(server: Server, sink: WandbSink) -> None:
    step(sink, 1)
    first = sink._outbox
    server.fails = "the run is finished"
    server.begin_run()
    step(sink, 2, table=False)
    server.answers.set()
    first.close(PATIENCE_SECONDS)
    assert first.left == 0
    server.fails = ""
    step(sink, 3)
    sink.close()
    assert [row["train/global_step"] for row in server.logged if "rlmon/entropy/mean" in row] == [1, 2, 3]
