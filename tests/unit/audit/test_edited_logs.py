"""A log whose header was edited: what it says of detectors of its own is data from anywhere."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import make_runlog
import pytest
from typer.testing import CliRunner

import rlmon
from rlmon.cli import app
from rlmon.detectors import DetectorSpec, describe, start
from rlmon.records import Block
from rlmon.report.audit import build_page
from rlmon.runlog import RunLogWriter

STEPS = 30
LOUD = DetectorSpec(
    id="loud", statistics=("volume",), metrics=("ours/volume",), unit="dB", direction="up", rule="ratio",
    warn=1.3, fail=1.6, meaning="It is loud.", advice="Hush.", question="Is it quiet?",
)  # fmt: skip
HOSTILE = "<script>alert(1)</script>[bold red]x[/][/nope]\x1b[2J\x1b]0;own\x07|a|\n# H `c` {now} \u202eevil \ud800"
UNSAFE = ("\x1b", "\x07", "\u202e", "\ud800")


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log with a detector of its own, which fails."""
    path = tmp_path_factory.mktemp("log") / "good"
    described = describe(start(alpha=0.01, total_steps=STEPS, group_size=4, own=[LOUD]))
    header = make_runlog.header(detectors=described, total_steps=STEPS)
    writer = RunLogWriter.open(path, header, resume=False, secret=bytes(32))
    for step in range(1, STEPS + 1):
        volume = 1.0 + 0.01 * (step % 3) if step < 12 else 5.0
        blocks = tuple(Block(source="a", prompts=2, completions=8, stats={"volume": volume}) for _ in range(2))
        metrics = {"rlmon/entropy/mean": 1.0, "ours/volume": volume, f"ours/{HOSTILE * 60}": 1.0}
        writer.write_rollouts(make_runlog.rollouts(step - 1))
        writer.append_step(make_runlog.step_record(step, metrics=metrics, missing={}, blocks=blocks))
    writer.close()
    return path


Edit = Callable[[dict[str, Any]], Any]
"""Changes what a header says of its detectors."""


def edited(good: Path, to: Path, edit: Edit) -> Path:
    shutil.copytree(good, to)
    header = json.loads((to / "run.json").read_text(encoding="utf-8"))
    edit(header["attempts"][0]["header"]["detectors"])
    (to / "run.json").write_text(json.dumps(header), encoding="utf-8")
    return to


def of_own(**fields: Any) -> Edit:
    return lambda said: said["own"][0].update(fields)


NONSENSE: Mapping[str, Edit] = {
    "without metrics": lambda said: said["own"][0].pop("metrics"),
    "a number as text": of_own(warn="1.3"),
    "told has a width": of_own(told=["it {now:>20000000}"]),
    "told is torn": of_own(told=["it {"]),
    "told by a number": of_own(told=[3]),
    "a unit of nothing": of_own(unit=None),
    "a question of a number": of_own(question=3),
    "a list as its id": of_own(id=["loud"]),
    "a hostile id": of_own(id=HOSTILE),
    "a direction of its own": of_own(direction=HOSTILE),
    "own is none": lambda said: said.update(own=None),
    "own is a word": lambda said: said.update(own="loud"),
    "own is of words": lambda said: said.update(own=["loud"]),
    "a thousand of them": lambda said: said.update(own=[{**said["own"][0], "id": f"loud-{at}"} for at in range(1_000)]),
    "10,000 bets": lambda said: said["parameters"].update(lambdas=[0.5] * 10_000),
    "lines of nothing": lambda said: said["parameters"].update(lines=None),
    "an alpha of text": lambda said: said.update(alpha="small"),
}


@pytest.mark.parametrize("name", NONSENSE)
def test_nonsense_about_detectors_is_judged_anew_and_said(name: str, good: Path, tmp_path: Path) -> None:
    path = edited(good, tmp_path / "log", NONSENSE[name])
    found = rlmon.audit(path)
    assert "loud" not in {one.id for one in found.checks}
    replayed = next(one for one in found.checks if one.id == "replay")
    assert replayed.reason or replayed.message
    shown = {}
    for command in (
        ["audit", path],
        ["show", path, "--limit", "1"],
        ["watch", path, "--once"],
        ["compare", good, path],
    ):
        left = CliRunner().invoke(app, [str(word) for word in command])
        assert left.exception is None or isinstance(left.exception, SystemExit), command
        assert not [mark for mark in UNSAFE if mark in left.output]
        assert len(left.output) < 20_000
        shown[command[0]] = left.output
    assert "Detectors: not shown" in shown["watch"]
    assert "\x1b" not in build_page(found)


def test_hostile_words_of_a_detector_are_words(good: Path, tmp_path: Path) -> None:
    words = {"metrics": [HOSTILE], "unit": HOSTILE, "question": HOSTILE * 60, "advice": HOSTILE, "told": [HOSTILE]}
    path = edited(good, tmp_path / "log", of_own(**words))
    mine = next(one for one in rlmon.audit(path).checks if one.id == "loud")
    assert mine.status == "fail"
    for form in ("rich", "json", "markdown", "junit", "github"):
        left = CliRunner().invoke(app, ["audit", str(path), "--format", form])
        assert (left.exit_code, [mark for mark in UNSAFE if mark in left.output]) == (1, [])
        assert "<script>alert" not in left.output or form in ("rich", "json", "github")
    page = build_page(rlmon.audit(path))
    assert not [mark for mark in ("\x1b", "\u202e", "<script>alert") if mark in page]
    for command in (["watch", str(path), "--once"], ["compare", str(good), str(path)]):
        left = CliRunner().invoke(app, command)
        assert left.exit_code == 0
        assert not [mark for mark in UNSAFE if mark in left.output]


def test_a_metric_of_the_runs_own_is_on_the_page(good: Path) -> None:
    page = build_page(rlmon.audit(good))
    assert '"name":"ours/volume"' in page.replace(": ", ":")
