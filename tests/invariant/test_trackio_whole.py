"""A trackio run beside its run log: all that was measured is there once, at its step, and gives the same verdict."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import tiny
from local_trackio import Read, keep_in, read
from mirrored import check_trackio

import rlmon
import rlmon.audit.readers.trackio as trackio_reader
from rlmon.records import SEVERITIES, Finding
from rlmon.trl import RLMon, RLMonConfig

pytestmark = pytest.mark.trl

pytest.importorskip("trackio")


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


def test_a_run_holds_everything_once_also_where_it_goes_on_from_behind_its_last_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep_in(tmp_path / "trackio", monkeypatch)
    base, log = tmp_path / "trackio" / "whole.db", tmp_path / "the-run" / "rlmon"
    train(tmp_path, 23)
    first = check_trackio(base, log)
    findings = rlmon.open_run(log).findings
    assert findings
    assert [(title, step) for _, title, _, step in first.alerts] == due(findings)
    assert {(title.split()[1], level) for level, title, _, _ in first.alerts} <= {
        ("NOTE:", "info"),
        ("WARN:", "warn"),
        ("FAIL:", "error"),
    }
    assert [row["step"] for row in first.of("rlmon/findings")[-1][1]] == [f.step for f in reversed(findings)]
    samples = dict(first.of("rlmon/samples"))
    assert sorted(samples) == [1, 6, 11, 16, 21]  # five steps apart
    rows = {(row["round"], row["completion"]) for row in rlmon.open_run(log).rollouts().to_pylist()}
    assert all((row["round"], row["completion"]) in rows for shown in samples.values() for row in shown)
    check_verdict(base, log, first, due(findings))

    train(tmp_path, 30, resume=str(tmp_path / "the-run" / "checkpoint-20"))
    second = check_trackio(base, log)
    findings = rlmon.open_run(log).findings
    told = {title for _, title, _, _ in first.alerts}
    assert any(step > 20 for _, _, _, step in first.alerts)  # it is told once, though the log hides it
    assert [(title, step) for _, title, _, step in second.alerts[len(first.alerts) :]] == [
        (title, step) for title, step in due(findings) if title not in told
    ]
    assert [row["step"] for row in second.of("rlmon/findings")[-1][1]] == [f.step for f in reversed(findings)]
    assert [step for step, _ in second.of("rlmon/samples")] == [1, 6, 11, 16, 21, 26]
    check_verdict(
        base, log, second, [(title, step) for title, step in due(findings) if step <= 20 or title not in told]
    )


def due(findings: Sequence[Finding]) -> list[tuple[str, int]]:
    """Title and step of the alerts that findings are worth: one each time a detector turns graver."""
    gravest: dict[str, int] = {}
    found = []
    for finding in findings:
        grave = SEVERITIES.index(finding.severity)
        if grave > gravest.get(finding.detector, -1):
            gravest[finding.detector] = grave
            found.append((f"rlmon {finding.severity.upper()}: {finding.detector}", finding.step))
    return found


def check_verdict(base: Path, log: Path, found: Read, remarks: list[tuple[str, int]]) -> None:
    """The data base alone gives the verdict of the log, and what the run said of itself is read from it."""
    assert rlmon.audit(base).verdict == rlmon.audit(log).verdict == found.of("rlmon/verdict")[-1][1]
    word = trackio_reader.open_run(base).own_word
    assert word is not None
    assert word.verdict == found.of("rlmon/verdict")[-1][1]
    assert [(f"rlmon {remark.severity.upper()}: {remark.detector}", remark.step) for remark in word.remarks] == remarks


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
