"""Conditions as a fold: what holds when, for which reason, and across a resume."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from rlmon.interventions import conditions
from rlmon.interventions.policy import AllOf, Always, AnyOf, Condition, OnFinding, OnMetric
from rlmon.records import Finding, StepRecord

KL = "rlmon/kl/mean"
FORMATS = "rlmon/format/effective"


def record(step: int, **metrics: float | None) -> StepRecord:
    return StepRecord(
        attempt=0,
        step=step,
        time_unix_seconds=0.0,
        rounds=(step,),
        completions=64,
        prompts=8,
        tokens=640,
        metrics={{"kl": KL, "formats": FORMATS}[name]: value for name, value in metrics.items()},
    )


def finding(detector: str, step: int, severity: Any = "warn") -> Finding:
    return Finding(
        finding_id=f"{detector}-{severity}-{step}",
        detector=detector,
        severity=severity,
        step=step,
        metric=FORMATS,
        value=1.0,
        baseline=2.0,
        threshold=1.6,
        source=None,
        message="",
        advice="",
        baseline_kind="early_rounds",
        baseline_prompts=32,
        benign_sharpening=None,
    )


def fold(
    condition: Condition,
    values: list[float | None],
    name: str = "kl",
    hysteresis: float = 0.0,
    findings: dict[int, list[Finding]] | None = None,
) -> tuple[list[bool], list[str], list[str | None]]:
    """Step by step: whether it holds, why, and by which finding; through JSON at every step, as in a checkpoint."""
    state = conditions.start(condition)
    met, why, ids = [], [], []
    for step, value in enumerate(values, start=1):
        found = (findings or {}).get(step, [])
        state, now, reason, finding_id = conditions.step(
            condition, state, record(step, **{name: value}), found, hysteresis
        )
        restored = conditions.from_json(condition, json.loads(json.dumps(conditions.to_json(state), allow_nan=False)))
        assert restored == state
        state = restored
        met.append(now)
        why.append(reason)
        ids.append(finding_id)
    return met, why, ids


def test_always_holds_from_the_first_record() -> None:
    assert fold(Always(), [None, 1.0])[0] == [True, True]
    assert conditions.step(Always(), conditions.start(Always()), record(1), (), 0.0)[1:] == (True, "always", None)


# -- metrics -----------------------------------------------------------------------------------------------------------


def test_a_line_is_passed_strictly_and_in_its_own_direction() -> None:
    above = OnMetric(metric=KL, above=0.3, smooth_steps=1)
    assert fold(above, [0.2, 0.3, 0.4, 0.3])[0] == [False, False, True, False]
    below = OnMetric(metric=KL, below=0.3, smooth_steps=1)
    assert fold(below, [0.4, 0.3, 0.2, 0.3])[0] == [False, False, True, False]


def test_the_mean_of_the_newest_values_is_compared() -> None:
    # Window of 3, line 1: means 3; 1.5; 1; (0 + 0 + 2)/3 = .67; (0 + 2 + 2)/3 = 1.33.
    condition = OnMetric(metric=KL, above=1.0, smooth_steps=3)
    assert fold(condition, [3.0, 0.0, 0.0, 2.0, 2.0])[0] == [True, True, False, False, True]


def test_a_null_keeps_the_answer_and_says_so() -> None:
    condition = OnMetric(metric=KL, above=1.0, smooth_steps=2)
    met, why, _ = fold(condition, [None, 2.0, None, None, 0.5, None, 0.5])
    # Means of 2: -; 2; 2; 2; (2 + .5)/2 = 1.25; 1.25; .5.
    assert met == [False, True, True, True, True, True, False]
    assert why[0] == "rlmon/kl/mean was not measured yet"
    assert why[2] == "rlmon/kl/mean 2 is above 1 (not measured at this step)"
    assert why[6] == "rlmon/kl/mean 0.5 is not above 1"


def test_a_metric_that_records_lack_is_a_null() -> None:
    condition = OnMetric(metric="rlmon/none", above=1.0)
    assert fold(condition, [2.0, 2.0])[0] == [False, False]


def test_hysteresis_is_a_share_of_the_line_on_the_way_back_only() -> None:
    # Line .4, .25 of it is .1: it holds from above .4 until .3.
    condition = OnMetric(metric=KL, above=0.4, smooth_steps=1)
    values = [0.35, 0.39, 0.41, 0.35, 0.31, 0.29, 0.35, 0.41]
    met, why, _ = fold(condition, values, hysteresis=0.25)
    assert met == [False, False, True, True, True, False, False, True]
    assert why[3] == "rlmon/kl/mean 0.35 is back by less than 25% of its line, above 0.4"
    assert fold(condition, values)[0] == [False, False, True, False, False, False, False, True]
    # Below a negative line: -2, a quarter of it is .5, so it is released at -1.5.
    below = OnMetric(metric=KL, below=-2.0, smooth_steps=1)
    assert fold(below, [-1.0, -2.1, -1.6, -1.5, -1.6], hysteresis=0.25)[0] == [False, True, True, False, False]


def test_a_null_within_the_band_releases_nothing() -> None:
    condition = OnMetric(metric=KL, above=0.4, smooth_steps=1)
    assert fold(condition, [0.35, None, 0.5, 0.35, None], hysteresis=0.25)[0] == [False, False, True, True, True]


def test_the_base_is_the_mean_over_the_records_of_the_baseline() -> None:
    # 8 prompts and 64 completions a record: four records with the metric are 32 prompts. The nulls do not count.
    # Base (4 + 5 + 5 + 5)/4 = 4.75, line .85 x 4.75 = 4.0375.
    condition = OnMetric(metric=FORMATS, below=0.85, of="base", smooth_steps=1)
    values = [4.0, None, 5.0, 5.0, None, 5.0, 4.1, 3.1, 4.04]
    met, why, _ = fold(condition, values, name="formats")
    assert met == [False] * 7 + [True, False]
    assert why[3] == (
        "rlmon/format/effective was measured over 24 prompts and 192 completions in 3 rounds; its base takes 32, 256 "
        "or 8 of them"
    )
    assert why[7] == "rlmon/format/effective 3.1 is below 0.85 of base 4.75 = 4.037"
    assert why[8] == "rlmon/format/effective 4.04 is not below 0.85 of base 4.75 = 4.037"
    # 5 % of the line is .202: still held at 4.23, released at 4.25.
    met, _, _ = fold(condition, [*values[:8], 4.23, 4.25], name="formats", hysteresis=0.05)
    assert met[7:] == [True, True, False]


def test_nothing_is_a_share_of_a_base_of_zero_or_less() -> None:
    condition = OnMetric(metric=KL, above=2.0, of="base", smooth_steps=1)
    for base in (0.0, -1.0):
        met, why, _ = fold(condition, [base] * 5 + [9.0])
        assert not any(met)
        assert why[5] == f"rlmon/kl/mean has a base of {base:g}, which nothing is a share of"


def test_the_state_is_bounded_whatever_the_run_is() -> None:
    condition = OnMetric(metric=KL, above=0.3, smooth_steps=3)
    state = conditions.start(condition)
    for step in range(1, 200):
        state, *_ = conditions.step(condition, state, record(step, kl=0.1 * step), (), 0.0)
    assert isinstance(state, conditions.MetricState)
    assert len(state.window) == 3
    assert state.base.mean == pytest.approx((0.1 + 0.2 + 0.3 + 0.4) / 4)


def test_a_resume_that_smooths_or_compares_otherwise_keeps_what_is_known() -> None:
    before = OnMetric(metric=FORMATS, below=4.0, smooth_steps=5)
    state = conditions.start(before)
    for step, value in enumerate([5.0, 5.0, 5.0, 5.0, 5.0, 1.0], start=1):
        state, *_ = conditions.step(before, state, record(step, formats=value), (), 0.0)
    saved = json.loads(json.dumps(conditions.to_json(state)))
    # Of base, and over two values: (5 + 1)/2 = 3 < .85 x 5; the next null changes nothing.
    after = OnMetric(metric=FORMATS, below=0.85, of="base", smooth_steps=2)
    _, met, why, _ = conditions.step(after, conditions.from_json(after, saved), record(7), (), 0.0)
    assert met
    assert why == "rlmon/format/effective 3 is below 0.85 of base 5 = 4.25 (not measured at this step)"
    # Another metric knows nothing.
    other = OnMetric(metric=KL, below=4.0)
    assert conditions.from_json(other, saved) == conditions.start(other)


# -- findings ----------------------------------------------------------------------------------------------------------


def test_a_finding_holds_for_the_rest_of_the_run() -> None:
    condition = OnFinding(finding="format-collapse")
    found = {2: [finding("lone-success", 2)], 3: [finding("format-collapse", 3)]}
    met, why, ids = fold(condition, [None] * 6, findings=found)
    assert met == [False, False, True, True, True, True]
    assert why[1] == "no finding of format-collapse yet"
    assert why[5] == "format-collapse (warn) at step 3"
    assert ids == [None, None, *["format-collapse-warn-3"] * 4]


def test_a_warning_is_no_failure_but_a_failure_is_a_warning_too() -> None:
    found = {1: [finding("format-collapse", 1)], 3: [finding("format-collapse", 3, "fail")]}
    fails = OnFinding(finding="format-collapse", severity="fail")
    met, why, _ = fold(fails, [None] * 3, findings=found)
    assert met == [False, False, True]
    assert why[0] == "no finding of format-collapse (fail) yet"
    met, _, ids = fold(OnFinding(finding="format-collapse"), [None] * 3, findings=found)
    assert met == [True, True, True]
    assert ids == ["format-collapse-warn-1", "format-collapse-warn-1", "format-collapse-fail-3"]


def test_a_rule_may_wait_for_a_note_and_an_alarm_is_no_note() -> None:
    found = {1: [finding("silent-groups-good", 1, "note")], 3: [finding("silent-groups-good", 3)]}
    waits = OnFinding(finding="silent-groups-good", severity="note")
    met, why, ids = fold(waits, [None] * 3, findings=found)
    assert met == [True, True, True]
    assert why[0] == "silent-groups-good (note) at step 1"
    assert ids == ["silent-groups-good-note-1", "silent-groups-good-note-1", "silent-groups-good-warn-3"]
    # Unset is WARN, and a note is less.
    met, _, _ = fold(OnFinding(finding="silent-groups-good"), [None] * 3, findings=found)
    assert met == [False, False, True]


def test_a_finding_that_lasts_so_many_steps_is_over_then_and_begins_anew() -> None:
    # Raised at step 2 it holds at 2, 3 and 4; raised again at 4 it holds at 4, 5 and 6.
    condition = OnFinding(finding="format-collapse", lasts_steps=3)
    met, why, _ = fold(condition, [None] * 6, findings={2: [finding("format-collapse", 2)]})
    assert met == [False, True, True, True, False, False]
    assert why[5] == "format-collapse (warn) at step 2 was 4 steps ago"
    again = {step: [finding("format-collapse", step)] for step in (2, 4)}
    assert fold(condition, [None] * 7, findings=again)[0] == [False, True, True, True, True, True, False]


def test_a_resume_with_another_finding_begins_anew() -> None:
    condition = OnFinding(finding="format-collapse")
    state, *_ = conditions.step(condition, conditions.start(condition), record(1), [finding("format-collapse", 1)], 0.0)
    saved = conditions.to_json(state)
    for other in (OnFinding(finding="lone-success"), OnFinding(finding="format-collapse", severity="fail")):
        assert conditions.from_json(other, saved) == conditions.start(other)
    for other in (Always(), OnMetric(metric=KL, above=1.0), AnyOf(conditions=(condition,))):
        assert conditions.from_json(other, saved) == conditions.start(other)


# -- joined ------------------------------------------------------------------------------------------------------------

DRIFT = OnMetric(metric=KL, above=0.3, smooth_steps=1)
COLLAPSE = OnFinding(finding="format-collapse", lasts_steps=2)


def test_any_and_all_join_their_parts_and_name_what_decided() -> None:
    values = [0.1, 0.4, 0.4, 0.1, 0.1]
    found = {3: [finding("format-collapse", 3)]}  # holds at 3 and 4
    met, why, ids = fold(AnyOf(conditions=(DRIFT, COLLAPSE)), values, findings=found)
    assert met == [False, True, True, True, False]
    assert why[1] == "rlmon/kl/mean 0.4 is above 0.3"
    assert why[2] == "rlmon/kl/mean 0.4 is above 0.3; format-collapse (warn) at step 3"
    assert why[4] == "rlmon/kl/mean 0.1 is not above 0.3; format-collapse (warn) at step 3 was 2 steps ago"
    assert ids == [None, None, "format-collapse-warn-3", "format-collapse-warn-3", None]
    met, why, ids = fold(AllOf(conditions=(DRIFT, COLLAPSE)), values, findings=found)
    assert met == [False, False, True, False, False]
    assert why[1] == "no finding of format-collapse yet"
    assert why[2] == "rlmon/kl/mean 0.4 is above 0.3; format-collapse (warn) at step 3"
    assert why[3] == "rlmon/kl/mean 0.1 is not above 0.3"
    assert ids == [None, None, "format-collapse-warn-3", None, None]


def test_every_part_is_folded_also_when_another_has_decided() -> None:
    # The finding comes while DRIFT alone makes `any` hold, and does not while DRIFT alone keeps `all` from holding.
    found = {1: [finding("format-collapse", 1)]}
    condition = OnFinding(finding="format-collapse")
    assert fold(AnyOf(conditions=(DRIFT, condition)), [0.4, 0.1], findings=found)[0] == [True, True]
    assert fold(AllOf(conditions=(DRIFT, condition)), [0.1, 0.4], findings=found)[0] == [False, True]


def test_nested_conditions_and_their_hysteresis() -> None:
    condition = AllOf(conditions=(Always(), AnyOf(conditions=(DRIFT, COLLAPSE))))
    # Line .3, half of it is .15: released at .15.
    assert fold(condition, [0.1, 0.4, 0.16, 0.15, 0.2], hysteresis=0.5)[0] == [False, True, True, False, False]


def test_a_resume_with_another_number_of_parts_begins_anew() -> None:
    two = AnyOf(conditions=(DRIFT, COLLAPSE))
    state, met, *_ = conditions.step(two, conditions.start(two), record(1, kl=0.4), (), 0.0)
    assert met
    saved = json.loads(json.dumps(conditions.to_json(state)))
    three = AnyOf(conditions=(DRIFT, COLLAPSE, Always()))
    assert conditions.from_json(three, saved) == conditions.start(three)
    # The same number: each part for itself.
    swapped = AnyOf(conditions=(DRIFT, OnFinding(finding="lone-success")))
    restored = conditions.from_json(swapped, saved)
    assert isinstance(restored, conditions.GroupState)
    assert restored.parts[0] == state.parts[0]  # type: ignore[union-attr]
    assert restored.parts[1] == conditions.start(swapped.conditions[1])


def test_floats_survive_a_checkpoint_exactly() -> None:
    condition = OnMetric(metric=KL, above=0.3, of="base", smooth_steps=7)
    values = [math.pi / 7**k for k in range(9)] + [1e-300, 0.1 + 0.2]
    straight, through = conditions.start(condition), conditions.start(condition)
    for step, value in enumerate(values, start=1):
        straight, *first = conditions.step(condition, straight, record(step, kl=value), (), 0.1)
        through = conditions.from_json(condition, json.loads(json.dumps(conditions.to_json(through))))
        through, *second = conditions.step(condition, through, record(step, kl=value), (), 0.1)
        assert first == second
    assert straight == through


@pytest.mark.parametrize(
    ("condition", "watched"),
    [
        (Always(), None),
        (COLLAPSE, None),
        (DRIFT, (KL, "down")),
        (OnMetric(metric=FORMATS, below=3.0), (FORMATS, "up")),
        (AllOf(conditions=(COLLAPSE, AnyOf(conditions=(Always(), DRIFT)))), (KL, "down")),
        (AnyOf(conditions=(Always(), COLLAPSE)), None),
    ],
)
def test_the_metric_that_an_act_is_judged_by_is_the_first_that_its_condition_names(
    condition: Condition, watched: tuple[str, str] | None
) -> None:
    assert conditions.metric_of(condition) == watched


def test_the_reason_is_one_printable_line() -> None:
    condition = AnyOf(conditions=tuple(OnMetric(metric=f"rlmon/\x1b[2J{i}\n" + "x" * 90, above=0.0) for i in range(16)))
    _, _, why, _ = conditions.step(condition, conditions.start(condition), record(1), (), 0.0)
    assert why.isprintable()
    assert len(why) <= 600


def test_a_state_of_another_condition_is_a_bug_of_the_caller() -> None:
    with pytest.raises(TypeError, match="FindingState is no state of OnMetric"):
        conditions.step(DRIFT, conditions.start(COLLAPSE), record(1), (), 0.0)
