"""The live screen: what it folds out of a growing log, and what it survives."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import os
from pathlib import Path
from typing import Any

import make_runlog
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from rlmon import detectors
from rlmon.errors import RunLogError
from rlmon.records import Block
from rlmon.report import live, watch
from rlmon.report.live import Strip, Tail, View
from rlmon.report.screen import SPARKS, sparkline
from rlmon.report.watch import frame
from rlmon.runlog import RunLogWriter, open_run

START = 1_700_000_000.0
HOSTILE = "\x1b[2J\x1b]0;owned\x07[red]x[/red]\n\u202e\ud800"


def write(path: Path, steps: range, *, resume_from: int | None = None, attempt: int = 0, **changes: Any) -> None:
    """Steps of two seconds; entropy falls by .01 a step; prose takes over from json."""
    state = detectors.start(alpha=0.01, total_steps=100, group_size=4)
    header = make_runlog.header(
        attempt, total_steps=100, trainer="GRPOTrainer", detectors=detectors.describe(state),
        attempt_kind="fresh" if resume_from is None else "resumed",
    )  # fmt: skip
    writer = RunLogWriter.open(path, header, resume=resume_from is not None, from_step=resume_from)
    for step in steps:
        prose = step / 100
        metrics = {
            "rlmon/entropy/mean": 1 - step / 100,
            "rlmon/kl/mean": step / 1000 if step % 5 == 0 else None,
            "rlmon/format/share/prose": prose,
            "rlmon/format/share/json": 1 - prose,
        }
        block = Block(source="sums", prompts=8, completions=64, stats={"mode_collision": prose**2 + (1 - prose) ** 2})
        values = {"metrics": metrics, "blocks": (block,), "completions": 64, "prompts": 8, **changes}
        writer.append_step(
            make_runlog.step_record(step, attempt=attempt, missing={}, time_unix_seconds=START + 2 * step, **values)
        )
    writer.close()


def read(view: View) -> View:
    while view.poll():
        pass
    return view


def drawn(view: View, width: int = 120, now: float = START + 203) -> str:
    stream = io.StringIO()
    Console(file=stream, width=width, highlight=False).print(frame(view, width=width, now_unix_seconds=now))
    return stream.getvalue()


def test_a_log_that_is_not_there_yet_is_waited_for(tmp_path: Path) -> None:
    view = View(tmp_path / "out")
    assert view.poll() is False
    assert "Waiting: no rlmon log is here yet" in drawn(view)
    write(tmp_path / "out" / "rlmon", range(1, 3))
    read(view)
    assert view.folder == tmp_path / "out" / "rlmon"
    assert "step 2/100" in drawn(view)


def test_one_screen_of_no_run_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RunLogError, match="does not exist"):
        watch.watch(tmp_path / "nowhere", every_seconds=1, once=True)


def test_the_newest_value_is_on_a_narrow_screen_and_the_verdict_too(tmp_path: Path) -> None:
    write(
        tmp_path, range(1, 41), blocks=(Block(source="sums", prompts=8, completions=64, stats={"mode_collision": 0.3}),)
    )
    view = read(View(tmp_path))
    text = drawn(view, width=80)
    # Entropy falls all the time: its curve ends in the lowest block, and is not cut off.
    row = next(line for line in text.split("\n") if line.startswith("entropy"))
    assert row.rstrip().endswith("▁")
    assert "…" not in row
    assert max(map(len, text.split("\n"))) <= 80
    assert "\n PASS   so far: no detector has spoken" in text
    (tmp_path / "young").mkdir()
    write(tmp_path / "young", range(1, 3))
    assert "\n UNSURE   so far: nothing is compared with the base yet" in drawn(read(View(tmp_path / "young")))
    writer = RunLogWriter.open(tmp_path, make_runlog.header(1, attempt_kind="resumed"), resume=True, from_step=40)
    writer.append_event("finding", make_runlog.finding(40))
    writer.append_event("ended", {"step": 40})
    writer.close()
    assert "\n WARN   at the end: 1 WARN" in drawn(read(view))


def test_progress_rate_and_time_to_go(tmp_path: Path) -> None:
    write(tmp_path, range(1, 41))
    text = drawn(read(View(tmp_path)), now=START + 2 * 40 + 3)
    # 60 steps of 2 s are 120 s; 40 steps of 64 completions
    assert "step 40/100" in text
    assert "2 s/step, 2 min to go, last step 3 s ago, 2,560 completions" in text


def test_a_run_that_stands_still_and_one_that_ended(tmp_path: Path) -> None:
    write(tmp_path, range(1, 41))
    view = read(View(tmp_path))
    assert "has the run stopped?" not in drawn(view, now=START + 80 + 59)
    assert "has the run stopped?" in drawn(view, now=START + 80 + 61)
    writer = RunLogWriter.open(tmp_path, make_runlog.header(1, attempt_kind="resumed"), resume=True, from_step=40)
    writer.append_event("ended", {"step": 40})
    writer.close()
    text = drawn(read(view), now=START + 9_999)
    assert ", ended, " not in text.split("step 40")[0]
    assert "ended" in text
    assert "has the run stopped?" not in text


def test_base_and_now_of_the_headline_metrics(tmp_path: Path) -> None:
    write(tmp_path, range(1, 41))
    view = read(View(tmp_path))
    entropy, kl, prose = (view.strips[f"rlmon/{n}"] for n in ("entropy/mean", "kl/mean", "format/share/prose"))
    # The baseline is complete at 32 prompts: 4 records of 8. Now: the newest 5.
    assert entropy.base == pytest.approx(1 - (1 + 2 + 3 + 4) / 4 / 100)
    assert entropy.now == pytest.approx(1 - (36 + 37 + 38 + 39 + 40) / 5 / 100)
    # KL is measured at every fifth step: its first value, at step 5, stands for the base.
    assert kl.base == pytest.approx(0.005)
    assert kl.now == pytest.approx((20 + 25 + 30 + 35 + 40) / 5 / 1000)
    assert prose.base == pytest.approx(0.025)
    text = drawn(view)
    assert "0.975  → 0.62 nats" in text
    row = next(line for line in text.split("\n") if " json " in f" {line} ")
    assert "→ 60 %" in row


@pytest.mark.parametrize(("statistic", "said"), [("all_good", "nats from a note)"), ("all_bad", "nats from an alarm)")])
def test_what_is_nearly_said_is_called_by_its_name(tmp_path: Path, statistic: str, said: str) -> None:
    # Every group alike: evidence grows until it is within 2 nats of speaking; the step after it speaks.
    block = Block(source="sums", prompts=8, completions=64, stats={statistic: 1.0})
    state, steps, near = detectors.start(alpha=0.01, total_steps=100, group_size=4), 0, -math.inf
    while near < -2.0:
        steps += 1
        state, found = detectors.step(state, make_runlog.step_record(steps, blocks=(block,)))
        assert not found
        near = max(v for row in detectors.status(state) for v in row["evidence"].values() if v is not None)
    write(tmp_path, range(1, steps + 1), blocks=(block,))
    assert said in drawn(read(View(tmp_path)), width=200)


def test_detectors_are_those_of_the_log(tmp_path: Path) -> None:
    write(tmp_path, range(1, 41))
    view = read(View(tmp_path))
    state = detectors.start_from(open_run(tmp_path).header.detectors)
    for record in open_run(tmp_path).step_records():
        state, _ = detectors.step(state, record)
    assert view.detectors is not None
    assert detectors.status(view.detectors) == detectors.status(state)
    assert "kl-drift: no block had kl_nats or kl_seq_nats" in drawn(view)


def test_a_log_of_other_detectors_is_still_shown(tmp_path: Path) -> None:
    write(tmp_path, range(1, 3))
    file = tmp_path / "run.json"
    file.write_text(file.read_text().replace(f'"version": {detectors.VERSION}', '"version": 99'))
    text = drawn(read(View(tmp_path)))
    assert "step 2/100" in text
    assert "Detectors: not shown, The log was judged by version 99" in text


def test_findings_actions_and_faults(tmp_path: Path) -> None:
    write(tmp_path, range(1, 10), faults={"metrics.formats": 2}, shed_rows=7)
    writer = RunLogWriter.open(tmp_path, make_runlog.header(1, attempt_kind="resumed"), resume=True, from_step=9)
    for step in range(1, 9):
        writer.append_event("finding", make_runlog.finding(step))
    writer.append_event("action", make_runlog.action(9))
    writer.append_event("fault", make_runlog.fault(3))
    writer.close()
    text = drawn(read(View(tmp_path)))
    # 5 are shown of 8 findings, in order of steps.
    assert "Newest findings (of 8 WARN)" in text
    lines = [line.split()[:3] for line in text.split("\n") if line.startswith(("WARN", "DECIDED"))]
    assert lines == [["WARN", "step", str(s)] for s in (4, 5, 6, 7, 8)] + [["DECIDED", "step", "9"]]
    assert "FAULT metrics.formats, 18 times: ValueError: odd" in text
    assert "7 rows could not be written to the log" in text


def test_acts_of_the_policy_are_one_line_each_the_newest_first(tmp_path: Path) -> None:
    write(tmp_path, range(1, 10), metrics={"rlmon/intervention/beta": 0.05, "rlmon/intervention/kappa": None})
    policy = {"dry_run": False, "rules": {"kl-budget": {}, "stop-late": {"dry_run": True}, "quarantine": {}}}
    header = make_runlog.header(1, attempt_kind="resumed", policy=policy)
    writer = RunLogWriter.open(tmp_path, header, resume=True, from_step=9)

    def act(step: int, rule: str, *phases: str, **changes: Any) -> None:
        for phase in phases:
            values = dataclasses.asdict(make_runlog.action(step, phase))
            values |= {"action_id": f"{rule}-{step}", "rule": rule, **changes}
            if phase == "measured":
                values |= {"effect": "harmed", "effect_reason": "rose", "step": step + 2}
            writer.append_event("action", values)

    act(2, "kl-budget", "decided", "applied", "measured")
    for step in (1, 3, 5):
        act(step, "quarantine", "decided", "applied", knob="advantages", old=None, new="2", reason="2 groups out")
    act(6, "stop-late", "decided", dry_run=True, knob="training", old=None, new="stop")
    act(7, "kl-budget", "decided", old=0.04, new=0.06)
    act(7, "kl-budget", "failed", old=0.04, new=0.06, reason="collapse: RuntimeError: odd")
    writer.close()
    view = read(View(tmp_path))
    lines = [" ".join(line.split()) for line in drawn(view).split("\n")]
    at = lines.index("Interventions 3 rules, 1 of them dry run 6 acts")
    assert lines[at + 1 : at + 6] == [
        "now beta 0.05",
        "FAILED step 7 kl-budget beta 0.04 → 0.06 · collapse: RuntimeError: odd",
        "WOULD step 6 stop-late training: stop · collapse",
        "APPLIED 1 to 5 quarantine 3 times · 2 groups out",
        "APPLIED step 2 kl-budget beta 0 → 0.04 · harmed · collapse",
    ]


def test_what_is_kept_of_many_acts_does_not_grow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "ACTS_KEPT", 3)
    write(tmp_path, range(1, 10))
    writer = RunLogWriter.open(tmp_path, make_runlog.header(1, attempt_kind="resumed"), resume=True, from_step=9)
    for step in range(1, 9):
        writer.append_event("action", make_runlog.action(step))
    writer.append_event("action", make_runlog.action(1, "measured"))  # of an act that is no longer kept
    writer.close()
    view = read(View(tmp_path))
    assert [act.step for act in view.acts.values()] == [6, 7, 8]
    assert view.act_count == 8


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_no_name_in_a_log_steers_the_terminal(tmp_path: Path, width: int) -> None:
    metrics = {f"rlmon/format/share/{HOSTILE}": 0.7, "rlmon/format/share/[bold]b[/bold]": 0.3, f"rlmon/{HOSTILE}": 1.0}
    write(tmp_path, range(1, 4), metrics=metrics, faults={HOSTILE: 1})
    writer = RunLogWriter.open(tmp_path, make_runlog.header(1, attempt_kind="resumed"), resume=True, from_step=3)
    finding = make_runlog.finding(2)
    writer.append_event("finding", {**{f: getattr(finding, f) for f in finding.__slots__}, "message": HOSTILE})
    writer.append_event("fault", {"place": HOSTILE, "step": 1, "rank": 0, "error": HOSTILE, "count": 1})
    writer.append_event(
        "action", {"step": 1, "phase": HOSTILE, "knob": HOSTILE, "old": [], "new": {}, "reason": HOSTILE}
    )
    writer.close()
    text = drawn(read(View(tmp_path)), width)
    assert all(line.isprintable() and len(line) <= width for line in text.split("\n"))
    assert "\\x1b" in text
    assert width < 80 or "[bold]b" in text


# ---- reading


def test_only_what_is_new_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, range(1, 101))
    view = read(View(tmp_path))
    seen: list[bytes] = []
    original = live.lines.parse_line
    monkeypatch.setattr(live.lines, "parse_line", lambda line: seen.append(line) or original(line))
    read(view)
    assert seen == []
    with (tmp_path / "steps.jsonl").open("ab") as file:
        line = json.loads((tmp_path / "steps.jsonl").read_bytes().splitlines()[-1])
        file.write(json.dumps({**line, "step": 101}).encode() + b"\n" + b'{"attempt": 0, "step": 1')
    read(view)
    assert len(seen) == 1
    assert view.newest is not None
    assert (view.newest.step, view.completions, view.torn) == (101, 101 * 64, 0)
    # The half line is read once it is whole.
    with (tmp_path / "steps.jsonl").open("ab") as file:
        file.write(b"02\n")
    read(view)
    assert view.torn == 1


def test_torn_and_foreign_lines_are_counted_and_passed_over(tmp_path: Path) -> None:
    write(tmp_path, range(1, 4))
    good = json.loads((tmp_path / "steps.jsonl").read_bytes().splitlines()[-1])
    odd = [
        b"{<torn>", b"[1]", b"\xff\xfe", b"{}", b"[" * 100_000,
        *(json.dumps({**good, **change}).encode() for change in (
            {"step": "4"}, {"metrics": []}, {"blocks": [1]}, {"blocks": 3}, {"rounds": None}, {"completions": None},
            {"time_unix_seconds": math.nan}, {"faults": {"x": "y"}}, {"faults": []}, {"attempt": [0]},
            {"blocks": [{"source": "s", "prompts": "many", "completions": 1, "stats": {}}]},
            {"blocks": [{"source": "s", "prompts": 1, "completions": 1, "stats": []}]},
        )),
    ]  # fmt: skip
    fine = json.dumps({**good, "step": 4, "metrics": {"rlmon/entropy/mean": math.nan, "rlmon/kl/mean": "x"}}).encode()
    with (tmp_path / "steps.jsonl").open("ab") as file:
        file.write(b"\n".join([*odd, fine]) + b"\n")
    with (tmp_path / "events.jsonl").open("ab") as file:
        file.write(b'{"kind": "finding"}\n{"kind": "finding", "attempt": 0, "payload": {}}\n[]\n')
    view = read(View(tmp_path))
    assert view.torn == len(odd) + 2
    assert view.newest is not None
    assert view.newest.step == 4
    assert "torn lines passed over" in drawn(view)


def test_a_resumed_run_hides_what_it_superseded(tmp_path: Path) -> None:
    write(tmp_path, range(1, 31))
    view = read(View(tmp_path))
    assert view.completions == 30 * 64
    write(tmp_path, range(21, 26), resume_from=20, attempt=1)
    read(view)
    assert view.completions == (20 + 5) * 64
    assert view.newest is not None
    assert (view.newest.step, view.newest.attempt) == (25, 1)
    assert len(view.recent) == 5
    assert "attempt 1" in drawn(view)


def test_a_resumed_run_without_a_known_checkpoint_supersedes_from_its_first_step(tmp_path: Path) -> None:
    write(tmp_path, range(1, 31))
    view = read(View(tmp_path))
    write(tmp_path, range(21, 26), resume_from=20, attempt=1)
    file = tmp_path / "run.json"
    file.write_text(file.read_text().replace('"from_step": 20', '"from_step": null'))
    assert read(view).completions == (20 + 5) * 64


def test_a_fresh_run_in_the_same_folder_begins_anew(tmp_path: Path) -> None:
    write(tmp_path, range(1, 31))
    view = read(View(tmp_path))
    write(tmp_path, range(1, 4), attempt=1)
    assert read(view).completions == 3 * 64


@pytest.mark.parametrize("how", ["shorter", "another", "gone"])
def test_a_replaced_file_is_read_from_its_beginning(tmp_path: Path, how: str) -> None:
    write(tmp_path, range(1, 31))
    view = read(View(tmp_path))
    file = tmp_path / "steps.jsonl"
    kept = b"".join(file.read_bytes().splitlines(keepends=True)[:10])
    if how == "shorter":
        file.write_bytes(kept)
    else:
        file.unlink()
        if how == "another":
            (tmp_path / "new").write_bytes(kept + b" " * 1_000_000 + b"\n")
            os.replace(tmp_path / "new", file)
    read(view)
    assert view.completions == (0 if how == "gone" else 640)
    if how == "gone":
        file.write_bytes(kept)
        assert read(view).completions == 640


def test_what_is_no_file_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "steps.jsonl")
    assert list(Tail(tmp_path / "steps.jsonl").lines()) == []
    assert list(Tail(tmp_path).lines()) == []


def test_a_line_without_end_is_passed_over_in_bounded_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "MAX_LINE_BYTES", 1_000)
    monkeypatch.setattr(live, "PIECE_BYTES", 300)
    file = tmp_path / "steps.jsonl"
    file.write_bytes(b"first\n" + b"x" * 5_000)
    tail = Tail(file)
    assert list(tail.lines()) == [b"first"]
    with file.open("ab") as stream:
        stream.write(b"x" * 5_000 + b"\nlast\n")
    assert list(tail.lines()) == [b"last"]
    assert tail.torn == 1


@given(st.lists(st.binary(max_size=12).map(lambda b: b.replace(b"\n", b"")), max_size=8), st.data())
@settings(max_examples=60)
def test_every_line_is_read_once_however_the_file_grows(wanted: list[bytes], data: st.DataObject) -> None:
    import tempfile

    whole = b"".join(line + b"\n" for line in wanted)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=4)))
    with tempfile.TemporaryDirectory() as folder:
        tail, found = Tail(Path(folder, "f")), []
        for begin, end in zip([0, *cuts], [*cuts, len(whole)], strict=True):
            with Path(folder, "f").open("ab") as stream:
                stream.write(whole[begin:end])
            found += list(tail.lines())
    assert found == wanted


def test_watching_writes_nothing(tmp_path: Path) -> None:
    write(tmp_path, range(1, 4))
    before = {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in tmp_path.rglob("*")}
    drawn(read(View(tmp_path)))
    assert {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in tmp_path.rglob("*")} == before


# ---- strips and sparks


def test_a_strip_keeps_a_bounded_number_of_means() -> None:
    strip = Strip()
    for i in range(10_000):
        strip.add(float(i), base=i < 4)
    values = strip.values()
    assert len(values) <= live.BINS
    # 10,000 values in bins of 64: each bin is the mean of 64 successive integers.
    assert strip.per_bin == 64
    assert values[:2] == [31.5, 95.5]
    assert (strip.base, strip.now) == (1.5, 9_997.0)


@pytest.mark.parametrize(
    ("values", "width", "shown"),
    [
        ([], 8, ""),
        ([3.0], 8, "▁"),
        ([0, 1, 2, 3, 4, 5, 6, 7], 8, SPARKS),
        ([0, 0, 7, 7], 2, "▁█"),
        ([1.0, 1.0], 8, "▁▁"),
    ],
)
def test_sparklines(values: list[float], width: int, shown: str) -> None:
    assert sparkline(values, width) == shown
