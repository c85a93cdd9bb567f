"""The monitor by hand, as any other training loop would use it."""

from __future__ import annotations

import io
import math
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from page_parts import data_of
from rich.console import Console

import rlmon
import rlmon.detectors as detectors
from rlmon.audit.readers import open_source
from rlmon.console import one_thing
from rlmon.controller import load_policy
from rlmon.errors import RunLogError
from rlmon.metrics.catalog import METRICS
from rlmon.metrics.families import CRITIC
from rlmon.metrics.family import dtype_of
from rlmon.metrics.step import Families
from rlmon.monitor import About, Monitor, Ranks, Resume, StrictError, opening
from rlmon.records import Action, Finding, Histogram, RolloutBatch, StepRecord
from rlmon.report.live import View
from rlmon.report.watch import frame
from rlmon.sinks import Sink

TEXTS = ["print(7+9)", "16", '{"answer": 16}', "\\boxed{16}"]


def batch(number: int, **changes: Any) -> RolloutBatch:
    """Two prompts, four completions each, in four formats."""
    columns: dict[str, Any] = {
        "round": number,
        "split": "train",
        "step": number + 1,
        "group_size": 4,
        "global_row": range(8),
        "prompt_id": ["a"] * 4 + ["b"] * 4,
        "source": ["all"] * 8,
        "prompts": ["7+9?"] * 8,
        "completions": TEXTS * 2,
        "reward": [1.0, 0.0, 1.0, 1.0] * 2,
    }
    return RolloutBatch(**(columns | changes))


def test_a_loop_of_ones_own(tmp_path: Path) -> None:
    monitor = rlmon.Monitor(rlmon.RLMonConfig(rlmon_console=False), directory=tmp_path / "run", group_size=4)
    seen: list[int] = []
    monitor.on_record.append(lambda record, findings: seen.append(record.step))
    for step in range(3):
        number = monitor.next_round("train")
        monitor.observe(batch(number))
        # Half the tokens have 1 nat, half 3: the mean is 2.
        entropies = torch.tensor([1.0, 3.0]).repeat(8, 1)
        monitor.observe_tokens(
            split="train",
            rows_B2=[(number, row) for row in range(8)],
            logps_BT=-entropies,
            entropies_BT=entropies,
            mask_BT=torch.ones(8, 2),
        )
        record = monitor.end_step(step + 1)
        assert record is not None
        # Four formats in equal shares: exp(ln 4) = 4.
        assert record.metrics["rlmon/format/effective"] == pytest.approx(4.0)
        assert record.metrics["rlmon/entropy/mean"] == pytest.approx(2.0)
        assert record.metrics["rlmon/health/reward_mean"] == pytest.approx(0.75)
        assert record.missing["rlmon/kl/mean"] == "no base model was compared"
        assert not record.faults
    monitor.close()
    monitor.close()
    run = rlmon.open_run(tmp_path / "run")
    assert seen == [1, 2, 3]
    assert run.rollouts().num_rows == 24
    assert run.header.trainer == "manual"


def test_nothing_observed_is_nothing_measured(tmp_path: Path) -> None:
    monitor = rlmon.Monitor(rlmon.RLMonConfig(rlmon_console=False), directory=tmp_path / "run", group_size=4)
    record = monitor.end_step(1)
    assert record is not None
    assert record.metrics["rlmon/format/effective"] is None
    assert record.missing["rlmon/format/effective"] == "no new generation was trained in this step"
    assert record.completions == 0
    assert not record.faults


