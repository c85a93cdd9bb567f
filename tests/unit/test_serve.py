"""The pages that are served: what they show, what is looked at again, and that nothing else is ever answered."""

from __future__ import annotations

import html
import http.client
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import make_runlog
import pytest
from growing import GrowingLog
from page_parts import data_of
from starlette.testclient import TestClient

import rlmon.serve.desk as desks
import rlmon.serve.server as server
import rlmon.serve.worker as workers
from rlmon.audit.readers import all_runs_at, runs_at
from rlmon.errors import MissingExtraError
from rlmon.report.audit import Served
from rlmon.report.page import policy_of
from rlmon.serve.app import build
from rlmon.serve.places import mark, places
from rlmon.serve.worker import Told

HERE = "http://127.0.0.1:8384"
SECRET = "rlmon-secret-of-somebody-else"


class Here:
    """A worker in this process that counts what it is asked."""

    def __init__(self) -> None:
        self.asked: list[Path] = []

    def tell(self, path: Path, served: Served) -> Told:
        self.asked.append(path)
        return workers.tell(path, served)

    def end(self) -> None:
        pass


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> Here:
    here = Here()
    monkeypatch.setattr(desks, "Worker", lambda: here)
    monkeypatch.setattr(desks, "LOOK_SECONDS", 0.0)
    monkeypatch.setattr(desks, "FIND_SECONDS", 0.0)
    monkeypatch.setattr(desks, "SHARE", 0)
    return here


@pytest.fixture
def open_client(worker: Here) -> Iterator[Callable[..., TestClient]]:
    open_desks: list[desks.Desk] = []

    def client(root: Path, **settings: Any) -> TestClient:
        open_desks.append(desks.Desk(root, **{"least_seconds": 0.0, **settings}))
        return TestClient(build(open_desks[-1]), base_url=HERE)

    yield client
    for desk in open_desks:
        desk.close()


def settled(client: TestClient, wanted: Callable[[dict[str, Any]], bool] | None = None) -> dict[str, dict[str, Any]]:
    """The runs of the list by name, once nothing is pending (or as wanted)."""
    until = time.monotonic() + 30
    while time.monotonic() < until:
        rows = {row["name"]: row for row in client.get("/runs.json").json()["runs"]}
        if not any(row["pending"] for row in rows.values()) and (wanted is None or wanted(rows)):
            return rows
        time.sleep(0.02)
    raise AssertionError(f"never settled: {rows}")


def stamp(folder: Path, seconds: float) -> None:
    for file in folder.rglob("*"):
        os.utime(file, (seconds, seconds))


def test_all_runs_are_listed_newest_first_and_those_that_cannot_be_read_with_the_reason(
    open_client: Any, tmp_path: Path
) -> None:
    for at, name in enumerate(("old", "group/deep/new", "group/deep/other")):
        GrowingLog(tmp_path / name).grow(3)
        stamp(tmp_path / name, 1_700_000_000 + (5, 30, 20)[at])
    (tmp_path / "broken/rlmon").mkdir(parents=True)
    (tmp_path / "broken/rlmon/run.json").write_text("{")
    stamp(tmp_path / "broken", 1_700_000_001)
    rows = settled(open_client(tmp_path))
    assert list(rows) == ["group/deep/new", "group/deep/other", "old", "broken"]
    assert rows["broken"]["verdict"] == "unread"
    assert "is not the header of an rlmon run" in rows["broken"]["said"]
    new = rows["group/deep/new"]
    assert (new["step"], new["total"], new["trainer"], new["ended"]) == (3, 100, "GRPOTrainer", False)
    assert new["verdict"] == "insufficient"
    assert [curve["label"] for curve in new["curves"]] == ["reward", "entropy"]
    assert new["curves"][0]["values"] == [0.01, 0.02, 0.03]


def test_a_folder_that_is_a_run_one_run_below_and_none_at_all(tmp_path: Path) -> None:
    assert all_runs_at(tmp_path) == []
    GrowingLog(tmp_path / "a").grow(1)
    assert all_runs_at(tmp_path) == [tmp_path / "a"]
    assert all_runs_at(tmp_path / "a") == [tmp_path / "a"]
    [place] = places(tmp_path / "a")
    assert place.name == "a"
    assert re.fullmatch(r"[0-9a-f]{16}", place.key)


