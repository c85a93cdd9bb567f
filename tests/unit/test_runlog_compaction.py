"""Compaction: every row once for every reader, at every moment, through a crash at any system call."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import make_runlog as made
import pytest

from rlmon.errors import RunLogError
from rlmon.runlog import RunLogWriter, compact, compaction, open_run, reader

ROUNDS = 5
EXPECTED = [(0, round, row) for round in range(ROUNDS) for row in range(8)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    writer = RunLogWriter.open(tmp_path / "run", made.header(), resume=False)
    for round in range(ROUNDS):
        writer.write_rollouts(made.rollouts(round))
        writer.write_passes(made.passes(round))
    return tmp_path / "run"


def _rows(path: Path, folder: str = "rollouts") -> list[tuple[int, int, int]]:
    run = open_run(path)
    table = getattr(run, folder)(["attempt", "round", "global_row"])
    assert run.unreadable == {}
    return [(r["attempt"], r["round"], r["global_row"]) for r in table.to_pylist()]


def _names(path: Path, folder: str = "rollouts") -> list[str]:
    return sorted(os.listdir(path / folder))


class Killed(BaseException):
    """Stands for the process dying: no handler of ours may turn it into anything."""


def _calls(monkeypatch: pytest.MonkeyPatch, on_call: Callable[[int, str], None]) -> None:
    """Call ``on_call(n, name)`` before the n-th system call that changes or reads files."""
    count = 0
    for name in ("open", "write", "close", "replace", "unlink", "fsync", "stat"):
        original = getattr(os, name)

        def wrapped(*args: Any, _original: Any = original, _name: str = name, **options: Any) -> Any:
            nonlocal count
            count += 1
            on_call(count, _name)
            return _original(*args, **options)

        monkeypatch.setattr(os, name, wrapped)


def test_parts_become_segments_and_rows_stay(path: Path) -> None:
    before, passes_before = open_run(path).rollouts(), open_run(path).passes()
    compact(path)
    assert len(_names(path)) == len(_names(path, "passes")) == 1
    assert open_run(path).rollouts().equals(before)
    assert open_run(path).passes().equals(passes_before)


def test_compaction_is_idempotent(path: Path) -> None:
    compact(path)
    first = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    compact(path)
    assert {file: file.read_bytes() for file in path.rglob("*") if file.is_file()} == first


@pytest.mark.parametrize("segment_bytes", [1, 10_000, 20_000, 40_000])
def test_any_segment_size_keeps_every_row_and_settles(path: Path, segment_bytes: int) -> None:
    compact(path, segment_bytes=segment_bytes)
    names = _names(path)
    assert _rows(path) == EXPECTED
    compact(path, segment_bytes=segment_bytes)
    assert _names(path) == names
    # Parts of about 7 kB: a limit of 1 byte leaves all alone, 40 kB takes all five in one.
    assert len(names) == {1: 5, 40_000: 1}.get(segment_bytes, len(names))


def test_new_parts_join_a_small_segment(path: Path) -> None:
    compact(path)
    writer = RunLogWriter.open(path, made.header(1), resume=True, from_step=ROUNDS)
    writer.write_rollouts(made.rollouts(ROUNDS, attempt=1))
    compact(path)
    assert len(_names(path)) == 1
    assert _rows(path) == [*EXPECTED, *((1, ROUNDS, row) for row in range(8))]


def test_killed_at_every_system_call(path: Path, tmp_path: Path) -> None:
    points = 0
    while True:
        points += 1
        copy = tmp_path / f"copy{points}"
        shutil.copytree(path, copy)
        with pytest.MonkeyPatch.context() as patch:

            def die(n: int, name: str, last: int = points) -> None:
                if n >= last and name != "close":  # a dead process runs no clean-up, but the kernel closes its files
                    raise Killed

            _calls(patch, die)
            try:
                compact(copy)
                finished = True
            except Killed:
                finished = False
        assert _rows(copy) == EXPECTED, points
        assert _rows(copy, "passes") == EXPECTED, points
        compact(copy)  # the next one cleans up
        assert _rows(copy) == EXPECTED, points
        assert len(_names(copy)) == 1, points
        assert open_run(copy).path == copy
        shutil.rmtree(copy)
        if finished:
            break
    assert points > 20


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES, errno.EIO])
def test_every_system_call_may_fail(path: Path, tmp_path: Path, code: int) -> None:
    for point in range(1, 60):
        copy = tmp_path / f"copy{point}"
        shutil.copytree(path, copy)
        with pytest.MonkeyPatch.context() as patch:

            def fail(n: int, name: str, at: int = point) -> None:
                if n == at and name != "close":
                    raise OSError(code, os.strerror(code))

            _calls(patch, fail)
            with contextlib.suppress(RunLogError):  # the only error that may come out
                compact(copy)
        assert _rows(copy) == EXPECTED, point
        shutil.rmtree(copy)


def test_a_reader_at_any_moment_sees_each_row_once(path: Path) -> None:
    seen: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        reading = False

        def read(n: int, name: str) -> None:
            nonlocal reading
            if not reading:
                reading = True
                assert _rows(path) == EXPECTED, (n, name)
                assert _rows(path, "passes") == EXPECTED, (n, name)
                seen.append(n)
                reading = False

        _calls(patch, read)
        compact(path)
    assert len(seen) > 20
    assert len(_names(path)) == 1


def test_a_compaction_at_any_moment_of_a_reader(path: Path, tmp_path: Path) -> None:
    """The other way round: all of a compaction between two files of one reader."""
    really_read = reader._read_file
    for at in range(ROUNDS + 1):
        copy = tmp_path / f"copy{at}"
        shutil.copytree(path, copy)
        count = 0

        def read(*args: Any, at: int = at, copy: Path = copy) -> Any:
            nonlocal count
            count += 1
            if count == at + 1:
                compact(copy)
            return really_read(*args)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(reader, "_read_file", read)
            assert _rows(copy) == EXPECTED
        assert len(_names(copy)) == 1 or at == ROUNDS


def test_other_ranks_may_write_while_one_compacts(path: Path) -> None:
    other = RunLogWriter.open(path, made.header(), rank=1, world_size=2, resume=False)
    rounds = iter(range(100, 200))
    written = []
    with pytest.MonkeyPatch.context() as patch:
        writing = False

        def write(n: int, name: str) -> None:
            nonlocal writing
            if not writing:
                writing = True
                round = next(rounds)
                other.write_rollouts(made.rollouts(round, 1))
                written.append((0, round, 0))
                writing = False

        _calls(patch, write)
        compact(path)
    assert len(written) > 10
    assert _rows(path) == EXPECTED + written
    compact(path)
    assert _rows(path) == EXPECTED + written


def test_two_compactions_at_once(path: Path) -> None:
    with compaction._locked(path) as locked:
        assert locked
        names = _names(path)
        compact(path)
        assert _names(path) == names, "the second one stands back"
    compact(path)
    assert len(_names(path)) == 1


def test_a_damaged_part_is_left_alone(path: Path) -> None:
    damaged = path / "rollouts" / _names(path)[2]
    damaged.write_bytes(b"PAR1 and nothing else")
    compact(path)
    compact(path)
    assert damaged.exists()
    run = open_run(path)
    assert run.rollouts().num_rows == 8 * (ROUNDS - 1)
    assert list(run.unreadable) == [damaged.name]


def test_close_compacts_only_many_parts(tmp_path: Path) -> None:
    for rounds, files in ((64, 64), (65, 1)):
        writer = RunLogWriter.open(tmp_path / str(rounds), made.header(), resume=False)
        for round in range(rounds):
            writer.write_rollouts(made.rollouts(round, 1))
        writer.close()
        writer.close()
        assert len(_names(tmp_path / str(rounds))) == files
        assert open_run(tmp_path / str(rounds)).rollouts().num_rows == rounds
        assert writer.take_faults() == ()


def test_a_spent_budget_leaves_a_whole_log(path: Path) -> None:
    compact(path, budget_seconds=-1.0)
    assert len(_names(path)) == ROUNDS
    assert _rows(path) == EXPECTED


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunLogError, match="not an rlmon run directory"):
        compact(tmp_path)


def test_a_damaged_manifest_is_an_error_not_a_loss(path: Path) -> None:
    compact(path)
    (path / "manifest.json").write_text("{")
    with pytest.raises(RunLogError, match=r"manifest\.json .*Restore it"):
        open_run(path).rollouts()
