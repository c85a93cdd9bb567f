"""Which tool wrote what lies at a path, and its reader.

Every reader is a module, or an object of somebody else's, with what ``Reader`` names. Those of somebody else's are
asked first: who installs one wants it.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import rlmon.audit.readers.curves as curves
import rlmon.audit.readers.mapped as mapped
import rlmon.audit.readers.rlmon_log as rlmon_log
import rlmon.audit.readers.tensorboard as tensorboard
import rlmon.audit.readers.trackio as trackio
import rlmon.audit.readers.trl as trl
import rlmon.audit.readers.wandb as wandb
import rlmon.audit.readers.wandb_online as wandb_online
from rlmon.audit.readers.choosing import preset_names
from rlmon.audit.readers.columns import inside, place_and_run
from rlmon.audit.readers.foreign import Foreign
from rlmon.audit.readers.history import scalar_lacks
from rlmon.audit.readers.probing import NoStepsError
from rlmon.audit.run import OpenedRun, Reader
from rlmon.console import say
from rlmon.errors import ConfigError, ReadError, RLMonError
from rlmon.extensions import installed
from rlmon.printable import several

OF_TOOLS: tuple[Reader, ...] = (rlmon_log, trl, wandb, trackio, tensorboard)
"""The most informative source first: where several recognise a folder the first is read."""
OF_FILES: tuple[Reader, ...] = (mapped, curves)
"""Of files that no tool's layout explains: rows say more than curves."""
READERS = OF_TOOLS + OF_FILES
KEPT_IN: Mapping[str, tuple[str, ...]] = {
    rlmon_log.NAME: ("rlmon",),
    wandb.NAME: ("wandb",),
    trackio.NAME: ("trackio",),
    tensorboard.NAME: ("tensorboard", "runs"),
}
"""Folders inside an output folder where trainers keep what a reader reads."""
DEPTH = 3
"""Folders below one that is given in which runs are looked for."""
MAX_RUNS = 500
PICKLES = (".pt", ".pth", ".pkl", ".pickle", ".bin", ".ckpt")
READABLE = (
    "an rlmon log, a TRL output folder (completions/, trainer_state.json), a W&B run, a trackio or TensorBoard folder, "
    "JSONL, Parquet or CSV files of verl, verifiers, NeMo-RL, SkyRL, AReaL and tinker-cookbook, and files of curves: a "
    "log_history, lines of metrics, a table of a tracker's history, a console log"
)
HOW = (
    "Name the reader with --reader, or the columns with --map prompt=...,completion=...,reward=...,step=... for any "
    "JSONL, Parquet or CSV file."
)


def with_foreign(readers: Sequence[Reader]) -> tuple[Reader, ...]:
    """The readers given, those of installed packages, and those of tools.

    Raises ``ConfigError`` where one that was given is none, or has the name of another; an installed one is left out.
    """
    tools: list[Reader] = []
    for one in readers:
        tools.append(_foreign(one, tools))
    for one in installed("rlmon.readers"):
        try:
            tools.append(_foreign(one, tools))
        except ConfigError as problem:
            say(f"a reader of an installed package was left out: {problem}")
    return (*tools, *OF_TOOLS)


def _foreign(reader: Reader | type[Reader], others: Sequence[Reader]) -> Reader:
    found = Foreign.made(reader)
    if found.NAME in names((*others, *OF_TOOLS)):
        raise ConfigError(f"There is a reader {found.NAME!r} already; give yours another NAME.")
    return found


