"""A run on the server of W&B, as a stand-in on loopback serves it: the audit is that of the same run's own file."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_wandb import ENTITY, PROJECT, Server, serving
from offline_wandb import records

import rlmon
import rlmon.report.as_json as as_json
from rlmon.audit.readers import wandb as wandb_file
from rlmon.audit.readers import wandb_online
from rlmon.errors import MissingExtraError, ReadError, TrackerError

wandb = pytest.importorskip("wandb")

GOLDEN = Path(__file__).resolve().parents[2] / "golden" / "foreign" / "wandb-trl"
PLACE = f"wandb://{ENTITY}/{PROJECT}"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Server]:
    wandb.teardown()  # it reads its settings once
    for name in ("HOME", "WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    with serving() as up:
        monkeypatch.setenv("WANDB_BASE_URL", up.address)
        yield up
    wandb.teardown()


def serve(server: Server, run: str, folder: Path, **changes: Any) -> None:
    """Have the run of an offline folder on the server, as a sync would."""
    rows: list[dict[str, Any]] = []
    config: dict[str, Any] = {}
    (file,) = folder.glob("*.wandb")
    for record in records(file):
        for item in (*record.run.config.update, *record.config.update):
            value = json.loads(item.value_json)
            config[item.key] = value if isinstance(value, dict) and "value" in value else {"value": value}
        if not record.history.item:
            continue
        row: dict[str, Any] = {"_step": record.history.step.num}
        for item in record.history.item:
            inner, path = row, [item.key] if item.key else list(item.nested_key)
            for name in path[:-1]:
                inner = inner.setdefault(name, {})
            inner[path[-1]] = json.loads(item.value_json)
        rows.append(row)
    server.runs[run] = {"config": json.dumps(config), **changes}
    server.histories[run] = rows
    files = folder / "files"
    server.files[run] = {
        str(table.relative_to(files)): table.read_bytes() for table in files.rglob("*") if table.is_file()
    }


def judged(audit: Any) -> Any:
    """What an audit says, without where and when."""
    found = json.loads(as_json.render(audit))
    found.pop("timing_seconds")
    for name in ("source", "id"):
        found["run"].pop(name)
    return found


def rows_of(run: Any) -> list[dict[str, Any]]:
    return [row for shard in run.shards for batch in shard.read() for row in batch.rows.to_pylist()]


def test_the_audit_is_that_of_the_runs_own_file(server: Server) -> None:
    serve(server, "abc", GOLDEN)
    online, offline = rlmon.audit(f"{PLACE}/abc"), rlmon.audit(GOLDEN)
    assert judged(online) == judged(offline)
    assert online.run.source == f"{PLACE}/abc"
    opened, of_file = wandb_online.open_run(f"{PLACE}/abc"), wandb_file.open_run(GOLDEN)
    assert (opened.scalars, opened.eval_scalars, opened.config) == (
        of_file.scalars,
        of_file.eval_scalars,
        of_file.config,
    )
    assert len(rows_of(opened)) > 20
    assert rows_of(opened) == rows_of(of_file)


def test_tables_are_fetched_once_each_and_no_other_files(server: Server) -> None:
    serve(server, "abc", GOLDEN)
    server.files["abc"]["output.log"] = b"GONE"
    server.files["abc"]["media/table/other_1.table.json"] = b"GONE"
    rlmon.audit(f"{PLACE}/abc")
    assert server.asked.count("GET") == len(list(GOLDEN.rglob("*.table.json")))


@pytest.mark.parametrize(
    "written", ["wandb://team/project/abc", "wandb:/team/project/abc", "https://wandb.ai/team/project/runs/abc?nw=x"]
)
def test_the_address_is_known_however_it_is_written(written: str) -> None:
    assert wandb_online.address(written) == wandb_online.address(Path(written)) == f"{PLACE}/abc"
    assert wandb_online.address("out/wandb") is None
    assert wandb_online.address("https://wandb.ai/team/project") is None


def findings(*rows: list[Any]) -> bytes:
    columns = ["step", "severity", "detector", "what_happened", "what_to_change", "value", "baseline", "line"]
    return json.dumps({"columns": columns, "data": [[*row, "", "", 0, 0, 0] for row in rows]}).encode()


def test_what_rlmon_said_in_the_run_is_its_own_word(server: Server) -> None:
    serve(server, "abc", GOLDEN, summaryMetrics=json.dumps({"rlmon/verdict": "warn"}))
    place = "media/table/rlmon/findings_1_aa.table.json"
    server.files["abc"][place] = findings([9, "fail", "kl-drift"], [3, "warn", "format-collapse"], ["x", 7, None])
    server.histories["abc"][-1]["rlmon/findings"] = {"_type": "table-file", "path": place, "nrows": 3}
    word = wandb_online.open_run(f"{PLACE}/abc").own_word
    assert word is not None
    assert word.verdict == "fail"
    assert [(remark.step, remark.severity, remark.detector) for remark in word.remarks] == [
        (3, "warn", "format-collapse"), (9, "fail", "kl-drift"),
    ]  # fmt: skip
    server.runs["abc"].pop("summaryMetrics")
    server.histories["abc"][-1].pop("rlmon/findings")
    assert wandb_online.open_run(f"{PLACE}/abc").own_word is None


def test_tables_that_cannot_be_had_cost_themselves_and_are_told(server: Server, tmp_path: Path) -> None:
    serve(server, "abc", GOLDEN, state="running")
    names = sorted(server.files["abc"], key=lambda name: int(name.split("_")[1]))
    del server.files["abc"][names[1]]
    server.files["abc"][names[3]] = b"GONE"
    opened = wandb_online.open_run(f"{PLACE}/abc")
    assert any(
        note.startswith(f"1 of {len(names)} tables of completions could not be fetched: ") for note in opened.notes
    )
    assert f"1 of {len(names)} tables of completions are not among the files of the run" in opened.notes
    assert "the run is not over by W&B's word: this is what it logged until now" in opened.notes
    copy = tmp_path / "copy"
    shutil.copytree(GOLDEN, copy)
    for name in (names[1], names[3]):
        (copy / "files" / name).unlink()
    assert rows_of(opened) == rows_of(wandb_file.open_run(copy))


def test_names_of_files_stay_in_the_folder(server: Server, tmp_path: Path) -> None:
    serve(server, "abc", GOLDEN)
    outside = tmp_path / "stolen.table.json"
    evil = f"media/table/../../../../../../../..{outside}"
    server.files["abc"][evil] = findings([1, "fail", "kl-drift"])
    for row in server.histories["abc"]:
        if "completions" in row:
            row["completions"]["path"] = evil
    opened = wandb_online.open_run(f"{PLACE}/abc")
    assert not outside.exists()
    assert rows_of(opened) == []


def test_what_is_not_there_is_said_in_plain_words(server: Server) -> None:
    serve(server, "abc", GOLDEN)
    with pytest.raises(TrackerError, match=f"W&B has no run {ENTITY}/{PROJECT}/nope that you can see"):
        rlmon.audit(f"{PLACE}/nope")
    with pytest.raises(ReadError, match=r"is a project: name one of its runs, .*The newest: abc \(a run\)\."):
        rlmon.audit(PLACE)
    with pytest.raises(ReadError, match=r"names no run of W&B\. Type: rlmon audit wandb://ENTITY/PROJECT/RUN"):
        rlmon.audit("wandb://team")
    with pytest.raises(ReadError, match="leave --reader and --map away"):
        rlmon.audit(f"{PLACE}/abc", reader="trl")


SILENT = """
import sys
from rlmon.audit.readers import wandb_online
from rlmon.cli import main
wandb_online.SILENT_SECONDS = 1.0
sys.argv = ["rlmon", "audit", sys.argv[1]]
main()
"""


@pytest.mark.parametrize("at", ["Run", "HistoryPage"])
def test_a_silent_server_ends_the_audit(server: Server, monkeypatch: pytest.MonkeyPatch, at: str) -> None:
    # In a process of its own: W&B's client does not always end where a request of it is still on the way.
    serve(server, "abc", GOLDEN)
    answer = server.answer

    def silent(name: str, variables: dict[str, Any]) -> dict[str, Any]:
        if name == at:
            server.stalls.set()
        while server.stalls.is_set():
            time.sleep(0.02)
        return answer(name, variables)

    monkeypatch.setattr(server, "answer", silent)
    done = subprocess.run(
        [sys.executable, "-c", SILENT, f"{PLACE}/abc"],
        env=os.environ, capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert "rlmon: W&B was silent for 1 s." in done.stderr


def test_the_command_reads_it(server: Server, tmp_path: Path) -> None:
    serve(server, "abc", GOLDEN)
    done = subprocess.run(
        [sys.executable, "-m", "rlmon.cli", "audit", f"{PLACE}/abc", "--format", "json", "--html", "page.html"],
        env=os.environ, cwd=tmp_path, capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["run"]["source"] == f"{PLACE}/abc"
    assert f"{PLACE}/abc" in (tmp_path / "page.html").read_text()


def test_without_a_key_it_says_what_to_type(server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with pytest.raises(TrackerError, match=r"W&B does not know who you are\. Type: wandb login"):
        rlmon.audit(f"{PLACE}/abc")
    assert server.asked == []


def test_without_wandb_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'rlmon\[wandb\]'"):
        rlmon.audit(f"{PLACE}/abc")
