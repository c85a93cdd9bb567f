"""The TensorBoard sink, read back with TensorBoard's own reader."""

from __future__ import annotations

import dataclasses
import html
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rlmon.metrics.catalog import METRICS
from rlmon.records import Histogram
from rlmon.runlog import RunLogWriter, next_attempt
from rlmon.sinks.tables import MAX_TABLE_ROWS
from rlmon.sinks.tensorboard import TensorBoardSink, charts

pytest.importorskip("tensorboard")
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator as PluginEventAccumulator
from torch.utils.tensorboard import SummaryWriter

Make = Callable[..., Any]


def read(folder: Path) -> Any:
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0, "histograms": 0})
    events.Reload()
    return events


def texts(events: Any, tag: str) -> list[tuple[int, str]]:
    return [(e.step, e.tensor_proto.string_val[0].decode()) for e in events.Tensors(f"{tag}/text_summary")]


def test_every_chart_of_the_story_finds_what_is_logged(tmp_path: Path, header: Make, step: Make) -> None:
    writer = SummaryWriter(str(tmp_path))
    sink = TensorBoardSink(writer)
    sink.open(header())
    sink.record(step(1, metrics={metric.name.replace("<mode>", "json"): 0.5 for metric in METRICS}), {})
    sink.close()
    writer.close()
    logged = read(tmp_path).Tags()["scalars"]
    wanted = [tag for part in charts().values() for _, tags in part.values() for tag in tags]
    assert len(wanted) > 40
    assert [tag for tag in wanted if not any(re.search(tag, name) for name in logged)] == []


def test_scalars_and_histograms_once_a_step(tmp_path: Path, header: Make, step: Make) -> None:
    writer = SummaryWriter(str(tmp_path))
    sink = TensorBoardSink(writer)
    sink.open(header())
    for number in (1, 2, 3):
        metrics = {"rlmon/entropy/mean": number / 2, "rlmon/kl/mean": None}
        sink.record(
            step(number, metrics=metrics, faults={"sinks": 2}), {"rlmon/x": Histogram(edges=[0, 1, 4], counts=[3, 1])}
        )
    sink.close()
    writer.close()
    events = read(tmp_path)
    assert [(e.step, e.value) for e in events.Scalars("rlmon/entropy/mean")] == [(1, 0.5), (2, 1.0), (3, 1.5)]
    assert [e.value for e in events.Scalars("rlmon/faults")] == [2, 2, 2]
    assert [e.value for e in events.Scalars("rlmon/detectors_failed")] == [0, 0, 0]
    assert "rlmon/kl/mean" not in events.Tags()["scalars"]  # not measured is absent, not 0
    shown = events.Histograms("rlmon/x")
    assert [e.step for e in shown] == [1, 2, 3]
    value = shown[0].histogram_value
    assert (list(value.bucket_limit), list(value.bucket), value.num, value.sum) == ([1, 4], [3, 1], 4, 4.0)


def test_findings_and_the_verdict_are_text(tmp_path: Path, header: Make, step: Make, finding: Make) -> None:
    writer = SummaryWriter(str(tmp_path))
    sink = TensorBoardSink(writer)
    sink.open(header())
    sink.record(step(1), {})
    sink.judged()
    sink.record(step(2), {})
    sink.finding(finding(step=2, severity="warn"))
    sink.finding(finding(step=3, severity="warn"))
    sink.finding(finding(step=4, severity="fail"))
    sink.close()
    writer.close()
    events = read(tmp_path)
    said = texts(events, "rlmon/findings/format-collapse")
    assert [number for number, _ in said] == [2, 3, 4]
    assert said[-1][1].startswith("**FAIL** format&#45;collapse: effective formats fell to 2&#46;1")
    told = [(n, t.split(":")[0]) for n, t in texts(events, "rlmon/verdict")]
    assert told == [(1, "insufficient"), (2, "pass"), (2, "warn"), (4, "fail")]


