"""A W&B run beside its run log: all that was measured is there once, on the right axis, and gives the same verdict.

The same of the stock program: test_stock_program.py, which is slow.
"""

from __future__ import annotations

import json
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny
from mirrored import check_wandb, ours
from offline_wandb import Read, read_files

import rlmon
from rlmon.trl import RLMon, RLMonConfig

pytestmark = pytest.mark.trl

wandb = pytest.importorskip("wandb")


@pytest.fixture(autouse=True)
def _read_the_environment_again() -> Iterator[None]:
    wandb.teardown()  # whatever test came before, W&B reads WANDB_* once per process
    yield
    wandb.teardown()


def rigged(completions: list[str], **_: object) -> list[float]:
    return [float(tiny.text(c).strip().startswith("(")) for c in completions]


def train(out: Path, steps: int, *, resume: str | None = None) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the trackers' own
        trained = tiny.trainer(
            out / "run",
            reward=rigged,
            report_to="wandb",
            max_steps=steps,
            learning_rate=2e-2,
            per_device_train_batch_size=32,
            save_strategy="steps",
            save_steps=10,
        )
        RLMon(trained, RLMonConfig(rlmon_base_kl_every=2, rlmon_table_every=5, rlmon_strict=True))
        trained.train(resume_from_checkpoint=resume)
        wandb.finish()


def test_a_stock_run_holds_everything_once_and_goes_on_without_doubles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_RUN_ID", "the-run")
    monkeypatch.setenv("WANDB_RESUME", "allow")
    train(tmp_path, 20)
    train(tmp_path, 30, resume=str(tmp_path / "run" / "checkpoint-20"))
    first, second = read_files(tmp_path)
    read = Read(
        rows=[*first.rows, *second.rows],
        alerts=[*first.alerts, *second.alerts],
        step_metrics=second.step_metrics,
    )
    check_wandb(tmp_path / "run" / "rlmon", read)
    assert {step for step, _ in ours(read, "histogram")} == set(range(1, 31))
    samples = [step for step, name in ours(read, "incremental-table-file") if name == "rlmon/samples"]
    assert samples == [1, 6, 11, 16, 21, 26]  # five steps apart; a run that goes on begins with one

    findings = rlmon.open_run(tmp_path / "run" / "rlmon").findings
    assert findings
    gravest: dict[str, list[str]] = {}
    for finding in findings:
        told = gravest.setdefault(finding.detector, [])
        if not told or ["note", "warn", "fail"].index(finding.severity) > ["note", "warn", "fail"].index(told[-1]):
            told.append(finding.severity)
    expected = Counter((f"rlmon {s.upper()}: {detector}") for detector, said in gravest.items() for s in said)
    assert Counter(title for title, _, _ in read.alerts) == expected
    tables = [row["rlmon/findings/path"] for row in second.rows if "rlmon/findings/path" in row]
    (file,) = tmp_path.glob(f"wandb/offline-run-*/files/{tables[-1]}")
    assert [row[0] for row in json.loads(file.read_text())["data"]] == [f.step for f in reversed(findings)]

    audited, of_log = rlmon.audit(tmp_path / "wandb"), rlmon.audit(tmp_path / "run" / "rlmon")
    assert audited.verdict == of_log.verdict == second.summary["rlmon/verdict"]
    assert second.summary["rlmon/first_alarm_step"] == min(f.step for f in findings if f.severity != "note")
