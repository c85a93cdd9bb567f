"""One run that lost its formats, as its own log, a W&B run and a TensorBoard folder hold it: none may pass it."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import sums_shown
import torch
from audit_rows import audited, check, opened

import rlmon
import rlmon.detectors as detectors
from rlmon.audit.engine import audit
from rlmon.audit.result import Audit
from rlmon.audit.run import OwnWord, Remark
from rlmon.monitor import About
from rlmon.sinks.wandb import WandbSink
from rlmon.trl.mirror import headline

wandb = pytest.importorskip("wandb")

STEPS, LOST_FROM, PROMPTS, GROUP = 60, 30, 8, 8
WRITE = (
    "Adding {a} and {b} gives {c}.",
    "{c}",
    '{{"answer": {c}}}',
    "\\boxed{{{c}}}",
    "```python\nprint({a} + {b})\n```",
    "1. Take {a}.\n2. Add {b}.\n3. That is {c}.",
)


@dataclass(frozen=True)
class Sources:
    log: Path
    wandb: Path
    tensorboard: Path


def made(folder: Path, lost: bool) -> Sources:
    """A run of six formats that keeps them, or writes code only from step 30 on, into all three at once."""
    from torch.utils.tensorboard import SummaryWriter

    draw, noise = random.Random(5), torch.Generator().manual_seed(5)
    monitor = rlmon.Monitor(
        rlmon.RLMonConfig(rlmon_console=False, rlmon_table_every=30),
        directory=folder / "log",
        group_size=GROUP,
        about=About(total_steps=STEPS),
    )
    run = wandb.init(mode="offline", dir=str(folder), project="rlmon-tests")
    run.define_metric("train/global_step")
    sink = WandbSink()
    sink.open(monitor.writer.header)
    writer = SummaryWriter(folder / "tensorboard")
    for step in range(1, STEPS + 1):
        sums = [(draw.randint(2, 60), draw.randint(2, 60)) for _ in range(PROMPTS)]
        rows = [(a, b) for a, b in sums for _ in range(GROUP)]
        gone = lost and step >= LOST_FROM
        rewards = [float(draw.random() < 0.5) for _ in rows]
        completions = [(WRITE[4] if gone else draw.choice(WRITE)).format(a=a, b=b, c=a + b) for a, b in rows]
        sums_shown.observe(monitor, step, rows, completions, rewards, noise)
        before = len(monitor.findings)
        record = monitor.end_step(step)
        assert record is not None
        trainers = {
            "reward": sum(rewards) / len(rewards),
            "reward_std": 0.5,
            "frac_reward_zero_std": 0.0,
            "completions/mean_length": 20.0 + draw.random(),
            "completions/clipped_ratio": 0.0,
            "entropy": 0.55,
            "grad_norm": 0.3 + 0.1 * draw.random(),
        }
        run.log({"train/global_step": step, **{f"train/{name}": value for name, value in trainers.items()}})
        if detectors.judged(monitor.detector_state):
            sink.judged()
        sink.record(record, {})
        for finding in monitor.findings[before:]:
            sink.finding(finding)
        if step % 25 == 1:
            sink.table(step, monitor.samples)
        for name, value in {**trainers, **headline(record)}.items():
            writer.add_scalar(f"train/{name}", value, step)
    monitor.close()
    sink.close()
    run.finish()
    writer.close()
    return Sources(log=folder / "log", wandb=folder / "wandb", tensorboard=folder / "tensorboard")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    yield tmp_path_factory.mktemp("sources")
    # wandb reads WANDB_* once per process: without this no later test could set them.
    wandb.teardown()


@pytest.fixture(scope="module")
def lost(folder: Path) -> dict[str, Audit]:
    sources = made(folder / "lost", lost=True)
    return {name: audit(getattr(sources, name)) for name in ("log", "wandb", "tensorboard")}


@pytest.fixture(scope="module")
def kept(folder: Path) -> dict[str, Audit]:
    sources = made(folder / "kept", lost=False)
    return {name: audit(getattr(sources, name)) for name in ("log", "wandb", "tensorboard")}


def test_no_source_passes_a_run_that_lost_its_formats(lost: dict[str, Audit]) -> None:
    assert {name: found.verdict for name, found in lost.items()} == dict.fromkeys(lost, "fail")
    for name, found in lost.items():
        one = check(found, "format-collapse")
        assert one.status == "fail", name
        assert one.alarm_step is not None
        # The last of six formats are of step 29; a curve's evidence takes some steps more than rows' does.
        assert LOST_FROM < one.alarm_step < LOST_FROM + 12, name
        assert one.first_step is not None
        assert LOST_FROM - 2 <= one.first_step <= LOST_FROM + 4, name


def test_every_source_passes_the_run_that_kept_them(kept: dict[str, Audit]) -> None:
    assert {name: found.verdict for name, found in kept.items()} == dict.fromkeys(kept, "pass")
    assert [name for name, found in kept.items() if "curves only: outputs not seen" in found.headline] == [
        "tensorboard"
    ]
    assert not kept["tensorboard"].coverage.outputs
    assert kept["wandb"].coverage.outputs


def test_what_the_monitor_measured_is_judged_rather_than_the_few_rows_of_its_tables(lost: dict[str, Audit]) -> None:
    # Tables came at steps 1, 31 and 61; the curves at every step.
    assert lost["wandb"].run.completions < 3 * 64
    one, own = check(lost["wandb"], "format-collapse"), check(lost["log"], "format-collapse")
    assert one.baseline == pytest.approx(own.baseline, rel=0.25)
    shares = lost["wandb"].mode_shares["fenced"]
    assert len(shares) == STEPS
    assert shares[-1] == 1.0
    assert shares[0] == lost["log"].mode_shares["fenced"][0]


def test_what_the_run_said_of_itself_is_read_and_shown(lost: dict[str, Audit], kept: dict[str, Audit]) -> None:
    for name in ("log", "wandb"):
        own = check(lost[name], "own-verdict")
        assert own.status == "pass"
        assert own.message.startswith("the run itself said FAIL (format-collapse WARN at step 31")
        assert check(kept[name], "own-verdict").message == "the run itself said PASS"
    assert "own-verdict" not in {one.id for one in lost["tensorboard"].checks}


HEALTHY = {"entropy": [(step, 0.5 + 0.01 * (step % 3)) for step in range(1, 61)]}


@pytest.mark.parametrize(
    ("own", "status", "said"),
    [
        (OwnWord(verdict="pass"), "pass", "the run itself said PASS"),
        (OwnWord(verdict="warn"), "warn", "the run itself said WARN; what was read here comes to PASS"),
        (OwnWord(verdict="fail"), "fail", "the run itself said FAIL; what was read here comes to PASS"),
        (
            OwnWord(verdict="fail", remarks=[Remark(detector="format-collapse", severity="fail", step=53)]),
            "fail",
            "the run itself said FAIL (format-collapse FAIL at step 53); what was read here comes to PASS",
        ),
        # What is a note today was a warning once.
        (
            OwnWord(verdict="warn", remarks=[Remark(detector="silent-groups-good", severity="warn", step=9)]),
            "pass",
            "the run itself said PASS",
        ),
    ],
)
def test_a_verdict_of_the_run_that_is_not_ours_is_a_finding(own: OwnWord, status: str, said: str) -> None:
    found = audited(opened(scalars=HEALTHY, own_word=own))
    one = check(found, "own-verdict")
    assert (one.status, one.message) == (status, said)
    assert found.verdict == ("insufficient" if status == "pass" else status)
    assert one.evidence["own_verdict"] == ("pass" if status == "pass" else own.verdict)


def test_alarms_here_that_the_run_did_not_have_are_a_disagreement_too() -> None:
    falls = {"entropy": [(step, 0.5 + 0.01 * (step % 3) if step < 30 else 0.05) for step in range(1, 61)]}
    assert check(audited(opened(scalars=falls, own_word=OwnWord(verdict="pass"))), "own-verdict").status == "warn"
    assert check(audited(opened(scalars=falls, own_word=OwnWord(verdict="warn"))), "own-verdict").status == "pass"
