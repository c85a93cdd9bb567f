"""Readers and checks of somebody else's: asked and shown like ours, and what fails in them is theirs by name."""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from audit_rows import audited, check, draw
from typer.testing import CliRunner

import rlmon
from rlmon.audit.checks import HINDSIGHT, Ends, Question, question
from rlmon.audit.readers import open_source, runs_at
from rlmon.audit.result import Check
from rlmon.audit.run import OpenedRun, RowBatch, Rows
from rlmon.cli import app
from rlmon.errors import ConfigError, ReadError
from rlmon.extensions import installed
from rlmon.report import as_json, github, junit, markdown
from rlmon.report.audit import build_page


def read_pairs(path: Path) -> pa.Table:
    rows = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()]
    return pa.table(
        {
            "step": pa.array([int(step) for step, *_ in rows], pa.int32()),
            "prompt": [prompt for _, prompt, *_ in rows],
            "completion": [completion for _, _, completion, _ in rows],
            "reward": [float(reward) for *_, reward in rows],
            "mood": ["fine"] * len(rows),
        }
    )


class Pairs:
    """Reads ``*.pairs``: step, prompt, completion and reward between tabs."""

    NAME = "pairs"

    def recognises(self, path: Path) -> bool:
        return path.suffix == ".pairs"

    def open_run(self, path: Path) -> OpenedRun:
        shard = Rows(read_table=functools.partial(read_pairs, path), bytes=path.stat().st_size)
        return OpenedRun(reader=self.NAME, run_id=path.stem, path=path, shards=[shard])


@question("politeness", "Do completions stay polite?", needs=("completions",), about="narrowing", told="{now} are rude")
def politeness(ask: Question, ends: Ends) -> Check:
    texts = [text for part in ends.case.counted.samples for text in part["completion"].to_pylist()]
    rude = sum("prose" not in text for text in texts) / len(texts)
    return ask.says(status="warn", metric="share of rude ones", unit="share", value=rude,
                    message="some are <b>rude</b>", advice="Say please.")  # fmt: skip


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    path = tmp_path / "run.pairs"
    path.write_text(
        "\n".join(f"{step}\twhat is {p}?\tit is {p} {step % 3} {i}\t{i % 2}" for step in range(1, 13)
                  for p in range(4) for i in range(4)), encoding="utf-8",
    )  # fmt: skip
    return path


def test_a_reader_is_asked_before_the_others(pairs: Path) -> None:
    found = rlmon.audit(pairs, readers=[Pairs()])
    assert (found.run.reader, found.run.completions, found.run.steps) == ("pairs", 192, 12)
    assert rlmon.audit(pairs, reader="pairs", readers=[Pairs()]).run.completions == 192
    assert runs_at(pairs, [Pairs()]) == []
    with pytest.raises(ReadError, match="no run that rlmon knows"):
        rlmon.audit(pairs)
    with pytest.raises(ReadError, match="no reader 'pear'; there are pairs, rlmon, trl"):
        rlmon.audit(pairs, reader="pear", readers=[Pairs()])


def test_a_module_is_a_reader_too(pairs: Path) -> None:
    import rlmon.audit.readers.trl as module

    with pytest.raises(ConfigError, match="There is a reader 'trl' already"):
        open_source(pairs, readers=[module])
    with pytest.raises(ConfigError, match="is no reader: it has no NAME, recognises, open_run"):
        open_source(pairs, readers=[object()])  # type: ignore[list-item]


class Broken(Pairs):
    NAME = "broken"

    def open_run(self, path: Path) -> Any:
        raise ZeroDivisionError("on <purpose>")


class Torn(Pairs):
    NAME = "torn"

    def open_run(self, path: Path) -> OpenedRun:
        class Half:
            bytes = 1

            def read(self) -> Iterator[RowBatch]:
                yield RowBatch(rows=read_pairs(path))
                raise OSError("the disk is gone")

        return dataclasses.replace(super().open_run(path), shards=[Half()])


