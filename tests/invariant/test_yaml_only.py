"""`trl grpo --config x.yaml` with the probe among its reward functions: no line of Python written by the user."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import rlmon
from rlmon.controller import load_policy
from rlmon.lab.bases import BASE_DIR
from rlmon.lab.task import split_questions

pytestmark = [pytest.mark.trl, pytest.mark.slow]


def test_trl_grpo_from_a_yaml_file(tmp_path: Path) -> None:
    train, _ = split_questions()
    (tmp_path / "data").mkdir()
    rows = [json.dumps({"prompt": q.prompt, "answer": q.answer}) for q in train[:64]]
    (tmp_path / "data" / "train.jsonl").write_text("\n".join(rows))
    (tmp_path / "run.yaml").write_text(
        f"""
model_name_or_path: {BASE_DIR}
dataset_name: {tmp_path / "data"}
reward_funcs: [rlmon.lab.task.reward_correct, rlmon.trl.probe]
env: {{RLMON_DIR: "{tmp_path / "log"}", RLMON_BASE_KL_EVERY: "2", RLMON_POLICY: protect}}
output_dir: {tmp_path / "out"}
max_steps: 4
per_device_train_batch_size: 32
num_generations: 8
max_completion_length: 12
use_cpu: true
bf16: false
gradient_checkpointing: false
report_to: none
save_strategy: "no"
"""
    )
    command = [str(Path(sys.executable).with_name("trl")), "grpo", "--config", str(tmp_path / "run.yaml")]
    environment = os.environ | {"HF_DATASETS_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    run = rlmon.open_run(tmp_path / "log")
    assert run.rollouts().num_rows == 4 * 32
    records = run.step_records()
    assert [record.step for record in records] == [1, 2, 3, 4]
    assert not any(record.faults for record in records)
    # The policy of RLMON_POLICY acts from the step at whose round the probe attached.
    assert run.header.policy == load_policy("protect").to_dict()
    held = [(act.rule, act.phase) for act in run.actions if act.step == 1 and act.knob == "kappa (format)"]
    assert held == [("hold-formats", "decided"), ("hold-formats", "applied")]
    assert records[-1].metrics["rlmon/intervention/kappa"] is not None
    assert "rlmon ACT step 1 hold-formats: kappa (format) 0 -> 0.3" in done.stderr
    assert [record.metrics["rlmon/kl/mean"] is not None for record in records] == [True, False, True, False]
