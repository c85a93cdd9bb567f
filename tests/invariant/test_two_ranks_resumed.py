"""Two real ranks resume from a checkpoint that is damaged on one of them, and still agree on everything."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import two_processes

import rlmon

pytestmark = pytest.mark.trl

SCRIPT = Path(__file__).with_name("two_ranks_resumed.py")
LOST = {
    "unharmed": None,
    "torn-rank1": {"what rank 1 keeps for itself"},
    "no-rank1": {"what rank 1 keeps for itself"},
    "torn-state": {"all of rlmon's state"},
    "mark-unseen-by-rank1": None,
}


def test_ranks_agree_on_what_is_left_of_a_checkpoint(tmp_path: Path) -> None:
    two_processes.run(SCRIPT, str(tmp_path), *LOST)
    first, second = (json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in (0, 1))
    assert first == second
    assert first.pop("unlogged") == {"monitor": None}
    assert first["mark-unseen-by-rank1"]["returned"]
    for kind, seen in first.items():
        assert seen["faults"] == {}, kind
        assert seen["off"] is None, kind
    # Learned from 12 prompts of both ranks, and kept by the checkpoint where that could be read.
    names = first["whole"]["sources"]["names"]
    assert len(names) == 2
    for kind in LOST:
        run = rlmon.open_run(tmp_path / kind / "rlmon")
        assert [record.step for record in run.step_records()] == [1, 2, 3, 4]
        notes = [event.payload for event in run.iter_events() if "begins_anew" in event.payload]
        if LOST[kind] is None:
            assert notes == []
        else:
            assert [set(note["begins_anew"]) - {"detectors"} for note in notes] == [LOST[kind]]
        assert first[kind]["sources"]["names"] == names
    evaluations = [e.payload for e in rlmon.open_run(tmp_path / "whole" / "rlmon").iter_events() if e.kind == "eval"]
    assert [(e["step"], e["completions"]) for e in evaluations] == [(2, 8)]
