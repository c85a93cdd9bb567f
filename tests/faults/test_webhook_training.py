"""Training with a webhook that answers, or is silent: the weights are those of an unwatched run, and nobody learns the
address."""

from __future__ import annotations

import itertools
import json
import re
import time
from pathlib import Path
from typing import Any

import pytest
import tiny
from transformers import TrainerCallback
from webhook_server import Does, serving

import rlmon
from rlmon.errors import ConfigError
from rlmon.sinks.webhook import CLOSE_SECONDS
from rlmon.trl import RLMon, RLMonConfig

pytestmark = pytest.mark.trl


class NotFinite(TrainerCallback):
    """A NaN at step 3, which is an alarm; and when the steps end."""

    def __init__(self) -> None:
        self.watching: Any = None
        self.ended: list[float] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == 3:
            self.watching.monitor.count_non_finite(1)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.ended.append(time.monotonic())


def train(out: Path, url: str, patch: pytest.MonkeyPatch, *, console: bool = True) -> tuple[Any, Any, list[float]]:
    """Trainer and monitor of eight steps, and when the steps and the training ended."""
    patch.setenv("RLMON_WEBHOOK_URL", url)
    alarm = NotFinite()
    watched = tiny.trainer(out / "watched", policy=tiny.model(), max_steps=8, callbacks=[alarm])
    alarm.watching = RLMon(watched, RLMonConfig(rlmon_base_kl_every=2, rlmon_console=console))
    watched.train()
    return watched, alarm.watching, [*alarm.ended, time.monotonic()]


@pytest.mark.parametrize("answer", [200, "stall", 500], ids=str)
def test_weights_are_the_same_and_no_step_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], answer: Does
) -> None:
    stock = tiny.trainer(tmp_path / "stock", policy=tiny.model(), max_steps=8)
    stock.train()
    with serving(*[answer] * 20) as server:
        watched, watching, ended = train(tmp_path, server.url, monkeypatch)
        said = capsys.readouterr()
    assert tiny.same_weights(tiny.weights(stock), tiny.weights(watched))
    # The server is silent for 10 s at least.
    assert max(b - a for a, b in itertools.pairwise(ended)) < CLOSE_SECONDS + 4
    messages = [json.loads(body) for _, _, body in server.got]
    assert (messages[0]["kind"], messages[0]["detector"], messages[0]["step"]) == ("finding", "non-finite", 4)
    assert messages[0]["run"]["name"] == "watched"
    if answer == 200:
        assert [one["kind"] for one in messages] == ["finding", "ended"]
    named = re.findall(r"an alert did not reach the webhook \(json\): (.+?)\.", said.err)
    assert len(named) == (answer != 200)
    events = rlmon.open_run(tmp_path / "watched" / "rlmon").events
    assert sum("did not reach the webhook" in repr(event) for event in events) == len(named)
    assert not watching.monitor.faults.totals
    # Nobody learned the address.
    assert "SECRET" not in said.out + said.err
    assert sum(file.is_file() for file in tmp_path.rglob("*")) > 5
    assert not [file for file in tmp_path.rglob("*") if file.is_file() and b"SECRET" in file.read_bytes()]


def test_what_was_told_before_a_crash_is_not_told_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def leg(**resume: Any) -> None:
        alarm = NotFinite()
        settings = {"save_strategy": "steps", "save_steps": 2, "max_steps": 5}
        watched = tiny.trainer(tmp_path / "watched", callbacks=[alarm], **settings)
        alarm.watching = RLMon(watched, RLMonConfig(rlmon_base_kl="off"))
        watched.train(**resume)

    with serving() as server:
        monkeypatch.setenv("RLMON_WEBHOOK_URL", server.url)
        leg()
        # The checkpoint is of step 2: the alarm of step 4 is no part of the run any more, and comes once more.
        leg(resume_from_checkpoint=str(tmp_path / "watched" / "checkpoint-2"))
    run = rlmon.open_run(tmp_path / "watched" / "rlmon")
    assert [(one.detector, one.step) for one in run.findings_ever] == [("non-finite", 4)] * 2
    assert [one.step for one in run.findings] == [4]
    assert [json.loads(body)["kind"] for _, _, body in server.got] == ["finding", "ended", "ended"]


def test_an_address_that_cannot_be_is_refused_before_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLMON_WEBHOOK_URL", "http://chat.example/SECRET")
    trained = tiny.trainer(tmp_path / "run")
    callbacks = list(trained.callback_handler.callbacks)
    with pytest.raises(ConfigError, match="RLMON_WEBHOOK_URL is an http address of another machine") as refused:
        RLMon(trained)
    assert "SECRET" not in str(refused.value)
    assert trained.callback_handler.callbacks == callbacks
    with pytest.raises(ConfigError, match="RLMON_WEBHOOK_URL"):
        rlmon.Monitor(directory=tmp_path / "log", group_size=4)
    assert not (tmp_path / "log").exists()
