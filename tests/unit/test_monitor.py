"""The monitor by hand, as any other training loop would use it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

import rlmon
from rlmon.records import Action, RolloutBatch
from rlmon.steering import load_policy

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
    monitor.count_non_finite("grad_norm", 1)  # the trainer logs, then evaluates
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
    class Sink:
        def __init__(self, error: Exception | None = None) -> None:
            self.seen: list[Action] = []
            self.error = error

        def record(self, *_: object) -> None: ...

        def action(self, action: Action) -> None:
            if self.error is not None:
                raise self.error
            self.seen.append(action)

        def close(self) -> None: ...

    policy = load_policy({"rules": {"bound": {"when": "always", "do": "winsorise"}}})
    config = rlmon.RLMonConfig(rlmon_console=False)
    monitor = rlmon.Monitor(config, directory=tmp_path / "run", group_size=4, policy=policy)
    sink = Sink()
    monitor.sinks += [Sink(ValueError("odd")), sink]
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
    # The other sink raised at both lines of step 1; the record of the next step has them.
    assert record.faults == {"sinks": 2}
