"""Each null has a reason, and the reason is true of its step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny

import rlmon
from rlmon.records import StepRecord
from rlmon.trl import RLMon, RLMonConfig

pytestmark = pytest.mark.trl

NO_ROUND = "no new generation was trained in this step"


def records_of(tmp_path: Path, config: dict[str, Any] | None = None, **overrides: Any) -> list[StepRecord]:
    trained = tiny.trainer(tmp_path / "run", **overrides)
    monitor = RLMon(trained, RLMonConfig(rlmon_console=False, **(config or {})))
    trained.train()
    found = rlmon.open_run(monitor.log_dir).step_records()
    for record in found:
        assert record.missing.keys() == {name for name, value in record.metrics.items() if value is None}
        assert all(reason.strip() for reason in record.missing.values())
    return found


def reasons(record: StepRecord, prefix: str) -> set[str]:
    return {reason for name, reason in record.missing.items() if name.startswith(f"rlmon/{prefix}")}


def test_kl_says_why_on_steps_with_and_without_a_comparison(tmp_path: Path) -> None:
    """Every generation feeds two steps, and every second step measures the base."""
    found = records_of(tmp_path, {"rlmon_base_kl_every": 2}, num_iterations=2, max_steps=4)
    for record in found:
        measured = record.step % 2 == 1
        assert (record.metrics["rlmon/kl/mean"] is not None) == measured
        if not measured:
            assert reasons(record, "kl/") == {"measured every 2 steps"}
        else:
            assert reasons(record, "kl/") == {"no completion of this mode was compared with the base"}
            for name, value in record.metrics.items():
                if name.startswith("rlmon/kl/mode/") and value is None:
                    assert not record.metrics[name.replace("/kl/mode/", "/format/share/")]
        fresh = bool(record.rounds)
        assert fresh == measured
        silent = {name for name in record.missing if not name.startswith(("rlmon/kl/", "rlmon/entropy/"))}
        assert ({record.missing[name] for name in silent} == {NO_ROUND}) == (not fresh)
        if fresh:
            assert NO_ROUND not in record.missing.values()
        assert record.metrics["rlmon/entropy/ratio_to_base"] is not None
        assert reasons(record, "entropy/mode/") == {"no token of this mode was trained in this step"}
        # Right answers are counted in the first of their two steps.
        assert (record.metrics["rlmon/entropy/mean_correct"] is not None) == fresh
        if not fresh:
            why = "no rewarded completion was trained on for the first time"
            assert record.missing["rlmon/entropy/mean_correct"] == why


def test_one_prompt_has_no_standard_error(tmp_path: Path) -> None:
    found = records_of(tmp_path, {"rlmon_base_kl_every": 1}, per_device_train_batch_size=4, max_steps=2)
    for record in found:
        assert record.metrics["rlmon/kl/k1"] is not None
        assert {record.missing[f"rlmon/kl/k{i}_se"] for i in (1, 2, 3)} == {
            "one prompt in the sample: no standard error"
        }
        assert reasons(record, "collision/mode_across") == {"no pair of completions of different prompts to compare"}
        assert reasons(record, "moves/effective_across") == {
            f"no pair of {compared} of different prompts with openers"
            for compared in ("completions", "rewarded completions")
        }


def test_a_comparison_that_failed_is_no_step_without_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise MemoryError("on purpose")

    monkeypatch.setattr("rlmon.trl.base.exact_kl", broken)
    first, second = records_of(tmp_path, {"rlmon_base_kl_every": 2}, max_steps=2)
    assert first.faults == {"base.forward": 1}
    assert reasons(first, "kl/") == {"the comparison with the base failed in this step (base.forward)"}
    assert reasons(second, "kl/") == {"measured every 2 steps"}


def test_completions_that_could_not_be_measured_are_not_said_to_be_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise MemoryError("on purpose")

    monkeypatch.setattr("rlmon.metrics.features.Featurizer.features", broken)
    (record,) = records_of(tmp_path, max_steps=1)
    assert record.rounds
    assert reasons(record, "format/") == {"no completion of this step was measured (metrics.features)"}
    assert reasons(record, "entropy/mode/") == {"formats of the trained completions are not known"}
