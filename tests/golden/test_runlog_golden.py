"""Run directories written by each schema and frozen must read the same for ever."""

from __future__ import annotations

import shutil
from pathlib import Path

import make_runlog as made
import pytest

from rlmon.records import SCHEMA_VERSION
from rlmon.runlog import RunLogWriter, compact, open_run, restore_text

GOLDEN = {version: Path(__file__).parent / f"runlog-schema-{version}" for version in range(1, SCHEMA_VERSION + 1)}
NEW_IN_2 = {1: 0, 2: 1}
"""Steps, of one round of 8 rows each, that show what schema 2 added."""
every_version = pytest.mark.parametrize("version", GOLDEN)


@every_version
def test_golden_shows_the_resumed_line(version: int) -> None:
    run, more = open_run(GOLDEN[version]), NEW_IN_2[version]
    assert run.run_id == "golden"
    assert [h.attempt_kind for h in run.headers] == ["fresh", "resumed"]
    assert run.headers[0] == made.header()
    # Attempt 0 wrote steps 1 to 4; attempt 1 resumed from step 2 and wrote 3 and 4 again.
    steps = [(r.attempt, r.step) for r in run.step_records()]
    assert steps == [(0, 1), (0, 2), (1, 3), (1, 4), (1, 5)][: 4 + more]
    assert len(run.step_records(all_attempts=True)) == 6 + more
    rows = run.rollouts(["attempt", "round"]).to_pylist()
    assert rows == [{"attempt": int(r >= 2), "round": r} for r in range(4 + more) for _ in range(8)]
    assert run.rollouts(all_attempts=True).num_rows == (6 + more) * 8
    assert run.passes().num_rows == 4 * 8 + more * made.GROUP_SIZE
    said = [f.finding_id for f in run.findings]
    assert said == ["format-collapse-2", "format-collapse-5"][: 1 + more], "the one of step 4 was superseded"
    assert run.actions == [made.action(2)]
    assert run.faults == [made.fault(1)]
    assert not run.unreadable
    assert run.torn_lines == {"steps.jsonl": 0, "events.jsonl": 0}


@every_version
def test_golden_values_are_those_that_were_written(version: int) -> None:
    run = open_run(GOLDEN[version])
    assert run.step_records()[0] == made.step_record(1)
    trained = run.rollouts(["trained"])["trained"].to_pylist()
    assert trained[:32] == [True] * 32, "schema 1 logged only what was trained"
    expected = made.rollouts(1)
    table = run.rollouts().filter((run.rollouts()["round"].combine_chunks().cast("int32").to_numpy() == 1).tolist())
    assert table["completion"].to_pylist() == expected["completion"]
    assert table["reward"].to_pylist() == expected["reward"]
    assert table["template_key"].to_pylist() == expected["template_key"]
    assert table["openers"].to_pylist() == expected["openers"]
    assert table["rewards"].to_pylist() == [[("accuracy", i / 3), ("format", None)] for i in range(8)]
    odd = run.rollouts(["completion"])["completion"].to_pylist()[16:20]
    assert [restore_text(text) for text in odd] == ["lone \ud800 half", "nul \0 and \x1b[31m red", "", "<script>"]


def test_golden_of_schema_2_holds_what_that_added() -> None:
    run = open_run(GOLDEN[2])
    assert run.step_records()[-1] == made.schema_2_record(5, attempt=1)
    assert run.findings[-1].severity == "note"
    rows = run.rollouts(["trained", "advantage"]).to_pylist()[-8:]
    assert [row["trained"] for row in rows] == [False] * 4 + [True] * 4
    assert [row["advantage"] is None for row in rows] == [True] * 4 + [False] * 4


@every_version
def test_golden_can_be_continued_and_compacted(version: int, tmp_path: Path) -> None:
    path = tmp_path / "run"
    shutil.copytree(GOLDEN[version], path)
    before = open_run(path).rollouts()
    compact(path)
    assert open_run(path).rollouts().equals(before)
    after = 4 + NEW_IN_2[version]
    writer = RunLogWriter.open(path, made.header(2), resume=True, from_step=after)
    writer.write_rollouts(made.rollouts(after, attempt=2))
    writer.close()
    assert open_run(path).rollouts().num_rows == before.num_rows + 8
