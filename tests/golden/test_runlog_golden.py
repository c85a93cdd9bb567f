"""A run directory written by schema 1 and frozen must read the same for ever."""

from __future__ import annotations

import shutil
from pathlib import Path

import make_runlog as made

from rlmon.runlog import RunLogWriter, compact, open_run, restore_text

GOLDEN = Path(__file__).parent / "runlog-schema-1"


def test_golden_shows_the_resumed_line() -> None:
    run = open_run(GOLDEN)
    assert run.run_id == "golden"
    assert [h.attempt_kind for h in run.headers] == ["fresh", "resumed"]
    assert run.headers[0] == made.header()
    # Attempt 0 wrote steps 1 to 4; attempt 1 resumed from step 2 and wrote 3 and 4 again.
    assert [(r.attempt, r.step) for r in run.step_records()] == [(0, 1), (0, 2), (1, 3), (1, 4)]
    assert len(run.step_records(all_attempts=True)) == 6
    rows = run.rollouts(["attempt", "round"]).to_pylist()
    assert rows == [{"attempt": r // 2, "round": r} for r in range(4) for _ in range(8)]
    assert run.rollouts(all_attempts=True).num_rows == 6 * 8
    assert run.passes().num_rows == 4 * 8
    assert [f.finding_id for f in run.findings] == ["format-collapse-2"], "the one of step 4 was superseded"
    assert run.actions == [made.action(2)]
    assert run.faults == [made.fault(1)]
    assert not run.unreadable
    assert run.torn_lines == {"steps.jsonl": 0, "events.jsonl": 0}


def test_golden_values_are_those_that_were_written() -> None:
    run = open_run(GOLDEN)
    assert run.step_records()[0] == made.step_record(1)
    assert set(run.rollouts(["trained"])["trained"].to_pylist()) == {True}, "schema 1 logged only what was trained"
    expected = made.rollouts(1)
    table = run.rollouts().filter((run.rollouts()["round"].combine_chunks().cast("int32").to_numpy() == 1).tolist())
    assert table["completion"].to_pylist() == expected["completion"]
    assert table["reward"].to_pylist() == expected["reward"]
    assert table["template_key"].to_pylist() == expected["template_key"]
    assert table["openers"].to_pylist() == expected["openers"]
    assert table["rewards"].to_pylist() == [[("accuracy", i / 3), ("format", None)] for i in range(8)]
    odd = run.rollouts(["completion"])["completion"].to_pylist()[16:20]
    assert [restore_text(text) for text in odd] == ["lone \ud800 half", "nul \0 and \x1b[31m red", "", "<script>"]


def test_golden_can_be_continued_and_compacted(tmp_path: Path) -> None:
    path = tmp_path / "run"
    shutil.copytree(GOLDEN, path)
    before = open_run(path).rollouts()
    compact(path)
    assert open_run(path).rollouts().equals(before)
    writer = RunLogWriter.open(path, made.header(2), resume=True, from_step=4)
    writer.write_rollouts(made.rollouts(4, attempt=2))
    writer.close()
    assert open_run(path).rollouts().num_rows == before.num_rows + 8