def test_a_batch_that_is_no_table_is_a_fault_not_an_error(tmp_path: Path) -> None:
    monitor = rlmon.Monitor(rlmon.RLMonConfig(rlmon_console=False), directory=tmp_path / "run", group_size=4)
    monitor.observe(batch(0, completions=TEXTS))
    monitor.observe_tokens(
        split="train",
        rows_B2=[(7, 0)],
        logps_BT=None,
        entropies_BT=torch.ones(1, 2),
        mask_BT=torch.ones(1, 2),
        loss=torch.tensor(math.nan),
    )
    record = monitor.end_step(1)
    assert record is not None
    assert record.faults["metrics.features"] == 1
    assert record.faults["capture.tokens"] == 1, "tokens of a round that was never observed"
    assert record.metrics["rlmon/health/non_finite"] == 1
    assert [finding.detector for finding in monitor.findings] == ["non-finite"]
    # What was handed in is in the log or reported as shed.
    assert rlmon.open_run(tmp_path / "run").rollouts().num_rows + monitor.writer.shed_rows == 8


def test_an_evaluation_uses_up_nothing_of_the_next_step(tmp_path: Path) -> None:
    monitor = rlmon.Monitor(rlmon.RLMonConfig(rlmon_console=False), directory=tmp_path / "run", group_size=4)
    monitor.count_non_finite(1)  # the trainer logs, then evaluates
    monitor.fault("sinks", "broken on purpose")
    monitor.end_eval(1)
    record = monitor.end_step(2)
    assert record is not None
    assert record.metrics["rlmon/health/non_finite"] == 1
    assert record.faults == {"sinks": 1}
    after = monitor.end_step(3)
    assert after is not None
    assert after.metrics["rlmon/health/non_finite"] is None, "nothing was observed"
    assert after.faults == {}


def test_acts_go_to_the_log_and_then_to_the_sinks_and_a_sink_that_fails_is_a_fault(tmp_path: Path) -> None:
    class Heard(Sink):
        def __init__(self, error: Exception | None = None) -> None:
            self.seen: list[Action] = []
            self.error = error

        def action(self, action: Action) -> None:
            if self.error is not None:
                raise self.error
            self.seen.append(action)

    policy = load_policy({"rules": {"bound": {"when": "always", "do": "winsorise"}}})
    config = rlmon.RLMonConfig(rlmon_console=False)
    monitor = rlmon.Monitor(config, directory=tmp_path / "run", group_size=4, policy=policy)
    sink = Heard()
    monitor.sinks += [Heard(ValueError("odd")), sink]
    for step in (1, 2):
        monitor.observe(batch(step))
        record = monitor.end_step(step)
    assert record is not None
    monitor.close()
    assert [(act.rule, act.phase, act.new) for act in sink.seen[:2]] == [
        ("bound", "decided", 2.5),
        ("bound", "applied", 2.5),
    ]
    assert sink.seen == rlmon.open_run(tmp_path / "run").actions
    # The other sink raised at the first line of step 1 and was switched off; the record of the next step has it.
    assert record.faults == {"sinks": 1}
    notes = [event.payload["text"] for event in rlmon.open_run(tmp_path / "run").events if event.kind == "note"]
    assert "Heard is switched off from step 1 on: ValueError: odd" in notes