def test_what_a_reader_raises_is_told_with_its_name(pairs: Path) -> None:
    with pytest.raises(ReadError, match=r"The reader 'broken' failed at .*ZeroDivisionError: 'on <purpose>'"):
        rlmon.audit(pairs, readers=[Broken()])
    # The next one that knows the path is read, and a note says why.
    found = rlmon.audit(pairs, readers=[Broken(), Pairs()])
    assert found.run.reader == "pairs"
    assert any("broken was here too, but: The reader 'broken' failed" in note for note in found.run.notes)
    # What was read before a shard failed is judged, and the failure is counted.
    torn = rlmon.audit(pairs, readers=[Torn()], processes=1)
    assert torn.run.completions == 192
    lost = check(torn, "rows-complete")
    assert (lost.status, lost.evidence["unreadable"]) == ("warn", {"torn, part 0": "OSError: 'the disk is gone'"})


class Unsure(Pairs):
    NAME = "unsure"

    def recognises(self, path: Path) -> bool:
        raise RecursionError("no <end>")


def test_a_reader_that_cannot_say_whether_it_knows_a_path_is_named(pairs: Path, tmp_path: Path) -> None:
    said = r"The reader 'unsure' failed to say whether .*run.pairs' is a run of its: RecursionError: 'no <end>'"
    with pytest.raises(ReadError, match=f"no run that rlmon knows.* {said}") as raised:
        rlmon.audit(pairs, readers=[Unsure()])
    assert str(raised.value).count("unsure") == 1
    found = rlmon.audit(pairs, readers=[Unsure(), Pairs()])
    assert found.run.reader == "pairs"
    assert [bool(re.match(said, note)) for note in found.run.notes] == [True]
    # By its name it is asked all the same.
    assert rlmon.audit(pairs, readers=[Unsure()], reader="unsure").run.completions == 192
    assert runs_at(tmp_path, [Unsure()]) == []


class Closed(Pairs):
    def __init__(self) -> None:
        raise OSError("no licence")


class Nameless(Pairs):
    NAME = np.zeros(2)  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (Closed, "The reader Closed cannot be made: OSError: 'no licence'"),
        (Nameless(), "its NAME is no word"),
        (np.zeros(3), "is no reader: it has no NAME"),
    ],
)
def test_a_reader_that_cannot_be_had_is_refused_in_words(pairs: Path, given: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        rlmon.audit(pairs, readers=[given])


def test_one_alone_is_refused_with_what_to_type(pairs: Path) -> None:
    with pytest.raises(ConfigError, match=r"readers is a list.*readers=\[\.\.\.\]"):
        rlmon.audit(pairs, readers=Pairs())  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"checks is a list.*checks=\[\.\.\.\]"):
        rlmon.audit(pairs, readers=[Pairs()], checks=politeness)  # type: ignore[arg-type]


class Local(Pairs):
    NAME = "local"

    def open_run(self, path: Path) -> OpenedRun:
        shards = [Rows(read_table=lambda: read_pairs(path), bytes=20 << 20) for _ in range(2)]
        return dataclasses.replace(super().open_run(path), shards=shards)


class Strange:
    """Can be handed to another process, and not be taken there."""

    bytes = 20 << 20

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return getattr, ("a word", "not_there")

    def read(self) -> Iterator[RowBatch]:
        yield RowBatch(rows=read_pairs(self.path))


class Strangers(Pairs):
    NAME = "strangers"

    def open_run(self, path: Path) -> OpenedRun:
        return dataclasses.replace(super().open_run(path), shards=[Strange(path), Strange(path)])


@pytest.mark.parametrize(("reader", "why"), [(Local, "Can't pickle|Can't get local"), (Strangers, "BrokenProcessPool")])
def test_shards_that_do_not_travel_are_counted_here(pairs: Path, reader: type[Pairs], why: str) -> None:
    found = rlmon.audit(pairs, readers=[reader], processes=2)
    assert found.run.completions == 2 * 192
    assert re.search(f"in one process, since .*{why}", found.run.notes[-1])
    alone = rlmon.audit(pairs, readers=[reader], processes=1)
    assert not alone.run.notes
    assert [one.id for one in alone.checks] == [one.id for one in found.checks]


