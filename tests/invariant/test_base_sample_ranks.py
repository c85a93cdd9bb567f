"""``rlmon_base_sample`` with two real processes (gloo): each samples its part, and they agree also where one fails."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import tiny
import two_processes

import rlmon
from rlmon.audit import engine

pytestmark = [pytest.mark.trl, pytest.mark.slow]

SCRIPT = Path(__file__).with_name("base_sample_ranks.py")
FAULTS = ("reward", "generate", "measure", "vector")
CELLS = ("stock", "sampled", "stock-rloo", "sampled-rloo", "straddle", "rules", *FAULTS)
SAMPLE = 64


def ranks(out: Path, cell: str) -> list[dict[str, Any]]:
    return [json.loads((out / cell / f"rank-{rank}.json").read_text()) for rank in (0, 1)]


def check_that_the_run_is_the_one_without(out: Path, flags: str) -> None:
    first, second = ranks(out, "sampled" + flags)
    assert len({rank["weights"] for rank in [*ranks(out, "stock" + flags), first, second]}) == 1
    assert first["faults"] == second["faults"] == {}
    assert first["detectors"] == second["detectors"]
    assert first["detectors"]["base_sample"]["completions"] == SAMPLE
    assert first["metrics"] == second["metrics"]
    run = rlmon.open_run(out / ("sampled" + flags) / "run" / "rlmon")
    table = run.rollouts()
    files = [out / ("sampled" + flags) / f"truth-{rank}.jsonl" for rank in (0, 1)]
    truth = Counter(tuple(json.loads(line)[1:]) for file in files for line in file.read_text().splitlines())
    assert Counter(zip(table["prompt"].to_pylist(), table["completion"].to_pylist(), strict=True)) == truth
    base = [row for row in table.to_pylist() if row["split"] == "base"]
    assert len(base) == SAMPLE
    halves = [[row["completion"] for row in base if row["global_row"] // 8 == rank] for rank in (0, 1)]
    assert halves[0] != halves[1], "the ranks draw apart"
    audit = engine.audit(out / ("sampled" + flags) / "run" / "rlmon")
    assert next(one for one in audit.checks if one.id == "replay").status == "pass"
    assert audit.run.baseline["completions"] == SAMPLE


def check_groups_across_ranks(out: Path) -> None:
    first, second = ranks(out, "straddle")
    assert first["faults"] == second["faults"] == {}
    assert first["detectors"] == second["detectors"]
    table = rlmon.open_run(out / "straddle" / "run" / "rlmon").rollouts().to_pylist()
    groups: dict[tuple[int, int], list[str]] = {}
    for row in table:
        if row["split"] == "base":
            groups.setdefault((row["round"], row["group"]), []).append(row["prompt_id"])
    assert {(len(ids), len(set(ids))) for ids in groups.values()} == {(4, 1)}
    assert sum(map(len, groups.values())) == 72, "whole rounds of 12"


def check_rules(out: Path) -> None:
    first, second = ranks(out, "rules")
    assert first["faults"] == second["faults"] == {}
    assert first["off"] is second["off"] is None
    assert first["rules"] == second["rules"]
    assert first["weights"] == second["weights"]
    assert first["rules"]["rules"]["apart"]["inner"]["baseline"]["completions"] >= SAMPLE


def check_that_one_failing_rank_leaves_the_first_rounds(out: Path, kind: str) -> None:
    first, second = ranks(out, kind)
    assert len({rank["weights"] for rank in [*ranks(out, "stock"), first, second]}) == 1
    assert "base_sample" not in first["detectors"]
    assert first["detectors"] == second["detectors"]
    assert first["metrics"] == second["metrics"]
    assert sum(second["faults"].values()) >= 1
    log = rlmon.open_run(out / kind / "run" / "rlmon")
    assert log.step_records()[0].base is None
    notes = [event.payload["text"] for event in log.iter_events() if event.kind == "note"]
    assert any("the base was not sampled, and the first rounds are the baseline" in text for text in notes)
    if kind in ("reward", "generate"):
        assert any("ValueError: broken on purpose" in text for text in notes), "rank 0 says what failed on rank 1"


def test_two_ranks(tmp_path: Path) -> None:
    for cell in CELLS:
        (tmp_path / cell).mkdir()
        tiny.saved_model(tmp_path / cell)  # before the ranks race for it
    two_processes.run(SCRIPT, str(tmp_path), *CELLS)
    check_that_the_run_is_the_one_without(tmp_path, "")
    check_that_the_run_is_the_one_without(tmp_path, "-rloo")
    check_groups_across_ranks(tmp_path)
    check_rules(tmp_path)
    for kind in FAULTS:
        check_that_one_failing_rank_leaves_the_first_rounds(tmp_path, kind)
