"""``rlmon audit`` and its kin: exit codes, what goes where, and that no failure is a traceback."""

from __future__ import annotations

import dataclasses
import json
import os
import pty
import random
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import make_audit
import make_runlog
import pytest
from called import Rlmon

from rlmon import cli
from rlmon.audit import engine
from rlmon.audit.result import Audit, Verdict
from rlmon.errors import ReadError
from rlmon.report import github, markdown
from rlmon.runlog import RunLogWriter

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def audits(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the engine returns for a path (by its name), or raises; and under ``asked`` what it was asked for."""
    known: dict[str, Any] = {"asked": []}

    def audit(path: Path, **settings: Any) -> Audit:
        known["asked"].append((str(path), settings))
        found = known.get(Path(path).name, make_audit.healthy())
        if isinstance(found, BaseException):
            raise found
        assert isinstance(found, Audit)
        return found

    monkeypatch.setattr(engine, "audit", audit)
    return known


def with_verdict(verdict: Verdict) -> Audit:
    found = make_audit.one_step() if verdict == "insufficient" else make_audit.healthy()
    return dataclasses.replace(found, verdict=verdict, run=dataclasses.replace(found.run, source=verdict))


UNSURE = "unsure, 3 of 5 judged. No answer about entropy: one step is no baseline."
"""What stderr says where the verdict is unsure, in one line."""


def subprocess_of(*arguments: object, **environment: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "rlmon.cli", *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        timeout=60,
    )


# ---- exit codes


@pytest.mark.parametrize(
    ("verdict", "options", "code"),
    [
        ("pass", [], 0), ("warn", [], 0), ("fail", [], 1), ("insufficient", [], 0),
        ("pass", ["--fail-on", "warn"], 0), ("warn", ["--fail-on", "warn"], 1), ("fail", ["--fail-on", "warn"], 1),
        ("insufficient", ["--fail-on", "warn"], 0), ("fail", ["--fail-on", "never"], 0),
        ("warn", ["--fail-on", "never"], 0), ("insufficient", ["--strict"], 3), ("pass", ["--strict"], 0),
        ("fail", ["--strict"], 1), ("insufficient", ["--strict", "--fail-on", "never"], 3),
    ],
)  # fmt: skip
def test_exit_codes(rlmon: Rlmon, audits: dict[str, Any], verdict: Verdict, options: list[str], code: int) -> None:
    audits["run"] = with_verdict(verdict)
    left = rlmon("audit", "run", *options)
    assert (left.code, left.err) == (code, f"rlmon: insufficient: {UNSURE}\n" if verdict == "insufficient" else "")
    assert left.out


@pytest.mark.parametrize(
    ("names", "code"),
    [("pass fail", 1), ("fail pass", 1), ("insufficient pass", 3), ("insufficient fail", 1), ("pass broken fail", 2)],
)
def test_of_several_runs_the_worst_counts(rlmon: Rlmon, audits: dict[str, Any], names: str, code: int) -> None:
    for name in ("pass", "fail", "insufficient"):
        audits[name] = with_verdict(name)  # type: ignore[arg-type]
    audits["broken"] = ReadError("nothing at 'broken'")
    left = rlmon("audit", *names.split(), "--strict", "--format", "json")
    assert left.code == code
    assert [one["verdict"] for one in json.loads(left.out)] == [name for name in names.split() if name != "broken"]
    said = {"broken": "rlmon: nothing at 'broken'\n", "insufficient": f"rlmon: insufficient: {UNSURE}\n"}
    assert left.err == "".join(said.get(name, "") for name in names.split())
    # The overview has the word; one line beside it for all.
    overview = rlmon("audit", *names.split(), "--strict")
    assert ("UNSURE" in overview.out) == ("insufficient" in names)
    assert ("1 of 2 runs are unsure; --verbose says what is missing" in overview.err) == ("insufficient" in names)


def test_several_that_cannot_be_read_are_still_an_array(rlmon: Rlmon, audits: dict[str, Any]) -> None:
    audits["broken"] = ReadError("nothing")
    left = rlmon("audit", "broken", "broken", "--format", "json")
    assert (left.code, left.out, left.err) == (2, "[]\n", "rlmon: nothing\nrlmon: nothing\n")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "Missing argument 'PATH'"),
        (["x", "--format", "xml"], "'xml'"),
        (["x", "--fail-on", "sometimes"], "'sometimes'"),
        (["x", "--processes", "0"], "'--processes'"),
        (["x", "y", "--html", "p.html"], "--html writes the page of one run, got 2"),
        (["x", "--map", "prompt"], "--map takes pairs like prompt=question,completion=text (rlmon's name first)"),
        (["x", "--map", "=a"], "--map takes pairs"),
        (["x", "--map", ""], "--map takes pairs"),
    ],
)
def test_wrong_usage_is_exit_2(rlmon: Rlmon, audits: dict[str, Any], arguments: list[str], said: str) -> None:
    left = rlmon("audit", *arguments)
    assert (left.code, left.out) == (2, "")
    assert said in left.err
    assert audits["asked"] == []


def test_what_cannot_be_read_is_one_line(rlmon: Rlmon, audits: dict[str, Any]) -> None:
    audits["x"] = ReadError("nothing at \x1b[2J\nhere")
    left = rlmon("audit", "x")
    assert left == (2, "", "rlmon: nothing at \\x1b[2J\\nhere\n")


def test_a_mistake_of_ours_is_one_line_and_never_a_verdict(
    rlmon: Rlmon, audits: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    audits["x"] = ZeroDivisionError("division by zero")
    left = rlmon("audit", "x")
    assert (left.code, left.out) == (2, "")
    assert left.err == (
        "rlmon: a mistake of rlmon's own, please report it: ZeroDivisionError: division by zero "
        "(TRACEBACK=1 shows where)\n"
    )
    monkeypatch.setenv("TRACEBACK", "1")
    monkeypatch.setattr(sys, "argv", ["rlmon", "audit", "x"])
    with pytest.raises(ZeroDivisionError):
        cli.main()


def test_an_interrupted_command_leaves_with_130(rlmon: Rlmon, audits: dict[str, Any]) -> None:
    audits["x"] = KeyboardInterrupt()
    left = rlmon("audit", "x")
    assert (left.code, left.out) == (130, "")
    assert "Traceback" not in left.err


def test_settings_reach_the_engine(rlmon: Rlmon, audits: dict[str, Any]) -> None:
    rlmon(
        "audit", "x", "--reader", "trl", "--map", "prompt=q, completion=a=b", "--baseline", "base", "--processes", "2",
        "--success", "accuracy>0.9",
    )  # fmt: skip
    [(path, settings)] = audits["asked"]
    assert path == "x"
    assert settings.pop("progress") is None
    assert settings == {
        "reader": "trl", "mapping": {"prompt": "q", "completion": "a=b"}, "baseline": Path("base"), "processes": 2,
        "success": "accuracy>0.9",
    }  # fmt: skip


# ---- forms


def test_forms(rlmon: Rlmon, audits: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    audits["x"] = make_audit.collapsed()
    monkeypatch.setenv("COLUMNS", "100")
    rich = rlmon("audit", "x").out
    assert "format-collapse" in rich
    assert "\x1b" not in rich
    assert json.loads(rlmon("audit", "x", "--format", "json").out)["verdict"] == "fail"
    assert rlmon("audit", "x", "--format", "markdown").out.startswith("## 🔴 rlmon: FAIL\n")
    assert rlmon("audit", "x", "--format", "github").out.startswith("::error title=rlmon%3A FAIL::")
    failures = {}
    for fail_on in ("never", "fail", "warn"):
        out = rlmon("audit", "x", "--format", "junit", "--fail-on", fail_on).out
        suite = ElementTree.fromstring(out).find("testsuite")
        assert suite is not None
        failures[fail_on] = int(suite.attrib["failures"])
    assert failures["never"] == 0 < failures["fail"] < failures["warn"]


@pytest.mark.parametrize("form", ["rich", "json", "markdown", "junit", "github"])
def test_a_hostile_run_in_every_form(rlmon: Rlmon, audits: dict[str, Any], form: str) -> None:
    audits["x"] = make_audit.hostile()
    left = rlmon("audit", "x", "--format", form)
    assert left.code in (0, 1)
    assert left.err == ""
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", left.out)


def test_two_runs_on_a_terminal(rlmon: Rlmon, audits: dict[str, Any]) -> None:
    audits["bad"] = make_audit.collapsed()
    out = rlmon("audit", "good", "bad", "--verbose").out
    assert out.index(" PASS ") < out.index("────") < out.index(" FAIL ")


# ---- files


def test_the_page_is_written_and_named(rlmon: Rlmon, audits: dict[str, Any], tmp_path: Path) -> None:
    page = tmp_path / "deep" / "page.html"
    left = rlmon("audit", "x", "--html", page)
    assert left.code == 0
    assert "page.html" in "".join(left.out.split())
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert [p.name for p in page.parent.iterdir()] == ["page.html"]


def test_a_page_never_goes_through_a_link_that_a_run_has_laid(
    rlmon: Rlmon, audits: dict[str, Any], tmp_path: Path
) -> None:
    log = tmp_path / "run"
    RunLogWriter.open(log, make_runlog.header(), resume=False).close()
    precious = tmp_path / "precious"
    precious.write_text("mine")
    (log / "report.html").symlink_to(precious)
    (log / ".report.html.tmp").symlink_to(precious)
    left = rlmon("report", log)
    assert (left.code, left.out) == (0, f"{log / 'report.html'}\n")
    assert precious.read_text() == "mine"
    assert not (log / "report.html").is_symlink()


def test_where_a_page_cannot_be_is_said_in_one_line(rlmon: Rlmon, audits: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for target in (tmp_path / "file" / "page.html", tmp_path):
        left = rlmon("audit", "x", "--html", target)
        assert (left.code, left.out) == (2, "")
        assert left.err.startswith(f"rlmon: cannot write {target}: ")
        assert left.err.count("\n") == 1
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_where_a_report_goes(
    rlmon: Rlmon, audits: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "foreign").mkdir()
    RunLogWriter.open(tmp_path / "out" / "rlmon", make_runlog.header(), resume=False).close()
    audits["foreign"] = make_audit.collapsed()
    left = rlmon("report", "foreign")
    assert (left.code, left.out) == (0, "rlmon-report.html\n")
    assert left.err == f"FAIL: {audits['foreign'].headline}\n"
    assert rlmon("report", "out").out == "out/rlmon/report.html\n"
    assert rlmon("report", "out/rlmon").out == "out/rlmon/report.html\n"
    assert rlmon("report", "out", "--out", "a/b.html").out == "a/b.html\n"
    assert all((tmp_path / p).is_file() for p in ("rlmon-report.html", "out/rlmon/report.html", "a/b.html"))


# ---- the real thing, in processes of its own


def rows(collapse: bool) -> list[dict[str, Any]]:
    """40 steps of 16 prompts by 4: three formats in equal parts, or one of them from step 20 on."""
    rng = random.Random(0)
    found = []
    for step in range(1, 41):
        for prompt in range(16):
            for _ in range(4):
                form = 0 if collapse and step >= 20 else rng.randrange(3)
                answer = rng.randrange(1_000)
                text = [f"The sum is {answer}, as one sees.", f'{{"answer": {answer}}}', f"- take it\n- {answer}"][form]
                row = {"iteration": step, "question": f"{step} + {prompt}", "text": text}
                found.append({**row, "score": float(rng.random() < 0.5)})
    return found


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rows")
    for name in ("healthy", "collapsed"):
        lines = [json.dumps(row) for row in rows(name == "collapsed")]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


MAP = ("--map", "prompt=question,completion=text,reward=score,step=iteration")


def test_a_collapse_is_found_in_a_file_of_rows(files: Path) -> None:
    done = subprocess_of("audit", files / "healthy.jsonl", files / "collapsed.jsonl", *MAP, "--format", "json")
    assert done.returncode == 1
    healthy, collapsed = json.loads(done.stdout)
    # Rows alone say nothing of the policy's entropy: no pass, and one line that says so.
    assert healthy["verdict"] == "insufficient"
    assert "entropy" in healthy["coverage"]["missing"]
    assert done.stderr.count(b"\n") == 1
    assert done.stderr.startswith(f"rlmon: {files / 'healthy.jsonl'}: unsure, ".encode())
    [check] = [c for c in collapsed["checks"] if c["id"] == "format-collapse"]
    assert check["status"] == "fail"
    # Half of step 20's blocks are enough to cross a line that stands at .6 of the base.
    assert 19 <= check["first_step"] <= 22


def test_a_reader_that_has_had_enough_hears_nothing_and_the_verdict_stays(files: Path) -> None:
    command = (
        f"{sys.executable} -m rlmon.cli audit {files / 'collapsed.jsonl'} {' '.join(MAP)} --format json | head -c 1"
    )
    done = subprocess.run(
        ["bash", "-c", f"{command}; exit ${{PIPESTATUS[0]}}"], env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (1, b"{", b"")
    for arguments in ("metrics", f"show {files / 'collapsed.jsonl'} {' '.join(MAP)} --limit 64"):
        command = f"{sys.executable} -m rlmon.cli {arguments} 2>/dev/null | true; exit ${{PIPESTATUS[0]}}"
        done = subprocess.run(["bash", "-c", command], env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=60)
        assert done.returncode == 0


def test_an_encoding_that_lacks_our_characters_breaks_nothing(files: Path) -> None:
    done = subprocess_of("audit", files / "collapsed.jsonl", *MAP, PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert (done.returncode, done.stderr) == (1, b"")
    assert done.stdout.isascii()


def test_show_reads_any_run(files: Path, rlmon: Rlmon) -> None:
    left = rlmon("show", files / "collapsed.jsonl", *MAP, "--limit", 3)
    heads = [line for line in left.out.splitlines() if line.startswith("== ")]
    assert len(heads) == 3
    assert all(head.startswith("== step 40 train ") for head in heads)
    assert left.err == "3 of 64 completions; modes: prose 1.00\n"
    prompt, template = (re.search(rf"{name} (\w+)", heads[0])[1] for name in ("prompt", "template"))  # type: ignore[index]
    # One prompt a step, asked four times.
    assert rlmon("show", files / "collapsed.jsonl", *MAP, "--prompt", prompt).err.startswith("4 of 4 completions")
    wanted = sum(row["text"].startswith("The sum") for row in rows(True))
    some = rlmon("show", files / "collapsed.jsonl", *MAP, "--template", template, "--limit", 1)
    assert some.err.startswith(f"1 of {wanted} completions; modes: ")
    none = rlmon("show", files / "collapsed.jsonl", *MAP, "--step", 40, "--mode", "json")
    assert (none.code, none.out) == (2, "")
    assert none.err.endswith("fits these filters. Modes there: prose 64.\n")


def on_a_terminal(arguments: Sequence[object], until: str, then: int | None, **environment: str) -> tuple[int, str]:
    """Exit code and screen of a command on a terminal of its own, sent the signal ``then`` once it shows ``until``."""
    main, other = pty.openpty()
    # As a script's background job starts it, and as a test run in the background would.
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", "rlmon.cli", *map(str, arguments)], stdin=other, stdout=other, stderr=other,
            env={**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm-256color", "COLUMNS": "100", **environment},
        )  # fmt: skip
    finally:
        signal.signal(signal.SIGINT, before)
    os.close(other)
    shown, deadline, sent = b"", time.monotonic() + 60, False
    try:
        while time.monotonic() < deadline:
            ready, _, _ = select.select([main], [], [], 0.1)
            if ready:
                try:
                    piece = os.read(main, 65_536)
                except OSError:
                    break
                if not piece:
                    break
                shown += piece
            if then is not None and not sent and until.encode() in shown:
                process.send_signal(then)
                sent = True
        os.close(main)
        return process.wait(10), shown.decode("utf-8", "replace")
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def test_colour_on_a_terminal_unless_it_is_unwanted(files: Path) -> None:
    command = ["audit", files / "collapsed.jsonl", *MAP]
    code, shown = on_a_terminal(command, "", None)
    assert code == 1
    assert "\x1b[1;31mFAIL" in shown
    _, shown = on_a_terminal(command, "", None, NO_COLOR="1")
    assert "FAIL" in shown
    assert not re.search(r"\x1b\[[0-9;]*3[0-7]m", shown)


def test_watch_waits_shows_and_leaves_on_ctrl_c(tmp_path: Path) -> None:
    code, shown = on_a_terminal(["watch", tmp_path / "later", "--every", 0.2], "Waiting", signal.SIGINT)
    assert code == 0
    assert "Traceback" not in shown
    writer = RunLogWriter.open(tmp_path / "run", make_runlog.header(), resume=False)
    writer.append_step(make_runlog.step_record(7))
    writer.close()
    code, shown = on_a_terminal(["watch", tmp_path / "run", "--every", 0.2], "step 7/10", signal.SIGINT)
    assert code == 0
    assert "Traceback" not in shown


def test_watch_once(tmp_path: Path) -> None:
    writer = RunLogWriter.open(tmp_path / "run", make_runlog.header(), resume=False)
    writer.append_step(make_runlog.step_record(7))
    writer.close()
    done = subprocess_of("watch", tmp_path, "--once")
    assert done.returncode == 2
    assert done.stderr.startswith(b"rlmon: ")
    assert done.stderr.count(b"\n") == 1
    for options in (["--once"], []):
        done = subprocess_of("watch", tmp_path / "run", *options)
        assert (done.returncode, done.stderr) == (0, b"")
        assert b"step 7/10" in done.stdout
        assert b"\x1b" not in done.stdout


# ---- compare


def test_compare_hands_over_every_seed(rlmon: Rlmon, audits: dict[str, Any], tmp_path: Path) -> None:
    names = ("a-seed1", "a-seed2", "a-seed3", "b-seed1", "b-seed2", "base")
    for name in names:
        audits[name] = named(make_audit.collapsed(60) if name[0] == "a" else make_audit.healthy(60), name)
    page = tmp_path / "deep" / "c.html"
    left = rlmon(
        "compare", "a-seed1,a-seed2", "b-seed1", "--a", "a-seed3", "--b", "b-seed2", "--base", "base",
        "--reader", "trl", "--html", page,
    )  # fmt: skip
    assert (left.code, left.err) == (0, f"The page is {page}.\n")
    assert left.out.startswith(" DIFFERENT ")
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert [p.name for p in page.parent.iterdir()] == ["c.html"]
    assert [path for path, _ in audits["asked"]] == ["a-seed1", "a-seed2", "a-seed3", "b-seed1", "b-seed2", "base"]
    assert all(settings["reader"] == "trl" for _, settings in audits["asked"])
    result = json.loads(
        rlmon("compare", "a-seed1,a-seed2", "b-seed1,b-seed2", "--base", "base", "--format", "json").out
    )
    assert (result["a"]["runs"], result["b"]["runs"]) == (["a-seed1", "a-seed2"], ["b-seed1", "b-seed2"])
    assert (result["a"]["name"], result["b"]["name"]) == ("a", "b")
    assert result["base"] == "the first steps of base"


def named(audit: Audit, source: str) -> Audit:
    return dataclasses.replace(audit, run=dataclasses.replace(audit.run, source=source))


def test_compare_in_every_form(rlmon: Rlmon, audits: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    audits["plain"], audits["kl"] = make_audit.collapsed(60), make_audit.healthy(60)
    monkeypatch.setenv("COLUMNS", "120")
    rich = rlmon("compare", "plain", "kl").out
    assert "A plain" in rich
    assert "\x1b" not in rich
    assert max(map(len, rich.split("\n"))) > 100
    markdown = rlmon("compare", "plain", "kl", "--format", "markdown").out
    assert markdown.startswith("## 🟡 rlmon compare: DIFFERENT\n")
    assert json.loads(rlmon("compare", "plain", "kl", "--format", "json").out)["tool"] == "rlmon"
    assert rlmon("compare", "kl", "kl").out.startswith(" EQUAL ")


@pytest.mark.parametrize("form", ["rich", "json", "markdown"])
def test_a_hostile_run_compared(rlmon: Rlmon, audits: dict[str, Any], form: str) -> None:
    audits["x"] = make_audit.hostile()
    left = rlmon("compare", "x", "y", "--format", form)
    assert (left.code, left.err) == (0, "")
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", left.out)


def test_a_side_that_cannot_be_read_is_one_line(rlmon: Rlmon, audits: dict[str, Any]) -> None:
    audits["b"] = ReadError("nothing there")
    assert rlmon("compare", "a", "b") == (2, "", "rlmon: nothing there\n")
    assert rlmon("compare", ",", "b")[:2] == (2, "")


def test_two_files_of_rows_compared(files: Path, tmp_path: Path) -> None:
    page = tmp_path / "c.html"
    done = subprocess_of("compare", files / "healthy.jsonl", files / "collapsed.jsonl", *MAP, "--html", page)
    assert (done.returncode, done.stderr.decode()) == (0, f"The page is {page}.\n")
    screen = " ".join(done.stdout.decode().split())
    # Three formats in equal parts, or one alone from step 20 on.
    assert re.match(r"DIFFERENT healthy\.jsonl ends with (2\.\d\d|3\.\d\d) of (2\.\d\d|3\.\d\d) formats in use "
                    r"where collapsed\.jsonl has 1\.00; they part at step (19|2[0-4]);", screen)  # fmt: skip
    assert "data" in page.read_text(encoding="utf-8")


# ---- what a runner of workflows is told


def test_the_summary_and_the_outputs_are_written_where_a_runner_asks(
    rlmon: Rlmon, audits: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    summary, output = tmp_path / "summary", tmp_path / "output"
    summary.write_text("before\n")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    monkeypatch.setenv("GITHUB_OUTPUT", str(output))
    audits.update(bad=make_audit.hostile(), good=with_verdict("pass"))
    rlmon("audit", "bad", "good", "--format", "json")
    assert (summary.read_text(), output.exists()) == ("before\n", False)
    assert rlmon("audit", "good", "bad", "--format", "github").out.startswith("::")
    assert summary.read_text() == f"before\n{markdown.render(audits['good'], audits['bad'])}\n"
    assert output.read_text() == f"verdict={audits['bad'].verdict}\n"


def test_a_summary_never_grows_beyond_what_github_takes() -> None:
    audit = make_audit.hostile()
    whole, limit = github.summary(audit), github.SUMMARY_BYTES
    assert github.summary(audit, written=limit - len(whole.encode())) == whole
    short = github.summary(audit, written=limit - len(whole.encode()) + 1)
    assert short.startswith("rlmon: ")
    assert len(short) < 100
    assert github.summary(audit, written=limit) == ""


def test_a_runners_file_that_cannot_be_written_is_named_and_changes_nothing(
    rlmon: Rlmon, audits: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path))
    audits["x"] = with_verdict("pass")
    left = rlmon("audit", "x", "--format", "github")
    assert left.code == 0
    assert left.err.startswith("rlmon: nothing written to $GITHUB_STEP_SUMMARY: ")
