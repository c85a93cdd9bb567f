"""A run as the server of W&B has it, ``wandb://ENTITY/PROJECT/RUN``: through W&B's public API.

What it logged is read call by call, like the file of an offline run; tables of completions are fetched into a temporary
folder that is deleted when the process ends. Nothing is written to the server.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import itertools
import queue
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import rlmon.audit.readers.wandb as wandb_file
from rlmon.asking import asking
from rlmon.audit.readers.history import History, beside_curves, reward_functions, step_key_of
from rlmon.audit.readers.own_word import MAX_REMARKS, own_word
from rlmon.audit.readers.table_layout import Cells, Logged, UnreadableTable, group_size
from rlmon.audit.readers.tables import plan
from rlmon.audit.run import OpenedRun, OwnWord, Remark
from rlmon.console import say
from rlmon.errors import ReadError, TrackerError
from rlmon.printable import one_line
from rlmon.records import SEVERITIES

T = TypeVar("T")

SCHEME = "wandb://"
SILENT_SECONDS = 60.0
"""So long W&B may take for one page of the history, or for one table."""
ASK_SECONDS = 19
ROWS_A_PAGE = 1_000
AT_ONCE = 8
"""Tables that are fetched at the same time."""
TELL_EVERY_SECONDS = 5.0
_ADDRESS = re.compile(r"wandb:/{1,2}(.*)|https?:/{1,2}[^/]+/([^/]+/[^/]+)/runs/([^/?#]+).*")
_FINDINGS = "rlmon/findings"


def address(path: Path | str) -> str | None:
    """``wandb://ENTITY/PROJECT/RUN`` where ``path`` says that, or is the page of a run in a browser."""
    found = _ADDRESS.fullmatch(str(path))
    if found is None:
        return None
    return SCHEME + (found[1].strip("/") if found[2] is None else f"{found[2]}/{found[3]}")


def open_run(path: Path | str) -> OpenedRun:
    """The run at an address.

    Raises ``ReadError`` where the address names no run, ``TrackerError`` where W&B cannot be asked or has no such run,
    and ``MissingExtraError`` without wandb.
    """
    whole = address(path) or str(path)
    parts = whole.removeprefix(SCHEME).split("/")
    if len(parts) not in (2, 3) or not all(parts):
        raise ReadError(f"{whole!r:.200} names no run of W&B. Type: rlmon audit wandb://ENTITY/PROJECT/RUN")
    place = "/".join(parts[:2])
    with asking(place, "wandb"):
        import wandb

        api = within(lambda: wandb.Api(timeout=ASK_SECONDS))
        if len(parts) == 2:
            raise ReadError(_which(place, within(lambda: list(itertools.islice(api.runs(place, "-created_at"), 8)))))
        return _opened(whole, within(lambda: api.run("/".join(parts))))


def _which(place: str, runs: Sequence[Any]) -> str:
    shown = ", ".join(f"{run.id} ({one_line(str(run.name), 40)})" for run in runs) or "none"
    return f"{place} is a project: name one of its runs, wandb://{place}/RUN. The newest: {shown}."


def _opened(whole: str, run: Any) -> OpenedRun:
    tell = _Told(whole)
    config = {str(key): value for key, value in run.config.items()}
    sizes = {file.name: file for file in within(lambda: list(run.files(pattern="media/table/%", per_page=200)))}
    fetch = _Fetch(sizes, Path(tempfile.mkdtemp(prefix="rlmon-")))
    atexit.register(shutil.rmtree, fetch.folder, ignore_errors=True)
    try:
        return _fetched(whole, run, config, fetch, tell)
    except BaseException:
        shutil.rmtree(fetch.folder, ignore_errors=True)  # a command that W&B leaves without an answer ends at once
        raise


def _fetched(whole: str, run: Any, config: Mapping[str, Any], fetch: _Fetch, tell: _Told) -> OpenedRun:
    sizes = fetch.files
    history = _history(run, fetch, tell)
    tables = plan(history.tables, fetch, config, reward_functions(history))
    wanted = {one.place: one for shard in tables.shards for one in (*shard.tables, shard.before) if one is not None}
    absent = [place for place in wanted if place not in sizes]
    jobs = [functools.partial(fetch.file, table) for place, table in wanted.items() if place in sizes]
    failed: list[str] = []
    for done, why in enumerate(each(jobs), start=1):
        failed += [why] if why else []
        tell(f"{done:,} of {len(jobs):,} tables")
    load = wandb_file.LoadFile(fetch.folder)
    scalars, evals, notes = history.series()
    if absent:
        notes.append(f"{len(absent)} of {len(wanted)} tables of completions are not among the files of the run")
    if failed:
        notes.append(f"{len(failed)} of {len(wanted)} tables of completions could not be fetched: {failed[0]}")
    if run.state == "running":
        notes.append("the run is not over by W&B's word: this is what it logged until now")
    return OpenedRun(
        reader=wandb_file.NAME,
        run_id=str(run.id),
        path=Path(whole),
        shards=[replace(shard, load=load) for shard in tables.shards],
        scalars=scalars,
        eval_scalars=evals,
        config=config,
        group_size=group_size(config),
        lacks=beside_curves(tables.lacks, scalars, evals),
        own_word=_own_word(run.summary_metrics, history.tables.get(_FINDINGS, ()), fetch),
        notes=(*notes, *wandb_file.note_of_steps(history), *tables.notes),
    )


