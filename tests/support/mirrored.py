"""What a tracker's files hold, beside the run log: every metric of each step once, with its value and no other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import local_trackio
import pytest
from offline_wandb import Read

import rlmon
import rlmon.audit.readers.tensorboard as tensorboard_reader
import rlmon.audit.readers.trackio as trackio_reader
import rlmon.audit.readers.wandb as wandb_reader
from rlmon.metrics.catalog import lookup

OTHERS = {"rlmon/faults", "rlmon/shed_rows", "rlmon/detectors_failed", "rlmon/overhead_seconds"} | {
    "rlmon/base_forward_seconds"
}


def measured(log: Path) -> dict[tuple[int, str], float]:
    """What the log has, by step and name."""
    run = rlmon.open_run(log)
    found = {(r.step, name): v for r in run.step_records() for name, v in r.metrics.items() if v is not None}
    assert all(lookup(name) is not None for _, name in found)
    assert len(found) > 40
    return found


def ours(read: Read, kind: str) -> Counter[tuple[int, str]]:
    """How often each key of ours stands at each step, of scalars (``kind`` empty) or of objects of a type."""
    found: Counter[tuple[int, str]] = Counter()
    for row in read.rows:
        objects = {key.removesuffix("/_type"): str(value) for key, value in row.items() if key.endswith("/_type")}
        inside = tuple(f"{key}/" for key in objects)
        names = [key for key, of in objects.items() if of == kind] if kind else [
            key for key in row if not key.startswith(inside)
        ]  # fmt: skip
        found.update((row["train/global_step"], name) for name in names if name.startswith("rlmon/"))
    return found


def check_wandb(log: Path, read: Read) -> None:
    """Every metric that the log has, once per step and with its value; histograms each step; nothing else."""
    scalars = ours(read, "")
    assert set(scalars.values()) == {1}
    expected = measured(log)
    assert {key for key in scalars if key[1] not in OTHERS} == set(expected)
    at: dict[int, dict[str, Any]] = {step: {} for step, _ in expected}
    for row in read.rows:
        if row.get("train/global_step") in at:
            at[row["train/global_step"]] |= row
    for (step, name), value in expected.items():
        assert at[step][name] == pytest.approx(value, rel=1e-6), name
    histograms = ours(read, "histogram")
    assert set(histograms.values()) == {1}
    assert {step for step, _ in histograms} == set(at)
    assert len({name for _, name in histograms}) == 4
    for row in at.values():
        for name in (key.removesuffix("/_type") for key, value in row.items() if value == "histogram"):
            assert len(row[f"{name}/bins"]) == len(row[f"{name}/values"]) + 1
            assert sum(row[f"{name}/values"]) > 0
    assert read.step_metrics["rlmon/*"] == "train/global_step"


def check_wandb_reader(folder: Path, log: Path) -> None:
    """Our own reader finds the same in the folder ``wandb``."""
    _check_curves(wandb_reader.open_run(folder).scalars, log, 1e-6)


def check_tensorboard(folder: Path, log: Path) -> None:
    """The same of TensorBoard's files, by its own reader and by ours."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0, "histograms": 0})
    events.Reload()
    tags = events.Tags()
    expected = measured(log)
    assert {tag for tag in tags["scalars"] if tag.startswith("rlmon/")} - OTHERS == {name for _, name in expected}
    for name in {name for _, name in expected}:
        shown = [(event.step, event.value) for event in events.Scalars(name)]
        assert [step for step, _ in shown] == sorted(step for step, of in expected if of == name), name
        assert [value for _, value in shown] == pytest.approx(
            [expected[at, name] for at, _ in shown], rel=1e-5, abs=1e-6
        )
    assert len(tags["histograms"]) == 4
    steps = sorted({step for step, _ in expected})
    histograms = {tag: [event.step for event in events.Histograms(tag)] for tag in tags["histograms"]}
    assert all(seen == sorted(set(seen)) for seen in histograms.values())
    assert {step for seen in histograms.values() for step in seen} == set(steps)
    # The trainer's own, once too.
    assert [event.step for event in events.Scalars("train/loss")] == steps
    assert not [tag for tag in tags["scalars"] if tag.startswith("train/rlmon/")]
    findings = {f"rlmon/findings/{finding.detector}/text_summary" for finding in rlmon.open_run(log).findings}
    assert findings | {"rlmon/verdict/text_summary", "rlmon/samples/text_summary"} <= set(tags["tensors"])
    _check_curves(tensorboard_reader.open_run(folder).scalars, log, 1e-5)


def check_trackio(base: Path, log: Path) -> local_trackio.Read:
    """The same of trackio's data base, by hand and by our reader; what is there, of the newest attempt at each step.

    trackio takes nothing back, either: of steps that were made again the older calls are still there.
    """
    found = local_trackio.read(base)
    found.rows = local_trackio.newest(found.rows)
    expected = measured(log)
    kinds: dict[str, Counter[tuple[int, str]]] = {"": Counter()}
    for row in found.rows:
        for name, value in row.items():
            if name.startswith("rlmon/") and not isinstance(value, str):
                assert row["train/global_step"] == row["_step"]
                kind = value["_type"] if isinstance(value, dict) else ""
                kinds.setdefault(kind, Counter())[row["_step"], name] += 1
                assert kind or (row["_step"], name) not in expected or value == expected[row["_step"], name], name
    assert {count for counted in kinds.values() for count in counted.values()} == {1}
    assert {key for key in kinds[""] if key[1] not in OTHERS} == set(expected)
    histograms = set(kinds["trackio.histogram"])
    assert {step for step, _ in histograms} == {step for step, _ in expected}
    assert len({name for _, name in histograms}) == 4
    for name in {name for _, name in histograms}:
        for _, value in found.of(name):
            assert len(value["bins"]) == len(value["values"]) + 1
            assert sum(value["values"]) > 0
    # The trainer's own, once too.
    assert [row["train/global_step"] for row in found.rows if "train/loss" in row] == sorted({s for s, _ in expected})
    assert not [name for row in found.rows for name in row if name.startswith("train/rlmon/")]
    _check_curves(trackio_reader.open_run(base).scalars, log, 1e-12)
    return found


def _check_curves(curves: Mapping[str, Any], log: Path, rel: float) -> None:
    expected = measured(log)
    for name in {name for _, name in expected}:
        shown = [(int(step), value) for step, value in curves[name]]
        assert [step for step, _ in shown] == sorted(step for step, of in expected if of == name), name
        assert [v for _, v in shown] == pytest.approx([expected[at, name] for at, _ in shown], rel=rel, abs=1e-6), name
