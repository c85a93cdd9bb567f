"""Inputs as people have them, each with the one line that an audit must say of it (``cases/*/EXPECTED.txt``).

They were made after public reports of runs that went wrong while their curves looked fine.
"""

from __future__ import annotations

import functools
import re
from pathlib import Path

import pytest

from rlmon.audit.comparison import compare
from rlmon.audit.engine import audit
from rlmon.audit.result import Audit, Check

CASES = Path(__file__).parent / "cases"


@functools.cache
def told(name: str, file: str = "") -> Audit:
    return audit(CASES / name / file if file else CASES / name)


def check(found: Audit, check_id: str) -> Check:
    return next(check for check in found.checks if check.id == check_id)


def alarms(found: Audit, *statuses: str) -> str:
    """Everything that was said in the checks of these statuses, FAIL and WARN by default."""
    wanted = statuses or ("fail", "warn")
    return "\n".join(f"{c.id}: {c.message} {c.advice}" for c in found.checks if c.status in wanted)


def test_all_completions_identical() -> None:
    found = told("all-completions-identical")
    assert found.verdict in ("warn", "fail")
    assert re.search(r"identical|the same", alarms(found))
    # 60 steps of 4 prompts with 8 completions each: none is thrown away.
    assert found.run.completions == 1_920
    assert found.run.coverage["duplicate_rows"] == 0


def test_always_truncated() -> None:
    assert check(told("always-truncated"), "truncation").status in ("warn", "fail")
    assert told("always-truncated").verdict in ("warn", "fail")


@pytest.mark.parametrize(
    "file", ["log_history.json", "training_log.csv", "training_logs.json", "training_metrics.jsonl"]
)
def test_bare_log_history(file: str) -> None:
    found = told("bare-log-history", file)
    assert check(found, "truncation").status == "fail"
    assert check(found, "entropy-collapse").status in ("warn", "fail")
    assert (found.run.steps, found.run.first_step, found.run.last_step) == (100, 1, 100)


def test_two_reward_columns_are_no_choice_of_ours() -> None:
    """Both summed, or a question: never one of them alone, never no reward."""
    found = told("csv-rewards-per-func")
    reward = found.series.get("rlmon/health/reward_mean")
    if reward is None:
        assert "--map reward=" in " ".join([*found.run.notes, *(c.reason or "" for c in found.checks)])
    else:
        # The first row has accuracy 1 and format 0; sums reach 2 where both are 1.
        assert max(value for value in reward if value is not None) > 1.0


def test_a_curriculum_is_no_collapse() -> None:
    found = told("curriculum-8-prompts-source")
    assert found.verdict != "fail"
    for check_id in ("format-collapse", "template-collapse", "mode-extinction"):
        assert check(found, check_id).status not in ("warn", "fail")


def test_a_dead_run() -> None:
    found = told("dead-run-from-step-1")
    assert found.verdict == "fail"
    assert re.search(r"nothing (was|can be|could be) (ever )?learned", alarms(found, "fail"))


def test_round_robin_order() -> None:
    found = told("interleaved-rows-no-group")
    assert found.run.group_size == 4
    assert check(found, "silent-groups-bad").status in ("warn", "fail")


def test_a_constant_distance_is_no_drift() -> None:
    found = told("kl-constant-from-step-1")
    drift = check(found, "kl-drift")
    assert drift.status in ("note", "pass", "skip")
    assert "drift" not in found.headline


def test_history_of_wandb_as_csv() -> None:
    found = told("rllm116-history-csv")
    assert check(found, "entropy-explosion").status == "fail"
    reward = found.series["rlmon/health/reward_mean"]
    assert reward[0] == pytest.approx(0.301)
    assert reward[-1] == pytest.approx(0.17)
    assert re.search(r"reward.*(fell|lost|falling|lower)", alarms(found))


def test_messages_as_json_strings() -> None:
    found = told("messages-as-json-string")
    assert check(found, "format-collapse").status == "fail"
    assert "boxed" in " ".join(mode.mode for mode in found.modes if mode.fate == "grown")


def test_groups_of_one_are_told() -> None:
    found = told("searchr1-88-uid-per-row")
    assert found.verdict != "pass"
    said = alarms(found, "fail", "warn", "skip") + " ".join(found.run.notes)
    assert re.search(r"groups? of (1|one)|group id of its own", said)


def test_columns_of_lists() -> None:
    found = told("swift-completions-jsonl")
    assert found.run.steps > 1
    assert found.run.completions % 16 == 0
    assert found.run.completions >= 16 * found.run.steps
    assert found.run.group_size == 4


def test_lines_of_a_trainer_under_any_name() -> None:
    found = told("swift4800-logging-jsonl")
    assert check(found, "length-collapse").status == "fail"
    assert check(found, "kl-drift").status == "fail"
    assert re.search(r"reward.*(fell|lost|falling|lower)", alarms(found))


def test_two_runs_in_one_folder() -> None:
    found = told("tb-several-runs-one-folder")
    said = " ".join(found.run.notes)
    assert re.search(r"60.step|60 steps", said)
    assert re.search(r"12.step|12 steps", said)


def test_saturated_reward() -> None:
    found = told("tinker-saturated")
    assert check(found, "silent-groups-good").status == "note"
    assert check(found, "entropy-collapse").status in ("warn", "fail")


def test_console_log() -> None:
    found = told("trl-console-log")
    assert check(found, "truncation").status == "fail"
    assert found.run.steps == 100


def test_old_keys_of_ppo() -> None:
    found = told("trl-ppo-old-keys")
    assert check(found, "kl-drift").status in ("warn", "fail")
    assert check(found, "entropy-collapse").status in ("warn", "fail")
    assert "rlmon/health/reward_mean" in found.series


def test_all_groups_silent_from_the_first_step() -> None:
    found = told("trl3857-all-groups-silent")
    assert found.verdict in ("warn", "fail")
    assert re.search(r"nothing (was|can be|could be|is) (ever )?learned", alarms(found))


def test_a_hosted_run_folder() -> None:
    found = told("verifiers-hosted-run-folder")
    assert found.run.completions == 32
    assert check(found, "rows-complete").status == "pass"


def test_entropy_that_falls_within_its_baseline() -> None:
    assert check(told("verl5953-entropy-fast"), "entropy-collapse").status in ("warn", "fail")


def test_empty_answers_in_an_unchanged_format() -> None:
    found = told("visualrft176-empty-answer-same-format")
    assert found.verdict in ("warn", "fail")
    assert re.search(r"empty", alarms(found))


def test_a_run_that_was_resumed_into_two_folders() -> None:
    found = told("wandb4482-resumed-two-dirs")
    assert (found.run.steps, found.run.first_step, found.run.last_step) == (100, 1, 100)
    collapse = check(found, "entropy-collapse")
    assert collapse.status in ("warn", "fail")
    assert collapse.first_step is not None
    assert 28 <= collapse.first_step <= 36


def test_gain_of_a_reward_function_that_only_one_run_has() -> None:
    a, b = (told("compare-extra-reward-func", side) for side in ("a", "b"))
    said = compare([a], [b]).headline
    assert "language" in said
    assert re.search(r"correct.*lower", said)
    assert "reward ends" not in said


def test_every_case_is_tried() -> None:
    source = Path(__file__).read_text(encoding="utf-8")
    assert [case.name for case in sorted(CASES.iterdir()) if f'"{case.name}"' not in source] == []
