"""What docs/extending adds, in real training: live, on two ranks, resumed, failing, and judged by who lacks it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import extended
import pytest
import steered
import tiny
import two_processes

import rlmon
from rlmon.metrics import CompletionMetric

pytestmark = pytest.mark.trl


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Eight steps with everything added, and what its monitor then knew."""
    out = tmp_path_factory.mktemp("extended")
    trainer = extended.watched(out / "run", 8, extended.everything(out / "findings.jsonl"))
    trainer.train()
    return out, trainer


def test_everything_that_was_added_is_in_the_log_and_in_the_sink(run: Any) -> None:
    out, trainer = run
    log = rlmon.open_run(out / "run" / "rlmon")
    records = log.step_records()
    assert [record.metrics["shouting/share"] for record in records] == [0.0] * 8
    assert all(0.0 <= (record.metrics["unanimous/share"] or 0.0) <= 1.0 for record in records)
    assert any(record.metrics["unanimous/share"] == 1.0 for record in records)
    assert log.metrics("shouting/share")["shouting/share"].to_pylist() == [0.0] * 8
    assert all(block.stats["shouting/share"] == 0.0 for record in records for block in record.blocks[:1])
    assert all(record.faults == {} for record in records)
    assert log.header.detectors["own"][0]["id"] == "shouting"
    acts = [act for act in log.actions if act.rule == "keep-it-short"]
    assert {act.phase for act in acts} >= {"decided", "applied"}
    assert any("long completions count half" in act.reason for act in acts)
    told = [json.loads(line) for line in (out / "findings.jsonl").read_text().splitlines()]
    assert told[0] == {"run": log.header.run_id, "trainer": "GRPOTrainer"}
    assert [(line["phase"], line["step"]) for line in told if "rule" in line] == [
        (act.phase, act.step) for act in log.actions
    ]
    # It did something: without the rule the same seed gives other weights.
    bare = extended.watched(out / "bare", 8, extended.everything(out / "bare.jsonl"), policy=None)
    bare.train()
    assert not tiny.same_weights(tiny.weights(trainer), tiny.weights(bare))


def test_an_audit_that_lacks_them_judges_what_the_log_holds(run: Any) -> None:
    audit = rlmon.audit(run[0] / "run" / "rlmon")
    checks = {check.id: check for check in audit.checks}
    assert checks["replay"].status == "pass"
    assert checks["shouting"].title == "Do completions keep their voice down?"
    assert checks["shouting"].status == "pass"
    assert any(action["rule"] == "keep-it-short" for action in audit.actions)


def test_a_killed_run_goes_on_as_the_whole_one_and_without_them_it_goes_on_too(tmp_path: Path) -> None:
    # Six steps are one epoch: beyond it TRL itself draws other prompts after a resume.
    whole = extended.watched(tmp_path / "whole", 6, extended.everything(tmp_path / "whole.jsonl"))
    whole.train()
    killed = extended.watched(tmp_path / "run", 6, extended.everything(tmp_path / "run.jsonl"))
    killed.add_callback(steered.DiesAfter(5))
    with pytest.raises(steered.Killed):
        killed.train()
    again = extended.watched(tmp_path / "run", 6, extended.everything(tmp_path / "again.jsonl"))
    again.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-4"))
    resumed, straight = extended.known(again), extended.known(whole)
    for seen in (resumed, straight):
        del seen["detectors"]["tallies"]  # keyed by each log's own secret
    assert resumed == straight
    assert resumed["rules"]["rules"]["keep-it-short"]["inner"] > 0

    without = extended.watched(tmp_path / "run", 8, {}, policy=None)
    without.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-6"))
    last = rlmon.open_run(tmp_path / "run" / "rlmon").step_records()[-1]
    assert last.step == 8
    assert "shouting/share" not in last.metrics
    assert rlmon.audit(tmp_path / "run" / "rlmon").run.steps == 8


def test_two_ranks_agree_on_what_was_added(tmp_path: Path) -> None:
    two_processes.run(Path(extended.__file__), str(tmp_path))
    first, second = (json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in (0, 1))
    assert first == second
    assert all(seen["faults"] == {} for seen in first)
    assert first[1]["rules"]["rules"]["keep-it-short"]["inner"] > first[0]["rules"]["rules"]["keep-it-short"]["inner"]
    # The sink is that of rank 0: one line for each phase, not two.
    log = rlmon.open_run(tmp_path / "run" / "rlmon")
    lines = [line for name in ("to-4", "to-8") for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]
    told = [json.loads(line) for line in lines]
    assert len([line for line in told if "rule" in line]) == len(log.actions)


def test_what_fails_is_a_fault_of_its_own(tmp_path: Path) -> None:
    from rlmon.trl import RLMon

    def broken(completion: str) -> float:
        raise ZeroDivisionError("on purpose")

    bad = CompletionMetric("bad/number", broken)
    trainer = tiny.trainer(tmp_path / "bad", policy=tiny.model(), max_steps=2)
    RLMon(trainer, metrics=[extended.load("metric").SHOUTING, bad], base_kl="off", console=False, wandb=False)
    trainer.train()
    record = rlmon.open_run(tmp_path / "bad" / "rlmon").step_records()[-1]
    assert record.metrics["shouting/share"] == 0.0
    assert record.metrics["rlmon/format/effective"] is not None
    assert record.metrics["bad/number"] is None
    assert record.missing["bad/number"]
    assert sum(record.faults.values()) > 0
