"""Readers of somebody else's, kept from ending an audit: what they raise, or give in another form, is told by name."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from rlmon.audit.run import ROWS, OpenedRun, Reader, RowBatch, Shard
from rlmon.errors import ConfigError, ReadError, RLMonError


@dataclass(frozen=True, slots=True)
class Foreign:
    """A reader of somebody else's. Raises ``ConfigError`` for what is none."""

    reader: Reader
    failures: dict[Path, str] = field(default_factory=dict)
    """Paths of which it could not say whether it knows them, and why."""

    def __post_init__(self) -> None:
        lacking = [name for name in ("NAME", "recognises", "open_run") if not hasattr(self.reader, name)]
        if lacking:
            raise ConfigError(f"{self.reader!r:.100} is no reader: it has no {', '.join(lacking)}.")
        if not isinstance(self.reader.NAME, str) or not self.reader.NAME:
            raise ConfigError(f"{self.reader!r:.100} is no reader: its NAME is no word.")

    @classmethod
    def made(cls, reader: Reader | type[Reader]) -> Foreign:
        """Of an object, a module, or a class that is made without arguments."""
        if not isinstance(reader, type):
            return cls(reader)
        try:
            return cls(reader())
        except ConfigError:
            raise
        except Exception as error:
            raise ConfigError(f"The reader {reader.__name__} cannot be made: {_words(error)}.") from error

    @property
    def NAME(self) -> str:
        """As the reader has it."""
        return self.reader.NAME

    def recognises(self, path: Path) -> bool:
        """What the reader says; no, where it fails, which is kept in ``failures``."""
        try:
            return bool(self.reader.recognises(path))
        except Exception as error:
            self.failures[path] = _words(error)
            return False

    def told(self) -> list[str]:
        """The first of ``failures`` in words."""
        first = next(iter(self.failures.items()), None)
        if first is None:
            return []
        where, why = str(first[0]), first[1]
        return [f"The reader {self.NAME!r} failed to say whether {where!r} is a run of its: {why}."]

    def open_run(self, path: Path) -> OpenedRun:
        """The reader's run, whose shards are guarded too. Raises ``ReadError`` for whatever the reader raises."""
        try:
            run = self.reader.open_run(path)
        except RLMonError:
            raise
        except Exception as error:
            raise ReadError(f"The reader {self.NAME!r} failed at {str(path)!r}: {_words(error)}.") from error
        if type(run) is not OpenedRun:
            raise ReadError(f"The reader {self.NAME!r} made {run!r:.100} of {str(path)!r}, and no OpenedRun.")
        shards = [_Guarded(shard, self.NAME, at) for at, shard in enumerate(run.shards)]
        return replace(run, reader=self.NAME, shards=shards)


@dataclass(frozen=True, slots=True)
class _Guarded:
    """A shard whose failure costs its own rows."""

    shard: Shard
    reader: str
    number: int

    @property
    def bytes(self) -> int:
        return self.shard.bytes

    def read(self) -> Iterator[RowBatch]:
        try:
            for batch in self.shard.read():
                yield _in_schema(batch)
        except Exception as error:
            yield RowBatch(rows=ROWS.empty_table(), unreadable={f"{self.reader}, part {self.number}": _words(error)})


def _in_schema(batch: RowBatch) -> RowBatch:
    """The rows with the columns and types of ``ROWS``; those without a step are damaged."""
    given = batch.rows
    if "split" not in given.column_names:
        given = given.append_column("split", pa.repeat(pa.scalar("train"), given.num_rows))
    fields = [field for field in ROWS if field.name in given.column_names]
    rows = given.select([field.name for field in fields]).cast(pa.schema([f.with_nullable(True) for f in fields]))
    placed = rows.filter(pc.and_(pc.is_valid(rows["step"]), pc.is_valid(rows["split"])))
    return replace(batch, rows=placed, damaged=batch.damaged + rows.num_rows - placed.num_rows)


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error)[:300]!r}"
