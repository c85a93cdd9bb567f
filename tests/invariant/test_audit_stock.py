"""Acceptance: stock TRL runs without a monitor, judged afterwards, beside what their reward function saw."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from audit_rows import check

from rlmon.audit import engine
from rlmon.audit.incidents import incidents
from rlmon.audit.result import Audit
from rlmon.detectors import DETECTORS

ROOT = Path(__file__).resolve().parents[2]
BENCHMARKS = ROOT / "benchmarks"
ARMS = ("unprotected", "kl", "still")
SOURCES = ("wandb", "tensorboard", "trackio")
WITH_COMPLETIONS = ("wandb", "trackio")

pytestmark = [pytest.mark.slow, pytest.mark.trl]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seed 0 of every arm with every logger, as TRL leaves it; ``TEST_STOCK_RUNS`` names finished ones."""
    if made := os.environ.get("TEST_STOCK_RUNS"):
        return Path(made)
    folder = tmp_path_factory.mktemp("stock")
    command = [sys.executable, str(BENCHMARKS / "stock_runs.py"), "--out", str(folder), "--seeds", "0"]
    done = subprocess.run(
        [*command, "--arms", ",".join(ARMS), "--report-to", ",".join(SOURCES)],
        cwd=ROOT, capture_output=True, text=True, timeout=1_800,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3_000:]
    return folder


@pytest.fixture(scope="module")
def audits(runs: Path) -> dict[tuple[str, str], Audit]:
    """By arm and source."""
    return {
        (arm, source): engine.audit(runs / f"{arm}-seed0", reader=source)
        for arm in ARMS
        for source in ("trl", *SOURCES)
    }


@pytest.fixture(scope="module")
def onset_truth() -> Iterator[object]:
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import onset_truth

        yield onset_truth
    finally:
        sys.path.remove(str(BENCHMARKS))


def test_a_run_without_protection_fails_where_its_formats_really_died(
    runs: Path, audits: dict[tuple[str, str], Audit], onset_truth: object
) -> None:
    audit = audits["unprotected", "trl"]
    assert audit.verdict == "fail"
    found = check(audit, "format-collapse")
    assert found.status == "fail"
    truth, base, last = onset_truth.onset(runs / "unprotected-seed0")  # type: ignore[attr-defined]
    assert truth is not None
    assert last < 0.5 * base, "it did collapse"
    assert found.first_step is not None
    assert abs(found.first_step - truth) <= 20
    # The headline and the formats say the same thing.
    (what, *_) = incidents(audit)
    assert found in what.checks
    assert audit.headline.startswith(f"From step {what.began} ")
    assert {story.mode for story in audit.modes if story.fate == "extinct"}
    # Every completion that was scored is there: 180 steps of 64.
    lines = (runs / "unprotected-seed0" / "truth.jsonl").read_text(encoding="utf-8").splitlines()
    assert audit.run.completions == len(lines)


def test_a_run_that_does_not_move_passes(runs: Path, audits: dict[tuple[str, str], Audit], onset_truth: object) -> None:
    audit = audits["still", "trl"]
    assert audit.verdict == "pass"
    assert onset_truth.onset(runs / "still-seed0")[0] is None  # type: ignore[attr-defined]
    assert not audit.findings


def test_a_run_held_by_kl_does_not_fail(runs: Path, audits: dict[tuple[str, str], Audit], onset_truth: object) -> None:
    audit = audits["kl", "trl"]
    assert audit.verdict in ("pass", "warn")
    assert onset_truth.onset(runs / "kl-seed0")[0] is None  # type: ignore[attr-defined]
    assert check(audit, "format-collapse").status == "pass"
    assert check(audit, "kl-drift").status == "pass", "TRL logs kl where beta is not 0"


@pytest.mark.parametrize("arm", ARMS)
def test_recognised_by_itself_it_is_read_from_its_completions(
    runs: Path, audits: dict[tuple[str, str], Audit], arm: str
) -> None:
    audit = engine.audit(runs / f"{arm}-seed0")
    assert audit.run.reader == "trl"
    assert [(one.id, one.status) for one in audit.checks] == [(one.id, one.status) for one in audits[arm, "trl"].checks]


@pytest.mark.parametrize("arm", ARMS)
@pytest.mark.parametrize("source", SOURCES)
def test_every_source_of_a_run_says_the_same(audits: dict[tuple[str, str], Audit], arm: str, source: str) -> None:
    whole, other = audits[arm, "trl"], audits[arm, source]
    theirs = {one.id: one for one in other.checks}
    second_signal = {spec.id for spec in DETECTORS if spec.agreement}
    compared = 0
    for mine in whole.checks:
        its = theirs[mine.id]
        if "skip" in (mine.status, its.status):
            continue
        compared += 1
        if source == "tensorboard" and mine.id in second_signal and mine.status == "fail":
            # FAIL needs a second signal, which is in the completions.
            assert its.status in ("warn", "fail"), mine.id
        else:
            assert its.status == mine.status, f"{mine.id}: {mine.message} | {its.message}"
        assert its.first_step == mine.first_step, mine.id
    assert compared >= (5 if source == "tensorboard" else 20)
    if source in WITH_COMPLETIONS:
        assert other.verdict == whole.verdict
        assert other.run.completions == whole.run.completions
        assert other.series["rlmon/format/effective"] == whole.series["rlmon/format/effective"]
        assert {one.id for one in other.checks if one.status == "skip"} == {
            one.id for one in whole.checks if one.status == "skip"
        }


@pytest.mark.parametrize("arm", ARMS)
def test_tensorboard_says_what_to_set_to_have_completions(audits: dict[tuple[str, str], Audit], arm: str) -> None:
    audit = audits[arm, "tensorboard"]
    assert audit.run.completions == 0
    for name in ("format-collapse", "mode-extinction", "near-duplicates", "correct-diversity", "rows-complete"):
        found = check(audit, name)
        assert found.status == "skip"
        assert "log_completions" in (found.reason or ""), found.reason
    assert check(audit, "entropy-collapse").status != "skip"
