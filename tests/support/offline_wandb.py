"""Reads a W&B offline run back from the file that W&B itself wrote."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

BLOCK_BYTES = 32_768


def records(path: Path) -> Iterator[Any]:
    """The protobuf records of a ``.wandb`` file: LevelDB's log format after a header of 7 bytes."""
    from wandb.proto import wandb_internal_pb2

    content = path.read_bytes()
    assert content[:4] == b":W&B"
    position, whole = 7, b""
    while position + 7 <= len(content):
        left = BLOCK_BYTES - position % BLOCK_BYTES
        if left < 7:
            position += left
            continue
        _crc, length, kind = struct.unpack("<IHB", content[position : position + 7])
        if kind == 0 and length == 0:
            position += left
            continue
        part = content[position + 7 : position + 7 + length]
        if len(part) < length:
            return  # still being written
        whole += part
        position += 7 + length
        if kind in (1, 4):  # the only part, the last part
            record = wandb_internal_pb2.Record()
            record.ParseFromString(whole)
            yield record
            whole = b""


@dataclass
class Read:
    rows: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    step_metrics: dict[str, str] = field(default_factory=dict)
    alerts: list[tuple[str, str, str]] = field(default_factory=list)


def read_run(folder: Path) -> Read:
    """The one run below ``folder``."""
    (read,) = read_files(folder)
    return read


def read_files(folder: Path) -> list[Read]:
    """Each run below ``folder``, or each attempt of one, in order of time."""
    return [read_file(path) for path in sorted(folder.glob("wandb/offline-run-*/*.wandb"))]


def read_file(path: Path) -> Read:
    # W&B's own process writes the end of the file some milliseconds after finish() has returned.
    patience = time.monotonic() + 30
    while not any(record.HasField("exit") for record in records(path)):
        assert time.monotonic() < patience, "W&B did not finish its file"
        time.sleep(0.02)
    read = Read()
    for record in records(path):
        for item in record.history.item:
            if not read.rows or read.rows[-1].get("_step") != record.history.step.num:
                read.rows.append({"_step": record.history.step.num})
            read.rows[-1][item.key or "/".join(item.nested_key)] = json.loads(item.value_json)
        for item in record.summary.update:
            read.summary[item.key or "/".join(item.nested_key)] = json.loads(item.value_json)
        for item in (*record.run.config.update, *record.config.update):
            read.config[item.key] = json.loads(item.value_json)
        if record.HasField("metric"):
            read.step_metrics[record.metric.glob_name or record.metric.name] = record.metric.step_metric
        if record.HasField("alert"):
            read.alerts.append((record.alert.title, record.alert.level, record.alert.text))
    return read