def open_source(
    path: Path | str,
    reader: str | None = None,
    mapping: Mapping[str, str] | None = None,
    readers: Sequence[Reader] = (),
) -> OpenedRun:
    """The run at ``path``, by the reader named, by ``mapping`` (canonical column to the file's own), or as recognised.
    ``readers``: some of somebody else's beside those that there are.

    Raises ``ReadError`` where there is nothing, nothing readable, or no such reader, and what the reader raises.
    """
    if wandb_online.address(path) is not None:
        if reader not in (None, wandb.NAME) or mapping is not None:
            raise ReadError("A run on the server of W&B is read as wandb: leave --reader and --map away.")
        return wandb_online.open_run(path)
    path, tools = Path(path), with_foreign(readers)
    try:
        there = place_and_run(path)[0].exists()
    except (OSError, ValueError) as problem:
        raise ReadError(f"{str(path)!r} cannot be looked at: {problem}.") from None
    if not there:
        raise ReadError(f"There is nothing at {str(path)!r}. Give the folder of a run or one of its files.")
    if path.suffix.lower() in PICKLES and path.is_file():
        raise ReadError(_refusal_of_pickles(path))
    if mapping is not None:
        if reader not in (None, mapped.NAME):
            raise ReadError(f"--map names columns of files, so it goes without --reader {reader}.")
        return mapped.open_run(path, mapping)
    try:
        run = _by_name(path, reader, tools) if reader is not None else _recognised_run(path, tools)
    except ReadError as problem:
        if failed := _failed(tools):
            raise ReadError(" ".join([str(problem), *failed])) from problem
        raise
    return dataclasses.replace(run, notes=[*run.notes, *failed]) if (failed := _failed(tools)) else run


def written(path: Path | str) -> str:
    """The path as it was given; an address has lost a slash where it was made a path."""
    return wandb_online.address(path) or str(path)


def _failed(tools: Sequence[Reader]) -> list[str]:
    """What readers of somebody else's could not say of the path."""
    return [said for tool in tools if isinstance(tool, Foreign) for said in tool.told()]


def runs_at(path: Path, readers: Sequence[Reader] = ()) -> list[Path]:
    """The runs at ``path``, in order of name or time, where it holds several; else none. Each can be opened.

    Several are: runs of one tracker with different ids, runs that share a TensorBoard folder, a table with columns of
    several runs, console logs beside each other, and folders below it that each hold a run. Raises nothing: what
    cannot be read is told by whoever opens it.
    """
    tools = with_foreign(readers)
    with contextlib.suppress(RLMonError, OSError, ValueError):
        if path.is_file():
            if any(tool.recognises(path) for tool in tools[: -len(OF_TOOLS)]):
                return []
            return trackio.runs_at(path) or [Path(f"{path}::{name}") for name in curves.runs_at(path)]
        if path.is_dir():
            return _runs_in(path, tools)
    return []


def all_runs_at(path: Path) -> list[Path]:
    """The runs at and below ``path``, the only one too, as ``runs_at`` finds several. Raises nothing."""
    found = runs_at(path)
    with contextlib.suppress(RLMonError, OSError, ValueError):
        tools = with_foreign(())
        if found or any(_recognised(path, tools)):
            return found or [path]
        below = _runs_below(path, DEPTH, tools, of_files=True) if path.is_dir() else []
        return below or [path] * any(one.recognises(path) for one in OF_FILES)
    return found


def _runs_in(path: Path, tools: Sequence[Reader]) -> list[Path]:
    tool, place = next(iter(_recognised(path, tools)), (None, path))
    if tool is not None and not (tool is tensorboard and tensorboard.only_below(path)):
        several = next((module for module in (wandb, trackio, tensorboard) if module is tool), None)
        return [] if several is None else several.runs_at(place)
    below = _runs_below(path, DEPTH, tools, of_files=False)
    if not below and mapped.recognises(path):
        return mapped.runs_at(path)  # most folders of rows are parts of one run
    below = _runs_below(path, DEPTH, tools, of_files=True)
    return (below if len(below) > 1 else []) if below else curves.logs_at(path)


def _recognised(path: Path, tools: Sequence[Reader]) -> Iterator[tuple[Reader, Path]]:
    """The tools that left a run at ``path``, and where each has its own."""
    return ((tool, place) for tool in tools if (place := _place(tool, path)) is not None)


