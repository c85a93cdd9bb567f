"""``action.yml``: its steps, cut out of the file and run in bash, with our own command and a stand-in for ``gh``."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
ACTION: dict[str, Any] = yaml.safe_load((ROOT / "action.yml").read_text(encoding="utf-8"))
STEPS = {step["name"]: step for step in ACTION["runs"]["steps"] if "run" in step}
LOG = ROOT / "tests" / "golden" / "runlog-schema-2"
# Keeps comments in a file; refuses to write where the token may not.
GH = f"""#!{sys.executable}
import json, os, pathlib, sys
store = pathlib.Path(os.environ["STORE"])
comments = json.loads(store.read_text())
args = sys.argv[1:]
if args[:2] == ["api", "user"]:
    sys.exit('{{"message": "Resource not accessible by integration"}}')
url = next(arg for arg in args if arg.startswith("repos/"))
if "--jq" in args:
    assert args[args.index("--jq") + 1] == (
        ".[] | select(.user.login == env.AUTHOR and (.body | startswith(env.MARK))) | .id")
    for one in comments:
        if one["author"] == os.environ["AUTHOR"] and one["body"].startswith(os.environ["MARK"]):
            print(one["id"])
    sys.exit()
if os.environ["GH_TOKEN"] != "may-write":
    sys.exit("gh: Resource not accessible by integration (HTTP 403)")
body = pathlib.Path(args[args.index("-F") + 1].removeprefix("body=@")).read_text()
if args[args.index("--method") + 1] == "PATCH":
    (one,) = [one for one in comments if one["id"] == int(url.rsplit("/", 1)[1])]
    one["body"] = body
else:
    assert url == "repos/me/recipes/issues/7/comments", url
    comments.append({{"id": len(comments) + 1, "author": "github-actions[bot]", "body": body}})