def test_logs_two_folders_down_are_runs_of_their_own(tmp_path: Path) -> None:
    for name in ("x/one", "x/two", "y/one", "y/two"):
        GrowingLog(tmp_path / name).grow(1)
    assert [path.relative_to(tmp_path).as_posix() for path in runs_at(tmp_path)] == ["x/one", "x/two", "y/one", "y/two"]


def test_an_unchanged_run_costs_nothing_and_a_changed_one_is_audited_again(
    open_client: Any, worker: Here, tmp_path: Path
) -> None:
    log = GrowingLog(tmp_path / "run")
    log.grow(3)
    client = open_client(tmp_path)
    key = settled(client)["run"]["key"]
    first = client.get(f"/run/{key}")
    assert "3" in first.text
    assert data_of(first.text)["steps"] == [1, 3]
    asked = len(worker.asked)
    assert asked == 1
    for _ in range(3):
        for address in ("/", "/runs.json", f"/run/{key}"):
            known = client.get(address).headers["etag"]
            same = client.get(address, headers={"if-none-match": known})
            assert (same.status_code, same.content) == (304, b"")
            assert client.head(address, headers={"if-none-match": known}).status_code == 304
    assert len(worker.asked) == asked
    log.grow(2)
    until = time.monotonic() + 30
    old = {"if-none-match": first.headers["etag"]}
    while (again := client.get(f"/run/{key}", headers=old)).status_code == 304 and time.monotonic() < until:
        time.sleep(0.02)
    assert data_of(again.text)["steps"] == [1, 5]
    assert len(worker.asked) == asked + 1
    assert settled(client)["run"]["step"] == 5


def test_audits_of_a_run_that_changes_all_the_time_keep_their_distance() -> None:
    entry = desks.Entry(place=desks.Place(key="k", path=Path("x"), name="x"))
    entry.mark = desks.Mark(version="1", bytes=1, changed_unix_seconds=1.0, refused="")
    assert entry.due(100.0, 4.0), "never audited"
    entry.told, entry.told_at, entry.told_mark = Told(seconds=0.1), 100.0, entry.mark
    assert not entry.due(999.0, 4.0), "unchanged"
    entry.mark = desks.Mark(version="2", bytes=1, changed_unix_seconds=2.0, refused="")
    assert not entry.due(103.9, 4.0)
    assert entry.due(104.1, 4.0)
    entry.told = Told(seconds=3.0)
    assert not entry.due(129.0, 4.0), "an audit of 3 s is made every 30 s"
    assert entry.due(130.1, 4.0)


def test_what_a_detector_says_is_in_the_list_before_any_audit_knows_it(
    open_client: Any, worker: Here, tmp_path: Path
) -> None:
    log = GrowingLog(tmp_path / "run")
    log.grow(3)
    client = open_client(tmp_path, least_seconds=1e9)
    assert settled(client)["run"]["verdict"] == "insufficient"
    log.writer.append_event("finding", make_runlog.finding(3, severity="fail", message="formats went <b>away</b>"))
    row = settled(client, lambda rows: rows["run"]["verdict"] == "fail")["run"]
    assert row["said"] == "Its detectors, at step 3: formats went <b>away</b>"
    assert len(worker.asked) == 1


# ---- nothing else is answered


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8384", "127.0.0.1.evil.example", "127.0.0.1@evil.example", "", "10.0.0.1",
             "localhost:8384/x", "localhost:99999", "0.0.0.0"],
)  # fmt: skip
def test_a_foreign_host_is_refused(open_client: Any, tmp_path: Path, host: str) -> None:
    answer = open_client(tmp_path).get("/", headers={"host": host})
    assert answer.status_code == 403
    assert "http://127.0.0.1" in answer.text