class Shown(Sink):
    """Keeps what it is given."""

    def __init__(self) -> None:
        self.histograms: list[Mapping[str, Histogram]] = []
        self.tables: dict[int, Sequence[Mapping[str, Any]]] = {}

    def record(self, step: StepRecord, histograms: Mapping[str, Histogram]) -> None:
        self.histograms.append(histograms)

    def table(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        self.tables[step] = rows


@pytest.mark.parametrize(
    ("settings", "tables"),
    [
        ({"rlmon_table_every": 3}, [1, 4, 7]),
        ({"rlmon_table_every": 0}, []),
        ({"rlmon_store_text": "hash"}, []),
        ({"rlmon_store_text": "off"}, []),
    ],
)
def test_tables_are_due_every_so_many_steps_and_no_text_leaves_unasked(
    tmp_path: Path, settings: dict[str, Any], tables: list[int]
) -> None:
    config = rlmon.RLMonConfig(rlmon_console=False, **settings)
    monitor = rlmon.Monitor(config, directory=tmp_path, group_size=4)
    monitor.sinks.append(sink := Shown())
    for step in range(1, 8):
        monitor.observe(batch(step))
        monitor.end_step(step)
    monitor.close()
    assert list(sink.tables) == tables
    assert all(len(rows) for rows in sink.tables.values())


@pytest.mark.parametrize("text", ["full", "hash", "off"])
def test_a_sink_is_told_what_narrowed_in_words(tmp_path: Path, text: str) -> None:
    class Heard(Sink):
        def __init__(self) -> None:
            self.heard: list[tuple[str, str]] = []

        def finding(self, finding: Finding) -> None:
            self.heard.append((finding.detector, ""))

        def words(self, finding: Finding, words: str) -> None:
            self.heard.append((finding.detector, words))

    config = rlmon.RLMonConfig(rlmon_console=False, rlmon_store_text=text)
    monitor = rlmon.Monitor(config, directory=tmp_path, group_size=4)
    monitor.sinks.append(sink := Heard())
    for step in range(1, 31):
        monitor.observe(batch(step) if step < 10 else batch(step, completions=["print(7+9)"] * 8))
        monitor.end_step(step)
    monitor.close()
    assert not [event for event in rlmon.open_run(tmp_path).events if event.kind == "fault"]
    at = sink.heard.index(("format-collapse", ""))
    # Formats are counts, which are kept whatever becomes of the texts; without token ids nothing is known of openers.
    assert sink.heard[at + 1][0] == "format-collapse"
    assert re.fullmatch(r"formats: (boxed|bare|json) 25% to \d+%, .*, python 25% to \d+%", sink.heard[at + 1][1])
    assert sum(words != "" for _, words in sink.heard) >= 1


@pytest.mark.parametrize(("dry_run", "first"), [(False, "a larger kappa"), (True, 'rlmon_policy="protect"')])
def test_a_run_that_a_policy_holds_is_not_advised_to_take_one(tmp_path: Path, dry_run: bool, first: str) -> None:
    does = {"action": "mode_marginal", "modes": "format"}
    policy = load_policy({"rules": {"hold-formats": {"when": "always", "do": does, "dry_run": dry_run}}})
    config = rlmon.RLMonConfig(rlmon_console=False)
    monitor = rlmon.Monitor(config, directory=tmp_path, group_size=4, policy=policy)
    for step in range(1, 31):
        monitor.observe(batch(step) if step < 10 else batch(step, completions=["print(7+9)"] * 8))
        monitor.end_step(step)
    monitor.close()
    advice = {found.advice for found in monitor.findings if found.detector == "format-collapse"}
    assert {one_thing(said) for said in advice} == {f"Train again with {first}"}
    assert all("slows the narrowing" in said for said in advice)
    assert {
        found.advice for found in rlmon.open_run(tmp_path).findings if found.detector == "format-collapse"
    } == advice


def test_a_sink_hears_once_from_where_on_no_finding_is_a_pass(tmp_path: Path) -> None:
    class Heard(Sink):
        heard: ClassVar[list[Any]] = []

        def judged(self) -> None:
            self.heard.append("judged")

        def record(self, step: StepRecord, histograms: Mapping[str, Histogram]) -> None:
            self.heard.append(step.step)

    monitor = rlmon.Monitor(rlmon.RLMonConfig(rlmon_console=False), directory=tmp_path, group_size=4)
    monitor.sinks.append(Heard())
    bets = []
    for step in range(1, 13):
        monitor.observe(batch(step))
        monitor.end_step(step)
        [row] = [row for row in detectors.status(monitor.detector_state) if row["id"] == "format-collapse"]
        bets.append(row["bets"])
    monitor.close()
    # The first 8 rounds are the baseline.
    assert bets == [0] * 8 + [1, 2, 3, 4]
    assert Heard.heard == [*range(1, 9), "judged", *range(9, 13)]


def test_sinks_are_given_histograms_of_what_was_measured_in_at_most_64_bins(tmp_path: Path) -> None:
    monitor = rlmon.Monitor(rlmon.RLMonConfig(rlmon_console=False), directory=tmp_path, group_size=4)
    monitor.sinks.append(sink := Shown())
    monitor.observe(batch(0, completion_ids=[[1] * (9 * n + 1) for n in range(8)], advantages=[0.5, -1.5] * 4))
    monitor.end_step(1)
    monitor.end_step(2)
    monitor.close()
    shown, nothing = sink.histograms
    assert set(shown) == {"rlmon/histogram/length_tokens", "rlmon/histogram/abs_advantage"}  # no tokens were observed
    assert nothing == {}
    lengths = shown["rlmon/histogram/length_tokens"]
    assert sum(lengths.counts) == len(batch(0))
    assert len(lengths.edges) == len(lengths.counts) + 1 <= 65
    assert list(lengths.edges) == sorted(lengths.edges)
    assert lengths.counts[0] > 0
    assert lengths.counts[-1] > 0


ALL_VALUES = {metric.name for metric in METRICS if metric.name.startswith("rlmon/value/")}


def critic(tmp_path: Path, **settings: Any) -> rlmon.Monitor:
    config = rlmon.RLMonConfig(rlmon_console=False, **settings.pop("config", {}))
    return rlmon.Monitor(
        config, directory=tmp_path / "run", **({"group_size": 4, "about": About(critic=True)} | settings)
    )


def show(monitor: rlmon.Monitor, values: list[float], returns: list[float], **changes: Any) -> None:
    """One micro-batch of one row; every token counts."""
    v, r = torch.tensor([values]), torch.tensor([returns])
    given: dict[str, Any] = {
        "split": "train", "values_BT": v, "returns_BT": r, "advantages_BT": r - v, "mask_BT": torch.ones_like(v),
        "loss": torch.tensor(0.5), "clip_ratio": torch.tensor(0.25),
    }  # fmt: skip
    monitor.observe_values(**(given | changes))


def test_the_critic_of_a_step(tmp_path: Path) -> None:
    monitor = critic(tmp_path)
    show(monitor, [1.0, 2.0, 3.0], [2.0, 2.0, 5.0])
    show(monitor, [1.0], [7.0], loss=0.1, clip_ratio=None)
    record = monitor.end_step(1)
    assert record is not None
    assert {name for name in record.metrics if name.startswith("rlmon/value/")} == ALL_VALUES
    # Three tokens at 0.5 and one at 0.1: 1.6 / 4.
    assert record.metrics["rlmon/value/loss"] == pytest.approx(0.4)
    # R - V = 1, 0, 2, 6: mean 9/4, mean square 41/4, variance 83/16. R = 2, 2, 5, 7: 4, 82/4, 9/2. 1 - 83/72.
    assert record.metrics["rlmon/value/explained_variance"] == pytest.approx(1 - 83 / 72)
    assert record.metrics["rlmon/value/return_mean"] == pytest.approx(4.0)
    assert not any(name.startswith("rlmon/value/") for name in record.missing)
    after = monitor.end_step(2)
    assert after is not None
    assert {after.metrics[name] for name in ALL_VALUES} == {None}, "each step holds its own"
    assert {after.missing[name] for name in ALL_VALUES} == {"no values were observed in this step"}
    monitor.close()
    stored = rlmon.open_run(tmp_path / "run").steps.to_pylist()
    assert len(stored) == 2


def test_without_a_critic_nothing_of_it_is_there(tmp_path: Path) -> None:
    lengths: list[int] = []

    def reduce(vector: Any) -> Any:
        lengths.append(len(vector))
        return vector

    plain = critic(tmp_path / "plain", about=About(), ranks=Ranks(reduce=reduce))
    watched = critic(tmp_path / "critic", ranks=Ranks(reduce=reduce))
    records = []
    for monitor in (plain, watched):
        monitor.observe(batch(0))
        records.append(monitor.end_step(1))
        show(monitor, [1.0], [2.0])
        show(monitor, [1.0], [2.0], mask_BT=torch.ones(3, 3))  # does not fit
        records.append(monitor.end_step(2))
    without, misused, with_one, broken = records
    assert without is not None
    assert misused is not None
    assert with_one is not None
    assert broken is not None
    # Of fixed length, whatever was observed and whatever failed.
    assert lengths == [lengths[0]] * 2 + [lengths[0] + dtype_of(CRITIC.fields(())).itemsize // 8] * 2
    assert set(with_one.metrics) - set(without.metrics) == ALL_VALUES
    assert {name: with_one.metrics[name] for name in without.metrics} == dict(without.metrics)
    assert not ALL_VALUES & (set(misused.metrics) | set(misused.missing))
    # Values that nobody waits for are not lost in silence.
    assert misused.faults == {"metrics.values": 2}
    (fault,) = (event for event in rlmon.open_run(tmp_path / "plain" / "run").events if event.kind == "fault")
    assert "without About(critic=True)" in fault.payload["error"]
    assert broken.faults == {"metrics.values": 1}
    assert broken.metrics["rlmon/value/loss"] == 0.5, "the micro-batch before counts"


def test_the_critics_of_two_ranks_add_up(tmp_path: Path) -> None:
    """Rank 1's vector is kept, then added to rank 0's, as a collective would."""
    kept: list[Any] = []
    news: list[Any] = []
    first = critic(
        tmp_path,
        ranks=Ranks(
            world_size=2, reduce=lambda vector: vector + sum(kept[-1:]), share=lambda value: news.append(value) or value
        ),
    )  # fmt: skip
    second = critic(
        tmp_path,
        ranks=Ranks(rank=1, world_size=2, reduce=lambda vector: kept.append(vector) or vector, share=lambda _: news[0]),
    )
    show(second, [1.0], [7.0], loss=0.1)
    show(first, [1.0, 2.0, 3.0], [2.0, 2.0, 5.0])
    second.end_step(1)
    record = first.end_step(1)
    alone = critic(tmp_path / "alone")
    show(alone, [1.0, 2.0, 3.0], [2.0, 2.0, 5.0])
    show(alone, [1.0], [7.0], loss=0.1)
    expected = alone.end_step(1)
    assert record is not None
    assert expected is not None
    assert {name: record.metrics[name] for name in ALL_VALUES} == {name: expected.metrics[name] for name in ALL_VALUES}
    assert None not in {record.metrics[name] for name in ALL_VALUES}
    assert not record.faults


def test_values_of_an_evaluation_are_kept_apart(tmp_path: Path) -> None:
    monitor = critic(tmp_path)
    show(monitor, [1.0, 2.0, 3.0], [2.0, 2.0, 5.0])
    show(monitor, [0.0, math.nan], [8.0, 8.0], split="eval", loss=9.0)
    monitor.end_eval(1)
    record = monitor.end_step(1)
    assert record is not None
    assert record.metrics["rlmon/value/loss"] == 0.5
    assert record.metrics["rlmon/value/return_mean"] == pytest.approx(3.0)
    assert record.metrics["rlmon/health/non_finite"] is None, "the NaN was the evaluation's"
    monitor.close()
    (event,) = (event for event in rlmon.open_run(tmp_path / "run").events if event.kind == "eval")
    shown = event.payload["metrics"]
    assert shown["rlmon/value/loss"] == 9.0
    assert shown["rlmon/value/mean"] == 0.0
    assert shown["rlmon/health/non_finite"] == 1.0
    assert "rlmon/value/explained_variance" not in shown, "one finite pair: constant"


def test_non_finite_values_are_counted_where_all_others_are(tmp_path: Path) -> None:
    monitor = critic(tmp_path)
    show(monitor, [1.0, math.nan, 3.0], [2.0, 2.0, math.inf], loss=torch.tensor(math.nan))
    record = monitor.end_step(1)
    assert record is not None
    # Tokens 2 and 3 and the loss.
    assert record.metrics["rlmon/health/non_finite"] == 3
    assert record.missing["rlmon/value/loss"] == "no finite value loss"
    assert [finding.detector for finding in monitor.findings] == ["non-finite"]
    assert not record.faults


def test_a_failure_of_the_critics_side_is_a_fault_or_under_strict_an_error(tmp_path: Path) -> None:
    monitor = critic(tmp_path, config={"rlmon_strict": True})
    show(monitor, [1.0], [2.0], mask_BT=None)
    with pytest.raises(StrictError, match=r"metrics\.values"):
        monitor.end_step(1)


def test_the_screens_show_the_critic(tmp_path: Path) -> None:
    from rlmon.audit import audit
    from rlmon.report.audit import build_page

    monitor = critic(tmp_path)
    for step in range(3):
        monitor.observe(batch(step))
        show(monitor, [1.0, 2.0, 3.0], [2.0, 2.0, 5.0])
        monitor.end_step(step + 1)
    monitor.close()
    view = View(tmp_path / "run")
    while view.poll():
        pass
    stream = io.StringIO()
    Console(file=stream, width=100, highlight=False).print(frame(view, width=100, now_unix_seconds=time.time()))
    lines = {line[:18].strip(): line[18:].split() for line in stream.getvalue().splitlines()}
    # 1 - (2/3) / 2
    assert lines["explained variance"][:3] == ["0.667", "→", "0.667"]
    assert lines["value loss"][:3] == ["0.5", "→", "0.5"]
    titles = [chart["title"] for chart in data_of(build_page(audit(tmp_path / "run")))["charts"]]
    assert [title for title in titles if title.startswith("Critic: ")] == [
        "Critic: explained variance", "Critic: value loss", "Critic: values and returns", "Critic: advantages",
    ]  # fmt: skip


def test_a_log_that_rank_0_cannot_open_is_refused_on_all_ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever failed there: the others wait for what rank 0 shares."""
    news: list[Any] = []

    def damaged(*_: Any) -> int:
        raise ValueError("not what a header is")

    def monitor_of(rank: int, share: Any) -> Monitor:
        return Monitor(
            directory=tmp_path / "run",
            group_size=4,
            ranks=Ranks(rank=rank, world_size=2, reduce=lambda vector: vector, share=share),
        )

    with monkeypatch.context() as broken:
        broken.setattr(opening, "next_attempt", damaged)
        with pytest.raises(RunLogError, match="could not be opened: ValueError: not what a header is"):
            monitor_of(0, lambda value: news.append(value) or value)
    with pytest.raises(RunLogError, match="could not be opened"):
        monitor_of(1, lambda _: news[0])


def test_a_rerun_into_the_same_folder_is_told_live_and_in_the_audit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(**settings: Any) -> tuple[list[str], list[str]]:
        """What the console said, and what an audit says of how the log was read."""
        monitor = rlmon.Monitor(directory=tmp_path / "run", group_size=4, **settings)
        for step in (1, 2, 3):
            monitor.observe(batch(monitor.next_round("train")))
            monitor.end_step(step)
        monitor.close()
        said = [line for line in capsys.readouterr().err.splitlines() if "already held the log of another run" in line]
        return said, list(open_source(tmp_path / "run").notes)

    assert run() == ([], [])
    said, notes = run()
    assert len(said) == 1
    assert "output_dir of its own" in said[0]
    told = [event.payload["text"] for event in rlmon.open_run(tmp_path / "run").events if event.kind == "note"]
    assert [text in said[0] for text in told if "another run" in text] == [True]
    assert notes == ["1 earlier run into this folder left a log here too, set aside: only the newest run is judged"]
    said, notes = run(resume=Resume(step=2))
    assert said == []
    assert notes[1:] == ["resumed once, after step 2; from there on the later attempt counts"]


def test_an_interruption_while_rows_are_measured_loses_none_that_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    monitor = rlmon.Monitor(directory=tmp_path / "run", group_size=4)
    monitor.journal.expect_rows(8)
    monkeypatch.setattr(Families, "add_rows", interrupted)
    with pytest.raises(KeyboardInterrupt):
        monitor.observe(batch(monitor.next_round("train")))
    monitor.close()
    assert (monitor.writer.rows_written, monitor.writer.shed_rows) == (8, 0)
    assert not rlmon.open_run(tmp_path / "run").faults
