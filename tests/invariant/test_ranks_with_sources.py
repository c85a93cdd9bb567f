"""Law 7 on real ranks (gloo) with four sources, each of which some rank has not met."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny
import two_processes

import rlmon
from rlmon.keys import source_key
from rlmon.metrics.catalog import local_metrics
from rlmon.trl.mirror import HEADLINE

pytestmark = pytest.mark.trl

SCRIPT = Path(__file__).with_name("ranks_with_sources.py")
NAMES = ("Äpfel", "pears", "plums", "figs")


@pytest.mark.parametrize("world", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_ranks_that_met_different_sources_fold_and_decide_alike(tmp_path: Path, world: int) -> None:
    tiny.saved_model(tmp_path)  # before the ranks race for it
    two_processes.run(SCRIPT, str(tmp_path), ranks=world)
    ranks = [json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in range(world)]
    for rank in ranks:
        assert rank == ranks[0]
    first = ranks[0]
    assert first["off"] is None, "no rule rests"
    assert first["faults"] == {}
    keys = {source_key(name): name for name in NAMES}
    assert set(first["folded"]["sources"]) == set(keys)
    assert first["folded"]["names"] == first["shared"]["sources"] == keys
    learned = [record["sources"] for record in first["records"] if record["sources"]]
    assert {key: name for step in learned for key, name in step.items()} == keys
    log = rlmon.open_run(tmp_path / "run" / "rlmon")
    assert {action.rule for action in log.actions if action.phase == "applied"} >= {"hold", "budget", "spread", "bound"}
    # Four prompts a round over all ranks, one of each source: the groups are whole, whoever holds their rows.
    for record in log.step_records():
        assert sum(block.completions for block in record.blocks if "mode_collision_within" in block.stats) == 16
        assert record.metrics["rlmon/group/coverage"] == 1.0


def test_what_trackers_show_is_the_same_on_any_number_of_ranks() -> None:
    assert not set(HEADLINE) & set(local_metrics())
