"""``trainers/train_grpo.py`` as it is, reporting to W&B, TensorBoard and trackio: what the files of these hold."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from mirrored import check_tensorboard, check_trackio, check_wandb, check_wandb_reader, ours
from offline_wandb import Read, read_files, read_run

import rlmon

pytestmark = [pytest.mark.trl, pytest.mark.slow]

pytest.importorskip("wandb")
pytest.importorskip("tensorboard")
pytest.importorskip("trackio")

ROOT = Path(__file__).resolve().parents[2]
GRAVITY = ["note", "warn", "fail"]


def train(out: Path, *overrides: str, launcher: tuple[str, ...] = ()) -> None:
    """Run the program with ``configs/grpo.yaml``, reporting to W&B offline, to TensorBoard and to trackio."""
    trackers = "report_to: [wandb, tensorboard, trackio]"
    config = (ROOT / "configs" / "grpo.yaml").read_text().replace("report_to: none", trackers)
    (out / "grpo.yaml").write_text(config)
    asked = {
        "config": out / "grpo.yaml", "output_dir": out / "run", "per_device_train_batch_size": 32,
        "learning_rate": 5e-3, "logging_steps": 1, "save_strategy": "steps", "save_steps": 10, "rlmon_table_every": 5,
        "disable_tqdm": True, "run_name": "the-run", "project": "stock",
    }  # fmt: skip
    arguments = [part for name, value in asked.items() for part in (f"--{name}", str(value))]
    environment = os.environ | {
        "WANDB_MODE": "offline", "WANDB_DIR": str(out), "WANDB_RUN_ID": "the-run", "WANDB_RESUME": "allow",
        "TENSORBOARD_LOGGING_DIR": str(out / "tb"), "TRACKIO_DIR": str(out / "trackio"), "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    done = subprocess.run(
        [*(launcher or (sys.executable,)), "trainers/train_grpo.py", *arguments, *overrides],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1_200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "rlmon FAULT" not in done.stderr


def told(log: Path) -> Counter[str]:
    """Titles of the alerts that are due to findings: one each time a detector turns graver."""
    gravest: dict[str, str] = {}
    due: Counter[str] = Counter()
    for finding in rlmon.open_run(log).findings:
        before = gravest.get(finding.detector)
        if before is None or GRAVITY.index(finding.severity) > GRAVITY.index(before):
            gravest[finding.detector] = finding.severity
            due[f"rlmon {finding.severity.upper()}: {finding.detector}"] += 1
    return due


def findings_shown(out: Path, read: Read) -> list[int]:
    """Steps in the last table of findings."""
    *_, last = (row["rlmon/findings/path"] for row in read.rows if "rlmon/findings/path" in row)
    (file,) = out.glob(f"wandb/offline-run-*/files/{last}")
    return [row[0] for row in json.loads(file.read_text())["data"]]


def test_the_trackers_hold_the_log_once_also_where_a_run_goes_on_from_behind_their_last_step(tmp_path: Path) -> None:
    log, base = tmp_path / "run" / "rlmon", tmp_path / "trackio" / "stock.db"
    train(tmp_path, "--max_steps", "25")
    first = read_run(tmp_path)
    check_wandb(log, first)
    check_wandb_reader(tmp_path / "wandb", log)
    check_tensorboard(tmp_path / "tb", log)
    in_trackio = check_trackio(base, log)
    alarms = told(log)
    assert alarms
    assert Counter(title for title, _, _ in first.alerts) == alarms
    assert Counter(title for _, title, _, _ in in_trackio.alerts) == alarms
    assert findings_shown(tmp_path, first) == [f.step for f in reversed(rlmon.open_run(log).findings)]
    verdicts = [rlmon.audit(path).verdict for path in (log, tmp_path / "wandb", tmp_path / "tb", base)]
    assert verdicts == ["fail"] * 4
    samples = [step for step, name in ours(first, "incremental-table-file") if name == "rlmon/samples"]
    assert samples == [1, 6, 11, 16, 21]
    assert first.summary["rlmon/verdict"] == "fail"

    train(tmp_path, "--max_steps", "30", "--resume_from_checkpoint", str(tmp_path / "run" / "checkpoint-20"))
    _, second = read_files(tmp_path)
    # W&B takes nothing back: what was logged of steps 21 to 25 before is there, and the later row counts.
    kept = [row for row in first.rows if row.get("train/global_step", 99) <= 20]
    check_wandb(log, Read(rows=[*kept, *second.rows], step_metrics=second.step_metrics))
    check_wandb_reader(tmp_path / "wandb", log)
    check_tensorboard(tmp_path / "tb", log)
    # What was told of steps that were made again is not told again.
    assert Counter(title for title, _, _ in second.alerts) == told(log) - alarms
    again = check_trackio(base, log).alerts[len(in_trackio.alerts) :]
    assert Counter(title for _, title, _, _ in again) == told(log) - alarms
    assert findings_shown(tmp_path, second) == [f.step for f in reversed(rlmon.open_run(log).findings)]
    assert second.summary["rlmon/verdict"] == "fail"
    verdicts = [rlmon.audit(path).verdict for path in (log, tmp_path / "wandb", tmp_path / "tb", base)]
    assert verdicts == ["fail"] * 4


def test_two_processes_write_one_copy(tmp_path: Path) -> None:
    torchrun = (str(Path(sys.executable).with_name("torchrun")), "--standalone", "--nproc_per_node", "2")
    train(tmp_path, "--max_steps", "6", "--rlmon_policy", "protect", launcher=torchrun)
    log = tmp_path / "run" / "rlmon"
    read = read_run(tmp_path)
    check_wandb(log, read)
    check_wandb_reader(tmp_path / "wandb", log)
    check_tensorboard(tmp_path / "tb", log)
    acts = check_trackio(tmp_path / "trackio" / "stock.db", log).of("rlmon/interventions")
    assert [step for step, _ in acts] == [1, 6]  # when the first came, and at the end
    assert len(list((tmp_path / "tb").iterdir())) == 1
    assert ours(read, "table-file")[6, "rlmon/interventions"] == 1
    assert rlmon.open_run(log).header.world_size == 2