def test_a_check_is_shown_like_the_others() -> None:
    found = audited(draw(1), checks=[politeness])
    mine = check(found, "politeness")
    assert (mine.status, mine.title) == ("warn", "Do completions stay polite?")
    for text in (as_json.render(found), markdown.render(found), junit.render(found), github.render(found)):
        assert "politeness" in text
    page = build_page(found)
    assert "politeness" in page
    assert "<b>rude</b>" not in page
    assert found.verdict in ("warn", "fail")
    # It takes its part of the error rate.
    assert f"The {len(HINDSIGHT) + 1} hindsight checks" in found.correction


def broken_check(ask: Question, ends: Ends) -> Any:
    raise KeyError("mood")


def test_a_check_that_fails_is_an_error_of_its_author() -> None:
    bad = Question(id="bad", title="Is it bad?", judge=broken_check)
    none = Question(id="none", title="Is it none?", judge=lambda ask, ends: None)  # type: ignore[arg-type, return-value]
    twice = dataclasses.replace(politeness, id="shortcut")
    number = Question(
        id="number", title="A number?", judge=lambda ask, ends: ask.says(status="warn", message="", value="7")
    )
    late = Question(
        id="late", title="By when?", judge=lambda ask, ends: ask.says(status="warn", message="", at_latest="no")
    )
    word = Question(id="word", title="A status?", judge=lambda ask, ends: ask.says(status="meh", message=""))
    found = audited(draw(1), checks=[bad, none, twice, number, late, word, "text", np.zeros(3), politeness])
    errors = {one.id: one.reason or "" for one in found.checks if one.status == "error"}
    assert errors.keys() == {
        "bad",
        "none",
        "shortcut-again",
        "number",
        "late",
        "word",
        "not-a-check",
        "not-a-check-again",
    }
    assert f"KeyError: \"'mood'\". This is a defect of {__name__}" in errors["bad"]
    assert "the answer was None" in errors["none"]
    assert "value is '7'" in errors["number"]
    assert "at_latest is 'no'" in errors["late"]
    assert "status is 'meh'; it must be one of fail, warn" in errors["word"]
    assert "'text' was given as a check" in errors["not-a-check"]
    assert check(found, "politeness").status == "warn"
    ours = {one.id for one in audited(draw(1)).checks}
    assert ours <= {one.id for one in found.checks}


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"id": "My check"}, "small letters and dashes"),
        ({"about": "collapse"}, "about knows numbers, record, narrowing"),
        ({"core": "kl"}, "core knows None, formats"),
        ({"needs": ["texts"]}, "needs knows completions, prompts"),
        ({"told": "{value} are rude"}, "told has {base} and {now} to fill in"),
    ],
)
def test_words_that_no_audit_can_use_are_refused_where_they_are_written(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)):
        dataclasses.replace(politeness, **fields)


@pytest.fixture
def _installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    about = tmp_path / "site" / "somebody-1.0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: somebody\nVersion: 1.0\n", encoding="utf-8")
    (about / "entry_points.txt").write_text(
        f"[rlmon.readers]\npairs = {__name__}:Pairs\ngone = {__name__}:Gone\nclosed = {__name__}:Closed\n"
        f"[rlmon.checks]\npoliteness = {__name__}:politeness\n", encoding="utf-8",
    )  # fmt: skip
    monkeypatch.syspath_prepend(tmp_path / "site")
    installed.cache_clear()
    yield
    installed.cache_clear()


@pytest.mark.usefixtures("_installed")
def test_installed_ones_are_asked_by_python_and_by_the_command(pairs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = rlmon.audit(pairs)
    assert found.run.reader == "pairs"
    assert check(found, "politeness").status == "warn"
    assert "rlmon.readers 'gone' of somebody was left out" in (told := capsys.readouterr().err)
    assert "left out: The reader Closed cannot be made: OSError: 'no licence'" in told
    said = CliRunner().invoke(app, ["audit", str(pairs), "--format", "json"])
    assert {one["id"] for one in json.loads(said.stdout)["checks"]} >= {"politeness", "shortcut"}
    assert "Readers of installed packages: closed, gone, pairs" in CliRunner().invoke(app, ["audit", "--help"]).stdout


def test_without_any_the_help_says_nothing_of_them() -> None:
    assert "installed packages" not in CliRunner().invoke(app, ["audit", "--help"]).stdout
