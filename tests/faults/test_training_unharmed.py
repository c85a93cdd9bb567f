"""Law 2: whatever fails after training began, the weights are those of an unwatched run and the fault has a name."""

from __future__ import annotations

import errno
import math
import os
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from transformers import TrainerCallback

import rlmon
import rlmon.runlog.files
from rlmon.metrics.features import Featurizer
from rlmon.metrics.step import Families
from rlmon.monitor import StrictError
from rlmon.trl import RLMon, RLMonConfig, base, batches, models

pytestmark = pytest.mark.trl

CONFIG = {"rlmon_base_kl_every": 1, "rlmon_console": False}


class AtStep(TrainerCallback):
    """Calls ``act`` when the given step begins."""

    def __init__(self, step: int, act: Callable[[], Any]) -> None:
        self.step, self.act = step, act

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self.step:
            self.act()


def broken(*_: Any, **__: Any) -> Any:
    raise ValueError("broken on purpose")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Trains once unwatched and once watched with ``inject`` at step 2; returns the monitor and the run."""

    def train(inject: Callable[[Any], Any] | None = None, reward: Any = tiny.has_digit, **settings: Any) -> Any:
        stock = tiny.trainer(tmp_path / "stock", reward=reward, policy=tiny.model())
        stock.train()
        watched = tiny.trainer(tmp_path / "watched", reward=reward, policy=tiny.model())
        monitor = RLMon(watched, RLMonConfig(**(CONFIG | settings)))
        if inject is not None:
            watched.add_callback(AtStep(2, lambda: inject(monitor)))
        try:
            watched.train()
        finally:
            monkeypatch.undo()
        assert tiny.same_weights(tiny.weights(stock), tiny.weights(watched))
        return monitor.monitor, rlmon.open_run(monitor.log_dir)

    return train


def named(monitor: Any, log: Any, place: str) -> None:
    """The fault is in the counts, in a step record, and in events.jsonl exactly once."""
    assert monitor.faults.totals[place] >= 1
    assert any(record.faults.get(place) for record in log.step_records())
    assert [fault.place for fault in log.faults].count(place) == 1


def test_a_metric_raises(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monitor, log = run(lambda _: monkeypatch.setattr(Families, "add_rows", broken))
    named(monitor, log, "metrics.rollouts")
    assert log.rollouts().num_rows == 32, "the rows are written all the same"
    last = log.step_records()[-1].metrics
    assert last["rlmon/format/effective"] is None
    assert last["rlmon/entropy/mean"] is not None, "one part failing takes no other with it"
    assert "broken on purpose" in log.faults[0].error


def test_the_text_parsers_raise(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monitor, log = run(lambda _: monkeypatch.setattr(Featurizer, "features", broken))
    named(monitor, log, "metrics.features")
    rows = log.rollouts().to_pylist()
    assert len(rows) == 32
    assert {row["mode"] for row in rows if row["step"] > 2} == {None}


def full_disk(monkeypatch: pytest.MonkeyPatch, code: int, only: str = "") -> Callable[[Any], None]:
    def start(_: Any) -> None:
        real = os.open

        def opened(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
            if flags & (os.O_WRONLY | os.O_RDWR) and "rlmon" in str(path) and only in str(path):
                raise OSError(code, os.strerror(code), str(path))
            return real(path, flags, *args, **kwargs)

        monkeypatch.setattr(os, "open", opened)

    return start


def test_the_disk_is_full(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monitor, log = run(full_disk(monkeypatch, errno.ENOSPC, "rollouts"))
    named(monitor, log, "runlog.rollouts")
    assert log.rollouts().num_rows == 16
    assert monitor.writer.shed_rows == 16
    assert log.step_records()[-1].shed_rows == 16
    assert "No space left" in log.faults[0].error


def test_no_permission_any_more(run: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monitor, log = run(full_disk(monkeypatch, errno.EACCES), rlmon_console=True)
    assert monitor.faults.totals["runlog.steps"] >= 1
    assert [record.step for record in log.step_records()] == [1, 2]
    shown = capsys.readouterr().err
    assert "rlmon FAULT runlog.rollouts" in shown, "what the log cannot hold is said on stderr"
    assert monitor.writer.rows_written + monitor.writer.shed_rows == 32


def test_the_log_directory_is_deleted(run: Any) -> None:
    monitor, log = run(lambda monitor: shutil.rmtree(monitor.log_dir))
    assert monitor.faults.totals["runlog.directory"] >= 1
    assert [record.step for record in log.step_records()] == [3, 4], "it was made again"
    assert log.rollouts().num_rows == 16


def test_the_tokenizer_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stock = tiny.trainer(tmp_path / "stock", policy=tiny.model())
    stock.train()
    watched = tiny.trainer(tmp_path / "watched", policy=tiny.model())
    monitor = RLMon(watched, RLMonConfig(**CONFIG))
    monkeypatch.setattr("rlmon.trl.callback._vocabulary", broken)
    watched.train()
    assert tiny.same_weights(tiny.weights(stock), tiny.weights(watched))
    log = rlmon.open_run(monitor.log_dir)
    named(monitor.monitor, log, "capture.vocabulary")
    record = log.step_records()[0]
    assert record.metrics["rlmon/moves/effective_across"] is None
    assert "vocabulary" in record.missing["rlmon/moves/effective_across"]


def sometimes(value: float | None) -> Any:
    def reward(completions: Sequence[Any], **_: Any) -> list[float | None]:
        return [value if i % 4 == 3 else float(i % 2) for i in range(len(completions))]

    return reward


@pytest.mark.parametrize("value", [math.nan, None], ids=["nan", "none"])
def test_a_reward_is_missing(run: Any, value: float | None) -> None:
    monitor, log = run(reward=sometimes(value))
    assert monitor.faults.totals == {}
    assert log.step_records()[0].metrics["rlmon/health/reward_missing"] == 2
    assert {row["reward"] for row in log.rollouts().to_pylist()} == {None, 0.0, 1.0}


def test_a_reward_is_infinite(tmp_path: Path) -> None:
    """The run itself is lost to it: what matters is that the loop goes on as it would, and that it is said."""
    trained = tiny.trainer(tmp_path / "run", reward=sometimes(math.inf))
    monitor = RLMon(trained, RLMonConfig(**CONFIG))
    trained.train()
    log = rlmon.open_run(monitor.log_dir)
    assert log.step_records()[0].metrics["rlmon/health/reward_non_finite"] > 0
    assert [finding.detector for finding in log.findings].count("non-finite") == 1
    assert all(v is None or math.isfinite(v) for r in log.step_records() for v in r.metrics.values())


HOSTILE = [
    "",
    "x" * 1_000_000,
    "lone \ud800 surrogate",
    "\x00\x1b]0;title\x07\x1b[2J\u202e nul, escapes, override",
    "<script>alert(1)</script> [bold red]rich[/] **markdown** {{jinja}} =cmd|'/c'!A1",
    "((((" * 50_000,
    "[" * 100_000 + "]" * 100_000,
    "\r\n" * 1000,
]


def test_hostile_completions(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    real = batches.render_completion
    texts = iter(HOSTILE * 4)

    def start(_: Any) -> None:
        monkeypatch.setattr(batches, "render_completion", lambda completion: next(texts, real(completion)))

    monitor, log = run(start)
    assert monitor.faults.totals == {}
    rows = [row["completion"] for row in log.rollouts().to_pylist() if row["step"] > 2]
    assert len(rows) == 16
    assert rows[1] == HOSTILE[1]
    assert rows[4] == HOSTILE[4], "stored as it came"
    assert rlmon.runlog.restore_text(rows[2]) == HOSTILE[2]


def test_an_empty_completion_of_no_tokens(tmp_path: Path) -> None:
    policy = tiny.model()
    with torch.no_grad():
        policy.lm_head.weight.zero_()
        policy.lm_head.weight[1] = 5.0  # mostly the end-of-sequence token, in one direction
    trained = tiny.trainer(tmp_path / "run", policy=policy)
    monitor = RLMon(trained, RLMonConfig(rlmon_strict=True, **CONFIG))
    trained.train()
    rows = rlmon.open_run(monitor.log_dir).rollouts().to_pylist()
    assert min(row["completion_tokens"] for row in rows) == 1
    assert "" in {row["completion"] for row in rows}
    assert "other" in {row["mode"] for row in rows}


def test_the_base_forward_runs_out_of_memory(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def out_of_memory(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory, on purpose")

    monitor, log = run(lambda _: monkeypatch.setattr(base, "exact_kl", out_of_memory))
    named(monitor, log, "base.forward")
    assert log.step_records()[0].metrics["rlmon/kl/mean"] is not None
    assert log.step_records()[-1].metrics["rlmon/kl/mean"] is None
    assert "OutOfMemoryError" in log.faults[0].error


def test_a_backbone_that_shows_no_hidden_states(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Looked for inside the user's own forward, where nothing may raise."""

    class Opaque:
        last_hidden_state = "not a tensor"

    def start(monitor: Any) -> None:
        backbone = monitor._trainer.model.base_model
        for module in (base, models):
            monkeypatch.setattr(module, "backbone_of", lambda model: Spy(backbone))

    class Spy:
        def __init__(self, backbone: Any) -> None:
            self.backbone = backbone

        def register_forward_hook(self, hook: Any) -> Any:
            return self.backbone.register_forward_hook(lambda module, args, output: hook(module, args, Opaque()))

        def __call__(self, **_: Any) -> Any:
            return Opaque()

    monitor, log = run(start)
    named(monitor, log, "base.forward")
    assert log.step_records()[-1].metrics["rlmon/entropy/mean"] is not None


