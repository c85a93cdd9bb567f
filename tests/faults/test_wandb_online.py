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
from rlmon.sinks.wandb import WandbSink

wandb = pytest.importorskip("wandb")

SOON_SECONDS = 0.5
"""For what takes a millisecond: a busy machine is no stalled one."""
PATIENCE_SECONDS = 60.0


class Server:
    """What the sink sees of an online run; ``answers`` lets tables through, and ``fails`` is raised for one."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.answers, self.fails = threading.Event(), ""
        self.logged: list[dict[str, Any]] = []
        nothing = lambda *_, **__: None  # noqa: E731
        fields: dict[str, Any] = {
            "offline": False, "log": self.log, "summary": {}, "define_metric": nothing, "alert": nothing,
            "config": SimpleNamespace(update=nothing),
        }  # fmt: skip
        patch.setattr(wandb, "run", SimpleNamespace(**fields))

    def log(self, row: dict[str, Any]) -> None:
        if any(isinstance(value, wandb.Table) for value in row.values()):
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


def step(sink: WandbSink, number: int) -> float:
    """Seconds of its longest call."""
    record = StepRecord(
        attempt=0, step=number, time_unix_seconds=0.0, rounds=(number,), completions=8, prompts=2, tokens=80,
        metrics={"rlmon/entropy/mean": 1.0},
    )  # fmt: skip
    rows = [{"step": number, "mode": "prose", "completion": f"{number} apples"}]
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
    said = "rlmon: tables have not reached W&B since step 1: is its server there? They wait\n"
    assert capsys.readouterr().err == said
    server.answers.set()


def test_a_table_that_fails_there_is_a_failure_of_the_sink(server: Server, sink: WandbSink) -> None:
    server.fails = "the disk is full"
    server.answers.set()
    step(sink, 1)
    sink.close()  # waits for the thread
    with pytest.raises(RuntimeError, match="a table could not be logged: OSError: the disk is full"):
        step(sink, 2)
