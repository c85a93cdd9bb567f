"""A W&B run beside its run log: all that was measured is there once, on the right axis, and gives the same verdict."""

from __future__ import annotations

import json
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny
import two_processes
from offline_wandb import Read, read_files

import rlmon
from rlmon.metrics.catalog import lookup
from rlmon.trl import RLMon, RLMonConfig

pytestmark = pytest.mark.trl

wandb = pytest.importorskip("wandb")

OTHERS = {"rlmon/faults", "rlmon/shed_rows", "rlmon/detectors_failed", "rlmon/overhead_seconds"} | {
    "rlmon/base_forward_seconds"
}
SCRIPT = Path(__file__).with_name("two_ranks_wandb.py")


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


def ours(read: Read, kind: str) -> Counter[tuple[int, str]]:
    """How often each key of ours stands at each step, of scalars (``kind`` empty) or of objects of a type."""
    found: Counter[tuple[int, str]] = Counter()
    for row in read.rows:
        objects = {key.removesuffix("/_type"): str(value) for key, value in row.items() if key.endswith("/_type")}
        inside = tuple(f"{key}/" for key in objects)
        names = [key for key, of in objects.items() if of == kind] if kind else [
            key for key in row if not key.startswith(inside)
        ]  # fmt: skip
        found.update((row["train/global_step"], name) for name in names if name.startswith("rlmon/"))
    return found


def check_against_log(out: Path, read: Read) -> None:
    """Every metric that the log has, once per step and with its value; histograms each step; nothing else."""
    log = rlmon.open_run(out / "run" / "rlmon")
    scalars = ours(read, "")
    assert set(scalars.values()) == {1}
    measured = {(r.step, name): v for r in log.step_records() for name, v in r.metrics.items() if v is not None}
    assert all(lookup(name) is not None for _, name in measured)
    assert {key for key in scalars if key[1] not in OTHERS} == set(measured)
    at = {step: {} for step, _ in measured}
    for row in read.rows:
        if row.get("train/global_step") in at:
            at[row["train/global_step"]] |= row
    for (step, name), value in measured.items():
        assert at[step][name] == pytest.approx(value, rel=1e-6), name
    histograms = ours(read, "histogram")
    assert set(histograms.values()) == {1}
    assert len({name for _, name in histograms}) == 4
    for _, row in at.items():
        for name in (key.removesuffix("/_type") for key, value in row.items() if value == "histogram"):
            assert len(row[f"{name}/bins"]) == len(row[f"{name}/values"]) + 1
            assert sum(row[f"{name}/values"]) > 0


def test_a_stock_run_holds_everything_once_and_goes_on_without_doubles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_RUN_ID", "the-run")
    monkeypatch.setenv("WANDB_RESUME", "allow")
    train(tmp_path, 20)
    train(tmp_path, 30, resume=str(tmp_path / "run" / "checkpoint-20"))
    first, second = read_files(tmp_path)
    read = Read(rows=[*first.rows, *second.rows], alerts=[*first.alerts, *second.alerts])
    check_against_log(tmp_path, read)
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


@pytest.mark.slow
def test_two_processes_write_one_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_MODE", "offline")
    tiny.saved_model(tmp_path)  # before the ranks race for it
    two_processes.run(SCRIPT, str(tmp_path))
    (read,) = read_files(tmp_path)
    check_against_log(tmp_path, read)
    assert {step for step, _ in ours(read, "histogram")} == set(range(1, 5))
