"""docs/extending.md shows one file of each kind, and those files are what is run."""

from __future__ import annotations

import ast
import json
import random
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import extended
import pytest
from typer.testing import CliRunner

import rlmon
from rlmon.cli import app
from rlmon.detectors import describe
from rlmon.extensions import Extensions, installed

KINDS = ("metrics", "detectors", "actions", "sinks", "readers", "checks")
PAGE = (extended.DOCS / "extending.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", extended.NAMES)
def test_the_page_shows_the_very_file_and_it_is_short(name: str) -> None:
    source = (extended.DOCS / "extending" / f"{name}.py").read_text(encoding="utf-8")
    assert f"```python\n{source}```\n" in PAGE
    assert len(source.splitlines()) < 60
    for node in ast.walk(ast.parse(source)):
        modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        modules += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        assert all("._" not in module for module in modules)


def test_the_page_names_every_group() -> None:
    assert set(re.findall(r"`(rlmon\.[a-z]+)` \|", PAGE)) == {f"rlmon.{kind}" for kind in KINDS}


def answers(path: Path, cut_from: int) -> Path:
    """30 iterations in the form of docs/extending/reader.py, whose answers are cut from one of them on."""
    draw = random.Random(3)
    with path.open("w", encoding="utf-8") as file:
        for iteration in range(1, 31):
            for number in range(8):
                ends = [" and" if iteration >= cut_from and draw.random() < 0.6 else "." for _ in range(4)]
                texts = [f"It is {draw.randint(1, 99)}{end}" for end in ends]
                group = [{"text": text, "score": float(draw.random() < 0.5)} for text in texts]
                line = {"iteration": iteration, "question": f"What is {number} + {iteration}?", "answers": group}
                file.write(json.dumps(line) + "\n")
    return path


@pytest.mark.parametrize(("cut_from", "status"), [(15, "warn"), (99, "pass")])
def test_a_reader_and_a_check_by_hand(tmp_path: Path, cut_from: int, status: str) -> None:
    path = answers(tmp_path / "run.answers", cut_from)
    reader, check = extended.load("reader").ANSWERS, extended.load("check").whole_sentences
    audit = rlmon.audit(path, readers=[reader], checks=[check])
    assert (audit.run.reader, audit.run.completions) == ("answers", 30 * 8 * 4)
    assert next(one.status for one in audit.checks if one.id == "whole-sentences") == status


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A folder with an installed package that brings all six."""
    about = tmp_path / "site" / "our_team-1.0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: our-team\nVersion: 1.0\n", encoding="utf-8")
    brought = {
        "metrics": "metric:SHOUTING", "detectors": "detector:TOO_LOUD", "actions": "action:HalveLong",
        "sinks": "sink:LinesOfJson", "readers": "reader:ANSWERS", "checks": "check:whole_sentences",
    }  # fmt: skip
    lines = [f"[rlmon.{group}]\nours = our_team_{name}" for group, name in brought.items()]
    (about / "entry_points.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    for name in extended.NAMES:
        source = (extended.DOCS / "extending" / f"{name}.py").read_text(encoding="utf-8")
        (tmp_path / "site" / f"our_team_{name}.py").write_text(source, encoding="utf-8")
    return tmp_path / "site"


@pytest.fixture
def _installed(site: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(site)
    installed.cache_clear()
    yield
    installed.cache_clear()


@pytest.mark.usefixtures("_installed")
def test_what_is_installed_is_used(tmp_path: Path) -> None:
    added = Extensions().with_installed()
    assert [len(kind) for kind in (added.metrics, added.detectors, added.actions, added.sinks)] == [1, 1, 1, 1]
    # What is given by hand and is installed comes once.
    assert Extensions(detectors=added.detectors).with_installed() == added
    monitor = rlmon.Monitor(directory=tmp_path / "log", group_size=4)
    assert describe(monitor.detector_state)["own"][0]["id"] == "shouting"
    monitor.close()


@pytest.mark.usefixtures("_installed")
def test_the_catalogues_list_what_is_installed() -> None:
    def said(*words: str) -> str:
        return CliRunner().invoke(app, list(words)).stdout

    assert "capital letters over all letters" in said("metrics", "shouting/share")
    assert "watched by: shouting" in said("metrics", "shouting/share")
    assert "shouting/share_ratio_to_base" in said("metrics", "shouting")
    assert "asks: Do completions keep their voice down?" in said("detectors", "shouting")
    assert "halve_long" in said("policy")


def test_an_outsider_who_installs_it_types_one_command(site: Path, tmp_path: Path) -> None:
    path = answers(tmp_path / "run.answers", 15)
    command = [sys.executable, "-m", "rlmon.cli", "audit", str(path), "--format", "json"]
    paths = {"PYTHONPATH": f"{site}:{Path(rlmon.__file__).parents[1]}"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=paths, timeout=300)
    found = json.loads(done.stdout)
    assert next(check["status"] for check in found["checks"] if check["id"] == "whole-sentences") == "warn"
    assert done.returncode == 0, done.stderr
