"""W&B goes wrong while a run trains: the weights are those of an unwatched run, and what failed is named once."""

from __future__ import annotations

import errno
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny

from rlmon.sinks.wandb import WandbSink
from rlmon.trl import RLMon, RLMonConfig

pytestmark = pytest.mark.trl

wandb = pytest.importorskip("wandb")

NAMED = "WandbSink is switched off for the rest of the run; training and the log go on"
SOON_SECONDS = 0.5
"""For a call that takes a millisecond, or writes a small table: a busy machine is no stalled one."""


@pytest.fixture(autouse=True)
def _leave_no_run_open() -> Iterator[None]:
    wandb.teardown()  # whatever test came before, W&B reads WANDB_* once per process
    yield
    if wandb.run is not None:
        wandb.finish()
    wandb.teardown()


def longest_calls(patch: pytest.MonkeyPatch) -> list[float]:
    """Seconds of each call of the sink from here on."""
    taken: list[float] = []

    def timed(original: Callable[..., None]) -> Callable[..., None]:
        def call(*args: Any, **kwargs: Any) -> None:
            began = time.perf_counter()
            try:
                original(*args, **kwargs)
            finally:
                taken.append(time.perf_counter() - began)

        return call

    for name in ("record", "finding", "action", "table"):
        patch.setattr(WandbSink, name, timed(getattr(WandbSink, name)))
    return taken


def finished(folder: Path, patch: pytest.MonkeyPatch) -> None:
    wandb.finish()


def another_run(folder: Path, patch: pytest.MonkeyPatch) -> None:
    wandb.init(mode="offline", dir=str(folder), project="other", reinit="finish_previous")


def folder_deleted(folder: Path, patch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(folder / "wandb")


def disk_full(folder: Path, patch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> Any:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    # Where W&B writes a table that is on its way.
    patch.setattr(wandb.Table, "bind_to_run", full)


def call_fails(folder: Path, patch: pytest.MonkeyPatch) -> None:
    def gone(*_: Any, **__: Any) -> Any:
        raise wandb.errors.CommError("the service is gone")

    patch.setattr(wandb.run, "log", gone)


@pytest.mark.parametrize(
    ("goes_wrong", "named"),
    [
        (finished, "the W&B run was finished: what is measured from step 4 on is in the run log alone"),
        (another_run, "another W&B run is open: what is measured from step 4 on is logged there"),
        (folder_deleted, NAMED),
        (disk_full, NAMED),
        (call_fails, NAMED),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_training_goes_on(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    goes_wrong: Callable[[Path, pytest.MonkeyPatch], None],
    named: str,
) -> None:
    longest = longest_calls(monkeypatch)
    stock = tiny.trainer(tmp_path / "stock", policy=tiny.model(), max_steps=8)
    stock.train()
    wandb.init(mode="offline", dir=str(tmp_path), project="rlmon-tests")
    watched = tiny.trainer(tmp_path / "watched", policy=tiny.model(), max_steps=8)
    monitor = RLMon(watched, RLMonConfig(rlmon_base_kl_every=2, rlmon_table_every=1))
    watched.add_callback(tiny.AtStep(lambda: goes_wrong(tmp_path, monkeypatch)))
    watched.train()
    assert tiny.same_weights(tiny.weights(stock), tiny.weights(watched))
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("rlmon: ")]
    assert [line for line in lines if "W&B" in line or "WandbSink" in line] == [f"rlmon: {named}"]
    faults = {place: count for place, count in monitor.monitor.faults.totals.items() if place.startswith("sinks")}
    assert faults == ({"sinks:WandbSink": 1} if named == NAMED else {})
    assert monitor.monitor.last_record.step == 8
    assert len(longest) > 4
    assert max(longest) < SOON_SECONDS
