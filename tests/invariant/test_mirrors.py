"""A real trainer reporting to W&B and TensorBoard: what a dashboard would show."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import tiny
from offline_wandb import read_run

from rlmon.trl import RLMon, RLMonConfig

pytestmark = pytest.mark.trl

wandb = pytest.importorskip("wandb")
pytest.importorskip("tensorboard")


def test_everything_in_wandb_and_the_headlines_everywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "tb"))

    def rigged(completions: list[str], **_: object) -> list[float]:
        return [float(tiny.text(c).strip().startswith("(")) for c in completions]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the trackers' own
        trained = tiny.trainer(
            tmp_path / "run",
            reward=rigged,
            report_to=["wandb", "tensorboard"],
            max_steps=30,
            learning_rate=2e-2,
            per_device_train_batch_size=32,
        )
        monitor = RLMon(trained, RLMonConfig(rlmon_base_kl_every=2, rlmon_table_every=10, rlmon_strict=True))
        trained.train()
        wandb.finish()
    findings = monitor.monitor.findings
    assert findings
    assert capsys.readouterr().err.count("rlmon WARN") + capsys.readouterr().err.count("rlmon FAIL") >= 1

    read = read_run(tmp_path)
    ours = [row for row in read.rows if "rlmon/entropy/p50" in row]
    assert [row["train/global_step"] for row in ours] == list(range(1, 31))
    assert all("rlmon/format/share/prose" in row for row in ours)
    assert read.step_metrics["rlmon/*"] == "train/global_step"
    assert len([row for row in read.rows if "rlmon/samples/path" in row]) == 3
    assert read.config["rlmon"]["config"]["rlmon_table_every"] == 10
    assert read.summary["rlmon/verdict"] == ("fail" if any(f.severity == "fail" for f in findings) else "warn")
    assert {title.split(": ")[1] for title, _, _ in read.alerts} == {finding.detector for finding in findings}
    # Once: the trainer's integration sends its own scalars, and ours come from the sink.
    assert not [name for row in read.rows for name in row if name.startswith("train/rlmon/")]
    assert len([row for row in read.rows if "train/loss" in row]) == 30

    events = EventAccumulator(str(tmp_path / "tb"), size_guidance={"scalars": 0})
    events.Reload()
    tags = [tag for tag in events.Tags()["scalars"] if tag.startswith("train/rlmon/")]
    assert 6 <= len(tags) <= 12
    logged = [event.value for event in events.Scalars("train/rlmon/entropy/mean")]
    assert logged == pytest.approx([row["rlmon/entropy/mean"] for row in ours], abs=1e-6)