def test_text_of_the_run_is_neither_markup_nor_endless(tmp_path: Path, header: Make) -> None:
    writer = SummaryWriter(str(tmp_path))
    sink = TensorBoardSink(writer)
    sink.open(header())
    hostile = "a | b\n\n# big <script>x</script> [l](javascript:1) \x1b[2J " + "y" * 10_000
    row = {
        "mode": "prose", "mode_change": "dying", "reward": 1 / 3, "advantage": None, "completion_tokens": 7,
        "truncated": True, "prompt": " What is 1 * 2?\n", "completion": hostile,
    }  # fmt: skip
    sink.table(5, [row] * 100)
    sink.close()
    writer.close()
    [(number, text)] = texts(read(tmp_path), "rlmon/samples")
    assert number == 5
    assert len(text) < MAX_TABLE_ROWS * 7_000
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of what TensorBoard brings along
        from tensorboard.plugin_util import markdown_to_safe_html
    shown = markdown_to_safe_html(text)
    about, prompt, completion = (html.unescape(one) for one in re.findall("<p>(.*?)</p>", shown)[:3])
    assert about == "<strong>prose</strong>, dying, reward 0.3333, 7 tokens, truncated"
    assert prompt == "<em>What is 1 * 2?</em>"
    assert completion.startswith(r"a | b\n\n# big <script>x</script> [l](javascript:1) \x1b[2J yyy")
    assert len(re.findall("<blockquote>", shown)) == MAX_TABLE_ROWS
    assert set(re.findall(r"<(\w+)", shown)) == {"p", "strong", "em", "blockquote"}


def test_nothing_is_written_while_the_trainer_has_no_writer(header: Make, step: Make, finding: Make) -> None:
    sink = TensorBoardSink(lambda: None)
    sink.open(header())
    sink.record(step(1), {})
    sink.finding(finding())
    sink.table(1, [{}])
    sink.close()


def trained(folder: Path, log: Path, header: Make, step: Make, steps: range, resumed_at: int | None = None) -> None:
    """An attempt of a run: a log call of the trainer's and one of ours a step, into an event file of its own."""
    about = dataclasses.replace(
        header(), attempt=next_attempt(log), attempt_kind="fresh" if resumed_at is None else "resumed"
    )
    kept = RunLogWriter.open(log, about, rank=0, resume=resumed_at is not None, from_step=resumed_at)
    writer = SummaryWriter(str(folder), filename_suffix=f".{about.attempt}")
    writer.add_text("args", "{}")
    sink = TensorBoardSink(writer, log)
    sink.open(kept.header)
    for number in steps:
        sink.record(step(number, metrics={"rlmon/entropy/mean": about.attempt + number / 100}), {})
        writer.add_scalar("train/loss", number, number)
    sink.close()
    writer.close()
    kept.close()


def test_what_a_run_supersedes_that_goes_on_from_a_checkpoint_is_hidden(
    tmp_path: Path, header: Make, step: Make
) -> None:
    folder, log = tmp_path / "tb", tmp_path / "log"
    trained(folder, log, header, step, range(1, 6))
    trained(folder, log, header, step, range(4, 8), resumed_at=3)
    for accumulator in (EventAccumulator, PluginEventAccumulator):
        events = accumulator(str(folder), {"scalars": 0, "tensors": 0})
        events.Reload()
        if accumulator is EventAccumulator:
            assert [(e.step, round(e.value, 2)) for e in events.Scalars("rlmon/entropy/mean")] == [
                (1, 0.01), (2, 0.02), (3, 0.03), (4, 1.04), (5, 1.05), (6, 1.06), (7, 1.07)
            ]  # fmt: skip
            assert [e.step for e in events.Scalars("train/loss")] == [1, 2, 3, 4, 5, 6, 7]
        else:
            assert [e.step for e in events.Tensors("rlmon/entropy/mean")] == [1, 2, 3, 4, 5, 6, 7]
            assert [e.step for e in events.Tensors("train/loss")] == [1, 2, 3, 4, 5, 6, 7]
        assert [e.step for e in events.Tensors("args/text_summary")] == [0, 0]  # what has no step stays
