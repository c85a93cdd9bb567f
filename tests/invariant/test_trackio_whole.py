"""A trackio run beside its run log: all that was measured is there once, at its step, and gives the same verdict."""

from __future__ import annotations

import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import tiny
from local_trackio import Read, keep_in, read

import rlmon
from rlmon.metrics.catalog import lookup
from rlmon.trl import RLMon, RLMonConfig

pytestmark = pytest.mark.trl

pytest.importorskip("trackio")

OTHERS = {"rlmon/faults", "rlmon/shed_rows", "rlmon/detectors_failed", "rlmon/overhead_seconds"} | {
    "rlmon/base_forward_seconds"
}


def rigged(completions: list[str], **_: object) -> list[float]:
    return [float(tiny.text(c).strip().startswith("(")) for c in completions]


def train(out: Path, steps: int, name: str = "the-run", *, resume: str | None = None, **settings: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the trackers' own
        trained = tiny.trainer(
            out / name,
            reward=rigged,
            report_to="trackio",
            run_name=name,
            project="whole",
            max_steps=steps,
            learning_rate=2e-2,
            per_device_train_batch_size=32,
            save_strategy="steps",
            save_steps=10,
        )
        if settings.pop("watch", True):
            RLMon(trained, RLMonConfig(rlmon_base_kl_every=2, rlmon_table_every=5, rlmon_strict=True, **settings))
        trained.train(resume_from_checkpoint=resume)


def of_kind(found: Read, kind: str | None) -> Counter[tuple[int, str]]:
    """How often each key of ours stands at each step: of objects of that type, or of numbers."""
    counted: Counter[tuple[int, str]] = Counter()
    for row in found.rows:
        for name, value in row.items():
            of = value["_type"] if isinstance(value, dict) else None
            if name.startswith("rlmon/") and of == kind and not isinstance(value, str):
                assert row["train/global_step"] == row["_step"]
                counted[row["_step"], name] += 1
    return counted


def test_a_stock_run_holds_everything_once_and_goes_on_without_doubles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep_in(tmp_path / "trackio", monkeypatch)
    train(tmp_path, 20)
    train(tmp_path, 30, resume=str(tmp_path / "the-run" / "checkpoint-20"))
    found = read(tmp_path / "trackio" / "whole.db")
    log = rlmon.open_run(tmp_path / "the-run" / "rlmon")
    scalars = of_kind(found, None)
    assert set(scalars.values()) == {1}
    measured = {(r.step, name): v for r in log.step_records() for name, v in r.metrics.items() if v is not None}
    assert all(lookup(name) is not None for _, name in measured)
    assert {key for key in scalars if key[1] not in OTHERS} == set(measured)
    for row in found.rows:
        for name, value in row.items():
            if (row["_step"], name) in measured:
                assert value == measured[row["_step"], name], name
    # Once: the trainer's integration sends its own scalars, and ours come from the sink.
    assert not [name for row in found.rows for name in row if name.startswith("train/rlmon/")]
    assert len(found.of("train/loss")) == 30

    histograms = of_kind(found, "trackio.histogram")
    assert set(histograms.values()) == {1}
    assert {step for step, _ in histograms} == set(range(1, 31))
    assert len({name for _, name in histograms}) == 4
    for name in {name for _, name in histograms}:
        for _, value in found.of(name):
            assert len(value["bins"]) == len(value["values"]) + 1
            assert sum(value["values"]) > 0

    samples = dict(found.of("rlmon/samples"))
    assert sorted(samples) == [1, 6, 11, 16, 21, 26]  # five steps apart; a run that goes on begins with one
    rows = {(row["round"], row["completion"]) for row in log.rollouts().to_pylist()}
    assert all((row["round"], row["completion"]) in rows for shown in samples.values() for row in shown)

    findings = log.findings
    assert findings
    gravest: dict[str, list[str]] = {}
    for finding in findings:
        told = gravest.setdefault(finding.detector, [])
        if not told or ["note", "warn", "fail"].index(finding.severity) > ["note", "warn", "fail"].index(told[-1]):
            told.append(finding.severity)
    expected = Counter(f"rlmon {s.upper()}: {detector}" for detector, said in gravest.items() for s in said)
    assert Counter(title for _, title, _, _ in found.alerts) == expected
    assert {title.split()[1].rstrip(":"): level for level, title, _, _ in found.alerts} == {
        "NOTE": "info",
        "WARN": "warn",
        "FAIL": "error",
    }
    assert [row["step"] for row in found.of("rlmon/findings")[-1][1]] == [f.step for f in reversed(findings)]

    audited, of_log = rlmon.audit(tmp_path / "trackio"), rlmon.audit(tmp_path / "the-run" / "rlmon")
    assert audited.verdict == of_log.verdict == found.of("rlmon/verdict")[-1][1]
    (own,) = [check for check in audited.checks if check.id == "own-verdict"]
    assert own.status == "pass"


def test_the_trainers_own_curves_stand_where_they_stand_without_us(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep_in(tmp_path / "trackio", monkeypatch)
    train(tmp_path, 4, "unwatched", watch=False)
    train(tmp_path, 4, "watched")
    train(tmp_path, 4, "headlines", rlmon_trackio=False)
    unwatched, watched, headlines = (
        read(tmp_path / "trackio" / "whole.db", name) for name in ("unwatched", "watched", "headlines")
    )
    assert unwatched.of("train/loss") == watched.of("train/loss")
    assert [step for step, _ in watched.of("train/loss")] == [1, 2, 3, 4]
    # Without the sink the headline numbers come with the trainer's, and nothing else does.
    assert len(headlines.of("train/rlmon/entropy/mean")) == 4
    assert not [name for row in headlines.rows for name in row if name.startswith("rlmon/")]
    assert headlines.alerts == []
