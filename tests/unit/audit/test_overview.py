"""Folders of several runs: where the runs are, and what is said of them together."""

from __future__ import annotations

import dataclasses
import io
import json
import shutil
from pathlib import Path

import make_audit
import pytest
from rich.console import Console

from rlmon import cli
from rlmon.audit import engine
from rlmon.audit.overview import overview
from rlmon.audit.readers import open_source, runs_at
from rlmon.audit.result import Audit
from rlmon.errors import ReadError
from rlmon.report.overview import render

GOLDEN = Path(__file__).resolve().parents[2] / "golden"
CASES = GOLDEN / "cases"


def named(audit: Audit, source: str) -> Audit:
    return dataclasses.replace(audit, run=dataclasses.replace(audit.run, source=source))


def drawn(audits: list[Audit], width: int) -> str:
    console = Console(width=width, file=io.StringIO(), color_system=None)
    console.print(render(overview(audits), width=width))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_folder_of_runs_is_its_runs(tmp_path: Path) -> None:
    shutil.copytree(GOLDEN / "foreign" / "trl", tmp_path / "a")
    shutil.copytree(GOLDEN / "runlog-schema-1", tmp_path / "b" / "rlmon")
    shutil.copytree(GOLDEN / "foreign" / "tensorboard", tmp_path / "deep" / "er" / "c")
    shutil.copytree(CASES / "trl-console-log", tmp_path / "d")
    shutil.copytree(CASES / "tb-several-runs-one-folder", tmp_path / "e")
    shutil.copytree(GOLDEN / "foreign" / "verl", tmp_path / "f")
    (tmp_path / ".hidden").mkdir()
    shutil.copytree(GOLDEN / "foreign" / "trl", tmp_path / ".hidden" / "trl")
    found = runs_at(tmp_path)
    assert [path.relative_to(tmp_path).parts[0] for path in found] == ["a", "b", "d", "deep", "e", "e", "f"]
    for path in found:
        assert open_source(path)
        assert runs_at(path) == []


def test_runs_are_never_thrown_together(tmp_path: Path) -> None:
    shutil.copytree(GOLDEN / "foreign" / "trl", tmp_path / "seeds" / "0")
    alone = open_source(tmp_path)
    assert alone.reader == "trl"
    assert alone.scalars == open_source(tmp_path / "seeds" / "0").scalars
    assert "the one run of the folder" in alone.notes[-1]
    shutil.copytree(GOLDEN / "foreign" / "trl", tmp_path / "seeds" / "1")
    with pytest.raises(ReadError, match=r"holds 2 runs: 'seeds/0', 'seeds/1'. Give one of them; `rlmon audit "):
        open_source(tmp_path)


@pytest.mark.parametrize("name", sorted(path.name for path in (GOLDEN / "foreign").iterdir()))
def test_one_run_is_no_folder_of_runs(name: str) -> None:
    assert runs_at(GOLDEN / "foreign" / name) == []


def test_a_resumed_run_is_one() -> None:
    assert runs_at(CASES / "wandb4482-resumed-two-dirs") == []


def test_console_logs_side_by_side_are_runs(tmp_path: Path) -> None:
    for name in ("one.log", "two.log"):
        shutil.copy(CASES / "trl-console-log" / "train.log", tmp_path / name)
    (tmp_path / "settings.json").write_text('{"reward": 1}')
    assert [path.name for path in runs_at(tmp_path)] == ["one.log", "two.log"]


def test_what_is_not_there_holds_no_runs(tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path, Path("nul\0byte"), Path("x" * 5_000)):
        assert runs_at(path) == []


def test_the_worst_comes_first_with_the_curve_of_its_event() -> None:
    audits = [
        named(make_audit.healthy(), "/runs/fine"),
        named(make_audit.one_step(), "/runs/short"),
        named(make_audit.collapsed(), "/runs/lost"),
        named(make_audit.healthy(), "/runs/also fine"),
    ]
    lines = overview(audits)
    assert [line.name for line in lines] == ["lost", "short", "fine", "also fine"]
    assert [line.audit.verdict for line in lines] == ["fail", "insufficient", "pass", "pass"]
    assert lines[0].metric == "rlmon/format/effective"
    assert lines[0].said
    assert lines[1].said == "No answer about entropy."
    assert (lines[2].metric, lines[2].said) == ("rlmon/health/reward_mean", "")
    for width in (60, 80, 140):
        text = drawn(audits, width)
        assert [text.index(word) for word in ("lost", "short", "also fine")] == sorted(
            text.index(word) for word in ("lost", "short", "also fine")
        )
        assert "of 5 judged" in text
        assert "4 runs: 1 FAIL, 1 UNSURE, 2 PASS" in " ".join(text.split())
        assert all(len(line) <= width for line in text.splitlines())
        assert "█" in text


def test_hostile_names_stay_text() -> None:
    text = drawn([named(make_audit.hostile(), "/r/\x1b[31m[bold]x"), named(make_audit.hostile(), "/r/\n::error::")], 80)
    assert "\x1b" not in text
    assert "\n::error" not in text


def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str]:
    monkeypatch.setattr("sys.argv", ["rlmon", *map(str, arguments)])
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit) as left:
        cli.main()
    return int(str(left.value.code or 0)), capsys.readouterr().out


def test_the_command_over_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(CASES / "trl-console-log", tmp_path / "bad")
    shutil.copytree(GOLDEN / "foreign" / "tensorboard", tmp_path / "short")
    code, out = run(monkeypatch, capsys, "audit", tmp_path)
    assert code == 1
    assert out.index("FAIL") < out.index("bad") < out.index("UNSURE") < out.index("short")
    assert "2 runs: 1 FAIL, 1 UNSURE" in out
    assert len(out.splitlines()) < 8
    code, full = run(monkeypatch, capsys, "audit", tmp_path, "--verbose")
    assert code == 1
    assert len(full) > 3 * len(out)
    code, text = run(monkeypatch, capsys, "audit", tmp_path, "--format", "json")
    assert [one["verdict"] for one in json.loads(text)] == ["fail", "insufficient"]
    # One run of the folder, by its own path, is one object.
    code, text = run(monkeypatch, capsys, "audit", tmp_path / "bad", "--format", "json")
    assert json.loads(text)["verdict"] == "fail"
    assert engine.audit(tmp_path / "bad").verdict == "fail"
