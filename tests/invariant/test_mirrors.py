"""A real trainer reporting to W&B and TensorBoard: what a dashboard would show."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import tiny
from offline_wandb import read_run

import rlmon
from rlmon.runlog import open_run
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

    events = EventAccumulator(str(tmp_path / "tb"), size_guidance={"scalars": 0, "tensors": 0})
    events.Reload()
    tags = events.Tags()
    # Once here too, into the one file that the trainer's integration writes.
    assert not [tag for tag in tags["scalars"] if tag.startswith("train/rlmon/")]
    assert len(list((tmp_path / "tb").rglob("events.out.tfevents.*"))) == 1
    assert len(events.Scalars("train/loss")) == 30
    kept = open_run(monitor.log_dir)
    measured: dict[str, list[tuple[int, float]]] = {}
    for record in kept.steps.to_pylist():
        for name, value in record.items():
            if name.startswith("rlmon/") and value is not None:
                measured.setdefault(name, []).append((record["step"], value))
    assert len(measured) > 40
    for name, values in measured.items():
        shown = events.Scalars(name)
        assert [event.step for event in shown] == [step for step, _ in values], name
        assert [event.value for event in shown] == pytest.approx([value for _, value in values], rel=1e-5, abs=1e-6)
    assert tags["histograms"]
    assert [event.step for event in events.Tensors("rlmon/samples/text_summary")] == [1, 11, 21]
    assert {f"rlmon/findings/{f.detector}/text_summary" for f in findings} <= set(tags["tensors"])
    # The folder alone gives the verdict of the log.
    assert rlmon.audit(tmp_path / "tb").verdict == rlmon.audit(monitor.log_dir).verdict
