"""A disk that fails under the writer: rows are written or counted, steps come later, nothing raises but the appends."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import make_runlog as made
import pytest

from rlmon.runlog import RunLogWriter, files, open_run
from rlmon.runlog import writer as writer_module


@pytest.fixture
def writer(tmp_path: Path) -> RunLogWriter:
    return RunLogWriter.open(tmp_path / "run", made.header(), resume=False)


@contextmanager
def opens_fail(code: int, when: Callable[[str], bool] = lambda name: True) -> Iterator[None]:
    """Every ``os.open`` that would write a file for which ``when(name)`` holds fails with ``code``."""
    really_open = os.open

    def fail(path: Any, flags: int, *rest: Any, **options: Any) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR) and when(os.path.basename(path)):
            raise OSError(code, os.strerror(code), str(path))
        return really_open(path, flags, *rest, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "open", fail)
        yield


def _rows(path: Path) -> int:
    return open_run(path).rollouts().num_rows


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES, errno.EIO, errno.EROFS])
def test_rows_are_written_or_counted(writer: RunLogWriter, code: int) -> None:
    writer.write_rollouts(made.rollouts(0))
    with opens_fail(code):
        for round in (1, 2):
            writer.write_rollouts(made.rollouts(round))
            writer.write_passes(made.passes(round))
    writer.write_rollouts(made.rollouts(3))
    writer.write_passes(made.passes(3))
    # 4 rounds of 8 rows, 2 of them lost.
    assert (writer.rows_written, writer.shed_rows) == (16, 16)
    assert (writer.passes_written, writer.shed_passes) == (8, 16)
    assert _rows(writer.path) == 16
    assert open_run(writer.path).passes().num_rows == 8
    faults = {fault.place: fault for fault in writer.take_faults()}
    assert os.strerror(code) in faults["runlog.rollouts"].error
    assert faults["runlog.rollouts"].count == 4, "two rounds, with and without text"
    assert faults["runlog.passes"].count == 2
    assert writer.take_faults() == ()
    assert not [name for name in os.listdir(writer.path / "rollouts") if name.startswith(".")]


def test_text_goes_first_when_space_is_short(writer: RunLogWriter, monkeypatch: pytest.MonkeyPatch) -> None:
    really_write = os.write

    def write(fd: int, data: Any) -> int:
        # A disk with 20 kB left for a file takes what fits and then no more, as ENOSPC does.
        if os.fstat(fd).st_size + len(data) > 20_000:
            if (room := 20_000 - os.fstat(fd).st_size) > 0:
                return really_write(fd, memoryview(data)[:room])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return really_write(fd, data)

    monkeypatch.setattr(os, "write", write)
    texts = [os.urandom(5_000).hex() for _ in range(8)]
    writer.write_rollouts(made.rollouts(0, completion=texts))
    assert (writer.rows_written, writer.shed_rows, writer.shed_texts) == (8, 0, 8)
    rows = open_run(writer.path).rollouts().to_pylist()
    assert [row["reward"] for row in rows] == made.rollouts(0)["reward"]
    assert all(row["prompt"] is None and row["completion"] is None for row in rows)
    writer.write_rollouts(made.rollouts(1))
    assert (writer.rows_written, writer.shed_texts) == (16, 8), "the next round has its text"


def test_a_rename_that_fails_late_never_doubles_rows(writer: RunLogWriter, monkeypatch: pytest.MonkeyPatch) -> None:
    really_replace = os.replace

    def replace(source: Any, target: Any) -> None:
        really_replace(source, target)
        raise OSError(errno.EIO, "the server answered late")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "replace", replace)
        writer.write_rollouts(made.rollouts(0))
    assert (writer.rows_written, writer.shed_rows) == (8, 0)
    assert _rows(writer.path) == 8


def test_steps_and_actions_wait_for_the_disk(writer: RunLogWriter) -> None:
    writer.append_step(made.step_record(1))
    with opens_fail(errno.ENOSPC):
        for step in (2, 3):
            with pytest.raises(OSError, match="No space left"):
                writer.append_step(made.step_record(step))
        with pytest.raises(OSError, match="No space left"):
            writer.append_event("action", made.action(3))
    assert [r.step for r in open_run(writer.path).step_records()] == [1]
    writer.append_step(made.step_record(4))
    run = open_run(writer.path)
    assert [r.step for r in run.step_records()] == [1, 2, 3, 4]
    assert run.actions == [made.action(3)], "written by the next success of either file"
    assert writer.shed_lines == 0


def test_waiting_lines_are_written_at_close(writer: RunLogWriter) -> None:
    with opens_fail(errno.EIO), pytest.raises(OSError, match="Input/output"):
        writer.append_step(made.step_record(1))
    writer.close()
    assert [r.step for r in open_run(writer.path).step_records()] == [1]


def test_lines_lost_at_close_are_counted_and_named(writer: RunLogWriter) -> None:
    with opens_fail(errno.EIO):
        with pytest.raises(OSError, match="Input/output"):
            writer.append_step(made.step_record(1))
        writer.close()
    assert writer.shed_lines == 1
    assert [fault.place for fault in writer.take_faults()] == ["runlog.steps"]


def test_the_backlog_is_bounded_and_drops_the_oldest(writer: RunLogWriter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer_module, "BACKLOG_LINES", 3)
    with opens_fail(errno.ENOSPC):
        for step in range(1, 6):
            with pytest.raises(OSError, match="No space left"):
                writer.append_step(made.step_record(step))
            with pytest.raises(OSError, match="No space left"):
                writer.append_event("finding" if step > 2 else "action", {**_payload(step), "step": step})
    assert writer.shed_lines == 2 + 2
    writer.append_step(made.step_record(6))
    run = open_run(writer.path)
    assert [r.step for r in run.step_records()] == [3, 4, 5, 6]
    # Of 2 actions and 3 findings the findings went first.
    assert [(e.kind, e.payload["step"]) for e in run.events[1:]] == [("action", 1), ("action", 2), ("finding", 5)]


def _payload(step: int) -> dict[str, Any]:
    record = made.finding(step) if step > 2 else made.action(step)
    return {name: getattr(record, name) for name in record.__dataclass_fields__}


def test_half_a_line_is_taken_back(writer: RunLogWriter) -> None:
    writer.append_step(made.step_record(1))
    with half_lines(truncate=True), pytest.raises(OSError, match="No space left"):
        writer.append_step(made.step_record(2))
    data = (writer.path / "steps.jsonl").read_bytes()
    assert data.count(b"\n") == 1
    assert data.endswith(b"\n")
    writer.append_step(made.step_record(3))
    assert [r.step for r in open_run(writer.path).step_records()] == [1, 2, 3]


def test_half_a_line_that_stays_is_closed_off(writer: RunLogWriter) -> None:
    writer.append_step(made.step_record(1))
    with half_lines(truncate=False), pytest.raises(files.TornLineError):
        writer.append_step(made.step_record(2))
    writer.append_step(made.step_record(3))
    run = open_run(writer.path)
    assert [r.step for r in run.step_records()] == [1, 2, 3]
    assert run.torn_lines["steps.jsonl"] == 1


@contextmanager
def half_lines(*, truncate: bool) -> Iterator[None]:
    """The disk takes half of a write and no more; ``truncate``: the fragment can be cut off again."""
    really_write = os.write
    full = False

    def write(fd: int, data: Any) -> int:
        nonlocal full
        if full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        full = True
        return really_write(fd, memoryview(data)[: len(data) // 2])

    def refuse(fd: int, size: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "write", write)
        if not truncate:
            patch.setattr(os, "ftruncate", refuse)
        yield


@pytest.mark.parametrize("what", ["everything", "rollouts", "run.json"])
def test_a_deleted_directory_is_made_again(writer: RunLogWriter, what: str) -> None:
    writer.write_rollouts(made.rollouts(0))
    writer.append_step(made.step_record(1))
    target = writer.path if what == "everything" else writer.path / what
    if target.is_dir():
        shutil.rmtree(target)
    else:
        target.unlink()
    writer.write_rollouts(made.rollouts(1))
    writer.append_step(made.step_record(2))
    run = open_run(writer.path)
    assert run.rollouts(["round"])["round"].to_pylist() == ([0] * 8 if what == "run.json" else []) + [1] * 8
    assert [r.step for r in run.step_records()] == ([2] if what == "everything" else [1, 2])
    assert run.header == writer.header
    assert (writer.path / "secret").read_text().strip() == writer.secret.hex()
    assert writer.shed_rows == 0
    assert [fault.place for fault in writer.take_faults()] == ["runlog.directory"]


def test_a_deleted_directory_on_a_disk_that_stays_broken(writer: RunLogWriter) -> None:
    shutil.rmtree(writer.path)
    with opens_fail(errno.EROFS):
        writer.write_rollouts(made.rollouts(0))
        with pytest.raises(OSError, match="Read-only"):
            writer.append_step(made.step_record(1))
    writer.append_step(made.step_record(2))
    assert (writer.rows_written, writer.shed_rows) == (0, 8)
    assert [r.step for r in open_run(writer.path).step_records()] == [1, 2]


def test_fsync_that_fails_loses_and_doubles_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = RunLogWriter.open(tmp_path / "run", made.header(), resume=False, fsync=True)

    def fail(fd: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", fail)
    writer.append_step(made.step_record(1))
    writer.write_rollouts(made.rollouts(0))
    assert [r.step for r in open_run(writer.path).step_records()] == [1]
    # Rows that may not be on the disk are not called written: the file is taken back.
    assert (writer.rows_written, writer.shed_rows, _rows(writer.path)) == (0, 8, 0)


def test_fsync_is_called_for_rows_lines_and_headers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    really_fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (calls.append(fd), really_fsync(fd))[1])
    for fsync in (False, True):
        calls.clear()
        writer = RunLogWriter.open(tmp_path / str(fsync), made.header(), resume=False, fsync=fsync)
        writer.write_rollouts(made.rollouts(0))
        writer.append_step(made.step_record(1))
        writer.close()
        assert bool(calls) is fsync


def test_leftover_temporaries_of_a_killed_attempt_are_removed(writer: RunLogWriter) -> None:
    folder = writer.path / "rollouts"
    (folder / ".part-a0000-train-r00000000-k00000-n00000000.parquet.tmp").write_bytes(b"half")
    (folder / ".part-a0001-train-r00000000-k00001-n00000000.parquet.tmp").write_bytes(b"rank 1 is writing this")
    assert _rows(writer.path) == 0
    RunLogWriter.open(writer.path, made.header(1), resume=True, from_step=0)
    assert os.listdir(folder) == [".part-a0001-train-r00000000-k00001-n00000000.parquet.tmp"]