def test_the_clock_goes_backwards(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def start(_: Any) -> None:
        now = iter(range(10**9, 0, -1000))
        monkeypatch.setattr(time, "time", lambda: float(next(now)))
        monkeypatch.setattr(time, "thread_time", lambda: float(next(now)))

    monitor, log = run(start)
    assert monitor.faults.totals == {}
    assert [record.step for record in log.step_records()] == [1, 2, 3, 4]
    assert all((record.overhead_seconds or 0) >= 0 for record in log.step_records())


def test_a_detector_and_a_subscriber_raise(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def start(monitor: Any) -> None:
        monkeypatch.setattr("rlmon.monitor.monitor.detectors.step", broken)
        monitor.monitor.on_record.append(broken)

    monitor, log = run(start)
    assert monitor.faults.totals == {"detectors": 2, "subscribers": 2}
    assert len(log.step_records()) == 4


def test_the_users_own_exception_passes_untouched(tmp_path: Path) -> None:
    class Mine(Exception):
        pass

    def reward(completions: Sequence[Any], trainer_state: Any, **_: Any) -> list[float]:
        if trainer_state.global_step == 2:
            raise Mine("as it was")
        return tiny.has_digit(completions)

    trained = tiny.trainer(tmp_path / "run", reward=reward)
    monitor = RLMon(trained, RLMonConfig(**CONFIG))
    with pytest.raises(Mine, match=r"^as it was$"):
        trained.train()
    assert monitor.monitor.faults.totals == {}
    assert len(rlmon.open_run(monitor.log_dir).step_records()) == 2


def test_strict_raises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = tiny.trainer(tmp_path / "run")
    RLMon(trained, RLMonConfig(rlmon_strict=True, **CONFIG))
    monkeypatch.setattr(Families, "add_rows", broken)
    with pytest.raises(StrictError, match=r"metrics\.rollouts"):
        trained.train()