@pytest.mark.parametrize("host", ["127.0.0.1:8384", "localhost", "localhost:9", "[::1]:8384"])
def test_this_machine_is_not(open_client: Any, tmp_path: Path, host: str) -> None:
    client = open_client(tmp_path)
    assert client.get("/", headers={"host": host}).status_code == 200
    assert client.get("/", headers={"host": host, "origin": f"http://{host}"}).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"origin": "https://127.0.0.1:8384"},
        {"origin": "http://127.0.0.1:8385"},
        {"sec-fetch-site": "cross-site", "sec-fetch-dest": "script"},
        {"sec-fetch-site": "cross-site", "sec-fetch-dest": "iframe"},
    ],
)
def test_a_foreign_origin_is_refused(open_client: Any, tmp_path: Path, headers: dict[str, str]) -> None:
    for address in ("/", "/runs.json", "/run/0123456789abcdef"):
        assert open_client(tmp_path).get(address, headers=headers).status_code == 403


def test_no_path_is_served_whatever_it_is_called(open_client: Any, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret.txt").write_text(SECRET)
    (outside / "steps.jsonl").write_text(f'{{"{SECRET}": 1}}\n')
    root = tmp_path / "served"
    GrowingLog(root / "run").grow(2)
    (root / ".hidden").mkdir()
    (root / ".hidden/run.json").write_text(SECRET)
    GrowingLog(root / ".hidden/run").grow(1)
    # A folder that is a link, a log in one, and logs whose files are links.
    GrowingLog(outside / "elsewhere").grow(1)
    (root / "linked").symlink_to(outside / "elsewhere")
    (root / "half").mkdir()
    (root / "half/rlmon").symlink_to(outside / "elsewhere/rlmon")
    for name in ("run.json", "steps.jsonl"):
        GrowingLog(root / f"link-{name}").grow(1)
        (root / f"link-{name}/rlmon/{name}").unlink()
        (root / f"link-{name}/rlmon/{name}").symlink_to(outside / "secret.txt")
    client = open_client(root)
    rows = settled(client)
    assert {name for name, row in rows.items() if row["verdict"] != "unread"} == {"run"}
    assert "hidden" not in str(rows)
    assert "linked" not in rows
    for name in ("link-run.json", "link-steps.jsonl"):
        assert "leads outside of the folder that is served" in rows[name]["said"]
    answers = [client.get(f"/run/{row['key']}").text for row in rows.values()]
    for path in (
        "/run/..%2f..%2foutside%2fsecret.txt", "/run/%2e%2e", "/run/run", "/run/run/rlmon/run.json", "/run", "/run/",
        "/run.json", "/.hidden/run.json", "/.hidden", "//etc/passwd", "/%00", "/run/%00", "/static/page.js", "/docs",
        "/runs.json/", "/openapi.json",
    ):  # fmt: skip
        answer = client.get(path)
        assert answer.status_code == 404, path
        answers.append(answer.text)
    assert not any(SECRET in text or "root:" in text for text in answers)
    assert client.post("/").status_code == 405
    assert client.put(f"/run/{rows['run']['key']}").status_code == 405
    assert client.delete(f"/run/{rows['run']['key']}").status_code == 405


def test_the_check_for_the_secret_can_fail(tmp_path: Path) -> None:
    """A link that stays inside of what is served is no stranger."""
    GrowingLog(tmp_path / "run").grow(1)
    file = tmp_path / "run/rlmon/steps.jsonl"
    file.rename(tmp_path / "steps.jsonl")
    file.symlink_to(tmp_path / "steps.jsonl")
    assert mark(tmp_path, tmp_path / "run").refused == ""
    assert "leads outside" in mark(tmp_path / "run", tmp_path / "run").refused


def test_the_log_of_wandb_may_lie_in_its_cache(tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache/core.log").write_text("x")
    run = tmp_path / "served/run"
    (run / "logs").mkdir(parents=True)
    (run / "logs/debug-core.log").symlink_to(tmp_path / "cache/core.log")
    assert mark(tmp_path / "served", run).refused == ""
    (run / "logs/other.log").symlink_to(tmp_path / "cache/core.log")
    assert "logs/other.log" in mark(tmp_path / "served", run).refused


def test_the_policy_is_a_header_too_and_hostile_names_are_text(open_client: Any, tmp_path: Path) -> None:
    name = "<img src=x onerror=alert(1)>\u202e"
    GrowingLog(tmp_path / name, trainer="<script>alert(2)</script>").grow(2)
    client = open_client(tmp_path)
    waiting = client.get("/")
    rows = settled(client)
    [row] = rows.values()
    for answer in (waiting, client.get("/"), client.get(f"/run/{row['key']}")):
        policy = answer.headers["content-security-policy"]
        assert policy.startswith(policy_of(answer.text))
        for rule in ("default-src 'none'", "connect-src 'self'", "frame-ancestors 'none'", "base-uri 'none'"):
            assert rule in policy
        assert "<img" not in answer.text
        assert "<script>alert" not in answer.text
        for header in ("x-content-type-options", "referrer-policy", "cross-origin-resource-policy"):
            assert header in answer.headers
    assert row["name"].startswith("<img src=x onerror=alert(1)>\\u202e")
    assert client.get("/nothing").headers["content-security-policy"].startswith("default-src 'none'")


def test_the_page_of_a_run_that_cannot_be_read_says_why(open_client: Any, tmp_path: Path) -> None:
    (tmp_path / "a/rlmon").mkdir(parents=True)
    (tmp_path / "a/rlmon/run.json").write_text("[]")
    GrowingLog(tmp_path / "b").grow(1)
    client = open_client(tmp_path)
    page = client.get(f"/run/{settled(client)['a']['key']}").text
    assert "NOT READ" in page
    assert html.escape("is not the header of an rlmon run") in page


# ---- the process beside the server


def test_a_worker_that_died_costs_one_audit(tmp_path: Path) -> None:
    GrowingLog(tmp_path / "run").grow(2)
    worker = workers.Worker()
    served = Served(version="v", changed_unix_seconds=0.0)
    try:
        assert worker.tell(tmp_path / "run", served).steps == 2
        assert worker._process is not None
        worker._process.kill()
        worker._process.join(10)
        assert "could not be audited" in worker.tell(tmp_path / "run", served).problem
        assert worker.tell(tmp_path / "run", served).verdict == "insufficient"
    finally:
        worker.end()


# ---- the command

ADDRESS = re.compile(r"http://127\.0\.0\.1:\d+/")


def started(*arguments: str, ignore_interrupts: bool = False) -> tuple[subprocess.Popen[str], str]:
    command = [sys.executable, "-m", "rlmon.cli", "serve", *arguments]
    if ignore_interrupts:  # as the background jobs of a script do
        code = (
            "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_IGN); os.execv(sys.argv[1], sys.argv[1:])"
        )
        command = [sys.executable, "-c", code, *command]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    found = ADDRESS.search(process.stdout.readline())
    assert found is not None
    return process, found[0]


@pytest.mark.parametrize(("number", "ignored"), [(signal.SIGINT, False), (signal.SIGINT, True), (signal.SIGTERM, True)])
def test_it_prints_its_address_answers_and_ends_cleanly(tmp_path: Path, number: int, ignored: bool) -> None:
    GrowingLog(tmp_path / "run").grow(2)
    process, address = started(str(tmp_path), "--port", "0", ignore_interrupts=ignored)
    try:
        with urllib.request.urlopen(address, timeout=30) as answer:
            assert "run" in data_of(answer.read().decode())["runs"][0]["name"]
        # A client that does not tidy paths.
        for path in ("/../run/rlmon/run.json", "/run/../../etc/passwd", "/run/..", "/..", "/%2e%2e/etc/passwd"):
            connection = http.client.HTTPConnection(address[7:-1], timeout=30)
            connection.request("GET", path)
            assert connection.getresponse().status == 404
            connection.close()
        process.send_signal(number)
        said, complained = process.communicate(timeout=30)
        assert (process.returncode, said, complained) == (0, "", "")
    finally:
        process.kill()
        process.wait()


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "rlmon.cli", "serve", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_a_port_that_is_taken_and_a_folder_that_is_not_there_are_said_plainly(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = run(str(tmp_path), "--port", str(port))
        assert done.returncode == 2
        assert f"port {port} cannot be used" in done.stderr
        assert "--port 0" in done.stderr
    done = run(str(tmp_path / "nowhere"))
    assert done.returncode == 2
    assert "is not there. Give the folder that holds the runs" in done.stderr


def test_a_missing_extra_says_what_to_type(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server.importlib.util, "find_spec", lambda name: None if name == "uvicorn" else name)
    with pytest.raises(MissingExtraError, match=r"needs uvicorn, .* pip install 'rlmon\[serve\]'"):
        server.serve(tmp_path)
