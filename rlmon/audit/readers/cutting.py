"""Files cut into shards between their steps."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import pyarrow.parquet as pq

import rlmon.audit.readers.columns as columns
import rlmon.audit.readers.folder as folder
from rlmon.audit.readers.files import MappedShard
from rlmon.audit.readers.layout import Part, Spec, format_of, whole
from rlmon.audit.readers.parsing import walk
from rlmon.audit.readers.raw import BLOCK_BYTES, LINE_BYTES, record_of
from rlmon.audit.run import stretches

SHARD_FILES = 256


def plan(spec: Spec, files: Sequence[Part], notes: list[str]) -> list[MappedShard]:
    """Shards of about ``BLOCK_BYTES``, cut between steps."""
    if not files:
        return []
    if spec.step_from_name:
        return _grouped(spec, sorted(files, key=lambda part: part.step or 0), lambda a, b: a.step != b.step)
    if "step" not in spec.columns:
        # All rows are step 0, which lies in one shard.
        return [MappedShard(parts=tuple(files), spec=spec)]
    if len(files) > 1:
        firsts = [_first_step(part, spec) for part in files]
        known = [first for first in firsts if first is not None]
        if len(set(known)) == len(known):
            order = sorted(range(len(files)), key=lambda i: (firsts[i] is not None, firsts[i] or 0))
            return _grouped(spec, [files[i] for i in order], lambda _a, _b: True)
        notes.append("Several files begin with the same step and are read together, in order of name.")
        return [MappedShard(parts=tuple(files), spec=spec)]
    kind, packed = format_of(files[0].name)
    if kind == "jsonl" and not packed:
        return _grouped(spec, _cut_lines(files[0], spec, notes), lambda _a, _b: True)
    if kind == "parquet":
        return _grouped(spec, _cut_row_groups(files[0], spec), lambda _a, _b: True)
    return [MappedShard(parts=tuple(files), spec=spec)]


def _grouped(spec: Spec, parts: Sequence[Part], may_cut: Callable[[Part, Part], bool]) -> list[MappedShard]:
    groups = stretches(
        parts, lambda part: part.bytes, most=BLOCK_BYTES * 1.25, most_pieces=SHARD_FILES, may_cut=may_cut
    )
    return [MappedShard(parts=group, spec=spec) for group in groups]


def _first_step(part: Part, spec: Spec) -> int | None:
    records = folder.probe(part, 1)
    return whole(walk(records[0], spec.columns["step"])) if records else None


def _cut_lines(part: Part, spec: Spec, notes: list[str]) -> list[Part]:
    """The file cut about every ``BLOCK_BYTES`` where the next line has another step than the one before.

    Steps that fall from one cut to the next mean that steps recur; then the file stays whole.
    """
    cuts = [0]
    last = -1
    with open(part.path, "rb") as file:
        while cuts[-1] + BLOCK_BYTES < part.end:
            file.seek(cuts[-1] + BLOCK_BYTES)
            file.readline(LINE_BYTES)
            step = None
            cut = None
            while file.tell() < part.end:
                at = file.tell()
                line = file.readline(LINE_BYTES)
                record = record_of(line)
                here = None if record is None else whole(walk(record, spec.columns["step"]))
                if here is None:
                    continue
                if step is not None and here != step:
                    cut, step = at, here
                    break
                step = here
                if at > cuts[-1] + 16 * BLOCK_BYTES:
                    break
            if cut is None:
                if file.tell() >= part.end:
                    break
                # One step of more than this is read in one shard, in blocks.
                return [part]
            if step is None or step <= last:
                notes.append("Steps are not in order in the file, so it is read by one process.")
                return [part]
            last = step
            cuts.append(cut)
    ends = [*cuts[1:], part.end]
    return [
        dataclasses.replace(part, start=start, end=end, bytes=end - start)
        for start, end in zip(cuts, ends, strict=True)
    ]


def _cut_row_groups(part: Part, spec: Spec) -> list[Part]:
    """Row groups of a Parquet file, kept together where their statistics do not tell their steps apart."""
    whole_file = [dataclasses.replace(part, start=0, end=-1)]
    try:
        with pq.ParquetFile(part.path) as file:
            groups = [file.metadata.row_group(index) for index in range(file.num_row_groups)]
            paths = [groups[0].column(index).path_in_schema for index in range(groups[0].num_columns)] if groups else []
            if spec.columns["step"] not in paths:
                return whole_file
            at = paths.index(spec.columns["step"])
            ranges = []
            for group in groups:
                statistics = group.column(at).statistics
                if statistics is None or not statistics.has_min_max or not isinstance(statistics.min, (int, float)):
                    return whole_file
                ranges.append((statistics.min, statistics.max))
    except columns.UNREADABLE:
        return whole_file
    parts: list[Part] = []
    begin, top = 0, ranges[0][1]
    for index, (low, high) in enumerate(ranges):
        if index and low > top:
            parts.append(dataclasses.replace(part, start=begin, end=index))
            begin = index
        top = max(top, high)
    parts.append(dataclasses.replace(part, start=begin, end=len(groups)))
    return [
        dataclasses.replace(cut, bytes=sum(group.total_byte_size for group in groups[cut.start : cut.end]))
        for cut in parts
    ]
