"""rlmon's own run directory: rows with their stored features (steps and findings: ``rlmon.audit.replay``)."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

import rlmon.audit.readers.columns as columns
from rlmon.audit.run import OpenedRun, RowBatch, stretches
from rlmon.errors import RLMonError, RunLogError
from rlmon.runlog import Run
from rlmon.runlog import open_run as open_log
from rlmon.runlog.layout import EVENTS_FILE, MANIFEST_FILE, RUN_FILE, STEPS_FILE

NAME = "rlmon"
NO_TEXT = "rlmon_store_text was {}: there is no text to show or compare"
SHARD_BYTES = 8 << 20
SHARD_FILES = 256
COLUMNS = (
    "attempt", "step", "split", "round", "group", "prompt", "completion", "prompt_id", "source", "reward", "rewards",
    "advantage", "completion_tokens", "truncated", "trained", "mode", "template_key", "answer_key",
)  # fmt: skip


def recognises(path: Path) -> bool:
    """Whether ``path`` or ``path/rlmon`` holds the header of a run, whatever it is: one that cannot be read is damage,
    and its rows are no other tool's."""
    return os.path.lexists(path / RUN_FILE) or os.path.lexists(path / "rlmon" / RUN_FILE)


@dataclass(frozen=True)
class _Files:
    path: Path
    names: tuple[str, ...]
    bytes: int
    rows_of: Callable[[str], pa.Table] = field(compare=False)
    of_base: bool = False
    """Whether the rows are those of a sample of the base, and no others; else all others."""

    def read(self) -> Iterator[RowBatch]:
        for name in self.names:
            try:
                _own_file(self.path, self.path / "rollouts" / name)
                table = _rows(self.rows_of(name), self.of_base)
            except (OSError, pa.ArrowException, RLMonError) as error:
                reason = f"{type(error).__name__}: {error}"
                yield RowBatch(rows=pa.table({"step": pa.array([], pa.int64())}), unreadable={name: reason})
                continue
            # A round is one draw; the group counts inside it.
            group = pc.binary_join_element_wise(
                *(pc.cast(table[part], pa.string()) for part in ("attempt", "round", "group")), "-"
            )
            yield RowBatch(rows=table.drop_columns(["attempt", "round", "group"]).append_column("group", group))


def _rows(table: pa.Table, of_base: bool) -> pa.Table:
    """Rows of training and evaluations, or those of a sample of the base, which are read as those of a run."""
    sampled = pc.equal(table["split"], "base")
    if not of_base:
        return table.filter(pc.invert(sampled)) if pc.any(sampled).as_py() else table
    table = table.filter(sampled)
    for name, value in (("split", pa.scalar("train")), ("trained", pa.scalar(True))):
        table = table.set_column(table.column_names.index(name), name, pa.repeat(value, len(table)))
    return table


def base_sample_of(run: OpenedRun) -> OpenedRun:
    """The rows of a sample of the base that a run took before its first update, as a run of their own."""
    shards = [replace(shard, of_base=True) for shard in run.shards if isinstance(shard, _Files)]
    return replace(run, shards=shards, notes=[])


def open_run(path: Path) -> OpenedRun:
    """The run in ``path``. Raises ``RunLogError`` or ``SchemaError`` where this version cannot read it."""
    for folder in (path, path / "rlmon"):
        for name in (RUN_FILE, STEPS_FILE, EVENTS_FILE, MANIFEST_FILE):
            if os.path.lexists(folder / name):
                _own_file(path, folder / name)
    log = open_log(path)
    header = log.header
    store_text = str(header.config.get("rlmon_store_text", "full"))
    return OpenedRun(
        reader=NAME,
        run_id=log.run_id,
        path=log.path,
        shards=_shards(log),
        # What steers a run is a setting of it, as much as its learning rate.
        config={**header.trainer_config, **({} if header.policy is None else {"policy": dict(header.policy)})},
        group_size=header.group_size,
        notes=[*([] if store_text == "full" else [NO_TEXT.format(store_text)]), *_about_attempts(log)],
    )


def _about_attempts(log: Run) -> Iterator[str]:
    """Which runs began in this folder, and where this one was resumed."""
    attempts = log.attempts
    begun = [at for at, attempt in enumerate(attempts) if at == 0 or attempt.header.attempt_kind == "fresh"]
    if len(begun) > 1:
        earlier = f"{len(begun) - 1} earlier run{'s' if len(begun) > 2 else ''}"
        yield f"{earlier} into this folder left a log here too, set aside: only the newest run is judged"
    steps = [attempt.from_step for attempt in attempts[begun[-1] + 1 :]]
    if steps:
        shown = ", ".join("an unknown step" if step is None else f"step {step}" for step in steps[:8])
        times = "once" if len(steps) == 1 else f"{len(steps)} times"
        yield f"resumed {times}, after {shown}; from there on the later attempt counts"


def _own_file(root: Path, file: Path) -> None:
    """Raises ``RunLogError`` for a link that leads out of the run, and for a pipe, which would be read for ever."""
    if not (file.is_file() and columns.inside(root, file)):
        raise RunLogError(
            f"{file} is no regular file inside {root}; rlmon did not write it. Remove it or copy the file."
        )


def _shards(log: Run) -> list[_Files]:
    """Consecutive files of about 8 MB; parts that several ranks wrote of one round stay together."""
    path, rows_of = log.path, log.row_reader(COLUMNS)
    bytes_of: dict[str, int] = {}
    for name in log.row_files():
        try:
            bytes_of[name] = (path / "rollouts" / name).stat().st_size
        except OSError as error:
            raise RunLogError(f"cannot read {path / 'rollouts' / name}: {error.strerror or error}.") from error

    def other_rounds(one: str, other: str) -> bool:
        return one.split("-k")[0] != other.split("-k")[0]

    groups = stretches(bytes_of, bytes_of.__getitem__, most=SHARD_BYTES, most_pieces=SHARD_FILES, may_cut=other_rounds)
    return [_Files(path, group, sum(map(bytes_of.__getitem__, group)), rows_of) for group in groups]