def _runs_below(path: Path, depth: int, tools: Sequence[Reader], *, of_files: bool) -> list[Path]:
    """Runs in folders below ``path`` that some tool left there; ``of_files``: also those of files of any tool."""
    runs: list[Path] = []
    for folder in _subfolders(path):
        if len(runs) >= MAX_RUNS:
            break
        if any(_recognised(folder, tools)):
            runs += _runs_in(folder, tools) or [folder]
        elif of_files and depth > 1 and len(_runs_below(folder, depth - 1, tools, of_files=False)) > 1:
            # Its files of rows are those of the runs, which lie a folder deeper.
            runs += _runs_below(folder, depth - 1, tools, of_files=True)
        elif of_files and mapped.recognises(folder):
            runs.append(folder)
        elif of_files and curves.recognises(folder):
            runs += curves.logs_at(folder) or [folder]
        elif depth > 1:
            runs += _runs_below(folder, depth - 1, tools, of_files=of_files)
    return runs[:MAX_RUNS]


def _subfolders(path: Path) -> list[Path]:
    """Folders in order of name; what a link names lies elsewhere, or is here twice."""
    try:
        found = [entry for entry in path.iterdir() if entry.is_dir() and not entry.is_symlink()]
    except OSError:
        return []
    return sorted(entry for entry in found if not entry.name.startswith("."))


def names(tools: Sequence[Reader] = OF_TOOLS) -> list[str]:
    """What ``--reader`` takes: readers, then layouts of mapped files."""
    return [one.NAME for one in (*tools, *OF_FILES)] + preset_names()


def _recognised_run(path: Path, tools: Sequence[Reader]) -> OpenedRun:
    """The run of the most informative reader that can read ``path``."""
    found = list(_recognised(path, tools))
    below = [] if found or not path.is_dir() else _runs_below(path, DEPTH, tools, of_files=False)
    if len(below) > 1:
        shown = ", ".join(repr(str(run.relative_to(path))) for run in below[:8])
        raise ReadError(
            f"{str(path)!r} holds {len(below)} runs: {shown}{', ...' if len(below) > 8 else ''}. Give one of them; "
            f"`rlmon audit {path}` shows them all."
        )
    if below:
        run = _recognised_run(below[0], tools)
        return dataclasses.replace(run, notes=[*run.notes, f"the one run of the folder was read, in {str(below[0])!r}"])
    failed: list[RLMonError] = []
    notes: list[str] = []
    for module, place in found or [(one, path) for one in OF_FILES if one.recognises(path)]:
        try:
            # TRL's own files do not hold its settings; a logger beside them does.
            run = trl.open_run(place, _settings_beside(found)) if module is trl else module.open_run(place)
            if module is mapped:
                run = _with_curves(run, path)
            elif not run.shards:
                run = _with_rows(run, path)
        except RLMonError as problem:
            if isinstance(problem, NoStepsError) and not _has_other_curves(path):
                raise  # numbers that stand beside completions are no curves
            failed.append(problem)
            notes.append(f"{module.NAME} was here too, but: {problem}")
            continue
        if module is trl:
            notes += _trained_into_before(found)
        others = [f"{other.NAME} ({_relative(path, where)})" for other, where in found if other is not module]
        if others and not failed:
            notes.append(f"Also here, to be read with --reader: {', '.join(others)}.")
        return dataclasses.replace(run, notes=[*run.notes, *notes])
    if failed:
        raise failed[0]
    raise ReadError(_nothing_readable(path))


def _has_other_curves(path: Path) -> bool:
    """Whether a folder has files of curves that are not files of completions."""
    files = [file for file in path.iterdir() if file.is_file()] if path.is_dir() else []
    return any(curves.recognises(file) and not mapped.recognises(file) for file in files)


def _with_curves(run: OpenedRun, path: Path) -> OpenedRun:
    """Rows with the curves that lie beside them, where they have none of their own."""
    if run.scalars or not path.is_dir() or not curves.recognises(path):
        return run
    try:
        beside = curves.open_run(path)
    except RLMonError:
        return run
    return _put_together(run, beside)