def _history(run: Any, fetch: _Fetch, tell: _Told) -> History:
    """All log calls. Each page is waited for with patience, since the client itself would wait without end."""
    scan = within(lambda: run.scan_history(page_size=ROWS_A_PAGE, use_cache=False))
    rows = (row for row in scan)  # a scan that is asked for its iterator again begins anew
    pages = iter(lambda: within(lambda: list(itertools.islice(rows, ROWS_A_PAGE))), [])
    first = next(pages, [])
    history = History(step_key=step_key_of(first))
    for done, row in enumerate(itertools.chain.from_iterable(itertools.chain([first], pages))):
        numbers: dict[str, float] = {}
        objects: dict[str, dict[str, Any]] = {}
        for key, value in row.items():
            wandb_file.take_value(key, value, numbers, objects)
        numbers |= wandb_file.numbers_inside(objects)
        wandb_file.take_call(history, numbers, objects, done, fetch.where)
        if done % ROWS_A_PAGE == 0:
            tell(f"{done:,} log calls")
    return history


@dataclass(frozen=True, slots=True)
class _Fetch:
    """Fetches a table when it is asked for."""

    files: Mapping[str, Any]
    """The run's, by name."""
    folder: Path

    def where(self, path: str) -> tuple[str, int]:
        """As ``take_call`` asks."""
        file = self.files.get(path)
        return path, 0 if file is None else int(file.size)

    def file(self, table: Logged) -> str | None:
        """Have the table's file in the folder; why not, where that fails."""
        try:
            self.files[table.place].download(root=str(self.folder), exist_ok=True).close()
        except Exception as error:  # of a third party, and of the network
            return one_line(f"{type(error).__name__}: {error}", 200)
        return None

    def __call__(self, table: Logged) -> Cells:
        if table.place not in self.files:
            raise UnreadableTable("not among the files of the run")
        within(lambda: self.file(table))
        return wandb_file.LoadFile(self.folder)(table)


def _own_word(summary: Any, findings: Sequence[Logged], load: Callable[[Logged], Cells]) -> OwnWord | None:
    """What rlmon's sink left: the verdict in the summary, and the table of findings, newest first."""
    said = summary.get("rlmon/verdict")
    remarks: list[Remark] = []
    with contextlib.suppress(UnreadableTable):
        names, rows = load(findings[-1]) if findings else ([], [])
        for row in reversed(rows[:MAX_REMARKS]):
            cells = dict(zip(names, row, strict=False)) if isinstance(row, list) else {}
            detector, severity, step = (cells.get(name) for name in ("detector", "severity", "step"))
            if isinstance(detector, str) and severity in SEVERITIES:
                at = step if isinstance(step, int) and not isinstance(step, bool) else None
                remarks.append(Remark(detector=detector[:60], severity=severity, step=at))
    word: Literal["pass", "warn", "fail"] | None = said if said in ("pass", "warn", "fail") else None
    return own_word(word, remarks)


@dataclass(slots=True)
class _Told:
    """Says how far it is, in a line every few seconds."""

    whole: str
    _last: float = field(default_factory=time.monotonic)

    def __call__(self, done: str) -> None:
        if time.monotonic() - self._last > TELL_EVERY_SECONDS:
            self._last = time.monotonic()
            say(one_line(f"fetching {self.whole}: {done}"))


def within(job: Callable[[], T]) -> T:
    """What the job gives. Raises what it raises, and ``TrackerError`` where it takes longer than W&B may."""
    (result,) = each([job])
    return result


def each(jobs: Iterable[Callable[[], T]]) -> Iterator[T]:
    """What each job gives, as they end, some of them at once.

    Raises what one raises, and ``TrackerError`` where none ends within ``SILENT_SECONDS``; threads that still wait then
    end with the process.
    """
    waiting = list(jobs)
    todo: queue.SimpleQueue[Callable[[], T]] = queue.SimpleQueue()
    done: queue.SimpleQueue[tuple[T | None, BaseException | None]] = queue.SimpleQueue()
    for job in waiting:
        todo.put(job)

    def work() -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                job = todo.get_nowait()
                try:
                    done.put((job(), None))
                except BaseException as error:
                    done.put((None, error))

    for _ in range(min(AT_ONCE, len(waiting))):
        threading.Thread(target=work, name="rlmon-wandb-online", daemon=True).start()
    for _ in waiting:
        try:
            result, error = done.get(timeout=SILENT_SECONDS)
        except queue.Empty:
            raise TrackerError(
                f"W&B was silent for {SILENT_SECONDS:g} s. Is the network there? Try again later."
            ) from None
        if error is not None:
            raise error
        yield result  # type: ignore[misc]
