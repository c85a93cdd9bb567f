"""Completions to look at, of an rlmon log or of any run that has a reader; and how one is printed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from rlmon.audit.features import Reader, column, text_key
from rlmon.audit.run import OpenedRun
from rlmon.errors import ReadError, RunLogError
from rlmon.metrics.formats import ModeSet
from rlmon.printable import one_line
from rlmon.report.phrases import number
from rlmon.runlog import Run

LINE_CHARACTERS = 2_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Filters:
    """Which completions are wanted; without any of the first four those of the newest step."""

    step: int | None = None
    prompt: str | None = None
    """A ``prompt_id`` or the beginning of one."""
    mode: str | None = None
    template: str | None = None
    """The short name of a template, as `template_label` gives it, or the beginning of one."""
    limit: int = 20

    @property
    def newest(self) -> bool:
        """Whether the newest step is meant."""
        return self.step is None and self.prompt is None and self.mode is None and self.template is None


@dataclass(kw_only=True, slots=True)
class Found:
    """At most ``limit`` rows that fit, as mappings, and what there was beside them."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    fitting: int = 0
    modes: Counter[str] = field(default_factory=Counter)
    """Of all completions of this step and prompt, whatever their mode and template."""


def template_label(key: int | None) -> str:
    """Short name of a template, the one that an audit shows: equal for equal templates of one run."""
    return "-" if key is None or key < 0 else f"{key & 0xFFFFFFFF:08x}"


def of_log(run: Run, filters: Filters, *, all_attempts: bool = False) -> Found:
    """Rows of an rlmon log. Raises ``RunLogError`` where it holds none."""
    table = run.rollouts(all_attempts=all_attempts)
    if table.num_rows == 0:
        raise RunLogError(f"{run.path} holds no completions yet. They are written at each generation.")
    step = filters.step
    if filters.newest:
        step = pc.max(pc.filter(table["step"], pc.equal(table["split"], "train"))).as_py()
        step = pc.max(table["step"]).as_py() if step is None else step
    found = Found()
    _collect(found, table, filters, step)
    return found


def of_run(run: OpenedRun, filters: Filters) -> Found:
    """Rows of any run, read shard by shard. Raises ``ReadError`` where it holds no completions."""
    if not run.shards:
        reason = run.lacks.get("completions", "its source holds none")
        raise ReadError(f"{run.path} has no completions to show: {reason}.")
    modes = ModeSet.build()
    features = Reader(modes)
    found = Found()
    newest: int | None = None
    # The newest step lies in the last shard that has rows; other filters need all of them.
    for shard in reversed(run.shards) if filters.newest else run.shards:
        for batch in shard.read():
            rows = batch.rows
            step = filters.step
            if rows.num_rows and filters.newest:
                step = pc.max(rows["step"]).as_py()
                if newest is not None and step < newest:
                    continue
                if newest is None or step > newest:
                    newest, found = step, Found()
            if step is not None:
                rows = rows.filter(pc.equal(rows["step"], step))
            if rows.num_rows:
                _collect(found, _with_features(rows, features, modes), filters, step)
        if newest is not None:
            break
    return found


def _with_features(rows: pa.Table, reader: Reader, modes: ModeSet) -> pa.Table:
    """The rows with mode, template and identity of the prompt, the same that an audit shows."""
    read = reader.features(rows)
    columns: dict[str, Any] = {
        "mode": pa.array([modes.names[code] if code >= 0 else "not known" for code in read.mode.tolist()]),
        "template_key": pa.array(read.template.tolist(), type=pa.int64()),
    }
    if column(rows, "prompt_id") is None and "prompt" in rows.column_names:
        prompts = rows["prompt"].to_pylist()
        columns["prompt_id"] = pa.array([None if text is None else f"{text_key(text):016x}" for text in prompts])
        if "prompt_id" in rows.column_names:
            rows = rows.drop_columns(["prompt_id"])
    for name, values in columns.items():
        if name not in rows.column_names:
            rows = rows.append_column(name, values)
    return rows


def _collect(found: Found, table: pa.Table, filters: Filters, step: int | None) -> None:
    if step is not None:
        table = table.filter(pc.equal(table["step"], step))
    if filters.prompt is not None:
        if "prompt_id" not in table.column_names:
            return
        table = table.filter(pc.fill_null(pc.starts_with(table["prompt_id"], filters.prompt), False))
    found.modes.update(table["mode"].to_pylist())
    if filters.mode is not None:
        table = table.filter(pc.equal(table["mode"], filters.mode))
    if filters.template is not None:
        wanted = filters.template
        table = table.filter(
            pa.array([template_label(k).startswith(wanted) for k in table["template_key"].to_pylist()])
        )
    found.fitting += table.num_rows
    found.rows += table.slice(0, max(filters.limit - len(found.rows), 0)).to_pylist()


def render(row: Mapping[str, Any]) -> str:
    """One completion: a head line, then prompt and completion with a mark before every line."""
    return "\n".join(_lines(row))


def _lines(row: Mapping[str, Any]) -> Iterator[str]:
    place = [f"step {row['step']}"]
    if "round" in row:
        place += [f"round {row['round']}", one_line(row["split"], 10), f"row {row['global_row']}"]
    else:
        place.append(one_line(row["split"], 10))
        if row.get("group") is not None:
            place.append(f"group {one_line(row['group'], 24)}")
    place.append(f"prompt {(one_line(row.get('prompt_id') or '-'))[:12]}")
    if row.get("source") is not None:
        place.append(f"source {one_line(row['source'], 40)}")
    place.append(f"mode {one_line(row['mode'], 40)}")
    place.append(f"template {template_label(row.get('template_key'))}")
    place.append(f"reward {number(row.get('reward'))}")
    place.append(f"advantage {number(row.get('advantage'))}")
    if row.get("completion_tokens") is not None:
        place.append(f"tokens {row['completion_tokens']}")
    if row.get("truncated"):
        place.append("truncated")
    yield f"== {' '.join(place)}"
    for name in ("prompt", "completion"):
        text = row.get(name)
        if text is None:
            why = " (rlmon_store_text or rlmon_text_sample_per_round)" if "round" in row else ""
            yield f"{name}: not stored{why}"
            continue
        yield f"{name}:"
        # A mark before every line: no completion can pass for a line of ours.
        for line in text.split("\n"):
            yield f"  | {one_line(line, LINE_CHARACTERS)}"
    yield ""