def _with_rows(run: OpenedRun, path: Path) -> OpenedRun:
    """Curves of a tool with the completions that lie beside them, as ms-swift's do beside its trainer state.

    Only rows of steps: a data set in the same folder is nothing that was sampled.
    """
    if not path.is_dir() or not mapped.recognises(path):
        return run
    try:
        rows = mapped.open_run(path)
    except RLMonError:
        return run
    if not mapped.has_steps(rows):
        return run
    return dataclasses.replace(_put_together(rows, run), config={**rows.config, **run.config}, own_word=run.own_word)


def _put_together(rows: OpenedRun, beside: OpenedRun) -> OpenedRun:
    """The rows of one source with the curves of another."""
    measured = scalar_lacks(beside.scalars, beside.eval_scalars)
    return dataclasses.replace(
        rows,
        scalars=beside.scalars,
        eval_scalars=beside.eval_scalars,
        lacks={need: why for need, why in rows.lacks.items() if need not in ("entropy", "kl")} | measured,
        passed_over=beside.passed_over,
        notes=[*rows.notes, *beside.notes],
    )


def _settings_beside(found: Sequence[tuple[Reader, Path]]) -> Mapping[str, Any]:
    """The trainer's settings as the first tracker kept them; empty where none can be read."""
    for tracker in (wandb, trackio):
        for place in (place for one, place in found if one is tracker):
            with contextlib.suppress(RLMonError):
                config: Mapping[str, Any] = tracker.settings(place)
                if config:
                    return config
    return {}


def _trained_into_before(found: Sequence[tuple[Reader, Path]]) -> Iterator[str]:
    """What a tracker in an output folder knows of other runs into it, whose completions TRL overwrites by step."""
    for module, place in found:
        if module is tensorboard and (runs := tensorboard.runs_at(place)):
            yield (
                f"{len(runs)} separate runs were trained into this folder, by its event files. TRL names completions "
                "by the step alone: those of an earlier run are overwritten as far as the newest went, and mixed in "
                "beyond. Give each run an output_dir of its own."
            )


def _by_name(path: Path, name: str, tools: Sequence[Reader]) -> OpenedRun:
    for one in (*tools, *OF_FILES):
        if name == one.NAME:
            return one.open_run(_place(one, path) or path)
    if name in preset_names():
        return mapped.open_run(path, preset=name)
    raise ReadError(f"There is no reader {name!r}; there are {', '.join(names(tools))}.")


def _place(module: Reader, path: Path) -> Path | None:
    """Where at or below ``path`` the module finds its run; ``None``: nowhere."""
    if module.recognises(path):
        return path
    for name in KEPT_IN.get(module.NAME, ()):
        place = path / name
        if place.is_dir() and inside(path, place) and module.recognises(place):
            return place
    return None


def _relative(path: Path, place: Path) -> str:
    return "in the same folder" if place == path else f"in {place.relative_to(path)}/"


def _refusal_of_pickles(path: Path) -> str:
    return (
        f"{path.name!r} is a pickle by its name ({path.suffix}). Unpickling runs code of whoever wrote the file, so "
        "rlmon does not read it. Write the rows as JSONL or Parquet and name their columns with --map."
    )


def _nothing_readable(path: Path) -> str:
    if path.is_file():
        if not path.stat().st_size:
            return f"{path.name!r} is empty (0 bytes): nothing was written into it, or the copy failed."
        return f"{path.name!r} is no run that rlmon knows. Readable are {READABLE}. {HOW}"
    try:
        found = sorted(entry.name for entry in path.iterdir())
    except OSError as problem:
        return f"{str(path)!r} cannot be read: {problem}."
    if not found:
        return f"{str(path)!r} is empty. Readable are {READABLE}."
    if all((path / name).is_file() and not (path / name).stat().st_size for name in found):
        are = f"Its {len(found)} files are" if len(found) > 1 else f"Its only file, {found[0]!r}, is"
        return f"{str(path)!r} holds no run: {are} empty (0 bytes). Nothing was written, or the copy failed."
    if all(Path(name).suffix.lower() in PICKLES for name in found):
        return _refusal_of_pickles(path / found[0])
    shown = several([repr(name) for name in found], 8)
    return f"{str(path)!r} holds no run that rlmon knows, but {shown}. Readable are {READABLE}. {HOW}"