store.write_text(json.dumps(comments))
"""

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")


class Job:
    """The files that a runner gives to a step, and a way to run one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        tools, environment = folder / "tools", folder / "rlmon" / "bin"
        tools.mkdir()
        environment.mkdir(parents=True)
        write_tool(tools / "gh", GH)
        write_tool(environment / "rlmon", f'#!/bin/sh\nexec "{sys.executable}" -m rlmon.cli "$@"\n')
        self.summary, self.output, self.store = folder / "summary", folder / "output", folder / "store.json"
        self.summary.touch()
        self.output.touch()
        self.store.write_text("[]")

    def step(self, name: str, **inputs: str) -> subprocess.CompletedProcess[str]:
        assert set(inputs) <= set(STEPS[name]["env"])
        environment = {
            **os.environ, "PYTHONPATH": str(ROOT), "PATH": f"{self.folder / 'tools'}:{os.environ['PATH']}",
            "RUNNER_TEMP": str(self.folder), "GITHUB_STEP_SUMMARY": str(self.summary),
            "GITHUB_OUTPUT": str(self.output), "GITHUB_REPOSITORY": "me/recipes", "STORE": str(self.store), **inputs,
        }  # fmt: skip
        # As runners call `shell: bash`.
        command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", STEPS[name]["run"]]
        return subprocess.run(
            command, env=environment, cwd=self.folder, capture_output=True, text=True, timeout=120, check=False
        )

    def outputs(self) -> dict[str, str]:
        return dict(line.split("=", 1) for line in self.output.read_text().splitlines())

    def comments(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(self.store.read_text())
        return found


def write_tool(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(tmp_path)


def test_it_is_a_composite_action_whose_inputs_reach_a_shell_by_the_environment_alone() -> None:
    assert ACTION["runs"]["using"] == "composite"
    assert {"name", "description", "inputs", "outputs", "runs"} <= set(ACTION)
    for step in ACTION["runs"]["steps"]:
        assert ("uses" in step) != ("run" in step)
        if "run" in step:
            assert step["shell"] == "bash"
            assert "${{" not in step["run"]
    used = set(re.findall(r"inputs\.([a-z-]+)", (ROOT / "action.yml").read_text()))
    assert used == set(ACTION["inputs"])
    page = (ROOT / "docs" / "ci.md").read_text(encoding="utf-8")
    assert [name for name in ACTION["inputs"] if f"| `{name}` |" not in page] == []


def test_an_audit_writes_annotations_the_summary_and_the_verdict(job: Job) -> None:
    job.summary.write_text("# before\n")
    ran = job.step("Audit", RUN_PATHS=f"\n{LOG}\n", FAIL_ON="fail")
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith("::")
    outputs = job.outputs()
    assert outputs["verdict"] in ("pass", "warn", "fail", "insufficient")
    assert outputs["code"] == ("1" if outputs["verdict"] == "fail" else "0")
    assert job.summary.read_text().startswith("# before\n## ")
    assert job.step("Verdict", CODE=outputs["code"]).returncode == int(outputs["code"])


def test_a_run_that_cannot_be_read_is_said_and_fails_at_the_end(job: Job) -> None:
    ran = job.step("Audit", RUN_PATHS="nothing-here", FAIL_ON="fail")
    assert ran.returncode == 0
    assert job.outputs() == {"verdict": "unreadable", "code": "2"}
    assert "could not be read" in job.summary.read_text()
    assert job.step("Verdict", CODE="2").returncode == 2


@pytest.mark.parametrize(
    "path", ["$(touch owned)", "`touch owned`", '"; touch owned; "', "--help", "x\n$(touch owned)"]
)
def test_what_stands_in_an_input_is_never_run(job: Job, path: str) -> None:
    job.step("Audit", RUN_PATHS=path, FAIL_ON=path.replace("\n", " "))
    job.step("Comment", RUN_PATHS=path, PULL=path, GH_TOKEN="may-write")
    assert job.step("Install rlmon", PYTHON="false", VERSION=path, SOURCE="x").returncode == 2
    assert not (job.folder / "owned").exists()
    assert job.outputs()["verdict"] == "unreadable"
    assert job.comments() == []


def test_one_comment_for_a_path_is_updated_in_place_and_nobody_elses(job: Job) -> None:
    job.step("Audit", RUN_PATHS=str(LOG), FAIL_ON="never")
    said = {"RUN_PATHS": str(LOG), "PULL": "7", "GH_TOKEN": "may-write"}
    assert job.step("Comment", **said).returncode == 0
    (first,) = job.comments()
    assert first["body"].splitlines()[1].startswith("## ")
    job.store.write_text(json.dumps([{**first, "id": 9, "author": "mallory"}, first]))
    (job.folder / "rlmon-summary.md").write_text("now\n")
    job.step("Comment", **said)
    theirs, ours = job.comments()
    assert theirs["body"] == first["body"]
    assert ours["body"] == first["body"].splitlines()[0] + "\nnow\n"
    job.step("Comment", **{**said, "RUN_PATHS": "another"})
    assert len(job.comments()) == 3


def test_a_comment_is_no_longer_than_github_takes(job: Job) -> None:
    (job.folder / "rlmon-summary.md").write_text("## FAIL\n" + "eine Zeile über Größe\n" * 50_000)
    job.step("Comment", RUN_PATHS="x", PULL="7", GH_TOKEN="may-write")
    (one,) = job.comments()
    assert 50_000 < len(one["body"]) < 65_536
    *lines, blank, last = one["body"].splitlines()
    assert (lines[-1], blank) == ("eine Zeile über Größe", "")
    assert last == "(Cut here: the summary of the job has the rest.)"


def test_without_the_right_to_comment_it_says_so_and_goes_on(job: Job) -> None:
    (job.folder / "rlmon-summary.md").write_text("now\n")
    left = job.step("Comment", RUN_PATHS="x", PULL="7", GH_TOKEN="of-a-fork")
    assert (left.returncode, job.comments()) == (0, [])
    assert "::warning title=rlmon::No comment: the token may not write one" in left.stdout
    left = job.step("Comment", RUN_PATHS="x", PULL="", GH_TOKEN="may-write")
    assert (left.returncode, job.comments()) == (0, [])
    assert "not started by a pull request" in left.stdout


def test_it_installs_the_version_that_was_asked_for_or_its_own_code(job: Job) -> None:
    # A stand-in for Python that makes an environment whose python writes down what it was asked for.
    write_tool(
        job.folder / "tools" / "fake",
        '#!/bin/sh\nmkdir -p "$3/bin"\nprintf \'#!/bin/sh\\nfor last; do :; done; echo "$last" >> asked\\n\' '
        '> "$3/bin/python"\nchmod +x "$3/bin/python"\n',
    )
    assert job.step("Install rlmon", PYTHON="fake", VERSION="0.1.0", SOURCE="/src").returncode == 0
    assert job.step("Install rlmon", PYTHON="fake", VERSION="", SOURCE="/src").returncode == 0
    assert (job.folder / "asked").read_text().splitlines() == ["rlmon==0.1.0", "/src"]
